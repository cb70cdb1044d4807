/* What the kernel checks before a driver's read, write or mmap, on a testdev. argv[1] says what to try; the first thing that is wrong is printed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "check.h"

/* linux/vfio.h, linux/fs.h */
#define GROUP_SET_CONTAINER 0x3b68
#define SET_IOMMU 0x3b66
#define GROUP_GET_DEVICE_FD 0x3b6a
#define DEVICE_BIND_IOMMUFD 0x3b76
#define HIPRI 1
#define NOWAIT 8
#define BAR0 (1ULL << 40)
#define BAR_SIZE 4096
#define CONFIG (7ULL << 40)
#define COMMAND (CONFIG + 4)
#define LINE (CONFIG + 0x3c)

static char page[4096];
static const char *unreachable = (const char *)-4096;

static int opened(int mode)
{
	uint32_t bind[4] = { sizeof(bind), 0, open("/dev/iommu", O_RDWR), 0 };
	int fd = open("/dev/vfio/devices/vfio0", mode);
	CHECK(fd >= 0 && ioctl(fd, DEVICE_BIND_IOMMUFD, bind) == 0);
	return fd;
}

static uint8_t line(int fd)
{
	uint8_t byte = 0xee;
	CHECK(pread(fd, &byte, 1, LINE) == 1);
	return byte;
}

/* The access mode of the open counts, and is looked at before everything else. */
static void access_mode(void)
{
	struct iovec piece = { page, 1 }, bad = { page, -1 };
	int fd = opened(O_RDONLY);

	page[0] = 0x77;
	FAILS(pwrite(fd, page, 1, LINE), EBADF);
	FAILS(pwritev(fd, &piece, 1, LINE), EBADF);
	FAILS(pwritev2(fd, &bad, 1, LINE, NOWAIT), EBADF);
	FAILS(pwrite(fd, unreachable, 1, LINE), EBADF);
	FAILS(pwrite(fd, page, 1, 99ULL << 50), EBADF);
	CHECK(line(fd) == 0);
	close(fd);
	fd = opened(O_WRONLY);
	FAILS(pread(fd, page, 1, LINE), EBADF);
	FAILS(preadv(fd, &piece, 1, LINE), EBADF);
	FAILS(pread(fd, page, 1, CONFIG + 4096), EBADF);
	page[0] = 0x12;
	CHECK(pwrite(fd, page, 1, LINE) == 1);
	/* A group, a container and an iommufd have neither read nor write. */
	int readable = open("/dev/iommu", O_RDONLY), writable = open("/dev/vfio/vfio", O_WRONLY);
	FAILS(pread(readable, page, 1, BAR0), EINVAL);
	FAILS(pwrite(readable, page, 1, BAR0), EBADF);
	FAILS(pwrite(writable, page, 1, BAR0), EINVAL);
	FAILS(pread(writable, page, 1, BAR0), EBADF);
	FAILS(preadv(writable, (void *)unreachable, 5000, BAR0), EBADF);
	FAILS(pwritev(writable, (void *)unreachable, 5000, BAR0), EINVAL);
}

static void vectors(void)
{
	struct iovec pieces[3] = { { page, 1 }, { page + 1, -1 }, { (void *)unreachable, 1 } };
	struct iovec many[1025] = { { page, 0 } };
	char bytes[8] = { 0 };
	int fd = opened(O_RDWR);

	FAILS(preadv(fd, pieces, 2, CONFIG), EINVAL);
	FAILS(preadv(fd, pieces, 3, CONFIG), EINVAL);
	FAILS(preadv(fd, many, 1025, CONFIG), EINVAL);
	CHECK(preadv(fd, many, 1024, CONFIG) == 0);
	CHECK(preadv(fd, (void *)unreachable, 0, CONFIG) == 0);
	FAILS(preadv(fd, (void *)unreachable, 1, CONFIG), EFAULT);
	/* All pieces are looked at before the first one moves. */
	pieces[1] = pieces[2];
	memset(page, 0x5a, 4);
	FAILS(preadv(fd, pieces, 2, CONFIG), EFAULT);
	CHECK(page[0] == 0x5a);
	/* What is wrong with an earlier piece is told before a vector's unreadable rest. */
	char *edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(edge + 4096, 4096);
	struct iovec *last = (struct iovec *)(edge + 4096) - 1;
	*last = (struct iovec){ page, -1 };
	FAILS(preadv(fd, last, 2, CONFIG), EINVAL);
	*last = (struct iovec){ page, 1 };
	FAILS(preadv(fd, last, 2, CONFIG), EFAULT);
	/* Flags matter to what moves. */
	pieces[1] = (struct iovec){ bytes, 2 };
	FAILS(preadv2(fd, pieces, 2, CONFIG, NOWAIT), EOPNOTSUPP);
	FAILS(pwritev2(fd, pieces, 2, LINE, 0x80), EOPNOTSUPP);
	FAILS(preadv2(fd, pieces, 2, CONFIG, 1 << 30), EOPNOTSUPP);
	CHECK(preadv2(fd, pieces, 2, CONFIG, HIPRI) == 3);
	CHECK((page[0] & 0xff) == 0x34 && (bytes[0] & 0xff) == 0x12 && (bytes[1] & 0xff) == 0xe9);
	CHECK(preadv2(fd, many, 2, CONFIG, NOWAIT) == 0);
	/* A piece past the end ends the call after what went before. */
	pieces[0] = (struct iovec){ page, 4 };
	pieces[1] = (struct iovec){ bytes, 4 };
	CHECK(preadv(fd, pieces, 2, CONFIG + 4092) == 4);
}

