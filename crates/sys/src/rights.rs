//! Doing something with the rights of another task, so that the kernel itself judges what that task may do.
//!
//! Rights are those that a file system asks for: user and group for file access, supplementary groups, effective
//! capabilities, the user namespace. Whoever takes on others may be unable to go back, and a user namespace is entered by
//! whole processes only (`userns_install`, kernel/user_namespace.c). So a child does it, for one question: it shares
//! memory and descriptors with the thread that asks (`CLONE_VM`, `CLONE_FILES`), which waits for its end (`CLONE_VFORK`),
//! and nothing else, so that no descriptor or mapping of another client lives longer for it.
//!
//! Its real and effective user stay those of this process: a task whose rights it has can neither signal nor trace it
//! because of them.

#![expect(
    unsafe_code,
    reason = "clone(2), setgroups(2), setfsuid(2), faccessat2(2) on a descriptor"
)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ioasis_uapi::{Errno, Error, Result};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};

use crate::because;
use crate::errno::last_errno;
use crate::signal::Set;

/// What file systems ask a task for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// User id for file access.
    pub user: u32,
    /// Group id for file access.
    pub group: u32,
    /// Supplementary groups, ascending.
    pub groups: Vec<u32>,
    /// Effective capabilities: bit n is capability n of linux/capability.h.
    pub capabilities: u64,
}

/// What is asked of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// To be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
    /// To be executed; of a directory, to be searched.
    pub search: bool,
}

impl Rights {
    /// Those that a `/proc/PID/status` tells, with ids of the user namespace of whoever opened it.
    #[must_use]
    pub fn of_status(text: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(text);
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        // Real, effective, saved and for file access (proc_pid_status(5)).
        let fourth = |key| line(key)?.split_ascii_whitespace().nth(3)?.parse().ok();
        let groups = line("Groups:")?.split_ascii_whitespace();
        let mut groups = groups.map(|id| id.parse().ok()).collect::<Option<Vec<u32>>>()?;
        groups.sort_unstable();
        Some(Self {
            user: fourth("Uid:")?,
            group: fourth("Gid:")?,
            groups,
            capabilities: u64::from_str_radix(line("CapEff:")?.trim(), 16).ok()?,
        })
    }

    /// Whether capability number `capability` is effective.
    #[must_use]
    pub const fn has(&self, capability: u32) -> bool {
        self.capabilities & (1 << capability) != 0
    }

    /// Does `act` with these rights, in the user namespace `namespace` where it is another than the caller's; `own` are
    /// the caller's. What `act` opens or allocates is the caller's as if it had done it itself.
    ///
    /// A capability that the caller does not hold and that comes with no namespace is not taken on.
    ///
    /// # Errors
    ///
    /// `EPERM` where the caller may not take on these rights, `EAGAIN` where no child is to be had.
    pub fn lend<T>(
        &self,
        own: &Self,
        namespace: Option<BorrowedFd<'_>>,
        act: impl FnOnce() -> T,
    ) -> Result<T> {
        let parent = std::process::id();
        let mut done = None;
        let run = || {
            self.take_on(own, namespace, parent)?;
            Ok(act())
        };
        in_child(|| done = Some(run()))?;
        done.unwrap_or(Err(Error::new(Errno::EAGAIN, "who judges the rights of a task was killed")))
    }

