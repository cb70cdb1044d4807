//! How soon a thread that wakes up gets a processor that others use.
//!
//! The scheduler lets a thread run until it has had its slice (3 ms and more), unless one wakes up
//! whose slice is shorter (kernel/sched/fair.c, `PREEMPT_SHORT`). A short slice gives nobody more
//! of the processor, only more often.

#![expect(unsafe_code, reason = "sched_setattr is not in rustix")]

use std::time::Duration;

/// `struct sched_attr` of linux/sched/types.h, its first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const _: () = assert!(size_of::<Attributes>() == 48);

/// The shortest that Linux gives (kernel/sched/syscalls.c, `__setparam_fair`).
const SHORTEST: Duration = Duration::from_micros(100);
/// `SCHED_FLAG_RESET_ON_FORK` of linux/sched.h.
const RESET_ON_FORK: u64 = 1;

/// Gives the calling thread short turns, as far as the system has them: from Linux 6.12 on, for a
/// thread that is scheduled as most are. Everything else about its scheduling stays as it is.
pub fn take_short_turns() {
    let Some(mut attributes) = own() else { return };
    if attributes.policy != libc::SCHED_OTHER.cast_unsigned() {
        return;
    }
    attributes.flags &= RESET_ON_FORK;
    attributes.runtime = SHORTEST.as_nanos().try_into().expect("less than a second");
    // SAFETY: 1. sched_setattr(2) reads one struct of the size that it begins with, which lives
    // across the call.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
}

/// How the calling thread is scheduled.
fn own() -> Option<Attributes> {
    let mut attributes = Attributes::default();
    let size = size_of::<Attributes>();
    // SAFETY: 1. sched_getattr(2) writes as many bytes as it is told that the struct has.
    let answer = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    (answer == 0).then_some(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gets_short_turns_and_nothing_else_changes() {
        let (before, after) = std::thread::spawn(|| {
            let before = own().expect("a thread is scheduled somehow");
            take_short_turns();
            (before, own().expect("as before"))
        })
        .join()
        .expect("no panic");
        let rest = |of: &Attributes| (of.policy, of.nice, of.priority, of.flags);
        assert_eq!(rest(&before), rest(&after));
        // Before Linux 6.12 there are no slices to be had.
        let shortest = u64::try_from(SHORTEST.as_nanos()).expect("short");
        assert!(before.runtime == 0 || after.runtime == shortest, "{before:?} {after:?}");
    }
}
