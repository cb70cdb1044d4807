//! Failing the nth fallible step of a call, on purpose.
//!
//! Every step of the core that can fail for want of memory or of another resource passes [`step`]
//! first. A test, or a client that asks for it, arms the calling thread with `n`; the nth step from
//! there on then fails once, and what the call had built must be gone. The counter belongs to the
//! thread, as Linux's `fail-nth` belongs to the task.

use std::cell::Cell;

use ioasis_uapi::{Errno, Error, Result};

thread_local! {
    static REMAINING: Cell<u32> = const { Cell::new(0) };
    static FAILED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Makes the `nth` step from here on fail on this thread; 0 disarms.
pub fn arm(nth: u32) {
    REMAINING.set(nth);
    FAILED.set(None);
}

/// Disarms this thread and says how many steps were left before the failure: 0 when it happened, or
/// nothing was armed.
pub fn disarm() -> u32 {
    REMAINING.replace(0)
}

/// What could not be had in the step that failed since this thread was armed.
pub fn failed() -> Option<&'static str> {
    FAILED.get()
}

/// One step that may fail; `what` is what could not be had.
///
/// # Errors
///
/// `ENOMEM` when this is the armed step.
pub fn step(what: &'static str) -> Result<()> {
    match REMAINING.get() {
        0 => Ok(()),
        1 => {
            REMAINING.set(0);
            FAILED.set(Some(what));
            Err(Error::new(Errno::ENOMEM, what))
        }
        nth => {
            REMAINING.set(nth - 1);
            Ok(())
        }
    }
}

/// More steps than any call has.
const STEPS: u32 = 1000;

/// Calls with its first step failing, then with its second, and so on until the call has no step
/// left to fail: the answer of that call, and how many steps can fail. `failed` hears of each call
/// before, by the number of the step that failed, what it answered.
///
/// # Errors
///
/// Whatever `failed` says.
///
/// # Panics
///
/// When the steps have no end.
pub fn fail_each<S: ?Sized, A, E>(
    on: &mut S,
    mut call: impl FnMut(&mut S) -> A,
    mut failed: impl FnMut(&mut S, u32, A) -> Result<(), E>,
) -> Result<(A, u32), E> {
    for nth in 1..STEPS {
        arm(nth);
        let answer = call(on);
        if disarm() > 0 {
            return Ok((answer, nth - 1));
        }
        failed(on, nth, answer)?;
    }
    panic!("a call has no end of steps that fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_step_fails_once() {
        arm(3);
        let answers: Vec<bool> = (0..5).map(|_| step("a step").is_ok()).collect();
        assert_eq!(answers, [true, true, false, true, true]);
        assert_eq!((disarm(), failed()), (0, Some("a step")));
        arm(0);
        assert_eq!(failed(), None);
    }

    #[test]
    fn every_step_of_a_call_fails_once_before_the_call_succeeds() {
        let call = |done: &mut Vec<u32>| {
            let answer = ["one", "two"].into_iter().try_for_each(step);
            done.push(u32::from(answer.is_ok()));
            answer.map_err(|error| error.why)
        };
        let mut answers = Vec::new();
        let mut failed = |_: &mut Vec<u32>, nth, answer| {
            answers.push((nth, answer));
            Ok::<_, Error>(())
        };
        let mut done = Vec::new();
        assert_eq!(fail_each(&mut done, call, &mut failed), Ok((Ok(()), 2)));
        assert_eq!(answers, [(1, Err("one")), (2, Err("two"))]);
        assert_eq!(done, [0, 0, 1]);
    }

    #[test]
    fn an_unreached_failure_is_reported() {
        arm(3);
        assert!(step("a step").is_ok());
        assert_eq!(disarm(), 2);
        assert!(step("a step").is_ok());
    }
}
