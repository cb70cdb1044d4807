/* Makes every system call that takes a descriptor on each kind of our files, and prints one line a call: its name, and what a container, a
   group, a device by its node, a device by its group and an iommufd answer. The table of docs/view.md says what that must be. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <sched.h>

#include "check.h"
#include "ring.h"

/* linux/vfio.h */
#define GROUP_SET_CONTAINER 0x3b68
#define SET_IOMMU 0x3b66
#define GROUP_GET_DEVICE_FD 0x3b6a
#define DEVICE_BIND_IOMMUFD 0x3b76
#define FAR (1ULL << 40)
#define CONFIG (7ULL << 40)
#define NEAR 4096

enum kind { CONTAINER, GROUP, DEVICE, GROUP_DEVICE, IOMMUFD, KINDS };

/* What the call at hand may use: all new for each. */
static enum kind kind;
static int fd, out, pipes[2], companions[2];
static char bytes[64], *page;
static struct ring ring;
static loff_t at;

/* One that has no meaning for this kind of file. */
#define NONE (-8888)
#define OK(call) ((call) ? 0 : -1)
#define ONLY_DEVICE(call) (kind == DEVICE || kind == GROUP_DEVICE ? (call) : NONE)

/* io_uring lets go of a file a moment after it has answered: until then the device is in use. */
#define AWAIT(call)                                                                           \
	({                                                                                    \
		int answer_, turns_ = 0;                                                      \
		while ((answer_ = (call)) < 0 && errno == EBUSY && turns_++ < 2000)           \
			usleep(5000);                                                         \
		CHECK(answer_ >= 0);                                                          \
		answer_;                                                                      \
	})

static int opened(void)
{
	uint32_t bind[4] = { sizeof(bind), 0, 0, 0 };
	int file, container;

	companions[0] = companions[1] = -1;
	switch (kind) {
	case CONTAINER:
		return open("/dev/vfio/vfio", O_RDWR);
	case GROUP:
		return AWAIT(open("/dev/vfio/1", O_RDWR));
	case DEVICE:
		companions[0] = bind[2] = open("/dev/iommu", O_RDWR);
		file = open("/dev/vfio/devices/vfio0", O_RDWR);
		AWAIT(ioctl(file, DEVICE_BIND_IOMMUFD, bind));
		return file;
	case GROUP_DEVICE:
		companions[0] = container = open("/dev/vfio/vfio", O_RDWR);
		companions[1] = AWAIT(open("/dev/vfio/1", O_RDWR));
		CHECK(ioctl(companions[1], GROUP_SET_CONTAINER, &container) == 0);
		CHECK(ioctl(container, SET_IOMMU, 1) == 0);
		return ioctl(companions[1], GROUP_GET_DEVICE_FD, "0000:01:00.0");
	default:
		return open("/dev/iommu", O_RDWR);
	}
}

static long mapped(int length, int flags, loff_t offset)
{
	page = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, fd, offset);
	return OK(page != MAP_FAILED);
}

static long bar(void)
{
	return mapped(4096, MAP_SHARED, FAR);
}

static long ring_call(struct io_uring_sqe entry)
{
	int answer = ring_do(&ring, entry);
	errno = -answer;
	return answer < 0 ? -1 : answer;
}

#define RING(operation, ...) ring_call((struct io_uring_sqe){ .opcode = IORING_OP_##operation, .fd = fd, __VA_ARGS__ })

static long aio(int operation)
{
	aio_context_t context = 0;
	struct iocb block = { .aio_fildes = fd, .aio_lio_opcode = operation, .aio_buf = (uintptr_t)bytes, .aio_nbytes = 4, .aio_offset = CONFIG };
	struct iocb *blocks[] = { &block };
	struct io_event event;

	CHECK(syscall(SYS_io_setup, 1, &context) == 0);
	long answer = syscall(SYS_io_submit, context, 1, blocks);
	if (answer == 1) {
		CHECK(syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1);
		errno = -event.res;
		answer = event.res < 0 ? -1 : event.res;
	}
	int number = errno;
	syscall(SYS_io_destroy, context);
	errno = number;
	return answer;
}

