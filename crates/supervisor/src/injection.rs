//! Failing the nth step of a task's calls, as Linux's fault injection does (Documentation/fault-injection).
//!
//! A task that writes n to its /proc/PID/task/TID/fail-nth makes the nth fallible step of its calls from there on fail once; reading
//! says how many are left, 0 when it happened. The files that switch Linux's injection on, below /sys/kernel/debug,
//! take anything that is written.
//!
//! `Injection::settings` is a leaf lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_iommufd::{ClientFile, Destination, QueueFile, QueueWatcher, Source, inject};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use crate::text;

/// Which tasks are to fail, and when.
#[derive(Debug, Default)]
pub(crate) struct Injection {
    /// Somebody asked, ever.
    asked: AtomicBool,
    /// By thread; none where nothing is to fail.
    settings: Mutex<HashMap<u32, Setting>>,
}

/// What a thread asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    /// Which step from then on is to fail.
    nth: u32,
    /// How many are left, that one included.
    left: u32,
}

/// A step that failed because its thread asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injected {
    /// Which step from the asking on.
    pub(crate) nth: u32,
    /// What could not be had.
    pub(crate) step: &'static str,
}

/// Settings beyond which those of threads that have ended are forgotten.
const SETTINGS: usize = 64;

impl Injection {
    /// Decides an ioctl or open of thread `tid`, one of whose steps may be the one to fail.
    pub(crate) fn during<R>(&self, tid: u32, decide: impl FnOnce() -> R) -> (R, Option<Injected>) {
        if !self.asked.load(Ordering::Relaxed) {
            return (decide(), None);
        }
        let Some(before) = self.settings.lock().get(&tid).copied() else {
            return (decide(), None);
        };
        inject::arm(before.left);
        let decided = decide();
        let (left, failed) = (inject::disarm(), inject::failed());
        self.set(tid, Setting { left, ..before });
        (decided, failed.map(|step| Injected { nth: before.nth, step }))
    }

    fn set(&self, tid: u32, setting: Setting) {
        let mut settings = self.settings.lock();
        if setting.left == 0 {
            settings.remove(&tid);
            return;
        }
        if settings.len() >= SETTINGS && !settings.contains_key(&tid) {
            settings.retain(|tid, _| std::fs::exists(format!("/proc/{tid}")).unwrap_or(true));
        }
        settings.insert(tid, setting);
    }

    fn left(&self, tid: u32) -> u32 {
        self.settings.lock().get(&tid).map_or(0, |setting| setting.left)
    }
}

/// Whose setting the file `path` is, opened by thread `tid` of process `pid`: process and thread, by the names Linux has for it.
pub(crate) fn fail_nth_of(path: &[u8], pid: u32, tid: u32) -> Option<(u32, u32)> {
    let path = std::str::from_utf8(path).ok()?;
    let owner = path.strip_prefix("/proc/")?.strip_suffix("/fail-nth")?;
    match owner.split_once("/task/") {
        Some(("self", thread)) => Some((pid, thread.parse().ok()?)),
        Some((process, thread)) => Some((process.parse().ok()?, thread.parse().ok()?)),
        None if owner == "self" => Some((pid, pid)),
        None if owner == "thread-self" => Some((pid, tid)),
        None => owner.parse().ok().map(|pid| (pid, pid)),
    }
}

/// An open fail-nth file.
#[derive(Debug)]
pub(crate) struct FailNth {
    tid: u32,
    injection: Arc<Injection>,
}

/// More than a number has digits.
const TEXT_MAX: u64 = 16;

impl FailNth {
    pub(crate) fn new(tid: u32, injection: &Arc<Injection>) -> Self {
        Self { tid, injection: Arc::clone(injection) }
    }

    fn set(&self, text: &[u8]) -> Result<()> {
        let number = std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok());
        let no_number = Error::at(Errno::EINVAL, "no number of a step", text.len() as u64);
        let nth = number.ok_or(no_number)?;
        self.injection.asked.store(true, Ordering::Relaxed);
        self.injection.set(self.tid, Setting { nth, left: nth });
        Ok(())
    }
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

impl QueueFile for FailNth {
    fn read_to(&self, offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        text::part(&format!("{}\n", self.injection.left(self.tid)), offset, length, to)
    }

    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64> {
        let mut text = vec![0; usize::try_from(length.min(TEXT_MAX)).expect("a few bytes")];
        from.get(0, &mut text)?;
        self.set(&text).map(|()| length)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn stray_write(&self, bytes: &[u8]) {
        // Of what is no number nobody can be told any more.
        let _ = self.set(bytes);
    }

    fn is_readable(&self) -> bool {
        true
    }

    fn watch(&self, _: Arc<dyn QueueWatcher>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_iommufd::{Account, AddressSpace, Client, Memory};

    const BASE: u64 = 0x1000;

    /// A client with a page of memory.
    struct Page(Memory);

    impl Page {
        fn new() -> Self {
            Self(Memory::new(BASE, 0x1000).unwrap())
        }

        fn write(&self, file: &FailNth, text: &str) -> Result<u64> {
            Client::write(self, BASE, text.as_bytes()).unwrap();
            file.write(self, BASE, text.len() as u64)
        }

        fn text(&self, count: u64) -> String {
            let mut text = vec![0; usize::try_from(count).unwrap()];
            Client::read(self, BASE, &mut text).unwrap();
            String::from_utf8(text).unwrap()
        }
    }

    impl Client for Page {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
            self.0.read(address, buf)
        }

        fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
            self.0.write(address, buf)
        }

        fn memory(&self) -> Arc<dyn AddressSpace> {
            Arc::new(self.0.clone())
        }

        fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
            Err(Error::at(Errno::EBADF, "no files", u64::from(fd.unsigned_abs())))
        }

