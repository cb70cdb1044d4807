/* A program on DPDK: its bus lists the device, its VFIO code opens it and maps its memory, and the device copies a page. */
#include <errno.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <rte_bus_pci.h>
#include <rte_eal.h>
#include <rte_malloc.h>
#include <rte_vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

#define DEVICES "/sys/bus/pci/devices"
#define PAGE 4096u

static struct vfio_region_info region(int device, uint32_t index)
{
	struct vfio_region_info info = { .argsz = sizeof info, .index = index };
	CHECK(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) == 0);
	return info;
}

/* Has the device move a page: 3 from memory into it, 1 back. */
static void command(volatile uint32_t *registers, uint64_t address, uint32_t code)
{
	registers[0] = (uint32_t)address;
	registers[1] = (uint32_t)(address >> 32);
	registers[2] = code;
	for (unsigned turns = 0; registers[2] & 1; turns++) {
		CHECK(turns < 600000);
		usleep(100);
	}
}

int main(int argc, char **argv)
{
	int used = rte_eal_init(argc, argv), device;
	struct vfio_device_info info = { .argsz = sizeof info };
	CHECK(used >= 0 && used + 1 < argc);
	char *name = argv[used + 1];
	rte_pci_dump(stdout);
	CHECK(rte_eal_iova_mode() == RTE_IOVA_VA);
	CHECK(rte_vfio_is_enabled("vfio"));
	CHECK(rte_vfio_setup_device(DEVICES, name, &device, &info) == 0);

	struct vfio_region_info config = region(device, VFIO_PCI_CONFIG_REGION_INDEX);
	uint16_t bits = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	CHECK(pwrite(device, &bits, 2, (off_t)config.offset + PCI_COMMAND) == 2);
	struct vfio_region_info bar = region(device, VFIO_PCI_BAR0_REGION_INDEX);
	void *registers = mmap(0, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(registers != MAP_FAILED);

	unsigned char *memory = rte_malloc(NULL, 2 * PAGE, PAGE);
	CHECK(memory);
	for (unsigned i = 0; i < PAGE; i++)
		memory[i] = (unsigned char)(i * 7 + 3);
	uint64_t iova = rte_malloc_virt2iova(memory);
	command(registers, iova, 3);
	command(registers, iova + PAGE, 1);
	CHECK(memcmp(memory, memory + PAGE, PAGE) == 0);
	rte_free(memory);
	CHECK(munmap(registers, bar.size) == 0);
	CHECK(rte_vfio_release_device(DEVICES, name, device) == 0);
	CHECK(rte_eal_cleanup() == 0);
	puts("copied");
	return 0;
}
