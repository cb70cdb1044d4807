/*
 * Times an ioctl with 24 bytes in and out, IOMMU_OPTION reading the accounting mode: on /dev/iommu with "iommu", on
 * standard input without. Prints the median in nanoseconds.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#define IOMMU_OPTION 0x3b87

struct option {
	uint32_t size, option_id;
	uint16_t op, reserved;
	uint32_t object_id;
	uint64_t val64;
};

#define CALLS 20000

static long times[CALLS];

static int compare(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	int fd = 0;

	if (argc > 1 && !strcmp(argv[1], "iommu"))
		fd = open("/dev/iommu", O_RDWR);
	for (int i = 0; i < CALLS; i++) {
		struct timespec start, end;
		struct option option = { .size = sizeof(option), .op = 1 };
		clock_gettime(CLOCK_MONOTONIC, &start);
		if (ioctl(fd, IOMMU_OPTION, &option))
			return 2;
		clock_gettime(CLOCK_MONOTONIC, &end);
		times[i] = (end.tv_sec - start.tv_sec) * 1000000000L + end.tv_nsec - start.tv_nsec;
	}
	qsort(times, CALLS, sizeof(times[0]), compare);
	printf("%ld\n", times[CALLS / 2]);
	return 0;
}
