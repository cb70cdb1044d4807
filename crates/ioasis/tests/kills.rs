//! SIGKILL of the supervisor, and of the watchdog, at random moments of a running qemu-img.
//!
//! `IOASIS_KILLS` says how often each is killed, `IOASIS_SEED` where the random moments begin.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Nothing here takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// The copy of the image lasts about this long: kills come within.
const COPY: Duration = Duration::from_millis(300);
const IMAGE_BYTES: usize = 32 << 20;
/// System calls in which qemu-img waits for its device by itself: ppoll, futex, epoll_pwait, and what returns at once
/// (restart_syscall is a ppoll that was interrupted).
const OWN_WAITS: [&str; 5] = ["271", "202", "281", "219", "running"];

/// Which of the two processes above the client is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Watchdog,
}

/// The image, where its copy goes, and what was there before the first run.
struct Bench {
    folder: PathBuf,
    shared: usize,
    mounts: usize,
}

impl Bench {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).expect("a folder under target");
        let bytes: Vec<u8> = (0..IMAGE_BYTES / 4)
            .flat_map(|i| u32::try_from(i).expect("small").to_le_bytes())
            .collect();
        fs::write(folder.join("disk.img"), bytes).expect("an image");
        Self { folder, shared: shared_files(), mounts: mounts() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A run whose qemu-img was seen at work. On a busy machine one may come to its end before this
    /// process has a processor to see it: another is started then.
    fn start(&self) -> Run {
        let start = Instant::now();
        loop {
            let mut watchdog = self.spawn();
            loop {
                let found = only_child(watchdog.id()).and_then(|pid| Some((pid, only_child(pid)?)));
                if let Some((supervisor, client)) = found
                    && comm(client) == "qemu-img"
                {
                    return Run { watchdog, supervisor, client };
                }
                if let Some(status) = watchdog.try_wait().expect("a child") {
                    assert!(status.success(), "a copy that nobody disturbed: {status}");
                    break;
                }
                assert!(start.elapsed() < LIMIT, "the client does not come");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn spawn(&self) -> Child {
        let _ = fs::remove_file(self.path("copy.img"));
        Command::new(env!("CARGO_BIN_EXE_ioasis"))
            .args(["run", "--device", &format!("nvme,image={}", self.path("disk.img").display())])
            .args(["--", "qemu-img", "convert", "-O", "raw", "nvme://0000:01:00.0/1"])
            .arg(self.path("copy.img"))
            .stderr(Stdio::null())
            .spawn()
            .expect("ioasis starts")
    }

    fn is_copied(&self) -> bool {
        fs::read(self.path("copy.img")).ok() == fs::read(self.path("disk.img")).ok()
    }

    fn round(&self, victim: Victim, delay: Duration) {
        let mut run = self.start();
        std::thread::sleep(delay);
        match victim {
            Victim::Supervisor => {
                kill(run.supervisor, Signal::KILL);
                wait_until("the end of the supervisor", || !is_alive(run.supervisor));
                wait_until("calls of the client that go on", || run.waits_by_itself());
                // A driver whose device was pulled out waits for it: that is qemu-img's own wait, and it can be ended.
                kill(run.client, Signal::TERM);
            }
            Victim::Watchdog => {
                kill(run.watchdog.id(), Signal::KILL);
                wait_until("the end of the copy", || !is_alive(run.client));
                assert!(
                    self.is_copied(),
                    "the devices outlive the watchdog; killed after {delay:?}"
                );
            }
        }
        run.watchdog.wait().expect("a child");
        wait_until("the end of all", || ![run.supervisor, run.client].into_iter().any(is_alive));
        wait_until("no run of ours", || !runs(&self.path("disk.img")));
        wait_until("mounts and shared memory as before", || {
            (shared_files(), mounts()) == (self.shared, self.mounts)
        });
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

struct Run {
    watchdog: Child,
    supervisor: u32,
    client: u32,
}

impl Run {
    /// Whether no thread of the client is inside a call that somebody else must answer.
    fn waits_by_itself(&self) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.client)) else { return true };
        let call = |task: fs::DirEntry| fs::read_to_string(task.path().join("syscall"));
        tasks.flatten().filter_map(|task| call(task).ok()).all(|call| {
            call.split_whitespace().next().is_none_or(|number| OWN_WAITS.contains(&number))
        })
    }
}

/// The child of a process that has one.
fn only_child(pid: u32) -> Option<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    list.split_whitespace().next()?.parse().ok()
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Whether a process lives whose arguments name this image.
fn runs(image: &Path) -> bool {
    let image = image.to_str().expect("an UTF-8 path");
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let arguments = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    arguments.into_iter().any(|bytes| String::from_utf8_lossy(&bytes).contains(image))
}

fn shared_files() -> usize {
    fs::read_dir("/dev/shm").map_or(0, Iterator::count)
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted").lines().count()
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    // It may have ended by itself.
    let _ = kill_process(pid, signal);
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// Moments within a copy, with no pattern.
fn moments() -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ (number("IOASIS_SEED", 0) << 17);
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Duration::from_micros(state % u64::try_from(COPY.as_micros()).expect("short"))
    })
}

fn rounds(victim: Victim, name: &str) {
    let bench = Bench::new(name);
    let kills = usize::try_from(number("IOASIS_KILLS", 5)).expect("a count");
    for delay in moments().take(kills) {
        bench.round(victim, delay);
    }
}

#[test]
fn killing_the_supervisor_of_qemu_img_hangs_no_call_and_leaves_nothing() {
    rounds(Victim::Supervisor, "supervisor");
}

#[test]
fn killing_the_watchdog_of_qemu_img_costs_it_nothing_and_leaves_nothing() {
    rounds(Victim::Watchdog, "watchdog");
}
