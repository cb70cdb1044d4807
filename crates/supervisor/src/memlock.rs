//! RLIMIT_MEMLOCK of programs that are root in a user namespace of their own (`--root`).
//!
//! Root may raise the limit, but the kernel asks for CAP_SYS_RESOURCE in the first user namespace (`do_prlimit`,
//! kernel/sys.c). A raise is therefore answered here, and kept where the kernel keeps limits, so that fork, clone and
//! exec inherit it and no number of a process stands for it: the soft limit of the raised process becomes one of the
//! 4,095 values below the hard limit that the run began with, none of which is a whole number of pages, and which one
//! says what the program set. Only this module's calls set such a value, since every other is seen.
//!
//! `Memlock::raised` is a leaf lock.

use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

/// How many limits there are names for: as many as bytes of a page, but for the first.
const NAMES: u64 = 4095;
/// `RLIM_INFINITY`.
pub(crate) const INFINITY: u64 = u64::MAX;

/// A `struct rlimit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The soft limit.
    pub(crate) current: u64,
    /// The hard limit.
    pub(crate) maximum: u64,
}

/// The limits that were raised.
#[derive(Debug)]
pub(crate) struct Memlock {
    /// The hard limit that the run began with. Immutable.
    hard: u64,
    /// By name; `None` for the value that the run began with itself.
    raised: Mutex<Vec<Option<Limit>>>,
}

impl Memlock {
    /// None raised yet, in a run that begins with `limit`; none are needed where the kernel sets no limit.
    pub(crate) fn new(limit: Limit) -> Option<Self> {
        if limit.maximum == INFINITY {
            return None;
        }
        let begun = name(limit.maximum, limit.current).map_or(0, |name| name + 1);
        let raised = Mutex::new(vec![None; usize::try_from(begun).expect("few")]);
        Some(Self { hard: limit.maximum, raised })
    }

    /// What the program was told that its limit is, where the kernel has `kernels`.
    pub(crate) fn shown(&self, kernels: Limit) -> Limit {
        let raised = self.raised.lock();
        let name = name(self.hard, kernels.current).and_then(|name| usize::try_from(name).ok());
        name.and_then(|name| raised.get(name).copied().flatten()).unwrap_or(kernels)
    }

    /// The limit for the kernel that stands for `wanted`, in a process whose limit it has as `kernels`.
    ///
    /// # Errors
    ///
    /// `EPERM` where the process has lowered its hard limit, `ENOMEM` when there is no name left.
    pub(crate) fn kernels(&self, wanted: Limit, kernels: Limit) -> Result<Limit> {
        let is_a_name = name(self.hard, wanted.current).is_some();
        if wanted.maximum <= kernels.maximum && !is_a_name {
            return Ok(wanted);
        }
        if kernels.maximum < self.hard {
            let why = "the hard limit was lowered, and the kernel raises it for nobody here";
            return Err(Error::at(Errno::EPERM, why, kernels.maximum));
        }
        let mut raised = self.raised.lock();
        let name = match raised.iter().position(|known| *known == Some(wanted)) {
            Some(known) => known,
            None if (raised.len() as u64) < NAMES.min(self.hard) => {
                raised.push(Some(wanted));
                raised.len() - 1
            }
            None => return Err(Error::new(Errno::ENOMEM, "too many limits were set")),
        };
        Ok(Limit { current: self.hard - 1 - name as u64, maximum: self.hard })
    }
}

/// Which name a soft limit is, below the hard limit `hard`.
fn name(hard: u64, soft: u64) -> Option<u64> {
    hard.checked_sub(soft)?.checked_sub(1).filter(|&name| name < NAMES)
}

const LINE: &str = "Max locked memory";

/// The limit in the text of /proc/PID/limits.
pub(crate) fn of_text(text: &str) -> Option<Limit> {
    let line = text.lines().find_map(|line| line.strip_prefix(LINE))?;
    let mut values = line.split_whitespace().map(|value| match value {
        "unlimited" => Some(INFINITY),
        number => number.parse().ok(),
    });
    Some(Limit { current: values.next()??, maximum: values.next()?? })
}

