/*
 * Whose memory does a device reach, once the thread that mapped it has ended, or its program is another?
 *
 *   strangers IOASIS SUCCESSOR ROUNDS SEED WAY..
 *
 * It is the first process of a PID namespace, so that it can give a process any number that is free. Every process below it
 * has a canary at the same address, those outside the run too. In a round, a process under `IOASIS run` maps that address for
 * a device, after it has put other bytes there; then it ends its threads, executes SUCCESSOR or ends, as WAY says; the number
 * that became free is given to a process outside the run; and the device reads and writes. A canary that the device reads, or
 * that changes, is counted. With several ways, four devices make rounds of random ways at once, with processes that come and go.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"
#include "strangers.h"

#define VFIO(nr) _IO(';', nr)
/* Where the canary, or what is mapped instead of it, and the device's own page are for the device. */
#define THEIRS 0x100000u
#define OURS 0x200000u

enum way { THREAD, PROCESS, SHARED, EXEC, THREAD_EXEC, WAYS };
static const char *const names[WAYS] = { "thread", "process", "shared", "exec", "thread-exec" };

struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct dma_unmap { uint32_t argsz, flags; uint64_t iova, size; };
struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };

static struct shared *shared;
static struct slot *slot;
static const char *successor;
static unsigned random_state;

static int container;
static volatile uint32_t *bar;
static uint64_t *page;

static unsigned chance(unsigned below)
{
	random_state = random_state * 1103515245 + 12345;
	return (random_state >> 16) % below;
}

static void await(sem_t *semaphore)
{
	struct timespec limit;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 60;
	while (sem_timedwait(semaphore, &limit))
		CHECK(errno == EINTR);
}

static void plant(void)
{
	uint64_t *canary = mmap((void *)AT, BYTES, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	CHECK(canary == (void *)AT);
	for (unsigned i = 0; i < BYTES / 8; i++)
		canary[i] = CANARY + i;
}

static void quit(void)
{
	_exit(canary_is_whole() ? 0 : CHANGED);
}

/* The device copies the page at `iova` into itself (3), or itself to there (1); whether it could. */
static int copy(uint32_t iova, uint32_t command)
{
	bar[0] = iova;
	bar[1] = 0;
	bar[2] = command;
	for (long turn = 0; bar[2] & 1; turn++) {
		CHECK(turn < 1000000);
		if (turn > 100)
			usleep(50);
	}
	return !(bar[2] >> 31);
}

/* What a read of the mapped page gives: 0 nothing, 1 what was mapped, and a canary is counted. */
static int device_reads(enum way way)
{
	if (!copy(THEIRS, 3))
		return 0;
	CHECK(copy(OURS, 1));
	if (page[0] >> 16 == CANARY >> 16)
		__sync_fetch_and_add(&shared->read[way], 1);
	return page[0] == MINE;
}

static int device_writes(void)
{
	for (int i = 0; i < 512; i++)
		page[i] = WRITTEN;
	CHECK(copy(OURS, 3));
	return copy(THEIRS + 4096, 1);
}

static void map(void)
{
	struct dma_map call = { sizeof call, 3, AT, THEIRS, BYTES };
	uint64_t *memory = (uint64_t *)AT;
	for (unsigned i = 0; i < BYTES / 8; i++)
		memory[i] = MINE;
	CHECK(ioctl(container, VFIO(0x71), &call) == 0);
	sem_post(&slot->mapped);
	await(&slot->go);
}

static int is_gone(int number)
{
	return syscall(SYS_tkill, number, 0) == -1 && errno == ESRCH;
}

static void succeed(void)
{
	char memory[16], index[16];
	snprintf(memory, sizeof memory, "%d", shared->fd);
	snprintf(index, sizeof index, "%d", (int)(slot - shared->slots));
	execl(successor, successor, memory, index, NULL);
	CHECK(!"the successor can be executed");
}

static volatile int first, second, second_ends;

static void *end_before_the_third(void *unused)
{
	(void)unused;
	second = (int)syscall(SYS_gettid);
	while (!second_ends)
		usleep(100);
	syscall(SYS_exit, 0);
	return NULL;
}

/* The first thread has ended, then the second does; the memory lives on with this one. */
static void *third(void *unused)
{
	char path[64], text[256];
	(void)unused;
	snprintf(path, sizeof path, "/proc/%d/stat", first);
	for (char state = 0; state != 'Z'; usleep(100)) {
		int file = open(path, O_RDONLY);
		ssize_t length = read(file, text, sizeof text - 1);
		CHECK(length > 0);
		close(file);
		text[length] = 0;
		state = strrchr(text, ')')[2];
	}
	map();
	second_ends = 1;
	while (!is_gone(second))
		usleep(100);
	slot->number = second;
	sem_post(&slot->ended);
	await(&slot->go);
	_exit(((uint64_t *)AT)[512] == WRITTEN ? 0 : LOST);
}

static void by_threads(void)
{
	pthread_t thread;
	first = getpid();
	CHECK(pthread_create(&thread, NULL, end_before_the_third, NULL) == 0);
	while (!second)
		usleep(100);
	CHECK(pthread_create(&thread, NULL, third, NULL) == 0);
	syscall(SYS_exit, 0);
}

static int map_and_end(void *unused)
{
	(void)unused;
	map();
	syscall(SYS_exit, 0);
	return 0;
}

/* A process of its own that shares our memory, as vfork makes one. */
static void by_sharing(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	int child = clone(map_and_end, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
	CHECK(child > 0 && waitpid(child, NULL, 0) == child);
	slot->number = child;
	sem_post(&slot->ended);
	await(&slot->go);
	_exit(((uint64_t *)AT)[512] == WRITTEN ? 0 : LOST);
}

static void *map_and_exec(void *unused)
{
	(void)unused;
	slot->number = (int)syscall(SYS_gettid);
	map();
	succeed();
	return NULL;
}

static void by_thread_exec(void)
{
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, map_and_exec, NULL) == 0);
	pthread_join(thread, NULL);
}

