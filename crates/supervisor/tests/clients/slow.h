/* Pages that nobody gives: whoever reads one waits, until their keeper is told to give them. The keeper is a process of
 * its own, which holds the userfaultfd of the pages or serves the FUSE file that they lie in, and stops no call of its
 * own. Of a FUSE file each page but the first and the last is held back: those are read when they are mapped for DMA. */
#pragma once
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define SLOW_PAGES 512
#define SLOW_BYTES (SLOW_PAGES * 4096)

/* What a keeper is told with the descriptor to keep, and what it answers once somebody waits for a page. */
#define KEEP_UFFD 'u'
#define KEEP_FUSE 'f'
#define GIVE 'g'
#define WAITED_FOR 'w'

static void send_fd(int socket, char what, int fd)
{
	char room[CMSG_SPACE(sizeof(int))] = "";
	struct iovec bytes = { &what, 1 };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = room,
				  .msg_controllen = sizeof(room) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	CHECK(sendmsg(socket, &message, 0) == 1);
}

/* The first byte of a message, 0 at its end; *fd is what came with it. */
static char receive_fd(int socket, int *fd)
{
	char what = 0, room[CMSG_SPACE(sizeof(int))];
	struct iovec bytes = { &what, 1 };
	struct msghdr message = { .msg_iov = &bytes, .msg_iovlen = 1, .msg_control = room,
				  .msg_controllen = sizeof(room) };

	if (recvmsg(socket, &message, 0) != 1)
		return 0;
	if (CMSG_FIRSTHDR(&message))
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return what;
}

static void fuse_answer(int fuse, uint64_t unique, int error, const void *data, size_t length)
{
	static char reply[sizeof(struct fuse_out_header) + SLOW_BYTES];
	struct fuse_out_header header = { sizeof(header) + length, -error, unique };

	memcpy(reply, &header, sizeof(header));
	if (data)
		memcpy(reply + sizeof(header), data, length);
	else
		memset(reply + sizeof(header), 0, length);
	if (write(fuse, reply, header.len) < 0)
		return; /* interrupted meanwhile */
}

/* Answers one request but for a read of what is held back, whose number and size are returned. */
static int fuse_serve(int fuse, uint64_t *unique, uint32_t *size)
{
	static char request[FUSE_MIN_READ_BUFFER + 65536];
	struct fuse_in_header *header = (void *)request;
	struct fuse_init_out init = { .major = 7, .minor = 31, .max_write = 4096, .max_readahead = 0 };
	struct fuse_attr_out attr = { .attr_valid = 1000, .attr = { .ino = 1, .size = SLOW_BYTES,
			.mode = S_IFREG | 0600, .nlink = 1, .blksize = 4096 } };
	struct fuse_open_out opened = { 0 };
	struct fuse_read_in *read_in;

	if (read(fuse, request, sizeof(request)) < (ssize_t)sizeof(*header))
		return -1;
	switch (header->opcode) {
	case FUSE_INIT:
		fuse_answer(fuse, header->unique, 0, &init, sizeof(init));
		return 0;
	case FUSE_GETATTR:
		fuse_answer(fuse, header->unique, 0, &attr, sizeof(attr));
		return 0;
	case FUSE_OPEN:
		fuse_answer(fuse, header->unique, 0, &opened, sizeof(opened));
		return 0;
	case FUSE_READ:
		read_in = (void *)(header + 1);
		*unique = header->unique;
		*size = read_in->size;
		if (read_in->offset != 0 && read_in->offset != SLOW_BYTES - 4096)
			return 1;
		fuse_answer(fuse, *unique, 0, NULL, *size);
		return 0;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return 0;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		fuse_answer(fuse, header->unique, 0, NULL, 0);
		return 0;
	default:
		fuse_answer(fuse, header->unique, ENOSYS, NULL, 0);
		return 0;
	}
}

/* Keeps what arrives until it is told to give it. The end of its socket ends it, unless it is to stay. */
static void keep(int socket, int stays)
{
	struct { uint64_t unique; uint32_t size; } held[4096];
	int fd = -1, count = 0, given = 0;
	char kind = receive_fd(socket, &fd), told = 0;

	while (kind == KEEP_UFFD || kind == KEEP_FUSE) {
		struct pollfd polled[] = { { socket, POLLIN, 0 }, { fd, POLLIN, 0 } };
		int unused;

		poll(polled, 2, -1);
		if (polled[0].revents) {
			told = receive_fd(socket, &unused);
			if (!told && !stays)
				_exit(0);
			while (!told)
				pause();
			given = 1;
			if (kind == KEEP_UFFD)
				_exit(0);
		}
		if (polled[1].revents && kind == KEEP_UFFD) {
			struct uffd_msg message;
			if (read(fd, &message, sizeof(message)) == sizeof(message))
				CHECK(write(socket, (char[]){ WAITED_FOR }, 1) == 1);
		} else if (polled[1].revents & (POLLERR | POLLHUP)) {
			_exit(0);
		} else if (polled[1].revents && count < 4096 &&
			   fuse_serve(fd, &held[count].unique, &held[count].size) == 1) {
			count++;
			if (!given)
				CHECK(write(socket, (char[]){ WAITED_FOR }, 1) == 1);
		}
		while (given && count > 0)
			fuse_answer(fd, held[count - 1].unique, 0, NULL, held[count - 1].size), count--;
	}
	_exit(1);
}

/* A keeper; the socket to it. */
static int keeper(void)
{
	int sockets[2];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		close(sockets[1]);
		keep(sockets[0], 0);
	}
	close(sockets[0]);
	return sockets[1];
}

/* SLOW_PAGES pages that `socket` keeps, by the way `kind`; those of a FUSE file lie over the file `path`. */
static char *slow_pages(char kind, int socket, const char *path)
{
	size_t length = SLOW_BYTES;

	if (kind == KEEP_UFFD) {
		struct uffdio_api api = { .api = UFFD_API };
		int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		char *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		struct uffdio_register range = { .range = { (uintptr_t)pages, length },
						 .mode = UFFDIO_REGISTER_MODE_MISSING };

		CHECK(uffd >= 0 && ioctl(uffd, UFFDIO_API, &api) == 0);
		CHECK(ioctl(uffd, UFFDIO_REGISTER, &range) == 0);
		send_fd(socket, KEEP_UFFD, uffd);
		close(uffd);
		return pages;
	}
	char options[128];
	int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	CHECK(fuse >= 0);
	close(open(path, O_CREAT | O_RDWR, 0600));
	sprintf(options, "fd=%d,rootmode=100000,user_id=0,group_id=0", fuse);
	CHECK(mount("slow", path, "fuse", 0, options) == 0);
	send_fd(socket, KEEP_FUSE, fuse);
	close(fuse);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	/* The kernel learns how long the file is when it first asks, and nobody else does. */
	struct stat stat;
	CHECK(fstat(fd, &stat) == 0 && stat.st_size == SLOW_BYTES);
	char *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(pages != MAP_FAILED);
	close(fd);
	return pages;
}

/* Waits until somebody waits for a page of the keeper's; not for long, for a page that is refused instead. */
static void await_waiter(int socket)
{
	char what;
	struct pollfd polled = { socket, POLLIN, 0 };
	CHECK(poll(&polled, 1, 1000) >= 0);
	if (polled.revents)
		CHECK(read(socket, &what, 1) == 1 && what == WAITED_FOR);
}

static void give(int socket)
{
	CHECK(write(socket, (char[]){ GIVE }, 1) == 1);
}
