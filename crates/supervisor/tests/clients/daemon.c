/* Leaves a daemon behind, forked twice and in a session of its own. It writes "ended" to argv[1] after argv[2] ms. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	pid_t child = fork();
	if (child == 0) {
		setsid();
		if (fork() != 0)
			_exit(0);
		usleep(atoi(argv[2]) * 1000);
		int fd = open(argv[1], O_WRONLY | O_CREAT, 0600);
		if (write(fd, "ended", 5) != 5)
			_exit(1);
		_exit(0);
	}
	waitpid(child, NULL, 0);
	return 3;
}