static void mapper(enum way way)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	switch (way) {
	case THREAD:
		by_threads();
		break;
	case PROCESS:
		slot->number = getpid();
		map();
		_exit(0);
	case SHARED:
		by_sharing();
		break;
	case EXEC:
		map();
		succeed();
		break;
	default:
		by_thread_exec();
	}
	_exit(99);
}

/* Has a process outside the run live under the number that became free. */
static void pass_on(void)
{
	slot->victim = 0;
	slot->wanted = 1;
	sem_post(&shared->requests);
	await(&slot->victim_lives);
}

static void count_status(enum way way, int status)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == CHANGED)
		__sync_fetch_and_add(&shared->changed[way], 1);
	else if (WIFEXITED(status) && WEXITSTATUS(status) == LOST)
		__sync_fetch_and_add(&shared->lost[way], 1);
	else
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The device reads and writes from before the exec until a while after the next program began. */
static void across_an_exec(enum way way)
{
	slot->runs = slot->over = 0;
	sem_post(&slot->go);
	for (int after = 0; after < 20; after += slot->runs)
		if (device_reads(way))
			device_writes();
	if (way == THREAD_EXEC) {
		pass_on();
		for (int i = 0; i < 4; i++)
			if (!device_reads(way))
				device_writes();
	}
	slot->over = 1;
}

static void round_of(enum way way)
{
	struct dma_unmap unmap = { sizeof unmap, 0, THEIRS, BYTES };
	slot->way = way;
	int status, child = fork();
	CHECK(child >= 0);
	if (child == 0)
		mapper(way);
	await(&slot->mapped);
	CHECK(device_reads(way) == 1);
	int executes = way == EXEC || way == THREAD_EXEC, lives = way == THREAD || way == SHARED;
	if (executes) {
		across_an_exec(way);
	} else {
		sem_post(&slot->go);
		if (lives)
			await(&slot->ended);
		else
			CHECK(waitpid(child, &status, 0) == child);
		pass_on();
		/* The memory that was mapped, where it lives on; nothing, where it does not. */
		int mine = 0;
		for (int i = 0; i < 4; i++) {
			mine += device_reads(way);
			device_writes();
		}
		if (lives && mine != 4)
			__sync_fetch_and_add(&shared->lost[way], 1);
	}
	if (slot->victim) {
		slot->victim = 0;
		sem_post(&slot->victim_ends);
	}
	if (lives)
		sem_post(&slot->go);
	if (lives || executes) {
		CHECK(waitpid(child, &status, 0) == child);
		count_status(way, status);
	}
	CHECK(ioctl(container, VFIO(0x72), &unmap) == 0);
	__sync_fetch_and_add(&shared->rounds, 1);
}

