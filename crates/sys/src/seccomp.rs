//! Seccomp filters: classic BPF that stops chosen system calls, and its installation with a listener; and a list of the only
//! calls that a process may make.
//!
//! A [`Rule`] names a system call of one entry ABI and what its arguments must look like to be stopped; whatever
//! no rule names is allowed. The kernel remembers per number when the arguments do not matter, so a call that no
//! rule names does not run the filter at all (`seccomp_cache_check_allow`, kernel/seccomp.c).
#![expect(unsafe_code, reason = "seccomp(2) takes a pointer to the program")]

use std::os::fd::{FromRawFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};

use crate::notify::Listener;

mod allow;

pub use allow::number;

/// An ABI by which a system call can enter the kernel, as `AUDIT_ARCH_*` names it (linux/audit.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// `syscall`, with numbers of x86_64 and, bit 30 set, of x32.
    X86_64,
    /// `int 0x80` and `sysenter`.
    I386,
}

impl Arch {
    /// The number in `seccomp_data.arch`.
    #[must_use]
    pub const fn raw(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
        }
    }
}

/// Set in the number of a system call that entered by the x32 ABI (asm/unistd.h).
pub const X32_BIT: u32 = 0x4000_0000;

/// Which half of a 64-bit argument a [`Test`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// How a [`Test`] compares, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    /// Equal to this.
    Equal(u32),
    /// This or more.
    AtLeast(u32),
    /// Less than this.
    Below(u32),
    /// Not equal to this.
    Not(u32),
}

/// A condition on one half of one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Which argument, from 0.
    pub arg: u8,
    /// Which half of it.
    pub half: Half,
    /// Bits that are compared.
    pub mask: u32,
    /// What they must be.
    pub is: Is,
}

/// A system call to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    /// The ABI it enters by.
    pub arch: Arch,
    /// Its number there.
    pub number: u32,
    /// Stopped if all of these hold.
    pub when: &'a [Test],
}

/// What the filter does with a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Allow,
    /// Stops the caller and notifies the listener.
    Notify,
    /// Does not make it, and tells the caller by a signal.
    Trap,
}

impl Action {
    const fn raw(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Self::Trap => libc::SECCOMP_RET_TRAP,
        }
    }
}

/// What a filter sees of a system call (`struct seccomp_data`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Number.
    pub number: u32,
    /// Arguments, as the registers held them.
    pub args: [u64; 6],
}

/// A filter program.
#[derive(Clone, Debug)]
pub struct Filter {
    code: Vec<libc::sock_filter>,
}

// The opcodes used (linux/bpf_common.h).
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// Offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

impl Filter {
    /// The program that stops what any of `rules` describes. Rules of one arch that look at arguments are tried in their
    /// order, so the most frequent calls go first; then those that do not, which have a number of their own.
    ///
    /// # Panics
    ///
    /// If one arch has more than 254 rules that do not look at arguments, as far as a BPF jump reaches.
    #[must_use]
    pub fn new(rules: &[Rule<'_>]) -> Self {
        let mut code = vec![statement(LOAD, ARCH)];
        for arch in [Arch::X86_64, Arch::I386] {
            let of_arch = || rules.iter().filter(|rule| rule.arch == arch);
            let mut section = vec![statement(LOAD, NUMBER)];
            let tested: Vec<_> = of_arch().filter(|rule| !rule.when.is_empty()).collect();
            for (index, rule) in tested.iter().enumerate() {
                let same = |other: &&&Rule<'_>| other.number == rule.number;
                // Where another rule has the number too, that one is tried.
                let otherwise = if tested[index + 1..].iter().any(|other| same(&other)) {
                    statement(LOAD, NUMBER)
                } else {
                    statement(RETURN, Action::Allow.raw())
                };
                let body = body(rule.when, otherwise);
                section.push(jump(JUMP_EQUAL, rule.number, 0, body.len()));
                section.extend(body);
            }
            // One instruction a number, all to one end: calls whose arguments do not matter are the most.
            let always: Vec<u32> =
                of_arch().filter(|rule| rule.when.is_empty()).map(|rule| rule.number).collect();
            for (index, &number) in always.iter().enumerate() {
                section.push(jump(JUMP_EQUAL, number, always.len() - index, 0));
            }
            section.push(statement(RETURN, Action::Allow.raw()));
            section.push(statement(RETURN, Action::Notify.raw()));
            // A conditional jump reaches 255 instructions, fewer than a section may have.
            code.push(jump(JUMP_EQUAL, arch.raw(), 1, 0));
            code.push(statement(JUMP, u32::try_from(section.len()).expect("a short program")));
            code.extend(section);
        }
        code.push(statement(RETURN, Action::Allow.raw()));
        Self { code }
    }

    /// What the filter does with `call`, by interpreting it as the kernel does.
    ///
    /// # Panics
    ///
    /// If the program is not one that is made here.
    #[must_use]
    pub fn decide(&self, call: &Call) -> Action {
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let step = self.code[at];
            at += 1;
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            match step.code {
                LOAD => accumulator = load(call, step.k),
                AND => accumulator &= step.k,
                JUMP_EQUAL => at += jump(accumulator == step.k),
                JUMP_AT_LEAST => at += jump(accumulator >= step.k),
                JUMP => at += usize::try_from(step.k).expect("a short program"),
                RETURN if step.k == Action::Notify.raw() => return Action::Notify,
                RETURN if step.k == Action::Trap.raw() => return Action::Trap,
                RETURN => return Action::Allow,
                other => unreachable!("opcode {other:#x} is not one of ours"),
            }
        }
    }

