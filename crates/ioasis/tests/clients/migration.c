/*
 * Migration of testdev.
 *   arcs:      every arc of the state machine, on devices that have all of it, P2P, PRE_COPY and neither; what Linux
 *              answers (vfio_mig_get_next_state, drivers/vfio/vfio_main.c) stands in the tables below
 *   files:     data files as files: number, close-on-exec, access, positions, poll, duplicates, a socket
 *   save FILE: a page goes into the device, and the device into the file
 *   load FILE: the device comes out of the file, and the page out of the device
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
#define PAGE 4096u

enum { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P, STATES };

struct state { uint32_t argsz, flags, state; int32_t fd; };
struct precopy { uint32_t argsz, flags; uint64_t initial, dirty; };
struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct log_start { uint32_t argsz, flags; uint64_t page_size; uint32_t count, reserved; uint64_t ranges; };
struct log_report { uint32_t argsz, flags; uint64_t iova, length, page_size, bitmap; };

#define GET (1u << 16)
#define SET (1u << 17)

static const uint64_t iova = 0x10000000;

static int open_container(unsigned char *memory)
{
	struct dma_map map = { sizeof map, 3, (uintptr_t)memory, iova, 2 * PAGE };
	int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), group = open("/dev/vfio/1", O_RDWR | O_CLOEXEC);
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(group, VFIO(0x68), &container) == 0);
	CHECK(ioctl(container, VFIO(0x66), 3) == 0);
	CHECK(!memory || ioctl(container, VFIO(0x71), &map) == 0);
	return group;
}

static int open_device(int container_group, unsigned number)
{
	char path[32], name[32];
	int group = container_group, device;
	if (number > 1) {
		int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
		snprintf(path, sizeof path, "/dev/vfio/%u", number);
		CHECK((group = open(path, O_RDWR | O_CLOEXEC)) >= 0);
		CHECK(ioctl(group, VFIO(0x68), &container) == 0);
		CHECK(ioctl(container, VFIO(0x66), 3) == 0);
	}
	snprintf(name, sizeof name, "0000:0%u:00.0", number);
	CHECK((device = ioctl(group, VFIO(0x6a), name)) >= 0);
	return device;
}

static int get(int device)
{
	struct state call = { sizeof call, GET | 2, 99, 99 };
	CHECK(ioctl(device, VFIO(0x75), &call) == 0);
	CHECK(call.fd == -1);
	return (int)call.state;
}

/* 0 or an errno; the data file, or -1. */
static int set(int device, uint32_t state, int *fd)
{
	struct state call = { sizeof call, SET | 2, state, 99 };
	int failed = ioctl(device, VFIO(0x75), &call) ? errno : 0;
	CHECK(call.state == state);
	CHECK(!failed || call.fd == -1);
	*fd = call.fd;
	return failed;
}

static void reach(int device, uint32_t state)
{
	int fd;
	CHECK(ioctl(device, VFIO(0x6f)) == 0);
	if (state == ERROR) {
		CHECK(set(device, RESUMING, &fd) == 0 && fd >= 0);
		close(fd);
		CHECK(set(device, STOP, &fd) == EINVAL);
		return;
	}
	CHECK(set(device, state, &fd) == 0);
	if (fd >= 0)
		close(fd);
}

/*
 * What a request for the state of the column does in the state of the row, in the order of the enum:
 * . no change, 0    o the state is reached, 0    f the same, with a data file    E EINVAL, no change
 * X EINVAL, and the device is in ERROR: it left RESUMING without a state
 */
static const char *const all[STATES] = {
	/*                 E S R C M r p q */
	[ERROR] =        ".EEEEEEE",
	[STOP] =         "E.offoff",
	[RUNNING] =      "Eo.ffoff",
	[STOP_COPY] =    "Eoo.foEE",
	[RESUMING] =     "EXXX.XXX",
	[RUNNING_P2P] =  "Eooff.ff",
	[PRE_COPY] =     "Eooofo.o",
	[PRE_COPY_P2P] = "Eooofoo.",
};
static const char *const p2p[STATES] = {
	[ERROR] =        ".EEEEEEE",
	[STOP] =         "E.offoEE",
	[RUNNING] =      "Eo.ffoEE",
	[STOP_COPY] =    "Eoo.foEE",
	[RESUMING] =     "EXXX.XEE",
	[RUNNING_P2P] =  "Eooff.EE",
};
static const char *const pre_copy[STATES] = {
	[ERROR] =        ".EEEEEEE",
	[STOP] =         "E.offEfE",
	[RUNNING] =      "Eo.ffEfE",
	[STOP_COPY] =    "Eoo.fEEE",
	[RESUMING] =     "EXXX.EXE",
	[PRE_COPY] =     "EooofE.E",
};
static const char *const neither[STATES] = {
	[ERROR] =        ".EEEEEEE",
	[STOP] =         "E.offEEE",
	[RUNNING] =      "Eo.ffEEE",
	[STOP_COPY] =    "Eoo.fEEE",
	[RESUMING] =     "EXXX.EEE",
};

