/*
 * The program that a process executes whose memory is mapped for a device. It is linked so that its own data, a canary, lie
 * where that memory was: nothing has to be mapped before a device can reach it.
 *
 *   successor FD SLOT
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "strangers.h"

#define FOUR(i) CANARY + (i), CANARY + (i) + 1, CANARY + (i) + 2, CANARY + (i) + 3
#define SIXTEEN(i) FOUR(i), FOUR((i) + 4), FOUR((i) + 8), FOUR((i) + 12)
#define SIXTY_FOUR(i) SIXTEEN(i), SIXTEEN((i) + 16), SIXTEEN((i) + 32), SIXTEEN((i) + 48)
#define QUARTER(i) SIXTY_FOUR(i), SIXTY_FOUR((i) + 64), SIXTY_FOUR((i) + 128), SIXTY_FOUR((i) + 192)

__attribute__((section(".canary"), aligned(4096), used)) uint64_t canary[1024] = {
	QUARTER(0), QUARTER(256), QUARTER(512), QUARTER(768),
};

int main(int count, char **words)
{
	if (count != 3)
		return 98;
	struct shared *shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(words[1]), 0);
	if (shared == MAP_FAILED)
		return 97;
	struct slot *slot = &shared->slots[atoi(words[2])];
	slot->runs = 1;
	while (!slot->over)
		usleep(100);
	return canary_is_whole() ? 0 : CHANGED;
}
