/* A virtual machine monitor's calls: a VFIO device of a real virtual machine is told of our group and our device. */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { FILES = 1, ADD = 1, DEL = 2 }; /* KVM_DEV_VFIO_FILE, _ADD and _DEL */

static int create(int vm, uint32_t type, uint32_t flags, int *device)
{
	struct kvm_create_device create = { .type = type, .fd = (uint32_t)-1, .flags = flags };
	int answer = ioctl(vm, KVM_CREATE_DEVICE, &create);
	*device = (int)create.fd;
	return answer;
}

static int attribute(int device, unsigned long call, uint32_t group, uint64_t attr, int *fd)
{
	struct kvm_device_attr argument = { .group = group, .attr = attr, .addr = (uintptr_t)fd };
	return ioctl(device, call, &argument);
}

static int set(int device, uint64_t attr, int fd)
{
	return attribute(device, KVM_SET_DEVICE_ATTR, FILES, attr, &fd);
}

static void add_and_remove(int device, int file)
{
	FAILS(set(device, DEL, file), ENOENT);
	CHECK(set(device, ADD, file) == 0);
	FAILS(set(device, ADD, file), EEXIST);
	int copy = dup(file);
	FAILS(set(device, ADD, copy), EEXIST);
	CHECK(set(device, DEL, copy) == 0);
	FAILS(set(device, DEL, file), ENOENT);
	CHECK(close(copy) == 0);
	CHECK(set(device, ADD, file) == 0);
}

int main(void)
{
	int device, none, again;
	char link[64] = "", path[64];
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	CHECK(kvm >= 0);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0), other = ioctl(kvm, KVM_CREATE_VM, 0);
	CHECK(vm >= 0 && other >= 0);

	CHECK(create(vm, KVM_DEV_TYPE_VFIO, KVM_CREATE_DEVICE_TEST, &none) == 0 && none == -1);
	CHECK(create(vm, KVM_DEV_TYPE_VFIO, 0, &device) == 0 && device > other);
	FAILS(create(vm, KVM_DEV_TYPE_VFIO, 0, &none), EBUSY);
	CHECK(create(other, KVM_DEV_TYPE_VFIO, 0, &again) == 0 && close(again) == 0);
	FAILS(create(vm, 99, 0, &none), ENODEV);
	FAILS(create(kvm, KVM_DEV_TYPE_VFIO, 0, &none), EINVAL); /* as the kernel says */
	snprintf(path, sizeof path, "/proc/self/fd/%d", device);
	CHECK(readlink(path, link, sizeof link - 1) > 0 && strcmp(link, "anon_inode:kvm-vfio") == 0);
	CHECK(fcntl(device, F_GETFD) == FD_CLOEXEC);

	CHECK(attribute(device, KVM_HAS_DEVICE_ATTR, FILES, ADD, 0) == 0);
	FAILS(attribute(device, KVM_HAS_DEVICE_ATTR, FILES, 7, 0), ENXIO);
	FAILS(attribute(device, KVM_GET_DEVICE_ATTR, FILES, ADD, 0), EPERM);
	FAILS(attribute(device, KVM_SET_DEVICE_ATTR, FILES, ADD, (int *)8), EFAULT);
	FAILS(set(device, ADD, 1000), EBADF);
	FAILS(set(device, ADD, eventfd(0, 0)), EINVAL);
	FAILS(set(device, ADD, vm), EINVAL);

	int group = open("/dev/vfio/1", O_RDWR), cdev = open("/dev/vfio/devices/vfio0", O_RDWR);
	CHECK(group >= 0 || cdev >= 0);
	if (group >= 0)
		add_and_remove(device, group);
	if (cdev >= 0)
		add_and_remove(device, cdev);

	/* The record goes with the device, and the machine can have another. */
	CHECK(close(device) == 0);
	CHECK(create(vm, KVM_DEV_TYPE_VFIO, 0, &device) == 0);
	if (group >= 0)
		FAILS(set(device, DEL, group), ENOENT);
	CHECK(close(vm) == 0 && close(device) == 0);
	puts("ok");
	return 0;
}
