/*
 * Programs that mean harm, and how long another program waits beside them.
 *
 *   attackers [ATTACK..]
 *
 * Starts every attack named, each in processes of its own, lets them begin, and times GET_API_VERSION on a container of its own.
 * Prints median, 99th percentile and the longest wait, in nanoseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
#define SAMPLES 10000
#define THREADS 64

struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct dma_unmap { uint32_t argsz, flags; uint64_t iova, size; };

/* Pages that nobody ever gives. */
static char *held_back(size_t pages)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	char *memory = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = { { (uintptr_t)memory, pages * 4096 }, UFFDIO_REGISTER_MODE_MISSING, 0 };
	CHECK(uffd >= 0 && memory != MAP_FAILED);
	CHECK(ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0);
	return memory;
}

static int on_all;
static unsigned long request;

static void *call(void *argument)
{
	for (;; usleep(1000))
		ioctl(on_all, request, argument);
	return NULL;
}

/* A call in each of many threads, whose argument never comes. */
static void call_with_silence(int fd, unsigned long number)
{
	pthread_t thread;
	char *pages = held_back(THREADS);
	on_all = fd;
	request = number;
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread, NULL, call, pages + 4096 * i) == 0);
	pause();
}

static int container_of(int group_number, int *container)
{
	char path[32];
	snprintf(path, sizeof path, "/dev/vfio/%d", group_number);
	*container = open("/dev/vfio/vfio", O_RDWR);
	int group = open(path, O_RDWR);
	if (*container < 0 || group < 0 || ioctl(group, VFIO(0x68), container) || ioctl(*container, VFIO(0x66), 3))
		return -1;
	return group;
}

/* Commands that never arrive. */
static void silent_commands(void)
{
	call_with_silence(open("/dev/iommu", O_RDWR), VFIO(0x81));
}

/* Names of devices that never arrive. */
static void silent_names(void)
{
	int container, group = container_of(1, &container);
	CHECK(group >= 0);
	call_with_silence(group, VFIO(0x6a));
}

/* A command of four gigabytes, all of them zero but its size. */
static void long_commands(void)
{
	int iommu = open("/dev/iommu", O_RDWR);
	size_t length = (1ul << 32) - 4096;
	uint32_t *command = mmap(0, length, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(iommu >= 0 && command != MAP_FAILED);
	for (;;) {
		memset(command, 0, 64);
		command[0] = (uint32_t)length;
		ioctl(iommu, VFIO(0x81), command);
	}
}

/* As many files as there are. */
static void all_descriptors(void)
{
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	for (;;)
		if (open("/dev/iommu", O_RDWR) < 0)
			usleep(1000);
}

static int copying_device(int group_number, int *container, volatile uint32_t **bar)
{
	struct region_info info = { .argsz = sizeof info }, config = { .argsz = sizeof config, .index = 7 };
	uint16_t command = 6;
	char name[32];
	int group = container_of(group_number, container);
	if (group < 0)
		return -1;
	snprintf(name, sizeof name, "0000:%02d:00.0", group_number);
	int device = ioctl(group, VFIO(0x6a), name);
	if (device < 0)
		return -1;
	CHECK(ioctl(device, VFIO(0x6c), &info) == 0 && ioctl(device, VFIO(0x6c), &config) == 0);
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
	*bar = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)info.offset);
	CHECK(*bar != MAP_FAILED);
	return device;
}

/* A device copies a page that never comes; its program ends, or unmaps something else. */
static void stuck_device(int group_number, int ends)
{
	for (;; usleep(10000)) {
		int child = fork(), status;
		if (child > 0) {
			waitpid(child, &status, 0);
			continue;
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		volatile uint32_t *bar;
		int container;
		if (copying_device(group_number, &container, &bar) < 0)
			_exit(0);
		static char other[4096] __attribute__((aligned(4096)));
		struct dma_map never = { sizeof never, 3, (uintptr_t)held_back(1), 0x10000, 4096 };
		struct dma_map maps = { sizeof maps, 3, (uintptr_t)other, 0x20000, 4096 };
		struct dma_unmap unmap = { sizeof unmap, 0, 0x20000, 4096 };
		CHECK(ioctl(container, VFIO(0x71), &never) == 0 && ioctl(container, VFIO(0x71), &maps) == 0);
		bar[0] = 0x10000;
		bar[1] = 0;
		bar[2] = 3;
		usleep(2000);
		if (!ends)
			ioctl(container, VFIO(0x72), &unmap);
		_exit(0);
	}
}

static void ends_while_copying(void)
{
	stuck_device(2, 1);
}

static void unmaps_while_copying(void)
{
	stuck_device(3, 0);
}

/* What is behind a descriptor, made as long as it can be. */
static void fill_files(void)
{
	static char bytes[1 << 20];
	int fd = open("/dev/vfio/vfio", O_RDWR);
	CHECK(fd >= 0);
	for (off_t at = 0;; at += sizeof bytes)
		if (pwrite(fd, bytes, sizeof bytes, at) <= 0) {
			at = 0;
			usleep(1000);
		}
}

/* A file that never ends lies over what the supervisor may read of a process. */
static void endless_status(void)
{
	char path[64];
	int container;
	if (container_of(4, &container) < 0 || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		pause();
	snprintf(path, sizeof path, "/proc/%d/status", getpid());
	if (mount("/dev/zero", path, NULL, MS_BIND, NULL))
		pause();
	for (;; usleep(1000)) {
		char bytes[64];
		int fd = open(path, O_RDONLY);
		if (fd >= 0 && read(fd, bytes, sizeof bytes) >= 0)
			close(fd);
	}
}

/* Programs that map memory and execute another, as fast as they can. */
static void executes(void)
{
	for (;;) {
		int child = fork(), status;
		if (child == 0) {
			open("/dev/iommu", O_RDWR);
			execl("/bin/true", "true", NULL);
			_exit(0);
		}
		waitpid(child, &status, 0);
	}
}

static const struct { const char *name; void (*begins)(void); } attacks[] = {
	{ "silent_commands", silent_commands }, { "silent_names", silent_names },
	{ "long_commands", long_commands }, { "all_descriptors", all_descriptors },
	{ "ends_while_copying", ends_while_copying }, { "unmaps_while_copying", unmaps_while_copying },
	{ "fill_files", fill_files }, { "endless_status", endless_status }, { "executes", executes },
};

static long times[SAMPLES];

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

int main(int count, char **words)
{
	int container = open("/dev/vfio/vfio", O_RDWR), started = 0;
	CHECK(container >= 0);
	for (int i = 1; i < count; i++)
		for (unsigned at = 0; at < sizeof attacks / sizeof *attacks; at++)
			if (!strcmp(words[i], attacks[at].name)) {
				started++;
				if (fork() == 0) {
					prctl(PR_SET_PDEATHSIG, SIGKILL);
					attacks[at].begins();
				}
			}
	CHECK(started == count - 1);
	if (started)
		sleep(2);
	for (int i = 0; i < SAMPLES; i++) {
		long begin = now();
		CHECK(ioctl(container, VFIO(0x64)) == 0);
		times[i] = now() - begin;
		if (i % 10 == 0)
			usleep(1000);
	}
	qsort(times, SAMPLES, sizeof *times, by_time);
	printf("%ld %ld %ld\n", times[SAMPLES / 2], times[SAMPLES / 100 * 99], times[SAMPLES - 1]);
	return 0;
}