static void bounds(void)
{
	uint64_t word = 0;
	int fd = opened(O_RDWR), on = 6;

	CHECK(pwrite(fd, &on, 2, COMMAND) == 2);
	/* Nothing is done for a buffer that can be no program's. */
	FAILS(pread(fd, unreachable + 4095, 4, BAR0), EFAULT);
	FAILS(pwrite(fd, page, 1ULL << 62, BAR0), EFAULT);
	FAILS(pread(fd, page, -1, BAR0), EFAULT);
	FAILS(syscall(SYS_pread64, fd, 0, 1ULL << 63, BAR0), EFAULT);
	FAILS(pread(fd, page, 1, INT64_MAX), EINVAL);
	FAILS(pread(fd, page, 4, INT64_MAX - 1), EINVAL);
	FAILS(pread(fd, page, 1, INT64_MIN), EINVAL);
	FAILS(pread(999, page, 1, INT64_MIN), EINVAL);
	FAILS(pread(999, page, 1, BAR0), EBADF);
	CHECK(pread(fd, NULL, 0, BAR0) == 0 && pwrite(fd, NULL, 0, 99ULL << 50) == 0);
	/* A count past the end of a BAR is cut, whatever the buffer has room for. */
	char *edge = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(edge + 4096, 4096);
	CHECK(pread(fd, edge, 1 << 20, BAR0) == BAR_SIZE);
	memset(edge, 0, 4096);
	CHECK(pwrite(fd, edge, 1 << 20, BAR0) == BAR_SIZE);
	CHECK(pwrite(fd, edge + 4088, 1 << 20, BAR0 + BAR_SIZE - 8) == 8);
	FAILS(pread(fd, page, 1 << 20, BAR0 + BAR_SIZE), EINVAL);
	/* The registers before an unreadable byte are written, and the call fails. */
	memset(edge + 4080, 0x11, 16);
	FAILS(pwrite(fd, edge + 4084, 32, BAR0), EFAULT);
	CHECK(pread(fd, &word, 8, BAR0) == 8 && word == 0x1111111111111111);
	CHECK(pread(fd, &word, 8, BAR0 + 8) == 8 && (uint32_t)word != 0x11111111);
	FAILS(pread(fd, edge + 4092, 8, BAR0), EFAULT);
	/* Configuration space ends for all of an access or none. */
	FAILS(pread(fd, page, 1 << 20, CONFIG), EFAULT);
	FAILS(pwrite(fd, page, 5, CONFIG + 4092), EFAULT);
}

#define MAPS(length, protection, flags, fd, at) mmap(NULL, length, protection, flags, fd, at)
#define NO_MAP(length, protection, flags, fd, at, number) \
	CHECK(MAPS(length, protection, flags, fd, at) == MAP_FAILED && errno == (number))
#define RW (PROT_READ | PROT_WRITE)

