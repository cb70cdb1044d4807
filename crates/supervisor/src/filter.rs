//! Which system calls of a client are stopped.
//!
//! Only what may concern our files, as far as registers tell: a descriptor cannot be recognised here, since dup, fork
//! and SCM_RIGHTS make copies nobody sees. The rest runs at full speed.

use ioasis_sys::namespace::User;
use ioasis_sys::notify::Notification;
use ioasis_sys::seccomp::{Arch, Filter, Half, Is, Rule, Test, X32_BIT};

/// Numbers of the system calls that are stopped, on x86_64 unless said otherwise (asm/unistd_64.h, unistd_32.h,
/// unistd_x32.h).
pub(crate) mod number {
    pub(crate) const READ: u32 = 0;
    pub(crate) const WRITE: u32 = 1;
    pub(crate) const OPEN: u32 = 2;
    pub(crate) const FSTAT: u32 = 5;
    pub(crate) const LSEEK: u32 = 8;
    pub(crate) const MMAP: u32 = 9;
    pub(crate) const RT_SIGACTION: u32 = 13;
    pub(crate) const PTRACE: u32 = 101;
    pub(crate) const I386_PTRACE: u32 = 26;
    pub(crate) const X32_PTRACE: u32 = 521;
    pub(crate) const X32_RT_SIGACTION: u32 = 512;
    pub(crate) const IOCTL: u32 = 16;
    pub(crate) const PREAD64: u32 = 17;
    pub(crate) const PWRITE64: u32 = 18;
    pub(crate) const READV: u32 = 19;
    pub(crate) const WRITEV: u32 = 20;
    pub(crate) const MREMAP: u32 = 25;
    pub(crate) const MADVISE: u32 = 28;
    pub(crate) const SENDFILE: u32 = 40;
    pub(crate) const FCNTL: u32 = 72;
    pub(crate) const FSYNC: u32 = 74;
    pub(crate) const FDATASYNC: u32 = 75;
    pub(crate) const FTRUNCATE: u32 = 77;
    pub(crate) const CREAT: u32 = 85;
    pub(crate) const READLINK: u32 = 89;
    pub(crate) const GETRLIMIT: u32 = 97;
    pub(crate) const SETRLIMIT: u32 = 160;
    pub(crate) const READAHEAD: u32 = 187;
    pub(crate) const FSETXATTR: u32 = 190;
    pub(crate) const REMAP_FILE_PAGES: u32 = 216;
    pub(crate) const MKNOD: u32 = 133;
    pub(crate) const OPENAT: u32 = 257;
    pub(crate) const MKNODAT: u32 = 259;
    pub(crate) const NEWFSTATAT: u32 = 262;
    pub(crate) const READLINKAT: u32 = 267;
    pub(crate) const SPLICE: u32 = 275;
    pub(crate) const SYNC_FILE_RANGE: u32 = 277;
    pub(crate) const FALLOCATE: u32 = 285;
    pub(crate) const PREADV: u32 = 295;
    pub(crate) const PWRITEV: u32 = 296;
    pub(crate) const PRLIMIT64: u32 = 302;
    pub(crate) const SECCOMP: u32 = 317;
    pub(crate) const COPY_FILE_RANGE: u32 = 326;
    pub(crate) const PREADV2: u32 = 327;
    pub(crate) const PWRITEV2: u32 = 328;
    pub(crate) const STATX: u32 = 332;
    pub(crate) const OPENAT2: u32 = 437;
    pub(crate) const I386_OPEN: u32 = 5;
    pub(crate) const I386_CREAT: u32 = 8;
    pub(crate) const I386_MKNOD: u32 = 14;
    pub(crate) const I386_IOCTL: u32 = 54;
    pub(crate) const I386_RT_SIGACTION: u32 = 174;
    pub(crate) const I386_PREAD64: u32 = 180;
    pub(crate) const I386_PWRITE64: u32 = 181;
    pub(crate) const I386_MMAP2: u32 = 192;
    pub(crate) const I386_OPENAT: u32 = 295;
    pub(crate) const I386_MKNODAT: u32 = 297;
    pub(crate) const I386_PREADV: u32 = 333;
    pub(crate) const I386_PWRITEV: u32 = 334;
    pub(crate) const I386_PREADV2: u32 = 378;
    pub(crate) const I386_PWRITEV2: u32 = 379;
    pub(crate) const I386_OPENAT2: u32 = 437;
    pub(crate) const X32_IOCTL: u32 = 514;
    pub(crate) const EXECVE: u32 = 59;
    pub(crate) const EXECVEAT: u32 = 322;
    pub(crate) const X32_EXECVE: u32 = 520;
    pub(crate) const X32_EXECVEAT: u32 = 545;
    pub(crate) const I386_EXECVE: u32 = 11;
    pub(crate) const I386_EXECVEAT: u32 = 358;
}

/// Calls after which the thread that made them has other credentials: setuid and its family, setgroups, capset, unshare,
/// setns. x32 has the numbers of x86_64.
const CREDENTIALS: [u32; 12] = [105, 106, 113, 114, 116, 117, 119, 122, 123, 126, 272, 308];
/// The same of i386, with both widths of ids.
const I386_CREDENTIALS: [u32; 21] = [
    23, 46, 70, 71, 81, 138, 139, 164, 170, 185, 203, 204, 206, 208, 210, 213, 214, 215, 216, 310,
    346,
];

