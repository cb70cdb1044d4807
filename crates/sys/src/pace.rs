//! Pace: how often to look at memory that somebody else stores to without a word.
//!
//! A program that stores to a mapped page makes no system call, so nothing tells the thread that serves the page. It looks
//! without sleeping for a while after the last work, then after 50 us, then less and less often, down to every 5 ms.

use std::thread;
use std::time::{Duration, Instant};

/// How long nobody sleeps after the last work: the time a program needs to send the next command.
const SPIN: Duration = Duration::from_micros(200);
const FIRST_SLEEP: Duration = Duration::from_micros(50);
const LONGEST_SLEEP: Duration = Duration::from_millis(5);

/// The pace of one thread.
#[derive(Debug)]
pub struct Pace {
    idle_since: Option<Instant>,
    sleep: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle_since: None, sleep: FIRST_SLEEP }
    }
}

impl Pace {
    /// There was work, or there soon will be.
    pub fn worked(&mut self) {
        self.idle_since = None;
    }

    /// There may be work soon, which nobody waits for: it is looked for often, and not without sleeping.
    pub fn expects(&mut self) {
        self.sleep = FIRST_SLEEP;
    }

    /// There was nothing to do: returns when it is time to look again, or when the thread is unparked.
    pub fn rest(&mut self) {
        match self.pause() {
            None => std::hint::spin_loop(),
            Some(sleep) => thread::park_timeout(sleep),
        }
    }

    /// There was nothing to do: how long to sleep, if at all.
    pub fn pause(&mut self) -> Option<Duration> {
        self.sleep_at(Instant::now())
    }

    /// How long to sleep, if at all, for whoever found nothing at `now`.
    fn sleep_at(&mut self, now: Instant) -> Option<Duration> {
        let idle = now.duration_since(*self.idle_since.get_or_insert(now));
        if idle < SPIN {
            self.sleep = FIRST_SLEEP;
            return None;
        }
        let sleep = self.sleep;
        self.sleep = LONGEST_SLEEP.min(sleep * 2);
        Some(sleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_nothing_looks_less_and_less_often_and_often_again_after_work() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let after = |micros| begin + Duration::from_micros(micros);
        for micros in [0, 1, 199] {
            assert_eq!(pace.sleep_at(after(micros)), None, "it spins after {micros} us");
        }
        let sleeps: Vec<_> =
            (0..9).map(|_| pace.sleep_at(after(200)).unwrap().as_micros()).collect();
        assert_eq!(sleeps, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        pace.expects();
        assert_eq!(pace.sleep_at(after(210)), Some(FIRST_SLEEP), "it does not spin");
        assert_eq!(pace.sleep_at(after(220)), Some(FIRST_SLEEP * 2));
        pace.worked();
        assert_eq!(pace.sleep_at(after(300)), None, "it spins again");
        assert_eq!(pace.sleep_at(after(500)), Some(FIRST_SLEEP));
    }
}