    /// Puts the calling thread, and all it will start, under this filter. It cannot be taken off again.
    ///
    /// The caller's signal handlers wait for the answer to a stopped call, so that `SA_RESTART` executes nothing
    /// twice; only a fatal signal gets through (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, Linux 5.19).
    ///
    /// # Errors
    ///
    /// `EBUSY` if a filter with a listener is in force already, which the kernel allows once; `EACCES` without
    /// `CAP_SYS_ADMIN` in this user namespace and without [`no_new_privileges`]; `EINVAL` before Linux 5.19 or without
    /// `CONFIG_SECCOMP_FILTER`.
    pub fn install(&self) -> Result<Listener> {
        let length = u16::try_from(self.code.len()).expect("a program of one page");
        let program = libc::sock_fprog { len: length, filter: self.code.as_ptr().cast_mut() };
        let flags =
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        // SAFETY: 1. `program` and the instructions it points to live across the call and the kernel only reads
        // them; 2. the filter only ever allows or notifies, so it cannot change what memory this process has.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                std::ptr::from_ref(&program),
            )
        };
        let Ok(fd @ 0..) = i32::try_from(fd) else {
            return Err(refused(crate::errno::last_errno()));
        };
        // SAFETY: 1. the kernel made this descriptor for the call above and nobody else knows its number.
        Ok(Listener::new(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// Gives up, for this process and all it will start, what executing set-user-ID programs would bring. Without
/// privileges the kernel takes a filter only after this.
///
/// # Errors
///
/// None that Linux documents; passed on all the same.
pub fn no_new_privileges() -> Result<()> {
    rustix::thread::set_no_new_privs(true).map_err(crate::because("PR_SET_NO_NEW_PRIVS is refused"))
}

fn refused(errno: Errno) -> Error {
    Error::new(
        errno,
        match errno {
            Errno::EBUSY => {
                "system calls of this process are already answered by a seccomp listener, and the kernel allows one: \
                 run inside another `ioasis run`, or inside a sandbox that listens itself, is not possible"
            }
            Errno::EINVAL => {
                "this kernel has no SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Linux 5.19 or newer is needed"
            }
            Errno::EACCES => "a seccomp filter needs CAP_SYS_ADMIN or PR_SET_NO_NEW_PRIVS",
            _ => "seccomp(2) refuses the filter; a container's own seccomp profile may forbid it",
        },
    )
}

/// Loads and tests, each leading to a shared `otherwise` at the end, with `RET NOTIFY` just before it.
fn body(tests: &[Test], otherwise: libc::sock_filter) -> Vec<libc::sock_filter> {
    let mut code = Vec::new();
    let total: usize =
        tests.iter().map(|test| 2 + usize::from(test.mask != u32::MAX)).sum::<usize>() + 2;
    for test in tests {
        let half = match test.half {
            Half::Low => 0,
            Half::High => 4,
        };
        code.push(statement(LOAD, ARGS + 8 * u32::from(test.arg) + half));
        if test.mask != u32::MAX {
            code.push(statement(AND, test.mask));
        }
        // From behind this jump to the last instruction.
        let last = total - code.len() - 2;
        code.push(match test.is {
            Is::Equal(value) => jump(JUMP_EQUAL, value, 0, last),
            Is::Not(value) => jump(JUMP_EQUAL, value, last, 0),
            Is::AtLeast(value) => jump(JUMP_AT_LEAST, value, 0, last),
            Is::Below(value) => jump(JUMP_AT_LEAST, value, last, 0),
        });
    }
    code.push(statement(RETURN, Action::Notify.raw()));
    code.push(otherwise);
    code
}

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, taken: usize, not_taken: usize) -> libc::sock_filter {
    let reach = |distance| u8::try_from(distance).expect("a BPF jump reaches 255 instructions");
    libc::sock_filter { code, jt: reach(taken), jf: reach(not_taken), k }
}

fn load(call: &Call, offset: u32) -> u32 {
    match offset {
        NUMBER => call.number,
        ARCH => call.arch,
        _ => {
            let arg = call.args[usize::try_from((offset - ARGS) / 8).expect("an index")];
            let half = if (offset - ARGS).is_multiple_of(8) { arg } else { arg >> 32 };
            u32::try_from(half & u64::from(u32::MAX)).expect("a half")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: Test = Test { arg: 1, half: Half::Low, mask: 0xff00, is: Is::Equal(0x3b00) };
    const FAR: Test = Test { arg: 3, half: Half::High, mask: u32::MAX, is: Is::AtLeast(0x100) };
    const NEAR: Test = Test { arg: 3, half: Half::Low, mask: u32::MAX, is: Is::Below(16) };
    const OTHER: Test = Test { arg: 3, half: Half::Low, mask: u32::MAX, is: Is::Not(7) };

    fn filter() -> Filter {
        Filter::new(&[
            Rule { arch: Arch::X86_64, number: 16, when: &[TYPE] },
            Rule { arch: Arch::X86_64, number: 17, when: &[FAR, NEAR, OTHER] },
            Rule { arch: Arch::X86_64, number: 2, when: &[] },
            Rule { arch: Arch::I386, number: 54, when: &[TYPE] },
        ])
    }

    fn decide(arch: Arch, number: u32, args: [u64; 6]) -> Action {
        filter().decide(&Call { arch: arch.raw(), number, args })
    }

    #[test]
    fn a_rule_stops_only_what_passes_all_its_tests() {
        let x86 = Arch::X86_64;
        assert_eq!(decide(x86, 16, [0, 0x3b64, 0, 0, 0, 0]), Action::Notify);
        assert_eq!(decide(x86, 16, [0, 0x5401, 0, 0, 0, 0]), Action::Allow);
        assert_eq!(decide(x86, 17, [0, 0, 0, 1 << 40, 0, 0]), Action::Notify);
        assert_eq!(decide(x86, 17, [0, 0, 0, (1 << 40) - 1, 0, 0]), Action::Allow);
        assert_eq!(decide(x86, 17, [0, 0, 0, 1 << 40 | 16, 0, 0]), Action::Allow);
        assert_eq!(decide(x86, 17, [0, 0, 0, 1 << 40 | 7, 0, 0]), Action::Allow);
        assert_eq!(decide(x86, 2, [0; 6]), Action::Notify);
        assert_eq!(decide(x86, 3, [0; 6]), Action::Allow);
    }

    #[test]
    fn a_number_means_something_else_on_another_arch() {
        assert_eq!(decide(Arch::I386, 54, [0, 0x3b64, 0, 0, 0, 0]), Action::Notify);
        assert_eq!(decide(Arch::I386, 16, [0, 0x3b64, 0, 0, 0, 0]), Action::Allow);
        let aarch64 = Call { arch: 0xc000_00b7, number: 16, args: [0, 0x3b64, 0, 0, 0, 0] };
        assert_eq!(filter().decide(&aarch64), Action::Allow);
    }

    #[test]
    fn the_kernel_takes_the_program_once() {
        let child = crate::spawn::fork_with(|| {
            no_new_privileges().expect("always allowed");
            let first = filter().install();
            let second = filter().install();
            i32::from(first.is_err()) << 1
                | i32::from(second.map(drop).map_err(|e| e.errno) != Err(Errno::EBUSY))
        });
        assert_eq!(child.expect("fork").wait().expect("a child").code(), Some(0));
    }
}