/// What a call is about to change of what is known of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Changes {
    /// The program, and with it the memory.
    Program,
    /// User, groups, capabilities or the user namespace.
    Credentials,
    /// Who may look at its process.
    Dumpable,
}

/// `prctl`, on x86_64 and x32, and on i386.
const PRCTL: u32 = 157;
const I386_PRCTL: u32 = 172;
/// `PR_SET_DUMPABLE` (linux/prctl.h).
const SET_DUMPABLE: u32 = 4;

fn hides(call: &Notification) -> bool {
    let prctl = if call.arch == Arch::I386.raw() { I386_PRCTL } else { PRCTL };
    call.number & !X32_BIT == prctl
}

/// What `call` is about to change, if that is all it is stopped for.
pub(crate) fn changes(call: &Notification) -> Option<Changes> {
    use number::{EXECVE, EXECVEAT, I386_EXECVE, I386_EXECVEAT, X32_EXECVE, X32_EXECVEAT};
    let (executes, credentials) = if call.arch == Arch::I386.raw() {
        (matches!(call.number, I386_EXECVE | I386_EXECVEAT), &I386_CREDENTIALS[..])
    } else {
        let number = call.number & !X32_BIT;
        let executes = matches!(number, EXECVE | EXECVEAT | X32_EXECVE | X32_EXECVEAT);
        (executes, &CREDENTIALS[..])
    };
    if executes {
        Some(Changes::Program)
    } else if hides(call) {
        Some(Changes::Dumpable)
    } else {
        credentials.contains(&(call.number & !X32_BIT)).then_some(Changes::Credentials)
    }
}

/// Type of every VFIO and IOMMUFD ioctl (`VFIO_TYPE`, `IOMMUFD_TYPE`).
pub(crate) const IOCTL_TYPE: u32 = ';' as u32;

/// Type and number of the KVM ioctls that make a virtual machine's devices and set their attributes, 0xe0 to 0xe3
/// (linux/kvm.h): the VFIO device is one of them.
const KVM_DEVICES: u32 = 0xaee0;

pub(crate) const O_ACCMODE: u32 = 0o3;
pub(crate) const O_CREAT: u32 = 0o100;
pub(crate) const O_EXCL: u32 = 0o200;
pub(crate) const O_DIRECTORY: u32 = 0o200_000;
pub(crate) const O_TRUNC: u32 = 0o1000;
pub(crate) const O_DIRECT: u32 = 0o40_000;
pub(crate) const O_NOATIME: u32 = 0o1_000_000;
pub(crate) const O_NOFOLLOW: u32 = 0o400_000;
pub(crate) const O_CLOEXEC: u32 = 0o2_000_000;
pub(crate) const O_PATH: u32 = 0o10_000_000;
pub(crate) const AT_EMPTY_PATH: u32 = 0x1000;
/// `AT_STATX_DONT_SYNC`, with which fuser(1) looks at the files of others, and hardly anybody at anything.
pub(crate) const AT_STATX_DONT_SYNC: u32 = 0x4000;
/// `S_IFMT` and `S_IFCHR` (linux/stat.h).
const KIND: u32 = 0o170_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// linux/mman.h.
const MAP_SHARED: u32 = 1;
const MAP_ANONYMOUS: u32 = 0x20;
/// `SECCOMP_SET_MODE_FILTER` and `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const SET_MODE_FILTER: u32 = 1;
const NEW_LISTENER: u32 = 8;

/// `fcntl` commands (linux/fcntl.h).
pub(crate) mod command {
    pub(crate) const F_GETFL: u32 = 3;
    pub(crate) const F_SETFL: u32 = 4;
    pub(crate) const F_SETLEASE: u32 = 1024;
    pub(crate) const F_ADD_SEALS: u32 = 1033;
    pub(crate) const F_GET_SEALS: u32 = 1034;
}

/// linux/mman.h.
pub(crate) const MADV_REMOVE: u32 = 9;
/// asm-generic/ioctls.h.
const FIONREAD: u32 = 0x541b;
/// Types of the ioctls that every file system has: FS_IOC_GETFLAGS and _SETFLAGS, FS_IOC_RESVSP and _UNRESVSP.
const FILE_IOCTL_TYPES: [u32; 2] = ['f' as u32, 'X' as u32];

