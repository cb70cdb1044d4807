//! What of a trace is shown, and how: strace's `-e`, `-t`, `-r` and `-c`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ioasis_sys::sync::Mutex;

use super::line::Event;

/// Classes of lines, with what they hold.
pub const CLASSES: [(&str, &str); 8] = [
    ("map", "what maps and unmaps memory"),
    ("irq", "what sets up interrupts, and each interrupt"),
    ("config", "accesses of configuration space"),
    ("reset", "resets"),
    ("fault", "what a device could not do"),
    ("event", "all that a device did by itself"),
    ("open", "opens of nodes"),
    ("failed", "calls that were refused"),
];

/// Which lines are shown: all, or those of classes and calls that are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    names: Vec<String>,
    /// The names are of what is not shown.
    negated: bool,
}

/// One line, as a filter sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    /// `openat`, `pread`, or the name of an ioctl's request.
    pub(super) call: &'a str,
    /// It is an ioctl.
    pub(super) is_ioctl: bool,
    pub(super) is_config: bool,
    pub(super) failed: bool,
}

impl Filter {
    /// The filter that `text` says: classes and names of calls, joined by commas; `!` before the first turns it around.
    ///
    /// # Errors
    ///
    /// A sentence with the classes there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (negated, list) = text.strip_prefix('!').map_or((false, text), |list| (true, list));
        let names: Vec<_> = list.split(',').map(str::to_owned).collect();
        for name in &names {
            let is_call = |name: &str| {
                name.starts_with("VFIO_") || name.starts_with("IOMMU_") || CALLS.contains(&name)
            };
            if !is_call(name) && !CLASSES.iter().any(|(class, _)| class == name) {
                let classes: Vec<_> = CLASSES.iter().map(|(class, _)| *class).collect();
                return Err(format!(
                    "{name:?} is no class and no call: classes are {}; calls are {}, and requests as VFIO_IOMMU_MAP_DMA",
                    classes.join(", "),
                    CALLS.join(", ")
                ));
            }
        }
        Ok(Self { names, negated })
    }

    fn shows(&self, is_named: impl Fn(&str) -> bool) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| is_named(name)) != self.negated
    }

    pub(super) fn shows_call(&self, seen: Seen<'_>) -> bool {
        self.shows(|name| match name {
            "map" => seen.is_ioctl && (seen.call.contains("MAP") || seen.call.contains("_COPY")),
            "irq" => seen.is_ioctl && seen.call.contains("IRQ"),
            "reset" => seen.is_ioctl && seen.call.contains("RESET"),
            "config" => seen.is_config,
            "open" => seen.call == "openat",
            "failed" => seen.failed,
            "ioctl" => seen.is_ioctl,
            other => other == seen.call,
        })
    }

    pub(super) fn shows_event(&self, event: &Event) -> bool {
        self.shows(|name| match event {
            Event::Interrupt { .. } => matches!(name, "event" | "irq"),
            Event::Reset => matches!(name, "event" | "reset"),
            Event::DmaFault { .. } | Event::Refused(_) => matches!(name, "event" | "fault"),
        })
    }
}

/// Calls that are no ioctls.
const CALLS: [&str; 7] = ["ioctl", "openat", "pread", "pwrite", "mmap", "read", "write"];

/// What stands before each line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stamp {
    /// Nothing.
    #[default]
    None,
    /// The time of day, UTC, in seconds.
    Seconds,
    /// The same in microseconds.
    Microseconds,
    /// Seconds since the line before.
    Since,
}

/// The clock of a trace.
#[derive(Debug, Default)]
pub(super) struct Clock {
    before: Mutex<Option<Duration>>,
}

impl Clock {
    fn now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// What stands before a line of text that is written now.
    pub(super) fn text(&self, stamp: Stamp) -> String {
        self.text_at(stamp, Self::now())
    }

    fn text_at(&self, stamp: Stamp, now: Duration) -> String {
        let day = now.as_secs() % 86_400;
        let (hours, minutes, seconds) = (day / 3600, day / 60 % 60, day % 60);
        match stamp {
            Stamp::None => String::new(),
            Stamp::Seconds => format!("{hours:02}:{minutes:02}:{seconds:02} "),
            Stamp::Microseconds => {
                format!("{hours:02}:{minutes:02}:{seconds:02}.{:06} ", now.subsec_micros())
            }
            Stamp::Since => {
                let before = self.before.lock().replace(now).unwrap_or(now);
                let since = now.saturating_sub(before);
                format!("{:6}.{:06} ", since.as_secs(), since.subsec_micros())
            }
        }
    }

