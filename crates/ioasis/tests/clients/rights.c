/* Who may open which node. Usage: rights PART; "root" is run by root, the others by anybody. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
enum { NOBODY = 65534, GROUP = 1234, ALL = -1 };
enum { DAC_OVERRIDE = 1, DAC_READ_SEARCH = 2 };

#define CONTAINER "/dev/vfio/vfio"
#define NODE "/dev/vfio/1"

static char folder[64], path[128];

/* errno of an open, 0 if it succeeds. */
static int opened(const char *file, int flags)
{
	int fd = open(file, flags, 0600);
	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

static void have(uint64_t capabilities)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { capabilities, capabilities, 0 },
						  { capabilities >> 32, capabilities >> 32, 0 } };
	CHECK(syscall(SYS_capset, &head, data) == 0);
}

/* Who opens something: a user, its group, one supplementary group or none, its capabilities. */
struct who { unsigned uid, gid; int group; uint64_t capabilities; };

static const struct who nobody = { NOBODY, NOBODY, -1, 0 };
static const struct who root_without = { 0, 0, -1, 0 };

static void become(struct who who)
{
	gid_t groups[] = { who.group };
	CHECK(setgroups(who.group >= 0, groups) == 0 && setresgid(who.gid, who.gid, who.gid) == 0);
	CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0 && setresuid(who.uid, who.uid, who.uid) == 0);
	have(who.capabilities);
}

/* errno of an open by somebody else. */
static int by(struct who who, const char *file, int flags)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		become(who);
		_exit(opened(file, flags));
	}
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void modes(void)
{
	struct who member = nobody, first = nobody, overriding = nobody, reading = nobody;
	member.group = first.gid = GROUP;
	overriding.capabilities = 1 << DAC_OVERRIDE;
	reading.capabilities = 1 << DAC_READ_SEARCH;
	CHECK(by(nobody, CONTAINER, O_RDWR) == 0);
	CHECK(by(nobody, NODE, O_RDWR) == EACCES && by(nobody, NODE, O_RDONLY) == EACCES);
	CHECK(by(nobody, "/dev/vfio/devices/vfio0", O_RDWR) == EACCES && by(nobody, "/dev/iommu", O_RDWR) == EACCES);
	CHECK(by(overriding, NODE, O_RDWR) == 0);
	CHECK(by(reading, NODE, O_RDONLY) == 0 && by(reading, NODE, O_RDWR) == EACCES);
	CHECK(by(root_without, NODE, O_RDWR) == 0);
	CHECK(chown(NODE, 0, GROUP) == 0 && chmod(NODE, 0060) == 0);
	CHECK(by(nobody, NODE, O_RDWR) == EACCES && by(root_without, NODE, O_RDWR) == EACCES);
	CHECK(by(member, NODE, O_RDWR) == 0 && by(first, NODE, O_RDWR) == 0);
	CHECK(chmod(NODE, 0040) == 0);
	CHECK(by(member, NODE, O_RDONLY) == 0 && by(member, NODE, O_RDWR) == EACCES && by(member, NODE, O_WRONLY) == EACCES);
	CHECK(by(member, NODE, O_RDONLY | O_TRUNC) == EACCES && by(member, NODE, 3) == EACCES);
	CHECK(by(member, NODE, O_RDONLY | O_NOATIME) == EPERM && opened(NODE, O_RDONLY | O_NOATIME) == 0);
	CHECK(chown(NODE, NOBODY, 0) == 0 && chmod(NODE, 0200) == 0);
	CHECK(by(nobody, NODE, O_WRONLY) == 0 && by(nobody, NODE, O_WRONLY | O_NOATIME) == 0);
	CHECK(by(nobody, NODE, O_RDONLY) == EACCES);
	CHECK(chmod(NODE, 0) == 0 && opened(NODE, O_RDWR) == 0);
	CHECK(by(root_without, NODE, O_RDWR) == EACCES);
	CHECK(chown(NODE, 0, 0) == 0 && chmod(NODE, 0600) == 0);
}

/* An access control list that lets one user more read and write (linux/posix_acl_xattr.h). */
static void lists(void)
{
	struct { uint32_t version; struct { uint16_t tag, perm; uint32_t id; } entries[5]; } list = { 2, {
		{ 0x01, 6, -1 }, { 0x02, 6, NOBODY }, { 0x04, 0, -1 }, { 0x10, 6, -1 }, { 0x20, 0, -1 } } };
	struct who other = nobody;
	other.uid--;
	CHECK(syscall(SYS_setxattr, NODE, "system.posix_acl_access", &list, sizeof list, 0) == 0);
	CHECK(by(nobody, NODE, O_RDWR) == 0 && by(other, NODE, O_RDWR) == EACCES);
	list.entries[3].perm = 4;
	CHECK(syscall(SYS_setxattr, NODE, "system.posix_acl_access", &list, sizeof list, 0) == 0);
	CHECK(by(nobody, NODE, O_RDWR) == EACCES && by(nobody, NODE, O_RDONLY) == 0);
	CHECK(syscall(SYS_removexattr, NODE, "system.posix_acl_access") == 0 && chmod(NODE, 0600) == 0);
}

