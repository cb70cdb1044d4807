//! `--inject`: calls of a program that fail or wait because the user asked for it.
//!
//! A rule names a call, says what becomes of it, and when. It acts before anything else looks at the call, so that a call that
//! fails has changed nothing. Calls are counted by rule, over all threads of the run: with one thread that makes the call, the same
//! rule does the same each time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioasis_uapi::{Errno, Error};

use crate::trace;

/// The longest that a call is made to wait.
const LONGEST: Duration = Duration::from_secs(60);
/// What a program that was made to fail is told in the trace.
const WHY: &str = "injected by --inject";

/// One rule.
#[derive(Debug)]
pub struct Rule {
    text: String,
    call: String,
    errno: Option<Errno>,
    delay: Duration,
    when: When,
    /// Calls of the rule's name so far.
    seen: AtomicU64,
    /// How often it has acted.
    acted: AtomicU64,
}

/// Which of the calls a rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct When {
    /// The first, counted from 1; 0 is all.
    nth: u64,
    /// And all after that.
    onwards: bool,
    /// Parts of a million, and the seed.
    probability: Option<(u64, u64)>,
    /// Not before the run is so old.
    after: Duration,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected {
    /// It fails so.
    pub(crate) error: Option<Error>,
    /// It waits first.
    pub(crate) delay: Duration,
}

/// The rules of a run.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
    begun: Option<Instant>,
}

impl Rule {
    /// The rule that `text` says: `call=NAME`, and `errno=NAME`, `delay=TIME` or both; `nth=3`, `nth=3+`, `probability=0.1`, `seed=7`,
    /// `after=2s`; joined by commas.
    ///
    /// # Errors
    ///
    /// A sentence with the key, the value and what is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rule = Self {
            text: text.to_owned(),
            call: String::new(),
            errno: None,
            delay: Duration::ZERO,
            when: When::default(),
            seen: AtomicU64::new(0),
            acted: AtomicU64::new(0),
        };
        let (mut probability, mut seed) = (None, 1);
        for word in text.split(',') {
            let (key, value) = word.split_once('=').ok_or_else(|| {
                format!("{word:?} is not key=value; keys are call, errno, delay, nth, probability, seed, after")
            })?;
            let wrong = |accepted: &str| format!("{key}={value} is not {accepted}");
            match key {
                "call" => {
                    if value != "openat" && !trace::is_request(value) {
                        return Err(wrong("openat or a request, as VFIO_IOMMU_MAP_DMA"));
                    }
                    value.clone_into(&mut rule.call);
                }
                "errno" => {
                    rule.errno = Some(errno(value).ok_or_else(|| wrong("an errno, as ENOMEM"))?)
                }
                "delay" | "after" => {
                    let time = time(value).filter(|&time| time <= LONGEST);
                    let time = time.ok_or_else(|| wrong("a time up to 60s, as 100ms"))?;
                    if key == "delay" { rule.delay = time } else { rule.when.after = time }
                }
                "nth" => {
                    let (digits, onwards) =
                        value.strip_suffix('+').map_or((value, false), |d| (d, true));
                    let number = digits.parse().ok().filter(|&number| number > 0);
                    rule.when.nth =
                        number.ok_or_else(|| wrong("a number from 1, or one with + behind it"))?;
                    rule.when.onwards = onwards;
                }
                "probability" => {
                    let part = parts(value).ok_or_else(|| wrong("a number from 0 to 1, as 0.1"))?;
                    probability = Some(part);
                }
                "seed" => seed = value.parse().map_err(|_| wrong("a number"))?,
                _ => {
                    return Err(format!(
                        "a rule has no {key:?}; keys are call, errno, delay, nth, probability, seed, after"
                    ));
                }
            }
        }
        rule.when.probability = probability.map(|part| (part, seed));
        if rule.call.is_empty() {
            return Err("a rule names its call: call=VFIO_IOMMU_MAP_DMA".to_owned());
        }
        if rule.errno.is_none() && rule.delay.is_zero() {
            return Err(
                "a rule says what becomes of the call: errno=ENOMEM or delay=100ms".to_owned()
            );
        }
        Ok(rule)
    }

    fn acts(&self, age: Duration) -> bool {
        let nth = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let When { nth: wanted, onwards, probability, after } = self.when;
        let in_turn = wanted == 0 || nth == wanted || onwards && nth > wanted;
        let by_chance = probability.is_none_or(|(part, seed)| random(seed, nth) % 1_000_000 < part);
        in_turn && by_chance && age >= after
    }
}

