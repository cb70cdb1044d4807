/* What a client may do with the files it gets. argv[1] says what to try; the first thing that is wrong is printed. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"
#include "ring.h"

/* linux/vfio.h, linux/iommufd.h */
#define GROUP_GET_STATUS 0x3b67
#define GROUP_SET_CONTAINER 0x3b68
#define GET_API_VERSION 0x3b64
#define SET_IOMMU 0x3b66
#define GROUP_GET_DEVICE_FD 0x3b6a
#define DEVICE_GET_INFO 0x3b6b
#define DEVICE_SET_IRQS 0x3b6e
#define DEVICE_RESET 0x3b6f
#define DEVICE_BIND_IOMMUFD 0x3b76
#define IOMMU_DESTROY 0x3b80
#define IOMMU_IOAS_ALLOC 0x3b81
#define IOMMU_FAULT_QUEUE_ALLOC 0x3b8e
#define BAR0 (1ULL << 40)
#define CONFIG (7ULL << 40)

static void *volatile nowhere = (void *)8;

static int iommu(void)
{
	int fd = open("/dev/iommu", O_RDWR);
	CHECK(fd >= 0);
	return fd;
}

static int alloc(int fd)
{
	uint32_t cmd[3] = { sizeof(cmd), 0, 0 };
	return ioctl(fd, IOMMU_IOAS_ALLOC, cmd) ? -1 : (int)cmd[2];
}

static int bound(int context, int *result)
{
	uint32_t cmd[4] = { sizeof(cmd), 0, context, 0 };
	int fd = open("/dev/vfio/devices/vfio0", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	*result = ioctl(fd, DEVICE_BIND_IOMMUFD, cmd);
	return fd;
}

static int device(int context)
{
	int result, fd = bound(context, &result);
	CHECK(result == 0);
	return fd;
}

static void link_is(int fd, const char *expected)
{
	char path[64], text[64] = "";
	sprintf(path, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(path, text, sizeof(text));
	CHECK(length == (ssize_t)strlen(expected) && !memcmp(text, expected, length));
	CHECK(readlink(path, text, 3) == 3);
	int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
	sprintf(path, "%d", fd);
	CHECK(readlinkat(dir, path, text, sizeof(text)) == length);
	close(dir);
	sprintf(path, "/dev/fd/%d", fd);
	CHECK(readlink(path, text, sizeof(text)) == length);
}

static void look(void)
{
	struct stat stat;
	struct statx statx_;
	char text[32] = "";
	int fd = iommu(), cdev = open("/dev/vfio/devices/vfio0", O_RDWR);

	CHECK(fstat(fd, &stat) == 0 && S_ISCHR(stat.st_mode) && stat.st_rdev == makedev(10, 126));
	CHECK(syscall(SYS_fstat, fd, &stat) == 0 && S_ISCHR(stat.st_mode));
	CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &statx_) == 0 && S_ISCHR(statx_.stx_mode));
	CHECK(statx_.stx_rdev_major == 10 && statx_.stx_rdev_minor == 126);
	int dev = open("/sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev", O_RDONLY);
	CHECK(read(dev, text, 31) > 2);
	unsigned int major, minor;
	CHECK(sscanf(text, "%u:%u", &major, &minor) == 2);
	CHECK(fstat(cdev, &stat) == 0 && stat.st_rdev == makedev(major, minor));
	FAILS(syscall(SYS_fstat, fd, nowhere), EFAULT);
	CHECK(fstat(dev, &stat) == 0 && S_ISREG(stat.st_mode));
	CHECK(fstatat(AT_FDCWD, "/etc/passwd", &stat, 0) == 0 && S_ISREG(stat.st_mode));
	link_is(fd, "/dev/iommu");
	link_is(cdev, "/dev/vfio/devices/vfio0");
	CHECK(access("/dev/iommu", F_OK) == 0 && stat.st_size > 0);
}

