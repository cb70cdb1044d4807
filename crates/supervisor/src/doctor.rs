//! `ioasis doctor`: what a run needs of this host, tried out where it can be tried.
//!
//! Whatever changes the process that does it is tried in a child. Nothing is left behind.

use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ioasis_sys::namespace;
use ioasis_sys::process::Thread;
use ioasis_sys::seccomp::{Filter, no_new_privileges};
use ioasis_sys::spawn::fork_with;
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{Access, Mode, OFlags, access};
use rustix::process::{Resource, geteuid, getrlimit};

use crate::view::{Options, View};

/// How a part of the host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does what a run needs.
    Good,
    /// A run works; something that some programs want does not.
    Limited,
    /// No run works without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is.
    pub name: &'static str,
    /// How it does.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do about it; `None` where nothing needs doing.
    pub mend: Option<String>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        })
    }
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Good, detail: detail.into(), mend: None }
    }

    fn limited(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Limited, detail: detail.into(), mend: Some(mend.into()) }
    }

    fn missing(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, detail: detail.into(), mend: Some(mend.into()) }
    }

    /// Good with what was found, or missing with why.
    fn tried(name: &'static str, result: Result<String, String>, mend: &str) -> Self {
        match result {
            Ok(detail) => Self::good(name, detail),
            Err(why) => Self::missing(name, why, mend),
        }
    }
}

/// Looks at everything. The calling process must have one thread: parts are tried in children of it.
#[must_use]
pub fn report() -> Vec<Check> {
    vec![
        kernel(),
        files(),
        seccomp(),
        namespaces(),
        view(),
        file_system(),
        doorbells(),
        yama(),
        other_process(),
        watches(),
        locked_memory(),
        kvm(),
        qemu(),
    ]
}

/// The oldest kernel with everything a run needs: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV came last.
const OLDEST: (u32, u32) = (5, 19);

fn kernel() -> Check {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let found = format!("Linux {release} on {}", name.machine().to_string_lossy());
    if name.machine() != c"x86_64" {
        return Check::missing(
            "kernel",
            found,
            "use an x86-64 machine: filters and layouts are for that one",
        );
    }
    match version(&release) {
        Some(version) if version < OLDEST => {
            Check::missing("kernel", found, "use Linux 5.19 or newer (Debian 12 has 6.1)")
        }
        _ => Check::good("kernel", found),
    }
}

/// Major and minor number of a release such as "6.1.0-18-amd64".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn files() -> Check {
    const NEEDED: [&str; 4] = ["/proc/self/status", "/sys/bus", "/dev/null", "/sys/kernel"];
    match NEEDED.iter().find(|path| !Path::new(path).exists()) {
        Some(path) => Check::missing(
            "/dev, /proc, /sys",
            format!("{path} does not exist"),
            "mount /dev, /proc and /sys",
        ),
        None => Check::good("/dev, /proc, /sys", "mounted"),
    }
}

fn seccomp() -> Check {
    let result = tried(|| {
        // Taken in any case by a run without privileges; a run as root does without.
        no_new_privileges()?;
        Filter::new(&[]).install()?;
        Ok("system calls can be answered by another process".to_owned())
    });
    let mend = "run outside other sandboxes; in a container, `--security-opt seccomp=unconfined`";
    Check::tried("seccomp notification", result, mend)
}

fn namespaces() -> Check {
    const NAME: &str = "namespaces";
    match tried(|| {
        namespace::enter(namespace::User::Own)
            .map(|made| if made.is_user() { "user and mount" } else { "mount" }.to_owned())
    }) {
        Ok(kind) if kind == "mount" => {
            Check::good(NAME, "a mount namespace, with the privileges of this user")
        }
        Ok(_) => Check::good(NAME, "a user namespace with a mount namespace in it"),
        Err(why) => Check::missing(NAME, why, "see the reason, or run as root"),
    }
}

