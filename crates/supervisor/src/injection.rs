//! Failing the nth step of a task's calls, as Linux's fault injection does (Documentation/fault-injection).
//!
//! A task that writes n to its /proc/PID/task/TID/fail-nth makes the nth fallible step of its calls from there on fail once; reading
//! says how many are left, 0 when it happened. The files that switch Linux's injection on, below /sys/kernel/debug,
//! take anything that is written.
//!
//! `Injection::left` is a leaf lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_iommufd::{Client, ClientFile, QueueFile, QueueWatcher, inject};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

/// Which tasks are to fail, and when.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    /// Somebody asked, ever.
    asked: AtomicBool,
    /// Steps left before the failure, by thread.
    left: Mutex<HashMap<u32, u32>>,
}

impl Injection {
    /// Decides an ioctl or open of thread `tid`, one of whose steps may be the one to fail.
    pub(crate) fn during<R>(&self, tid: u32, decide: impl FnOnce() -> R) -> R {
        if !self.asked.load(Ordering::Relaxed) {
            return decide();
        }
        let before = self.left.lock().get(&tid).copied();
        let Some(before) = before.filter(|&left| left > 0) else { return decide() };
        inject::arm(before);
        let decided = decide();
        self.left.lock().insert(tid, inject::disarm());
        decided
    }
}

/// Whose setting the file `path` is, opened by thread `tid` of process `pid`: the names Linux has for it.
pub(crate) fn fail_nth_of(path: &[u8], pid: u32, tid: u32) -> Option<u32> {
    let path = std::str::from_utf8(path).ok()?;
    let owner = path.strip_prefix("/proc/")?.strip_suffix("/fail-nth")?;
    match owner.split_once("/task/") {
        Some((process, thread)) => {
            process.parse::<u32>().ok().map(|_| ()).or((process == "self").then_some(()))?;
            thread.parse().ok()
        }
        None if owner == "self" => Some(pid),
        None if owner == "thread-self" => Some(tid),
        None => owner.parse().ok(),
    }
}

/// An open fail-nth file.
#[derive(Debug)]
pub(crate) struct FailNth {
    pub(crate) tid: u32,
    pub(crate) injection: Arc<Injection>,
}

impl ClientFile for FailNth {
    fn name(&self) -> &'static str {
        "/proc/self/fail-nth"
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn close(&self) {}
}

/// More than a number has digits.
const TEXT_MAX: u64 = 16;

impl QueueFile for FailNth {
    fn read(&self, client: &dyn Client, address: u64, length: u64) -> Result<u64> {
        let left = self.injection.left.lock().get(&self.tid).copied().unwrap_or(0);
        let text = format!("{left}\n");
        let count = text.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        client.write(address, &text.as_bytes()[..count])?;
        Ok(count as u64)
    }

    fn write(&self, client: &dyn Client, address: u64, length: u64) -> Result<u64> {
        let mut text = vec![0; usize::try_from(length.min(TEXT_MAX)).expect("a few bytes")];
        client.read(address, &mut text)?;
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        let number = number.ok_or(Error::at(Errno::EINVAL, "no number of a step", length))?;
        self.injection.asked.store(true, Ordering::Relaxed);
        self.injection.left.lock().insert(self.tid, number);
        Ok(length)
    }

    fn is_readable(&self) -> bool {
        true
    }

    fn watch(&self, _: Arc<dyn QueueWatcher>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_file_leads_to_its_thread() {
        let of = |path: &str| fail_nth_of(path.as_bytes(), 10, 12);
        assert_eq!(of("/proc/self/task/11/fail-nth"), Some(11));
        assert_eq!(of("/proc/10/task/11/fail-nth"), Some(11));
        assert_eq!(of("/proc/self/fail-nth"), Some(10));
        assert_eq!(of("/proc/thread-self/fail-nth"), Some(12));
        assert_eq!(of("/proc/13/fail-nth"), Some(13));
        for other in ["/proc/fail-nth", "/proc/x/task/11/fail-nth", "/proc/10/task/x/fail-nth"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_step_fails_once_and_in_the_task_that_asked() {
        let injection = Injection::default();
        injection.asked.store(true, Ordering::Relaxed);
        injection.left.lock().insert(7, 2);
        let step = |tid| injection.during(tid, || inject::step("a step").is_ok());
        assert!(step(8) && step(7));
        assert_eq!(injection.left.lock().get(&7), Some(&1));
        assert!(!step(7));
        assert_eq!(injection.left.lock().get(&7), Some(&0));
        assert!(step(7));
    }
}
