/* Device nodes that a program makes itself. Usage: mknod PART FOLDER; "root" is run by root of the host, "machine" by
 * root of the machine alone, "plain" by anybody else. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/capability.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
#define SYSFS "/sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0/dev"
enum { GROUP_MAJOR = 242, DAC_OVERRIDE = 1, MKNOD = 27 };

static dev_t own_number(void)
{
	unsigned major, minor;
	FILE *file = fopen(SYSFS, "r");
	CHECK(file && fscanf(file, "%u:%u", &major, &minor) == 2);
	fclose(file);
	return makedev(major, minor);
}

static int opened(const char *path, int flags)
{
	int fd = open(path, flags);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

/* A node of each number is the device; SHOWN is whether stat says the number. */
static void is_the_device(int shown)
{
	dev_t numbers[] = { makedev(10, 196), makedev(10, 126), makedev(GROUP_MAJOR, 1), own_number() };
	struct stat stat_;
	for (int i = 0; i < 4; i++) {
		CHECK(mknod("node", S_IFCHR | 0600, numbers[i]) == 0);
		CHECK(stat("node", &stat_) == 0 && S_ISCHR(stat_.st_mode) && (stat_.st_mode & 0777) == 0600);
		CHECK(stat_.st_rdev == (shown ? numbers[i] : 0) && stat_.st_uid == geteuid());
		int fd = open("node", O_RDWR);
		CHECK(fd >= 0 && fstat(fd, &stat_) == 0 && stat_.st_rdev == numbers[i]);
		CHECK(i != 0 || ioctl(fd, VFIO(0x64)) == 0);
		close(fd);
		CHECK(rename("node", "renamed") == 0 && link("renamed", "linked") == 0);
		CHECK(opened("renamed", O_RDWR) == 0 && opened("linked", O_RDONLY) == 0 && opened("node", O_RDWR) == ENOENT);
		CHECK(chmod("linked", 0) == 0 && unlink("renamed") == 0);
		CHECK(unlink("linked") == 0);
		/* What comes in its place is something else. */
		fd = open("linked", O_RDWR | O_CREAT, 0600);
		CHECK(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0);
		CHECK(opened("linked", O_RDONLY) == 0 && stat("linked", &stat_) == 0 && stat_.st_size == 1);
		CHECK(unlink("linked") == 0);
	}
}

static void lose(int capability)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	CHECK(syscall(SYS_capget, &head, data) == 0);
	data[0].effective &= ~(1u << capability);
	CHECK(syscall(SYS_capset, &head, data) == 0);
}

static void rules(void)
{
	int folder = open(".", O_RDONLY | O_DIRECTORY);
	struct stat stat_;
	dev_t vfio = makedev(10, 196);
	CHECK(mkdir("inner", 0700) == 0 && mknodat(folder, "inner/node", S_IFCHR | 0600, vfio) == 0);
	CHECK(opened("inner/node", O_RDWR) == 0);
	FAILS(mknod("inner/node", S_IFCHR | 0600, vfio), EEXIST);
	FAILS(mknod("none/node", S_IFCHR | 0600, vfio), ENOENT);
	CHECK(unlink("inner/node") == 0);
	umask(027);
	CHECK(mknod("inner/node", S_IFCHR | 0666, vfio) == 0 && stat("inner/node", &stat_) == 0);
	CHECK((stat_.st_mode & 0777) == 0640 && unlink("inner/node") == 0);
	CHECK(chmod("inner", 0500) == 0);
	lose(DAC_OVERRIDE);
	FAILS(mknod("inner/node", S_IFCHR | 0600, vfio), EACCES);
	CHECK(rmdir("inner") == 0);
	lose(MKNOD);
	FAILS(mknod("node", S_IFCHR | 0600, vfio), EPERM);
}

int main(int argc, char **argv)
{
	CHECK(argc == 3 && chdir(argv[2]) == 0);
	umask(0);
	if (strcmp(argv[1], "root") == 0) {
		is_the_device(1);
		/* Another number is nobody's, and a block device is another thing. */
		CHECK(mknod("node", S_IFCHR | 0600, makedev(10, 254)) == 0 && opened("node", O_RDWR) != 0 && unlink("node") == 0);
		CHECK(mknod("node", S_IFBLK | 0600, makedev(10, 196)) == 0 && opened("node", O_RDWR) != 0 && unlink("node") == 0);
		rules();
	} else if (strcmp(argv[1], "machine") == 0) {
		is_the_device(0);
		FAILS(mknod("node", S_IFCHR | 0600, makedev(10, 254)), EPERM);
		FAILS(mknod("node", S_IFBLK | 0600, makedev(10, 196)), EPERM);
		rules();
	} else {
		FAILS(mknod("node", S_IFCHR | 0600, makedev(10, 196)), EPERM);
	}
	puts("ok");
	return 0;
}