fn view() -> Check {
    let result = tried(|| {
        let view = View::plan(&[], &Options::default())?;
        let start = Instant::now();
        let entered = view.enter()?;
        let took = start.elapsed();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::openat(&entered.files, ".", flags, Mode::RUSR)
            .map_err(ioasis_sys::because("a tmpfs without O_TMPFILE"))?;
        let lost = if entered.lost.is_empty() {
            String::new()
        } else {
            format!("; out of view: {}", entered.lost.join(", "))
        };
        Ok(format!("mounted in {:.1} ms{lost}", took.as_secs_f64() * 1e3))
    });
    Check::tried(
        "view of /dev and /sys",
        result,
        "allow mounts of tmpfs, and bind mounts, in this container or profile",
    )
}

/// Whether device nodes, fault and event queues can be files of a file system of the run's own.
fn file_system() -> Check {
    const NAME: &str = "FUSE";
    match tried(|| {
        let namespace = namespace::enter(namespace::User::Own)?;
        ioasis_sys::fuse::mount(ioasis_sys::fuse::Users::Own)?;
        namespace.drop_capabilities()?;
        Ok("device nodes have their numbers, fault and event queues are files as all others"
            .to_owned())
    }) {
        Ok(detail) => Check::good(NAME, detail),
        Err(why) => Check::limited(
            NAME,
            format!(
                "{why}: stat says 0:0 of device nodes, and there are 64 fault and event queues at once, at the \
                 highest descriptors, whose duplicates cannot be read"
            ),
            "`modprobe fuse`, `chmod 666 /dev/fuse`; in a container, `--device /dev/fuse`",
        ),
    }
}

/// Whether a store to a page wakes the device, and how soon a program's can be had to.
fn doorbells() -> Check {
    const NAME: &str = "doorbells";
    match tried(|| {
        ioasis_sys::userfault::Userfault::create()?;
        let own = Thread::open(std::process::id())?;
        if !own.reaches_own_table() {
            let why = "a thread's own descriptors cannot be reached";
            return Err(Error::new(Errno::EOPNOTSUPP, why));
        }
        Ok("a store to an idle device's wakes it".to_owned())
    }) {
        Ok(detail) => Check::good(NAME, detail),
        Err(why) => Check::limited(
            NAME,
            format!("{why}: an idle device looks every 5 ms whether a program has stored to one"),
            "Linux 6.9 or newer with userfaultfd, which a container's seccomp profile may refuse",
        ),
    }
}

fn yama() -> Check {
    const NAME: &str = "yama";
    let setting = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    match (setting.trim(), geteuid().is_root()) {
        ("", _) => Check::good(NAME, "not in this kernel"),
        (scope @ ("0" | "1"), _) | (scope @ "2", true) => Check::good(
            NAME,
            format!("ptrace_scope {scope}, which lets a parent reach its children"),
        ),
        (scope, _) => Check::missing(
            NAME,
            format!("ptrace_scope {scope} lets nobody reach a client's memory"),
            "`sysctl kernel.yama.ptrace_scope=1` (3 needs a reboot)",
        ),
    }
}

/// The calls by which a client's descriptors and memory are reached, on a child.
fn other_process() -> Check {
    Check::tried(
        "reaching a client",
        reach_child(),
        "allow pidfd_getfd and process_vm_readv in the seccomp profile of this container, and /proc/PID/mem, or give it \
         CAP_SYS_PTRACE",
    )
}

fn reach_child() -> Result<String, String> {
    let told = |error: Error| format!("{} ({})", error.why, error.errno);
    let secret = Box::new(*b"read me from outside");
    let child = fork_with(|| {
        std::thread::sleep(Duration::from_secs(60));
        0
    })
    .map_err(told)?;
    let reach = || {
        let thread = Thread::open(child.id())?;
        let mut read = [0; 20];
        // The child is a copy: the box lies where it lies here.
        let address = std::ptr::from_ref(&*secret).addr() as u64;
        thread.read(address, &mut read)?;
        if read != *secret {
            return Err(Error::new(Errno::EIO, "a child's memory reads as something else"));
        }
        let open = fs::read_dir("/proc/self/fd").ok().and_then(|mut fds| fds.next()?.ok());
        let fd = open.and_then(|entry| entry.file_name().to_str()?.parse().ok()).unwrap_or(0);
        thread.fd(fd)?;
        thread.mm()?.write(address, &read)?;
        Ok("a child's can be reached".to_owned())
    };
    let result = reach().map_err(told);
    child.kill();
    let _ = child.wait();
    result
}

