/*
 *   idle devices COUNT      opens and enables that many NVMe controllers, prints "ready", and does nothing until its input ends
 *   idle doorbell ROUNDS    prints how long a testdev that has been idle takes from a store to the reader of its eventfd, and
 *                           how long another process takes that waits for an eventfd as long: p50 and p99 of each
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)

struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; uint64_t token; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct irq_set { uint32_t argsz, flags, index, start, count; int32_t fd; };

static int iommu;
static uint32_t ioas;

static void address_space(void)
{
	struct ioas_alloc alloc = { .size = sizeof alloc };
	CHECK((iommu = open("/dev/iommu", O_RDWR)) >= 0 && ioctl(iommu, VFIO(0x81), &alloc) == 0);
	ioas = alloc.out_ioas_id;
	char *memory = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 0, 1 << 20);
	struct ioas_map map = { sizeof map, 7, ioas, 0, (uintptr_t)memory, 1 << 20, 0x100000 };
	CHECK(ioctl(iommu, VFIO(0x85), &map) == 0);
}

/* A device with bus mastering on; its BAR 0 is mapped, and where that lies in the file is `offset`. */
static int device(int index, void **bar, off_t *offset)
{
	struct bind bind = { .argsz = sizeof bind, .iommufd = iommu };
	struct attach attach = { .argsz = sizeof attach, .pt_id = ioas };
	struct region_info info = { .argsz = sizeof info }, config = { .argsz = sizeof config, .index = 7 };
	uint16_t command = 6;
	char path[64];
	snprintf(path, sizeof path, "/dev/vfio/devices/vfio%d", index);
	int fd = open(path, O_RDWR);
	CHECK(fd >= 0 && ioctl(fd, VFIO(0x76), &bind) == 0 && ioctl(fd, VFIO(0x77), &attach) == 0);
	CHECK(ioctl(fd, VFIO(0x6c), &info) == 0 && ioctl(fd, VFIO(0x6c), &config) == 0);
	CHECK(pwrite(fd, &command, 2, (off_t)config.offset + 4) == 2);
	*bar = mmap(0, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)info.offset);
	CHECK(*bar != MAP_FAILED);
	*offset = (off_t)info.offset;
	return fd;
}

/* NVMe 1.4, 7.6.1: an admin queue pair of two entries each, entries of 64 and 16 bytes, then CC.EN and CSTS.RDY. */
static void enable(int fd, off_t bar)
{
	uint32_t size = 0x00010001, configuration = 0x00460001, status = 0;
	uint64_t submission = 0x100000, completion = 0x101000;
	CHECK(pwrite(fd, &size, 4, bar + 0x24) == 4 && pwrite(fd, &submission, 8, bar + 0x28) == 8);
	CHECK(pwrite(fd, &completion, 8, bar + 0x30) == 8 && pwrite(fd, &configuration, 4, bar + 0x14) == 4);
	for (int i = 0; !(status & 1); i++) {
		CHECK(i < 60000 && pread(fd, &status, 4, bar + 0x1c) == 4);
		usleep(1000);
	}
}

static void devices(int count)
{
	char byte;
	address_space();
	for (int i = 0; i < count; i++) {
		void *bar;
		off_t offset;
		int fd = device(i, &bar, &offset);
		enable(fd, offset);
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
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

static void print(const char *name, long *times, int count)
{
	qsort(times, (size_t)count, sizeof *times, by_time);
	printf("%s %ld %ld\n", name, times[count / 2], times[count * 99 / 100]);
}

/* The other end of a ping-pong: what it hears on one eventfd it says on the other. */
static void echo(int hear, int say)
{
	uint64_t value;
	if (fork())
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		CHECK(read(hear, &value, 8) == 8 && write(say, &value, 8) == 8);
}

static void doorbell(int count)
{
	long *device_times = calloc((size_t)count, sizeof(long)), *echo_times = calloc((size_t)count, sizeof(long));
	int done = eventfd(0, 0), ping = eventfd(0, 0), pong = eventfd(0, 0);
	struct irq_set set = { sizeof set, 0x24, 1, 0, 1, done };
	void *bar;
	off_t offset;
	uint64_t value;
	echo(ping, pong);
	address_space();
	int fd = device(0, &bar, &offset);
	CHECK(ioctl(fd, VFIO(0x6e), &set) == 0);
	volatile uint32_t *registers = bar;
	for (int i = 0; i < count; i++) {
		usleep(100000);
		long begin = now();
		registers[0] = 0x100000;
		registers[1] = 0;
		registers[2] = 3;
		CHECK(read(done, &value, 8) == 8);
		device_times[i] = now() - begin;
		usleep(100000);
		begin = now();
		value = 1;
		CHECK(write(ping, &value, 8) == 8 && read(pong, &value, 8) == 8);
		echo_times[i] = now() - begin;
	}
	print("device", device_times, count);
	print("echo", echo_times, count);
}

int main(int count, char **words)
{
	CHECK(count == 3);
	if (!strcmp(words[1], "devices"))
		devices(atoi(words[2]));
	else
		doorbell(atoi(words[2]));
	return 0;
}
