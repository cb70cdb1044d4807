/*
 * Makes calls that a filter stops while signals arrive a thousand times a second, whose handler does not restart calls. None of
 * these calls ever answers EINTR without a filter. Prints how many calls it made, how many signals came, how many calls EINTR.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/time.h>

#include "check.h"

static volatile long signals;

static void tick(int signal)
{
	(void)signal;
	signals++;
}

int main(int count, char **words)
{
	struct sigaction action = { .sa_handler = tick };
	struct itimerval timer = { { 0, 1000 }, { 0, 1000 } };
	long calls = count > 1 ? atol(words[1]) : 1000, interrupted = 0;
	int container = open("/dev/vfio/vfio", O_RDWR);
	struct stat stat;
	char path[64];
	CHECK(container >= 0 && sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &timer, NULL) == 0);
	for (long i = 0; i < calls; i++) {
		long answer;
		switch (i % 4) {
		case 0:
			if ((answer = open("/etc/passwd", O_RDONLY)) >= 0)
				close((int)answer);
			break;
		case 1:
			answer = fstat(container, &stat);
			break;
		case 2:
			answer = readlink("/proc/self/fd/0", path, sizeof path);
			break;
		default:
			answer = ioctl(container, _IO(';', 0x64));
		}
		CHECK(answer >= 0 || errno == EINTR);
		interrupted += answer < 0;
	}
	printf("%ld %ld %ld\n", calls, signals, interrupted);
	return 0;
}
