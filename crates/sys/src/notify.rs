//! seccomp user notification: system calls of other processes, received and answered.
//!
//! Every call received lies in a slot of a page shared with the process's children and parents until it has been
//! answered ([`Slots`]): the kernel itself writes it there, so that whoever is left can answer what a process that was
//! killed had received, with no moment in between at which only the dead one knew of it.
#![expect(unsafe_code, reason = "the listener is driven by ioctls that read and write memory")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_uapi::{Errno, Error, Result};

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Names this call among all of the listener's.
    pub id: u64,
    /// The thread that made it, in the process ids of the receiver.
    pub tid: u32,
    /// `AUDIT_ARCH_*` of the ABI it entered by.
    pub arch: u32,
    /// Its number.
    pub number: u32,
    /// Its arguments, as the registers held them.
    pub args: [u64; 6],
}

/// What becomes of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It returns this.
    Value(i64),
    /// It fails with this.
    Error(Errno),
    /// The kernel goes on with it as if nobody had looked.
    Continue,
    /// The thread makes it again, from the start. For a thread that stops or takes a signal before it runs its program: the
    /// kernel begins a call anew only where it handles those (`arch_do_signal_or_restart`, arch/x86/kernel/signal.c).
    Again,
}

/// `ERESTARTNOINTR` (linux/errno.h).
const BEGIN_ANEW: i32 = 513;

/// Where stopped system calls arrive. Readable when one waits; hung up when the last task under the filter is gone.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// A listener from its descriptor.
    #[must_use]
    pub const fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Another handle of the same listener.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = self.0.try_clone();
        fd.map(Self).map_err(|_| {
            Error::new(crate::errno::last_errno(), "the listener cannot be duplicated")
        })
    }

    /// Lets a call wake its receiver on the core of the caller, and the other way round, as both take turns. Linux
    /// before 6.6 does not know how; then nothing changes.
    pub fn wake_synchronously(&self) {
        const SYNC_WAKE_UP: libc::c_ulong = 1;
        // SAFETY: 1. this request takes its argument by value.
        unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP)
        };
    }

    /// Answers the call `id`.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the caller was killed meanwhile; that or `EINPROGRESS` if the call has been answered.
    pub fn answer(&self, id: u64, answer: Answer) -> Result<()> {
        let mut response = libc::seccomp_notif_resp { id, val: 0, error: 0, flags: 0 };
        match answer {
            Answer::Value(value) => response.val = value,
            Answer::Error(errno) => response.error = -errno.raw(),
            Answer::Continue => response.flags = CONTINUE,
            Answer::Again => response.error = -BEGIN_ANEW,
        }
        // SAFETY: 1. the request reads one such struct, which lives across the call.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response)
        };
        done(result, "the call is gone").map(drop)
    }

    /// Whether the call `id` still waits: what was found out about its task is about that task and not about a later
    /// one with the same number.
    #[must_use]
    pub fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: 1. the request reads one u64, which lives across the call.
        let result = unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id)
        };
        result == 0
    }

    /// Gives the task of call `id` a descriptor of `file`, the lowest free one, and returns its number. The call goes on
    /// waiting.
    ///
    /// # Errors
    ///
    /// `EMFILE` if the task has no number left, `ENOENT` or `ESRCH` if it was killed meanwhile.
    pub fn add_file(&self, id: u64, file: BorrowedFd<'_>, on_exec: OnExec) -> Result<i32> {
        self.add(id, file, on_exec, Place::Lowest)
    }

    /// Gives the task of call `id` a descriptor of `file` and answers the call with its number, in one step.
    ///
    /// # Errors
    ///
    /// As [`Listener::add_file`]; the call still waits after `EMFILE`.
    pub fn answer_with_file(&self, id: u64, file: BorrowedFd<'_>, on_exec: OnExec) -> Result<i32> {
        self.add(id, file, on_exec, Place::Answer)
    }

    /// Gives the task of call `id` a descriptor of `file` with number `fd`, closing what has it. The call goes on waiting.
    ///
    /// # Errors
    ///
    /// `EBADF` if the number is over the task's `RLIMIT_NOFILE`; else as [`Listener::add_file`].
    pub fn add_file_at(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        on_exec: OnExec,
        fd: u32,
    ) -> Result<i32> {
        self.add(id, file, on_exec, Place::At(fd))
    }

    fn add(&self, id: u64, file: BorrowedFd<'_>, on_exec: OnExec, place: Place) -> Result<i32> {
        let (flags, newfd) = match place {
            Place::Lowest => (0, 0),
            Place::Answer => (libc::SECCOMP_ADDFD_FLAG_SEND, 0),
            Place::At(fd) => (libc::SECCOMP_ADDFD_FLAG_SETFD, fd),
        };
        let request = libc::seccomp_notif_addfd {
            id,
            flags: u32::try_from(flags).expect("two bits"),
            srcfd: u32::try_from(file.as_raw_fd()).expect("a descriptor is not negative"),
            newfd,
            newfd_flags: match on_exec {
                OnExec::Close => libc::O_CLOEXEC.unsigned_abs(),
                OnExec::Keep => 0,
            },
        };
        loop {
            // SAFETY: 1. the request reads one such struct, which lives across the call.
            let result = unsafe {
                libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request)
            };
            match done(result, "the task takes no descriptor") {
                Err(Error { errno: Errno::EINTR, .. }) => {}
                result => return result,
            }
        }
    }
}

