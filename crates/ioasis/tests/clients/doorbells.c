/*
 *   doorbells HOW        stores to the doorbell of a testdev that has fallen idle in one way or another; prints "ok"
 *
 * Each ring must be answered within LIMIT, which is less than the time after which an idle device looks by itself.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
#define LIMIT 3000000
#define IDLE 4000

struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; uint64_t token; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };

static int device;
static off_t bar;
static char *self;

static void begin(void)
{
	struct ioas_alloc alloc = { .size = sizeof alloc };
	int iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	CHECK(iommu >= 0 && ioctl(iommu, VFIO(0x81), &alloc) == 0);
	char *memory = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 0, 1 << 20);
	struct ioas_map map = { sizeof map, 7, alloc.out_ioas_id, 0, (uintptr_t)memory, 1 << 20, 0x100000 };
	CHECK(ioctl(iommu, VFIO(0x85), &map) == 0);
	struct bind bind = { .argsz = sizeof bind, .iommufd = iommu };
	struct attach attach = { .argsz = sizeof attach, .pt_id = alloc.out_ioas_id };
	struct region_info info = { .argsz = sizeof info }, config = { .argsz = sizeof config, .index = 7 };
	uint16_t command = 6;
	device = open("/dev/vfio/devices/vfio0", O_RDWR);
	CHECK(device >= 0 && ioctl(device, VFIO(0x76), &bind) == 0 && ioctl(device, VFIO(0x77), &attach) == 0);
	CHECK(ioctl(device, VFIO(0x6c), &info) == 0 && ioctl(device, VFIO(0x6c), &config) == 0);
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
	bar = (off_t)info.offset;
}

static volatile uint32_t *map_at(void *where, int flags)
{
	void *page = mmap(where, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | flags, device, bar);
	CHECK(page != MAP_FAILED);
	return page;
}

static volatile uint32_t *map(void)
{
	return map_at(0, 0);
}

static long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000L + time.tv_nsec / 1000;
}

/* One command, with its stores one after the other, and its answer. */
static void ring(volatile uint32_t *registers)
{
	long begun = now();
	registers[0] = 0x100000;
	registers[1] = 0;
	registers[2] = 3;
	while (registers[2] != 0) {
		CHECK(now() - begun < LIMIT);
		usleep(20);
	}
}

static void ring_idle(volatile uint32_t *registers)
{
	for (int i = 0; i < 5; i++) {
		usleep(IDLE);
		ring(registers);
	}
}

static void ended_well(pid_t child)
{
	int status;
	CHECK(child > 0 && waitpid(child, &status, 0) == child);
	if (status != 0)
		fprintf(stderr, "a child ended with %#x\n", status);
	CHECK(status == 0);
}

/* Pauses about as long as the device takes to fall idle, so that stores come at each moment of that. */
static void race(unsigned seed, int rounds)
{
	volatile uint32_t *registers = map();
	for (int i = 0; i < rounds; i++) {
		long pause = rand_r(&seed) % 500, until = now() + pause;
		if (rand_r(&seed) % 2)
			usleep((useconds_t)pause);
		else
			while (now() < until)
				;
		ring(registers);
	}
}

static void forks(void)
{
	volatile uint32_t *registers = map();
	ring_idle(registers);
	pid_t child = fork();
	if (child == 0) {
		ring_idle(registers);
		pid_t grandchild = fork();
		if (grandchild == 0) {
			ring_idle(registers);
			_exit(0);
		}
		ended_well(grandchild);
		ring_idle(registers);
		_exit(0);
	}
	usleep(2 * IDLE);
	ended_well(child);
	ring_idle(registers);
	/* Of another parent, and with no signal at its end. */
	for (int flags = 0; flags < 2; flags++) {
		int ends[2];
		char byte;
		CHECK(pipe(ends) == 0);
		child = (pid_t)syscall(SYS_clone, flags ? CLONE_PARENT | SIGCHLD : 0, 0, 0, 0, 0);
		if (child == 0) {
			ring_idle(registers);
			CHECK(write(ends[1], "", 1) == 1);
			_exit(0);
		}
		close(ends[1]);
		CHECK(child > 0 && read(ends[0], &byte, 1) == 1);
		if (!flags)
			CHECK(waitpid(child, 0, __WCLONE) == child);
		ring_idle(registers);
	}
}

