//! ptrace(2): threads of other processes, stopped and looked at.
//!
//! Linux binds a tracee to the thread that seized it, not to its process. A [`Tracer`] is therefore neither sent nor
//! shared between threads, and every request on a tracee goes through it. It waits for its own tracees only. Each that ends
//! is reaped by it: the status of one whose parent is another process is passed on by the kernel, but one whose parent is
//! this process is gone then, so whoever asked for it must be told ([`Waited::Ended`]). A wait for children elsewhere in
//! this process, whatever its options, takes the stop of a tracee that is a child too (`wait_task_stopped`,
//! kernel/exit.c): it must look before it takes, as [`spawn::ended`](crate::spawn::ended) does.
//!
//! A number names a tracee only while that is stopped: the number of a thread that stopped cannot pass to another process
//! before it has been waited for. Within one process it can: when a thread executes a program, that thread takes the
//! number of the thread group's leader. Whoever changes a tracee's registers must be content to have changed the new
//! program's: it must let go of a thread before that executes one ([`Tracer::seize`]).
#![expect(unsafe_code, reason = "ptrace(2) and waitid(2) fill in what they are pointed to")]

mod inject;
mod registers;
#[cfg(test)]
mod tests;
mod waker;

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::process::ExitStatus;
use std::ptr;

use ioasis_uapi::{Error, Result};

use crate::errno::last_errno;

pub use inject::{Injection, Outcome, SystemCall};
pub use registers::{Registers, VECTOR, Vectors};
pub use waker::{Waker, tell_ends_only};

/// What a seized thread reports besides signals and stops (linux/ptrace.h, `PTRACE_O_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Itself only.
    Alone,
    /// Also every thread and process it makes from now on, which is seized as it is; and that it executes a program.
    Children,
}

/// How a stopped tracee goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Until its next signal or event.
    Continue,
    /// Until it enters or leaves a system call.
    SystemCall,
    /// For one instruction.
    Step,
}

/// Why a tracee stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This signal is about to be delivered; whoever resumes it decides whether it is.
    Signal(i32),
    /// It was interrupted, or it has just been made by a tracee.
    Interrupted,
    /// Its process is stopped by this signal: [`Tracer::listen`] leaves it so.
    Group(i32),
    /// It enters or leaves a system call.
    SystemCall,
    /// It made a thread.
    Thread,
    /// It made a process.
    Process,
    /// It executes another program. Its number is now its thread group's.
    Exec,
    /// It is about to end. Whoever lets go of it here hides its end from nobody: a parent that polls a pidfd is told of it
    /// before a tracer has waited, and waitid(2) tells that parent nothing until one has (`wait_consider_task`, kernel/exit.c).
    Exit,
    /// Another event, which nobody asked for.
    Other(i32),
}

/// A tracee that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Its number.
    pub tid: u32,
    /// Why.
    pub event: Event,
}

/// What came of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// A tracee stopped.
    Stop(Stop),
    /// The tracee of this number ended, and has been reaped.
    Ended(u32, ExitStatus),
    /// A signal handler of this thread ran.
    Interrupted,
    /// No tracee is left.
    Nobody,
}

/// What the kernel says about the signal a tracee stopped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalInfo {
    /// Its number.
    pub signal: i32,
    /// `si_code`: above 0 when the kernel sent it, or a process to itself that says so.
    pub code: i32,
    /// `si_addr`, which only faults have.
    pub address: u64,
}

/// `si_code` of an access that the mapping at its address does not permit (`SEGV_ACCERR`, asm-generic/siginfo.h).
pub const SEGV_ACCERR: i32 = 2;
/// `si_code` of an access to an address without a mapping (`SEGV_MAPERR`).
pub const SEGV_MAPERR: i32 = 1;
/// `si_code` of an access to memory that is not there (`BUS_ADRERR`).
pub const BUS_ADRERR: i32 = 2;

