/* Nanoseconds of a store that a bare tracer steps over, and of one to a register of the nvme model: the medians of both. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "check.h"

enum { ROUNDS = 10, STORES = 500, ALL = ROUNDS * STORES, INTMS = 0x0c };

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void store(volatile void *page, uint64_t *times)
{
	for (int count = 0; count < STORES; count++) {
		uint64_t begin = now();
		/* Two bytes. */
		__asm__ volatile("movl %%edx, (%%rax)" : : "a"(page), "d"(1) : "memory");
		times[count] = now() - begin;
	}
}

static void bare(int begin, int end, uint64_t *times)
{
	void *page = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char byte;
	for (int round = 0; round < ROUNDS; round++) {
		CHECK(read(begin, &byte, 1) == 1);
		store(page, times + round * STORES);
		CHECK(write(end, "e", 1) == 1);
	}
	_exit(0);
}

/* Steps over each store of its child. */
static void trace(int begin, int end, uint64_t *times)
{
	int ready[2];
	char byte;
	CHECK(pipe(ready) == 0);
	pid_t child = fork();
	if (!child) {
		CHECK(read(ready[0], &byte, 1) == 1);
		bare(begin, end, times);
	}
	CHECK(ptrace(PTRACE_SEIZE, child, 0, 0) == 0 && write(ready[1], "r", 1) == 1);
	for (;;) {
		struct user_regs_struct registers;
		siginfo_t info;
		CHECK(waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | __WALL | __WNOTHREAD) == 0);
		if (info.si_code == CLD_EXITED)
			_exit(info.si_status);
		CHECK(ptrace(PTRACE_GETREGS, child, 0, &registers) == 0);
		registers.rip += 2;
		CHECK(ptrace(PTRACE_SETREGS, child, 0, &registers) == 0);
		CHECK(ptrace(PTRACE_CONT, child, 0, 0) == 0);
	}
}

static int compare(const void *one, const void *other)
{
	uint64_t first = *(const uint64_t *)one, second = *(const uint64_t *)other;
	return (first > second) - (first < second);
}

static uint64_t median(uint64_t *times)
{
	qsort(times, ALL, sizeof *times, compare);
	return times[ALL / 2];
}

int main(void)
{
	static uint64_t trapped[ALL];
	uint64_t *stepped = mmap(0, sizeof trapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int begin[2], end[2], status;
	char byte;
	CHECK(stepped != MAP_FAILED && pipe(begin) == 0 && pipe(end) == 0);
	pid_t tracer = fork();
	if (!tracer)
		trace(begin[0], end[1], stepped);

	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	struct vfio_region_info bar = { .argsz = sizeof bar };
	struct vfio_region_info config = { .argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX };
	uint16_t command = 6;
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	CHECK(device >= 0 && ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
	unsigned char *page = mmap(0, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(page != MAP_FAILED);
	for (int round = 0; round < ROUNDS; round++) {
		CHECK(write(begin[1], "b", 1) == 1 && read(end[0], &byte, 1) == 1);
		store(page + INTMS, trapped + round * STORES);
	}
	CHECK(waitpid(tracer, &status, 0) == tracer && status == 0);
	printf("%llu %llu\n", (unsigned long long)median(stepped), (unsigned long long)median(trapped));
	return 0;
}