static void arcs(int device, const char *const *table)
{
	unsigned cells = 0;
	for (uint32_t from = 0; from < STATES; from++) {
		for (uint32_t to = 0; table[from] && to < STATES; to++) {
			int fd, failed, now;
			char seen;
			reach(device, from);
			CHECK(get(device) == (int)from);
			failed = set(device, to, &fd);
			now = get(device);
			CHECK(failed == 0 || failed == EINVAL);
			if (failed)
				seen = now == (int)from ? 'E' : now == ERROR ? 'X' : '?';
			else
				seen = now != (int)to ? '?' : from == to ? '.' : fd >= 0 ? 'f' : 'o';
			if (seen != table[from][to]) {
				fprintf(stderr, "%u to %u: %c, not %c\n", from, to, seen, table[from][to]);
				exit(1);
			}
			if (fd >= 0)
				close(fd);
			cells++;
		}
	}
	reach(device, RUNNING);
	printf("%u ", cells);
}

static short polled(int fd)
{
	struct pollfd poll_fd = { fd, POLLIN | POLLOUT, 0 };
	CHECK(poll(&poll_fd, 1, 0) >= 0);
	return poll_fd.revents;
}

static int over_a_socket(int fd)
{
	int ends[2], got;
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &byte, 1 };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *part = CMSG_FIRSTHDR(&message);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(part), &fd, sizeof fd);
	CHECK(sendmsg(ends[0], &message, 0) == 1);
	CHECK(recvmsg(ends[1], &message, 0) == 1);
	memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
	close(ends[0]), close(ends[1]);
	return got;
}

static void files(int device)
{
	struct precopy info = { .argsz = sizeof info, .flags = 0xf0 };
	unsigned char bytes[8192];
	int lowest = dup(0), fd, copy, other, all_of_it = 0;
	ssize_t got;
	close(lowest);
	CHECK(set(device, PRE_COPY, &fd) == 0);
	CHECK(fd == lowest);
	CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
	CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
	CHECK(polled(fd) == POLLIN);
	FAILS(write(fd, bytes, 1), EBADF);
	FAILS(lseek(fd, 0, SEEK_CUR), ESPIPE);
	FAILS(pread(fd, bytes, 1, 0), ESPIPE);
	FAILS(ioctl(fd, VFIO(0x75), &info), ENOTTY);
	FAILS(ioctl(fd, VFIO(0x79), 1), EFAULT);
	info.argsz = 23;
	FAILS(ioctl(fd, VFIO(0x79), &info), EINVAL);
	info.argsz = 24;
	CHECK(ioctl(fd, VFIO(0x79), &info) == 0);
	CHECK(info.initial == 48 && info.dirty == 0 && info.flags == 0xf0);
	CHECK(read(fd, bytes, 8) == 8);
	/* Whoever has the file reads on where another has stopped. */
	CHECK((copy = dup2(fd, 700)) == 700);
	other = over_a_socket(fd);
	CHECK(read(copy, bytes + 8, 8) == 8);
	CHECK(read(other, bytes + 16, 8) == 8);
	CHECK(ioctl(other, VFIO(0x79), &info) == 0 && info.initial == 24);
	if (fork() == 0)
		_exit(read(fd, bytes + 24, 8) != 8);
	else {
		int status;
		CHECK(wait(&status) > 0 && status == 0);
	}
	CHECK(read(copy, bytes + 32, sizeof bytes - 32) == 16);
	FAILS(read(fd, bytes, 1), ENOMSG);
	CHECK(polled(fd) == 0);
	close(fd), close(other);
	CHECK(set(device, STOP_COPY, &fd) == 0 && fd == -1);
	CHECK(polled(copy) == POLLIN);
	FAILS(ioctl(copy, VFIO(0x79), &info), EINVAL);
	while ((got = read(copy, bytes, 1000)) > 0)
		all_of_it += (int)got;
	CHECK(got == 0 && all_of_it > (int)PAGE);
	CHECK(polled(copy) == POLLIN);
	CHECK(set(device, STOP, &fd) == 0);
	FAILS(read(copy, bytes, 1), ENODEV);
	close(copy);
	CHECK(set(device, RESUMING, &fd) == 0);
	CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	CHECK(polled(fd) == (POLLIN | POLLOUT));
	FAILS(read(fd, bytes, 1), EBADF);
	FAILS(pwrite(fd, bytes, 1, 0), ESPIPE);
	FAILS(ioctl(fd, VFIO(0x79), &info), ENOTTY);
	FAILS(write(fd, (void *)8, 100), EFAULT);
	memset(bytes, 0, sizeof bytes);
	FAILS(write(fd, bytes, 100), EINVAL);
	CHECK(ioctl(device, VFIO(0x6f)) == 0);
	FAILS(write(fd, bytes, 100), ENODEV);
	close(fd);
	/* Without a number left the state has changed, and nobody has its data. */
	while ((fd = dup(0)) >= 0)
		other = fd;
	CHECK(errno == EMFILE);
	CHECK(set(device, STOP_COPY, &fd) == EMFILE);
	close(other);
	CHECK(get(device) == STOP_COPY);
}

