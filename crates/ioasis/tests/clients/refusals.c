/* A VFIO client of the testdev model whose copies are refused for other reasons than a translation: `refusals HOW`. */
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/vfio.h>

#include "check.h"

#define PAGE 4096u
enum { ADDR = 0, CMD = 8, RUN = 1, FROM_MEMORY = 2 };
#define FAULTED (1u << 31)

static const uint64_t iova = 0x7000;
static int device;
static volatile unsigned char *registers;

static struct vfio_region_info region(unsigned index)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = index };
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	return info;
}

static void set_config(unsigned at, uint16_t value)
{
	CHECK(pwrite(device, &value, 2, (off_t)region(VFIO_PCI_CONFIG_REGION_INDEX).offset + at) == 2);
}

static void open_device(void)
{
	int container = open("/dev/vfio/vfio", O_RDWR), group = open("/dev/vfio/1", O_RDWR);
	void *memory = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE | MAP_POPULATE, -1, 0);
	struct vfio_iommu_type1_dma_map map = { sizeof map, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, (uintptr_t)memory, iova, PAGE };
	CHECK(container >= 0 && group >= 0 && memory != MAP_FAILED);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
	CHECK((device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0")) >= 0);
	CHECK(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
	struct vfio_region_info bar = region(0);
	registers = mmap(0, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(registers != MAP_FAILED);
}

static void copy_is_refused(uint32_t command)
{
	volatile uint32_t *state = (volatile uint32_t *)(registers + CMD);
	*(volatile uint64_t *)(registers + ADDR) = iova;
	*state = command;
	for (unsigned turns = 0; *state & RUN; turns++) {
		CHECK(turns < 600000);
		usleep(100);
	}
	CHECK(*state == FAULTED);
}

int main(int count, char **words)
{
	const char *how = count > 1 ? words[1] : "";
	uint32_t word;
	open_device();
	if (!strcmp(how, "read")) {
		copy_is_refused(RUN | FROM_MEMORY);
	} else if (!strcmp(how, "write-after-use")) {
		set_config(4, 6);
		set_config(4, 2);
		copy_is_refused(RUN);
	} else if (!strcmp(how, "memory-off")) {
		set_config(4, 4);
		FAILS(pread(device, &word, 4, (off_t)region(0).offset), EIO);
	} else if (!strcmp(how, "asleep")) {
		set_config(4, 6);
		set_config(0x44, 3);
		FAILS(pwrite(device, &word, 4, (off_t)region(0).offset), EIO);
	} else {
		return 2;
	}
	puts("ok");
	return 0;
}
