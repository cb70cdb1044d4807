//! A list of the system calls that a process makes. Any other is not made: the process says which it was, and ends.
//!
//! The kernel remembers which numbers are allowed whatever their arguments, so that a call on the list does not run the
//! filter (`seccomp_cache_check_allow`, kernel/seccomp.c).

use ioasis_uapi::Result;

use super::{
    ARCH, Action, Arch, Filter, JUMP_EQUAL, LOAD, NUMBER, RETURN, jump, refused, statement,
};
use crate::errno::last_errno;

/// What is said first, on standard error; the number follows.
const SAID: &[u8] =
    b"ioasis: the supervisor was about to make a system call that it has no use for: ";

impl Filter {
    /// The program that lets the system calls of these numbers on x86_64 through, and no other.
    ///
    /// # Panics
    ///
    /// If there are more than 250, as far as a BPF jump reaches.
    #[must_use]
    pub fn of_allowed(numbers: &[u32]) -> Self {
        let mut code = vec![
            statement(LOAD, ARCH),
            jump(JUMP_EQUAL, Arch::X86_64.raw(), 0, numbers.len() + 1),
            statement(LOAD, NUMBER),
        ];
        for (index, &number) in numbers.iter().enumerate() {
            code.push(jump(JUMP_EQUAL, number, numbers.len() - index, 0));
        }
        code.push(statement(RETURN, Action::Trap.raw()));
        code.push(statement(RETURN, Action::Allow.raw()));
        Self { code }
    }

    /// Puts the calling thread, and all that it will start, under this filter. It cannot be taken off again. Whoever makes a
    /// call that is not allowed ends with SIGABRT, having said which it was.
    ///
    /// # Errors
    ///
    /// As [`install`](Self::install).
    pub fn enforce(&self) -> Result<()> {
        // SAFETY: 1. zeroes are a `sigaction` with an empty mask; 2. the handler only writes to a descriptor and ends the
        // process, which a handler may.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = tell_and_end as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut());
        }
        let length = u16::try_from(self.code.len()).expect("a program of one page");
        let program = libc::sock_fprog { len: length, filter: self.code.as_ptr().cast_mut() };
        // SAFETY: 1. `program` and the instructions it points to live across the call and the kernel only reads them; 2. a
        // call that the filter does not let through is not made, and its thread does not go on.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                // As an unconfined process: none of the mitigations that older kernels turn on with a filter.
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                std::ptr::from_ref(&program),
            )
        };
        if answer == 0 { Ok(()) } else { Err(refused(last_errno())) }
    }
}

/// `si_syscall` of linux/signal.h: behind `si_call_addr`, which begins the union.
const CALL_AT: usize = 24;

/// The handler of SIGSYS.
extern "C" fn tell_and_end(_: i32, info: *mut libc::siginfo_t, _: *mut std::ffi::c_void) {
    // SAFETY: 1. the kernel passes a `siginfo_t` to a handler with SA_SIGINFO; its 128 bytes hold that word.
    let number = unsafe { info.byte_add(CALL_AT).cast::<i32>().read_unaligned() };
    let mut text = [0; 128];
    text[..SAID.len()].copy_from_slice(SAID);
    let length = SAID.len() + digits(number.unsigned_abs(), &mut text[SAID.len()..]);
    // SAFETY: 1. that many bytes of `text` are written out; 2. abort(3) does not return.
    unsafe {
        libc::write(2, text.as_ptr().cast(), length);
        libc::abort()
    }
}

/// Writes `number` and a line's end, without an allocation; how many bytes that took.
fn digits(number: u32, text: &mut [u8]) -> usize {
    let count = number.checked_ilog10().map_or(1, |log| log as usize + 1);
    let mut rest = number;
    for at in (0..count).rev() {
        text[at] = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
    }
    text[count] = b'\n';
    count + 1
}

/// The number on x86_64 of the system call of this name, if it is one of `NUMBERS`.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    let found = NUMBERS.iter().find(|(known, _)| *known == name)?;
    u32::try_from(found.1).ok()
}

