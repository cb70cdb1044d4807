/* RLIMIT_MEMLOCK of a program that is root in a user namespace. The first thing that is wrong is printed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
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

/* linux/vfio.h */
#define GROUP_SET_CONTAINER 0x3b68
#define SET_IOMMU 0x3b66
#define MAP_DMA 0x3b71
#define UNMAP_DMA 0x3b72
#define GIB (1UL << 30)
#define MANY (32UL << 20)

static struct rlimit begun;

static void shows(rlim_t current, rlim_t maximum)
{
	struct rlimit limit = { 1, 2 };
	char line[256], soft[32], hard[32];

	CHECK(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	CHECK(limit.rlim_cur == current && limit.rlim_max == maximum);
	CHECK(syscall(SYS_getrlimit, RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_max == maximum);
	CHECK(prlimit(getpid(), RLIMIT_MEMLOCK, NULL, &limit) == 0 && limit.rlim_cur == current);
	FILE *file = fopen("/proc/self/limits", "r");
	while (fgets(line, sizeof(line), file) && strncmp(line, "Max locked", 10))
		;
	fclose(file);
	CHECK(sscanf(line, "Max locked memory %31s %31s bytes", soft, hard) == 2);
	CHECK(current == RLIM_INFINITY ? !strcmp(soft, "unlimited") : strtoul(soft, NULL, 10) == current);
	CHECK(maximum == RLIM_INFINITY ? !strcmp(hard, "unlimited") : strtoul(hard, NULL, 10) == maximum);
}

static void set(rlim_t current, rlim_t maximum)
{
	struct rlimit limit = { current, maximum };
	CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	shows(current, maximum);
}

static void drop(int capability)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];

	CHECK(syscall(SYS_capget, &header, data) == 0);
	data[capability / 32].effective &= ~(1u << capability % 32);
	CHECK(syscall(SYS_capset, &header, data) == 0);
}

/* 0 when that many bytes can be pinned, else the errno. */
static int pinned(int container, void *memory, size_t length)
{
	struct { uint32_t argsz, flags; uint64_t vaddr, iova, size; } map = { 32, 3, (uintptr_t)memory, 0, length };
	struct { uint32_t argsz, flags; uint64_t iova, size; } unmap = { 24, 0, 0, length };

	if (ioctl(container, MAP_DMA, &map))
		return errno;
	CHECK(ioctl(container, UNMAP_DMA, &unmap) == 0);
	return 0;
}

static void *in_a_thread(void *unused)
{
	shows(GIB, 2 * GIB);
	return unused;
}

static void inherited(char *program)
{
	pthread_t thread;
	int status;

	CHECK(pthread_create(&thread, NULL, in_a_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
	/* Each of these is another process, and the last another program in it. */
	pid_t child = fork();
	if (child == 0) {
		if (fork() == 0) {
			shows(GIB, 2 * GIB);
			execl(program, program, "show", (char *)NULL);
		}
		CHECK(wait(&status) > 0);
		_exit(WEXITSTATUS(status));
	}
	CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
	/* What a child sets is its own. */
	if ((child = fork()) == 0) {
		set(5, 3 * GIB);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	shows(GIB, 2 * GIB);
}

static void of_another(void)
{
	struct rlimit limit = { 4 * GIB, 4 * GIB }, old = { 0, 0 };
	pid_t parent = getpid();
	int status, ends[2];

	if (fork() == 0) {
		CHECK(prlimit(parent, RLIMIT_MEMLOCK, &limit, &old) == 0);
		CHECK(old.rlim_cur == GIB && old.rlim_max == 2 * GIB);
		CHECK(prlimit(parent, RLIMIT_MEMLOCK, NULL, &old) == 0 && old.rlim_max == 4 * GIB);
		shows(GIB, 2 * GIB);
		_exit(0);
	}
	CHECK(wait(&status) > 0 && status == 0);
	shows(4 * GIB, 4 * GIB);
	/* One that is busy goes on, and gets its signals. */
	CHECK(pipe(ends) == 0);
	pid_t busy = fork();
	if (busy == 0)
		for (char byte; read(ends[0], &byte, 1) == 1;)
			CHECK(write(ends[1], &byte, 1) == 1);
	for (int i = 0; i < 20; i++) {
		limit.rlim_cur = i * GIB;
		limit.rlim_max = 100 * GIB;
		CHECK(prlimit(busy, RLIMIT_MEMLOCK, &limit, NULL) == 0);
		CHECK(prlimit(busy, RLIMIT_MEMLOCK, NULL, &old) == 0 && old.rlim_cur == i * GIB);
	}
	CHECK(kill(busy, SIGTERM) == 0 && waitpid(busy, &status, 0) == busy);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
	FAILS(prlimit(busy, RLIMIT_MEMLOCK, &limit, NULL), ESRCH);
	FAILS(prlimit(busy, RLIMIT_MEMLOCK, NULL, &old), ESRCH);
}

int main(int argc, char **argv)
{
	struct rlimit limit = { 2, 1 };
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	void *memory = mmap(NULL, MANY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (argc > 1) {
		shows(GIB, 2 * GIB);
		return 7;
	}
	CHECK(getrlimit(RLIMIT_MEMLOCK, &begun) == 0);
	if (begun.rlim_max > MANY / 2 || begun.rlim_max < 8192) {
		puts("another limit");
		return 0;
	}
	CHECK(ioctl(group, GROUP_SET_CONTAINER, &container) == 0 && ioctl(container, SET_IOMMU, 1) == 0);
	shows(begun.rlim_cur, begun.rlim_max);
	FAILS(setrlimit(RLIMIT_MEMLOCK, &limit), EINVAL);
	FAILS(syscall(SYS_setrlimit, RLIMIT_MEMLOCK, -8), EFAULT);
	FAILS(syscall(SYS_prlimit64, 0, RLIMIT_MEMLOCK, &limit, NULL), EINVAL);
	/* It counts for what devices reach, once the capability that makes it meaningless is gone. */
	CHECK(pinned(container, memory, MANY) == 0);
	drop(CAP_IPC_LOCK);
	CHECK(pinned(container, memory, MANY) == ENOMEM);
	set(2 * MANY, 2 * MANY);
	CHECK(pinned(container, memory, MANY) == 0);
	set(MANY - 4096, 2 * MANY);
	CHECK(pinned(container, memory, MANY) == ENOMEM);
	set(RLIM_INFINITY, RLIM_INFINITY);
	CHECK(pinned(container, memory, MANY) == 0);
	set(begun.rlim_max - 5, begun.rlim_max);
	set(0, GIB);
	CHECK(pinned(container, memory, 4096) == ENOMEM);
	set(GIB, 2 * GIB);
	inherited(argv[0]);
	of_another();
	/* Without the capability it can be lowered only. */
	set(GIB, 2 * GIB);
	drop(CAP_SYS_RESOURCE);
	limit = (struct rlimit){ GIB, 2 * GIB + 1 };
	FAILS(setrlimit(RLIMIT_MEMLOCK, &limit), EPERM);
	shows(GIB, 2 * GIB);
	set(GIB, GIB);
	limit = (struct rlimit){ GIB, 2 * GIB };
	FAILS(setrlimit(RLIMIT_MEMLOCK, &limit), EPERM);
	set(4096, 8192);
	/* Other limits are the kernel's. */
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && setrlimit(RLIMIT_NOFILE, &limit) == 0);
	puts("ok");
	return 0;
}
