/*
 * A live update: one process maps memory for an NVMe device and hands container, group and device to a fresh one, which has
 * the same memory elsewhere. A third reads the disk all along, through queues in that memory and a mapped BAR.
 *
 * The image holds the 64-bit words i * 0x9e3779b97f4a7c15.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum { PAGE = 4096, QUEUES = 16 * PAGE, BUFFERS = 1024 * PAGE, MEMORY = QUEUES + BUFFERS, DISK = 32 << 20 };
enum { ENTRIES = 32, AT_ONCE = 100 };
static const uint64_t queues_iova = 0x10000000, buffers_iova = 0x7f0000000;

/* What the processes tell each other, in the last page of the queues. */
struct shared {
	_Atomic uint32_t reads, stop;
	_Atomic uintptr_t address;
};

static struct shared *shared_in(unsigned char *memory)
{
	return (struct shared *)(memory + QUEUES - PAGE);
}

struct queue { uint32_t *submissions, tail, head, phase, id; };

static volatile uint32_t *bar;

/* Submits a command and waits for its completion, whose status is returned. */
static uint32_t submit(struct queue *queue, unsigned char *memory, const uint32_t command[16])
{
	volatile uint32_t *completions = (uint32_t *)(memory + (queue->id * 2 + 1) * PAGE);
	memcpy(memory + queue->id * 2 * PAGE + queue->tail * 64, command, 64);
	queue->tail = (queue->tail + 1) % ENTRIES;
	atomic_thread_fence(memory_order_seq_cst);
	bar[0x400 + queue->id * 2] = queue->tail;
	volatile uint32_t *entry = completions + queue->head * 4;
	for (time_t begin = time(0); (entry[3] >> 16 & 1) == queue->phase;)
		CHECK(time(0) - begin < 60);
	atomic_thread_fence(memory_order_seq_cst);
	uint32_t status = entry[3] >> 17;
	queue->head = (queue->head + 1) % ENTRIES;
	queue->phase ^= queue->head == 0;
	bar[0x401 + queue->id * 2] = queue->head;
	return status;
}

/* Enables the controller and makes a pair of queues beside the admin queues. */
static void enable(int device, unsigned char *memory, struct queue *io)
{
	struct vfio_region_info region = { .argsz = sizeof region, .index = VFIO_PCI_CONFIG_REGION_INDEX };
	struct queue admin = { 0 };
	uint16_t bits = 6;
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
	CHECK(pwrite(device, &bits, 2, (off_t)region.offset + 4) == 2);
	region = (struct vfio_region_info){ .argsz = sizeof region, .index = VFIO_PCI_BAR0_REGION_INDEX };
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
	bar = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)region.offset);
	CHECK(bar != MAP_FAILED);
	bar[0x24 / 4] = (ENTRIES - 1) << 16 | (ENTRIES - 1);
	bar[0x28 / 4] = (uint32_t)queues_iova;
	bar[0x2c / 4] = 0;
	bar[0x30 / 4] = (uint32_t)queues_iova + PAGE;
	bar[0x34 / 4] = 0;
	bar[0x14 / 4] = 4 << 20 | 6 << 16 | 1;
	for (time_t begin = time(0); !(bar[0x1c / 4] & 1);)
		CHECK(time(0) - begin < 60);
	uint32_t count[16] = { 0x09, [10] = 7 };
	uint32_t completion[16] = { 0x05, [6] = (uint32_t)queues_iova + 3 * PAGE, [10] = (ENTRIES - 1) << 16 | 1, [11] = 1 };
	uint32_t submission[16] = { 0x01, [6] = (uint32_t)queues_iova + 2 * PAGE, [10] = (ENTRIES - 1) << 16 | 1, [11] = 1 << 16 | 1 };
	CHECK(submit(&admin, memory, count) == 0);
	CHECK(submit(&admin, memory, completion) == 0);
	CHECK(submit(&admin, memory, submission) == 0);
	*io = (struct queue){ .id = 1 };
}

/* Reads two pages of the disk into two pages of memory and looks at every byte. */
static void read_disk(struct queue *io, unsigned char *memory, uint32_t turn)
{
	uint64_t disk = turn * 7919ull % (DISK / PAGE - 1) * PAGE, offset = turn * 2ull % 1022 * PAGE;
	uint64_t first = buffers_iova + offset, second = first + PAGE;
	uint32_t command[16] = {
		0x02 | turn << 16, 1, [6] = (uint32_t)first, (uint32_t)(first >> 32), (uint32_t)second, (uint32_t)(second >> 32),
		(uint32_t)(disk / 512), 0, 15,
	};
	memset(memory + QUEUES + offset, 0xee, 2 * PAGE);
	CHECK(submit(io, memory, command) == 0);
	for (unsigned i = 0; i < 2 * PAGE / 8; i++) {
		uint64_t word;
		memcpy(&word, memory + QUEUES + offset + i * 8, 8);
		CHECK(word == (disk / 8 + i) * 0x9e3779b97f4a7c15);
	}
}

static unsigned locked(void)
{
	char line[256];
	unsigned kilobytes = 0;
	FILE *status = fopen("/proc/self/status", "r");
	CHECK(status);
	while (fgets(line, sizeof line, status))
		sscanf(line, "VmLck: %u", &kilobytes);
	fclose(status);
	return kilobytes;
}

/* Waits for that many reads more. */
static void more_reads(struct shared *shared)
{
	uint32_t from = shared->reads;
	for (time_t begin = time(0); shared->reads - from < AT_ONCE; usleep(1000))
		CHECK(time(0) - begin < 60);
}

