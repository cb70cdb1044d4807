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

    /// There was nothing to do: returns when it is time to look again, or when the thread is unparked.
    pub fn rest(&mut self) {
        let now = Instant::now();
        let idle = now.duration_since(*self.idle_since.get_or_insert(now));
        if idle < SPIN {
            self.sleep = FIRST_SLEEP;
            std::hint::spin_loop();
        } else {
            thread::park_timeout(self.sleep);
            self.sleep = LONGEST_SLEEP.min(self.sleep * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_nothing_looks_less_and_less_often_and_often_again_after_work() {
        let mut pace = Pace::default();
        let looks = |pace: &mut Pace, time| {
            let begin = Instant::now();
            std::iter::from_fn(|| (begin.elapsed() < time).then(|| pace.rest())).count()
        };
        assert!(looks(&mut pace, SPIN / 2) > 10, "it spins");
        looks(&mut pace, Duration::from_millis(50));
        let begin = Instant::now();
        pace.rest();
        assert!(begin.elapsed() >= LONGEST_SLEEP, "it sleeps");
        pace.worked();
        assert!(looks(&mut pace, SPIN / 2) > 10, "it spins again");
    }
}
