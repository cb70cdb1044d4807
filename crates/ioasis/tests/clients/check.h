/* A condition that must hold; FAILS is a call that must be refused with an errno. */
#pragma once
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                                                                    \
	do {                                                                                                           \
		if (!(what)) {                                                                                         \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #what, strerror(errno));                \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)
#define FAILS(call, number) CHECK((call) == -1 && errno == (number))
