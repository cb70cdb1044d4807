//! A system call made by a stopped thread that did not ask for it.
//!
//! The thread is set back onto a `syscall` (or `int $0x80`) instruction of its own, runs it from one stop to the next,
//! and has its registers and signal mask as before when that is over. All signals wait meanwhile. SIGSTOP does not wait:
//! it stops the other threads at once and this one after the call.
//!
//! The call passes the program's own seccomp filters, which may refuse it.

use ioasis_uapi::{Errno, Error, Result};

use super::{Event, Registers, Resume, Stop, Tracer};

/// Bytes of a `syscall` and of an `int $0x80`.
pub(super) const INSTRUCTION: u64 = 2;

/// A system call to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemCall {
    /// Address of the instruction that makes it.
    pub instruction: u64,
    /// Its number, in the table that the instruction takes it from.
    pub number: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

impl SystemCall {
    /// The instruction of the system call that a thread has just come out of.
    #[must_use]
    pub const fn instruction_before(registers: &Registers) -> u64 {
        registers.rip.wrapping_sub(INSTRUCTION)
    }
}

/// Where a thread is in an injected call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Entering,
    Leaving,
}

/// A call on its way: the thread runs, and its next stop is to be given to [`Injection::next`].
#[derive(Debug)]
pub struct Injection {
    tid: u32,
    saved: Registers,
    mask: u64,
    step: Step,
    was_stopped: bool,
}

/// What came of an injected call. The thread is stopped, with its own registers and mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the call answered.
    pub result: Result<u64, Errno>,
    /// The thread must be interrupted before it runs its program again: a stop signal came meanwhile, or it stopped
    /// in a call that the kernel begins anew where it handles signals (`arch_do_signal_or_restart`).
    pub to_interrupt: bool,
    /// The signal the thread is stopped at, which an unexpected end of the call leaves to be delivered; or 0.
    pub signal: i32,
}

impl Injection {
    /// Begins a call of the stopped thread `tid`.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it was killed.
    pub fn begin(tracer: &Tracer, tid: u32, call: SystemCall) -> Result<Self> {
        let saved = tracer.registers(tid)?;
        let mask = tracer.signal_mask(tid)?;
        let mut registers = saved;
        registers.rip = call.instruction;
        registers.rax = call.number.into();
        // Not the rest of a call that a signal interrupted.
        registers.orig_rax = u64::MAX;
        // Neither single steps nor a direction that strings go.
        registers.eflags &= !0x500;
        let [first, second, third, fourth, fifth, sixth] = call.args;
        if saved.is_32_bit() {
            (registers.rbx, registers.rcx, registers.rdx) = (first, second, third);
            (registers.rsi, registers.rdi, registers.rbp) = (fourth, fifth, sixth);
        } else {
            (registers.rdi, registers.rsi, registers.rdx) = (first, second, third);
            (registers.r10, registers.r8, registers.r9) = (fourth, fifth, sixth);
        }
        tracer.set_signal_mask(tid, u64::MAX)?;
        let injection = Self { tid, saved, mask, step: Step::Entering, was_stopped: false };
        let begun = tracer
            .set_registers(tid, &registers)
            .and_then(|()| tracer.resume(tid, Resume::SystemCall, 0));
        if begun.is_err() {
            injection.restore(tracer)?;
        }
        begun.map(|()| injection)
    }

    /// Goes on from a stop of the thread; tells what came of the call once it is over.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it was killed.
    pub fn next(&mut self, tracer: &Tracer, event: Event) -> Result<Option<Outcome>> {
        let signal = match (event, self.step) {
            (Event::SystemCall, Step::Entering) => {
                self.step = Step::Leaving;
                0
            }
            (Event::SystemCall, Step::Leaving) => {
                let answer = tracer.registers(self.tid)?.rax;
                self.restore(tracer)?;
                return Ok(Some(self.outcome(result(answer), 0)));
            }
            (Event::Signal(signal), _) if is_stop(signal) => {
                self.was_stopped = true;
                signal
            }
            // A fault of the instruction itself: somebody took it away.
            (Event::Signal(signal), _) => {
                self.restore(tracer)?;
                return Ok(Some(self.outcome(Err(Errno::EFAULT), signal)));
            }
            (Event::Group(_), _) => {
                self.was_stopped = true;
                0
            }
            _ => 0,
        };
        tracer.resume(self.tid, Resume::SystemCall, signal)?;
        Ok(None)
    }

    /// Makes a call and waits for it, in a tracer that has no other tracee running.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread was killed.
    pub fn make(tracer: &Tracer, tid: u32, call: SystemCall) -> Result<Outcome> {
        let mut injection = Self::begin(tracer, tid, call)?;
        loop {
            match tracer.wait() {
                super::Waited::Stop(Stop { tid: stopped, event }) if stopped == tid => {
                    if let Some(outcome) = injection.next(tracer, event)? {
                        return Ok(outcome);
                    }
                }
                super::Waited::Ended(..) | super::Waited::Nobody => {
                    return Err(Error::at(Errno::ESRCH, "the thread was killed", tid.into()));
                }
                _ => {}
            }
        }
    }

    fn restore(&self, tracer: &Tracer) -> Result<()> {
        tracer.set_registers(self.tid, &self.saved)?;
        tracer.set_signal_mask(self.tid, self.mask)
    }

    fn outcome(&self, result: Result<u64, Errno>, signal: i32) -> Outcome {
        // ERESTARTSYS to ERESTART_RESTARTBLOCK (linux/errno.h).
        let begins_anew = self.saved.orig_rax.cast_signed() >= 0
            && (-516..=-512).contains(&self.saved.rax.cast_signed());
        Outcome { result, to_interrupt: self.was_stopped || begins_anew, signal }
    }
}

fn is_stop(signal: i32) -> bool {
    [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
}

/// What a system call answered, from the register it answers in.
fn result(answer: u64) -> Result<u64, Errno> {
    match i32::try_from(answer.cast_signed()) {
        Ok(errno @ -4095..=-1) => Err(Errno::from_raw(-errno)),
        _ => Ok(answer),
    }
}