    /// The member that a JSON object begins with.
    pub(super) fn json(stamp: Stamp) -> String {
        let now = Self::now();
        match stamp {
            Stamp::None => String::new(),
            _ => format!("\"time\":{}.{:06},", now.as_secs(), now.subsec_micros()),
        }
    }
}

/// How often each call was made, for a table at the end.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Calls and how many of them failed, by name.
    counted: Mutex<BTreeMap<String, (u64, u64)>>,
}

impl Counts {
    pub(super) fn add(&self, name: &str, failed: bool) {
        let mut counted = self.counted.lock();
        let entry = match counted.get_mut(name) {
            Some(entry) => entry,
            None => counted.entry(name.to_owned()).or_default(),
        };
        entry.0 += 1;
        entry.1 += u64::from(failed);
    }

    /// The table, most calls first.
    pub(super) fn table(&self) -> String {
        let counted = self.counted.lock();
        let mut rows: Vec<_> = counted.iter().collect();
        rows.sort_by_key(|(name, (calls, _))| (std::cmp::Reverse(*calls), *name));
        let mut text = "     calls    errors  call\n".to_owned();
        let mut sum = (0, 0);
        for (name, (calls, errors)) in rows {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{calls:>10} {errors:>9}  {name}");
            sum = (sum.0 + calls, sum.1 + errors);
        }
        let _ = writeln!(text, "{:>10} {:>9}  in all", sum.0, sum.1);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(call: &str) -> Seen<'_> {
        let is_ioctl = call.starts_with("VFIO") || call.starts_with("IOMMU");
        Seen { call, is_ioctl, is_config: false, failed: false }
    }

    #[test]
    fn a_class_shows_its_calls_and_nothing_else() {
        let shown = |text: &str, call| Filter::parse(text).expect(text).shows_call(seen(call));
        for (text, call, is_shown) in [
            ("map", "VFIO_IOMMU_MAP_DMA", true),
            ("map", "IOMMU_IOAS_UNMAP", true),
            ("map", "openat", false),
            ("map", "mmap", false),
            ("mmap,irq", "mmap", true),
            ("irq", "VFIO_DEVICE_SET_IRQS", true),
            ("!map", "VFIO_IOMMU_MAP_DMA", false),
            ("!map", "openat", true),
            ("ioctl", "VFIO_GROUP_GET_STATUS", true),
            ("VFIO_GROUP_GET_STATUS", "VFIO_GROUP_GET_STATUS", true),
            ("failed", "openat", false),
        ] {
            assert_eq!(shown(text, call), is_shown, "{text} {call}");
        }
        assert!(Filter::default().shows_call(seen("pread")));
        assert!(Filter::parse("failed").unwrap().shows_call(Seen { failed: true, ..seen("mmap") }));
    }

    #[test]
    fn a_class_shows_its_events() {
        let shown = |text: &str, event| Filter::parse(text).expect(text).shows_event(event);
        assert!(shown("reset", &Event::Reset) && shown("event", &Event::Reset));
        assert!(!shown("map", &Event::Reset) && shown("!map", &Event::Reset));
    }

    #[test]
    fn a_name_that_is_neither_is_told_the_classes() {
        let error = Filter::parse("maps").unwrap_err();
        assert!(error.contains("map, irq, config"), "{error}");
        assert!(Filter::parse("").is_err());
    }

    #[test]
    fn a_stamp_is_the_time_of_day_or_since_the_line_before() {
        let clock = Clock::default();
        let at = Duration::from_micros(3_723_000_004);
        assert_eq!(clock.text_at(Stamp::Seconds, at), "01:02:03 ");
        assert_eq!(clock.text_at(Stamp::Microseconds, at), "01:02:03.000004 ");
        assert_eq!(clock.text_at(Stamp::Since, at), "     0.000000 ");
        let later = at + Duration::from_micros(1_500_000);
        assert_eq!(clock.text_at(Stamp::Since, later), "     1.500000 ");
        assert_eq!(clock.text_at(Stamp::None, at), "");
    }

    #[test]
    fn the_table_has_what_is_called_most_first() {
        let counts = Counts::default();
        for (name, failed) in [("b", false), ("a", true), ("b", true)] {
            counts.add(name, failed);
        }
        let table = "     calls    errors  call\n         2         1  b\n         1         1  a\n         3         2  in all\n";
        assert_eq!(counts.table(), table);
    }
}
