/* Installs a seccomp filter with a listener of its own; its exit status is the errno. With an argument it asks for one in ways
   that name no filter, as programs do that want to know what the kernel has. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_refused(struct sock_fprog *program, int number)
{
	int flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program) == -1 && errno == number;
}

int main(int argc, char **argv)
{
	struct sock_filter code[] = { { 0x06, 0, 0, SECCOMP_RET_ALLOW } };
	struct sock_fprog program = { 1, code };

	if (argc > 1) {
		struct sock_fprog empty = { 0, code }, none = { 1, NULL }, unreadable = { 4, (void *)-64 };
		return !(is_refused(NULL, EFAULT) && is_refused((void *)-64, EFAULT) &&
			 is_refused(&empty, EINVAL) && is_refused(&none, EINVAL) &&
			 is_refused(&unreadable, EFAULT) && argv[1]);
	}
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		return 100;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program) < 0)
		return errno;
	return 0;
}
