/* One operation of io_uring at a time, by system calls alone. */
#pragma once
#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct ring {
	int fd;
	char *rings;
	struct io_uring_sqe *entries;
	struct io_uring_params params;
};

/* 0, or -1 where the kernel has none or forbids it. */
static int ring_open(struct ring *ring)
{
	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(SYS_io_uring_setup, 4, &ring->params);
	if (ring->fd < 0)
		return -1;
	ring->rings = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	ring->entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd, IORING_OFF_SQES);
	return ring->rings == MAP_FAILED || ring->entries == MAP_FAILED ? -1 : 0;
}

/* What the operation answers, negative for an errno. */
static int ring_do(struct ring *ring, struct io_uring_sqe entry)
{
	volatile uint32_t *tail = (uint32_t *)(ring->rings + ring->params.sq_off.tail);
	uint32_t *array = (uint32_t *)(ring->rings + ring->params.sq_off.array);
	uint32_t mask = *(uint32_t *)(ring->rings + ring->params.sq_off.ring_mask);
	volatile uint32_t *head = (uint32_t *)(ring->rings + ring->params.cq_off.head);
	uint32_t done = *(uint32_t *)(ring->rings + ring->params.cq_off.ring_mask);
	struct io_uring_cqe *answers = (struct io_uring_cqe *)(ring->rings + ring->params.cq_off.cqes);

	ring->entries[*tail & mask] = entry;
	array[*tail & mask] = *tail & mask;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -9999;
	int answer = answers[*head & done].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return answer;
}