static void pass(int socket, int fds[3], int sends)
{
	char byte = 0;
	union { char bytes[CMSG_SPACE(3 * sizeof(int))]; struct cmsghdr header; } control = { { 0 } };
	struct iovec part = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control,
	};
	if (sends) {
		control.header = (struct cmsghdr){ CMSG_LEN(3 * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.header), fds, 3 * sizeof *fds);
		CHECK(sendmsg(socket, &message, 0) == 1);
	} else {
		CHECK(recvmsg(socket, &message, 0) == 1 && control.header.cmsg_type == SCM_RIGHTS);
		memcpy(fds, CMSG_DATA(&control.header), 3 * sizeof *fds);
	}
}

/* The fresh process: a new program, which has nothing but the memory's file and a socket. */
static int successor(int memfd, int socket)
{
	int fds[3];
	pass(socket, fds, 0);
	unsigned char *memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	CHECK(memory != MAP_FAILED);
	struct shared *shared = shared_in(memory);
	if ((uintptr_t)memory == shared->address) {
		memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		CHECK(memory != MAP_FAILED);
	}
	CHECK((uintptr_t)memory != shared->address);
	CHECK(locked() == 0);
	more_reads(shared); /* while no process address stands behind the mappings */
	struct vfio_iommu_type1_dma_map maps[] = {
		{ sizeof maps[0], VFIO_DMA_MAP_FLAG_VADDR, (uintptr_t)memory, queues_iova, QUEUES },
		{ sizeof maps[0], VFIO_DMA_MAP_FLAG_VADDR, (uintptr_t)memory + QUEUES, buffers_iova, BUFFERS },
	};
	CHECK(ioctl(fds[0], VFIO_IOMMU_MAP_DMA, &maps[0]) == 0);
	CHECK(locked() == QUEUES / 1024);
	CHECK(ioctl(fds[0], VFIO_IOMMU_MAP_DMA, &maps[1]) == 0);
	CHECK(locked() == MEMORY / 1024);
	CHECK(ioctl(fds[0], VFIO_IOMMU_MAP_DMA, &maps[1]) == -1 && errno == EINVAL);
	CHECK(write(socket, "", 1) == 1);

	char ended;
	CHECK(read(socket, &ended, 1) == 1);
	struct vfio_iommu_type1_dma_unmap all = { sizeof all, VFIO_DMA_UNMAP_FLAG_ALL, 0, 0 };
	CHECK(ioctl(fds[0], VFIO_IOMMU_UNMAP_DMA, &all) == 0 && all.size == MEMORY);
	CHECK(locked() == 0);
	return 0;
}

/* Reads until told to stop. */
static int reader(struct queue *io, unsigned char *memory)
{
	struct shared *shared = shared_in(memory);
	for (uint32_t turn = 0; !shared->stop; turn++) {
		read_disk(io, memory, turn);
		shared->reads++;
	}
	return 0;
}

static pid_t start(char **words, int memfd, int socket)
{
	char numbers[2][16];
	pid_t child = fork();
	CHECK(child >= 0);
	if (child)
		return child;
	snprintf(numbers[0], 16, "%d", memfd);
	snprintf(numbers[1], 16, "%d", socket);
	execl("/proc/self/exe", words[0], numbers[0], numbers[1], (char *)0);
	CHECK(!"execl");
	return -1;
}

static void ended_well(pid_t child)
{
	int status;
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(int count, char **words)
{
	if (count == 3)
		return successor(atoi(words[1]), atoi(words[2]));
	int container, group, device, sockets[2], memfd = memfd_create("memory", 0);
	CHECK(memfd >= 0 && ftruncate(memfd, MEMORY) == 0);
	unsigned char *memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	CHECK(memory != MAP_FAILED);
	struct shared *shared = shared_in(memory);
	shared->address = (uintptr_t)memory;

	struct vfio_iommu_type1_dma_map maps[] = {
		{ sizeof maps[0], 3, (uintptr_t)memory, queues_iova, QUEUES },
		{ sizeof maps[0], 3, (uintptr_t)memory + QUEUES, buffers_iova, BUFFERS },
	};
	CHECK((container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC)) >= 0);
	CHECK((group = open("/dev/vfio/1", O_RDWR | O_CLOEXEC)) >= 0);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 1);
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &maps[0]) == 0);
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &maps[1]) == 0);
	CHECK((device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0")) >= 0);
	CHECK(locked() == MEMORY / 1024);

	struct queue io;
	enable(device, memory, &io);
	pid_t reading = fork();
	CHECK(reading >= 0);
	if (!reading)
		return reader(&io, memory);
	more_reads(shared);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	pid_t next = start(words, memfd, sockets[1]);
	struct vfio_iommu_type1_dma_unmap all = {
		sizeof all, VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_VADDR, 0, 0,
	};
	CHECK(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &all) == 0 && all.size == MEMORY);
	CHECK(locked() == MEMORY / 1024); /* it pays until another does */
	pass(sockets[0], (int[]){ container, group, device }, 1);
	CHECK(close(container) == 0 && close(group) == 0 && close(device) == 0);
	char taken;
	CHECK(read(sockets[0], &taken, 1) == 1);
	CHECK(locked() == 0);
	CHECK(munmap(memory, QUEUES - PAGE) == 0 && munmap(memory + QUEUES, BUFFERS) == 0);
	more_reads(shared);
	shared->stop = 1;
	ended_well(reading);
	CHECK(write(sockets[0], "", 1) == 1);
	ended_well(next);
	printf("ok after %s reads\n", shared->reads >= 3 * AT_ONCE ? "enough" : "too few");
	return 0;
}
