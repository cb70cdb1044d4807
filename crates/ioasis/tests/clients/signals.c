/* A program with a handler that does not begin calls anew: `signals HOW`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static volatile sig_atomic_t signals;

static void tick(int signal)
{
	(void)signal;
	signals++;
}

static void handle(int signal, int flags)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = flags };
	CHECK(sigaction(signal, &action, 0) == 0);
}

/* A SIGALRM each so many microseconds; none with 0. */
static void every(suseconds_t interval)
{
	struct itimerval timer = { { 0, interval }, { 0, interval } };
	CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
}

static int traced(void)
{
	char line[256];
	int tracer = -1;
	FILE *status = fopen("/proc/self/status", "r");
	CHECK(status);
	while (fgets(line, sizeof line, status))
		sscanf(line, "TracerPid: %d", &tracer);
	fclose(status);
	return tracer;
}

static void *calls(void *unused)
{
	char path[64];
	struct stat stat;
	int container = open("/dev/vfio/vfio", O_RDWR), file;
	(void)unused;
	CHECK(container >= 0);
	for (int round = 0; round < 1500; round++) {
		CHECK((file = open("/etc/passwd", O_RDONLY)) >= 0 && fstat(file, &stat) == 0);
		CHECK(lseek(file, 0, SEEK_END) > 0 && fsync(file) == 0 && close(file) == 0);
		CHECK((file = open("/etc/hostname", O_RDONLY | O_CLOEXEC)) >= 0 && close(file) == 0);
		CHECK(readlink("/proc/self/fd/0", path, sizeof path) > 0);
		CHECK(ioctl(container, _IO(';', 0x64)) >= 0);
		FAILS(open("/no/such/file", O_RDONLY), ENOENT);
	}
	CHECK(close(container) == 0);
	return 0;
}

static int exit_of(pid_t child)
{
	int status;
	pid_t ended;
	/* This is interrupted as ever. */
	while ((ended = waitpid(child, &status, 0)) == -1 && errno == EINTR)
		;
	CHECK(ended == child);
	return status;
}

static void inherited(void)
{
	pthread_t thread;
	handle(SIGALRM, 0);
	CHECK(traced() != 0);
	every(700);
	CHECK(pthread_create(&thread, 0, calls, 0) == 0);
	calls(0);
	CHECK(pthread_join(thread, 0) == 0);
	every(0);
	pid_t child = fork();
	if (!child) {
		signals = 0;
		CHECK(traced() != 0);
		every(700);
		calls(0);
		_exit(signals > 20 ? 7 : 8);
	}
	CHECK(exit_of(child) == 7 << 8);
}

/* What waits by itself fails with EINTR, each time, beside calls that do not. */
static void waits(void)
{
	char bytes[4096] = { 0 };
	int ends[2];
	handle(SIGALRM, 0);
	CHECK(mkfifo("fifo", 0600) == 0 && pipe(ends) == 0);
	every(3000);
	for (int round = 0; round < 40; round++) {
		FAILS(open("fifo", O_RDONLY), EINTR);
		FAILS(open("fifo", O_WRONLY), EINTR);
		FAILS(read(ends[0], bytes, 1), EINTR);
		FAILS(pause(), EINTR);
		int file = open("/etc/passwd", O_RDONLY);
		CHECK(file >= 0 && close(file) == 0);
	}
	every(0);
	CHECK(fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
	while (write(ends[1], bytes, sizeof bytes) > 0)
		;
	CHECK(fcntl(ends[1], F_SETFL, 0) == 0);
	every(3000);
	int file = open("/etc/passwd", O_RDONLY);
	off_t at = 1;
	for (int round = 0; round < 10; round++)
		FAILS(sendfile(ends[1], file, &at, 100), EINTR);
}

static void jobs(void)
{
	int status;
	handle(SIGUSR1, 0);
	CHECK(traced() != 0);
	pid_t child = fork();
	if (!child)
		for (;;)
			calls(0);
	for (int round = 0; round < 10; round++) {
		int stop = round % 2 ? SIGSTOP : SIGTSTP;
		CHECK(kill(child, SIGUSR1) == 0 && kill(child, stop) == 0);
		CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == stop);
		usleep(1000);
		CHECK(waitpid(child, &status, WNOHANG | WUNTRACED) == 0);
		CHECK(kill(child, SIGCONT) == 0);
		CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
	}
	CHECK(kill(child, SIGTERM) == 0 && WTERMSIG(exit_of(child)) == SIGTERM);
	child = fork();
	if (!child) {
		struct rlimit none = { 0, 0 };
		setrlimit(RLIMIT_CORE, &none);
		raise(SIGABRT);
	}
	CHECK(WTERMSIG(exit_of(child)) == SIGABRT);
	/* A child that ends while its parent is not looking; its end is a signal that nobody handles. */
	siginfo_t info;
	child = fork();
	if (!child)
		_exit(9);
	CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0 && info.si_code == CLD_EXITED && info.si_status == 9);
	CHECK(exit_of(child) == 9 << 8);
}