static void executes(void)
{
	volatile uint32_t *registers = map();
	char *nothing[] = { "/nowhere", 0 }, *ends[] = { self, "end", 0 };
	for (volatile int i = 0; i < 3; i++) {
		static pid_t child;
		child = vfork();
		if (child == 0) {
			execv(i == 1 ? "/nowhere" : self, i == 1 ? nothing : ends);
			_exit(0);
		}
		ended_well(child);
		ring_idle(registers);
		CHECK(system("exit 0") == 0);
		ring_idle(registers);
		CHECK(execv("/nowhere", nothing) == -1);
		ring_idle(registers);
		if ((child = fork()) == 0) {
			ring_idle(registers);
			_exit(0);
		}
		ended_well(child);
	}
}

static void moves(void)
{
	volatile uint32_t *registers = map();
	for (int i = 0; i < 5; i++) {
		usleep(IDLE);
		void *room = mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		registers = mremap((void *)registers, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, room);
		CHECK(registers == room);
		ring(registers);
		ring_idle(registers);
		CHECK(remap_file_pages((void *)registers, 4096, 0, (size_t)bar / 4096, 0) == 0);
		ring_idle(registers);
		CHECK(mprotect((void *)registers, 4096, PROT_READ) == 0);
		usleep(IDLE);
		CHECK(mprotect((void *)registers, 4096, PROT_READ | PROT_WRITE) == 0);
		ring(registers);
		CHECK(madvise((void *)registers, 4096, MADV_DONTNEED) == 0);
		ring_idle(registers);
	}
}

static void several(void)
{
	volatile uint32_t *one = map(), *other = map();
	for (int i = 0; i < 5; i++) {
		ring_idle(one);
		ring_idle(other);
	}
	CHECK(munmap((void *)one, 4096) == 0);
	ring_idle(other);
	usleep(IDLE);
	one = map_at((void *)one, MAP_FIXED_NOREPLACE);
	ring(one);
	ring_idle(other);
	ring_idle(one);
	/* Something else lies there now. */
	CHECK(mmap((void *)one, 4096, PROT_READ, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == (void *)one);
	ring_idle(other);
	volatile uint32_t *reads = mmap(0, 4096, PROT_READ, MAP_SHARED, device, bar);
	CHECK(reads != MAP_FAILED);
	ring_idle(other);
	CHECK(mprotect((void *)reads, 4096, PROT_READ | PROT_WRITE) == 0);
	ring_idle(reads);
}

/* A program of its own that was given the device. */
static void secondary(void)
{
	volatile uint32_t *registers = map();
	char number[16], offset[32];
	snprintf(number, sizeof number, "%d", device);
	snprintf(offset, sizeof offset, "%lld", (long long)bar);
	for (int i = 0; i < 2; i++) {
		pid_t child = fork();
		if (child == 0) {
			execl(self, self, "ring", number, offset, (char *)0);
			_exit(1);
		}
		if (i)
			ring_idle(registers);
		ended_well(child);
		ring_idle(registers);
	}
}

static void stopped(void)
{
	volatile uint32_t *registers = map();
	unsigned seed = 7;
	pid_t own = getpid(), child = fork();
	if (child == 0) {
		for (int i = 0; i < 200; i++) {
			usleep((useconds_t)(rand_r(&seed) % 1000));
			kill(own, SIGSTOP);
			usleep((useconds_t)(rand_r(&seed) % 1000));
			kill(own, SIGCONT);
		}
		_exit(0);
	}
	/* Mapped again and again in the meantime, by memories that ask for a userfaultfd of their own. */
	while (waitpid(child, 0, WNOHANG) == 0) {
		pid_t maps = fork();
		if (maps == 0) {
			ring(map());
			_exit(0);
		}
		ended_well(maps);
		ring(registers);
	}
	ring_idle(registers);
}

static volatile int over;

/* What a program sees of its descriptors while another thread of it maps. */
static void *lowest(void *result)
{
	long *wrong = result;
	int expected = open("/dev/null", O_RDONLY | O_CLOEXEC);
	close(expected);
	while (!over) {
		int fd = fcntl(1, F_DUPFD, 0);
		if (fd != expected)
			++*wrong;
		close(fd);
	}
	return 0;
}

static int count(const char *path)
{
	DIR *folder = opendir(path);
	int entries = 0;
	while (readdir(folder))
		entries++;
	closedir(folder);
	return entries;
}

static void descriptors(void)
{
	for (int i = 0; i < 30; i++) {
		pid_t child = fork();
		if (child == 0) {
			long wrong = 0;
			pthread_t thread;
			pthread_create(&thread, 0, lowest, &wrong);
			usleep(300);
			volatile uint32_t *registers = map();
			over = 1;
			pthread_join(thread, 0);
			CHECK(wrong == 0);
			int before = count("/proc/self/fd");
			ring_idle(registers);
			CHECK(count("/proc/self/fd") == before);
			/* Nobody else runs in this memory. */
			CHECK(unshare(CLONE_VM) == 0 && unshare(CLONE_THREAD) == 0);
			_exit(0);
		}
		ended_well(child);
	}
}

static void *rings(void *registers)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	unsigned seed = (unsigned)gettid();
	for (int i = 0; i < 200; i++) {
		usleep((useconds_t)(rand_r(&seed) % 2000));
		pthread_mutex_lock(&lock);
		ring(registers);
		pthread_mutex_unlock(&lock);
	}
	return 0;
}

