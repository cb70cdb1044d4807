/* What stat(2) says of the device nodes, and what stays when somebody changes it. Usage: nodes PART; "numbers" where nodes
 * have them, "kept" for who owns the nodes, "placeholders" where nodes have no numbers. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"

#define LIST "system.posix_acl_access"

static const struct { const char *node, *number; unsigned mode; } nodes[] = {
	{ "/dev/vfio/vfio", "/sys/class/misc/vfio/dev", 0666 },
	{ "/dev/iommu", "/sys/class/misc/iommu/dev", 0660 },
	{ "/dev/vfio/1", "/sys/class/vfio/1/dev", 0600 },
	{ "/dev/vfio/2", "/sys/class/vfio/2/dev", 0600 },
	{ "/dev/vfio/devices/vfio0", "/sys/class/vfio-dev/vfio0/dev", 0600 },
	{ "/dev/vfio/devices/vfio1", "/sys/class/vfio-dev/vfio1/dev", 0600 },
};
enum { NODES = sizeof nodes / sizeof *nodes };

static dev_t number(const char *path)
{
	unsigned major, minor;
	FILE *file = fopen(path, "r");
	CHECK(file && fscanf(file, "%u:%u", &major, &minor) == 2);
	fclose(file);
	return makedev(major, minor);
}

static int same(const struct stat *one, const struct stat *other)
{
	return one->st_dev == other->st_dev && one->st_ino == other->st_ino && one->st_mode == other->st_mode &&
	       one->st_uid == other->st_uid && one->st_gid == other->st_gid && one->st_rdev == other->st_rdev &&
	       one->st_mtim.tv_sec == other->st_mtim.tv_sec && one->st_mtim.tv_nsec == other->st_mtim.tv_nsec;
}

static void numbers(void)
{
	struct stat stat_, other;
	struct statx statx_;
	char link[64];
	for (int i = 0; i < NODES; i++) {
		dev_t expected = number(nodes[i].number);
		CHECK(lstat(nodes[i].node, &stat_) == 0 && S_ISCHR(stat_.st_mode) && stat_.st_rdev == expected);
		CHECK((stat_.st_mode & 07777) == nodes[i].mode && stat_.st_uid == geteuid() && stat_.st_gid == getegid());
		CHECK(statx(AT_FDCWD, nodes[i].node, 0, STATX_ALL, &statx_) == 0);
		CHECK(makedev(statx_.stx_rdev_major, statx_.stx_rdev_minor) == expected && statx_.stx_ino == stat_.st_ino);
		/* By udev's link, by a path alone, and as an open file: all is one. */
		sprintf(link, "/dev/char/%u:%u", major(expected), minor(expected));
		CHECK(stat(link, &other) == 0 && same(&stat_, &other));
		int fd = open(nodes[i].node, O_PATH);
		CHECK(fd >= 0 && fstat(fd, &other) == 0 && same(&stat_, &other) && close(fd) == 0);
		fd = open(nodes[i].node, O_RDWR);
		CHECK(fd >= 0 && fstat(fd, &other) == 0 && same(&stat_, &other));
		CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_ALL, &statx_) == 0 && statx_.stx_ino == stat_.st_ino);
		CHECK(close(fd) == 0 && access(nodes[i].node, R_OK | W_OK) == 0);
	}
}

/* Mode, owner, times and access control list, by path and by an open file. */
static void kept(void)
{
	struct stat stat_, other;
	struct timespec times[2] = { { 1, 2 }, { 1000000000, 5 } };
	char list[64];
	struct { uint32_t version; struct { uint16_t tag, perm; uint32_t id; } entries[5]; } more = { 2, {
		{ 0x01, 6, -1 }, { 0x02, 6, geteuid() }, { 0x04, 0, -1 }, { 0x10, 6, -1 }, { 0x20, 0, -1 } } };
	for (int i = 0; i < NODES; i++) {
		const char *node = nodes[i].node;
		int fd = open(node, O_RDWR);
		CHECK(fd >= 0 && chmod(node, 0640) == 0 && chown(node, geteuid(), getegid()) == 0);
		CHECK(utimensat(AT_FDCWD, node, times, 0) == 0 && stat(node, &stat_) == 0 && fstat(fd, &other) == 0);
		CHECK((stat_.st_mode & 07777) == 0640 && stat_.st_mtim.tv_sec == 1000000000 && stat_.st_mtim.tv_nsec == 5);
		CHECK(stat_.st_atim.tv_sec == 1 && stat_.st_atim.tv_nsec == 2 && same(&stat_, &other));
		CHECK(S_ISCHR(stat_.st_mode) && stat_.st_rdev == number(nodes[i].number));
		FAILS(getxattr(node, LIST, list, sizeof list), ENODATA);
		CHECK(setxattr(node, LIST, &more, sizeof more, 0) == 0);
		CHECK(getxattr(node, LIST, list, sizeof list) == sizeof more && memcmp(list, &more, sizeof more) == 0);
		CHECK(listxattr(node, NULL, 0) == sizeof LIST && listxattr(node, list, sizeof list) == sizeof LIST);
		CHECK(strcmp(list, LIST) == 0 && stat(node, &stat_) == 0 && (stat_.st_mode & 07777) == 0660);
		CHECK(chmod(node, 0600) == 0 && getxattr(node, LIST, list, sizeof list) == sizeof more);
		CHECK(list[4 + 3 * 8 + 2] == 0 && removexattr(node, LIST) == 0 && listxattr(node, NULL, 0) == 0);
		CHECK(close(fd) == 0);
	}
}

