/* A driver of testdev on a machine of POWER's, by version 1 or 2 (argv[1]) of the SPAPR container: the window, what it costs, a copy
 * through it, and an error that freezes the device until it is recovered. */
#include "check.h"

#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define SECOND (1ul << 59)

static int container, group, device;
static uint64_t bar;
static char *memory;

/* KiB of VmLck. */
static unsigned long locked(void)
{
	char line[128];
	unsigned long kib = ~0ul;
	FILE *status = fopen("/proc/self/status", "r");
	CHECK(status);
	while (fgets(line, sizeof(line), status))
		sscanf(line, "VmLck: %lu", &kib);
	fclose(status);
	return kib;
}

static int map(void *vaddr, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map map = { .argsz = sizeof(map), .vaddr = (uintptr_t)vaddr, .iova = iova, .size = size,
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE };
	return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

static int unmap(uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = { .argsz = sizeof(unmap), .iova = iova, .size = size };
	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
}

static int memory_range(unsigned long request, void *vaddr, uint64_t size)
{
	struct vfio_iommu_spapr_register_memory range = { .argsz = sizeof(range), .vaddr = (uintptr_t)vaddr, .size = size };
	return ioctl(container, request, &range);
}

static int eeh(uint32_t op)
{
	struct vfio_eeh_pe_op what = { .argsz = sizeof(what), .op = op };
	return ioctl(container, VFIO_EEH_PE_OP, &what);
}

/* Has the device copy a page from (3) or to (1) an address, and waits for it. */
static void copy(uint64_t iova, uint32_t how)
{
	CHECK(pwrite(device, &iova, 8, bar) == 8);
	CHECK(pwrite(device, &how, 4, bar + 8) == 4);
	for (int turn = 0; turn < 5000 && (how & 1) && how != ~0u; turn++) {
		usleep(1000);
		CHECK(pread(device, &how, 4, bar + 8) == 4);
	}
}

static void open_device(uint64_t version)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	uint16_t command = 6;
	container = open("/dev/vfio/vfio", O_RDWR);
	group = open("/dev/vfio/1", O_RDWR);
	CHECK(container >= 0 && group >= 0);
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1_IOMMU) == 0);
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_SPAPR_TCE_v2_IOMMU) == 1);
	CHECK(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_EEH) == 1);
	CHECK(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
	FAILS(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), ENODEV);
	CHECK(ioctl(container, VFIO_SET_IOMMU, version) == 0);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	CHECK(device >= 0);
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	CHECK(pwrite(device, &command, 2, info.offset + 4) == 2);
	info.index = 0;
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	bar = info.offset;
}

/* The device brings the page at `from` to `to`, both mapped at window addresses. */
static void through(uint64_t window)
{
	memset(memory, 'a', PAGE);
	memset(memory + PAGE, 'b', PAGE);
	copy(window, 3);
	copy(window + PAGE, 1);
	CHECK(memcmp(memory, memory + PAGE, PAGE) == 0 && memory[PAGE] == 'a');
}

static void frozen(uint64_t nothing)
{
	uint32_t word = 0;
	CHECK(eeh(VFIO_EEH_PE_GET_STATE) == VFIO_EEH_PE_STATE_NORMAL);
	copy(nothing, 3);
	CHECK(eeh(VFIO_EEH_PE_GET_STATE) == VFIO_EEH_PE_STATE_STOPPED);
	CHECK(pread(device, &word, 4, bar) == 4 && word == ~0u);
	CHECK(eeh(VFIO_EEH_PE_RESET_HOT) == 0);
	CHECK(eeh(VFIO_EEH_PE_GET_STATE) == VFIO_EEH_PE_STATE_STOPPED);
	CHECK(eeh(VFIO_EEH_PE_RESET_DEACTIVATE) == 0);
	CHECK(eeh(VFIO_EEH_PE_CONFIGURE) == 0);
	CHECK(eeh(VFIO_EEH_PE_GET_STATE) == VFIO_EEH_PE_STATE_NORMAL);
	CHECK(pread(device, &word, 4, bar) == 4 && word != ~0u);
}

static void first(void)
{
	struct vfio_iommu_spapr_tce_info info = { .argsz = sizeof(info) };
	unsigned long before = locked();
	open_device(VFIO_SPAPR_TCE_IOMMU);
	CHECK(ioctl(container, VFIO_IOMMU_SPAPR_TCE_GET_INFO, &info) == 0);
	CHECK(info.flags == 0 && info.dma32_window_start == 0 && info.dma32_window_size == 1u << 30);
	FAILS(map(memory, 0, PAGE), EPERM);
	CHECK(ioctl(container, VFIO_IOMMU_ENABLE) == 0);
	CHECK(locked() == before + (1 << 20));
	CHECK(map(memory, 0, 2 * PAGE) == 0);
	through(0);
	CHECK(unmap(0, PAGE) == 0);
	frozen(0);
	CHECK(ioctl(container, VFIO_IOMMU_DISABLE) == 0);
	close(device);
	close(group);
	close(container);
	CHECK(locked() == before);
}

static void second(void)
{
	struct vfio_iommu_spapr_tce_info info = { .argsz = sizeof(info) };
	struct vfio_iommu_spapr_tce_create create = { .argsz = sizeof(create), .page_shift = 12, .window_size = 1 << 24, .levels = 1 };
	struct vfio_iommu_spapr_tce_remove remove = { .argsz = sizeof(remove) };
	unsigned long before = locked();
	open_device(VFIO_SPAPR_TCE_v2_IOMMU);
	CHECK(ioctl(container, VFIO_IOMMU_SPAPR_TCE_GET_INFO, &info) == 0);
	CHECK(info.flags == VFIO_IOMMU_SPAPR_INFO_DDW && info.ddw.levels == 5 && info.ddw.max_dynamic_windows_supported == 2);
	CHECK(memory_range(VFIO_IOMMU_SPAPR_REGISTER_MEMORY, memory, 16 * PAGE) == 0);
	FAILS(memory_range(VFIO_IOMMU_SPAPR_REGISTER_MEMORY, memory, 16 * PAGE), EBUSY);
	FAILS(memory_range(VFIO_IOMMU_SPAPR_REGISTER_MEMORY, memory, PAGE), EINVAL);
	CHECK(locked() == before + 64);
	CHECK(ioctl(container, VFIO_IOMMU_SPAPR_TCE_CREATE, &create) == 0 && create.start_addr == SECOND);
	FAILS(ioctl(container, VFIO_IOMMU_SPAPR_TCE_CREATE, &create), ENOSPC);
	CHECK(map(memory, SECOND + PAGE, 2 * PAGE) == 0);
	FAILS(map(memory + 16 * PAGE, SECOND, PAGE), EINVAL);
	through(SECOND + PAGE);
	frozen(0);
	CHECK(ioctl(container, VFIO_IOMMU_SPAPR_TCE_REMOVE, &remove) == 0);
	FAILS(map(memory, 0, PAGE), ENXIO);
	CHECK(unmap(SECOND, 1 << 24) == 0);
	CHECK(memory_range(VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, memory, 16 * PAGE) == 0);
	FAILS(memory_range(VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, memory, 16 * PAGE), ENOENT);
	close(device);
	close(group);
	close(container);
	CHECK(locked() == before);
}

int main(int argc, char **argv)
{
	memory = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED && argc == 2);
	if (argv[1][0] == '1')
		first();
	else
		second();
	puts("ok");
	return 0;
}
