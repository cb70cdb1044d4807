//! Pace: how often to look at memory that somebody else stores to without a word.
//!
//! A program that stores to a mapped page makes no system call, so nothing tells the thread that serves the page. It looks
//! without sleeping for a while after the last work, then after 50 us, then less and less often, down to every 5 ms.
//!
//! Between two looks it lets others have the processor: the program that is about to store may wait for it. Where that takes
//! long, more threads compute than there are processors, and for a while nobody looks without sleeping: a thread that has
//! slept is let in before one that has computed all the time.

use std::thread;
use std::time::{Duration, Instant};

/// How long nobody sleeps after the last work: the time a program needs to send the next command.
const SPIN: Duration = Duration::from_micros(200);
const FIRST_SLEEP: Duration = Duration::from_micros(50);
const LONGEST_SLEEP: Duration = Duration::from_millis(5);
/// Between two looks without a sleep: whoever is away for longer had no processor.
const AWAY: Duration = Duration::from_micros(100);
/// How long it then sleeps at once.
const BUSY: Duration = Duration::from_millis(20);

/// The pace of one thread.
#[derive(Debug)]
pub struct Pace {
    idle_since: Option<Instant>,
    /// When it last looked without a sleep since then.
    looked: Option<Instant>,
    /// Processors are busy until about then.
    busy_until: Option<Instant>,
    sleep: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle_since: None, looked: None, busy_until: None, sleep: FIRST_SLEEP }
    }
}

impl Pace {
    /// There was work, or there soon will be.
    pub fn worked(&mut self) {
        (self.idle_since, self.looked) = (None, None);
    }

    /// There may be work soon, which nobody waits for: it is looked for often, and not without sleeping.
    pub fn expects(&mut self) {
        self.sleep = FIRST_SLEEP;
    }

    /// There was nothing to do: returns when it is time to look again, or when the thread is unparked.
    pub fn rest(&mut self) {
        match self.pause() {
            None => thread::yield_now(),
            Some(sleep) => thread::park_timeout(sleep),
        }
    }

    /// There was nothing to do: how long to sleep, if at all. Whoever does not sleep yields.
    pub fn pause(&mut self) -> Option<Duration> {
        self.sleep_at(Instant::now())
    }

    /// How long to sleep, if at all, for whoever found nothing at `now`.
    fn sleep_at(&mut self, now: Instant) -> Option<Duration> {
        let idle = now.duration_since(*self.idle_since.get_or_insert(now));
        if self.looked.replace(now).is_some_and(|last| now.duration_since(last) > AWAY) {
            self.busy_until = Some(now + BUSY);
        }
        let is_busy = self.busy_until.is_some_and(|until| now < until);
        if idle < SPIN {
            self.sleep = FIRST_SLEEP;
            if !is_busy {
                return None;
            }
        }
        self.looked = None;
        let sleep = self.sleep;
        self.sleep = LONGEST_SLEEP.min(sleep * 2);
        Some(sleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_was_kept_from_looking_sleeps_at_once_for_a_while() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let after = |micros| begin + Duration::from_micros(micros);
        assert_eq!((pace.sleep_at(after(0)), pace.sleep_at(after(90))), (None, None));
        assert_eq!(pace.sleep_at(after(195)), Some(FIRST_SLEEP), "somebody else had the processor");
        pace.worked();
        assert_eq!(pace.sleep_at(after(300)), Some(FIRST_SLEEP));
        assert_eq!(pace.sleep_at(after(400)), Some(FIRST_SLEEP), "a sleep is no sign of others");
        pace.worked();
        assert_eq!(pace.sleep_at(after(20_196)), None);
    }

    #[test]
    fn whoever_finds_nothing_looks_less_and_less_often_and_often_again_after_work() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let after = |micros| begin + Duration::from_micros(micros);
        for micros in [0, 1, 100, 199] {
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
