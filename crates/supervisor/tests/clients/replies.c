/* What comes back into a program's memory: where it may not be written, where the bytes are there already, where pages are
 * protected by a userfaultfd. The first thing that is wrong is printed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "check.h"

/* linux/iommufd.h, linux/vfio.h */
#define IOAS_ALLOC 0x3b81
#define IOAS_MAP 0x3b85
#define IOAS_UNMAP 0x3b86
#define UNMAP_DMA 0x3b72
#define MAP_DMA 0x3b71
#define VFIO_IOAS 0x3b88
#define CONFIG (8ull << 40)
#define PAGE 4096ull

struct map { uint32_t size, flags, ioas, reserved; uint64_t va, length, iova; };
struct unmap { uint32_t size, ioas; uint64_t iova, length; };
struct map_dma { uint32_t argsz, flags; uint64_t vaddr, iova, size; };
struct unmap_dma { uint32_t argsz, flags; uint64_t iova, size; };
struct vfio_ioas { uint32_t size, ioas; uint16_t op, reserved; };

static int iommu;
static uint32_t ioas;
static char *memory;

static void map_at(uint64_t iova, uint64_t length)
{
	struct map call = { sizeof call, 7, ioas, 0, (uintptr_t)memory, length, iova };
	CHECK(ioctl(iommu, IOAS_MAP, &call) == 0 && call.iova == iova);
}

static char *pages(int protection, int flags)
{
	char *at = mmap(0, 2 * PAGE, protection, flags | MAP_ANONYMOUS, -1, 0);
	CHECK(at != MAP_FAILED);
	return at;
}

/* Whether anything is mapped at the address. */
static int is_mapped(uint64_t iova)
{
	struct map call = { sizeof call, 7, ioas, 0, (uintptr_t)memory, PAGE, iova };
	struct unmap undo = { sizeof undo, ioas, iova, PAGE };
	if (ioctl(iommu, IOAS_MAP, &call) == -1)
		return 1;
	CHECK(ioctl(iommu, IOAS_UNMAP, &undo) == 0);
	return 0;
}

/* The reply is of the bytes that are there, to memory that may not be written: EFAULT, and the call was carried out. */
static void read_only(int flags)
{
	char *page = pages(PROT_READ | PROT_WRITE, flags);
	struct unmap call = { sizeof call, ioas, 0x10000, PAGE };
	struct unmap_dma dma = { sizeof dma, 0, 0x20000, PAGE };
	memcpy(page, &call, sizeof call);
	memcpy(page + 64, &dma, sizeof dma);
	map_at(0x10000, PAGE);
	map_at(0x20000, PAGE);
	CHECK(mprotect(page, PAGE, PROT_READ) == 0);
	FAILS(ioctl(iommu, IOAS_UNMAP, page), EFAULT);
	FAILS(ioctl(iommu, UNMAP_DMA, page + 64), EFAULT);
	CHECK(!is_mapped(0x10000) && !is_mapped(0x20000));
	CHECK(!memcmp(page, &call, sizeof call) && !memcmp(page + 64, &dma, sizeof dma));
}