static const char *in(const char *directory, const char *name)
{
	snprintf(path, sizeof path, "%s/%s", directory, name);
	return path;
}

static void private_mounts(void)
{
	CHECK(unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
}

/* A node anybody may open, behind directories and links that are not for anybody. */
static void ways(void)
{
	char inner[100], file[112], link[112], other[112], number[64];
	int container = open(CONTAINER, O_RDWR), group = open(NODE, O_RDWR);
	sprintf(inner, "%s/inner", folder);
	sprintf(file, "%s/node", inner);
	sprintf(link, "%s/link", folder);
	CHECK(mkdir(inner, 0755) == 0 && close(creat(file, 0600)) == 0 && symlink("inner/node", link) == 0);
	CHECK(mount(CONTAINER, file, NULL, MS_BIND, NULL) == 0 && chdir(folder) == 0);
	sprintf(other, "/proc/self/root%s", file);
	const char *names[] = { file, link, other, "inner/node", "./inner/../link", "inner/../../../dev/vfio/vfio" };
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
		CHECK(by(nobody, names[i], O_RDWR) == 0);
	CHECK(chmod(inner, 0700) == 0);
	for (unsigned i = 0; i < 5; i++)
		CHECK(by(nobody, names[i], O_RDWR) == EACCES && opened(names[i], O_RDWR) == 0);
	CHECK(by(root_without, file, O_RDWR) == 0 && chmod(inner, 0000) == 0);
	CHECK(by(root_without, file, O_RDWR) == EACCES && opened(file, O_RDWR) == 0);
	/* What this process has is not for others to take; each has its own. */
	sprintf(number, "/proc/%d/root/dev/vfio/vfio", getpid());
	CHECK(by(nobody, number, O_RDWR) == EACCES && opened(number, O_RDWR) == 0);
	sprintf(number, "/proc/%d/fd/%d", getpid(), container);
	CHECK(by(nobody, number, O_RDWR) == EACCES && opened(number, O_RDWR) == 0);
	CHECK(by(nobody, "/proc/self/root/dev/vfio/vfio", O_RDWR) == 0);
	sprintf(number, "/proc/self/fd/%d", container);
	CHECK(by(nobody, number, O_RDWR) == 0 && opened(number, O_RDWR) == 0);
	sprintf(number, "/dev/fd/%d", group);
	CHECK(by(nobody, number, O_RDWR) == EACCES);
	close(group);
	close(container);
	CHECK(umount(file) == 0 && chdir("/") == 0 && unlink(file) == 0 && rmdir(inner) == 0 && unlink(link) == 0);
}

/* Read-only mounts do not keep a device from being written, nodev ones keep it from being opened. */
static void mounts(void)
{
	CHECK(mount("/dev/vfio", folder, NULL, MS_BIND, NULL) == 0);
	CHECK(opened(in(folder, "vfio"), O_RDWR) == 0);
	CHECK(mount(NULL, folder, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) == 0);
	CHECK(opened(path, O_RDWR) == 0 && opened(path, O_RDWR | O_TRUNC | O_CREAT) == 0);
	CHECK(mount(NULL, folder, NULL, MS_BIND | MS_REMOUNT | MS_NODEV, NULL) == 0);
	CHECK(opened(path, O_RDWR) == EACCES && opened(path, O_RDONLY) == EACCES);
	CHECK(opened(in(folder, "1"), O_RDWR) == EACCES && opened(CONTAINER, O_RDWR) == 0);
	CHECK(umount2(folder, MNT_DETACH) == 0);
	/* One file alone, and one whose number is another's. */
	CHECK(close(creat(in(folder, "node"), 0600)) == 0 && mount(CONTAINER, path, NULL, MS_BIND, NULL) == 0);
	CHECK(opened(path, O_RDWR) == 0);
	CHECK(mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_NODEV, NULL) == 0);
	CHECK(opened(path, O_RDWR) == EACCES);
	CHECK(umount2(path, MNT_DETACH) == 0 && unlink(path) == 0);
}

