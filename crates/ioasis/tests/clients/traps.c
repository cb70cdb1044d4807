/* A VFIO client of the nvme model whose stores to mapped registers must each be seen: `traps HOW`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <grp.h>

#include <linux/vfio.h>

#include "check.h"

#define PAGE 4096u
/* Controller registers, NVMe 1.4, 3.1: two of which bits are set and cleared by stores of ones. */
enum { INTMS = 0x0c, INTMC = 0x10, CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30 };

static int device;
static struct vfio_region_info bar = { .argsz = sizeof bar };
static volatile unsigned char *page;

static void open_device(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	CHECK((device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0")) >= 0);
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
	uint16_t command = 6;
	struct vfio_region_info config = { .argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX };
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
}

static void *map(int protection)
{
	void *mapped = mmap(0, bar.size, protection, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(mapped != MAP_FAILED);
	return mapped;
}

static uint32_t get(unsigned at)
{
	return *(volatile uint32_t *)(page + at);
}

static void put(unsigned at, uint32_t value)
{
	*(volatile uint32_t *)(page + at) = value;
}

/* What the device itself says, without the mapping. */
static uint32_t asked(unsigned at)
{
	uint32_t value;
	CHECK(pread(device, &value, 4, (off_t)bar.offset + at) == 4);
	return value;
}

static int traced(void)
{
	char line[256];
	int tracer = -1;
	FILE *status = fopen("/proc/self/status", "r");
	while (fgets(line, sizeof line, status))
		sscanf(line, "TracerPid: %d", &tracer);
	fclose(status);
	return tracer;
}

/* Sets and clears bits, as often as `rounds`, and looks after each store. */
static void mask_bits(unsigned first, unsigned count, int rounds)
{
	uint32_t own = (uint32_t)(((1ull << count) - 1) << first), state = 0x1234567 + first;
	for (int round = 0; round < rounds; round++) {
		state = state * 1664525 + 1013904223;
		uint32_t bits = state >> 3 & own;
		put(INTMS, bits);
		CHECK((get(INTMS) & bits) == bits);
		put(INTMC, own);
		CHECK((get(INTMS) & own) == 0);
	}
}

static void every_store(void)
{
	CHECK(traced() == 0);
	page = map(PROT_READ | PROT_WRITE);
	CHECK(traced() != 0);
	mask_bits(0, 32, 200);
	/* Two stores to one register, of which the second must not hide the first. */
	put(INTMS, 1);
	put(INTMS, 2);
	put(INTMS, 4);
	put(INTMC, 2);
	CHECK(asked(INTMS) == 5 && get(INTMS) == 5);
	/* Other instructions, other widths. */
	__asm__ volatile("movnti %1, %0" : "=m"(*(uint32_t *)(page + INTMS)) : "r"(0x10));
	__asm__ volatile("lock orl $0x20, %0" : "+m"(*(uint32_t *)(page + INTMS)));
	uint32_t old = 0x40;
	__asm__ volatile("xchgl %1, %0" : "+m"(*(uint32_t *)(page + INTMS)), "+r"(old));
	CHECK(old == 0x35 && asked(INTMS) == 0x75);
	uint64_t queues[2] = { 0x1122334455667000, 0x8877665544333000 };
	__asm__ volatile("movdqu %1, %%xmm7; movdqu %%xmm7, %0" : "=m"(*(uint64_t(*)[2])(page + ASQ)) : "m"(queues) : "xmm7");
	CHECK(memcmp((void *)(page + ASQ), queues, 16) == 0);
	queues[0] += PAGE;
	void *from = queues, *to = (void *)(page + ASQ);
	unsigned long count = 2;
	__asm__ volatile("rep movsq" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
	CHECK(count == 0 && to == page + ASQ + 16 && memcmp((void *)(page + ASQ), queues, 16) == 0);
	/* Half of it a doorbell's. */
	*(volatile uint64_t *)(page + PAGE - 4) = 0x900000000;
	CHECK(*(volatile uint32_t *)(page + PAGE) == 9);
	puts("ok");
}

/* A controller that could not be enabled is reset and enabled, as fast as its program can store. */
static void enable(void)
{
	uint32_t on = 1 | 6 << 16 | 4 << 20, off = on & ~1u;
	page = map(PROT_READ | PROT_WRITE);
	*(volatile uint64_t *)(page + ASQ) = 0x100000;
	*(volatile uint64_t *)(page + ACQ) = 0x101000;
	for (int round = 0; round < 30; round++) {
		/* A submission queue of one entry is none. */
		put(AQA, 31 << 16);
		put(CC, on);
		CHECK((get(CSTS) & 3) == 2);
		put(CC, off);
		if (round % 2)
			CHECK((get(CSTS) & 3) == 0);
		put(AQA, 31 | 31 << 16);
		put(CC, on);
		CHECK((get(CSTS) & 3) == 1);
		put(CC, off);
		CHECK((get(CSTS) & 3) == 0);
		/* Nobody looks in between. */
		put(CC, on);
		put(CC, off);
		put(AQA, 31 << 16);
		put(CC, on);
		put(CC, off);
		CHECK((asked(CSTS) & 3) == 0);
	}
	puts("ok");
}

static void polled(void)
{
	page = map(PROT_READ | PROT_WRITE);
	CHECK(traced() == 0);
	put(INTMS, 6);
	while (asked(INTMS) != 6)
		usleep(100);
	CHECK(traced() == 0);
	puts("ok");
}

static volatile sig_atomic_t faults;
static void *volatile fault_at;
static int on_stack;

static void handle(int signal, siginfo_t *info, void *context)
{
	char here;
	stack_t stack;
	CHECK(sigaltstack(0, &stack) == 0);
	on_stack = &here > (char *)stack.ss_sp && &here < (char *)stack.ss_sp + stack.ss_size;
	fault_at = info->si_addr;
	(void)signal;
	(void)context;
	if (faults++ > 3)
		_exit(9);
	/* Whatever faulted can do so once: the page becomes plain memory. */
	if (info->si_code > 0)
		CHECK(mmap((void *)((uintptr_t)fault_at & ~(uintptr_t)(PAGE - 1)), PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
}

static void with_handler(void)
{
	static char room[65536];
	stack_t stack = { .ss_sp = room, .ss_size = sizeof room };
	struct sigaction action = { .sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK(sigaltstack(&stack, 0) == 0 && sigaction(SIGSEGV, &action, 0) == 0);
}

static int same_action(const struct sigaction *one, const struct sigaction *other)
{
	return one->sa_sigaction == other->sa_sigaction && one->sa_flags == other->sa_flags &&
	    memcmp(&one->sa_mask, &other->sa_mask, 8) == 0;
}

/* A thread that blocks everything and a process with a handler, made before and after the mapping, keep both. */
static void blocked(void)
{
	sigset_t all, before, now;
	struct sigaction action, found;
	int early = getenv("EARLY") != 0;
	if (early)
		with_handler();
	page = map(PROT_READ | PROT_WRITE);
	if (!early)
		with_handler();
	put(INTMS, 1);
	sigfillset(&all);
	CHECK(sigprocmask(SIG_SETMASK, &all, 0) == 0 && sigprocmask(SIG_SETMASK, 0, &before) == 0);
	CHECK(sigaction(SIGSEGV, 0, &action) == 0 && action.sa_sigaction == handle);
	for (uint32_t bit = 2; bit < 64; bit *= 2)
		put(INTMS, bit);
	CHECK(get(INTMS) == 63);
	CHECK(sigprocmask(SIG_SETMASK, 0, &now) == 0 && memcmp(&before, &now, 8) == 0 && sigismember(&now, SIGSEGV));
	CHECK(sigaction(SIGSEGV, 0, &found) == 0 && same_action(&found, &action));
	/* The signal itself still waits, and then comes to its handler, on its stack. */
	CHECK(raise(SIGSEGV) == 0 && faults == 0);
	sigemptyset(&all);
	CHECK(sigprocmask(SIG_SETMASK, &all, 0) == 0 && faults == 1 && on_stack);
	/* Another handler takes its place. */
	CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
	sigaddset(&all, SIGSEGV);
	CHECK(sigprocmask(SIG_SETMASK, &all, 0) == 0);
	put(INTMC, 63);
	CHECK(sigaction(SIGSEGV, 0, &found) == 0 && found.sa_handler == SIG_DFL && asked(INTMS) == 0);
	puts("ok");
}

/* testdev's latch: a store sets bits, a load takes them. */
static void latch(void)
{
	unsigned char plain[32] = { 0 };
	int ends[2];
	volatile unsigned char *wide;
	page = wide = map(PROT_READ | PROT_WRITE);
	CHECK(traced() != 0);
	for (uint32_t round = 1; round < 200; round++) {
		put(0, round);
		CHECK(get(0) == round && get(0) == 0);
	}
	put(0, 1);
	put(0, 2);
	CHECK(get(0) == 3 && asked(0) == 0);
	put(0, 0x0102);
	CHECK(page[0] == 2 && page[1] == 1 && get(0) == 0);
	/* Other instructions, which load as well, or by the way. */
	put(0, 0x30);
	uint32_t value = 4;
	uint64_t left;
	unsigned char same;
	__asm__ volatile("addl %1, %0" : "+r"(value) : "m"(*(uint32_t *)page));
	CHECK(value == 0x34 && asked(0) == 0);
	put(0, 0x30);
	__asm__ volatile("cmpl $0x30, %1; sete %0" : "=q"(same) : "m"(*(uint32_t *)page) : "cc");
	CHECK(same && asked(0) == 0);
	put(0, 0x77);
	__asm__ volatile("movzwl %1, %0" : "=r"(value) : "m"(*(uint16_t *)page));
	CHECK(value == 0x77);
	put(0, 0x55);
	__asm__ volatile("movdqu %1, %%xmm3; movdqu %%xmm3, %0" : "=m"(*(unsigned char(*)[16])plain) : "m"(*(unsigned char(*)[16])page) : "xmm3");
	CHECK(plain[0] == 0x55 && plain[1] == 0 && asked(0) == 0);
	put(0, 0x01020304);
	void *from = (void *)page, *to = plain;
	unsigned long count = 8;
	__asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
	CHECK(count == 0 && memcmp(plain, "\4\3\2\1\0\0\0\0", 8) == 0);
	put(0, 0x40);
	__asm__ volatile("pushq %1; popq %0" : "=r"(left) : "m"(*(uint64_t *)page));
	CHECK(left == 0x40 && asked(0) == 0);
	/* The kernel cannot reach it at all. */
	put(0, 8);
	CHECK(pipe(ends) == 0);
	FAILS(write(ends[1], (void *)page, 4), EFAULT);
	CHECK(get(0) == 8);
	/* A child's. */
	pid_t child = fork();
	if (!child) {
		put(0, 16);
		_exit(get(0) == 16 && get(0) == 0 ? 3 : 4);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 3 << 8);
	/* What is not to be written, or not to be reached. */
	with_handler();
	page = map(PROT_READ);
	*(volatile uint32_t *)wide = 32;
	CHECK(get(0) == 32 && faults == 0);
	page[2] = 1;
	CHECK(faults == 1 && fault_at == page + 2 && asked(0) == 0);
	page = map(PROT_NONE);
	CHECK(page[1] == 0 && faults == 2 && fault_at == page + 1);
	puts("ok");
}

static void ignored(void)
{
	struct sigaction found;
	if (getenv("EARLY"))
		signal(SIGSEGV, SIG_IGN);
	page = map(PROT_READ | PROT_WRITE);
	signal(SIGSEGV, SIG_IGN);
	mask_bits(0, 32, 20);
	CHECK(sigaction(SIGSEGV, 0, &found) == 0 && found.sa_handler == SIG_IGN);
	CHECK(raise(SIGSEGV) == 0);
	puts("ok");
}

/* Faults that are the program's own come to it as they would. */
static void own_faults(void)
{
	page = map(PROT_READ | PROT_WRITE);
	with_handler();
	put(INTMS, 1);
	CHECK(faults == 0);
	volatile char *none = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	none[5] = 1;
	CHECK(faults == 1 && fault_at == none + 5 && on_stack);
	/* Registers that were mapped to be read only. */
	volatile char *readable = map(PROT_READ);
	CHECK(*(volatile uint32_t *)(readable + INTMS) == 1);
	readable[INTMS] = 4;
	CHECK(faults == 2 && fault_at == readable + INTMS && asked(INTMS) == 1);
	/* Where registers were. */
	volatile unsigned char *second = map(PROT_READ | PROT_WRITE);
	volatile unsigned char *moved = mremap((void *)second, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, none);
	CHECK(moved == (void *)none);
	*(volatile uint32_t *)(moved + INTMS) = 8;
	CHECK(faults == 2 && asked(INTMS) == 9);
	CHECK(munmap((void *)moved, PAGE) == 0);
	moved[INTMS] = 2;
	CHECK(faults == 3 && fault_at == moved + INTMS && asked(INTMS) == 9);
	puts("ok");
}

/* While the function does not answer on the bus, its pages are not there. */
static void not_there(void)
{
	uint16_t command = 0;
	struct vfio_region_info config = { .argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX };
	page = map(PROT_READ | PROT_WRITE);
	put(INTMS, 1);
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
	pid_t child = fork();
	if (!child) {
		sigset_t all;
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, 0);
		put(INTMS, 2);
		_exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	command = 2;
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
	put(INTMS, 4);
	CHECK(asked(INTMS) == 5);
	puts("ok");
}

static void kernel(void)
{
	int ends[2];
	page = map(PROT_READ | PROT_WRITE);
	CHECK(pipe(ends) == 0 && write(ends[1], "abcd", 4) == 4);
	FAILS(read(ends[0], (void *)(page + INTMS), 4), EFAULT);
	CHECK(write(ends[1], (void *)(page + INTMS), 4) == 4);
	puts("ok");
}

static volatile int gate;

static void *storing(void *argument)
{
	while (!gate)
		sched_yield();
	mask_bits((unsigned)(uintptr_t)argument * 4, 4, 50);
	return 0;
}

static void threads(void)
{
	pthread_t made[8];
	for (uintptr_t index = 0; index < 4; index++)
		CHECK(pthread_create(&made[index], 0, storing, (void *)index) == 0);
	page = map(PROT_READ | PROT_WRITE);
	for (uintptr_t index = 4; index < 8; index++)
		CHECK(pthread_create(&made[index], 0, storing, (void *)index) == 0);
	gate = 1;
	for (unsigned index = 0; index < 8; index++)
		CHECK(pthread_join(made[index], 0) == 0);
	CHECK(asked(INTMS) == 0);
	puts("ok");
}

static int exit_of(pid_t child)
{
	int status;
	CHECK(waitpid(child, &status, 0) == child);
	return status;
}

static int spawned(void *program)
{
	put(INTMS, 8);
	execl(program, program, "untraced", (char *)0);
	_exit(99);
}

/* What it forks can store as well, and what that executes is not traced; each ends as it says. */
static void processes(char *program)
{
	page = map(PROT_READ | PROT_WRITE);
	pid_t child = fork();
	if (!child) {
		put(INTMS, 2);
		mask_bits(4, 4, 20);
		_exit(get(INTMS) == 2 ? 33 : 34);
	}
	CHECK(exit_of(child) == 33 << 8);
	/* One of its own, which outlives its parent. */
	int ends[2];
	char byte;
	CHECK(pipe(ends) == 0);
	child = fork();
	if (!child) {
		if (fork())
			_exit(5);
		put(INTMS, 4);
		_exit(write(ends[1], "x", 1) != 1);
	}
	CHECK(exit_of(child) == 5 << 8 && read(ends[0], &byte, 1) == 1 && get(INTMS) == 6);
	child = vfork();
	if (!child)
		spawned(program);
	CHECK(exit_of(child) == 44 << 8 && get(INTMS) == 14);
	/* A genuine fault of a child. */
	child = fork();
	if (!child) {
		struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY };
		setrlimit(RLIMIT_CORE, &core);
		put(INTMC, 2);
		*(volatile char *)16 = 1;
	}
	int status = exit_of(child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV && get(INTMS) == 12);
	printf("core %d\n", WCOREDUMP(status) != 0);
	fflush(stdout);
	execl(program, program, "untraced", (char *)0);
}

static void stopped(void)
{
	page = map(PROT_READ | PROT_WRITE);
	pid_t child = fork();
	if (!child)
		for (;;)
			mask_bits(0, 16, 1);
	for (int round = 0; round < 20; round++) {
		int status;
		CHECK(kill(child, SIGSTOP) == 0);
		CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
		uint32_t before = asked(INTMS);
		usleep(2000);
		CHECK(asked(INTMS) == before);
		CHECK(kill(child, SIGCONT) == 0);
		CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
		usleep(2000);
	}
	CHECK(kill(child, SIGKILL) == 0);
	CHECK(WTERMSIG(exit_of(child)) == SIGKILL);
	puts("ok");
}

static volatile sig_atomic_t ticks;

static void tick(int signal)
{
	(void)signal;
	ticks++;
}

/* Signals come between the stores and are not lost. */
static void interrupted(void)
{
	page = map(PROT_READ | PROT_WRITE);
	signal(SIGUSR1, tick);
	pid_t child = fork();
	if (!child) {
		for (int count = 0; count < 200; count++) {
			kill(getppid(), SIGUSR1);
			usleep(200);
		}
		_exit(0);
	}
	int status;
	while (waitpid(child, &status, WNOHANG) == 0)
		mask_bits(0, 32, 1);
	CHECK(status == 0 && ticks > 20);
	puts("ok");
}

/* An instruction that cannot be done for it. */
static void unknown(void)
{
	page = map(PROT_READ | PROT_WRITE);
	__asm__ volatile("fld1; fstpl %0" : "=m"(*(double *)(page + ASQ)));
	puts("ok");
}

/* Somebody traces it already. */
static void watched(void)
{
	pid_t child = fork();
	if (!child) {
		CHECK(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
		void *mapped = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
		_exit(mapped == MAP_FAILED && errno == EINVAL ? 0 : 1);
	}
	CHECK(exit_of(child) == 0);
	/* Its doorbells alone are mapped as before. */
	CHECK(mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset + PAGE) != MAP_FAILED);
	puts("ok");
}

/* Two users that are nobody else. */
enum { USER = 65534, OTHER = 65533 };

/* This program, as one that runs with the rights of OTHER. */
static int with_rights(const char *program)
{
	char bytes[65536];
	ssize_t length;
	int from = open(program, O_RDONLY), to = open("helper", O_WRONLY | O_CREAT | O_EXCL, 0700);
	CHECK(from >= 0 && to >= 0);
	while ((length = read(from, bytes, sizeof bytes)) > 0)
		CHECK(write(to, bytes, (size_t)length) == length);
	CHECK(fchown(to, OTHER, OTHER) == 0 && fchmod(to, 06755) == 0 && close(to) == 0);
	/* The user cannot reach its folder. */
	int helper = open("helper", O_PATH);
	CHECK(helper >= 0 && unlink("helper") == 0);
	return helper;
}

static int helper;

static void *executes(void *unused)
{
	char *arguments[] = { "traps", "other", 0 };
	(void)unused;
	syscall(SYS_execveat, helper, "", arguments, environ, AT_EMPTY_PATH);
	_exit(98);
}

static void *stores(void *unused)
{
	(void)unused;
	for (;;) {
		put(INTMS, 1u << 31);
		put(INTMC, 1u << 31);
	}
}

static void beside(void *(*other)(void *), unsigned count)
{
	pthread_t thread;
	int error;
	while (count--) {
		/* There is none while another thread is about to execute a program (copy_fs, kernel/fork.c). */
		while ((error = pthread_create(&thread, 0, other, 0)) == EAGAIN)
			;
		CHECK(error == 0);
	}
}

/* A program with the rights of another user gets those, and is not traced, whatever else its process does. */
static void set_user_id(const char *program)
{
	helper = with_rights(program);
	CHECK(setgroups(0, 0) == 0 && setresgid(USER, USER, USER) == 0 && setresuid(USER, USER, USER) == 0);
	page = map(PROT_READ | PROT_WRITE);
	CHECK(traced() != 0);
	put(INTMS, 1);
	for (int round = 0; round < 15; round++) {
		pid_t child = fork();
		if (!child) {
			put(INTMS, 2);
			if (round % 3 == 1)
				beside(stores, 2);
			if (round % 3 == 2)
				beside(executes, 2);
			else
				executes(0);
			stores(0);
		}
		CHECK(exit_of(child) == 44 << 8);
	}
	beside(stores, 2);
	beside(executes, 1);
	stores(0);
}

static void *maps(void *unused)
{
	(void)unused;
	for (;;) {
		page = map(PROT_READ | PROT_WRITE);
		put(INTMS, 1);
		CHECK(munmap((void *)page, bar.size) == 0);
	}
}

/* A thread executes a program while another maps registers for the first time. */
static void execute_beside_map(char *program)
{
	for (int round = 0; round < 30; round++) {
		pid_t child = fork();
		if (!child) {
			beside(maps, 1);
			usleep((useconds_t)round * 100);
			execl(program, program, "quiet", (char *)0);
			_exit(99);
		}
		CHECK(exit_of(child) == 44 << 8);
	}
	puts("ok");
}

/* A program that could not be executed is no end of the one that runs. */
static void failed_exec(void)
{
	page = map(PROT_READ | PROT_WRITE);
	for (uint32_t bit = 1; bit < 16; bit *= 2) {
		put(INTMS, bit);
		FAILS(execl("/no/such/program", "program", (char *)0), ENOENT);
		CHECK(traced() != 0 && (get(INTMS) & bit));
		put(INTMC, bit);
		CHECK(!(get(INTMS) & bit));
	}
	/* Nor is one of another thread's. */
	beside(stores, 2);
	for (int round = 0; round < 20; round++) {
		FAILS(execl("/no/such/program", "program", (char *)0), ENOENT);
		CHECK(traced() != 0);
		put(INTMC, 1);
	}
	puts("ok");
}

static void *outlives(void *unused)
{
	char state[64] = "";
	while (!strstr(state, "Z")) {
		FILE *leader = fopen("/proc/self/stat", "r");
		CHECK(leader && fgets(state, sizeof state, leader));
		fclose(leader);
	}
	put(INTMS, 0x30);
	CHECK(get(INTMS) == 0x31);
	put(INTMC, 0x10);
	CHECK(get(INTMS) == 0x21);
	puts("ok");
	fflush(stdout);
	_exit(0);
	return unused;
}

/* A parent that is told by a pidfd that its child ended finds it with a wait that does not wait. */
static void told(void)
{
	page = map(PROT_READ | PROT_WRITE);
	for (int round = 0; round < 100; ++round) {
		int status = -1;
		pid_t child = fork();
		if (!child) {
			put(INTMS, 1);
			_exit(9);
		}
		struct pollfd end = { .fd = (int)syscall(SYS_pidfd_open, child, 0), .events = POLLIN };
		CHECK(end.fd >= 0 && poll(&end, 1, 60000) == 1);
		CHECK(waitpid(child, &status, WNOHANG) == child && status == 9 << 8);
		close(end.fd);
	}
	/* Of a process whose first thread ends first the others are still heard. */
	CHECK(pthread_create(&(pthread_t){ 0 }, 0, outlives, 0) == 0);
	pthread_exit(0);
}

int main(int count, char **arguments)
{
	const char *how = count > 1 ? arguments[1] : "";
	if (strcmp(how, "other") == 0) {
		CHECK(traced() == 0 && getuid() == USER && geteuid() == OTHER && getegid() == OTHER);
		return 44;
	}
	if (strcmp(how, "quiet") == 0)
		return traced() == 0 ? 44 : 45;
	if (strcmp(how, "untraced") == 0) {
		CHECK(traced() == 0);
		puts("ok");
		return 44;
	}
	if (strcmp(how, "latch") == 0)
		bar.index = VFIO_PCI_BAR2_REGION_INDEX;
	open_device();
	if (strcmp(how, "every-store") == 0)
		every_store();
	else if (strcmp(how, "enable") == 0)
		enable();
	else if (strcmp(how, "polled") == 0)
		polled();
	else if (strcmp(how, "latch") == 0)
		latch();
	else if (strcmp(how, "blocked") == 0)
		blocked();
	else if (strcmp(how, "ignored") == 0)
		ignored();
	else if (strcmp(how, "own-faults") == 0)
		own_faults();
	else if (strcmp(how, "not-there") == 0)
		not_there();
	else if (strcmp(how, "kernel") == 0)
		kernel();
	else if (strcmp(how, "threads") == 0)
		threads();
	else if (strcmp(how, "processes") == 0)
		processes(arguments[0]);
	else if (strcmp(how, "told") == 0)
		told();
	else if (strcmp(how, "stopped") == 0)
		stopped();
	else if (strcmp(how, "interrupted") == 0)
		interrupted();
	else if (strcmp(how, "set-user-id") == 0)
		set_user_id(arguments[0]);
	else if (strcmp(how, "execute-beside-map") == 0)
		execute_beside_map(arguments[0]);
	else if (strcmp(how, "failed-exec") == 0)
		failed_exec();
	else if (strcmp(how, "unknown") == 0)
		unknown();
	else if (strcmp(how, "watched") == 0)
		watched();
	else
		return 2;
	return 0;
}
