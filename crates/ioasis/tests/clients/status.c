/* A process with pinned pages, and another that puts files of its own choice over its /proc/PID/status and opens that.
 * Usage: status CASE CANARY */
#define _GNU_SOURCE
#include <fcntl.h>
#include <grp.h>
#include <linux/fuse.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
enum { NOBODY = 65534, PINNED = 1 << 16 };

struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };

static const char *canary;
static char own_status[64], task_status[64];

static void pin(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(group, VFIO(0x68), &container) == 0 && ioctl(container, VFIO(0x66), 3) == 0);
	void *pages = mmap(NULL, PINNED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	CHECK(pages != MAP_FAILED);
	struct dma_map map = { sizeof map, 3, (uintptr_t)pages, 0x100000, PINNED };
	CHECK(ioctl(container, VFIO(0x71), &map) == 0);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && close(fd) == 0);
}

static void drop_to_nobody(void)
{
	if (geteuid() == 0) {
		CHECK(setgroups(0, NULL) == 0 && setresgid(NOBODY, NOBODY, NOBODY) == 0);
		CHECK(setresuid(NOBODY, NOBODY, NOBODY) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0);
	}
}

/* A user without any right on the host, who mounts what it likes in namespaces of its own. */
static void become_a_plain_user_who_mounts(void)
{
	char map[32];
	drop_to_nobody();
	unsigned uid = geteuid(), gid = getegid();
	CHECK(unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0);
	put("/proc/self/setgroups", "deny");
	sprintf(map, "0 %u 1", uid);
	put("/proc/self/uid_map", map);
	sprintf(map, "0 %u 1", gid);
	put("/proc/self/gid_map", map);
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
}

/* Bytes read from the start of PATH into TEXT, or -1. */
static ssize_t text_of(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK);
	if (fd < 0)
		return -1;
	ssize_t count = read(fd, text, size);
	close(fd);
	return count;
}

/* Whatever lies over the two files, opening them gives that file as opening it where it comes from does. */
static void is_itself(const char *source)
{
	static char expected[65536], seen[65536];
	const char *paths[] = { own_status, task_status };
	ssize_t length = text_of(source, expected, sizeof expected);
	int why = errno;
	for (int i = 0; i < 2; i++) {
		CHECK(mount(source, paths[i], NULL, MS_BIND, NULL) == 0);
		ssize_t count = text_of(paths[i], seen, sizeof seen);
		CHECK(count == length && (count >= 0 || errno == why));
		CHECK(count < 0 || memcmp(seen, expected, length) == 0);
		CHECK(umount2(paths[i], MNT_DETACH) == 0);
	}
}

static long field(const char *path, const char *name)
{
	static char text[65536];
	ssize_t length = text_of(path, text, sizeof text - 1);
	CHECK(length > 0);
	text[length] = 0;
	char *found = strstr(text, name);
	CHECK(found);
	return atol(found + strlen(name));
}

static void shadowed(void)
{
	char folder[] = "/tmp/ioasis-status-XXXXXX", path[80];
	long charged = field(own_status, "VmLck:"), uncharged = field("/proc/self/status", "VmLck:");
	CHECK(charged == PINNED / 1024 && uncharged == 0);
	become_a_plain_user_who_mounts();
	is_itself(canary);
	is_itself("/dev/zero");
	is_itself("/proc/version");
	/* The status of somebody else, who has nothing pinned. */
	CHECK(mount("/proc/1/status", own_status, NULL, MS_BIND, NULL) == 0);
	CHECK(field(own_status, "Tgid:") == 1 && field(own_status, "VmLck:") == field("/proc/1/status", "VmLck:"));
	CHECK(umount2(own_status, MNT_DETACH) == 0);
	CHECK(mkdtemp(folder));
	sprintf(path, "%s/status", folder);
	CHECK(mkfifo(path, 0600) == 0);
	is_itself(path);
	CHECK(unlink(path) == 0);
	/* A link to the file named as if it were one. */
	CHECK(symlink(canary, path) == 0);
	char text[16];
	ssize_t length = text_of(canary, text, sizeof text);
	CHECK(text_of(path, text, sizeof text) == length && unlink(path) == 0);
	/* The same files reached by other ways are what they are. */
	CHECK(mount("/proc", folder, NULL, MS_BIND | MS_REC, NULL) == 0);
	sprintf(path, "%s%s", folder, own_status + strlen("/proc"));
	CHECK(field(path, "VmLck:") == charged);
	sprintf(path, "%s%s", folder, task_status + strlen("/proc"));
	CHECK(field(path, "VmLck:") == charged);
	CHECK(umount2(folder, MNT_DETACH) == 0 && rmdir(folder) == 0);
	CHECK(field(own_status, "VmLck:") == charged);
}

