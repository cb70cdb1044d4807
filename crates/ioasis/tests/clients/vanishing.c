/*
 * Loads the first register of BAR 0 of the device until it is gone, and says what came of it: by a system call, or with
 * "mapped" by the mapping alone.
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

static void need(int good, const char *what)
{
	if (!good) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	int mapped = argc > 1 && !strcmp(argv[1], "mapped");
	int container = open("/dev/vfio/vfio", O_RDWR);
	int group = open("/dev/vfio/1", O_RDWR);
	need(container >= 0 && group >= 0, "open");
	need(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), "SET_CONTAINER");
	need(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), "SET_IOMMU");
	int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:01:00.0");
	need(device >= 0, "GET_DEVICE_FD");

	int gone = eventfd(0, EFD_CLOEXEC);
	struct {
		struct vfio_irq_set set;
		int fd;
	} request = {
		{ sizeof(request), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
		  VFIO_PCI_REQ_IRQ_INDEX, 0, 1 }, gone };
	need(!ioctl(device, VFIO_DEVICE_SET_IRQS, &request), "SET_IRQS");

	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = 0 };
	need(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar), "GET_REGION_INFO");
	uint32_t value = 0;
	if (mapped) {
		volatile uint32_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
					       device, bar.offset);
		need(page != MAP_FAILED, "mmap");
		value = page[0];
		printf("loaded %#x\n", value);
	} else {
		errno = 0;
		pread(device, &value, 4, bar.offset);
	}
	struct pollfd wait = { gone, POLLIN, 0 };
	need(poll(&wait, 1, 30000) == 1, "no request eventfd");
	while (pread(device, &value, 4, bar.offset) >= 0)
		usleep(1000);
	printf("%s\n", errno == ENODEV ? "ENODEV" : strerror(errno));
	return 0;
}