/// Which number a descriptor gets.
#[derive(Clone, Copy)]
enum Place {
    /// The lowest free one.
    Lowest,
    /// The lowest free one, which answers the call.
    Answer,
    /// This one.
    At(u32),
}

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`, in the type of the field that takes it.
const CONTINUE: u32 = 1;

/// What becomes of a descriptor when its task executes another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExec {
    /// It stays open.
    Keep,
    /// It is closed (`FD_CLOEXEC`).
    Close,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.0
    }
}

fn done(result: i32, why: &'static str) -> Result<i32> {
    if result < 0 { Err(Error::new(crate::errno::last_errno(), why)) } else { Ok(result) }
}

/// A place for one received call: exactly `struct seccomp_notif`, so that the kernel can write it.
#[repr(transparent)]
struct Slot([AtomicU64; WORDS]);

/// Words of a `struct seccomp_notif`.
const WORDS: usize = size_of::<libc::seccomp_notif>() / size_of::<u64>();
const _: () = assert!(WORDS * size_of::<u64>() == size_of::<libc::seccomp_notif>());

/// Slots for received calls, and some words beside them, in memory that this process shares with those it forks.
///
/// A slot whose id is 0 holds no call. Which slots the receiver may use is known to the receiver only.
#[derive(Debug)]
pub struct Slots {
    start: *mut Slot,
    count: u32,
    words: u32,
}

// SAFETY: 1. the memory is reached through atomics only, except by the kernel while it fills a slot that
// `Slots::receive` was given exclusively; 2. it is unmapped by nobody but `Drop`, which has no other reference left.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// `count` empty slots and `words` words, all 0.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(count: u32, words: u32) -> Result<Self> {
        // SAFETY: 1. a fresh mapping at an address of the kernel's choice overlaps nothing that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::length(count, words),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::new(crate::errno::last_errno(), "no memory for notification slots"));
        }
        Ok(Self { start: start.cast(), count, words })
    }

    fn length(count: u32, words: u32) -> usize {
        let size = |number: u32| usize::try_from(number).expect("64-bit usize");
        size(count) * size_of::<Slot>() + size(words) * size_of::<AtomicU64>()
    }

    fn slot(&self, index: u32) -> &Slot {
        assert!(index < self.count, "slot {index} of {}", self.count);
        // SAFETY: 1. the index lies inside the mapping, which holds atomics of plain bytes and lives as long as `self`.
        unsafe { &*self.start.add(usize::try_from(index).expect("64-bit usize")) }
    }

    /// How many slots there are.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Word `index` beside the slots.
    ///
    /// # Panics
    ///
    /// If there are not that many.
    #[must_use]
    pub fn word(&self, index: u32) -> &AtomicU64 {
        assert!(index < self.words, "word {index} of {}", self.words);
        // SAFETY: 1. the words lie behind the slots inside the mapping, aligned as every u64 there is.
        unsafe {
            let words = self.start.add(usize::try_from(self.count).expect("64-bit usize"));
            &*words.cast::<AtomicU64>().add(usize::try_from(index).expect("64-bit usize"))
        }
    }

    /// Waits for a call and receives it into slot `index`, which nobody else may be using.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the caller was killed before it could be received, or no task is left under the filter: poll tells
    /// which; `EINTR` after a signal.
    pub fn receive(&self, listener: &Listener, index: u32) -> Result<Notification> {
        self.clear(index);
        // SAFETY: 1. the request writes one `struct seccomp_notif`, the size of the slot; 2. the slot is the caller's
        // alone, so that no thread reads it meanwhile; 3. it was cleared, as the kernel wants.
        let result = unsafe {
            let slot = std::ptr::from_ref(self.slot(index)).cast_mut();
            libc::ioctl(listener.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, slot)
        };
        done(result, "no call was received")?;
        Ok(self.get(index).expect("a received call has an id"))
    }

    /// The call in slot `index`, if it holds one.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<Notification> {
        let slot = self.slot(index);
        // Layout of `struct seccomp_notif` and `struct seccomp_data` (linux/seccomp.h): id; pid, flags; nr, arch; ip; args.
        let word = |at: usize| slot.0[at].load(Ordering::Acquire);
        let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).expect("a half");
        let id = word(0);
        (id != 0).then(|| Notification {
            id,
            tid: low(word(1)),
            number: low(word(2)),
            arch: low(word(2) >> 32),
            args: std::array::from_fn(|arg| word(4 + arg)),
        })
    }

    /// Forgets the call in slot `index`: it has been answered.
    pub fn clear(&self, index: u32) {
        for word in &self.slot(index).0 {
            word.store(0, Ordering::Release);
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: 1. the mapping was made by `new` with this length and no reference into it is left.
        unsafe { libc::munmap(self.start.cast(), Self::length(self.count, self.words)) };
    }
}

#[cfg(test)]
mod tests;
