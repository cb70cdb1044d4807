/* A fault queue through every kind of descriptor and every way to wait and read. Each part ends with what was asked answered. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define CALL(nr) _IO(';', nr)
#define PAGE 4096u
#define LIMIT 20000 /* milliseconds that nothing takes unless it hangs */

struct fault { uint32_t flags, dev_id, pasid, grpid, perm, reserved; uint64_t addr; uint32_t length, cookie; };
struct answer { uint32_t cookie, code; };

static int context, queue;
static uint32_t ioas;
static uint64_t next = 0x100000;

static struct device { int fd; volatile uint32_t *bar; } devices[2];

static int allocate(uint32_t *id)
{
	struct { uint32_t size, flags, id, fd; } alloc = { sizeof alloc, 0, 0, 0 };

	if (ioctl(context, CALL(0x8e), &alloc))
		return -1;
	*id = alloc.id;
	return (int)alloc.fd;
}

static void set_up(void)
{
	uint32_t queue_id;
	struct { uint32_t size, flags, id; } space = { sizeof space, 0, 0 };

	context = open("/dev/iommu", O_RDWR);
	CHECK(context >= 0 && ioctl(context, CALL(0x81), &space) == 0);
	ioas = space.id;
	CHECK((queue = allocate(&queue_id)) >= 0);
	for (int i = 0; i < 2; i++) {
		char path[40];
		struct { uint32_t size, flags; int32_t context; uint32_t id; uint64_t token; } bind = { 16, 0, context, 0, 0 };
		sprintf(path, "/dev/vfio/devices/vfio%d", i);
		int fd = open(path, O_RDWR);
		CHECK(fd >= 0 && ioctl(fd, CALL(118), &bind) == 0);
		struct {
			uint32_t size, flags, dev, pt, out, reserved, type, length;
			uint64_t data;
			uint32_t fault, reserved2;
		} table = { sizeof table, 4, bind.id, ioas, .fault = queue_id };
		CHECK(ioctl(context, CALL(0x89), &table) == 0);
		struct { uint32_t size, flags, pt; } attach = { sizeof attach, 0, table.out };
		CHECK(ioctl(fd, CALL(119), &attach) == 0);
		uint16_t command = 6;
		CHECK(pwrite(fd, &command, 2, (7ll << 40) + 4) == 2);
		devices[i].fd = fd;
		devices[i].bar = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 1ll << 40);
		CHECK(devices[i].bar != MAP_FAILED);
	}
}

/* A device asks for a page that is not mapped. */
static void ask(struct device *device)
{
	device->bar[0] = (uint32_t)next;
	device->bar[1] = 0;
	device->bar[2] = 3;
	next += PAGE;
}

static void wait_for(int fd)
{
	struct pollfd polled = { fd, POLLIN, 0 };
	CHECK(poll(&polled, 1, LIMIT) == 1 && polled.revents == POLLIN);
}

/* Maps the page and says so through `fd`. */
static void give(int fd, struct fault *fault)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; } map = {
		sizeof map, 7, ioas, 0, (uintptr_t)page, PAGE, fault->addr
	};
	struct answer answer = { fault->cookie, 0 };

	CHECK(fault->perm == 1 && ioctl(context, CALL(0x85), &map) == 0);
	CHECK(write(fd, &answer, sizeof answer) == sizeof answer);
}

static void is_done(struct device *device)
{
	for (int i = 0; device->bar[2] & 1; i++) {
		CHECK(i < LIMIT);
		usleep(1000);
	}
	CHECK(device->bar[2] == 0);
}

/* Everything, read and answered through `fd`. */
static void serve(int fd)
{
	struct fault fault;

	ask(devices);
	wait_for(fd);
	CHECK(read(fd, &fault, sizeof fault) == sizeof fault && fault.addr == next - PAGE);
	give(fd, &fault);
	is_done(devices);
	CHECK(read(fd, &fault, sizeof fault) == 0);
}