        fn account(&self) -> Account {
            unreachable!("nothing is pinned")
        }
    }

    fn step(injection: &Injection, tid: u32) -> (bool, Option<Injected>) {
        injection.during(tid, || inject::step("a step").is_ok())
    }

    #[test]
    fn every_name_of_the_file_leads_to_its_thread() {
        let of = |path: &str| fail_nth_of(path.as_bytes(), 10, 12);
        assert_eq!(of("/proc/self/task/11/fail-nth"), Some((10, 11)));
        assert_eq!(of("/proc/10/task/11/fail-nth"), Some((10, 11)));
        assert_eq!(of("/proc/self/fail-nth"), Some((10, 10)));
        assert_eq!(of("/proc/thread-self/fail-nth"), Some((10, 12)));
        assert_eq!(of("/proc/13/fail-nth"), Some((13, 13)));
        for other in ["/proc/fail-nth", "/proc/x/task/11/fail-nth", "/proc/10/task/x/fail-nth"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_step_fails_once_and_in_the_task_that_asked() {
        let (injection, page) = (Arc::new(Injection::default()), Page::new());
        let file = FailNth::new(7, &injection);
        assert_eq!(page.write(&file, "2\n").unwrap(), 2);
        assert!(step(&injection, 8).0);
        assert_eq!(step(&injection, 7), (true, None));
        assert_eq!(injection.left(7), 1);
        let injected = Injected { nth: 2, step: "a step" };
        assert_eq!(step(&injection, 7), (false, Some(injected)));
        assert_eq!(injection.left(7), 0);
        assert_eq!(step(&injection, 7), (true, None));
        assert!(injection.settings.lock().is_empty(), "nothing is kept of who asks for nothing");
    }

    #[test]
    fn a_call_of_two_steps_fails_at_the_one_that_was_asked_for() {
        let (injection, page) = (Arc::new(Injection::default()), Page::new());
        page.write(&FailNth::new(7, &injection), "2").unwrap();
        let twice = || (inject::step("one").is_ok(), inject::step("two").is_ok());
        let (decided, injected) = injection.during(7, twice);
        assert_eq!(decided, (true, false));
        assert_eq!(injected, Some(Injected { nth: 2, step: "two" }));
    }

    #[test]
    fn the_file_tells_what_is_left_and_ends_where_its_text_does() {
        let (injection, page) = (Arc::new(Injection::default()), Page::new());
        let file = FailNth::new(7, &injection);
        page.write(&file, "12").unwrap();
        assert!(step(&injection, 7).0);
        assert_eq!(file.read(&page, BASE, 300).map(|count| page.text(count)).unwrap(), "11\n");
        assert_eq!(file.read_at(&page, BASE, (3, 300)), Ok(0), "a second read is at the end");
        assert_eq!(
            file.read_at(&page, BASE, (1, 300)).map(|count| page.text(count)).unwrap(),
            "1\n"
        );
        assert_eq!(file.read(&page, BASE, 1).map(|count| page.text(count)).unwrap(), "1");
        page.write(&file, "0").unwrap();
        assert_eq!(file.read(&page, BASE, 300).map(|count| page.text(count)).unwrap(), "0\n");
        file.stray_write(b"3\n");
        assert_eq!(injection.left(7), 3, "a shell's redirection is no less a write");
    }

    #[test]
    fn what_is_no_number_changes_nothing() {
        let (injection, page) = (Arc::new(Injection::default()), Page::new());
        let file = FailNth::new(7, &injection);
        page.write(&file, "5").unwrap();
        for text in ["", "x", "-1", "4294967296", "1 2", "11111111111111111111111"] {
            assert_eq!(page.write(&file, text).map_err(|error| error.errno), Err(Errno::EINVAL));
        }
        assert_eq!(
            file.write(&page, 0, 1).map_err(|error| error.errno),
            Err(Errno::EFAULT),
            "a text that cannot be read"
        );
        assert_eq!(injection.left(7), 5);
    }

    #[test]
    fn threads_that_have_ended_are_forgotten() {
        let injection = Injection::default();
        let own = std::process::id();
        injection.set(own, Setting { nth: 1, left: 1 });
        // No thread has a number as high as these.
        for tid in 0..1000 {
            injection.set(u32::MAX - tid, Setting { nth: 1, left: 1 });
        }
        assert!(injection.settings.lock().len() <= SETTINGS + 1);
        assert_eq!(injection.left(own), 1);
    }
}
