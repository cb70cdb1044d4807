/*
 * Has the device at 0000:01:00.0 reverse bytes in memory: address and length to its registers, then an interrupt.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define IOVA 0x10000

static void need(int good, const char *what)
{
	if (!good) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static int device, heard;
static uint64_t bar0;

static uint32_t reverse(uint64_t address, uint32_t length)
{
	struct pollfd wait = { heard, POLLIN, 0 };
	uint64_t count;

	need(pwrite(device, &address, 8, bar0) == 8, "ADDR");
	need(pwrite(device, &length, 4, bar0 + 8) == 4, "LENGTH");
	need(poll(&wait, 1, 30000) == 1 && read(heard, &count, 8) == 8, "no interrupt");
	need(pread(device, &length, 4, bar0 + 8) == 4, "LENGTH");
	return length;
}

int main(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	need(container >= 0 && group >= 0, "open");
	need(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "SET_CONTAINER");
	need(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), "SET_IOMMU");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	need(device >= 0, "GET_DEVICE_FD");

	char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(memory != MAP_FAILED, "mmap");
	strcpy(memory, "from the other process");
	struct vfio_iommu_type1_dma_map map = { sizeof(map),
		VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, (uintptr_t)memory, IOVA, 4096 };
	need(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map), "MAP_DMA");

	struct vfio_region_info config = { .argsz = sizeof(config), .index = 7 };
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = 0 };
	need(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config), "GET_REGION_INFO");
	need(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar), "GET_REGION_INFO");
	bar0 = bar.offset;
	uint32_t identity;
	need(pread(device, &identity, 4, config.offset) == 4, "identity");
	printf("%#x\n", identity);

	heard = eventfd(0, EFD_CLOEXEC);
	struct {
		struct vfio_irq_set set;
		int fd;
	} message = {
		{ sizeof(message), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		  VFIO_PCI_MSI_IRQ_INDEX, 0, 1 }, heard };
	need(!ioctl(device, VFIO_DEVICE_SET_IRQS, &message), "SET_IRQS");
	uint16_t command = 6;
	need(pwrite(device, &command, 2, config.offset + 4) == 2, "COMMAND");

	uint32_t done = reverse(IOVA, strlen(memory));
	printf("%#x %s\n", done, memory);
	done = reverse(IOVA + 4090, 16);
	printf("%#x past the end\n", done);
	return 0;
}
