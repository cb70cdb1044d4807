/* Programs that wait, and what another program sees meanwhile. argv: what to do, how pages are held back, a folder. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

#include "slow.h"

/* linux/vfio.h */
#define GET_API_VERSION 0x3b64
#define SET_IOMMU 0x3b66
#define GROUP_SET_CONTAINER 0x3b68
#define GROUP_GET_DEVICE_FD 0x3b6a
#define DEVICE_RESET 0x3b6f
#define IOMMU_MAP_DMA 0x3b71
#define IOMMU_UNMAP_DMA 0x3b72
#define DEVICE_BIND_IOMMUFD 0x3b76
#define DEVICE_ATTACH_IOMMUFD_PT 0x3b77
#define IOMMU_IOAS_ALLOC 0x3b81
#define IOMMU_IOAS_MAP 0x3b85
#define BAR0 (1ULL << 40)
#define CONFIG (7ULL << 40)

struct device {
	int container, group, device;
	volatile uint64_t *bar;
};

static struct device opened(int group, const char *name)
{
	struct device open_device;
	char path[32];
	uint16_t command = 6;

	sprintf(path, "/dev/vfio/%d", group);
	open_device.container = open("/dev/vfio/vfio", O_RDWR);
	open_device.group = open(path, O_RDWR);
	CHECK(open_device.container >= 0 && open_device.group >= 0);
	CHECK(ioctl(open_device.group, GROUP_SET_CONTAINER, &open_device.container) == 0);
	CHECK(ioctl(open_device.container, SET_IOMMU, 3) == 0);
	open_device.device = ioctl(open_device.group, GROUP_GET_DEVICE_FD, name);
	CHECK(open_device.device >= 0);
	CHECK(pwrite(open_device.device, &command, 2, CONFIG + 4) == 2);
	open_device.bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, open_device.device, BAR0);
	CHECK(open_device.bar != MAP_FAILED);
	return open_device;
}

static void closed(struct device *device)
{
	munmap((void *)device->bar, 4096);
	close(device->device);
	close(device->group);
	close(device->container);
}

/* Lets a device read a page that its keeper holds back. */
static void read_slowly(struct device *device, char *pages, int socket)
{
	struct { uint32_t argsz, flags; uint64_t vaddr, iova, size; } map = {
		sizeof(map), 3, (uintptr_t)pages, 0, SLOW_BYTES
	};

	CHECK(ioctl(device->container, IOMMU_MAP_DMA, &map) == 0);
	device->bar[0] = 4096;
	*(volatile uint32_t *)&device->bar[1] = 3;
	await_waiter(socket);
}

/* What a program that has nothing to do with it does. */
static void others_go_on(void)
{
	struct device other = opened(2, "0000:02:00.0");

	CHECK(open("/etc/hostname", O_RDONLY) >= 0 || errno == ENOENT);
	CHECK(ioctl(other.container, GET_API_VERSION) == 0);
	CHECK(ioctl(other.device, DEVICE_RESET) == 0);
	closed(&other);
	other = opened(2, "0000:02:00.0");
	closed(&other);
}

/* The group of a device that is still being closed is busy; once the device has ended it is not. */
static void group_is_free(int socket)
{
	int fd = open("/dev/vfio/1", O_RDWR);

	/* Memory that is refused at once keeps no device. */
	CHECK(fd >= 0 || errno == EBUSY);
	if (fd >= 0)
		close(fd);
	give(socket);
	for (int i = 0; i < 12000; i++) {
		if ((fd = open("/dev/vfio/1", O_RDWR)) >= 0)
			break;
		CHECK(errno == EBUSY);
		usleep(5000);
	}
	CHECK(fd >= 0);
}

/* A device that reads a page which nobody gives is left behind by a program that ends. */
static void left(char kind, const char *folder)
{
	char path[256];
	int socket = keeper();

	sprintf(path, "%s/slow", folder);
	pid_t child = fork();
	if (child == 0) {
		struct device device = opened(1, "0000:01:00.0");
		read_slowly(&device, slow_pages(kind, socket, path), socket);
		/* The memory of a program is there as long as a device reads it, and with it every mapping. */
		munmap((void *)device.bar, 4096);
		_exit(0);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	others_go_on();
	group_is_free(socket);
}

/* The same device, closed by a program that lives on. */
static void shut(char kind, const char *folder)
{
	char path[256];
	int socket = keeper();

	sprintf(path, "%s/slow", folder);
	struct device device = opened(1, "0000:01:00.0");
	read_slowly(&device, slow_pages(kind, socket, path), socket);
	closed(&device);
	others_go_on();
	group_is_free(socket);
}

static int bind_cdev(int device)
{
	uint32_t bind[4] = { sizeof(bind), 0, open("/dev/iommu", O_RDWR), 0 };

	return ioctl(device, DEVICE_BIND_IOMMUFD, bind) ? -1 : (int)bind[2];
}

/* The same by the device's own node and an iommufd. */
static void unbound(char kind, const char *folder)
{
	char path[256];
	int socket = keeper(), fd = open("/dev/vfio/devices/vfio0", O_RDWR);
	uint32_t ioas[3] = { sizeof(ioas), 0, 0 };
	uint16_t command = 6;

	sprintf(path, "%s/slow", folder);
	int iommu = bind_cdev(fd);
	CHECK(iommu >= 0 && ioctl(iommu, IOMMU_IOAS_ALLOC, ioas) == 0);
	uint32_t attach[4] = { 12, 0, ioas[2], 0 };
	CHECK(ioctl(fd, DEVICE_ATTACH_IOMMUFD_PT, attach) == 0);
	char *pages = slow_pages(kind, socket, path);
	struct { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; } map = {
		sizeof(map), 7, ioas[2], 0, (uintptr_t)pages, SLOW_BYTES, 0
	};
	CHECK(ioctl(iommu, IOMMU_IOAS_MAP, &map) == 0);
	CHECK(pwrite(fd, &command, 2, CONFIG + 4) == 2);
	volatile uint64_t *bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, BAR0);
	bar[0] = 4096;
	*(volatile uint32_t *)&bar[1] = 3;
	await_waiter(socket);
	munmap((void *)bar, 4096);
	close(fd);
	close(iommu);
	others_go_on();
	fd = open("/dev/vfio/devices/vfio0", O_RDWR);
	CHECK(fd >= 0 && (bind_cdev(fd) >= 0 || errno == EBUSY));
	close(fd);
	group_is_free(socket);
}

