//! What the supervisor gives up once the client is about to start.
//!
//! A client sends it requests, and one that found a way to make it do something else should gain as little as possible.
//! So it executes nothing with more rights than it has (no_new_privs), keeps of the capabilities those that it uses,
//! makes no system call but those on a list ([`CALLS`]), and does not let itself be looked at: its memory and descriptors are out of reach of every process of its user
//! (PR_SET_DUMPABLE; kernel/ptrace.c, `__ptrace_may_access`). A process with CAP_SYS_PTRACE on the host reaches it all the
//! same, a root client of a root run among them.

use ioasis_sys::seccomp::{self, Filter, no_new_privileges};
use ioasis_sys::{because, namespace};
use ioasis_uapi::Result;
use rustix::process::DumpableBehavior;
use rustix::thread::CapabilitySet;

/// Who needs what:
///
/// - `SYS_PTRACE`: pidfd_getfd, process_vm_readv and /proc/PID of clients that are other users';
/// - `CHECKPOINT_RESTORE`: the files behind shared mappings, by /proc/PID/map_files;
/// - `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `SETUID`, `SETGID`, `SETPCAP`: an open is judged by a child that takes on
///   the rights of the task, and those can be more than none;
/// - `KILL`: signals to clients that are other users', at the end of a run;
/// - `MKNOD`, `CHOWN`: nodes that a client makes are made in its place;
/// - `SYS_RESOURCE`: limits of clients that are other users', and a socket's buffers;
/// - `IPC_LOCK`: huge pages of System V memory are mapped here as well;
/// - `SYS_ADMIN`: memory file systems that grow with the devices, user namespaces of clients.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_ADMIN);

/// The system calls that are made from now on, and by whom; another one ends the process. Threads, processes that judge and a
/// watchdog that takes a killed one's place are under it too. Arguments are not looked at: what openat(2), ioctl(2) or
/// clone(2) may do is limited by capabilities.
const CALLS: &[(&str, &str)] = &[
    (
        "requests for files of the run's own file system, images, texts of /proc, clients' memory by `/proc/PID/mem`",
        "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek close",
    ),
    (
        "files for clients, images, backings of memory",
        "ftruncate fallocate fsync fdatasync sync_file_range memfd_create fcntl dup dup2 dup3 close_range fgetxattr flistxattr \
         fsetxattr fremovexattr",
    ),
    (
        "what a path or a descriptor of a client's is; /proc of clients",
        "open openat openat2 readlink readlinkat stat lstat fstat newfstatat statx statfs fstatfs access faccessat \
         faccessat2 getdents64 getcwd pidfd_open pidfd_getfd kcmp",
    ),
    (
        "a task's rights, taken on by a child that judges an open or makes a node",
        "setgroups setfsuid setfsgid setns capget capset umask mknodat",
    ),
    (
        "clients' memory, where its own handle does not do; the tracer of trapped stores",
        "process_vm_readv process_vm_writev ptrace setresuid setresgid rt_sigqueueinfo rt_tgsigqueueinfo",
    ),
    (
        "entries of /sys and /dev/vfio that come and go, on the view's own memory file systems",
        "mkdirat symlinkat unlinkat",
    ),
    ("notifications, KVM and network devices", "ioctl userfaultfd"),
    (
        "waiting for all of it, and waking",
        "poll ppoll select pselect6 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 timerfd_create \
         timerfd_settime timerfd_gettime signalfd4 pipe2 inotify_init1 inotify_add_watch inotify_rm_watch io_setup io_submit \
         io_getevents io_destroy futex futex_waitv nanosleep clock_nanosleep sched_yield",
    ),
    (
        "sockets of queues, notes to the watchdog, answers on the control socket",
        "accept4 socketpair sendmsg recvmsg sendto recvfrom shutdown getsockopt setsockopt",
    ),
    (
        "memory of our own and mappings of clients' files",
        "mmap munmap mremap mprotect madvise mlock munlock msync mincore brk membarrier",
    ),
    (
        "clients' ends, and signals to them",
        "wait4 waitid kill tkill tgkill pidfd_send_signal prlimit64 getpgid getsid getpgrp",
    ),
    (
        "threads, processes that judge, the next watchdog, and what the C library and the runtime do for them",
        "clone clone3 fork vfork exit exit_group set_robust_list get_robust_list rseq set_tid_address gettid getpid getppid \
         getuid geteuid getgid getegid sigaltstack arch_prctl prctl getrlimit setrlimit getrusage uname sysinfo getrandom \
         restart_syscall rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigsuspend pause \
         sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_getscheduler getcpu clock_gettime clock_getres gettimeofday \
         time",
    ),
];