static long passed(void)
{
	int pair[2], copy = -1;
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec piece = { &byte, 1 };
	struct msghdr message = { NULL, 0, &piece, 1, control, sizeof(control), 0 };

	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	*header = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	CHECK(sendmsg(pair[0], &message, 0) == 1 && recvmsg(pair[1], &message, 0) == 1);
	memcpy(&copy, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	struct stat ours, theirs;
	CHECK(fstat(fd, &ours) == 0 && fstat(copy, &theirs) == 0);
	close(copy), close(pair[0]), close(pair[1]);
	return OK(ours.st_ino == theirs.st_ino);
}

static long polled(void)
{
	struct pollfd one = { fd, POLLIN | POLLOUT, 0 };
	CHECK(poll(&one, 1, 0) == 1);
	return one.revents;
}

static long added(void)
{
	struct epoll_event event = { EPOLLIN, { 0 } };
	int epoll = epoll_create1(0);
	long answer = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
	close(epoll);
	return answer;
}

static long handle(void)
{
	struct { struct file_handle handle; char bytes[128]; } found = { .handle = { .handle_bytes = 128 } };
	int mount;
	return name_to_handle_at(fd, "", &found.handle, &mount, AT_EMPTY_PATH);
}

static long status(int command)
{
	struct stat stat;
	struct statfs system;
	if (command == 0)
		return fstat(fd, &stat) ? -1 : (long)(stat.st_mode & S_IFMT) / 020000;
	return fstatfs(fd, &system) ? -1 : system.f_type;
}

static long lock(int command, off_t length)
{
	struct flock lock = { F_WRLCK, SEEK_SET, 0, length, 0 };
	return fcntl(fd, command, &lock);
}

static long cut_by_path(void)
{
	char path[64];
	sprintf(path, "/proc/self/fd/%d", fd);
	return truncate(path, 0);
}

#define PIECE &(struct iovec){ bytes, 4 }
#define FLAGS(value) ((value) < 0 ? (value) : ((value) & ~0100000))

#define CALLS(CALL)                                                                          \
	CALL("read, readv", read(fd, bytes, 4) < 0 ? readv(fd, PIECE, 1) : 1)                 \
	CALL("write, writev", write(fd, bytes, 4) < 0 ? writev(fd, PIECE, 1) : 1)             \
	CALL("read of no bytes", read(fd, bytes, 0))                                          \
	CALL("pread at 4096", pread(fd, bytes, 4, NEAR))                                      \
	CALL("pwrite at 4096", pwrite(fd, bytes, 4, NEAR))                                    \
	CALL("preadv at 4096", preadv(fd, PIECE, 1, NEAR))                                    \
	CALL("pwritev2 at 4096", pwritev2(fd, PIECE, 1, NEAR, 0))                             \
	CALL("pread of config space", pread(fd, bytes, 4, CONFIG))                            \
	CALL("preadv of config space", preadv(fd, PIECE, 1, CONFIG))                          \
	CALL("pwrite of a register", pwrite(fd, bytes, 4, FAR))                               \
	CALL("pwritev of a register", pwritev(fd, PIECE, 1, FAR))                             \
	CALL("preadv2, pwritev2 without an offset", preadv2(fd, PIECE, 1, -1, 0) < 0 ? pwritev2(fd, PIECE, 1, -1, 0) : 1) \
	CALL("lseek SEEK_CUR, SEEK_END", lseek(fd, 0, SEEK_CUR) < 0 ? lseek(fd, 0, SEEK_END) : 1) \
	CALL("lseek SEEK_DATA, SEEK_HOLE", lseek(fd, 0, SEEK_DATA) < 0 ? lseek(fd, 0, SEEK_HOLE) : 1) \
	CALL("lseek SEEK_SET to config space", lseek(fd, CONFIG, SEEK_SET))                   \
	CALL("lseek SEEK_SET to 4096", lseek(fd, NEAR, SEEK_SET))                             \
	CALL("read after that lseek", (lseek(fd, NEAR, SEEK_SET), read(fd, bytes, 4)))        \
	CALL("write after that lseek", (lseek(fd, NEAR, SEEK_SET), write(fd, bytes, 4)))      \
	CALL("ftruncate", ftruncate(fd, 4096))                                                \
	CALL("truncate of /proc/self/fd/N", cut_by_path())                                    \
	CALL("fallocate", fallocate(fd, 0, 0, 4096))                                          \
	CALL("fallocate of a hole", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FAR, 4096)) \
	CALL("fsync, fdatasync", fsync(fd) < 0 ? fdatasync(fd) : 1)                           \
	CALL("syncfs", syncfs(fd))                                                            \
	CALL("sync_file_range", sync_file_range(fd, 0, 0, 0))                                 \
	CALL("readahead", readahead(fd, 0, 4096))                                             \
	CALL("fadvise64", syscall(SYS_fadvise64, fd, 0, 0, 0))                                \
	CALL("sendfile from it", sendfile(pipes[1], fd, NULL, 4))                             \
	CALL("sendfile from config space", (at = CONFIG, sendfile(pipes[1], fd, &at, 4)))     \
	CALL("sendfile to it", sendfile(fd, out, (at = 0, &at), 4))                           \
	CALL("splice from it", splice(fd, NULL, pipes[1], NULL, 4, 0))                        \
	CALL("splice from config space", (at = CONFIG, splice(fd, &at, pipes[1], NULL, 4, 0))) \
	CALL("splice to it", splice(pipes[0], NULL, fd, NULL, 4, 0))                          \
	CALL("splice to a register", (at = FAR, splice(pipes[0], NULL, fd, &at, 4, 0)))       \
	CALL("tee", tee(fd, pipes[1], 4, 0))                                                  \
	CALL("vmsplice", vmsplice(fd, PIECE, 1, 0))                                           \
	CALL("copy_file_range from it", copy_file_range(fd, NULL, out, NULL, 4, 0))           \
	CALL("copy_file_range to it", copy_file_range(out, NULL, fd, NULL, 4, 0))             \
	CALL("mmap MAP_SHARED of a BAR", mapped(4096, MAP_SHARED, FAR))                       \
	CALL("mmap MAP_SHARED of config space", mapped(4096, MAP_SHARED, CONFIG))             \
	CALL("mmap MAP_SHARED at 4096", mapped(4096, MAP_SHARED, NEAR))                       \
	CALL("mmap MAP_PRIVATE of a BAR", mapped(4096, MAP_PRIVATE, FAR))                     \
	CALL("mmap MAP_PRIVATE at 4096", mapped(4096, MAP_PRIVATE, NEAR))                     \
	CALL("mmap MAP_SHARED_VALIDATE, MAP_SYNC", mapped(4096, MAP_SHARED_VALIDATE | MAP_SYNC, FAR)) \
	CALL("mremap of a BAR, larger", ONLY_DEVICE((bar(), OK(mremap(page, 4096, 8192, MREMAP_MAYMOVE) != MAP_FAILED)))) \
	CALL("mremap of a BAR, a second one", ONLY_DEVICE((bar(), OK(mremap(page, 0, 4096, MREMAP_MAYMOVE) != MAP_FAILED)))) \
	CALL("mremap of a BAR, moved", ONLY_DEVICE((bar(), OK(mremap(page, 4096, 4096, MREMAP_MAYMOVE) != MAP_FAILED)))) \
	CALL("remap_file_pages to config space", ONLY_DEVICE((bar(), syscall(SYS_remap_file_pages, page, 4096, 0, CONFIG / 4096, 0)))) \
	CALL("madvise MADV_REMOVE", ONLY_DEVICE((bar(), madvise(page, 4096, MADV_REMOVE))))   \
	CALL("madvise MADV_DONTNEED", ONLY_DEVICE((bar(), madvise(page, 4096, MADV_DONTNEED))))     \
	CALL("madvise MADV_DONTFORK", ONLY_DEVICE((bar(), madvise(page, 4096, MADV_DONTFORK))))     \
	CALL("msync", ONLY_DEVICE((bar(), msync(page, 4096, MS_SYNC))))                       \
	CALL("dup, dup2, F_DUPFD", OK(dup(fd) > 0 && dup2(fd, 600) == 600 && fcntl(fd, F_DUPFD_CLOEXEC, 700) == 700)) \
	CALL("SCM_RIGHTS", passed())                                                          \
	CALL("F_GETFD, F_SETFD", fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 ? fcntl(fd, F_GETFD) : -1) \
	CALL("F_GETFL", FLAGS(fcntl(fd, F_GETFL)))                                            \
	CALL("F_SETFL O_NONBLOCK", fcntl(fd, F_SETFL, O_NONBLOCK) ? -1 : FLAGS(fcntl(fd, F_GETFL)) == (O_RDWR | O_NONBLOCK)) \
	CALL("F_SETFL O_DIRECT", fcntl(fd, F_SETFL, O_DIRECT))                                \
	CALL("F_SETFL O_APPEND, then F_GETFL", fcntl(fd, F_SETFL, O_APPEND) ? -1 : FLAGS(fcntl(fd, F_GETFL))) \
	CALL("F_SETLK of a byte far away", (at = 1LL << 40, fcntl(fd, F_SETLK, &(struct flock){ F_WRLCK, SEEK_SET, at, 1, 0 }))) \
	CALL("F_SETLK of all bytes", lock(F_SETLK, 0))                                        \
	CALL("flock", flock(fd, LOCK_EX | LOCK_NB))                                           \
	CALL("F_SETLEASE", fcntl(fd, F_SETLEASE, F_WRLCK))                                    \
	CALL("F_GETLEASE", fcntl(fd, F_GETLEASE))                                             \
	CALL("F_NOTIFY", fcntl(fd, F_NOTIFY, DN_MODIFY))                                      \
	CALL("F_ADD_SEALS, F_GET_SEALS", fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) < 0 ? fcntl(fd, F_GET_SEALS) : 1) \
	CALL("F_SETOWN, F_SETSIG", fcntl(fd, F_SETOWN, getpid()) | fcntl(fd, F_SETSIG, 0))    \
	CALL("F_GETPIPE_SZ", fcntl(fd, F_GETPIPE_SZ))                                         \
	CALL("fstat: the type is a character device", status(0))                                                    \
	CALL("fstatfs: the type", status(1))                                                  \
	CALL("fchmod, fchown, futimens", fchmod(fd, 0600) | fchown(fd, -1, -1) | futimens(fd, NULL)) \
	CALL("fgetxattr", fgetxattr(fd, "user.x", bytes, 64))                                 \
	CALL("fsetxattr", fsetxattr(fd, "user.x", bytes, 4, 0))                               \
	CALL("fremovexattr", fremovexattr(fd, "user.x"))                                      \
	CALL("FIOCLEX, FIONCLEX, FIONBIO", ioctl(fd, FIOCLEX) | ioctl(fd, FIONCLEX) | ioctl(fd, FIONBIO, &(int){ 1 })) \
	CALL("FIOASYNC", ioctl(fd, FIOASYNC, &(int){ 1 }))                                    \
	CALL("FIONREAD", ioctl(fd, FIONREAD, bytes))                                          \
	CALL("FIGETBSZ", ioctl(fd, FIGETBSZ, bytes))                                          \
	CALL("FIOQSIZE", ioctl(fd, FIOQSIZE, bytes))                                          \
	CALL("FS_IOC_GETFLAGS", ioctl(fd, FS_IOC_GETFLAGS, bytes))                            \
	CALL("FS_IOC_RESVSP, FS_IOC_UNRESVSP", ioctl(fd, 0x40305828, bytes) < 0 ? ioctl(fd, 0x4030582b, bytes) : 1) \
	CALL("TCGETS", ioctl(fd, 0x5401, bytes))                                              \
	CALL("poll", polled())                                                                \
	CALL("epoll_ctl", added())                                                            \
	CALL("name_to_handle_at", handle())                                                   \
	CALL("getdents64, fchdir, openat below it", syscall(SYS_getdents64, fd, bytes, 64) < 0 && fchdir(fd) < 0 ? openat(fd, "x", O_RDONLY) : 1) \
	CALL("execveat", syscall(SYS_execveat, fd, "", NULL, NULL, AT_EMPTY_PATH))            \
	CALL("recv, connect, listen", recv(fd, bytes, 4, 0) < 0 ? listen(fd, 1) : 1)          \
	CALL("timerfd_settime, setns", timerfd_settime(fd, 0, (void *)bytes, NULL) < 0 ? setns(fd, 0) : 1) \
	CALL("io_submit of a pread", aio(IOCB_CMD_PREAD))                                     \
	CALL("io_submit of a pwrite", aio(IOCB_CMD_PWRITE))                                   \
	CALL("io_uring: read of config space", RING(READ, .addr = (uintptr_t)bytes, .len = 4, .off = CONFIG)) \
	CALL("io_uring: read at 4096", RING(READ, .addr = (uintptr_t)bytes, .len = 4, .off = NEAR)) \
	CALL("io_uring: read without an offset", RING(READ, .addr = (uintptr_t)bytes, .len = 4, .off = -1)) \
	CALL("io_uring: write of a register", RING(WRITE, .addr = (uintptr_t)bytes, .len = 4, .off = FAR)) \
	CALL("io_uring: write at 4096", RING(WRITE, .addr = (uintptr_t)bytes, .len = 4, .off = NEAR)) \
	CALL("io_uring: fsync", RING(FSYNC, .off = 0))                                        \
	CALL("io_uring: fallocate", RING(FALLOCATE, .addr = 4096, .off = NEAR))               \
	CALL("io_uring: fadvise", RING(FADVISE, .len = 0))                                    \
	CALL("io_uring: sync_file_range", RING(SYNC_FILE_RANGE, .len = 0))                    \
	CALL("io_uring: poll", RING(POLL_ADD, .poll32_events = POLLIN))