impl Rules {
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        Self { begun: (!rules.is_empty()).then(Instant::now), rules }
    }

    /// What becomes of a call named `name`, which is only asked for if there are rules.
    pub(crate) fn of<'a>(&self, name: impl FnOnce() -> Option<&'a str>) -> Option<Injected> {
        let age = self.begun?.elapsed();
        let name = name()?;
        let mut injected = None;
        for rule in self.rules.iter().filter(|rule| rule.call == name) {
            if rule.acts(age) && injected.is_none() {
                rule.acted.fetch_add(1, Ordering::Relaxed);
                let error = rule.errno.map(|errno| Error::new(errno, WHY));
                injected = Some(Injected { error, delay: rule.delay });
            }
        }
        injected
    }

    /// A line for each rule that never acted: the run showed nothing of what it was made for.
    pub(crate) fn idle(&self) -> String {
        let idle = self.rules.iter().filter(|rule| rule.acted.load(Ordering::Relaxed) == 0);
        let line = |rule: &Rule| {
            let seen = rule.seen.load(Ordering::Relaxed);
            format!(
                "ioasis: --inject {} never acted: {} was called {seen} times\n",
                rule.text, rule.call
            )
        };
        idle.map(line).collect()
    }
}

/// The errno called `name`.
fn errno(name: &str) -> Option<Errno> {
    (1..=133).map(Errno::from_raw).find(|errno| errno.to_string() == name)
}

/// "100ms", "2s".
fn time(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s')?, 1000),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit).map(Duration::from_millis)
}

/// "0.25" in parts of a million.
fn parts(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 6 || whole.is_empty() {
        return None;
    }
    let parts = format!("{whole}{fraction:0<6}").parse().ok()?;
    (parts <= 1_000_000).then_some(parts)
}

/// A number that looks random and is the same for the same seed and turn (splitmix64).
const fn random(seed: u64, turn: u64) -> u64 {
    let mut x = seed.wrapping_add(turn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "VFIO_IOMMU_MAP_DMA";

    /// Which of ten calls a rule is for.
    fn turns(when: &str) -> Vec<u64> {
        let rule = Rule::parse(&format!("call={MAP},errno=ENOMEM{when}")).expect(when);
        let rules = Rules::new(vec![rule]);
        (1..=10).filter(|_| rules.of(|| Some(MAP)).is_some()).collect()
    }

    #[test]
    fn a_rule_is_for_the_calls_it_says() {
        assert_eq!(turns(""), (1..=10).collect::<Vec<_>>());
        assert_eq!(turns(",nth=3"), [3]);
        assert_eq!(turns(",nth=8+"), [8, 9, 10]);
        assert!(turns(",after=60s").is_empty());
        let some = turns(",probability=0.5,seed=3");
        assert!((2..9).contains(&some.len()), "{some:?}");
        assert_eq!(some, turns(",probability=0.5,seed=3"), "the same seed does the same");
        assert_eq!((turns(",probability=0").len(), turns(",probability=1").len()), (0, 10));
    }

    #[test]
    fn a_rule_is_for_its_call_alone_and_says_if_it_never_acted() {
        let rules = Rules::new(vec![Rule::parse("call=openat,errno=EMFILE,delay=5ms").unwrap()]);
        assert_eq!(rules.of(|| Some(MAP)), None);
        assert!(rules.idle().contains("openat was called 0 times"), "{}", rules.idle());
        let injected = rules.of(|| Some("openat")).expect("it acts");
        assert_eq!(injected.error.map(|error| error.errno), Some(Errno::EMFILE));
        assert_eq!(injected.delay, Duration::from_millis(5));
        assert_eq!(rules.idle(), "");
        assert_eq!(Rules::new(Vec::new()).of(|| panic!("nobody asks")), None);
    }

    #[test]
    fn a_rule_that_is_wrong_is_told_what_is_accepted() {
        for (text, message) in [
            ("MAP", "\"MAP\" is not key=value"),
            ("call=MAP_DMA,errno=EIO", "call=MAP_DMA is not openat or a request"),
            ("call=openat,errno=EWHAT", "errno=EWHAT is not an errno"),
            ("call=openat,errno=EIO,nth=0", "nth=0 is not a number from 1"),
            ("call=openat,delay=2h", "delay=2h is not a time up to 60s"),
            (
                "call=openat,errno=EIO,probability=1.5",
                "probability=1.5 is not a number from 0 to 1",
            ),
            ("call=openat,what=x", "a rule has no \"what\""),
            ("call=openat", "errno=ENOMEM or delay=100ms"),
            ("errno=EIO", "call=VFIO_IOMMU_MAP_DMA"),
        ] {
            let error = Rule::parse(text).expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