/// Gives up what is not needed any more. For a process of one thread: capabilities are a thread's.
///
/// # Errors
///
/// None that Linux documents; passed on all the same.
pub(crate) fn confine() -> Result<()> {
    no_new_privileges()?;
    namespace::keep_capabilities(KEPT)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(because("PR_SET_DUMPABLE is refused"))?;
    let names = CALLS.iter().flat_map(|(_, names)| names.split_ascii_whitespace());
    let numbers: Vec<u32> =
        names.map(|name| seccomp::number(name).expect("a system call")).collect();
    Filter::of_allowed(&numbers).enforce()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_sys::spawn;
    use rustix::fs::CWD;
    use std::os::unix::process::ExitStatusExt;

    /// How a process ends that does `act` once it is confined.
    fn confined(act: impl FnOnce()) -> std::process::ExitStatus {
        let child = spawn::fork_with(|| {
            confine().expect("it confines itself");
            act();
            0
        });
        child.expect("fork").wait().expect("a child")
    }

    #[test]
    fn what_the_supervisor_has_no_use_for_ends_it() {
        use rustix::net::{AddressFamily, SocketType, socket};
        let aborted = Some(rustix::process::Signal::ABORT.as_raw());
        let calls: [(&str, fn()); 5] = [
            ("execve", || {
                use std::os::unix::process::CommandExt;
                let _ = std::process::Command::new("/bin/true").exec();
            }),
            ("socket", || drop(socket(AddressFamily::INET, SocketType::STREAM, None))),
            ("chroot", || assert!(rustix::process::chroot("/").is_ok())),
            ("umount", || {
                let flags = rustix::mount::UnmountFlags::empty();
                assert!(rustix::mount::unmount("/nowhere", flags).is_ok());
            }),
            ("rename", || assert!(rustix::fs::renameat(CWD, "/nowhere", CWD, "/x").is_ok())),
        ];
        for (name, call) in calls {
            assert_eq!(confined(call).signal(), aborted, "{name}");
        }
    }

    #[test]
    fn threads_files_and_memory_work_as_before() {
        let work = || {
            let thread = std::thread::spawn(|| std::fs::read_to_string("/proc/self/status"));
            assert!(thread.join().expect("no panic").is_ok_and(|text| !text.is_empty()));
            let memory = vec![1_u8; 64 << 20];
            assert!(std::fs::read_dir("/proc/self/fd").expect("a folder").count() > 2);
            assert_eq!(memory.iter().map(|&byte| u64::from(byte)).sum::<u64>(), 64 << 20);
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!(confined(work).code(), Some(0));
    }

    #[test]
    fn each_call_is_named_once_and_documented() {
        let mut names: Vec<&str> =
            CALLS.iter().flat_map(|(_, names)| names.split_ascii_whitespace()).collect();
        assert!(names.iter().all(|name| seccomp::number(name).is_some()));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md");
        let text = std::fs::read_to_string(path).expect("the documentation");
        for (who, names) in CALLS {
            let names: Vec<&str> = names.split_ascii_whitespace().collect();
            let row = format!("| {who} | {} |", names.join(", "));
            assert!(text.lines().any(|line| line == row), "docs/security.md lacks: {row}");
        }
    }
}