    /// Makes these the rights of the calling process, for good.
    fn take_on(&self, own: &Self, namespace: Option<BorrowedFd<'_>>, parent: u32) -> Result<()> {
        if namespace.is_some() {
            // Root of the namespace must not trace who shares memory with this process.
            let _ = rustix::process::set_dumpable_behavior(
                rustix::process::DumpableBehavior::NotDumpable,
            );
        }
        let refused = because("the ids of a task cannot be taken on");
        if self.groups != own.groups {
            // SAFETY: 1. setgroups(2) reads that many ids; as a bare system call it acts on the calling thread alone.
            let answer = unsafe {
                libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr())
            };
            if answer != 0 {
                return Err(Error::new(last_errno(), "the groups of a task cannot be taken on"));
            }
        }
        set_file_id(libc::SYS_setfsgid, self.group)?;
        set_file_id(libc::SYS_setfsuid, self.user)?;
        if let Some(namespace) = namespace {
            rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))
                .map_err(because("the user namespace of a task cannot be entered"))?;
        }
        let held = rustix::thread::capabilities(None).map_err(&refused)?.permitted;
        let taken = held & CapabilitySet::from_bits_retain(self.capabilities);
        let sets = CapabilitySets {
            effective: taken,
            permitted: taken,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).map_err(&refused)?;
        // After the ids, whose change takes the setting back (commit_creds, kernel/cred.c). A file system that answers
        // late must not keep a copy of everything alive.
        let _ =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
        let still = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        if still == Some(parent) { Ok(()) } else { crate::spawn::exit(1) }
    }
}

/// setfsuid(2) or setfsgid(2), which say only which id there was before.
fn set_file_id(number: libc::c_long, id: u32) -> Result<()> {
    // SAFETY: 1. both take an integer; as bare system calls they act on the calling thread alone.
    let now = unsafe {
        libc::syscall(number, id);
        libc::syscall(number, u32::MAX)
    };
    if u32::try_from(now) == Ok(id) {
        return Ok(());
    }
    Err(Error::at(Errno::EPERM, "the ids of a task cannot be taken on", id.into()))
}

/// Bytes of the child's stack, the lowest page of which cannot be used.
const STACK: usize = 256 << 10;
const GUARD: usize = 4096;

struct Stack(*mut std::ffi::c_void);

impl Stack {
    fn new() -> Result<Self> {
        let none = because("no memory for a stack");
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
        // SAFETY: 1. a fresh mapping at an address that the kernel chooses.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                STACK,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        let stack = Self(base.map_err(&none)?);
        // SAFETY: 1. the first page of a mapping that nobody uses yet.
        unsafe { rustix::mm::mprotect(stack.0, GUARD, MprotectFlags::empty()) }.map_err(&none)?;
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: 1. the whole mapping, which only the child used, and the child has ended.
        let _ = unsafe { rustix::mm::munmap(self.0, STACK) };
    }
}

/// Runs `act` in a process that shares memory and descriptors with this one, while the calling thread waits.
fn in_child(act: impl FnOnce()) -> Result<()> {
    extern "C" fn begin<F: FnOnce()>(act: *mut std::ffi::c_void) -> i32 {
        // SAFETY: 1. the pointer `in_child` passed: its frame stays while it waits, and it does not look at `act`.
        let act = unsafe { (*act.cast::<Option<F>>()).take() };
        let _ = catch_unwind(AssertUnwindSafe(|| act.map(|act| act())));
        crate::spawn::exit(0)
    }
    fn entry<F: FnOnce()>(_: &Option<F>) -> extern "C" fn(*mut std::ffi::c_void) -> i32 {
        begin::<F>
    }
    let stack = Stack::new()?;
    let mut act = Some(act);
    let entry = entry(&act);
    // The exit signal is none, so that nobody who waits for this process's children finds it.
    let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_VFORK;
    // A handler would run in the child, on this process's memory.
    let blocked = Set::all_but(&[]).block();
    // SAFETY: 1. the stack is the child's alone and large enough for a few system calls. 2. The child uses this thread's
    // memory and thread-local storage while the thread waits in the kernel, as after vfork(2). 3. It ends in `begin`,
    // and never returns into this frame.
    let pid = unsafe { libc::clone(entry, stack.0.byte_add(STACK), flags, (&raw mut act).cast()) };
    let failed = last_errno();
    blocked.block();
    if pid < 0 {
        return Err(Error::new(failed, "no process to judge the rights of a task by"));
    }
    let mut status = 0;
    // SAFETY: 1. `status` is written, nothing else. The child has ended or is about to.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0
        && last_errno() == Errno::EINTR
    {}
    Ok(())
}

