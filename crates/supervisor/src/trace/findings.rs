//! `--explain`: what went wrong in a run, told once at its end, worst first, with what to do about it.
//!
//! Invariant: of equal things the first is kept and the others are counted, and of different things [`KINDS`], so that
//! no client makes the list long. The lock is a leaf.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ioasis_pci::Refusal;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error};

use super::line::{Event, Way};
use super::reason;

/// Lines of the summary.
const LINES: usize = 10;
/// Different things that are kept: the table of commands and their errnos has fewer that a program meets by accident.
const KINDS: usize = 256;

/// What went wrong, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A device could not reach memory: data is missing.
    Dma,
    /// A device could not do something else.
    Device,
    /// A call was refused. Some programs ask to find out, so these come last.
    Call,
}

/// By what equal things are known.
type Key = (Rank, String, &'static str);

#[derive(Debug)]
struct Finding {
    count: u64,
    /// In order of their first times.
    nth: usize,
    text: String,
}

/// What went wrong so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    found: BTreeMap<Key, Finding>,
    /// DMA and messages that were refused, whatever became of their lines.
    faults: u64,
    /// Things of further kinds.
    others: u64,
}

impl Findings {
    /// A call of `pid` on `file`, by name or by its request's, was refused.
    pub(super) fn call(&self, pid: u32, (call, file): (&str, &str), error: Error) {
        self.note((Rank::Call, call.to_owned(), error.why), || {
            let remedy = remedy(call, error).map_or_else(String::new, |text| format!("; {text}"));
            format!(
                "{call} on {file} answered {} ({}) to pid {pid}{remedy}",
                error.errno,
                reason(error)
            )
        });
    }

    /// Something that `device` did, if it is something it could not do.
    pub(super) fn event(&self, device: &str, event: &Event) {
        match event {
            Event::DmaFault { way, why, unmapped, .. } => {
                self.state.lock().faults += 1;
                let key = (Rank::Dma, format!("{device} {way}"), *why);
                self.note(key, || {
                    let advice = match (unmapped, *way) {
                        (Some(_), _) => {
                            "stop the device, or wait for it, before memory is unmapped"
                        }
                        (None, Way::Read) => {
                            "map what the device reads with READ before it is told of it"
                        }
                        (None, Way::Write) => {
                            "map what the device writes with WRITE before it is told of it"
                        }
                    };
                    format!("{device}: {event}; {advice}")
                });
            }
            Event::Refused(refusal) => {
                let rank = match refusal {
                    Refusal::Dma { .. } | Refusal::Message { .. } => {
                        self.state.lock().faults += 1;
                        Rank::Dma
                    }
                    _ => Rank::Device,
                };
                self.note((rank, device.to_owned(), refusal.remedy()), || {
                    format!("{device}: {event}")
                });
            }
            Event::Interrupt { .. } | Event::Reset => {}
        }
    }

    fn note(&self, key: Key, text: impl FnOnce() -> String) {
        let mut state = self.state.lock();
        let nth = state.found.len();
        if let Some(finding) = state.found.get_mut(&key) {
            finding.count += 1;
        } else if nth < KINDS {
            state.found.insert(key, Finding { count: 1, nth, text: text() });
        } else {
            state.others += 1;
        }
    }

    /// How many times a device could not reach memory or send a message.
    pub(super) fn faults(&self) -> u64 {
        self.state.lock().faults
    }

    /// The summary, a line each; empty when nothing went wrong.
    pub(super) fn summary(&self) -> String {
        let state = self.state.lock();
        let mut found: Vec<_> = state.found.iter().collect();
        found.sort_by_key(|((rank, ..), finding)| (*rank, finding.nth));
        let shown = if found.len() > LINES { LINES - 1 } else { found.len() };
        let mut text = String::new();
        for (_, finding) in &found[..shown] {
            // Writing to a String cannot fail.
            let _ = match finding.count {
                1 => writeln!(text, "ioasis: {}", finding.text),
                count => {
                    writeln!(text, "ioasis: {} ({count} times; this is the first)", finding.text)
                }
            };
        }
        let rest: u64 = found[shown..].iter().map(|(_, finding)| finding.count).sum();
        let rest = rest + state.others;
        if rest != 0 {
            let _ = writeln!(text, "ioasis: and {rest} more of other kinds; --trace shows each");
        }
        text
    }
}