const fn stops(number: u32, when: &'static [Test]) -> Rule<'static> {
    Rule { arch: Arch::X86_64, number, when }
}

const fn low(arg: u8, mask: u32, is: Is) -> Test {
    Test { arg, half: Half::Low, mask, is }
}

const fn whole(arg: u8, is: Is) -> Test {
    low(arg, u32::MAX, is)
}

const fn is_file_ioctl(kind: u32) -> Test {
    low(1, 0xff00, Is::Equal(kind << 8))
}

/// What a file in a file system has, and ours have not. The kernel would do it to the file behind ours. Where it
/// answers for that as for a device, the call is not here: the table in docs/view.md has them all.
const FILE_CALLS: [Rule<'static>; 21] = {
    use number::{
        COPY_FILE_RANGE, FALLOCATE, FCNTL, FDATASYNC, FSETXATTR, FSYNC, FTRUNCATE, IOCTL, LSEEK,
        MADVISE, MREMAP, READAHEAD, REMAP_FILE_PAGES, SENDFILE, SPLICE, SYNC_FILE_RANGE,
    };
    [
        // Assemblers and linkers set an offset hundreds of times; most others only ask whether there is one.
        stops(LSEEK, &[whole(2, Is::Not(0))]),
        stops(
            LSEEK,
            &[Test { arg: 1, half: Half::High, mask: u32::MAX, is: Is::AtLeast(FAR_HIGH) }],
        ),
        stops(
            FCNTL,
            &[whole(1, Is::AtLeast(command::F_GETFL)), whole(1, Is::Below(command::F_SETFL + 1))],
        ),
        stops(FCNTL, &[whole(1, Is::Equal(command::F_SETLEASE))]),
        stops(
            FCNTL,
            &[
                whole(1, Is::AtLeast(command::F_ADD_SEALS)),
                whole(1, Is::Below(command::F_GET_SEALS + 1)),
            ],
        ),
        stops(IOCTL, &[whole(1, Is::Equal(FIONREAD))]),
        stops(IOCTL, &[is_file_ioctl(FILE_IOCTL_TYPES[0])]),
        stops(IOCTL, &[is_file_ioctl(FILE_IOCTL_TYPES[1])]),
        stops(MADVISE, &[whole(2, Is::Equal(MADV_REMOVE))]),
        // Without an offset of its own it begins at the descriptor's, where nothing of ours lies.
        stops(SENDFILE, &[whole(2, Is::Not(0))]),
        stops(SPLICE, &[whole(1, Is::Not(0))]),
        stops(COPY_FILE_RANGE, &[]),
        stops(MREMAP, &[]),
        stops(REMAP_FILE_PAGES, &[]),
        stops(FSYNC, &[]),
        stops(FDATASYNC, &[]),
        stops(FTRUNCATE, &[]),
        stops(FALLOCATE, &[]),
        stops(SYNC_FILE_RANGE, &[]),
        stops(READAHEAD, &[]),
        stops(FSETXATTR, &[]),
    ]
};

/// asm-generic/resource.h.
const RLIMIT_MEMLOCK: u32 = 8;

/// Calls about the one limit that root in a user namespace cannot raise by itself.
pub(crate) const MEMLOCK_CALLS: [Rule<'static>; 3] = [
    stops(number::PRLIMIT64, &[whole(1, Is::Equal(RLIMIT_MEMLOCK))]),
    stops(number::GETRLIMIT, &[whole(0, Is::Equal(RLIMIT_MEMLOCK))]),
    stops(number::SETRLIMIT, &[whole(0, Is::Equal(RLIMIT_MEMLOCK))]),
];

/// The descriptors whose read and write are stopped: those of fault and event queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueFds {
    /// The lowest.
    pub(crate) first: u32,
    /// One more than the highest.
    pub(crate) end: u32,
}

/// `SIGSEGV` (asm/signal.h).
pub(crate) const SIGSEGV: u32 = 11;

/// Signals whose handlers are looked at, as ranges that do not hold their ends: a call of a thread that has one without
/// SA_RESTART must not fail with EINTR where Linux's does not. SIGSEGV is that of a trapped store. The others are not here
/// since they come once or say that the program itself is at fault, since the C library's own have SA_RESTART, or, as
/// SIGCHLD, because every shell has a handler of it (docs/view.md).
const HANDLED: [(u32, u32); 6] = [(10, 13), (14, 15), (16, 17), (18, 28), (29, 31), (34, 65)];
const OF_SIGNALS: [[Test; 3]; 6] = {
    // Who spawns a program asks for the handlers of all signals.
    const fn within((first, end): (u32, u32)) -> [Test; 3] {
        [whole(0, Is::AtLeast(first)), whole(0, Is::Below(end)), whole(1, Is::Not(0))]
    }
    [
        within(HANDLED[0]),
        within(HANDLED[1]),
        within(HANDLED[2]),
        within(HANDLED[3]),
        within(HANDLED[4]),
        within(HANDLED[5]),
    ]
};

/// `PTRACE_TRACEME`, `PTRACE_ATTACH` and `PTRACE_SEIZE` (linux/ptrace.h).
pub(crate) const TRACEME: u32 = 0;
const ATTACH: u32 = 16;
const SEIZE: u32 = 0x4206;
const BY_A_TRACER: [[Test; 1]; 3] =
    [[whole(0, Is::Equal(TRACEME))], [whole(0, Is::Equal(ATTACH))], [whole(0, Is::Equal(SEIZE))]];