/// The text of /proc/PID/limits with another limit in it, as `proc_pid_limits` of fs/proc/base.c writes it.
pub(crate) fn with_limit(text: &str, limit: Limit) -> String {
    let value = |value| match value {
        INFINITY => "unlimited".to_owned(),
        number => number.to_string(),
    };
    let (current, maximum) = (value(limit.current), value(limit.maximum));
    let shown = format!("{LINE:<25} {current:<20} {maximum:<20} {:<10}\n", "bytes");
    let lines = text.split_inclusive('\n');
    lines.map(|line| if line.starts_with(LINE) { shown.as_str() } else { line }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARD: u64 = 8 << 20;
    const BEGUN: Limit = Limit { current: HARD, maximum: HARD };

    fn limit(current: u64, maximum: u64) -> Limit {
        Limit { current, maximum }
    }

    #[test]
    fn a_raised_limit_is_found_again_from_what_the_kernel_keeps() {
        let memlock = Memlock::new(BEGUN).expect("a limit");
        let (first, second) = (limit(1 << 30, 1 << 31), limit(INFINITY, INFINITY));
        let kept = [first, second, first].map(|limit| memlock.kernels(limit, BEGUN).unwrap());
        assert_eq!(kept[0], kept[2], "the same limit has one name");
        assert_ne!(kept[0], kept[1]);
        for (kept, shown) in kept.into_iter().zip([first, second, first]) {
            assert_eq!((kept.maximum, memlock.shown(kept)), (HARD, shown));
            assert!(kept.current > HARD - 4096 && kept.current < HARD);
        }
    }

    #[test]
    fn what_the_kernel_allows_is_left_as_it_is() {
        let memlock = Memlock::new(BEGUN).expect("a limit");
        for lower in [limit(4096, HARD), limit(0, 0), limit(HARD, HARD)] {
            assert_eq!(memlock.kernels(lower, BEGUN).unwrap(), lower);
            assert_eq!(memlock.shown(lower), lower);
        }
        // A limit that looks like a name gets one.
        let odd = limit(HARD - 7, HARD);
        let kept = memlock.kernels(odd, BEGUN).unwrap();
        assert_eq!((kept.maximum, memlock.shown(kept)), (HARD, odd));
        assert_eq!(memlock.shown(limit(HARD - 9, HARD)), limit(HARD - 9, HARD));
    }

    #[test]
    fn a_hard_limit_that_was_lowered_stays_low() {
        let memlock = Memlock::new(BEGUN).expect("a limit");
        let lowered = limit(4096, 8192);
        assert_eq!(memlock.kernels(limit(9000, 9000), lowered).unwrap_err().errno, Errno::EPERM);
        assert_eq!(memlock.kernels(limit(1, 8192), lowered).unwrap(), limit(1, 8192));
    }

    #[test]
    fn the_limit_a_run_begins_with_is_no_name() {
        let begun = limit(HARD - 3, HARD);
        let memlock = Memlock::new(begun).expect("a limit");
        for nth in 0..5 {
            assert_ne!(memlock.kernels(limit(1, HARD + 1 + nth), begun).unwrap(), begun);
        }
        assert_eq!(memlock.shown(begun), begun);
    }

    #[test]
    fn names_end() {
        let memlock = Memlock::new(limit(100, 100)).expect("a limit");
        let raise = |nth: u64| memlock.kernels(limit(200, 1000 + nth), limit(100, 100));
        assert!((0..100).all(|nth| raise(nth).is_ok()));
        assert_eq!(raise(100).unwrap_err().errno, Errno::ENOMEM);
        assert!(Memlock::new(limit(0, INFINITY)).is_none());
    }

    #[test]
    fn the_text_of_limits_is_the_kernels_but_for_one_line() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max locked memory         8388608              unlimited            bytes     \n\
                    Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(of_text(text), Some(limit(8_388_608, INFINITY)));
        assert_eq!(with_limit(text, limit(8_388_608, INFINITY)), text);
        let raised = with_limit(text, limit(INFINITY, 7));
        assert_eq!(of_text(&raised), Some(limit(INFINITY, 7)));
        assert_eq!(raised.len(), text.len());
        assert_eq!(of_text("nothing"), None);
    }
}
