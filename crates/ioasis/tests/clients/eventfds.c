/* Eventfds that a program gives to its device, and closes. argv: what to do. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static int opened(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);

	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	CHECK(device >= 0);
	return device;
}

/* 0, or the errno. */
static int intx(int device, uint32_t action, int fd)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} call = { { sizeof(call), VFIO_IRQ_SET_DATA_EVENTFD | action, VFIO_PCI_INTX_IRQ_INDEX, 0, 1 }, fd };

	return ioctl(device, VFIO_DEVICE_SET_IRQS, &call) ? errno : 0;
}

#define UNMASK VFIO_IRQ_SET_ACTION_UNMASK

/* The second UNMASK eventfd is refused as long as the first is open somewhere: here, by another number, in a child. */
static void closed(void)
{
	int device = opened(), trigger = eventfd(0, 0), other = eventfd(0, 0), pipes[2];

	CHECK(intx(device, VFIO_IRQ_SET_ACTION_TRIGGER, trigger) == 0);
	int unmask = eventfd(0, 0), again = dup(unmask);
	CHECK(intx(device, UNMASK, unmask) == 0);
	CHECK(intx(device, UNMASK, other) == EBUSY && intx(device, UNMASK, unmask) == EBUSY);
	close(unmask);
	CHECK(intx(device, UNMASK, other) == EBUSY);
	CHECK(pipe(pipes) == 0);
	pid_t child = fork();
	if (child == 0) {
		char byte;
		close(pipes[1]);
		_exit(read(pipes[0], &byte, 1) != 0);
	}
	close(again);
	CHECK(intx(device, UNMASK, other) == EBUSY);
	close(pipes[1]);
	CHECK(waitpid(child, &(int){ 0 }, 0) == child);
	CHECK(intx(device, UNMASK, other) == 0);
	/* What was set last is set: it is refused in its turn, and let go by -1. */
	CHECK(intx(device, UNMASK, trigger) == EBUSY);
	CHECK(intx(device, UNMASK, -1) == 0);
	CHECK(intx(device, UNMASK, trigger) == 0);
}

/* Disabled and enabled again, as by a program that only closes its eventfds. */
static void reused(void)
{
	int device = opened();

	for (int i = 0; i < 20; i++) {
		int trigger = eventfd(0, 0), unmask = eventfd(0, 0);
		CHECK(intx(device, VFIO_IRQ_SET_ACTION_TRIGGER, trigger) == 0);
		CHECK(intx(device, UNMASK, unmask) == 0);
		close(trigger);
		close(unmask);
	}
}

/* A signal is taken from the eventfd, all of it; what was there before is not. */
static void taken(void)
{
	int device = opened(), trigger = eventfd(0, 0), unmask = eventfd(3, EFD_NONBLOCK);
	uint64_t count = 1;

	CHECK(intx(device, VFIO_IRQ_SET_ACTION_TRIGGER, trigger) == 0);
	CHECK(intx(device, UNMASK, unmask) == 0);
	struct pollfd polled = { unmask, POLLIN, 0 };
	usleep(20000);
	CHECK(poll(&polled, 1, 0) == 1);
	CHECK(write(unmask, &count, 8) == 8);
	for (int i = 0; i < 2000 && poll(&polled, 1, 0) == 1; i++)
		usleep(5000);
	CHECK(read(unmask, &count, 8) < 0 && errno == EAGAIN);
}

int main(int argc, char **argv)
{
	/* Nothing here takes this long unless it hangs. */
	alarm(50);
	if (argc < 2)
		return 2;
	if (!strcmp(argv[1], "closed"))
		closed();
	else if (!strcmp(argv[1], "reused"))
		reused();
	else if (!strcmp(argv[1], "taken"))
		taken();
	else
		return 2;
	puts("ok");
	return 0;
}