/// What becomes of signals, and who traces whom, by every entry.
fn signal_rules() -> Vec<Rule<'static>> {
    let actions = [
        (Arch::X86_64, number::RT_SIGACTION),
        (Arch::X86_64, X32_BIT | number::X32_RT_SIGACTION),
        (Arch::I386, number::I386_RT_SIGACTION),
    ];
    let tracing = [
        (Arch::X86_64, number::PTRACE),
        (Arch::X86_64, X32_BIT | number::X32_PTRACE),
        (Arch::I386, number::I386_PTRACE),
    ];
    let mut rules = Vec::new();
    for (arch, number) in actions {
        rules.extend(OF_SIGNALS.iter().map(|when| Rule { arch, number, when }));
    }
    for (arch, number) in tracing {
        rules.extend(BY_A_TRACER.iter().map(|when| Rule { arch, number, when }));
    }
    rules
}

/// Whether a call of the filter's may wait and then fail with EINTR on Linux: to pipes, sockets and terminals.
pub(crate) const fn may_be_interrupted(arch: u32, number: u32) -> bool {
    use number::{COPY_FILE_RANGE, PTRACE, READ, READV, SENDFILE, SPLICE, WRITE, WRITEV};
    arch == Arch::X86_64.raw()
        && matches!(
            number,
            READ | WRITE | READV | WRITEV | SPLICE | SENDFILE | COPY_FILE_RANGE | PTRACE
        )
}

/// The filter of a run whose program is `user`.
pub(crate) fn of_run(queues: Option<QueueFds>, user: User) -> Filter {
    filter(queues, if user == User::Root { &MEMLOCK_CALLS } else { &[] })
}