/* The second half of the struct lies where nothing may be written. */
static void half(void)
{
	char *page = pages(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	struct unmap call = { sizeof call, ioas, 0x10000, PAGE };
	char *at = page + PAGE - 12;
	memcpy(at, &call, sizeof call);
	map_at(0x10000, PAGE);
	CHECK(mprotect(page + PAGE, PAGE, PROT_READ) == 0);
	FAILS(ioctl(iommu, IOAS_UNMAP, at), EFAULT);
	CHECK(!is_mapped(0x10000));
}

/* What changed is written, though the rest is there already. */
static void changed(int flags)
{
	struct unmap *call = (void *)pages(PROT_READ | PROT_WRITE, flags);
	struct unmap_dma *dma = (void *)((char *)call + PAGE - 8);
	map_at(0x10000, 2 * PAGE);
	*call = (struct unmap){ sizeof *call, ioas, 0, UINT64_MAX };
	CHECK(ioctl(iommu, IOAS_UNMAP, call) == 0 && call->length == 2 * PAGE && call->ioas == ioas);
	map_at(0x10000, PAGE);
	*dma = (struct unmap_dma){ sizeof *dma, 0, 0, 0x100000 };
	CHECK(ioctl(iommu, UNMAP_DMA, dma) == 0 && dma->size == PAGE && dma->iova == 0);
	struct map *map = (void *)call;
	*map = (struct map){ sizeof *map, 6, ioas, 0, (uintptr_t)memory, PAGE, 12345 };
	CHECK(ioctl(iommu, IOAS_MAP, map) == 0 && map->iova != 12345);
	struct unmap undo = { sizeof undo, ioas, map->iova, PAGE };
	CHECK(ioctl(iommu, IOAS_UNMAP, &undo) == 0);
}

static int watch(char *at, uint64_t mode)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	struct uffdio_api api = { .api = UFFD_API };
	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	CHECK(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
	struct uffdio_register range = { { (uintptr_t)at, PAGE }, mode, 0 };
	CHECK(ioctl(fd, UFFDIO_REGISTER, &range) == 0);
	return fd;
}

/* Gives every page that is asked for. */
static void *give(void *argument)
{
	static char zeroes[PAGE];
	int fd = *(int *)argument;
	struct uffd_msg message;
	while (read(fd, &message, sizeof message) == sizeof message) {
		struct uffdio_copy copy = { message.arg.pagefault.address & -PAGE, (uintptr_t)zeroes, PAGE, 0, 0 };
		usleep(20000);
		ioctl(fd, UFFDIO_COPY, &copy);
	}
	return 0;
}

/* The bytes read from a device go to a page that its program gives when it is asked for it. */
static void given(int device)
{
	char *page = pages(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = { .api = UFFD_API };
	/* A plain user's is asked for pages of its own accesses only. */
	if (fd < 0)
		return;
	CHECK(ioctl(fd, UFFDIO_API, &api) == 0);
	struct uffdio_register range = { { (uintptr_t)page, PAGE }, UFFDIO_REGISTER_MODE_MISSING, 0 };
	CHECK(ioctl(fd, UFFDIO_REGISTER, &range) == 0);
	pthread_t giver;
	CHECK(pthread_create(&giver, 0, give, &fd) == 0);
	uint32_t id = 0;
	CHECK(pread(device, &id, 4, CONFIG) == 4 && id != 0);
	CHECK(pread(device, page + 100, 4, CONFIG) == 4 && !memcmp(page + 100, &id, 4));
}

/* Bytes that are there already are as if written, also where the program protects its page. */
static void protected(void)
{
	char *page = pages(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	struct unmap call = { sizeof call, ioas, 0x10000, PAGE };
	memcpy(page, &call, sizeof call);
	int fd = watch(page, UFFDIO_REGISTER_MODE_WP);
	struct uffdio_writeprotect protect = { { (uintptr_t)page, PAGE }, UFFDIO_WRITEPROTECT_MODE_WP };
	CHECK(ioctl(fd, UFFDIO_WRITEPROTECT, &protect) == 0);
	map_at(0x10000, PAGE);
	CHECK(ioctl(iommu, IOAS_UNMAP, page) == 0);
	CHECK(!is_mapped(0x10000) && !memcmp(page, &call, sizeof call));
}

int main(void)
{
	uint32_t alloc[3] = { sizeof alloc };
	CHECK((iommu = open("/dev/iommu", O_RDWR)) >= 0 && ioctl(iommu, IOAS_ALLOC, alloc) == 0);
	ioas = alloc[2];
	struct vfio_ioas compat = { sizeof compat, ioas, 1, 0 };
	CHECK(ioctl(iommu, VFIO_IOAS, &compat) == 0);
	memory = pages(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	int device = open("/dev/vfio/devices/vfio0", O_RDWR);
	uint32_t bind[6] = { sizeof bind, 0, (uint32_t)iommu };
	CHECK(device >= 0 && ioctl(device, 0x3b76, bind) == 0);
	read_only(MAP_PRIVATE);
	read_only(MAP_SHARED);
	half();
	changed(MAP_PRIVATE);
	changed(MAP_SHARED);
	given(device);
	protected();
	printf("ok\n");
	return 0;
}