/// Whether the calling thread may have `access` to what `file`, opened `O_PATH` or otherwise, is.
///
/// # Errors
///
/// What faccessat2(2) says with `AT_EACCESS`.
pub fn access(file: BorrowedFd<'_>, access: Access) -> Result<(), Errno> {
    let bit = |is: bool, bit: i32| if is { bit } else { 0 };
    let mode = bit(access.read, libc::R_OK)
        | bit(access.write, libc::W_OK)
        | bit(access.search, libc::X_OK);
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: 1. the path is empty and ends in a NUL, and the descriptor is open.
    let answer =
        unsafe { libc::syscall(libc::SYS_faccessat2, file.as_raw_fd(), c"".as_ptr(), mode, flags) };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    fn own() -> Rights {
        Rights::of_status(&std::fs::read("/proc/thread-self/status").unwrap()).unwrap()
    }

    fn nobody() -> Rights {
        Rights { user: 65534, group: 65534, groups: Vec::new(), capabilities: 0 }
    }

    fn file(mode: u32) -> OwnedFd {
        let file = rustix::fs::memfd_create("rights", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
        file
    }

    const READ: Access = Access { read: true, write: false, search: false };
    const WRITE: Access = Access { read: false, write: true, search: false };

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn a_status_tells_the_ids_for_file_access_and_every_group() {
        let text = b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 2 \nCapEff:\t0000000000000006\n";
        let rights = Rights::of_status(text).unwrap();
        let expected = Rights { user: 4, group: 8, groups: vec![2, 9, 10], capabilities: 6 };
        assert_eq!(rights, expected);
        assert!(rights.has(1) && rights.has(2) && !rights.has(3));
        assert_eq!(Rights::of_status(b"Uid:\t1\t2\t3\t4\n"), None);
    }

    #[test]
    fn what_is_done_with_other_rights_is_done_in_the_same_memory_and_changes_no_rights_here() {
        let (before, mut seen) = (own(), 0);
        let given = before.lend(&before, None, || {
            seen = 7;
            (own(), file(0o600))
        });
        let (rights, file) = given.unwrap();
        assert_eq!((&rights, seen), (&before, 7));
        assert!(rustix::fs::fstat(file).is_ok(), "what it opens is open here");
        assert_eq!(own(), before);
    }

    #[test]
    fn the_kernel_judges_by_the_rights_taken_on() {
        if !is_root() {
            let refused = nobody().lend(&own(), None, || ());
            return assert_eq!(refused.map_err(|error| error.errno), Err(Errno::EPERM));
        }
        let (own, secret, shared) = (own(), file(0o600), file(0o640));
        let may = |rights: &Rights, file: &OwnedFd, what| {
            rights.lend(&own, None, || access(file.as_fd(), what)).unwrap()
        };
        assert_eq!(may(&own, &secret, READ), Ok(()));
        assert_eq!(may(&nobody(), &secret, READ), Err(Errno::EACCES));
        let member = Rights { groups: vec![0, 7], ..nobody() };
        assert_eq!(may(&member, &shared, READ), Ok(()), "by a supplementary group");
        assert_eq!(may(&member, &shared, WRITE), Err(Errno::EACCES));
        let overriding = Rights { capabilities: 1 << 1, ..nobody() };
        assert_eq!(may(&overriding, &secret, WRITE), Ok(()), "by CAP_DAC_OVERRIDE");
        let bare = Rights { capabilities: 0, ..own.clone() };
        assert_eq!(may(&bare, &file(0o000), READ), Err(Errno::EACCES), "root without it");
    }

    #[test]
    fn who_panics_with_other_rights_ends_alone() {
        let own = own();
        let given = own.lend(&own, None, || panic!("on purpose"));
        assert_eq!(given.map_err(|error: Error| error.errno), Err::<(), _>(Errno::EAGAIN));
        assert_eq!(own.lend(&own, None, || 5).unwrap(), 5);
    }
}