/* A file system that is one file, served by a process. What it is asked beside the ordinary is never answered. */
static atomic_int *asked_in_vain;

static void reply(int fuse, uint64_t unique, int error, const void *body, size_t length)
{
	char message[8192];
	struct fuse_out_header head = { .len = sizeof head + length, .error = -error, .unique = unique };
	memcpy(message, &head, sizeof head);
	memcpy(message + sizeof head, body, length);
	CHECK(write(fuse, message, head.len) == (ssize_t)head.len);
}

static void serve(int fuse)
{
	static char request[1 << 17];
	while (read(fuse, request, sizeof request) > 0) {
		struct fuse_in_header *in = (void *)request;
		struct fuse_init_out init = { .major = 7, .minor = 31, .max_write = 4096 };
		struct fuse_attr_out attr = { .attr = { .ino = 1, .mode = S_IFREG | 0444, .nlink = 1 } };
		struct fuse_open_out opened = { .open_flags = FOPEN_DIRECT_IO };
		switch (in->opcode) {
		case FUSE_INIT: reply(fuse, in->unique, 0, &init, sizeof init); break;
		case FUSE_GETATTR: reply(fuse, in->unique, 0, &attr, sizeof attr); break;
		case FUSE_OPEN: reply(fuse, in->unique, 0, &opened, sizeof opened); break;
		case FUSE_READ: reply(fuse, in->unique, 0, "served", 6); break;
		case FUSE_FLUSH: case FUSE_RELEASE: reply(fuse, in->unique, 0, "", 0); break;
		case FUSE_IOCTL: reply(fuse, in->unique, ENOTTY, "", 0); break;
		case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT: break;
		default: ++*asked_in_vain;
		}
	}
}

/* The file system is never asked more than the open asks it: the supervisor looks, and does not wait. */
static void served(void)
{
	char options[128], text[16];
	asked_in_vain = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	CHECK(fuse >= 0);
	/* It ends when the last mount is gone, with this process's namespace, in which it is not. */
	if (fork() == 0) {
		while (errno = 0, serve(fuse), errno == EPERM)
			usleep(1000);
		exit(0);
	}
	CHECK(unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
	sprintf(options, "fd=%d,rootmode=100444,user_id=%u,group_id=%u", fuse, geteuid(), getegid());
	const char *paths[] = { own_status, task_status };
	CHECK(mount("test", paths[0], "fuse", MS_NOSUID | MS_NODEV, options) == 0);
	close(fuse);
	CHECK(mount(paths[0], paths[1], NULL, MS_BIND, NULL) == 0);
	for (int i = 0; i < 2; i++)
		for (int again = 0; again < 3; again++)
			CHECK(text_of(paths[i], text, sizeof text) == 6 && memcmp(text, "served", 6) == 0);
	int fd = open(own_status, O_RDONLY);
	struct stat stat;
	CHECK(fd >= 0 && ioctl(fd, VFIO(0x64)) == -1 && errno == ENOTTY && fstat(fd, &stat) == 0 && S_ISREG(stat.st_mode));
	close(fd);
	CHECK(*asked_in_vain == 0);
}

int main(int argc, char **argv)
{
	CHECK(argc == 3);
	canary = argv[2];
	sprintf(own_status, "/proc/%d/status", getpid());
	sprintf(task_status, "/proc/%d/task/%ld/status", getpid(), syscall(SYS_gettid));
	pin();
	pid_t child = fork();
	int status;
	if (child == 0) {
		alarm(30);
		strcmp(argv[1], "served") == 0 ? served() : shadowed();
		exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	puts("ok");
	return 0;
}
