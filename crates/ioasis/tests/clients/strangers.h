/* What strangers.c and successor.c share: the canary at its place, and a page of semaphores. */
#pragma once
#include <semaphore.h>
#include <stdint.h>

/* Every process has its canary here. */
#define AT 0x10000000ul
#define BYTES 8192u
/* Words of a canary, what a mapper puts there instead, and what a device writes. */
#define CANARY 0xca9a51e5ca9a0000ull
#define MINE 0x6d696e656d696e65ull
#define WRITTEN 0x7772697474656e21ull
/* Exit statuses: a canary was changed; memory that lives on was not reached. */
#define CHANGED 3
#define LOST 4

/* What one device's round is made of. */
struct slot {
	sem_t mapped, go, ended, victim_lives, victim_ends;
	volatile int way, number, wanted, victim, runs, over;
};

struct shared {
	int fd;
	sem_t requests;
	struct slot slots[4];
	volatile long rounds, passed, read[5], changed[5], lost[5];
	volatile int over;
};

static inline int canary_is_whole(void)
{
	const uint64_t *canary = (const uint64_t *)AT;
	for (unsigned i = 0; i < BYTES / 8; i++)
		if (canary[i] != CANARY + i)
			return 0;
	return 1;
}