static void threads(void)
{
	pthread_t threads[4];
	void *registers = (void *)map();
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], 0, rings, registers) == 0);
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], 0);
}

/* The kernel's own stores: one that would wait is refused, and none is lost. */
static void kernel(void)
{
	volatile uint32_t *registers = map();
	uint32_t run = 3;
	int ends[2];
	CHECK(pipe(ends) == 0);
	ring(registers);
	for (int i = 0; i < 20; i++) {
		usleep(i % 2 ? IDLE : 0);
		CHECK(write(ends[1], &run, 4) == 4);
		registers[0] = registers[0];
		usleep(i % 2 ? IDLE : 0);
		long begun = now();
		if (read(ends[0], (void *)&registers[2], 4) != 4) {
			CHECK(errno == EFAULT);
			CHECK(read(ends[0], &run, 4) == 4);
			ring(registers);
		}
		while (registers[2] != 0)
			CHECK(now() - begun < LIMIT);
	}
}

/* One that is traced by the program itself. */
static void traced(void)
{
	for (int before = 0; before < 2; before++) {
		int ends[2], mapped[2];
		char byte;
		CHECK(pipe(ends) == 0 && pipe(mapped) == 0);
		pid_t child = fork();
		if (child == 0) {
			volatile uint32_t *registers = 0;
			if (!before)
				registers = map();
			CHECK(write(mapped[1], "", 1) == 1 && read(ends[0], &byte, 1) == 1);
			if (before)
				registers = map();
			ring_idle(registers);
			pid_t grandchild = fork();
			if (grandchild == 0) {
				ring_idle(registers);
				_exit(0);
			}
			ended_well(grandchild);
			_exit(0);
		}
		CHECK(read(mapped[0], &byte, 1) == 1);
		usleep(IDLE);
		CHECK(ptrace(PTRACE_SEIZE, child, 0, 0) == 0);
		CHECK(write(ends[1], "", 1) == 1);
		int status;
		while (waitpid(child, &status, 0) == child && WIFSTOPPED(status))
			ptrace(PTRACE_CONT, child, 0, status >> 16 ? 0 : WSTOPSIG(status));
		CHECK(status == 0);
	}
}

static void killed(void)
{
	unsigned seed = 3;
	for (int i = 0; i < 100; i++) {
		pid_t child = fork();
		if (child == 0) {
			volatile uint32_t *registers = map();
			for (;;) {
				usleep((useconds_t)(rand_r(&seed) % 600));
				ring(registers);
			}
		}
		usleep((useconds_t)(rand_r(&seed) % 3000));
		CHECK(kill(child, SIGKILL) == 0 && waitpid(child, 0, 0) == child);
	}
	ring_idle(map());
}

/* Ends a program that is made to make another thread, or to ask for a userfaultfd. */
static void filtered(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0);
	for (int i = 0; i < 3; i++)
		ring_idle(map());
}

int main(int arguments, char **words)
{
	const char *how = words[1];
	CHECK(arguments >= 2);
	alarm(120);
	self = words[0];
	if (!strcmp(how, "end"))
		return 0;
	if (!strcmp(how, "ring")) {
		device = atoi(words[2]);
		bar = (off_t)atoll(words[3]);
		ring_idle(map());
		return 0;
	}
	begin();
	if (!strcmp(how, "race"))
		race((unsigned)atoi(words[2]), atoi(words[3]));
	else if (!strcmp(how, "forks"))
		forks();
	else if (!strcmp(how, "executes"))
		executes();
	else if (!strcmp(how, "moves"))
		moves();
	else if (!strcmp(how, "several"))
		several();
	else if (!strcmp(how, "secondary"))
		secondary();
	else if (!strcmp(how, "stopped"))
		stopped();
	else if (!strcmp(how, "descriptors"))
		descriptors();
	else if (!strcmp(how, "threads"))
		threads();
	else if (!strcmp(how, "kernel"))
		kernel();
	else if (!strcmp(how, "traced"))
		traced();
	else if (!strcmp(how, "killed"))
		killed();
	else if (!strcmp(how, "filtered"))
		filtered();
	else
		CHECK(!"a way that there is");
	puts("ok");
	return 0;
}