static void maps(void)
{
	int fd = opened(O_RDONLY);

	NO_MAP(4096, RW, MAP_SHARED, fd, BAR0, EACCES);
	NO_MAP(4096, PROT_READ, MAP_SHARED, fd, BAR0, EINVAL);
	NO_MAP(4096, PROT_READ, MAP_PRIVATE, fd, BAR0, EINVAL);
	close(fd);
	fd = opened(O_WRONLY);
	NO_MAP(4096, PROT_WRITE, MAP_SHARED, fd, BAR0, EACCES);
	NO_MAP(4096, PROT_NONE, MAP_PRIVATE, fd, BAR0, EACCES);
	close(fd);
	fd = opened(O_RDWR);
	NO_MAP(0, RW, MAP_SHARED, fd, BAR0, EINVAL);
	NO_MAP(0, RW, MAP_SHARED_VALIDATE | MAP_SYNC, fd, BAR0, EINVAL);
	NO_MAP(4096, RW, MAP_SHARED_VALIDATE | MAP_SYNC, fd, BAR0, EOPNOTSUPP);
	NO_MAP(4096, RW, MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, fd, CONFIG, EOPNOTSUPP);
	NO_MAP(4096, RW, 0, fd, BAR0, EINVAL);
	NO_MAP(4096, RW, MAP_SHARED | MAP_HUGETLB, fd, BAR0, EINVAL);
	NO_MAP(-1UL, RW, MAP_SHARED, fd, BAR0, ENOMEM);
	NO_MAP(1UL << 62, RW, MAP_SHARED, fd, BAR0, ENOMEM);
	NO_MAP(8192, RW, MAP_SHARED, fd, -4096UL, EOVERFLOW);
	CHECK(syscall(SYS_mmap, 0, 4096, RW, MAP_SHARED, fd, BAR0 + 1) == -1 && errno == EINVAL);
	NO_MAP(4096, RW, MAP_SHARED, 999, BAR0, EBADF);
	NO_MAP(4096, RW, MAP_SHARED, fd, 0, EINVAL);
	CHECK(MAPS(4096, RW, MAP_SHARED_VALIDATE | MAP_POPULATE, fd, BAR0) != MAP_FAILED);
	CHECK(MAPS(4096, RW, MAP_SHARED | MAP_SYNC, fd, BAR0) != MAP_FAILED);
	CHECK(MAPS(1, PROT_NONE, MAP_SHARED, fd, BAR0) != MAP_FAILED);
	/* Neither a container nor a group has mmap; an iommufd has, and nothing in it. */
	int container = open("/dev/vfio/vfio", O_RDWR), read_only = open("/dev/vfio/vfio", O_RDONLY);
	int iommu = open("/dev/iommu", O_RDWR);
	for (int far = 0; far < 2; far++) {
		NO_MAP(4096, RW, MAP_SHARED, container, far * BAR0, ENODEV);
		NO_MAP(4096, RW, MAP_SHARED, read_only, far * BAR0, EACCES);
		NO_MAP(4096, RW, MAP_SHARED, iommu, far * BAR0, ENXIO);
		NO_MAP(4096, RW | PROT_EXEC, MAP_SHARED, iommu, far * BAR0, EPERM);
	}
	NO_MAP(4096, RW, MAP_PRIVATE, container, BAR0, ENODEV);
	NO_MAP(4096, RW, MAP_PRIVATE, iommu, BAR0, EINVAL);
}

/* A group's device is an anonymous inode: it holds no code. Other programs' files are mapped as before. */
static void others(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);

	NO_MAP(4096, RW, MAP_SHARED, group, 0, ENODEV);
	CHECK(ioctl(group, GROUP_SET_CONTAINER, &container) == 0 && ioctl(container, SET_IOMMU, 1) == 0);
	int fd = ioctl(group, GROUP_GET_DEVICE_FD, "0000:01:00.0");
	CHECK(fd >= 0);
	NO_MAP(4096, RW | PROT_EXEC, MAP_SHARED, fd, BAR0, EPERM);
	NO_MAP(4096, RW | PROT_EXEC, MAP_SHARED, fd, CONFIG, EPERM);
	CHECK(MAPS(4096, RW, MAP_SHARED, fd, BAR0) != MAP_FAILED);
	int memory = memfd_create("memory", 0);
	CHECK(ftruncate(memory, 4096) == 0);
	char *seen = MAPS(4096, RW, MAP_SHARED, memory, 0);
	CHECK(seen != MAP_FAILED && pwrite(memory, "x", 1, 0) == 1 && seen[0] == 'x');
	NO_MAP(0, RW, MAP_SHARED, memory, 0, EINVAL);
	NO_MAP(4096, RW, MAP_SHARED, 999, 0, EBADF);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "access"))
		access_mode();
	else if (!strcmp(what, "vectors"))
		vectors();
	else if (!strcmp(what, "bounds"))
		bounds();
	else if (!strcmp(what, "maps"))
		maps();
	else if (!strcmp(what, "others"))
		others();
	else
		return 2;
	puts("ok");
	return 0;
}
