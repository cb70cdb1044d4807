/*
 * Waits with a device in use to be looked at, and says what happens to it: "looking hold" binds 0000:01:00.0 and maps two
 * pages at 0x100000; "looking polite" besides closes the device when it is asked for. "looking ask FD NAME" is a
 * process of a run that asks the run itself, through a descriptor of the folder with the sockets.
 */
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"

/* Newer than the headers of some hosts. */
struct bind { uint32_t argsz, flags; int32_t iommufd; uint32_t out_devid; uint64_t token; };
struct attach { uint32_t argsz, flags, pt_id, pasid; };
struct ioas_alloc { uint32_t size, flags, out_ioas_id; };
struct ioas_map { uint32_t size, flags, ioas_id, reserved; uint64_t user_va, length, iova; };
#define BIND _IO(';', 0x76)
#define ATTACH _IO(';', 0x77)
#define IOAS_ALLOC _IO(';', 0x81)
#define IOAS_MAP _IO(';', 0x85)

static const char *const NODE = "/dev/vfio/devices/vfio0";

static int arm(int device, unsigned index)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} call = { { sizeof(call), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 1 } };
	call.fd = eventfd(0, EFD_CLOEXEC);
	CHECK(call.fd >= 0);
	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, &call));
	return call.fd;
}

static void say(const char *text)
{
	puts(text);
	fflush(stdout);
}

static int ask(const char *fd, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%s/%s", fd, name);
	int sock = socket(AF_UNIX, SOCK_STREAM, 0);
	CHECK(sock >= 0);
	if (connect(sock, (void *)&address, sizeof(address))) {
		printf("connect: %s\n", strerror(errno));
		return 0;
	}
	static const char request[] = "{\"version\":1,\"ask\":\"surprise-remove\",\"device\":\"0000:01:00.0\"}\n";
	/* Who is not answered may be cut off before it has asked. */
	send(sock, request, sizeof(request) - 1, MSG_NOSIGNAL);
	char answer[512] = "";
	for (size_t at = 0; at < sizeof(answer) - 1;) {
		ssize_t got = read(sock, answer + at, sizeof(answer) - 1 - at);
		if (got <= 0)
			break;
		at += (size_t)got;
	}
	printf("%s", answer);
	return 0;
}

/* What a removed device answers. */
static void look(int device, off_t bar, volatile uint32_t *page)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	uint32_t word = 0;
	int gone = ioctl(device, VFIO_DEVICE_GET_INFO, &info) == -1 && errno == ENODEV;
	int read_gone = pread(device, &word, 4, bar) == -1 && errno == ENODEV;
	int again = open(NODE, O_RDWR);
	printf("ioctl %s, pread %s, open %s, page %#x\n", gone ? "ENODEV" : "goes", read_gone ? "ENODEV" : "goes",
	       again >= 0 ? "goes" : strerror(errno), page[0]);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "ask"))
		return ask(argv[2], argv[3]);
	int polite = argc == 2 && !strcmp(argv[1], "polite");
	int iommufd = open("/dev/iommu", O_RDWR);
	int device = open(NODE, O_RDWR);
	CHECK(iommufd >= 0 && device >= 0);
	struct bind bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	CHECK(!ioctl(device, BIND, &bind));
	struct ioas_alloc alloc = { .size = sizeof(alloc) };
	CHECK(!ioctl(iommufd, IOAS_ALLOC, &alloc));
	void *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	/* At this address, to be read and written. */
	struct ioas_map map = { .size = sizeof(map), .flags = 7, .ioas_id = alloc.out_ioas_id };
	map.user_va = (uintptr_t)memory;
	map.length = 8192;
	map.iova = 0x100000;
	CHECK(!ioctl(iommufd, IOAS_MAP, &map));
	struct attach attach = { .argsz = sizeof(attach), .pt_id = alloc.out_ioas_id };
	CHECK(!ioctl(device, ATTACH, &attach));

	uint16_t command = 6;
	CHECK(pwrite(device, &command, 2, ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4) == 2);
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = 0 };
	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar));
	volatile uint32_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
	CHECK(page != MAP_FAILED);
	arm(device, VFIO_PCI_MSI_IRQ_INDEX);
	struct pollfd waits[] = {
		{ arm(device, VFIO_PCI_REQ_IRQ_INDEX), POLLIN, 0 },
		{ arm(device, VFIO_PCI_ERR_IRQ_INDEX), POLLIN, 0 },
		{ 0, POLLIN, 0 },
	};
	say("ready");
	for (;;) {
		uint64_t count;
		CHECK(poll(waits, 3, 60000) > 0);
		if (waits[0].revents) {
			CHECK(read(waits[0].fd, &count, 8) == 8);
			say("REQ");
			if (polite) {
				CHECK(!munmap((void *)page, 4096));
				CHECK(!close(device));
				say("closed");
				int again = open(NODE, O_RDWR);
				say(again == -1 ? strerror(errno) : "open");
				char end;
				return read(0, &end, 1) > 0;
			}
		}
		if (waits[1].revents) {
			CHECK(read(waits[1].fd, &count, 8) == 8);
			say("ERR");
		}
		if (waits[2].revents) {
			char line[16];
			if (read(0, line, sizeof(line)) <= 0)
				return 0;
			look(device, (off_t)bar.offset, page);
		}
	}
}
