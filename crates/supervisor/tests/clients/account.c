/* What a client's capabilities and limits decide, and what its /proc/PID/status says of pinned pages. argv[1] says what
 * to try; the first thing that is wrong is printed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* linux/iommufd.h, linux/vfio.h, linux/capability.h */
#define IOMMU_DESTROY 0x3b80
#define IOMMU_FAULT_QUEUE_ALLOC 0x3b8e
#define IOMMU_IOAS_ALLOC 0x3b81
#define IOMMU_IOAS_UNMAP 0x3b86
#define IOMMU_OPTION 0x3b87
#define IOMMU_IOAS_MAP_FILE 0x3b8f
#define IOMMU_IOAS_CHANGE_PROCESS 0x3b92
#define GROUP_SET_CONTAINER 0x3b68
#define SET_IOMMU 0x3b66
#define GROUP_GET_DEVICE_FD 0x3b6a
#define DEVICE_BIND_IOMMUFD 0x3b76
#define DEVICE_ATTACH_IOMMUFD_PT 0x3b77
#define MAP_DMA 0x3b71
#define UNMAP_DMA 0x3b72
#define CAP_IPC_LOCK 14

struct option { uint32_t size, id; uint16_t op, reserved; uint32_t object; uint64_t value; };
struct map_file { uint32_t size, flags, ioas; int32_t fd; uint64_t start, length, iova; };
struct unmap { uint32_t size, ioas; uint64_t iova, length; };
struct map_dma { uint32_t argsz, flags; uint64_t vaddr, iova, size; };

static int set_mode(int fd, uint64_t value)
{
	struct option cmd = { sizeof(cmd), 0, 0, 0, 0, value };
	return ioctl(fd, IOMMU_OPTION, &cmd);
}

/* kB of a line of /proc/PID/status. */
static long status(pid_t pid, const char *name)
{
	char path[40], line[200];
	long value = -1;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	FILE *file = fopen(path, "r");
	CHECK(file);
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			value = strtol(line + strlen(name), NULL, 10);
	fclose(file);
	return value;
}

/* Gives up the capability to lock memory without limit, for this process only. */
static void drop_ipc_lock(void)
{
	struct { uint32_t version; int pid; } header = { 0x20080522, 0 };
	struct { uint32_t effective, permitted, inheritable; } sets[2];
	CHECK(!syscall(SYS_capget, &header, sets));
	sets[0].effective &= ~(1U << CAP_IPC_LOCK);
	CHECK(!syscall(SYS_capset, &header, sets));
}

static int open_iommu(void)
{
	int fd = open("/dev/iommu", O_RDWR);
	CHECK(fd >= 0);
	return fd;
}

static int new_ioas(int fd)
{
	uint32_t cmd[3] = { sizeof(cmd) };
	CHECK(!ioctl(fd, IOMMU_IOAS_ALLOC, cmd));
	return cmd[2];
}

/* The device of the run, attached to the IOAS, so that pages are pinned. */
static void attach(int fd, int ioas)
{
	int device = open("/dev/vfio/devices/vfio0", O_RDWR);
	CHECK(device >= 0);
	uint32_t bind[4] = { sizeof(bind), 0, fd, 0 };
	CHECK(!ioctl(device, DEVICE_BIND_IOMMUFD, bind));
	uint32_t page_table[4] = { sizeof(page_table), 0, ioas, 0 };
	CHECK(!ioctl(device, DEVICE_ATTACH_IOMMUFD_PT, page_table));
}

static uint64_t map_file(int fd, int ioas, int file, uint64_t length)
{
	struct map_file cmd = { sizeof(cmd), 6, ioas, file, 0, length, 0 };
	CHECK(!ioctl(fd, IOMMU_IOAS_MAP_FILE, &cmd));
	return cmd.iova;
}

/* The errno of the call that needs CAP_SYS_RESOURCE, or 0. */
static int capable(void)
{
	return set_mode(open_iommu(), 1) ? errno : 0;
}

