/* A program that makes the mistake named argv[1], as beginners make it, with a testdev behind the type1 container. It goes on as
 * if nothing had happened and ends with 0: what it did wrong is for `ioasis run --explain` to say. */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PAGE 4096ul
#define IOVA 0x100000ul

static int container, group, device;
static char *memory;
static const char *mistake;

static int is(const char *name)
{
	return strcmp(mistake, name) == 0;
}

static int map_at(void *vaddr, uint64_t iova, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .flags = flags,
		.vaddr = (uintptr_t)vaddr, .iova = iova, .size = size };
	return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

static int map(void *vaddr, uint64_t iova, uint64_t size)
{
	return map_at(vaddr, iova, size, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
}

static int unmap(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof(unmap), .iova = iova, .size = size };
	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
}

static struct vfio_region_info region(uint32_t index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };
	ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info);
	return info;
}

static void command(uint16_t value)
{
	pwrite(device, &value, 2, region(VFIO_PCI_CONFIG_REGION_INDEX).offset + 4);
}

/* Has the device copy a page from (3) or to (1) an address, and waits for it. */
static void copy(uint64_t iova, uint32_t how)
{
	uint64_t bar = region(0).offset;
	pwrite(device, &iova, 8, bar);
	pwrite(device, &how, 4, bar + 8);
	for (int turn = 0; turn < 2000 && (how & 1); turn++) {
		usleep(1000);
		pread(device, &how, 4, bar + 8);
	}
}

static int irqs(uint32_t index, uint32_t start, uint32_t count, uint32_t flags, int fd)
{
	char buffer[sizeof(struct vfio_irq_set) + sizeof(int)] = { 0 };
	struct vfio_irq_set *set = (void *)buffer;
	set->argsz = sizeof(buffer);
	set->flags = flags;
	set->index = index;
	set->start = start;
	set->count = count;
	memcpy(set->data, &fd, sizeof(fd));
	return ioctl(device, VFIO_DEVICE_SET_IRQS, set);
}

static void open_device(void)
{
	int flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open("/dev/vfio/1", O_RDWR);
	if (is("group twice"))
		open("/dev/vfio/1", O_RDWR);
	if (is("device before container"))
		ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	if (is("IOMMU before group"))
		ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
	ioctl(group, VFIO_GROUP_SET_CONTAINER, &container);
	if (is("group with container twice"))
		ioctl(group, VFIO_GROUP_SET_CONTAINER, &container);
	if (is("map before IOMMU"))
		map(memory, IOVA, PAGE);
	if (is("IOMMU type"))
		ioctl(container, VFIO_SET_IOMMU, VFIO_SPAPR_TCE_IOMMU);
	ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
	if (is("device name"))
		ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:09:00.0");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	if (is("wrong file"))
		ioctl(device, VFIO_IOMMU_GET_INFO, memory);
	if (is("unknown request"))
		ioctl(container, VFIO_GROUP_GET_STATUS, memory);
	if (is("vector without interrupts"))
		irqs(VFIO_PCI_MSI_IRQ_INDEX, 0, 4, flags, eventfd(0, 0));
	if (is("no such interrupt"))
		irqs(VFIO_PCI_MSIX_IRQ_INDEX, 0, 1, flags, eventfd(0, 0));
	if (is("eventfd closed")) {
		int fd = eventfd(0, 0);
		close(fd);
		irqs(VFIO_PCI_MSI_IRQ_INDEX, 0, 1, flags, fd);
	}
}

int main(int argc, char **argv)
{
	struct vfio_region_info bar;

	if (argc != 2)
		return 2;
	mistake = argv[1];
	memory = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	open_device();
	bar = region(0);
	if (!is("bus master"))
		command(6);
	if (is("argsz")) {
		struct vfio_iommu_type1_dma_map short_map = { .argsz = 8 };
		ioctl(container, VFIO_IOMMU_MAP_DMA, &short_map);
	} else if (is("flags")) {
		map_at(memory, IOVA, PAGE, 0);
	} else if (is("misaligned")) {
		map(memory + 64, IOVA + 64, PAGE);
	} else if (is("size")) {
		map(memory, IOVA, 100);
	} else if (is("twice")) {
		map(memory, IOVA, 2 * PAGE);
		map(memory, IOVA + PAGE, PAGE);
	} else if (is("beyond the aperture")) {
		map(memory, 1ul << 60, PAGE);
	} else if (is("reserved")) {
		map(memory, 0xfee00000, PAGE);
	} else if (is("vaddr")) {
		map((void *)0x1000, IOVA, PAGE);
	} else if (is("limit")) {
		struct rlimit limit = { 4 * PAGE, 4 * PAGE };
		setrlimit(RLIMIT_MEMLOCK, &limit);
		map(memory, IOVA, 64 * PAGE);
	} else if (is("unmap a part")) {
		map(memory, IOVA, 2 * PAGE);
		unmap(IOVA, PAGE);
	} else if (is("mmap offset")) {
		mmap(NULL, PAGE, PROT_READ, MAP_SHARED, device, bar.offset + 16 * PAGE);
	} else if (is("mmap of config space")) {
		mmap(NULL, PAGE, PROT_READ, MAP_SHARED, device, region(VFIO_PCI_CONFIG_REGION_INDEX).offset);
	} else if (is("no such region")) {
		region(99);
	} else if (is("memory decoding")) {
		command(4);
		pread(device, memory, 4, bar.offset);
	} else if (is("bus master")) {
		command(2);
		map(memory, IOVA, PAGE);
		copy(IOVA, 3);
	} else if (is("not mapped")) {
		copy(IOVA, 3);
	} else if (is("write to read-only")) {
		map_at(memory, IOVA, PAGE, VFIO_DMA_MAP_FLAG_READ);
		copy(IOVA, 1);
	} else if (is("after unmap")) {
		map(memory, IOVA, PAGE);
		unmap(IOVA, PAGE);
		copy(IOVA, 3);
	} else {
		map(memory, IOVA, PAGE);
		copy(IOVA, 3);
	}
	return 0;
}
