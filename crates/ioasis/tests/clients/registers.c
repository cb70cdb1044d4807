/* A VFIO client of the nvme model that looks at registers and interrupts: `registers HOW`. */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "check.h"

#define PAGE 4096u
/* Controller registers and fields, NVMe 1.4, 3.1. */
enum { CC = 0x14, CSTS = 0x1c, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum { READY = 1, FATAL = 2, ENABLE = 1 | 6 << 16 | 4 << 20, ENTRIES = 32 };
/* Entries of the MSI-X table, and where its pending bits lie in BAR 4. */
enum { ENTRY = 16, VECTOR_CONTROL = 12, PENDING = 0x800 };

static const uint64_t iova = 0x100000;
static int device;
static unsigned char *memory;
static volatile unsigned char *registers;

static struct vfio_region_info region(unsigned index)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = index };
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	return info;
}

static volatile unsigned char *map_bar(unsigned index)
{
	struct vfio_region_info info = region(index);
	void *page = mmap(0, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)info.offset);
	CHECK(page != MAP_FAILED);
	return page;
}

static void set_command(uint16_t command)
{
	CHECK(pwrite(device, &command, 2, (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX).offset + 4) == 2);
}

static void open_device(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	memory = mmap(0, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
	struct vfio_iommu_type1_dma_map map = { sizeof map, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, (uintptr_t)memory, iova, 16 * PAGE };
	CHECK(container >= 0 && group >= 0 && memory != MAP_FAILED);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	CHECK((device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0")) >= 0);
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	set_command(6);
}

static int store_by_call;

static void store(unsigned at, uint64_t value, unsigned width)
{
	if (store_by_call)
		CHECK(pwrite(device, &value, width, (off_t)region(0).offset + at) == (ssize_t)width);
	else if (width == 8)
		*(volatile uint64_t *)(registers + at) = value;
	else
		*(volatile uint32_t *)(registers + at) = (uint32_t)value;
}

static uint32_t status(void)
{
	uint32_t value;
	if (!store_by_call)
		return *(volatile uint32_t *)(registers + CSTS);
	CHECK(pread(device, &value, 4, (off_t)region(0).offset + CSTS) == 4);
	return value;
}

static void wait_status(uint32_t mask, uint32_t wanted)
{
	for (unsigned turns = 0; (status() & mask) != wanted; turns++) {
		CHECK(turns < 600000);
		usleep(100);
	}
}

static void admin_queues(uint32_t attributes)
{
	store(AQA, attributes, 4);
	store(ASQ, iova, 8);
	store(ACQ, iova + PAGE, 8);
}

/* A controller that cannot start, reset and started again without a pause. */
static void enable_twice(void)
{
	admin_queues((ENTRIES - 1) << 16);
	store(CC, ENABLE, 4);
	wait_status(READY | FATAL, FATAL);
	store(CC, ENABLE & ~1, 4);
	while (status() & READY)
		;
	store(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
	store(CC, ENABLE, 4);
	wait_status(READY | FATAL, READY);
}

static void start(void)
{
	admin_queues((ENTRIES - 1) << 16 | (ENTRIES - 1));
	store(CC, ENABLE, 4);
	wait_status(READY | FATAL, READY);
}

static unsigned tail, taken;

/* One Get Features, whose completion interrupts on vector 0. */
static void command(void)
{
	uint32_t *entry = (uint32_t *)(memory + 64 * tail);
	memset(entry, 0, 64);
	entry[0] = 0x0a | (tail + 1) << 16;
	entry[10] = 1;
	tail = (tail + 1) % ENTRIES;
	store(DOORBELLS, tail, 4);
	volatile uint32_t *done = (volatile uint32_t *)(memory + PAGE + 16 * taken);
	for (unsigned turns = 0; (done[3] >> 16 & 1) == 0; turns++) {
		CHECK(turns < 600000);
		usleep(100);
	}
	taken++;
}

static void take_completions(void)
{
	store(DOORBELLS + 4, taken, 4);
}

static void set_eventfd(unsigned vector, int fd)
{
	char bytes[sizeof(struct vfio_irq_set) + sizeof fd];
	struct vfio_irq_set *set = (struct vfio_irq_set *)bytes;
	*set = (struct vfio_irq_set){ sizeof bytes, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_PCI_MSIX_IRQ_INDEX, vector, 1 };
	memcpy(set->data, &fd, sizeof fd);
	CHECK(ioctl(device, VFIO_DEVICE_SET_IRQS, set) == 0);
}

/* Interrupts heard within a second, or within 50 ms if there should be none. */
static uint64_t heard(int event, int wanted)
{
	struct pollfd one = { event, POLLIN, 0 };
	uint64_t count = 0;
	if (poll(&one, 1, wanted ? 5000 : 50) == 1)
		CHECK(read(event, &count, sizeof count) == sizeof count);
	return count;
}

static uint64_t pending_by_call(void)
{
	uint64_t bits;
	CHECK(pread(device, &bits, sizeof bits, (off_t)region(4).offset + PENDING) == sizeof bits);
	return bits;
}

static void wait_pending(volatile unsigned char *table, uint64_t wanted)
{
	for (unsigned turns = 0; *(volatile uint64_t *)(table + PENDING) != wanted; turns++) {
		CHECK(turns < 600000);
		usleep(100);
	}
	CHECK(pending_by_call() == wanted);
}

static void pending_without_eventfd(volatile unsigned char *table)
{
	int event = eventfd(0, EFD_NONBLOCK);
	set_eventfd(0, event);
	start();
	set_eventfd(0, -1);
	CHECK(*(volatile uint32_t *)(table + VECTOR_CONTROL) == 1);
	command();
	wait_pending(table, 1);
	CHECK(heard(event, 0) == 0);
	set_eventfd(0, event);
	CHECK(heard(event, 1) == 1);
	wait_pending(table, 0);
}

static void pending_while_masked(volatile unsigned char *table)
{
	int event = eventfd(0, EFD_NONBLOCK);
	volatile uint32_t *control = (volatile uint32_t *)(table + VECTOR_CONTROL);
	start();
	set_eventfd(0, event);
	CHECK(*control == 0 && *(volatile uint32_t *)(table + ENTRY + VECTOR_CONTROL) == 1);
	*control = 1;
	command();
	command();
	wait_pending(table, 1);
	CHECK(heard(event, 0) == 0);
	*control = 0;
	CHECK(heard(event, 1) == 1);
	wait_pending(table, 0);
	*control = 1;
	command();
	wait_pending(table, 1);
	take_completions();
	wait_pending(table, 0);
	*control = 0;
	CHECK(heard(event, 0) == 0);
	command();
	CHECK(heard(event, 1) == 1);
}

static void pending_until_reset(volatile unsigned char *table)
{
	int event = eventfd(0, EFD_NONBLOCK);
	start();
	set_eventfd(1, event);
	command();
	wait_pending(table, 1);
	CHECK(ioctl(device, VFIO_DEVICE_RESET) == 0);
	wait_pending(table, 0);
	CHECK(*(volatile uint32_t *)(table + ENTRY + VECTOR_CONTROL) == 0);
	set_eventfd(0, event);
	CHECK(heard(event, 0) == 0);
}

/* What vfio-pci says of the BAR that holds the table, and what a call sees of it. */
static void table_region(volatile unsigned char *table)
{
	struct { struct vfio_region_info info; struct vfio_info_cap_header cap; } both = { { .argsz = sizeof both, .index = 4 } };
	uint32_t words[4] = { 0 };
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &both) == 0);
	CHECK(both.info.flags == (VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS));
	CHECK(both.info.cap_offset == sizeof both.info && both.cap.id == VFIO_REGION_INFO_CAP_MSIX_MAPPABLE);
	CHECK(both.cap.version == 1 && both.cap.next == 0);
	CHECK(*(volatile uint32_t *)(table + VECTOR_CONTROL) == 1);
	CHECK(pwrite(device, words, sizeof words, (off_t)both.info.offset) == sizeof words);
	CHECK(pread(device, words, sizeof words, (off_t)both.info.offset) == sizeof words);
	CHECK(words[0] == ~0u && words[3] == ~0u);
	CHECK(*(volatile uint32_t *)(table + VECTOR_CONTROL) == 1);
}

int main(int count, char **words)
{
	const char *how = count > 1 ? words[1] : "";
	open_device();
	if (!strcmp(how, "enable-by-call")) {
		store_by_call = 1;
		enable_twice();
		puts("ok");
		return 0;
	}
	registers = map_bar(0);
	if (!strcmp(how, "enable-mapped"))
		enable_twice();
	else if (!strcmp(how, "pending-without-eventfd"))
		pending_without_eventfd(map_bar(4));
	else if (!strcmp(how, "pending-while-masked"))
		pending_while_masked(map_bar(4));
	else if (!strcmp(how, "pending-until-reset"))
		pending_until_reset(map_bar(4));
	else if (!strcmp(how, "table-region"))
		table_region(map_bar(4));
	else
		return 2;
	puts("ok");
	return 0;
}