#ifndef AT_STATX_DONT_SYNC
#define AT_STATX_DONT_SYNC 0x4000
#endif

/* A text of /proc of an open file of ours. */
static const char *info(int fd)
{
	static char path[64], text[4096];
	sprintf(path, "/proc/self/fdinfo/%d", fd);
	int file = open(path, O_RDONLY);
	CHECK(file >= 0);
	ssize_t length = read(file, text, sizeof text - 1);
	CHECK(length > 0 && close(file) == 0);
	text[length] = 0;
	return text;
}

/* Who looks for the holders of a node, through /proc, as fuser does. */
static void held(void)
{
	struct statx of_node, behind, link;
	char path[64], syspath[PATH_MAX];
	CHECK(realpath("/sys/bus/pci/devices/0000:01:00.0", syspath));
	for (int i = 0; i < NODES; i++) {
		int fd = open(nodes[i].node, O_RDWR), flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT;
		sprintf(path, "/proc/%d/fd/%d", getpid(), fd);
		CHECK(fd >= 0 && statx(0, nodes[i].node, flags, STATX_INO, &of_node) == 0);
		CHECK(statx(0, path, flags, STATX_INO, &behind) == 0);
		CHECK(S_ISCHR(behind.stx_mode));
		CHECK(behind.stx_ino == of_node.stx_ino && behind.stx_dev_minor == of_node.stx_dev_minor);
		CHECK(behind.stx_rdev_major == of_node.stx_rdev_major && behind.stx_rdev_minor == of_node.stx_rdev_minor);
		CHECK(statx(0, path, flags | AT_SYMLINK_NOFOLLOW, STATX_INO, &link) == 0 && S_ISLNK(link.stx_mode));
		CHECK(statx(0, "/etc/passwd", flags, STATX_INO, &link) == 0 && S_ISREG(link.stx_mode));
		/* At its start, not appending, and a device says where it is in /sys. */
		CHECK(strstr(info(fd), "pos:\t0\nflags:\t0100002\n") && strstr(info(fd), "mnt_id:"));
		const char *said = strstr(info(fd), "vfio-device-syspath: ");
		CHECK(!said == !strstr(nodes[i].node, "devices"));
		if (strcmp(nodes[i].node, "/dev/vfio/devices/vfio0") == 0)
			CHECK(strncmp(said + 21, syspath, strlen(syspath)) == 0 && said[21 + strlen(syspath)] == '\n');
		CHECK(close(fd) == 0);
	}
	/* Through its group, a device is no node's, and says the same. */
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	CHECK(ioctl(group, _IO(';', 104), &container) == 0 && ioctl(container, _IO(';', 102), 3) == 0);
	int device = ioctl(group, _IO(';', 106), "0000:01:00.0");
	CHECK(device >= 0 && strstr(info(device), syspath));
	sprintf(path, "/proc/self/fd/%d", device);
	CHECK(statx(0, path, AT_STATX_DONT_SYNC, STATX_INO, &behind) == 0 && (behind.stx_mode & S_IFMT) == 0);
	/* Other files have their own texts. */
	int other = open("/etc/passwd", O_RDONLY);
	CHECK(lseek(other, 5, SEEK_SET) == 5 && strstr(info(other), "pos:\t5\n") && close(other) == 0);
}

static void placeholders(void)
{
	struct stat stat_;
	for (int i = 0; i < NODES; i++) {
		CHECK(stat(nodes[i].node, &stat_) == 0 && S_ISCHR(stat_.st_mode) && stat_.st_rdev == 0);
		CHECK((stat_.st_mode & 07777) == nodes[i].mode && stat_.st_uid == geteuid());
		int fd = open(nodes[i].node, O_RDWR);
		CHECK(fd >= 0 && fstat(fd, &stat_) == 0 && stat_.st_rdev == number(nodes[i].number) && close(fd) == 0);
	}
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	if (strcmp(argv[1], "numbers") == 0)
		numbers();
	else if (strcmp(argv[1], "kept") == 0)
		kept();
	else if (strcmp(argv[1], "held") == 0)
		held();
	else if (strcmp(argv[1], "placeholders") == 0)
		placeholders();
	else
		return 2;
	puts("ok");
	return 0;
}
