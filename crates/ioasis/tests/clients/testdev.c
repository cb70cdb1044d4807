/* A VFIO client of the testdev model, built statically: container or cdev, BAR through mmap or pread. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define VFIO(nr) _IO(';', nr)
#define PAGE 4096u

struct region_info { uint32_t argsz, flags, index, cap_offset; uint64_t size, offset; };
struct dma_map { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct dma_unmap { uint32_t argsz, flags; uint64_t iova, size; };
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; uint64_t token; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
struct destroy { uint32_t size, id; };

static const uint64_t iova = 0x10000000;

/* Enables memory decode and bus mastering through config space. */
static void enable(int device)
{
	struct region_info config = { .argsz = sizeof config, .index = 7 };
	uint16_t command;
	CHECK(ioctl(device, VFIO(0x6c), &config) == 0);
	CHECK(pread(device, &command, 2, (off_t)config.offset + 4) == 2);
	CHECK((command & 4) == 0);
	command |= 6;
	CHECK(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
}

struct bar { int device; off_t offset; volatile uint32_t *page; };

static void store(struct bar *bar, unsigned at, uint32_t value)
{
	if (bar->page)
		bar->page[at / 4] = value;
	else
		CHECK(pwrite(bar->device, &value, 4, bar->offset + at) == 4);
}

static uint32_t load(struct bar *bar, unsigned at)
{
	uint32_t value;
	if (bar->page)
		return bar->page[at / 4];
	CHECK(pread(bar->device, &value, 4, bar->offset + at) == 4);
	return value;
}

static void command(struct bar *bar, uint64_t address, uint32_t code)
{
	store(bar, 0, (uint32_t)address);
	store(bar, 4, (uint32_t)(address >> 32));
	store(bar, 8, code);
	for (unsigned turns = 0; load(bar, 8) & 1; turns++) {
		CHECK(turns < 600000);
		usleep(100);
	}
}

/* A page goes into the device and comes out at another address. */
static void copy_through(int device, unsigned char *memory, int mapped)
{
	struct region_info info = { .argsz = sizeof info, .index = 0 };
	struct bar bar = { .device = device };
	CHECK(ioctl(device, VFIO(0x6c), &info) == 0);
	CHECK(info.size == PAGE);
	bar.offset = (off_t)info.offset;
	if (mapped) {
		void *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
		CHECK(page != MAP_FAILED);
		bar.page = page;
	}
	enable(device);
	for (unsigned i = 0; i < PAGE; i++)
		memory[i] = (unsigned char)(i * 7 + 3);
	command(&bar, iova, 3);
	command(&bar, iova + PAGE, 1);
	CHECK(memcmp(memory, memory + PAGE, PAGE) == 0);
}

static int open_legacy(unsigned char *memory, int *container, int *group)
{
	struct dma_map map = { sizeof map, 3, (uintptr_t)memory, iova, 2 * PAGE };
	int device;
	CHECK((*container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC)) >= 0);
	CHECK(ioctl(*container, VFIO(0x64)) == 0);
	CHECK((*group = open("/dev/vfio/1", O_RDWR | O_CLOEXEC)) >= 0);
	CHECK(ioctl(*group, VFIO(0x68), container) == 0);
	CHECK(ioctl(*container, VFIO(0x66), 3) == 0);
	CHECK(ioctl(*container, VFIO(0x71), &map) == 0);
	CHECK((device = ioctl(*group, VFIO(0x6a), "0000:01:00.0")) >= 0);
	return device;
}

static void legacy(unsigned char *memory, int mapped)
{
	struct dma_unmap unmap = { sizeof unmap, 0, iova, 2 * PAGE };
	int container, group, device = open_legacy(memory, &container, &group);
	copy_through(device, memory, mapped);
	CHECK(ioctl(container, VFIO(0x72), &unmap) == 0);
	CHECK(unmap.size == 2 * PAGE);
}

static void cdev(unsigned char *memory)
{
	struct ioas_alloc alloc = { .size = sizeof alloc };
	struct ioas_map map = { .size = sizeof map, .flags = 7, .user_va = (uintptr_t)memory, .length = 2 * PAGE, .iova = iova };
	struct bind bind = { .argsz = sizeof bind };
	struct attach attach = { .argsz = sizeof attach };
	struct stat status;
	char link[64], target[64];
	int device, iommu;
	ssize_t length;
	CHECK((iommu = open("/dev/iommu", O_RDWR)) >= 0);
	CHECK((device = open("/dev/vfio/devices/vfio0", O_RDWR)) >= 0);
	CHECK(fstat(device, &status) == 0 && S_ISCHR(status.st_mode));
	snprintf(link, sizeof link, "/proc/self/fd/%d", device);
	CHECK((length = readlink(link, target, sizeof target)) > 0);
	CHECK(length == (ssize_t)strlen("/dev/vfio/devices/vfio0") && !memcmp(target, "/dev/vfio/devices/vfio0", (size_t)length));
	bind.iommufd = iommu;
	CHECK(ioctl(device, VFIO(0x76), &bind) == 0);
	CHECK(ioctl(device, VFIO(0x76), &bind) == -1 && errno == EINVAL);
	CHECK(ioctl(iommu, VFIO(0x81), &alloc) == 0);
	map.ioas_id = attach.pt_id = alloc.out_ioas_id;
	CHECK(ioctl(iommu, VFIO(0x85), &map) == 0);
	CHECK(ioctl(device, VFIO(0x77), &attach) == 0);
	copy_through(device, memory, 1);
}

static void pass(int socket, int *fd, int sends)
{
	char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *header;
	if (sends) {
		header = CMSG_FIRSTHDR(&message);
		*header = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(header), fd, sizeof *fd);
		CHECK(sendmsg(socket, &message, 0) == 1);
	} else {
		CHECK(recvmsg(socket, &message, 0) == 1);
		header = CMSG_FIRSTHDR(&message);
		CHECK(header != NULL);
		memcpy(fd, CMSG_DATA(header), sizeof *fd);
	}
}

/* One process opens, the other receives the fd and uses it; ids come from one table. */
static void shared(void)
{
	struct ioas_alloc alloc = { .size = sizeof alloc };
	int sockets[2], iommu, status;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		pass(sockets[1], &iommu, 0);
		CHECK(ioctl(iommu, VFIO(0x81), &alloc) == 0);
		exit((int)alloc.out_ioas_id);
	}
	CHECK((iommu = open("/dev/iommu", O_RDWR)) >= 0);
	CHECK(ioctl(iommu, VFIO(0x81), &alloc) == 0);
	pass(sockets[0], &iommu, 1);
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	struct destroy destroy = { sizeof destroy, (uint32_t)WEXITSTATUS(status) };
	CHECK(destroy.id != alloc.out_ioas_id && destroy.id != 0);
	CHECK(ioctl(iommu, VFIO(0x80), &destroy) == 0);
	CHECK(ioctl(iommu, VFIO(0x80), &destroy) == -1 && errno == ENOENT);
}

int main(int count, char **words)
{
	const char *how = count > 1 ? words[1] : "";
	unsigned char *memory = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
	CHECK(memory != MAP_FAILED);
	if (!strcmp(how, "legacy-mmap"))
		legacy(memory, 1);
	else if (!strcmp(how, "legacy-pread"))
		legacy(memory, 0);
	else if (!strcmp(how, "cdev"))
		cdev(memory);
	else if (!strcmp(how, "shared"))
		shared();
	else
		return 2;
	puts("ok");
	return 0;
}