/// `PTRACE_EVENT_STOP` and its siblings, in the bits of a wait status above the signal (linux/ptrace.h).
const EVENT_SHIFT: i32 = 8;
/// What `PTRACE_O_TRACESYSGOOD` adds to the signal of a stop at a system call.
const SYSGOOD: i32 = 0x80;
/// The bytes of a signal mask in the kernel, which glibc's is larger than.
const KERNEL_SIGSET: usize = 8;

/// The thread that traces.
#[derive(Debug, Default)]
pub struct Tracer {
    /// Requests from another thread answer ESRCH.
    bound: PhantomData<*const ()>,
}

impl Tracer {
    /// The calling thread, with no tracee yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the thread `tid` a tracee. It goes on running. If it executes a program with more privilege than it has
    /// itself, it gets that only if the calling thread has CAP_SYS_PTRACE now (`cap_bprm_creds_from_file`,
    /// security/commoncap.c), and is traced on: whoever traces programs of other users lets go of them first.
    ///
    /// # Errors
    ///
    /// `EPERM` when somebody traces it already or it is not ours to trace, `ESRCH` when it is gone.
    pub fn seize(&self, tid: u32, follow: Follow) -> Result<()> {
        let options = match follow {
            Follow::Alone => libc::PTRACE_O_TRACESYSGOOD,
            Follow::Children => {
                libc::PTRACE_O_TRACESYSGOOD
                    | libc::PTRACE_O_TRACECLONE
                    | libc::PTRACE_O_TRACEFORK
                    | libc::PTRACE_O_TRACEVFORK
                    | libc::PTRACE_O_TRACEEXEC
                    | libc::PTRACE_O_TRACEEXIT
            }
        };
        self.request(libc::PTRACE_SEIZE, tid, 0, word(options), "the thread cannot be traced")
    }

    /// Makes a running tracee stop, with [`Event::Interrupted`] or [`Event::Group`], before it runs another
    /// instruction of its program.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it is no tracee.
    pub fn interrupt(&self, tid: u32) -> Result<()> {
        self.request(libc::PTRACE_INTERRUPT, tid, 0, 0, "the thread cannot be interrupted")
    }