static void copies(void)
{
	int copy = dup(queue), high = fcntl(queue, F_DUPFD_CLOEXEC, 200), low = dup2(queue, 0);

	CHECK(copy >= 0 && high >= 200 && low == 0);
	serve(queue);
	serve(copy);
	close(queue);
	serve(high);
	serve(low);
	CHECK(fcntl(copy, F_SETFL, O_NONBLOCK) == 0);
	serve(low);
}

/* The child has nothing but what it inherits, or what it is sent. */
static void other_processes(void)
{
	int sockets[2], status;
	char word, space[CMSG_SPACE(sizeof(int))];
	struct iovec piece = { &word, 1 };
	struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };

	pid_t child = fork();
	if (child == 0) {
		serve(queue);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	next += PAGE;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	child = fork();
	if (child == 0) {
		close(queue);
		CHECK(recvmsg(sockets[1], &message, 0) == 1);
		serve(*(int *)CMSG_DATA(CMSG_FIRSTHDR(&message)));
		_exit(0);
	}
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	*head = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	*(int *)CMSG_DATA(head) = queue;
	CHECK(sendmsg(sockets[0], &message, 0) == 1);
	close(queue);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void waiting(void)
{
	struct fault fault;
	struct epoll_event event = { EPOLLIN | EPOLLET, { .fd = 7 } };
	int copy = dup(queue), level = epoll_create1(0), edge = epoll_create1(0);
	struct pollfd polled = { copy, POLLIN | POLLOUT, 0 };

	CHECK(poll(&polled, 1, 0) == 1 && polled.revents == POLLOUT);
	CHECK(epoll_ctl(edge, EPOLL_CTL_ADD, copy, &event) == 0);
	event.events = EPOLLIN;
	CHECK(epoll_ctl(level, EPOLL_CTL_ADD, queue, &event) == 0);
	CHECK(epoll_wait(edge, &event, 1, 0) == 0 && epoll_wait(level, &event, 1, 0) == 0);
	for (int i = 0; i < 3; i++) {
		ask(devices);
		CHECK(epoll_wait(edge, &event, 1, LIMIT) == 1 && event.events == EPOLLIN);
		CHECK(epoll_wait(edge, &event, 1, 0) == 0);
		CHECK(epoll_wait(level, &event, 1, LIMIT) == 1 && epoll_wait(level, &event, 1, LIMIT) == 1);
		CHECK(poll(&polled, 1, LIMIT) == 1 && polled.revents == (POLLIN | POLLOUT));
		CHECK(read(copy, &fault, sizeof fault) == sizeof fault);
		CHECK(epoll_wait(level, &event, 1, 0) == 0);
		give(queue, &fault);
		is_done(devices);
	}
	fd_set set;
	FD_ZERO(&set);
	FD_SET(copy, &set);
	struct timeval limit = { LIMIT / 1000, 0 }, none = { 0, 0 };
	CHECK(select(copy + 1, &set, NULL, NULL, &none) == 0);
	ask(devices);
	FD_SET(copy, &set);
	CHECK(select(copy + 1, &set, NULL, NULL, &limit) == 1 && FD_ISSET(copy, &set));
	struct iovec piece = { &fault, sizeof fault };
	CHECK(readv(copy, &piece, 1) == sizeof fault);
	give(copy, &fault);
	is_done(devices);
}

/* One operation of a ring of its own; its result. */
static int ring(uint8_t opcode, int fd, void *bytes, uint32_t length)
{
	struct io_uring_params params = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
	CHECK(ring >= 0);
	size_t size = params.sq_off.array + params.sq_entries * 4, other = params.cq_off.cqes + params.cq_entries * 16;
	char *submit = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *complete = mmap(NULL, other, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *entry = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	CHECK(submit != MAP_FAILED && complete != MAP_FAILED && entry != MAP_FAILED);
	*entry = (struct io_uring_sqe){ .opcode = opcode, .fd = fd, .addr = (uintptr_t)bytes, .len = length, .off = -1ull };
	*(uint32_t *)(submit + params.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(submit + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	CHECK(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
	int result = ((struct io_uring_cqe *)(complete + params.cq_off.cqes))->res;
	close(ring);
	return result;
}

static void rings(void)
{
	struct fault fault;
	struct answer answer;

	for (int i = 0; i < 2; i++) {
		ask(devices);
		CHECK(ring(IORING_OP_READ, queue, &fault, sizeof fault) == sizeof fault && fault.addr == next - PAGE);
		void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		struct { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; } map = {
			sizeof map, 7, ioas, 0, (uintptr_t)page, PAGE, fault.addr
		};
		CHECK(ioctl(context, CALL(0x85), &map) == 0);
		answer = (struct answer){ fault.cookie + 1, 0 };
		CHECK(ring(IORING_OP_WRITE, queue, &answer, sizeof answer) == -EINVAL);
		answer.cookie--;
		CHECK(ring(IORING_OP_WRITE, queue, &answer, sizeof answer) == sizeof answer);
		is_done(devices);
	}
}

/* What Linux refuses, and that a record which cannot be delivered is not lost. */
static void refusals(void)
{
	struct fault faults[2];
	struct answer answers[2] = { { 77, 0 } };
	char name[40];
	int pipes[2], copy = dup(queue);
	char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *volatile nowhere = (void *)8;
	struct fault *at_end = (void *)(pages + PAGE - sizeof *at_end);

	CHECK(munmap(pages + PAGE, PAGE) == 0);
	ask(&devices[0]);
	wait_for(copy);
	ask(&devices[1]);
	FAILS(read(copy, faults, sizeof *faults - 1), ESPIPE);
	FAILS(read(copy, nowhere, sizeof *faults), EFAULT);
	FAILS(read(copy, pages + PAGE, sizeof *faults), EFAULT);
	FAILS(pread(copy, faults, sizeof *faults, 0), ESPIPE);
	FAILS(pwrite(copy, answers, sizeof *answers, 0), ESPIPE);
	FAILS(lseek(copy, 0, SEEK_CUR), ESPIPE);
	FAILS(write(copy, answers, 7), ESPIPE);
	FAILS(write(copy, answers, sizeof *answers), EINVAL);
	FAILS(write(copy, nowhere, sizeof *answers), EFAULT);
	FAILS(ftruncate(copy, 0), EINVAL);
	FAILS(fsync(copy), EINVAL);
	FAILS(ioctl(copy, CALL(0x81), faults), ENOTTY);
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, copy, 0) == MAP_FAILED && errno == ENODEV);
	sprintf(name, "/proc/self/fd/%d", copy);
	FAILS(open(name, O_RDWR), ENXIO);
	struct stat stat;
	CHECK(fstat(copy, &stat) == 0 && stat.st_mode == 0600 && stat.st_rdev == 0 && stat.st_size == 0);
	CHECK(pipe(pipes) == 0 && sendfile(pipes[1], copy, NULL, PAGE) == -1);
	/* One of two fits in front of what cannot be written. */
	usleep(200000);
	CHECK(read(copy, at_end, 2 * sizeof *at_end) == sizeof *at_end);
	faults[0] = *at_end;
	wait_for(copy);
	CHECK(read(copy, &faults[1], sizeof faults[1]) == sizeof faults[1]);
	CHECK(faults[0].addr == next - 2 * PAGE && faults[1].addr == next - PAGE);
	give(queue, &faults[0]);
	/* The second answer is wrong, the first counts. */
	faults[0] = faults[1];
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; } map = {
		sizeof map, 7, ioas, 0, (uintptr_t)page, PAGE, faults[1].addr
	};
	CHECK(ioctl(context, CALL(0x85), &map) == 0);
	answers[0] = (struct answer){ faults[1].cookie, 0 };
	answers[1] = (struct answer){ 0xffff, 0 };
	CHECK(write(copy, answers, sizeof answers) == sizeof *answers);
	is_done(&devices[0]);
	is_done(&devices[1]);
}

/* A queue takes the lowest free number, there are as many as descriptors, and each ends with its last descriptor. */
static void many(void)
{
	enum { COUNT = 1000 };
	static uint32_t ids[COUNT];
	static int fds[COUNT];
	struct { uint32_t size, id; } destroy = { sizeof destroy, 0 };
	struct rlimit limit;

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max < 2000 ? limit.rlim_max : 2000;
	CHECK(limit.rlim_cur > COUNT + 50 && setrlimit(RLIMIT_NOFILE, &limit) == 0);
	for (int i = 0; i < COUNT; i++) {
		int lowest = dup(0);
		close(lowest);
		CHECK((fds[i] = allocate(&ids[i])) == lowest && fcntl(lowest, F_GETFD) == FD_CLOEXEC);
	}
	destroy.id = ids[500];
	FAILS(ioctl(context, CALL(0x80), &destroy), EBUSY);
	for (int i = 0; i < COUNT; i++) {
		CHECK(close(fds[i]) == 0);
		destroy.id = ids[i];
		CHECK(ioctl(context, CALL(0x80), &destroy) == 0);
	}
	limit.rlim_cur = 64;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	while ((fds[0] = allocate(ids)) >= 0)
		fds[1] = fds[0];
	CHECK(errno == EMFILE && fds[1] == 63);
	FAILS(dup(0), EMFILE);
	FAILS(allocate(ids), EMFILE);
	close(20);
	CHECK(allocate(ids) == 20);
	FAILS(allocate(ids), EMFILE);
	serve(queue);
}

/* Whoever is killed within a call keeps nobody else from being answered. */
static void killed(void)
{
	for (int i = 0; i < 100; i++) {
		pid_t child = fork();
		if (child == 0)
			for (;;) {
				struct fault fault;
				struct statfs system;
				struct pollfd polled = { queue, POLLIN, 0 };
				fstatfs(queue, &system);
				poll(&polled, 1, 0);
				(void)!read(queue, &fault, sizeof fault);
				(void)!write(queue, &fault, sizeof(struct answer));
			}
		usleep(500 + 37 * (unsigned)i % 400);
		kill(child, SIGKILL);
		CHECK(waitpid(child, NULL, 0) == child);
	}
	serve(queue);
}

/* Without a file system the numbers are the highest below the limit, sixty-four of them, and only they are read here. */
static void numbers(void)
{
	struct rlimit limit;
	uint32_t id;
	struct fault fault;
	int copy = dup(queue);

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	CHECK(queue == (int)limit.rlim_cur - 1);
	serve(queue);
	ask(devices);
	wait_for(copy);
	/* What docs/view.md says of it: the byte by which it is polled. */
	CHECK(read(copy, &fault, sizeof fault) == 1);
	CHECK(read(queue, &fault, sizeof fault) == sizeof fault);
	give(queue, &fault);
	is_done(devices);
	for (int i = 1; i < 64; i++)
		CHECK(allocate(&id) == queue - i);
	FAILS(allocate(&id), EMFILE);
}

/* Told when its supervisor was killed: nobody hangs. */
static void orphan(void)
{
	struct fault fault;
	struct pollfd polled = { queue, POLLIN, 0 };

	serve(queue);
	puts("ready");
	fflush(stdout);
	CHECK(poll(&polled, 1, LIMIT) == 1 && polled.revents == POLLERR);
	FAILS(read(queue, &fault, sizeof fault), ENOTCONN);
	close(queue);
}

int main(int argc, char **argv)
{
	static const struct { const char *name; void (*run)(void); } parts[] = {
		{ "copies", copies },   { "other-processes", other_processes }, { "waiting", waiting }, { "rings", rings },
		{ "refusals", refusals }, { "many", many },       { "killed", killed }, { "numbers", numbers }, { "orphan", orphan },
	};

	set_up();
	for (unsigned i = 0; argc == 2 && i < sizeof parts / sizeof *parts; i++)
		if (!strcmp(argv[1], parts[i].name)) {
			parts[i].run();
			puts("ok");
			return 0;
		}
	return 2;
}