/// inotify instances: a run uses one to see its files closed.
fn watches() -> Check {
    const NAME: &str = "inotify";
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap_or_default();
    let made = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
    match made {
        Ok(_) => Check::good(NAME, format!("an instance to spare of {}", limit.trim())),
        Err(raw) => Check::missing(
            NAME,
            format!("no instance to be had of {} ({})", limit.trim(), ioasis_sys::errno(raw)),
            "`sysctl fs.inotify.max_user_instances=1024`",
        ),
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    const ENOUGH: u64 = 64 << 20;
    match getrlimit(Resource::Memlock).current {
        None => Check::good(NAME, "no limit"),
        Some(limit) if limit >= ENOUGH || geteuid().is_root() => {
            Check::good(NAME, format!("{} KiB", limit >> 10))
        }
        Some(limit) => Check::limited(
            NAME,
            format!("{} KiB: mapping more for DMA answers ENOMEM, as on Linux", limit >> 10),
            "`ulimit -l unlimited`, or a line `* hard memlock unlimited` in /etc/security/limits.conf",
        ),
    }
}

fn kvm() -> Check {
    const NAME: &str = "KVM";
    if access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok() {
        return Check::good(NAME, "/dev/kvm can be opened");
    }
    let detail = if Path::new("/dev/kvm").exists() {
        "/dev/kvm cannot be opened by this user"
    } else {
        "there is no /dev/kvm"
    };
    Check::limited(
        NAME,
        detail,
        "only virtual machine monitors want it; `adduser USER kvm`, or load kvm-intel or kvm-amd",
    )
}

fn qemu() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join("qemu-img"))
        .find(|file| file.is_file());
    match found {
        Some(file) => Check::good("qemu-img", file.display().to_string()),
        None => Check::limited(
            "qemu-img",
            "not found; the demonstration uses it",
            "`apt-get install qemu-utils`",
        ),
    }
}

/// Runs `attempt` in a child and returns what it found, or why it failed.
fn tried(attempt: impl FnOnce() -> Result<String>) -> Result<String, String> {
    let told = |error: Error| format!("{} ({})", error.why, error.errno);
    let (mut reader, mut writer) = std::io::pipe().map_err(|failure| failure.to_string())?;
    let child = fork_with(|| {
        let (status, text) = match attempt() {
            Ok(text) => (0, text),
            Err(error) => (1, told(error)),
        };
        // A report is shorter than a pipe; its reader waits for the end.
        let _ = writer.write_all(text.as_bytes());
        status
    });
    drop(writer);
    let child = child.map_err(told)?;
    let mut text = String::new();
    let read = reader.read_to_string(&mut text);
    let status = child.wait().map_err(told)?;
    match (status.code(), read) {
        (Some(0), Ok(_)) => Ok(text),
        (Some(1), Ok(_)) => Err(text),
        _ => Err(format!("the attempt itself ended with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_every_style_are_read() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.19.0"), Some((5, 19)));
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
        assert!(version("5.4.0").unwrap() < OLDEST && version("5.19-rc1").unwrap() >= OLDEST);
    }

    #[test]
    fn an_attempt_reports_success_and_failure_with_their_words() {
        assert_eq!(tried(|| Ok("found".to_owned())), Ok("found".to_owned()));
        let failed = tried(|| Err(Error::new(Errno::EPERM, "not allowed")));
        assert_eq!(failed, Err("not allowed (EPERM)".to_owned()));
    }

    #[test]
    fn a_host_that_runs_these_tests_lacks_nothing() {
        let report = report();
        let missing: Vec<_> =
            report.iter().filter(|check| check.status == Status::Missing).collect();
        assert!(missing.is_empty(), "{missing:?}");
        assert!(report.iter().all(|check| check.mend.is_some() == (check.status != Status::Good)));
    }
}