int main(void)
{
	static const char *const names[] = {
#define NAME(name, call) name,
		CALLS(NAME)
	};
	const size_t count = sizeof(names) / sizeof(*names);
	long answers[KINDS][sizeof(names) / sizeof(*names)];
	int numbers[KINDS][sizeof(names) / sizeof(*names)];

	signal(SIGPIPE, SIG_IGN);
	if (ring_open(&ring)) {
		puts("no io_uring");
		return 3;
	}
	for (kind = 0; kind < KINDS; kind++) {
		size_t nth = 0;
#define MAKE(name, call)                                                                      \
	fd = opened();                                                                        \
	CHECK(fd >= 0 && pipe(pipes) == 0 && write(pipes[1], "text", 4) == 4);                \
	out = memfd_create("other", 0);                                                       \
	CHECK(write(out, "text", 4) == 4);                                                    \
	page = NULL, errno = 0;                                                               \
	answers[kind][nth] = (call);                                                          \
	numbers[kind][nth++] = errno;                                                         \
	if (page && page != MAP_FAILED)                                                       \
		munmap(page, 4096);                                                           \
	close_range(3, ring.fd - 1, 0), close_range(ring.fd + 1, 1000, 0);
		CALLS(MAKE)
	}
	for (size_t nth = 0; nth < count; nth++) {
		printf("%s", names[nth]);
		for (kind = 0; kind < KINDS; kind++) {
			long answer = answers[kind][nth];
			if (answer == NONE)
				printf("|-");
			else if (answer < 0)
				printf("|%s", strerrorname_np(numbers[kind][nth]));
			else
				printf("|%ld", answer);
		}
		putchar('\n');
	}
	return 0;
}