static void flags(void)
{
	char byte;
	struct { uint32_t argsz, flags; } status = { 8, 0 };
	CHECK(opened(NODE, O_RDWR | O_DIRECT) == EINVAL && opened(CONTAINER, O_RDONLY | O_DIRECT) == EINVAL);
	for (int again = 0; again < 3; again++) {
		/* A group is opened once at a time: each close is seen. */
		int fd = open(NODE, 3);
		CHECK(fd >= 0 && (fcntl(fd, F_GETFL) & O_ACCMODE) == 3);
		FAILS(read(fd, &byte, 1), EBADF);
		FAILS(write(fd, &byte, 1), EBADF);
		CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED);
		CHECK(ioctl(fd, VFIO(0x67), &status) == 0);
		int copy = dup(fd);
		close(fd);
		CHECK(opened(NODE, O_RDWR) == EBUSY && ioctl(copy, VFIO(0x67), &status) == 0);
		close(copy);
	}
	int fd = open(NODE, O_RDWR | O_NONBLOCK | O_CREAT | O_TRUNC);
	CHECK(fd >= 0 && (fcntl(fd, F_GETFL) & ~(0100000 | O_APPEND)) == (O_RDWR | O_NONBLOCK) && close(fd) == 0);
	CHECK(opened(NODE, O_RDWR) == 0);
	CHECK(opened(NODE, O_RDWR | O_CREAT | O_EXCL) == EEXIST && opened(NODE, O_RDWR | O_DIRECTORY) == ENOTDIR);
	CHECK(symlink(NODE, in(folder, "link")) == 0 && opened(path, O_RDWR) == 0);
	CHECK(opened(path, O_RDWR | O_NOFOLLOW) == ELOOP && unlink(path) == 0);
	fd = open(CONTAINER, O_PATH);
	CHECK(fd >= 0);
	FAILS(ioctl(fd, VFIO(0x64)), EBADF);
	close(fd);
}

static void root(void)
{
	modes();
	lists();
	ways();
	mounts();
	flags();
}

/* A capability counts in the namespace that the program was started in. */
static void nested(void)
{
	CHECK(chmod(NODE, 0) == 0);
	int expected = geteuid() == 0 ? 0 : EACCES;
	CHECK(opened(NODE, O_RDWR) == expected);
	CHECK(unshare(CLONE_NEWUSER) == 0);
	CHECK(opened(NODE, O_RDWR) == EACCES);
}

/* Without any right beyond one's own. */
static void plain(void)
{
	CHECK(opened(CONTAINER, O_RDWR) == 0 && opened(NODE, O_RDWR) == 0);
	CHECK(chmod(NODE, 0400) == 0 && opened(NODE, O_RDWR) == EACCES && opened(NODE, O_RDONLY) == 0);
	CHECK(opened(NODE, 3) == EACCES && opened(NODE, O_RDONLY | O_TRUNC) == EACCES);
	CHECK(chmod(NODE, 0) == 0 && opened(NODE, O_RDONLY) == EACCES && chmod(NODE, 0600) == 0);
	CHECK(mkdir(in(folder, "inner"), 0700) == 0);
	char directory[128];
	strcpy(directory, path);
	CHECK(symlink(NODE, in(directory, "link")) == 0 && opened(path, O_RDWR) == 0);
	CHECK(chmod(directory, 0600) == 0 && opened(path, O_RDWR) == EACCES);
	CHECK(chmod(directory, 0700) == 0 && unlink(path) == 0 && rmdir(directory) == 0);
	flags();
}

/* Root of a machine, who is no root of the host. */
static void machine(void)
{
	CHECK(chmod(NODE, 0) == 0 && opened(NODE, O_RDWR) == 0);
	have(~0ull & ~(1ull << DAC_OVERRIDE) & ((1ull << 41) - 1));
	CHECK(opened(NODE, O_RDONLY) == 0 && opened(NODE, O_RDWR) == EACCES);
	have(0);
	CHECK(opened(NODE, O_RDONLY) == EACCES && opened(CONTAINER, O_RDWR) == 0);
}

/* The status of a process that /proc hides: `hidepid=invisible` was mounted before the run. */
static void hidden(void)
{
	char status[64], text[8192];
	int container = open(CONTAINER, O_RDWR), group = open(NODE, O_RDWR), own;
	struct { uint32_t argsz, flags; uint64_t vaddr, iova, size; } map = { sizeof map, 3, 0, 0x100000, 65536 };
	map.vaddr = (uintptr_t)mmap(NULL, map.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(ioctl(group, VFIO(0x68), &container) == 0 && ioctl(container, VFIO(0x66), 3) == 0);
	CHECK(ioctl(container, VFIO(0x71), &map) == 0);
	sprintf(status, "/proc/%d/status", getpid());
	CHECK((own = open(status, O_RDONLY)) >= 0 && read(own, text, sizeof text - 1) > 0);
	CHECK(strstr(text, "VmLck:\t      64 kB"));
	CHECK(by(nobody, "/proc/self/status", O_RDONLY) == 0 && by(nobody, status, O_RDONLY) == ENOENT);
	sprintf(status, "/proc/%d/task/%d/status", getpid(), getpid());
	CHECK(by(nobody, status, O_RDONLY) == ENOENT && opened(status, O_RDONLY) == 0);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	strcpy(folder, "/tmp/ioasis-rights-XXXXXX");
	CHECK(mkdtemp(folder) && chmod(folder, 0755) == 0);
	if (strcmp(argv[1], "root") == 0) {
		private_mounts();
		root();
	} else if (strcmp(argv[1], "plain") == 0) {
		plain();
	} else if (strcmp(argv[1], "nested") == 0) {
		nested();
	} else if (strcmp(argv[1], "machine") == 0) {
		machine();
	} else if (strcmp(argv[1], "hidden") == 0) {
		hidden();
	}
	CHECK(rmdir(folder) == 0);
	puts("ok");
	return 0;
}