static void open_device(int index)
{
	struct region_info info = { .argsz = sizeof info, .index = 0 }, config = { .argsz = sizeof config, .index = 7 };
	uint16_t command = 6;
	char name[32];
	CHECK((container = open("/dev/vfio/vfio", O_RDWR)) >= 0);
	snprintf(name, sizeof name, "/dev/vfio/%d", index + 1);
	int group = open(name, O_RDWR), device;
	CHECK(group >= 0 && ioctl(group, VFIO(0x68), &container) == 0 && ioctl(container, VFIO(0x66), 1) == 0);
	snprintf(name, sizeof name, "0000:%02d:00.0", index + 1);
	CHECK((device = ioctl(group, VFIO(0x6a), name)) >= 0);
	CHECK(ioctl(device, VFIO(0x6c), &info) == 0 && ioctl(device, VFIO(0x6c), &config) == 0);
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
	bar = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)info.offset);
	page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(bar != MAP_FAILED && page != MAP_FAILED);
	struct dma_map call = { sizeof call, 3, (uintptr_t)page, OURS, 4096 };
	CHECK(ioctl(container, VFIO(0x71), &call) == 0);
}

static void drive(int index, const enum way *ways, int count, long rounds)
{
	slot = &shared->slots[index];
	random_state += (unsigned)index;
	open_device(index);
	for (long i = 0; i < rounds; i++)
		round_of(ways[chance((unsigned)count)]);
	quit();
}

/* Processes that come and go, each with a canary, until the parent ends. */
static void churn(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		int status, child = fork();
		if (child == 0)
			quit();
		CHECK(child > 0 && waitpid(child, &status, 0) == child);
		count_status(PROCESS, status);
		usleep(500);
	}
}

static void inside(const enum way *ways, int count, long rounds)
{
	int drivers = count > 1 ? 4 : 1, status;
	int coming = count > 1 ? fork() : 0;
	if (count > 1 && coming == 0)
		churn();
	for (int i = 0; i < drivers; i++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			drive(i, ways, count, rounds / drivers);
		}
	for (int i = 0; i < drivers; i++) {
		CHECK(wait(&status) > 0);
		count_status(PROCESS, status);
	}
	if (coming)
		kill(coming, SIGKILL);
	quit();
}

static void await_end(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!shared->over)
		usleep(10000);
}

static void victim(struct slot *of)
{
	of->victim = 1;
	sem_post(&of->victim_lives);
	await(&of->victim_ends);
	if (!canary_is_whole())
		__sync_fetch_and_add(&shared->changed[of->way], 1);
	_exit(0);
}

/* Starts a process under the number that a slot wants, unless somebody already has it: who has it has a canary too. */
static void give_number(struct slot *of)
{
	pid_t number = of->number;
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (uintptr_t)&number, .set_tid_size = 1,
	};
	long child = syscall(SYS_clone3, &args, sizeof args);
	if (child == 0)
		victim(of);
	CHECK(child > 0 || errno == EEXIST);
	if (child < 0)
		sem_post(&of->victim_lives);
	else
		shared->passed++;
}

/* Numbers come round soon, where a namespace has a highest number of its own: Linux 6.14. */
static void lower_the_highest_number(void)
{
	struct utsname name;
	int major = 0, minor = 0;
	CHECK(uname(&name) == 0 && sscanf(name.release, "%d.%d", &major, &minor) == 2);
	if (major < 6 || (major == 6 && minor < 14))
		return;
	int file = open("/proc/sys/kernel/pid_max", O_WRONLY);
	if (file >= 0 && write(file, "450", 3) == 3)
		puts("the highest number is 450");
	close(file);
}