static void copies(char **argv)
{
	char number[16];
	int fd = iommu(), copy = dup(fd), status;

	CHECK(alloc(fd) == 1 && alloc(copy) == 2 && alloc(fcntl(fd, F_DUPFD_CLOEXEC, 50)) == 3);
	if (fork() == 0)
		_exit(alloc(fd));
	CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 4);
	close(fd);
	CHECK(alloc(copy) == 5);
	sprintf(number, "%d", copy);
	char *again[] = { argv[0], "executed", number, NULL };
	if (fork() == 0)
		execv(argv[0], again);
	CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 6);
	int closed = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	CHECK(fcntl(closed, F_GETFD) == FD_CLOEXEC && fcntl(copy, F_GETFD) == 0);
	sprintf(number, "%d", closed);
	if (fork() == 0)
		execv(argv[0], again);
	CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 255);
}

static void closes(void)
{
	int context = iommu(), result;

	/* A device is free for the next the moment its close returns. */
	for (int i = 0; i < 300; i++)
		close(device(context));
	for (int i = 0; i < 300; i++) {
		int group = open("/dev/vfio/1", O_RDWR);
		CHECK(group >= 0);
		FAILS(open("/dev/vfio/1", O_RDWR), EBUSY);
		close(group);
	}
	/* A mapping keeps it. */
	int fd = device(context);
	void *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);
	CHECK(bar != MAP_FAILED);
	close(fd);
	fd = bound(context, &result);
	CHECK(result == -1);
	close(fd);
	munmap(bar, 4096);
	close(device(context));
	/* So does a copy under way to another process. */
	int pair[2];
	CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
	fd = device(context);
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = "";
	struct iovec vec = { &byte, 1 };
	struct msghdr message = { NULL, 0, &vec, 1, control, sizeof(control), 0 };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	CHECK(sendmsg(pair[0], &message, 0) == 1);
	close(fd);
	close(bound(context, &result));
	CHECK(result == -1);
	CHECK(recvmsg(pair[1], &message, 0) == 1);
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	CHECK(ioctl(fd, DEVICE_RESET) == 0);
	close(fd);
	close(device(context));
}

