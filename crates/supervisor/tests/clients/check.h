/* A condition that must hold; FAILS is a call that must be refused with an errno. Standard output is told, and no handler runs. */
#pragma once
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#define CHECK(condition)                                                                        \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			printf("line %d: %s (errno %d)\n", __LINE__, #condition, errno);        \
			fflush(stdout);                                                         \
			_exit(1);                                                               \
		}                                                                               \
	} while (0)
#define FAILS(call, number) CHECK((call) == -1 && errno == (number))
