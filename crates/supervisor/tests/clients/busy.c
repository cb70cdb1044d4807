/*
 * Makes stopped system calls in argv[2] threads: opens that are not ours, of our node, and stats. Goes on for argv[1] ms, or,
 * if that is "gone", until an open of the node has failed with ENODEV. Exits 0 if the other calls always worked.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int until_gone;
static volatile long gone;
static struct timespec end;

static void *work(void *unused)
{
	struct timespec now;
	struct stat stat;

	(void)unused;
	do {
		int fd = open("/etc/passwd", O_RDONLY);
		if (fd < 0 || fstat(fd, &stat) || !S_ISREG(stat.st_mode))
			_exit(10);
		close(fd);
		if (open("/no/such/file", O_RDONLY) >= 0 || errno != ENOENT)
			_exit(11);
		fd = open("/dev/iommu", O_RDWR);
		if (fd >= 0)
			close(fd);
		else if (errno == ENODEV)
			__sync_fetch_and_add(&gone, 1);
		else if (errno != ENXIO)
			_exit(12);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (until_gone ? !gone
		 : now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	int ms = atoi(argv[1]), count = argc > 2 ? atoi(argv[2]) : 1;

	until_gone = !strcmp(argv[1], "gone");
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_nsec += (ms % 1000) * 1000000L;
	end.tv_sec += ms / 1000 + end.tv_nsec / 1000000000L;
	end.tv_nsec %= 1000000000L;
	puts("ready");
	fflush(stdout);
	for (int i = 0; i < count; i++)
		pthread_create(&threads[i], NULL, work, NULL);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