static void paths(char **argv)
{
	char name[64], *folder = argv[2];
	uint64_t how[3] = { O_RDWR, 0, 0 };
	int fd, first = iommu();

	CHECK(alloc(first) == 1 && chdir(folder) == 0);
	unlink("link"), unlink("second");
	CHECK(symlink("/dev/iommu", "link") == 0 && symlink("link", "second") == 0);
	CHECK((fd = open("second", O_RDWR)) >= 0 && alloc(fd) == 1);
	FAILS(open("link", O_RDWR | O_NOFOLLOW), ELOOP);
	int dev = open("/dev", O_PATH);
	CHECK((fd = openat(dev, "iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
	CHECK((fd = openat(dev, "vfio/../iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
	CHECK(chdir("/dev/vfio") == 0);
	CHECK((fd = open("../iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
	CHECK((fd = open("../../../../dev/./iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
	CHECK((fd = open("vfio", O_RDWR)) >= 0 && ioctl(fd, GET_API_VERSION) == 0);
	CHECK((fd = open("/proc/self/root/dev/iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
	CHECK((fd = open("/proc/thread-self/cwd/vfio", O_RDWR)) >= 0 && ioctl(fd, GET_API_VERSION) == 0);
	CHECK((fd = open("/dev/char/10:196", O_RDWR)) >= 0 && ioctl(fd, GET_API_VERSION) == 0);
	sprintf(name, "/proc/self/fd/%d", first);
	CHECK((fd = open(name, O_RDWR)) >= 0 && alloc(fd) == 1 && alloc(first) == 2);
	sprintf(name, "/dev/fd/%d", dup2(first, 200));
	CHECK((fd = open(name, O_RDWR)) >= 0 && alloc(fd) == 1 && alloc(first) == 3);
	CHECK((fd = syscall(SYS_openat2, AT_FDCWD, "/dev/iommu", how, sizeof(how))) >= 0 && alloc(fd) == 1);
	CHECK((fd = creat("/dev/iommu", 0600)) >= 0 && alloc(fd) == 1);
	CHECK((fd = open("/dev/iommu", O_RDONLY)) >= 0 && alloc(fd) == 1);
	FAILS(open("/dev/iommu", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
	FAILS(open("/dev/iommu/", O_RDWR), ENOTDIR);
	FAILS(open("/dev/iommu", O_RDWR | O_DIRECTORY), ENOTDIR);
	FAILS(open("/dev/vfio/2", O_RDWR), ENOENT);
	FAILS(open(nowhere, O_RDWR), EFAULT);
	FAILS(open("", O_RDWR), ENOENT);
	CHECK((fd = open("/dev/iommu", O_PATH)) >= 0);
	FAILS(ioctl(fd, IOMMU_IOAS_ALLOC, how), EBADF);
	CHECK(open("/dev/null", O_RDWR) >= 0 && open("/proc/self/status", O_RDONLY) >= 0);
	/* What Linux lets nobody write, and what it lets root write. */
	FAILS(open("/sys/bus/pci/devices/0000:01:00.0/vendor", O_WRONLY), EACCES);
	if (geteuid() != 0)
		FAILS(open("/sys/bus/pci/drivers/vfio-pci/bind", O_WRONLY), EACCES);
	if (geteuid() == 0 && chroot("/dev") == 0) {
		CHECK((fd = open("/iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
		CHECK((fd = open("/../vfio/../iommu", O_RDWR)) >= 0 && alloc(fd) == 1);
		FAILS(open("/dev/iommu", O_RDWR), ENOENT);
	}
}

static volatile sig_atomic_t ticks;

static void tick(int signal)
{
	(void)signal;
	ticks++;
}

/* With SA_RESTART a call that a signal meets is executed once: ids come without a gap. */
static void signals(void)
{
	struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
	struct itimerval timer = { { 0, 100 }, { 0, 100 } };
	int fd = iommu(), before = 0, met = 0;

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	for (int i = 1; i <= 3000 || met <= 50; i++) {
		CHECK(alloc(fd) == i);
		met += ticks != before;
		before = ticks;
	}
}

static long by_int80(long number, long first, long second, long third)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static void foreign(void)
{
	int fd = iommu(), null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY);
	int pipes[2];

	CHECK(by_int80(54, fd, IOMMU_IOAS_ALLOC, 0) == -ENOTTY);
	CHECK(by_int80(54, null, IOMMU_IOAS_ALLOC, 0) == -ENOTTY);
	CHECK(by_int80(54, 999, IOMMU_IOAS_ALLOC, 0) == -EBADF);
	CHECK(by_int80(20, 0, 0, 0) == getpid());
	CHECK(alloc(fd) == 1);
	/* Commands of our type on files that are not ours are the kernel's. */
	CHECK(zero >= 0 && pipe(pipes) == 0);
	FAILS(ioctl(pipes[0], IOMMU_IOAS_ALLOC, 0), ENOTTY);
	FAILS(ioctl(999, IOMMU_IOAS_ALLOC, 0), EBADF);
	FAILS(pread(null, &fd, 4, -1), EINVAL);
	CHECK(pread(zero, &fd, 4, BAR0) == 4);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, zero, BAR0) != MAP_FAILED);
}

static void accesses(void)
{
	uint32_t word = 0, other = 0;
	uint16_t id = 0;
	int context = iommu(), fd = device(context);
	struct iovec pieces[2] = { { &word, 2 }, { &id, 2 } };

	CHECK(pread(fd, &word, 4, CONFIG) == 4 && word == 0x11e91234);
	CHECK(preadv(fd, pieces, 2, CONFIG) == 4 && (word & 0xffff) == 0x1234 && id == 0x11e9);
	word = 0x12345678;
	CHECK(pwrite(fd, &word, 4, BAR0) == 4 && pread(fd, &other, 4, BAR0) == 4 && other == word);
	volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);
	CHECK(bar != MAP_FAILED && bar[0] == word);
	bar[0] = 7;
	CHECK(pread(fd, &other, 4, BAR0) == 4 && other == 7);
	FAILS(pread(fd, &other, 4, 9ULL << 50), EINVAL);
	FAILS(pread(fd, nowhere, 4, CONFIG), EFAULT);
	FAILS(pwrite(fd, nowhere, 4, BAR0), EFAULT);
	FAILS(pread(context, &other, 4, BAR0), EINVAL);
	FAILS(pread(fd, &other, 4, -5), EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, CONFIG) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, BAR0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 1 << 30, PROT_READ, MAP_SHARED, fd, BAR0) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, context, BAR0) == MAP_FAILED);
}

/* Another open of the file behind `fd`, which nobody is asked about: it can be written. -1 without io_uring. */
static int behind(int fd)
{
	struct ring ring;
	char path[64];

	if (ring_open(&ring))
		return -1;
	sprintf(path, "/proc/self/fd/%d", fd);
	struct io_uring_sqe entry = {
		.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)path, .open_flags = O_RDWR
	};
	int found = ring_do(&ring, entry);
	CHECK(found >= 0);
	close(ring.fd);
	return found;
}

static void await_pages(int fd, volatile uint32_t *bar)
{
	uint32_t word;

	for (int turns = 0; pread(fd, &word, 4, BAR0) != 4; turns++) {
		CHECK(turns < 2000 && errno == EFAULT);
		usleep(5000);
	}
	bar[0] = 0x1234;
	CHECK(pread(fd, &word, 4, BAR0) == 4 && word == 0x1234);
}

/* Whatever is done to the memory we share, the next open and the next call work. */
static void hostile(void)
{
	char page[4096], path[64];
	uint32_t word;
	int context = iommu(), fd = device(context), file = behind(fd);
	volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);

	sprintf(path, "/proc/self/fd/%d", fd);
	bar[0] = 0;
	CHECK(truncate(path, 0) == 0);
	await_pages(fd, bar);
	CHECK(ioctl(fd, DEVICE_RESET) == 0);
	CHECK(pread(fd, &word, 4, CONFIG) == 4 && word == 0x11e91234);
	memset(page, 1, sizeof(page));
	struct ring ring;
	if (ring_open(&ring) == 0) {
		struct io_uring_sqe punch = {
			.opcode = IORING_OP_FALLOCATE, .fd = fd, .off = BAR0, .addr = 4096,
			.len = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
		};
		CHECK(ring_do(&ring, punch) == 0);
		await_pages(fd, bar);
	}
	if (file >= 0) {
		/* Written until there is no room, in both. */
		int other = behind(context);
		off_t at = 0;
		for (int i = 0; i < 100000; i++, at += 4096)
			if (pwrite(i % 2 ? file : other, page, sizeof(page), at) != sizeof(page))
				CHECK(errno == ENOSPC || errno == EFBIG);
	}
	CHECK(setxattr(path, "user.x", "1", 1, 0) == 0 || errno == EOPNOTSUPP);
	CHECK(ioctl(fd, DEVICE_RESET) == 0);
	CHECK(alloc(context) > 0);
	munmap((void *)bar, 4096);
	close(fd);
	/* The news of this close stands behind that of all those changes. */
	int bind;
	for (int turns = 0; fd = bound(context, &bind), bind && turns < 1000; turns++) {
		close(fd);
		usleep(10000);
	}
	CHECK(bind == 0 && pread(fd, &word, 4, BAR0) == 4);
	/* Taking our lock away ends nothing before its time. */
	struct flock lock = { F_UNLCK, SEEK_SET, 0, 0, 0 };
	fcntl(context, F_OFD_SETLK, &lock);
	CHECK(alloc(context) > 1);
}

/* While one process writes all it can to files behind ours, another opens and uses its device. */
static void fill(void)
{
	static char many[1 << 20];
	uint32_t word;
	int status, context = iommu(), file = behind(context);

	if (file < 0)
		return;
	pid_t writer = fork();
	if (writer == 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0)
		for (off_t at = 0;; at = (at + sizeof(many)) % (1L << 32))
			pwrite(file, many, sizeof(many), at);
	for (int i = 0; i < 50; i++) {
		int fd = device(context);
		volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);
		CHECK(bar != MAP_FAILED);
		bar[0] = i;
		CHECK(pread(fd, &word, 4, BAR0) == 4 && word == (uint32_t)i);
		munmap((void *)bar, 4096);
		close(fd);
	}
	kill(writer, SIGKILL);
	CHECK(waitpid(writer, &status, 0) == writer && WIFSIGNALED(status));
}

/* Texts that are kept open take no room from devices, however many one process may open. */
static void texts(void)
{
	struct rlimit limit;
	int fd, status;

	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	do
		fd = open("/sys/bus/pci/devices/0000:01:00.0/config", O_RDONLY);
	while (fd >= 0 && fd < 60000);
	CHECK(fd >= 0 || errno == ENFILE || errno == EMFILE);
	pid_t child = fork();
	if (child == 0) {
		syscall(SYS_close_range, 3, ~0U, 0);
		_exit(device(iommu()) >= 0 ? 0 : 1);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static int ring_read(struct ring *ring, int fd, void *bytes, int length, uint64_t at)
{
	struct io_uring_sqe entry = {
		.opcode = IORING_OP_READ, .fd = fd, .addr = (uintptr_t)bytes, .len = length, .off = at
	};
	return ring_do(ring, entry);
}

/* A read by io_uring, which nobody is asked about, shows what pread shows; a write by it changes nothing. */
static void rings(void)
{
	char asked[4096], unasked[4096];
	uint16_t on = 6, off = 0, seen = 0;
	struct ring ring;
	int fd = device(iommu());

	if (ring_open(&ring))
		return;
	for (int i = 0; i < 3; i++) {
		CHECK(pread(fd, asked, 4096, CONFIG) == 4096);
		CHECK(ring_read(&ring, fd, unasked, 4096, CONFIG) == 4096);
		CHECK(memcmp(asked, unasked, 4096) == 0);
		CHECK(pwrite(fd, i ? &off : &on, 2, CONFIG + 4) == 2);
		CHECK(ring_read(&ring, fd, &seen, 2, CONFIG + 4) == 2 && seen == (i ? off : on));
		if (i == 1)
			CHECK(ioctl(fd, DEVICE_RESET) == 0);
	}
	volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);
	bar[0] = 0xabcd;
	CHECK(ring_read(&ring, fd, &seen, 2, BAR0) == 2 && seen == 0xabcd);
	struct io_uring_sqe entry = {
		.opcode = IORING_OP_WRITE, .fd = fd, .addr = (uintptr_t)&on, .len = 2, .off = CONFIG + 4
	};
	CHECK(ring_do(&ring, entry) == -EFBIG);
	CHECK(pread(fd, &seen, 2, CONFIG + 4) == 2 && seen == off);
	entry.off = BAR0;
	CHECK(ring_do(&ring, entry) == -EFBIG && bar[0] == 0xabcd);
}

static void *call_with_silent_memory(void *page)
{
	FAILS(ioctl(iommu(), IOMMU_IOAS_ALLOC, page), EINVAL);
	return NULL;
}

/* While memory that nobody fills keeps the answers to two calls waiting, others are answered. */
static void silent(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	pthread_t threads[2];
	int context = iommu(), uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0) {
		CHECK(errno == EPERM || errno == ENOSYS);
		return;
	}
	char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = {
		.range = { (uintptr_t)pages, 8192 }, .mode = UFFDIO_REGISTER_MODE_MISSING
	};
	CHECK(ioctl(uffd, UFFDIO_API, &api) == 0 && ioctl(uffd, UFFDIO_REGISTER, &range) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, call_with_silent_memory, pages + 4096 * i) == 0);
	usleep(50000);
	for (int i = 0; i < 100; i++)
		CHECK(alloc(context) > 0);
	struct uffdio_zeropage zero = { .range = range.range };
	CHECK(ioctl(uffd, UFFDIO_ZEROPAGE, &zero) == 0);
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	CHECK(alloc(context) > 0);
}

static void *churn(void *unused)
{
	(void)unused;
	for (int i = 0; i < 100; i++) {
		int fd = iommu();
		CHECK(alloc(fd) == 1 && alloc(fd) == 2);
		close(fd);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t ids[16];

	for (int i = 0; i < 16; i++)
		pthread_create(&ids[i], NULL, churn, NULL);
	for (int i = 0; i < 16; i++)
		pthread_join(ids[i], NULL);
}

/* A descriptor that cannot be given leaves nothing open. */
static void limits(void)
{
	struct rlimit limit = { 16, 4096 };
	int fds[16], count = 0;

	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	while (count < 16 && (fds[count] = open("/dev/null", O_RDWR)) >= 0)
		count++;
	CHECK(count > 0 && errno == EMFILE);
	FAILS(open("/dev/vfio/1", O_RDWR), EMFILE);
	FAILS(open("/dev/iommu", O_RDWR), EMFILE);
	close(fds[0]);
	CHECK(open("/dev/vfio/1", O_RDWR) >= 0);
}

/* A device opened twice through its group is one device with one memory. */
static void group(void)
{
	uint32_t word;
	int container = open("/dev/vfio/vfio", O_RDWR), fd = open("/dev/vfio/1", O_RDWR);

	CHECK(ioctl(fd, GROUP_SET_CONTAINER, &container) == 0 && ioctl(container, SET_IOMMU, 1) == 0);
	int first = ioctl(fd, GROUP_GET_DEVICE_FD, "0000:01:00.0");
	int second = ioctl(fd, GROUP_GET_DEVICE_FD, "0000:01:00.0");
	CHECK(first >= 0 && second > first && fcntl(first, F_GETFD) == FD_CLOEXEC);
	volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, first, BAR0);
	bar[0] = 99;
	CHECK(pread(second, &word, 4, BAR0) == 4 && word == 99);
	munmap((void *)bar, 4096);
	close(first);
	CHECK(pread(second, &word, 4, BAR0) == 4 && word == 99);
	link_is(second, "anon_inode:[vfio-device]");
	char name[32];
	sprintf(name, "/proc/self/fd/%d", second);
	FAILS(open(name, O_RDWR), ENXIO);
	close(second);
	close(fd);
	CHECK((fd = open("/dev/vfio/1", O_RDWR)) >= 0);
}

/* A fault queue can be read, written and polled, and is closed with its last descriptor. */
static void queue(void)
{
	uint32_t cmd[4] = { sizeof(cmd) }, destroy[2] = { sizeof(destroy) };
	char bytes[80]; /* two records */
	int context = iommu();

	CHECK(ioctl(context, IOMMU_FAULT_QUEUE_ALLOC, cmd) == 0);
	int fd = cmd[3], copy;
	struct pollfd polled = { fd, POLLIN | POLLOUT, 0 };
	CHECK(fd > 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	CHECK(poll(&polled, 1, 0) == 1 && polled.revents == POLLOUT);
	CHECK(read(fd, bytes, sizeof(bytes)) == 0);
	struct iovec piece = { bytes, sizeof(bytes) };
	CHECK(readv(fd, &piece, 1) == 0);
	FAILS(write(fd, bytes, 3), ESPIPE);
	link_is(fd, "anon_inode:[iommufd-pgfault]");
	destroy[1] = cmd[2];
	FAILS(ioctl(context, IOMMU_DESTROY, destroy), EBUSY);
	CHECK((copy = fcntl(fd, F_DUPFD, fd - 1)) >= 0);
	close(fd);
	FAILS(ioctl(context, IOMMU_DESTROY, destroy), EBUSY);
	close(copy);
	CHECK(ioctl(context, IOMMU_DESTROY, destroy) == 0);
	for (int i = 0; i < 64; i++)
		CHECK(ioctl(context, IOMMU_FAULT_QUEUE_ALLOC, cmd) == 0);
	int pipes[2];
	CHECK(pipe(pipes) == 0 && write(pipes[1], "through", 7) == 7 && read(pipes[0], bytes, 80) == 7);
}

/* Waits for its supervisor to be killed: then the device is gone as after surprise removal, and nothing else is. */
static void gone(void)
{
	struct { uint32_t head[5]; int32_t fd; } set = { { 24, 4 | 32, 3, 0, 1 }, -1 };
	uint32_t word;
	int context = iommu(), fd = device(context);
	int error = eventfd(0, 0), request = eventfd(0, 0);
	volatile uint32_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);

	set.fd = error;
	CHECK(ioctl(fd, DEVICE_SET_IRQS, &set) == 0);
	set.head[2] = 4;
	set.fd = request;
	CHECK(ioctl(fd, DEVICE_SET_IRQS, &set) == 0);
	puts("ready");
	fflush(stdout);
	struct pollfd both[2] = { { error, POLLIN, 0 }, { request, POLLIN, 0 } };
	CHECK(poll(&both[0], 1, 20000) == 1 && poll(&both[1], 1, 20000) == 1);
	CHECK(bar[0] == 0xffffffff && bar[1023] == 0xffffffff);
	FAILS(alloc(context), ENODEV);
	FAILS(ioctl(fd, DEVICE_RESET), ENODEV);
	FAILS(pread(fd, &word, 4, CONFIG), ENODEV);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, BAR0) == MAP_FAILED && errno == ENODEV);
	FAILS(open("/dev/vfio/vfio", O_RDWR), ENODEV);
	CHECK(open("/etc/passwd", O_RDONLY) >= 0);
	FAILS(open("/no/such/file", O_RDONLY), ENOENT);
	FAILS(ioctl(0, IOMMU_IOAS_ALLOC, 0), ENOTTY);
	/* Other files have all their calls, also in a process that nobody may look at. */
	int other = memfd_create("other", 0);
	for (int hidden = 0; hidden < 2; hidden++) {
		CHECK(ftruncate(other, 8192) == 0 && fsync(other) == 0 && lseek(other, 0, SEEK_END) == 8192);
		CHECK(fcntl(other, F_SETFL, O_APPEND) == 0 && (fcntl(other, F_GETFL) & O_APPEND));
		char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
		CHECK(page != MAP_FAILED && madvise(page, 4096, MADV_REMOVE) == 0);
		page = mremap(page, 4096, 8192, MREMAP_MAYMOVE);
		CHECK(page != MAP_FAILED);
		page[4096] = 1;
		pid_t child = fork();
		if (child == 0)
			execl("/bin/true", "true", (char *)NULL);
		int status;
		CHECK(waitpid(child, &status, 0) == child && status == 0);
		CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
	}
}

/* A process that forbids others of its user to look at it is served all the same. */
static void hidden(void)
{
	CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
	accesses();
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "executed"))
		return alloc(atoi(argv[2]));
	if (!strcmp(what, "look"))
		look();
	else if (!strcmp(what, "copies"))
		copies(argv);
	else if (!strcmp(what, "closes"))
		closes();
	else if (!strcmp(what, "paths"))
		paths(argv);
	else if (!strcmp(what, "signals"))
		signals();
	else if (!strcmp(what, "foreign"))
		foreign();
	else if (!strcmp(what, "accesses"))
		accesses();
	else if (!strcmp(what, "hostile"))
		hostile();
	else if (!strcmp(what, "fill"))
		fill();
	else if (!strcmp(what, "texts"))
		texts();
	else if (!strcmp(what, "rings"))
		rings();
	else if (!strcmp(what, "silent"))
		silent();
	else if (!strcmp(what, "threads"))
		threads();
	else if (!strcmp(what, "limits"))
		limits();
	else if (!strcmp(what, "group"))
		group();
	else if (!strcmp(what, "queue"))
		queue();
	else if (!strcmp(what, "hidden"))
		hidden();
	else if (!strcmp(what, "gone"))
		gone();
	else
		return 2;
	puts("ok");
	return 0;
}
