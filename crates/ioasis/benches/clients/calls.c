/*
 * Times calls that a program waits for, in turns: CHECK_EXTENSION, mapping a page, unmapping it, four bytes of config space.
 *
 *   calls container|iommufd private|shared|hugetlb idle|dma
 *
 * Prints the median of each in nanoseconds. Four testdevs are attached; with "dma" another process has all of them copy while
 * the calls are timed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
#define DEVICES 4
#define ROUNDS 3000
#define BUFFER 0x10000000ull
#define PAGES_AT 0x20000000ull

struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct dma_unmap { uint32_t argsz, flags; uint64_t iova, size; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; uint64_t token; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct ioas_unmap { uint32_t size, ioas_id; uint64_t iova, length; };

static int container, iommu, devices[DEVICES];
static uint32_t ioas;
static off_t config;

enum call { CHECK_EXTENSION, MAP, UNMAP, CONFIG_READ, CALLS };
static const char *const names[CALLS] = { "check_extension", "map", "unmap", "config_read" };
static long times[CALLS][ROUNDS];

static void map(void *memory, uint64_t iova, uint64_t length)
{
	struct dma_map dma = { sizeof dma, 3, (uintptr_t)memory, iova, length };
	struct ioas_map call = { sizeof call, 7, ioas, 0, (uintptr_t)memory, length, iova };
	CHECK((iommu ? ioctl(iommu, VFIO(0x85), &call) : ioctl(container, VFIO(0x71), &dma)) == 0);
}

static void unmap(uint64_t iova, uint64_t length)
{
	struct dma_unmap dma = { sizeof dma, 0, iova, length };
	struct ioas_unmap call = { sizeof call, ioas, iova, length };
	CHECK((iommu ? ioctl(iommu, VFIO(0x86), &call) : ioctl(container, VFIO(0x72), &dma)) == 0);
}

static void open_container(void)
{
	char path[32];
	for (int i = 0; i < DEVICES; i++) {
		snprintf(path, sizeof path, "/dev/vfio/%d", i + 1);
		int group = open(path, O_RDWR);
		CHECK(group >= 0 && ioctl(group, VFIO(0x68), &container) == 0);
		CHECK(i || ioctl(container, VFIO(0x66), 3) == 0);
		snprintf(path, sizeof path, "0000:%02d:00.0", i + 1);
		CHECK((devices[i] = ioctl(group, VFIO(0x6a), path)) >= 0);
	}
}

static void open_iommufd(void)
{
	struct ioas_alloc alloc = { .size = sizeof alloc };
	char path[32];
	CHECK((iommu = open("/dev/iommu", O_RDWR)) > 0 && ioctl(iommu, VFIO(0x81), &alloc) == 0);
	ioas = alloc.out_ioas_id;
	for (int i = 0; i < DEVICES; i++) {
		struct bind bind = { .argsz = sizeof bind, .iommufd = iommu };
		struct attach attach = { .argsz = sizeof attach, .pt_id = ioas };
		snprintf(path, sizeof path, "/dev/vfio/devices/vfio%d", i);
		CHECK((devices[i] = open(path, O_RDWR)) >= 0);
		CHECK(ioctl(devices[i], VFIO(0x76), &bind) == 0 && ioctl(devices[i], VFIO(0x77), &attach) == 0);
	}
}

/* A device's registers, once it may do DMA. */
static volatile uint32_t *registers(int device)
{
	struct region_info bar = { .argsz = sizeof bar, .index = 0 }, space = { .argsz = sizeof space, .index = 7 };
	uint16_t command = 6;
	CHECK(ioctl(device, VFIO(0x6c), &bar) == 0 && ioctl(device, VFIO(0x6c), &space) == 0);
	config = (off_t)space.offset;
	CHECK(pwrite(device, &command, 2, config + 4) == 2);
	void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(page != MAP_FAILED);
	return page;
}

/* Keeps all devices at work, without a system call that is stopped. */
static void copy_for_ever(volatile uint32_t *bars[DEVICES])
{
	const struct timespec pause = { 0, 20000 };
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_TIMERSLACK, 1);
	for (unsigned turn = 0;; turn++, nanosleep(&pause, NULL))
		for (int i = 0; i < DEVICES; i++) {
			if (bars[i][2] & 1)
				continue;
			if (bars[i][2] & 1u << 31)
				_exit(1);
			bars[i][0] = (uint32_t)BUFFER + 4096 * (uint32_t)i;
			bars[i][1] = 0;
			bars[i][2] = turn % 2 ? 3 : 1;
		}
}

static long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int by_time(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;
	return x < y ? -1 : x > y;
}

static void measure(char *memory, uint64_t size, uint64_t page)
{
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t offset = (uint64_t)round * page % size, iova = PAGES_AT + offset;
		long at[CALLS + 1];
		at[0] = now();
		CHECK(ioctl(container, VFIO(0x65), 1) == 1);
		at[1] = now();
		map(memory + offset, iova, page);
		at[2] = now();
		unmap(iova, page);
		at[3] = now();
		CHECK(pread(devices[0], memory, 4, config) == 4);
		at[4] = now();
		for (int call = 0; call < CALLS; call++)
			times[call][round] = at[call + 1] - at[call];
	}
}

int main(int count, char **words)
{
	volatile uint32_t *bars[DEVICES];
	CHECK(count == 4);
	uint64_t page = strcmp(words[2], "hugetlb") ? 4096 : 2 << 20, size = page == 4096 ? 64 * page : 2 * page;
	int flags = strcmp(words[2], "shared") ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd = -1;
	if (flags == MAP_SHARED)
		CHECK((fd = memfd_create("pages", 0)) >= 0 && ftruncate(fd, (off_t)(2 * size)) == 0);
	if (page != 4096)
		flags |= MAP_HUGETLB;
	char *memory = mmap(0, 2 * size, PROT_READ | PROT_WRITE, flags, fd, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 1, 2 * size);

	CHECK((container = open("/dev/vfio/vfio", O_RDWR)) >= 0);
	strcmp(words[1], "iommufd") ? open_container() : open_iommufd();
	map(memory + size, BUFFER, size);
	for (int i = 0; i < DEVICES; i++)
		bars[i] = registers(devices[i]);
	pid_t child = 0;
	if (!strcmp(words[3], "dma")) {
		CHECK((child = fork()) >= 0);
		if (!child)
			copy_for_ever(bars);
	}
	measure(memory, size, page);
	if (child)
		CHECK(waitpid(child, NULL, WNOHANG) == 0 && kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
	for (int call = 0; call < CALLS; call++) {
		qsort(times[call], ROUNDS, sizeof *times[call], by_time);
		printf("%s %ld\n", names[call], times[call][ROUNDS / 2]);
	}
	return 0;
}