    /// Waits for a tracee to stop or to end.
    ///
    /// # Panics
    ///
    /// If the kernel refuses a waitid(2) that is well formed.
    #[must_use]
    pub fn wait(&self) -> Waited {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let options = libc::WEXITED | libc::WSTOPPED | libc::__WALL | libc::__WNOTHREAD;
        // SAFETY: 1. `info` is valid for the call; 2. its bytes are plain integers, so zeroes are a value.
        let (result, info) = unsafe {
            let result = libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options);
            (result, info.assume_init())
        };
        if result != 0 {
            return match last_errno().raw() {
                libc::EINTR => Waited::Interrupted,
                libc::ECHILD => Waited::Nobody,
                errno => panic!("waitid(2) answers {errno}"),
            };
        }
        // SAFETY: 1. waitid(2) filled in the fields of a child's status.
        let (tid, status) = unsafe { (info.si_pid(), info.si_status()) };
        let tid = tid.unsigned_abs();
        match crate::spawn::end(info.si_code, status) {
            Some(status) => Waited::Ended(tid, status),
            None => Waited::Stop(Stop { tid, event: event(status) }),
        }
    }

    /// Lets a stopped tracee go on, with `signal` delivered to it unless that is 0.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it does not stand still, because it was killed.
    pub fn resume(&self, tid: u32, how: Resume, signal: i32) -> Result<()> {
        let request = match how {
            Resume::Continue => libc::PTRACE_CONT,
            Resume::SystemCall => libc::PTRACE_SYSCALL,
            Resume::Step => libc::PTRACE_SINGLESTEP,
        };
        self.request(request, tid, 0, word(signal), "the thread does not go on")
    }

    /// Leaves a tracee that stopped with [`Event::Group`] stopped, until its process is continued.
    ///
    /// # Errors
    ///
    /// As [`Tracer::resume`].
    pub fn listen(&self, tid: u32) -> Result<()> {
        self.request(libc::PTRACE_LISTEN, tid, 0, 0, "the thread does not listen")
    }

    /// Lets go of a stopped tracee, with `signal` delivered to it unless that is 0.
    ///
    /// # Errors
    ///
    /// As [`Tracer::resume`].
    pub fn detach(&self, tid: u32, signal: i32) -> Result<()> {
        self.request(libc::PTRACE_DETACH, tid, 0, word(signal), "the thread is not let go of")
    }

    /// The registers of a stopped tracee.
    ///
    /// # Errors
    ///
    /// As [`Tracer::resume`].
    pub fn registers(&self, tid: u32) -> Result<Registers> {
        let mut registers = Registers::default();
        let data = (&raw mut registers).expose_provenance();
        self.request(libc::PTRACE_GETREGS, tid, 0, data, "no registers to read")?;
        Ok(registers)
    }

    /// Sets the registers of a stopped tracee.
    ///
    /// # Errors
    ///
    /// `EIO` when a value is none a program may have, else as [`Tracer::resume`].
    pub fn set_registers(&self, tid: u32, registers: &Registers) -> Result<()> {
        let data = ptr::from_ref(registers).expose_provenance();
        self.request(libc::PTRACE_SETREGS, tid, 0, data, "the registers are not set")
    }

    /// The vector registers of a stopped tracee.
    ///
    /// # Errors
    ///
    /// `ENODEV` on a processor without XSAVE, else as [`Tracer::resume`].
    pub fn vectors(&self, tid: u32) -> Result<Vectors> {
        let mut area = vec![0_u8; registers::LARGEST_AREA];
        let mut io = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
        let data = (&raw mut io).expose_provenance();
        self.request(libc::PTRACE_GETREGSET, tid, X86_XSTATE, data, "no vector registers")?;
        area.truncate(io.iov_len);
        Ok(Vectors::new(area))
    }

    /// Sets the vector registers of a stopped tracee.
    ///
    /// # Errors
    ///
    /// As [`Tracer::vectors`].
    pub fn set_vectors(&self, tid: u32, vectors: &Vectors) -> Result<()> {
        let area = vectors.area();
        let base = area.as_ptr().cast_mut().cast();
        let mut io = libc::iovec { iov_base: base, iov_len: area.len() };
        let data = (&raw mut io).expose_provenance();
        self.request(libc::PTRACE_SETREGSET, tid, X86_XSTATE, data, "vectors are not set")
    }

    /// The signals a stopped tracee blocks: bit n - 1 for signal n.
    ///
    /// # Errors
    ///
    /// As [`Tracer::resume`].
    pub fn signal_mask(&self, tid: u32) -> Result<u64> {
        let mut mask = 0_u64;
        let data = (&raw mut mask).expose_provenance();
        self.request(libc::PTRACE_GETSIGMASK, tid, KERNEL_SIGSET, data, "no mask to read")?;
        Ok(mask)
    }

    /// Sets the signals a stopped tracee blocks; SIGKILL and SIGSTOP never are.
    ///
    /// # Errors
    ///
    /// As [`Tracer::resume`].
    pub fn set_signal_mask(&self, tid: u32, mask: u64) -> Result<()> {
        let data = (&raw const mask).expose_provenance();
        self.request(libc::PTRACE_SETSIGMASK, tid, KERNEL_SIGSET, data, "the mask is not set")
    }

    /// Eight bytes of the memory of a stopped tracee, whatever it may do there itself.
    ///
    /// # Errors
    ///
    /// `EIO` where they are not all mapped, else as [`Tracer::resume`].
    pub fn peek(&self, tid: u32, address: u64) -> Result<[u8; 8]> {
        let mut word = 0_u64;
        let data = (&raw mut word).expose_provenance();
        let address = usize::try_from(address).expect("64 bits");
        self.request(libc::PTRACE_PEEKTEXT, tid, address, data, "no memory to read")?;
        Ok(word.to_ne_bytes())
    }

    /// What the kernel says about the signal a tracee stopped at.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it did not stop at one, else as [`Tracer::resume`].
    pub fn signal_info(&self, tid: u32) -> Result<SignalInfo> {
        let info = self.raw_info(tid)?;
        // SAFETY: 1. si_addr lies within the struct, which is initialized as a whole, and any bits are an address.
        let address = unsafe { info.si_addr() };
        Ok(SignalInfo { signal: info.si_signo, code: info.si_code, address: address.addr() as u64 })
    }

    /// Makes the signal a tracee stopped at another one, of a fault at another address.
    ///
    /// # Errors
    ///
    /// As [`Tracer::signal_info`].
    pub fn set_signal_info(&self, tid: u32, fault: SignalInfo) -> Result<()> {
        /// Where `si_addr` lies: after three ints and padding (asm-generic/siginfo.h).
        const AT: usize = 16;
        let mut info = self.raw_info(tid)?;
        (info.si_signo, info.si_code) = (fault.signal, fault.code);
        // SAFETY: 1. the 8 bytes lie within the struct of 128; 2. `info` is not borrowed otherwise.
        unsafe { (&raw mut info).byte_add(AT).cast::<u64>().write_unaligned(fault.address) };
        let data = (&raw const info).expose_provenance();
        self.request(libc::PTRACE_SETSIGINFO, tid, 0, data, "the signal is not changed")
    }

    /// What [`Event::Thread`] and [`Event::Process`] say the number of, and [`Event::Exec`] the old number.
    ///
    /// # Errors
    ///
    /// As [`Tracer::resume`].
    pub fn message(&self, tid: u32) -> Result<u32> {
        let mut message: libc::c_ulong = 0;
        let data = (&raw mut message).expose_provenance();
        self.request(libc::PTRACE_GETEVENTMSG, tid, 0, data, "no message to read")?;
        Ok(u32::try_from(message).unwrap_or(0))
    }

    fn raw_info(&self, tid: u32) -> Result<libc::siginfo_t> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let data = info.as_mut_ptr().expose_provenance();
        self.request(libc::PTRACE_GETSIGINFO, tid, 0, data, "no signal to read")?;
        // SAFETY: 1. its bytes are plain integers, and they were zeroes before the kernel wrote them.
        Ok(unsafe { info.assume_init() })
    }

    /// One ptrace(2). `data` is a number, or the exposed address of what the request reads or writes, which each caller
    /// above has made of the type that request takes and keeps for the call.
    fn request(
        &self,
        request: libc::c_uint,
        tid: u32,
        address: usize,
        data: usize,
        why: &'static str,
    ) -> Result<()> {
        // SAFETY: 1. the request touches no memory of this process but the object at `data`, as said above; 2. it acts
        // on another process: the kernel refuses to trace a thread of this one.
        let result = unsafe {
            libc::syscall(
                libc::SYS_ptrace,
                libc::c_ulong::from(request),
                libc::c_ulong::from(tid),
                address,
                data,
            )
        };
        if result < 0 { Err(Error::at(last_errno(), why, tid.into())) } else { Ok(()) }
    }
}

/// `NT_X86_XSTATE` of linux/elf.h.
const X86_XSTATE: usize = 0x202;

fn word(number: i32) -> usize {
    usize::try_from(number).expect("a signal or a set of flags is not negative")
}

/// What the status of a stop says.
fn event(status: i32) -> Event {
    let signal = status & 0xff;
    match status >> EVENT_SHIFT {
        0 if signal == libc::SIGTRAP | SYSGOOD => Event::SystemCall,
        0 => Event::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::Interrupted,
        libc::PTRACE_EVENT_STOP => Event::Group(signal),
        libc::PTRACE_EVENT_CLONE => Event::Thread,
        libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => Event::Process,
        libc::PTRACE_EVENT_EXEC => Event::Exec,
        libc::PTRACE_EVENT_EXIT => Event::Exit,
        other => Event::Other(other),
    }
}
