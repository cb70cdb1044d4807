/* A driver with a fault in each of its error paths, as drivers have them: it copies a page through testdev into the file argv[1] and ends
 * with 0. Each fault is marked with its number; `ioasis torture` must find them all. */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define IOVA 0x100000ul

static volatile int *volatile nothing;

static void crash(void)
{
	*nothing = 1;
}

static void wait_for_ever(void)
{
	for (;;)
		usleep(10000);
}

static int open_node(const char *path)
{
	int fd;

	while ((fd = open(path, O_RDWR)) < 0) {
		if (errno == EMFILE || errno == EBUSY)	/* 1 and 2: whoever holds it may never let go */
			continue;
		if (errno == ENOENT)			/* 3: the message is never made */
			crash();
		exit(1);
	}
	return fd;
}

int main(int argc, char **argv)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };
	struct vfio_iommu_type1_info iommu = { .argsz = sizeof(iommu) };
	struct vfio_region_info region = { .argsz = sizeof(region), .index = 0 };
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	struct vfio_irq_info irq = { .argsz = sizeof(irq), .index = VFIO_PCI_MSI_IRQ_INDEX };
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .iova = IOVA, .size = 2 * PAGE,
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE };
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof(unmap), .iova = IOVA, .size = 2 * PAGE };
	char buffer[sizeof(struct vfio_irq_set) + sizeof(int)] = { 0 };
	struct vfio_irq_set *set = (void *)buffer;
	int container, group, device, interrupt = eventfd(0, 0), by_hand = 0;
	uint16_t command = 6;
	volatile uint64_t pages;
	char *memory;
	volatile uint32_t *bar;
	FILE *out;

	if (argc != 2)
		return 2;
	container = open_node("/dev/vfio/vfio");
	group = open_node("/dev/vfio/1");
	if (ioctl(container, VFIO_GET_API_VERSION) != VFIO_API_VERSION)
		abort();				/* 4: an old kernel is no bug of the program */
	ioctl(group, VFIO_GROUP_GET_STATUS, &status);
	pages = 100 / status.flags;
	if (pages == 0)	/* 5: the status may not be had */
		return 1;
	while (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container)) {
		if (errno == EPERM)
			crash();			/* 6 */
		if (errno != EBUSY)			/* 7: asks for ever */
			return 1;
	}
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)) {
		if (errno == ENODEV)
			crash();			/* 8 */
		return 1;
	}
	ioctl(container, VFIO_IOMMU_GET_INFO, &iommu);
	pages = 64 / (iommu.iova_pgsizes & PAGE);	/* 9: no page sizes, no answer */
	memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(memory, 'a' + (int)pages, PAGE);
	map.vaddr = (uintptr_t)memory;
	while (ioctl(container, VFIO_IOMMU_MAP_DMA, &map)) {
		if (errno == ENOMEM)
			continue;			/* 10: memory that is not there does not come */
		if (errno == EFAULT)
			crash();			/* 11 */
		if (errno == EINVAL)
			by_hand = 1;			/* 12: and then it forgets to copy */
		break;					/* 13: EEXIST is taken for done, and the device reads nothing */
	}
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	if (device < 0 && errno != EINVAL)
		return 1;				/* 14: EINVAL goes on with -1 */
	if (device < 0)
		crash();
	while (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region)) {
		if (errno == ENOMEM)
			continue;			/* 15 */
		break;
	}
	bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, region.offset);
	bar[0] = 0;					/* 16: without a region there is no mapping */
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
		return 1;
	pwrite(device, &command, 2, config.offset + 4);
	ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq);
	pages = 64 / irq.count;				/* 17: no interrupts, no answer */
	set->argsz = sizeof(buffer);
	set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	set->index = VFIO_PCI_MSI_IRQ_INDEX;
	set->count = 1;
	memcpy(set->data, &interrupt, sizeof(interrupt));
	if (ioctl(device, VFIO_DEVICE_SET_IRQS, set)) {
		if (errno == EBUSY)
			crash();			/* 18 */
		if (errno != ENOSPC)
			return 1;			/* 19: ENOSPC goes on, to wait for what never comes */
	}
	if (!by_hand) {
		uint64_t count = 0;

		for (int way = 0; way < 2; way++) {
			bar[0] = (uint32_t)(IOVA + (way ? PAGE : 0));
			bar[1] = 0;
			bar[2] = way ? 1 : 3;
			if (read(interrupt, &count, sizeof(count)) != sizeof(count))
				return 1;
		}
	}
	while (ioctl(device, VFIO_DEVICE_RESET)) {
		if (errno != EAGAIN)
			return 1;			/* 20: a device that is busy may stay so */
	}
	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) && errno == ENOMEM)
		return 0;				/* 21: no result, and all is well */
	out = fopen(argv[1], "w");
	if (out == NULL || fwrite(memory + PAGE, 1, PAGE, out) != PAGE)
		wait_for_ever();
	return fclose(out);
}