/* Charges by user (0) or by process (1), by the limit, and in another process after it took them over. */
static void modes(uint64_t mode)
{
	int file = memfd_create("pages", 0), ioas, fd = open_iommu();
	struct rlimit limit = { 64 << 10, 64 << 10 };
	CHECK(file >= 0 && !ftruncate(file, 128 << 10) && !setrlimit(RLIMIT_MEMLOCK, &limit));
	CHECK(!set_mode(fd, mode));
	ioas = new_ioas(fd);
	attach(fd, ioas);
	drop_ipc_lock();
	struct map_file large = { sizeof(large), 6, ioas, file, 0, 68 << 10, 0 };
	FAILS(ioctl(fd, IOMMU_IOAS_MAP_FILE, &large), ENOMEM);
	CHECK(status(getpid(), "VmPin:") == 0 && status(getpid(), "VmLck:") == 0);
	uint64_t iova = map_file(fd, ioas, file, 32 << 10);
	long locked = mode ? 32 : 0;
	CHECK(status(getpid(), "VmPin:") == 32 && status(getpid(), "VmLck:") == locked);

	/* What it locks by itself counts as well. */
	void *own = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(!mlock(own, 4096) && status(getpid(), "VmLck:") == locked + 4 && !munlock(own, 4096));

	pid_t parent = getpid(), child = fork();
	if (!child) {
		uint32_t cmd[2] = { sizeof(cmd) };
		CHECK(status(parent, "VmPin:") == 32 && status(getpid(), "VmPin:") == 0);
		CHECK(!ioctl(fd, IOMMU_IOAS_CHANGE_PROCESS, cmd));
		CHECK(status(parent, "VmPin:") == 0 && status(parent, "VmLck:") == 0);
		CHECK(status(getpid(), "VmPin:") == 32 && status(getpid(), "VmLck:") == locked);
		CHECK(!ioctl(fd, IOMMU_IOAS_CHANGE_PROCESS, cmd));
		_exit(0);
	}
	int ended;
	CHECK(waitpid(child, &ended, 0) == child && ended == 0);
	/* The child that pays has ended; what is unmapped is not the parent's to give back. */
	struct unmap unmap = { sizeof(unmap), ioas, iova, 32 << 10 };
	CHECK(!ioctl(fd, IOMMU_IOAS_UNMAP, &unmap) && status(getpid(), "VmPin:") == 0);
	map_file(fd, ioas, file, 64 << 10);
	CHECK(status(getpid(), "VmPin:") == 64);
}

/* The type1 container: VmLck alone, even where no limit binds. */
static void type1(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(!ioctl(group, GROUP_SET_CONTAINER, &container) && !ioctl(container, SET_IOMMU, 1));
	void *own = mmap(0, 32 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct map_dma map = { sizeof(map), 3, (uintptr_t)own, 0x10000, 32 << 10 };
	CHECK(!ioctl(container, MAP_DMA, &map));
	CHECK(status(getpid(), "VmLck:") == 32 && status(getpid(), "VmPin:") == 0);
	struct { uint32_t argsz, flags; uint64_t iova, size; } unmap = { 24, 0, 0x10000, 32 << 10 };
	CHECK(!ioctl(container, UNMAP_DMA, &unmap));
	CHECK(status(getpid(), "VmLck:") == 0);
}

/* Fails step n of `call` for n = 1, 2, ..., until it succeeds without; returns how many there were. After a failure the
 * same call succeeds, so nothing is left of it. `undo` takes back what it made. */
static int sweep(int (*call)(const void *), void (*undo)(int), const void *argument)
{
	int setting = open("/proc/self/fail-nth", O_RDWR);
	CHECK(setting >= 0);
	for (int n = 1;; n++) {
		char text[16] = "";
		int length = snprintf(text, sizeof(text), "%d", n);
		CHECK(pwrite(setting, text, length, 0) == length);
		int made = call(argument), error = errno;
		CHECK(pread(setting, text, sizeof(text), 0) >= 2 && pwrite(setting, "0", 1, 0) == 1);
		if (made >= 0)
			undo(made);
		if (text[0] != '0') {
			CHECK(made >= 0);
			close(setting);
			return n - 1;
		}
		CHECK(made >= 0 || error == ENOMEM);
		made = call(argument);
		CHECK(made >= 0);
		undo(made);
	}
}

static int open_node(const void *path)
{
	return open(path, O_RDWR);
}

static void close_fd(int fd)
{
	CHECK(!close(fd));
}

static int device_of_group(const void *group)
{
	return ioctl(*(const int *)group, GROUP_GET_DEVICE_FD, "0000:01:00.0");
}

static int fault_queue(const void *iommu)
{
	uint32_t cmd[4] = { sizeof(cmd) };
	if (ioctl(*(const int *)iommu, IOMMU_FAULT_QUEUE_ALLOC, cmd))
		return -1;
	uint32_t destroy[2] = { sizeof(destroy), cmd[2] };
	CHECK(!close(cmd[3]) && !ioctl(*(const int *)iommu, IOMMU_DESTROY, destroy));
	return 0;
}

static void nothing(int made)
{
	(void)made;
}

/* Every step of what makes a file for the client. */
static void steps(void)
{
	const char *nodes[] = { "/dev/iommu", "/dev/vfio/vfio", "/dev/vfio/1", "/dev/vfio/devices/vfio0" };
	for (int node = 0; node < 4; node++)
		CHECK(sweep(open_node, close_fd, nodes[node]) >= 3);
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	CHECK(!ioctl(group, GROUP_SET_CONTAINER, &container) && !ioctl(container, SET_IOMMU, 1));
	CHECK(sweep(device_of_group, close_fd, &group) >= 3);
	int iommu = open_iommu();
	CHECK(sweep(fault_queue, nothing, &iommu) >= 3);
}

int main(int argc, char **argv)
{
	CHECK(argc > 1);
	if (!strcmp(argv[1], "capable"))
		return capable();
	if (!strcmp(argv[1], "nested"))
		return unshare(CLONE_NEWUSER) ? 99 : capable();
	if (!strcmp(argv[1], "user"))
		modes(0);
	else if (!strcmp(argv[1], "process"))
		modes(1);
	else if (!strcmp(argv[1], "steps"))
		steps();
	else if (!strcmp(argv[1], "type1"))
		type1();
	puts("ok");
	return 0;
}
