/*
 * Times an ioctl with 24 bytes in and out, IOMMU_OPTION reading the accounting mode: on /dev/iommu with "iommu", else on
 * standard input. Prints the median in nanoseconds, or, with a number of threads, how many calls a second all of them make.
 */
#include <fcntl.h>
#include <pthread.h>
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

static int fd;

static void call(void)
{
	struct option option = { .size = sizeof(option), .op = 1 };
	if (ioctl(fd, IOMMU_OPTION, &option))
		exit(2);
}

static void *calls(void *unused)
{
	for (int i = 0; i < CALLS; i++)
		call();
	return unused;
}

static long now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int throughput(int count)
{
	pthread_t threads[16];
	long begin = now();
	for (int i = 0; i < count && i < 16; i++)
		if (pthread_create(&threads[i], NULL, calls, NULL))
			return 3;
	for (int i = 0; i < count && i < 16; i++)
		pthread_join(threads[i], NULL);
	printf("%.0f\n", (double)CALLS * count * 1e9 / (double)(now() - begin));
	return 0;
}

int main(int argc, char **argv)
{

	if (argc > 1 && !strcmp(argv[1], "iommu"))
		fd = open("/dev/iommu", O_RDWR);
	if (argc > 2)
		return throughput(atoi(argv[2]));
	for (int i = 0; i < CALLS; i++) {
		long start = now();
		call();
		times[i] = now() - start;
	}
	qsort(times, CALLS, sizeof(times[0]), compare);
	printf("%ld\n", times[CALLS / 2]);
	return 0;
}