/// System calls by name, without those that no list here could name.
const NUMBERS: &[(&str, libc::c_long)] = &[
    ("read", libc::SYS_read),
    ("readv", libc::SYS_readv),
    ("pread64", libc::SYS_pread64),
    ("preadv", libc::SYS_preadv),
    ("preadv2", libc::SYS_preadv2),
    ("write", libc::SYS_write),
    ("writev", libc::SYS_writev),
    ("pwrite64", libc::SYS_pwrite64),
    ("pwritev", libc::SYS_pwritev),
    ("pwritev2", libc::SYS_pwritev2),
    ("lseek", libc::SYS_lseek),
    ("ftruncate", libc::SYS_ftruncate),
    ("fallocate", libc::SYS_fallocate),
    ("fsync", libc::SYS_fsync),
    ("fdatasync", libc::SYS_fdatasync),
    ("sync_file_range", libc::SYS_sync_file_range),
    ("close", libc::SYS_close),
    ("close_range", libc::SYS_close_range),
    ("dup", libc::SYS_dup),
    ("dup2", libc::SYS_dup2),
    ("dup3", libc::SYS_dup3),
    ("fcntl", libc::SYS_fcntl),
    ("open", libc::SYS_open),
    ("openat", libc::SYS_openat),
    ("openat2", libc::SYS_openat2),
    ("readlink", libc::SYS_readlink),
    ("readlinkat", libc::SYS_readlinkat),
    ("stat", libc::SYS_stat),
    ("lstat", libc::SYS_lstat),
    ("fstat", libc::SYS_fstat),
    ("newfstatat", libc::SYS_newfstatat),
    ("statx", libc::SYS_statx),
    ("statfs", libc::SYS_statfs),
    ("fstatfs", libc::SYS_fstatfs),
    ("access", libc::SYS_access),
    ("faccessat", libc::SYS_faccessat),
    ("faccessat2", libc::SYS_faccessat2),
    ("getdents64", libc::SYS_getdents64),
    ("getcwd", libc::SYS_getcwd),
    ("umask", libc::SYS_umask),
    ("mknodat", libc::SYS_mknodat),
    ("fgetxattr", libc::SYS_fgetxattr),
    ("flistxattr", libc::SYS_flistxattr),
    ("fsetxattr", libc::SYS_fsetxattr),
    ("fremovexattr", libc::SYS_fremovexattr),
    ("ioctl", libc::SYS_ioctl),
    ("pidfd_open", libc::SYS_pidfd_open),
    ("pidfd_getfd", libc::SYS_pidfd_getfd),
    ("pidfd_send_signal", libc::SYS_pidfd_send_signal),
    ("process_vm_readv", libc::SYS_process_vm_readv),
    ("process_vm_writev", libc::SYS_process_vm_writev),
    ("kcmp", libc::SYS_kcmp),
    ("poll", libc::SYS_poll),
    ("ppoll", libc::SYS_ppoll),
    ("select", libc::SYS_select),
    ("pselect6", libc::SYS_pselect6),
    ("epoll_create1", libc::SYS_epoll_create1),
    ("epoll_ctl", libc::SYS_epoll_ctl),
    ("epoll_wait", libc::SYS_epoll_wait),
    ("epoll_pwait", libc::SYS_epoll_pwait),
    ("epoll_pwait2", libc::SYS_epoll_pwait2),
    ("inotify_init1", libc::SYS_inotify_init1),
    ("inotify_add_watch", libc::SYS_inotify_add_watch),
    ("inotify_rm_watch", libc::SYS_inotify_rm_watch),
    ("eventfd2", libc::SYS_eventfd2),
    ("timerfd_create", libc::SYS_timerfd_create),
    ("timerfd_settime", libc::SYS_timerfd_settime),
    ("timerfd_gettime", libc::SYS_timerfd_gettime),
    ("signalfd4", libc::SYS_signalfd4),
    ("memfd_create", libc::SYS_memfd_create),
    ("pipe2", libc::SYS_pipe2),
    ("userfaultfd", libc::SYS_userfaultfd),
    ("io_setup", libc::SYS_io_setup),
    ("io_submit", libc::SYS_io_submit),
    ("io_getevents", libc::SYS_io_getevents),
    ("io_destroy", libc::SYS_io_destroy),
    ("socketpair", libc::SYS_socketpair),
    ("sendmsg", libc::SYS_sendmsg),
    ("recvmsg", libc::SYS_recvmsg),
    ("sendto", libc::SYS_sendto),
    ("recvfrom", libc::SYS_recvfrom),
    ("shutdown", libc::SYS_shutdown),
    ("getsockopt", libc::SYS_getsockopt),
    ("setsockopt", libc::SYS_setsockopt),
    ("mmap", libc::SYS_mmap),
    ("munmap", libc::SYS_munmap),
    ("mremap", libc::SYS_mremap),
    ("mprotect", libc::SYS_mprotect),
    ("madvise", libc::SYS_madvise),
    ("mlock", libc::SYS_mlock),
    ("munlock", libc::SYS_munlock),
    ("msync", libc::SYS_msync),
    ("mincore", libc::SYS_mincore),
    ("brk", libc::SYS_brk),
    ("membarrier", libc::SYS_membarrier),
    ("futex", libc::SYS_futex),
    ("futex_waitv", libc::SYS_futex_waitv),
    ("nanosleep", libc::SYS_nanosleep),
    ("clock_nanosleep", libc::SYS_clock_nanosleep),
    ("clock_gettime", libc::SYS_clock_gettime),
    ("clock_getres", libc::SYS_clock_getres),
    ("gettimeofday", libc::SYS_gettimeofday),
    ("time", libc::SYS_time),
    ("getcpu", libc::SYS_getcpu),
    ("sched_yield", libc::SYS_sched_yield),
    ("sched_getattr", libc::SYS_sched_getattr),
    ("sched_setattr", libc::SYS_sched_setattr),
    ("sched_getaffinity", libc::SYS_sched_getaffinity),
    ("sched_setaffinity", libc::SYS_sched_setaffinity),
    ("sched_getparam", libc::SYS_sched_getparam),
    ("sched_getscheduler", libc::SYS_sched_getscheduler),
    ("clone", libc::SYS_clone),
    ("clone3", libc::SYS_clone3),
    ("fork", libc::SYS_fork),
    ("vfork", libc::SYS_vfork),
    ("exit", libc::SYS_exit),
    ("exit_group", libc::SYS_exit_group),
    ("set_robust_list", libc::SYS_set_robust_list),
    ("get_robust_list", libc::SYS_get_robust_list),
    ("rseq", libc::SYS_rseq),
    ("set_tid_address", libc::SYS_set_tid_address),
    ("gettid", libc::SYS_gettid),
    ("getpid", libc::SYS_getpid),
    ("getppid", libc::SYS_getppid),
    ("getpgrp", libc::SYS_getpgrp),
    ("getpgid", libc::SYS_getpgid),
    ("getsid", libc::SYS_getsid),
    ("getuid", libc::SYS_getuid),
    ("geteuid", libc::SYS_geteuid),
    ("getgid", libc::SYS_getgid),
    ("getegid", libc::SYS_getegid),
    ("sigaltstack", libc::SYS_sigaltstack),
    ("arch_prctl", libc::SYS_arch_prctl),
    ("prctl", libc::SYS_prctl),
    ("prlimit64", libc::SYS_prlimit64),
    ("getrlimit", libc::SYS_getrlimit),
    ("setrlimit", libc::SYS_setrlimit),
    ("getrusage", libc::SYS_getrusage),
    ("uname", libc::SYS_uname),
    ("sysinfo", libc::SYS_sysinfo),
    ("getrandom", libc::SYS_getrandom),
    ("restart_syscall", libc::SYS_restart_syscall),
    ("rt_sigreturn", libc::SYS_rt_sigreturn),
    ("rt_sigaction", libc::SYS_rt_sigaction),
    ("rt_sigprocmask", libc::SYS_rt_sigprocmask),
    ("rt_sigpending", libc::SYS_rt_sigpending),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait),
    ("rt_sigsuspend", libc::SYS_rt_sigsuspend),
    ("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo),
    ("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo),
    ("kill", libc::SYS_kill),
    ("tkill", libc::SYS_tkill),
    ("tgkill", libc::SYS_tgkill),
    ("pause", libc::SYS_pause),
    ("wait4", libc::SYS_wait4),
    ("waitid", libc::SYS_waitid),
    ("setfsuid", libc::SYS_setfsuid),
    ("setfsgid", libc::SYS_setfsgid),
    ("setgroups", libc::SYS_setgroups),
    ("setns", libc::SYS_setns),
    ("capget", libc::SYS_capget),
    ("capset", libc::SYS_capset),
    ("setresuid", libc::SYS_setresuid),
    ("setresgid", libc::SYS_setresgid),
    ("ptrace", libc::SYS_ptrace),
    ("execve", libc::SYS_execve),
    ("execveat", libc::SYS_execveat),
    ("socket", libc::SYS_socket),
    ("connect", libc::SYS_connect),
    ("accept4", libc::SYS_accept4),
    ("bind", libc::SYS_bind),
    ("listen", libc::SYS_listen),
    ("mount", libc::SYS_mount),
    ("umount2", libc::SYS_umount2),
    ("unshare", libc::SYS_unshare),
    ("move_mount", libc::SYS_move_mount),
    ("fsopen", libc::SYS_fsopen),
    ("pivot_root", libc::SYS_pivot_root),
    ("chroot", libc::SYS_chroot),
    ("init_module", libc::SYS_init_module),
    ("finit_module", libc::SYS_finit_module),
    ("bpf", libc::SYS_bpf),
    ("perf_event_open", libc::SYS_perf_event_open),
    ("keyctl", libc::SYS_keyctl),
    ("add_key", libc::SYS_add_key),
    ("reboot", libc::SYS_reboot),
    ("kexec_load", libc::SYS_kexec_load),
    ("swapon", libc::SYS_swapon),
    ("setuid", libc::SYS_setuid),
    ("mknod", libc::SYS_mknod),
    ("unlink", libc::SYS_unlink),
    ("unlinkat", libc::SYS_unlinkat),
    ("rename", libc::SYS_rename),
    ("renameat2", libc::SYS_renameat2),
    ("mkdir", libc::SYS_mkdir),
    ("mkdirat", libc::SYS_mkdirat),
    ("chmod", libc::SYS_chmod),
    ("fchmod", libc::SYS_fchmod),
    ("chown", libc::SYS_chown),
    ("fchown", libc::SYS_fchown),
    ("linkat", libc::SYS_linkat),
    ("symlinkat", libc::SYS_symlinkat),
    ("io_uring_setup", libc::SYS_io_uring_setup),
    ("process_madvise", libc::SYS_process_madvise),
];

#[cfg(test)]
mod tests {
    use super::super::{Call, no_new_privileges};
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn what_is_not_on_the_list_is_not_made_and_told() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let child = crate::spawn::fork_with(|| {
            rustix::stdio::dup2_stderr(&writer).expect("a standard error");
            let names = ["write", "rt_sigprocmask", "gettid", "getpid", "tgkill", "exit_group"];
            let numbers = names.map(|name| number(name).expect("a system call"));
            no_new_privileges()
                .and_then(|()| Filter::of_allowed(&numbers).enforce())
                .expect("it holds");
            let own = rustix::process::getpid();
            i32::from(rustix::process::getppid() == Some(own))
        });
        drop(writer);
        let status = child.expect("fork").wait().expect("a child");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut reader, &mut text).expect("its words");
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{text}");
        let said = String::from_utf8_lossy(SAID);
        assert_eq!(text, format!("{said}{}\n", libc::SYS_getppid));
    }

    #[test]
    fn a_list_allows_its_numbers_by_their_own_entry_only() {
        let filter = Filter::of_allowed(&[0, 1, 60]);
        let decide = |arch, number| filter.decide(&Call { arch, number, args: [0; 6] });
        for number in [0, 1, 60] {
            assert_eq!(decide(Arch::X86_64.raw(), number), Action::Allow);
            assert_eq!(decide(Arch::I386.raw(), number), Action::Trap, "another call there");
            assert_eq!(decide(Arch::X86_64.raw(), number | super::super::X32_BIT), Action::Trap);
        }
        assert_eq!(decide(Arch::X86_64.raw(), 59), Action::Trap);
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for number in [0, 7, 10, 99, 435, u32::MAX] {
            let mut text = [0; 16];
            let length = digits(number, &mut text);
            assert_eq!(text[..length], *format!("{number}\n").as_bytes());
        }
    }

    #[test]
    fn every_name_is_a_call_of_its_own() {
        assert_eq!(number("execve"), Some(59));
        assert_eq!(number("no such call"), None);
        let mut names: Vec<_> = NUMBERS.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NUMBERS.len());
    }
}