/// What to do about a call that was refused, where that is more than the reason says.
fn remedy(call: &str, error: Error) -> Option<&'static str> {
    let about = |word: &str| error.why.contains(word);
    let maps = call.contains("MAP");
    Some(match error.errno {
        Errno::ENOMEM if about("limit") || about("MEMLOCK") => {
            "raise it (ulimit -l, LimitMEMLOCK=) or map less; --ledger says who pinned how much"
        }
        Errno::EINVAL if about("argsz") || about("first version") => {
            "set argsz or size to sizeof the struct before the call"
        }
        Errno::EINVAL if maps && (about("aligned") || about("multiple")) => {
            "round vaddr and iova down and size up to pages of 4096 bytes"
        }
        Errno::EINVAL if maps && (about("reserved") || about("aperture")) => {
            "take an iova from the ranges of VFIO_IOMMU_GET_INFO or IOMMU_IOAS_IOVA_RANGES"
        }
        Errno::EFAULT if maps => {
            "vaddr must lie in memory that the process has mapped (mmap, malloc) and may write, unless the mapping is READ alone"
        }
        Errno::EINVAL if about("cuts a mapping") => {
            "unmap what was mapped, as a whole, or several whole mappings at once"
        }
        Errno::EEXIST if maps => "unmap what is there, or take another iova",
        Errno::ENOENT if maps => "unmap what was mapped, as a whole",
        Errno::EINVAL if call == "mmap" => {
            "take offset and size from VFIO_DEVICE_GET_REGION_INFO, and map only with its FLAG_MMAP"
        }
        Errno::EINVAL if about("has no container") || about("has no IOMMU") => {
            "VFIO_GROUP_SET_CONTAINER, then VFIO_SET_IOMMU, then VFIO_GROUP_GET_DEVICE_FD"
        }
        Errno::EINVAL if about("not bound") => "VFIO_DEVICE_BIND_IOMMUFD comes first",
        Errno::EINVAL if about("no group yet") => "VFIO_GROUP_SET_CONTAINER comes first",
        Errno::EINVAL if about("the group has a container") => {
            "set it once, or VFIO_GROUP_UNSET_CONTAINER first"
        }
        Errno::EINVAL if about("no such region") => {
            "the index is less than num_regions of VFIO_DEVICE_GET_INFO"
        }
        Errno::EINVAL if call == "VFIO_DEVICE_SET_IRQS" => {
            "VFIO_DEVICE_GET_IRQ_INFO says how many there are and which flags they take"
        }
        Errno::ENODEV if call == "VFIO_SET_IOMMU" => {
            "VFIO_CHECK_EXTENSION says which types there are; VFIO_TYPE1v2_IOMMU is the usual one"
        }
        Errno::ENODEV if call == "VFIO_GROUP_GET_DEVICE_FD" => {
            "name a device of the group, as in 0000:01:00.0: ls /sys/kernel/iommu_groups/*/devices"
        }
        Errno::EBUSY => "close or detach what holds it first",
        Errno::EACCES | Errno::EPERM if call == "openat" => {
            "the mode and owner of the node count: ls -l, or run as the user whom it belongs to"
        }
        Errno::ENOTTY => {
            "the file is not of the kind that this request is for, or the request is not known"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "0000:01:00.0";

    fn refused(why: &'static str) -> Error {
        Error::new(Errno::EINVAL, why)
    }

    fn fault(iova: u64) -> Event {
        let why = "nothing is mapped";
        Event::DmaFault { way: Way::Write, pasid: 0, iova, why, nearest: None, unmapped: None }
    }

    #[test]
    fn equal_things_are_one_line_and_the_worst_comes_first() {
        let findings = Findings::default();
        assert_eq!((findings.summary(), findings.faults()), (String::new(), 0));
        for iova in [0x1000, 0x2000, 0x3000] {
            findings.call(
                7,
                ("VFIO_IOMMU_MAP_DMA", "/dev/vfio/vfio"),
                Error::at(Errno::EINVAL, "iova is not page aligned", iova + 1),
            );
            findings.event(DEVICE, &fault(iova));
        }
        let summary = findings.summary();
        let lines: Vec<_> = summary.lines().collect();
        assert_eq!(
            lines,
            [
                "ioasis: 0000:01:00.0: DMA write fault at iova 0x1000: nothing is mapped; map what the device writes with WRITE before it is told of it (3 times; this is the first)",
                "ioasis: VFIO_IOMMU_MAP_DMA on /dev/vfio/vfio answered EINVAL (iova is not page aligned: 0x1001) to pid 7; round vaddr and iova down and size up to pages of 4096 bytes (3 times; this is the first)",
            ]
        );
        assert_eq!(findings.faults(), 3);
    }

    #[test]
    fn no_client_makes_the_summary_long() {
        let findings = Findings::default();
        for pid in 0..1000 {
            findings.call(pid, (&format!("call {pid}"), "/dev/iommu"), refused("x"));
        }
        let summary = findings.summary();
        assert_eq!(summary.lines().count(), LINES);
        assert!(
            summary.ends_with("ioasis: and 991 more of other kinds; --trace shows each\n"),
            "{summary}"
        );
        assert_eq!(findings.state.lock().found.len(), KINDS);
    }
}