/* A child of the first process: the run, one of its own, or one that lost its parent and may have been killed. */
static void count_end(int strictly, int status)
{
	if (strictly || WIFEXITED(status))
		count_status(PROCESS, status);
}

static void outside(int run)
{
	int status, ended = 0, child;
	while (!ended) {
		struct timespec limit;
		clock_gettime(CLOCK_REALTIME, &limit);
		limit.tv_nsec += 50000000;
		limit.tv_sec += limit.tv_nsec / 1000000000;
		limit.tv_nsec %= 1000000000;
		sem_timedwait(&shared->requests, &limit);
		for (int i = 0; i < 4; i++)
			if (shared->slots[i].wanted) {
				shared->slots[i].wanted = 0;
				give_number(&shared->slots[i]);
			}
		while ((child = waitpid(-1, &status, WNOHANG)) > 0) {
			ended |= child == run;
			count_end(child == run, status);
		}
	}
}

static void share(void)
{
	int fd = memfd_create("strangers", 0);
	CHECK(fd >= 0 && ftruncate(fd, sizeof *shared) == 0);
	shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(shared != MAP_FAILED);
	shared->fd = fd;
	sem_init(&shared->requests, 1, 0);
	for (int i = 0; i < 4; i++) {
		struct slot *of = &shared->slots[i];
		sem_t *all[] = { &of->mapped, &of->go, &of->ended, &of->victim_lives, &of->victim_ends };
		for (unsigned at = 0; at < sizeof all / sizeof *all; at++)
			sem_init(all[at], 1, 0);
	}
}

/* Every way with what was counted on it; whether it was nothing. */
static int report(void)
{
	long faults = 0;
	for (int way = 0; way < WAYS; way++) {
		long read = shared->read[way], changed = shared->changed[way], lost = shared->lost[way];
		if (read || changed || lost)
			printf("%s: canaries read %ld times, changed %ld times, own memory lost %ld times\n", names[way],
			       read, changed, lost);
		faults += read + changed + lost;
	}
	printf("%ld rounds, %ld numbers passed on, %ld faults\n", shared->rounds, shared->passed, faults);
	return faults == 0;
}

int main(int count, char **words)
{
	enum way ways[WAYS];
	int known = 0, inner = count > 1 && !strcmp(words[1], "inside");
	CHECK(count > 5);
	for (int i = 5; i < count; i++)
		for (int way = 0; way < WAYS; way++)
			if (!strcmp(words[i], names[way]) && known < WAYS)
				ways[known++] = (enum way)way;
	CHECK(known == count - 5);
	successor = words[2];
	random_state = (unsigned)atol(words[4]);
	plant();
	if (inner) {
		int fd = atoi(getenv("STRANGERS"));
		shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		CHECK(shared != MAP_FAILED);
		inside(ways, known, atol(words[3]));
	}
	CHECK(getpid() == 1);
	if (known > 1)
		lower_the_highest_number();
	share();
	char fd[16];
	snprintf(fd, sizeof fd, "%d", shared->fd);
	setenv("STRANGERS", fd, 1);
	/* Others outside the run, who do nothing. */
	for (int i = 0; i < 3; i++)
		if (fork() == 0) {
			await_end();
			quit();
		}
	fflush(stdout);
	int run = fork();
	CHECK(run >= 0);
	if (run == 0) {
		const char *argv[32] = { words[1], "run" };
		int at = 2;
		for (int i = 0; i < 4; i++)
			argv[at++] = "--device", argv[at++] = "testdev";
		argv[at++] = "--", argv[at++] = "/proc/self/exe", argv[at++] = "inside";
		CHECK(at + count < 32);
		for (int i = 2; i < count; i++)
			argv[at++] = words[i];
		char self[4096];
		ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
		CHECK(length > 0);
		self[length] = 0;
		argv[11] = self;
		execv(words[1], (char **)argv);
		CHECK(!"ioasis can be executed");
	}
	outside(run);
	shared->over = 1;
	int status;
	while (wait(&status) > 0)
		count_end(0, status);
	return report() ? 0 : 1;
}