/// The one filter of a run, which stops `more` beside what is stopped in every run.
pub(crate) fn filter(queues: Option<QueueFds>, more: &[Rule<'static>]) -> Filter {
    use number::{
        CREAT, FSTAT, I386_CREAT, I386_IOCTL, I386_MMAP2, I386_OPEN, I386_OPENAT, I386_OPENAT2,
        I386_PREAD64, I386_PREADV, I386_PREADV2, I386_PWRITE64, I386_PWRITEV, I386_PWRITEV2,
        I386_RT_SIGACTION, IOCTL, MMAP, NEWFSTATAT, OPEN, OPENAT, OPENAT2, PREAD64, PREADV,
        PREADV2, PWRITE64, PWRITEV, PWRITEV2, READ, READLINK, READLINKAT, READV, RT_SIGACTION,
        SECCOMP, STATX, WRITE, WRITEV, X32_IOCTL,
    };
    let far = |arg| [Test { arg, half: Half::High, mask: u32::MAX, is: Is::AtLeast(FAR_HIGH) }];
    let typed = [low(1, 0xff00, Is::Equal(IOCTL_TYPE << 8))];
    let of_kvm = [low(1, 0xfffc, Is::Equal(KVM_DEVICES))];
    // A directory, a path and a file that must not exist yet are never ours.
    let opened = |flags| {
        [
            low(flags, O_DIRECTORY | O_PATH, Is::Equal(0)),
            low(flags, O_CREAT | O_EXCL, Is::Not(O_CREAT | O_EXCL)),
        ]
    };
    let made = |mode| [low(mode, KIND, Is::Equal(CHARACTER_DEVICE))];
    let empty_path = |flags| [low(flags, AT_EMPTY_PATH, Is::Equal(AT_EMPTY_PATH))];
    let listens = [
        low(0, u32::MAX, Is::Equal(SET_MODE_FILTER)),
        low(1, NEW_LISTENER, Is::Equal(NEW_LISTENER)),
    ];
    // A tracer must know what becomes of a fault's signal.
    let of_faults = [low(0, u32::MAX, Is::Equal(SIGSEGV))];
    let signals = signal_rules();
    // A file that another process may see written, which code and data of programs are not.
    let shared = [low(3, MAP_SHARED | MAP_ANONYMOUS, Is::Equal(MAP_SHARED))];
    let hides = [low(0, u32::MAX, Is::Equal(SET_DUMPABLE)), low(1, u32::MAX, Is::Equal(0))];
    let in_queues = queues.map(|fds| {
        [low(0, u32::MAX, Is::AtLeast(fds.first)), low(0, u32::MAX, Is::Below(fds.end))]
    });

    let (third, fifth, first, second) = (far(3), far(5), opened(1), opened(2));
    let (named, named_at) = (made(1), made(2));
    let (stat_flags, statx_flags) = (empty_path(3), empty_path(2));
    let cached = [low(2, AT_STATX_DONT_SYNC, Is::Equal(AT_STATX_DONT_SYNC))];
    let x86 = |number, when| Rule { arch: Arch::X86_64, number, when };
    let mut rules = vec![x86(IOCTL, typed.as_slice()), x86(IOCTL, of_kvm.as_slice())];
    // A file of a FUSE file system is not asked about it, and the kernel says 0 by itself.
    let nothing = [
        low(2, u32::MAX, Is::Equal(0)),
        Test { arg: 2, half: Half::High, mask: u32::MAX, is: Is::Equal(0) },
    ];
    rules.push(x86(READ, &nothing));
    if let Some(tests) = &in_queues {
        rules.extend([READ, WRITE, READV, WRITEV].map(|number| x86(number, tests)));
        rules.extend([PREAD64, PWRITE64].map(|number| x86(number, tests)));
    }
    rules.extend([x86(OPENAT, &second), x86(NEWFSTATAT, &stat_flags)]);
    rules.extend([x86(MMAP, &fifth), x86(MMAP, &shared)]);
    rules.extend(
        [PREAD64, PWRITE64, PREADV, PWRITEV, PREADV2, PWRITEV2].map(|number| x86(number, &third)),
    );
    rules.extend(FILE_CALLS);
    rules.extend([
        x86(STATX, &statx_flags),
        x86(STATX, &cached),
        x86(OPEN, &first),
        x86(SECCOMP, &listens),
    ]);
    rules.extend([FSTAT, READLINK, READLINKAT, OPENAT2, CREAT].map(|number| x86(number, &[])));
    rules.extend(more);
    rules.extend([x86(number::MKNOD, &named), x86(number::MKNODAT, &named_at)]);
    rules.extend([X32_BIT | X32_IOCTL, X32_BIT | IOCTL].map(|number| x86(number, &typed)));
    rules.extend([PRCTL, X32_BIT | PRCTL].map(|number| x86(number, hides.as_slice())));
    rules.extend([number::EXECVE, number::EXECVEAT].map(|number| x86(number, &[])));
    let of_x32 = [number::X32_EXECVE, number::X32_EXECVEAT];
    rules.extend(of_x32.map(|number| x86(X32_BIT | number, &[])));
    rules.extend(CREDENTIALS.map(|number| x86(number, &[])));
    rules.extend(CREDENTIALS.map(|number| x86(X32_BIT | number, &[])));
    let i386 = |number, when| Rule { arch: Arch::I386, number, when };
    rules.extend([x86(RT_SIGACTION, &of_faults), i386(I386_RT_SIGACTION, &of_faults)]);
    rules.extend(signals);
    // mmap2 counts in pages, and an offset of pread64 and preadv is two registers.
    let far_page = [low(5, u32::MAX, Is::AtLeast(1 << (ioasis_vfio::REGION_SHIFT - 12)))];
    let far_high = [low(4, u32::MAX, Is::AtLeast(FAR_HIGH))];
    rules.extend([i386(I386_IOCTL, typed.as_slice()), i386(I386_OPENAT, &second)]);
    rules.extend([i386(I386_OPEN, &first), i386(I386_MMAP2, &far_page)]);
    rules.push(i386(I386_MMAP2, &shared));
    rules.extend([i386(number::I386_MKNOD, &named), i386(number::I386_MKNODAT, &named_at)]);
    let at_offset =
        [I386_PREAD64, I386_PWRITE64, I386_PREADV, I386_PWRITEV, I386_PREADV2, I386_PWRITEV2];
    rules.extend(at_offset.map(|number| i386(number, &far_high)));
    rules.extend([I386_CREAT, I386_OPENAT2].map(|number| i386(number, &[])));
    rules.extend([number::I386_EXECVE, number::I386_EXECVEAT].map(|number| i386(number, &[])));
    rules.push(i386(I386_PRCTL, hides.as_slice()));
    rules.extend(I386_CREDENTIALS.map(|number| i386(number, &[])));
    Filter::new(&rules)
}

/// The call of a 32-bit program that `call` is, as a 64-bit program would make it; none for one that has no such form here.
pub(crate) fn widened(call: &Notification) -> Option<Notification> {
    let [first, second, third, fourth, fifth, sixth] = call.args;
    let offset = (fifth << 32) | (fourth & u64::from(u32::MAX));
    let (number, args) = match call.number {
        number::I386_IOCTL => (number::IOCTL, call.args),
        number::I386_OPEN => (number::OPEN, call.args),
        number::I386_CREAT => (number::CREAT, call.args),
        number::I386_OPENAT => (number::OPENAT, call.args),
        number::I386_MKNOD => (number::MKNOD, call.args),
        number::I386_MKNODAT => (number::MKNODAT, call.args),
        number::I386_OPENAT2 => (number::OPENAT2, call.args),
        number::I386_PREAD64 => (number::PREAD64, [first, second, third, offset, 0, 0]),
        number::I386_PWRITE64 => (number::PWRITE64, [first, second, third, offset, 0, 0]),
        number::I386_PREADV => (number::PREADV, [first, second, third, offset, 0, 0]),
        number::I386_PWRITEV => (number::PWRITEV, [first, second, third, offset, 0, 0]),
        number::I386_PREADV2 => (number::PREADV2, [first, second, third, offset, 0, sixth]),
        number::I386_PWRITEV2 => (number::PWRITEV2, [first, second, third, offset, 0, sixth]),
        number::I386_MMAP2 => (number::MMAP, [first, second, third, fourth, fifth, sixth << 12]),
        _ => return None,
    };
    Some(Notification { arch: Arch::X86_64.raw(), number, args, ..*call })
}

/// Whether an ioctl is one of VFIO's or IOMMUFD's.
pub(crate) const fn is_our_ioctl(command: u32) -> bool {
    command & 0xff00 == IOCTL_TYPE << 8
}

/// Whether a call is one of those that are stopped because only files of a file system have them.
pub(crate) fn is_of_a_file(number: u32) -> bool {
    FILE_CALLS.iter().any(|rule| rule.number == number)
}

/// Whether a call on x86_64 takes a vector and an offset.
pub(crate) const fn is_vectored(number: u32) -> bool {
    matches!(number, number::PREADV | number::PREADV2 | number::PWRITEV | number::PWRITEV2)
}

/// High half of the lowest offset of any region, 1 << 40: lower ones need not be stopped.
const FAR_HIGH: u32 = 1 << 8;

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_sys::seccomp::{Action, Call};

    const FAR: u64 = 1 << ioasis_vfio::REGION_SHIFT;

    fn stops(number: u32, args: [u64; 6]) -> bool {
        let queues = Some(QueueFds { first: 960, end: 1024 });
        let call = Call { arch: Arch::X86_64.raw(), number, args };
        filter(queues, &[]).decide(&call) == Action::Notify
    }

    #[test]
    fn an_ioctl_is_stopped_by_its_type() {
        assert!(stops(number::IOCTL, [3, 0x3b71, 0, 0, 0, 0]));
        assert!(stops(number::IOCTL, [3, 0xffff_ffff_c028_3b85, 0, 0, 0, 0]));
        assert!(!stops(number::IOCTL, [3, 0x5401, 0, 0, 0, 0]));
        let of_kvm = [0xc00c_aee0, 0x4018_aee1, 0x4018_aee2, 0x4018_aee3];
        assert!(of_kvm.iter().all(|&command| stops(number::IOCTL, [3, command, 0, 0, 0, 0])));
        let kvm_run = 0xae80;
        assert!(!stops(number::IOCTL, [3, kvm_run, 0, 0, 0, 0]), "it runs at full speed");
        for (arch, number) in [
            (Arch::X86_64, X32_BIT | number::X32_IOCTL),
            (Arch::X86_64, X32_BIT | number::IOCTL),
            (Arch::I386, number::I386_IOCTL),
        ] {
            let call = |command| Call { arch: arch.raw(), number, args: [3, command, 0, 0, 0, 0] };
            assert_eq!(filter(None, &[]).decide(&call(0x3b64)), Action::Notify);
            assert_eq!(filter(None, &[]).decide(&call(0x5401)), Action::Allow);
        }
    }

    #[test]
    fn what_changes_a_thread_is_stopped_by_every_entry() {
        let calls = [
            (Arch::X86_64, number::EXECVE, Changes::Program),
            (Arch::X86_64, number::EXECVEAT, Changes::Program),
            (Arch::X86_64, X32_BIT | number::X32_EXECVE, Changes::Program),
            (Arch::X86_64, X32_BIT | number::X32_EXECVEAT, Changes::Program),
            (Arch::I386, number::I386_EXECVE, Changes::Program),
            (Arch::I386, number::I386_EXECVEAT, Changes::Program),
            (Arch::X86_64, 117, Changes::Credentials),
            (Arch::X86_64, X32_BIT | 126, Changes::Credentials),
            (Arch::I386, 208, Changes::Credentials),
            (Arch::X86_64, PRCTL, Changes::Dumpable),
            (Arch::I386, I386_PRCTL, Changes::Dumpable),
        ];
        let args = [u64::from(SET_DUMPABLE), 0, 0, 0, 0, 0];
        for (arch, number, changed) in calls {
            let call = Call { arch: arch.raw(), number, args };
            assert_eq!(filter(None, &[]).decide(&call), Action::Notify, "{call:?}");
            let call = Notification { id: 1, tid: 2, arch: arch.raw(), number, args: [0; 6] };
            assert_eq!(changes(&call), Some(changed), "{call:?}");
        }
        let open =
            |number| Notification { id: 1, tid: 2, arch: Arch::X86_64.raw(), number, args: [0; 6] };
        assert_eq!(changes(&open(number::OPEN)), None);
        assert_eq!(changes(&open(23)), None, "select, which is setuid on i386");
    }

    #[test]
    fn an_access_is_stopped_where_regions_lie() {
        for number in [number::PREAD64, number::PWRITE64, number::PREADV, number::PWRITEV2] {
            assert!(stops(number, [3, 0, 4, FAR, 0, 0]));
            assert!(stops(number, [3, 0, 4, u64::MAX, 0, 0]));
            assert!(!stops(number, [3, 0, 4, FAR - 1, 0, 0]));
        }
        assert!(stops(number::MMAP, [0, 4096, 3, 2, 3, FAR]));
        assert!(!stops(number::MMAP, [0, 4096, 3, 2, 3, FAR - 4096]));
    }

    #[test]
    fn a_mapping_of_a_file_is_stopped_where_others_see_it() {
        let (shared, private, validated, anonymous) = (1, 2, 3, 0x20);
        assert!(stops(number::MMAP, [0, 4096, 3, shared, 3, 0]));
        assert!(stops(number::MMAP, [0, 4096, 3, validated, 3, 0]));
        for flags in [private, private | anonymous, shared | anonymous] {
            assert!(!stops(number::MMAP, [0, 4096, 3, flags, 3, 0]), "{flags:#x}");
        }
    }

    #[test]
    fn an_open_is_stopped_unless_its_flags_say_that_it_is_not_ours() {
        let flags = |flags: u32| [0, 0, u64::from(flags), 0, 0, 0];
        assert!(stops(number::OPENAT, flags(0)));
        assert!(stops(number::OPENAT, flags(2 | O_CLOEXEC | O_CREAT)));
        for other in [O_DIRECTORY, O_PATH, O_CREAT | O_EXCL] {
            assert!(!stops(number::OPENAT, flags(other)));
        }
        assert!(stops(number::OPEN, [0, 2, 0, 0, 0, 0]));
        assert!(stops(number::OPENAT2, [0; 6]) && stops(number::CREAT, [0; 6]));
    }

    #[test]
    fn calls_of_32_bit_programs_are_stopped_where_those_of_64_are() {
        let stops = |number, args: [u64; 6]| {
            filter(None, &[]).decide(&Call { arch: Arch::I386.raw(), number, args })
                == Action::Notify
        };
        assert!(stops(number::I386_OPEN, [0, 2, 0, 0, 0, 0]));
        assert!(!stops(number::I386_OPENAT, [0, 0, u64::from(O_DIRECTORY), 0, 0, 0]));
        assert!(stops(number::I386_MMAP2, [0, 4096, 3, 2, 3, FAR >> 12]));
        assert!(!stops(number::I386_MMAP2, [0, 4096, 3, 2, 3, (FAR >> 12) - 1]));
        assert!(stops(number::I386_MMAP2, [0, 4096, 3, 1, 3, 0]));
        assert!(stops(number::I386_PREAD64, [3, 0, 4, 0, FAR >> 32, 0]));
        assert!(!stops(number::I386_PWRITE64, [3, 0, 4, u64::from(u32::MAX), 0, 0]));
        for number in [number::I386_PREADV, number::I386_PWRITEV2] {
            assert!(stops(number, [3, 0, 4, 0, FAR >> 32, 0]));
            assert!(!stops(number, [3, 0, 4, u64::from(u32::MAX), 0, 0]));
        }
        let call = |number, args| Notification { id: 1, tid: 2, arch: 0, number, args };
        let wide = |number, args| widened(&call(number, args)).map(|wide| (wide.number, wide.args));
        assert_eq!(
            wide(number::I386_PWRITE64, [3, 4, 5, 6, 0x100, 0]),
            Some((number::PWRITE64, [3, 4, 5, FAR + 6, 0, 0]))
        );
        assert_eq!(
            wide(number::I386_PREADV2, [3, 4, 5, 6, 0x100, 8]),
            Some((number::PREADV2, [3, 4, 5, FAR + 6, 0, 8]))
        );
        assert_eq!(
            wide(number::I386_MMAP2, [0, 1, 2, 3, 4, FAR >> 12]),
            Some((number::MMAP, [0, 1, 2, 3, 4, FAR]))
        );
        assert_eq!(wide(6, [0; 6]), None);
    }

    #[test]
    fn a_handler_is_seen_for_signals_that_come_often_and_for_that_of_a_trapped_store() {
        let stops = |arch: Arch, number, signal| {
            let call = Call { arch: arch.raw(), number, args: [signal, 0x1000, 0, 8, 0, 0] };
            filter(None, &[]).decide(&call) == Action::Notify
        };
        for signal in 1..65 {
            let is_one =
                signal == 11 || HANDLED.iter().any(|(first, end)| (*first..*end).contains(&signal));
            let signal = u64::from(signal);
            assert_eq!(stops(Arch::X86_64, number::RT_SIGACTION, signal), is_one, "{signal}");
            assert_eq!(stops(Arch::I386, number::I386_RT_SIGACTION, signal), is_one, "{signal}");
        }
        assert!(stops(Arch::X86_64, X32_BIT | number::X32_RT_SIGACTION, 10));
        let question =
            Call { arch: Arch::X86_64.raw(), number: 13, args: [10, 0, 0x1000, 8, 0, 0] };
        assert_eq!(filter(None, &[]).decide(&question), Action::Allow);
        // HUP, INT, QUIT, TERM, CHLD and WINCH.
        assert!([1, 2, 3, 15, 17, 28].iter().all(|&signal| !stops(Arch::X86_64, 13, signal)));
    }

    #[test]
    fn tracing_is_stopped_where_it_begins() {
        for (arch, number) in [
            (Arch::X86_64, number::PTRACE),
            (Arch::X86_64, X32_BIT | number::X32_PTRACE),
            (Arch::I386, number::I386_PTRACE),
        ] {
            let stops = |request| {
                let call = Call { arch: arch.raw(), number, args: [request, 1, 0, 0, 0, 0] };
                filter(None, &[]).decide(&call) == Action::Notify
            };
            assert!([0, 16, 0x4206].into_iter().all(stops));
            // PEEKTEXT, CONT, SYSCALL and INTERRUPT.
            assert!(![1, 7, 24, 0x4207].into_iter().any(stops));
        }
    }

    #[test]
    fn making_a_node_is_stopped_if_it_is_a_character_device() {
        let of = |kind: u64| [0, kind | 0o600, kind | 0o600, 0, 0, 0];
        for number in [number::MKNOD, number::MKNODAT] {
            assert!(stops(number, of(0o020_000)));
            for other in [0o010_000, 0o060_000, 0o100_000, 0] {
                assert!(!stops(number, of(other)));
            }
        }
    }

    #[test]
    fn a_stat_is_stopped_only_for_a_descriptor() {
        assert!(stops(number::FSTAT, [0; 6]));
        assert!(stops(number::NEWFSTATAT, [3, 0, 0, 0x1000, 0, 0]));
        assert!(!stops(number::NEWFSTATAT, [3, 0, 0, 0, 0, 0]));
        assert!(stops(number::STATX, [3, 0, 0x1000, 0, 0, 0]));
        assert!(!stops(number::STATX, [3, 0, 0x100, 0, 0, 0]));
        assert!(stops(number::STATX, [0, 0, 0x4800, 0x100, 0, 0]), "as fuser asks");
    }

    #[test]
    fn what_only_files_have_is_stopped_where_the_kernel_would_touch_the_file_behind_ours() {
        use number::{
            COPY_FILE_RANGE, FALLOCATE, FCNTL, FDATASYNC, FSETXATTR, FSYNC, FTRUNCATE, IOCTL,
            LSEEK, MADVISE, MREMAP, READAHEAD, SENDFILE, SPLICE, SYNC_FILE_RANGE,
        };
        let (set, cur, end, data) = (0, 1, 2, 3);
        for whence in [cur, end, data] {
            assert!(stops(LSEEK, [3, 0, whence, 0, 0, 0]), "{whence}");
        }
        assert!(stops(LSEEK, [3, FAR, set, 0, 0, 0]) && !stops(LSEEK, [3, FAR - 1, set, 0, 0, 0]));
        for (command, is_stopped) in [
            (0, false),
            (1, false),
            (2, false),
            (3, true),
            (4, true),
            (5, false),
            (6, false),
            (1024, true),
            (1025, false),
            (1026, false),
            (1030, false),
            (1032, false),
            (1033, true),
            (1034, true),
            (1035, false),
        ] {
            assert_eq!(stops(FCNTL, [3, command, 0, 0, 0, 0]), is_stopped, "{command}");
        }
        for (command, is_stopped) in
            [(0x541b, true), (0x8008_6601, true), (0x4030_5828, true), (0x5451, false), (2, false)]
        {
            assert_eq!(stops(IOCTL, [3, command, 0, 0, 0, 0]), is_stopped, "{command:#x}");
        }
        assert!(stops(MADVISE, [0, 4096, 9, 0, 0, 0]) && !stops(MADVISE, [0, 4096, 4, 0, 0, 0]));
        assert!(stops(SENDFILE, [3, 4, 8, 1, 0, 0]) && !stops(SENDFILE, [3, 4, 0, 1, 0, 0]));
        assert!(stops(SPLICE, [3, 8, 4, 0, 1, 0]) && !stops(SPLICE, [3, 0, 4, 8, 1, 0]));
        for number in [
            FTRUNCATE,
            FALLOCATE,
            FSYNC,
            FDATASYNC,
            SYNC_FILE_RANGE,
            READAHEAD,
            FSETXATTR,
            MREMAP,
            COPY_FILE_RANGE,
        ] {
            assert!(stops(number, [0; 6]), "{number}");
        }
    }

    #[test]
    fn a_limit_is_stopped_only_where_it_is_that_of_locked_memory() {
        for (number, at) in [(number::PRLIMIT64, 1), (number::GETRLIMIT, 0), (number::SETRLIMIT, 0)]
        {
            for resource in [7, 8, 9] {
                let mut args = [0; 6];
                args[at] = resource;
                let call = Call { arch: Arch::X86_64.raw(), number, args };
                assert_eq!(filter(None, &[]).decide(&call), Action::Allow);
                let stopped = filter(None, &MEMLOCK_CALLS).decide(&call) == Action::Notify;
                assert_eq!(stopped, resource == 8, "{number} {resource}");
            }
        }
    }

    #[test]
    fn a_read_is_stopped_only_on_queue_descriptors() {
        for number in [number::READ, number::WRITE, number::READV, number::WRITEV] {
            assert!(!stops(number, [959, 0, 1, 0, 0, 0]) && !stops(number, [1024, 0, 1, 0, 0, 0]));
            assert!(stops(number, [960, 0, 1, 0, 0, 0]) && stops(number, [1023, 0, 1, 0, 0, 0]));
        }
        assert!(stops(number::READ, [3, 0, 0, 0, 0, 0]), "of nothing");
        assert!(!stops(number::READ, [3, 0, 1 << 32, 0, 0, 0]));
        assert!(stops(number::PREAD64, [960, 0, 4, 0, 0, 0]));
        assert!(stops(number::PREAD64, [3, 0, 4, FAR, 0, 0]));
        assert!(!stops(number::PREAD64, [3, 0, 4, 0, 0, 0]));
    }

    #[test]
    fn a_filter_of_the_clients_own_is_stopped_only_if_it_listens() {
        assert!(stops(number::SECCOMP, [1, 8, 0, 0, 0, 0]));
        assert!(
            !stops(number::SECCOMP, [1, 0, 0, 0, 0, 0])
                && !stops(number::SECCOMP, [2, 8, 0, 0, 0, 0])
        );
    }
}