static int unmap(struct device *device, uint64_t iova, uint64_t size)
{
	struct { uint32_t argsz, flags; uint64_t iova, size; } unmap = { sizeof(unmap), 0, iova, size };

	return ioctl(device->container, IOMMU_UNMAP_DMA, &unmap) || unmap.size != size;
}

/* While a device waits, what it does not use is unmapped at once; what it uses, when it has ended. */
static void unmapped(char kind, const char *folder)
{
	char path[256];
	int socket = keeper(), ended;

	sprintf(path, "%s/slow", folder);
	struct device device = opened(1, "0000:01:00.0");
	struct { uint32_t argsz, flags; uint64_t vaddr, iova, size; } map = {
		sizeof(map), 3, 0, 2 * SLOW_BYTES, 4096
	};
	for (int i = 0; i < 3; i++) {
		map.vaddr = (uintptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(ioctl(device.container, IOMMU_MAP_DMA, &map) == 0);
		map.iova += 8192;
	}
	read_slowly(&device, slow_pages(kind, socket, path), socket);
	for (int i = 0; i < 3; i++)
		CHECK(unmap(&device, 2 * SLOW_BYTES + i * 8192, 4096) == 0);
	pid_t child = fork();
	if (child == 0)
		_exit(unmap(&device, 0, SLOW_BYTES));
	usleep(100000);
	/* Memory that is refused at once keeps no device. */
	CHECK(waitpid(child, &ended, WNOHANG) == 0 || kind == KEEP_UFFD);
	give(socket);
	CHECK(waitpid(child, &ended, 0) == child || errno == ECHILD);
	CHECK(ended == 0);
	closed(&device);
}

/* Opens `path` until that is refused, says so, and keeps what it has. */
static pid_t greedy(const char *path, int told)
{
	struct rlimit limit;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child)
		return child;
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	limit.rlim_cur = limit.rlim_max;
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	while (open(path, O_RDWR) >= 0)
		;
	CHECK(errno == EMFILE);
	CHECK(write(told, "x", 1) == 1);
	pause();
	_exit(1);
}

/* Processes that take all the files they get are refused more. Others go on, and are told the truth. */
static void taken(int count)
{
	int told[2];
	char byte;
	struct stat stat;
	pid_t children[64];
	struct device mine = opened(1, "0000:01:00.0");

	CHECK(pipe(told) == 0);
	for (int i = 0; i < count; i++)
		children[i] = greedy(i % 2 ? "/dev/vfio/vfio" : "/dev/iommu", told[1]);
	for (int i = 0; i < count; i++)
		CHECK(read(told[0], &byte, 1) == 1);
	for (int i = 0; i < 3; i++) {
		pid_t child = fork();
		if (child == 0) {
			uint16_t vendor;
			CHECK(ioctl(mine.container, GET_API_VERSION) == 0);
			CHECK(ioctl(mine.device, DEVICE_RESET) == 0);
			CHECK(pread(mine.device, &vendor, 2, CONFIG) == 2 && vendor == 0x1234);
			CHECK(fstat(mine.container, &stat) == 0 && stat.st_rdev == makedev(10, 196));
			CHECK(fstat(0, &stat) == 0 && stat.st_rdev == makedev(1, 3));
			CHECK(ioctl(0, GET_API_VERSION) == -1 && errno == ENOTTY);
			others_go_on();
			_exit(0);
		}
		int status;
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	for (int i = 0; i < count; i++)
		CHECK(kill(children[i], SIGKILL) == 0 && waitpid(children[i], NULL, 0) == children[i]);
	/* What they had is there for the next. */
	pid_t child = greedy("/dev/iommu", told[1]);
	CHECK(read(told[0], &byte, 1) == 1 && kill(child, SIGKILL) == 0);
}

/* The page is held back by standard input's other end, outside the run: the program ends all the same. */
static void outlived(char kind, const char *folder)
{
	char path[256];

	sprintf(path, "%s/slow", folder);
	struct device device = opened(1, "0000:01:00.0");
	read_slowly(&device, slow_pages(kind, 0, path), 0);
}

int main(int argc, char **argv)
{
	/* Nothing here takes this long unless it hangs. */
	alarm(50);
	if (argc > 1 && !strcmp(argv[1], "keep"))
		keep(0, 1);
	if (argc < 4)
		return 2;
	char kind = argv[2][0];
	if (!strcmp(argv[1], "left"))
		left(kind, argv[3]);
	else if (!strcmp(argv[1], "shut"))
		shut(kind, argv[3]);
	else if (!strcmp(argv[1], "unbound"))
		unbound(kind, argv[3]);
	else if (!strcmp(argv[1], "unmapped"))
		unmapped(kind, argv[3]);
	else if (!strcmp(argv[1], "taken"))
		taken(atoi(argv[2]));
	else if (!strcmp(argv[1], "outlived"))
		outlived(kind, argv[3]);
	else
		return 2;
	puts("ok");
	return 0;
}