static off_t bar(int device, uint32_t index)
{
	struct region_info info = { .argsz = sizeof info, .index = index };
	CHECK(ioctl(device, VFIO(0x6c), &info) == 0);
	return (off_t)info.offset;
}

static void command(int device, uint64_t address, uint32_t code)
{
	uint32_t seen;
	uint16_t master = 6;
	CHECK(pwrite(device, &master, 2, bar(device, 7) + 4) == 2);
	CHECK(pwrite(device, &address, 8, bar(device, 0)) == 8);
	CHECK(pwrite(device, &code, 4, bar(device, 0) + 8) == 4);
	do
		CHECK(pread(device, &seen, 4, bar(device, 0) + 8) == 4);
	while (seen & 1);
	CHECK(seen == 0);
}

static void save(int device, unsigned char *memory, const char *path)
{
	unsigned char bytes[1000];
	int fd, out = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	ssize_t got;
	CHECK(out >= 0);
	for (unsigned i = 0; i < PAGE; i++)
		memory[i] = (unsigned char)(i * 7 + 3);
	command(device, iova, 3);
	CHECK(set(device, STOP_COPY, &fd) == 0 && fd >= 0);
	while ((got = read(fd, bytes, sizeof bytes)) > 0)
		CHECK(write(out, bytes, (size_t)got) == got);
	CHECK(got == 0);
}

static void load(int device, unsigned char *memory, const char *path)
{
	struct { uint64_t iova, length; } range = { iova, 2 * PAGE };
	struct log_start start = { sizeof start, SET | 6, PAGE, 1, 0, (uintptr_t)&range };
	uint64_t bits = 0;
	struct log_report report = { sizeof report, GET | 8, iova, 2 * PAGE, PAGE, (uintptr_t)&bits };
	unsigned char bytes[777];
	int fd, in = open(path, O_RDONLY);
	ssize_t got;
	CHECK(in >= 0);
	CHECK(set(device, RESUMING, &fd) == 0 && fd >= 0);
	while ((got = read(in, bytes, sizeof bytes)) > 0)
		CHECK(write(fd, bytes, (size_t)got) == got);
	close(fd);
	CHECK(set(device, RUNNING, &fd) == 0 && fd == -1);
	CHECK(ioctl(device, VFIO(0x75), &start) == 0);
	command(device, iova + PAGE, 1);
	for (unsigned i = 0; i < PAGE; i++)
		CHECK(memory[PAGE + i] == (unsigned char)(i * 7 + 3));
	CHECK(ioctl(device, VFIO(0x75), &report) == 0);
	CHECK(bits == 2);
}

int main(int argc, char **argv)
{
	unsigned char *memory = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int group, device;
	CHECK(argc > 1 && memory != MAP_FAILED);
	group = open_container(memory);
	device = open_device(group, 1);
	if (!strcmp(argv[1], "arcs")) {
		arcs(device, all);
		arcs(open_device(-1, 2), p2p);
		arcs(open_device(-1, 3), pre_copy);
		arcs(open_device(-1, 4), neither);
	} else if (!strcmp(argv[1], "files")) {
		files(device);
	} else {
		CHECK(argc == 3);
		(!strcmp(argv[1], "save") ? save : load)(device, memory, argv[2]);
	}
	puts("ok");
	return 0;
}