/* Its parent, and then it by itself, asks for what only one can have. */
static void traced_by_another(void)
{
	int status, ends[2];
	char byte;
	CHECK(pipe(ends) == 0);
	for (int round = 0; round < 3; round++) {
		pid_t child = fork();
		if (!child) {
			handle(SIGUSR1, 0);
			CHECK(traced() != 0 && traced() != getppid());
			if (round == 2)
				CHECK(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0 && traced() == getppid());
			CHECK(write(ends[1], "r", 1) == 1);
			/* No stopped call here: whoever is traced by another has the moment in which one fails again. */
			while (!signals)
				usleep(500);
			_exit(traced() == getppid() ? 3 : 4);
		}
		CHECK(read(ends[0], &byte, 1) == 1);
		if (round == 0) {
			CHECK(ptrace(PTRACE_SEIZE, child, 0, 0) == 0);
			CHECK(ptrace(PTRACE_INTERRUPT, child, 0, 0) == 0);
			CHECK(waitpid(child, &status, __WALL) == child && status >> 8 == (SIGTRAP | PTRACE_EVENT_STOP << 8));
			CHECK(ptrace(PTRACE_CONT, child, 0, 0) == 0);
		} else if (round == 1) {
			CHECK(ptrace(PTRACE_ATTACH, child, 0, 0) == 0);
			CHECK(waitpid(child, &status, __WALL) == child && status >> 8 == SIGSTOP);
			CHECK(ptrace(PTRACE_CONT, child, 0, 0) == 0);
		}
		CHECK(kill(child, SIGUSR1) == 0);
		CHECK(waitpid(child, &status, __WALL) == child && status >> 8 == SIGUSR1);
		CHECK(ptrace(PTRACE_CONT, child, 0, SIGUSR1) == 0);
		CHECK(waitpid(child, &status, __WALL) == child && status == 3 << 8);
	}
}

static void left_alone(void)
{
	handle(SIGALRM, SA_RESTART);
	handle(SIGCHLD, 0);
	handle(SIGINT, 0);
	handle(SIGTERM, 0);
	CHECK(signal(SIGUSR1, SIG_IGN) != SIG_ERR);
	CHECK(traced() == 0);
}

int main(int count, char **arguments)
{
	const char *how = count > 1 ? arguments[1] : "";
	if (strcmp(how, "calls") == 0) {
		handle(SIGALRM, 0);
		every(500);
		calls(0);
		CHECK(signals > 20);
	} else if (strcmp(how, "inherited") == 0) {
		inherited();
	} else if (strcmp(how, "waits") == 0) {
		waits();
	} else if (strcmp(how, "jobs") == 0) {
		jobs();
	} else if (strcmp(how, "traced") == 0) {
		traced_by_another();
	} else if (strcmp(how, "executes") == 0) {
		handle(SIGUSR1, 0);
		CHECK(traced() != 0);
		execl(arguments[0], arguments[0], "left-alone", (char *)0);
		_exit(99);
	} else if (strcmp(how, "left-alone") == 0) {
		left_alone();
	} else {
		return 2;
	}
	every(0);
	puts("ok");
	return 0;
}
