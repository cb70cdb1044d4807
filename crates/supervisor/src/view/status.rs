//! /proc/PID/status of a client: the kernel's text, with the pages that this program charges to it.
//!
//! Pinned and locked pages are counted by mm in Linux (`mm->pinned_vm`, `mm->locked_vm`); what a simulated IOMMU pins
//! is known here only. The kernel's own counts, of mlock(2) or io_uring, are kept and added to.

/// What a process is charged with beside what the kernel knows of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charges {
    /// Pages of 4 KiB in `VmLck`.
    pub locked: u64,
    /// Pages of 4 KiB in `VmPin`.
    pub pinned: u64,
}

/// Longest text that is read: two lines of it have no bound of a few bytes, those of up to 65,536 groups and of CPUs.
pub(crate) const TEXT_MAX: usize = 16 << 10;

/// Below /proc, the directory that a status file whose path ends like `path` would lie in: a process's own or that of
/// one of its threads. The path of a file is whatever its mounts make it, so this says only where to look for the file
/// that it may be.
#[must_use]
pub fn directory(path: &[u8], name: &str) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let path = path.strip_suffix(name)?.strip_suffix('/')?;
    let (rest, number) = path.rsplit_once('/')?;
    let number: u32 = number.parse().ok()?;
    let process = || rest.strip_suffix("/task")?.rsplit_once('/')?.1.parse::<u32>().ok();
    Some(process().map_or_else(|| number.to_string(), |pid| format!("{pid}/task/{number}")))
}

/// The process that a status text is of.
#[must_use]
pub fn process(text: &[u8]) -> Option<u32> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Tgid:\t"))?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// The kernel's text with `charges` added. Text without the two lines, as of a kernel thread or a zombie, stays as it
/// is.
#[must_use]
pub fn with_charges(text: &[u8], charges: Charges) -> Vec<u8> {
    let mut charged = Vec::with_capacity(text.len() + 16);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let added = [("VmLck:\t", charges.locked), ("VmPin:\t", charges.pinned)]
            .into_iter()
            .find_map(|(name, pages)| add(line, name, pages));
        match added {
            Some(added) => charged.extend_from_slice(added.as_bytes()),
            None => charged.extend_from_slice(line),
        }
    }
    charged
}

/// The line with `pages` more, as fs/proc/task_mmu.c writes it, if it is the one called `name`.
fn add(line: &[u8], name: &str, pages: u64) -> Option<String> {
    let value = std::str::from_utf8(line.strip_prefix(name.as_bytes())?).ok()?;
    let kernels: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    let total = kernels.saturating_add(pages.saturating_mul(4));
    Some(format!("{name}{total:>8} kB\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"Name:\tclient\nVmSize:\t    5000 kB\nVmLck:\t       0 kB\nVmPin:\t      64 kB\nThreads:\t1\n";

    #[test]
    fn charges_are_added_to_what_the_kernel_counts() {
        let text = with_charges(TEXT, Charges { locked: 256, pinned: 3_000_000 });
        let expected: &[u8] =
            b"Name:\tclient\nVmSize:\t    5000 kB\nVmLck:\t    1024 kB\nVmPin:\t12000064 kB\nThreads:\t1\n";
        assert_eq!(text, expected);
        assert_eq!(with_charges(TEXT, Charges::default()), TEXT);
    }

    #[test]
    fn text_without_the_lines_stays_as_it_is() {
        for text in [&b"Name:\tkthreadd\nThreads:\t1\n"[..], b"", b"VmLck:\t", b"VmPin:\tmany kB\n"]
        {
            assert_eq!(with_charges(text, Charges { locked: 1, pinned: 1 }), text);
        }
    }

    #[test]
    fn the_kernels_own_text_is_understood() {
        let text = std::fs::read("/proc/self/status").unwrap();
        let charged = with_charges(&text, Charges { locked: 1 << 20, pinned: 0 });
        assert_ne!(charged, text);
        let lines = |text: &[u8]| text.iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(lines(&charged), lines(&text));
    }

    #[test]
    fn a_path_says_where_the_file_would_lie() {
        let of = |path: &str| directory(path.as_bytes(), "status");
        assert_eq!(of("/proc/12/status").as_deref(), Some("12"));
        assert_eq!(of("/proc/12/task/13/status").as_deref(), Some("12/task/13"));
        assert_eq!(of("/mnt/12/status").as_deref(), Some("12"), "procfs may be bound anywhere");
        assert_eq!(directory(b"/proc/12/limits", "limits").as_deref(), Some("12"));
        for path in ["/proc/status", "/proc/12/stat", "/proc/12/task/status", "/proc/12/fd/status"]
        {
            assert_eq!(of(path), None, "{path}");
        }
        for path in ["/proc/self/status", "/proc/../../etc/status", "/proc/-1/status", "status"] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_text_says_whose_it_is() {
        let own = std::fs::read("/proc/thread-self/status").unwrap();
        assert_eq!(process(&own), Some(std::process::id()));
        assert_eq!(process(b"Name:\tTgid:\t7\nTgid:\tx\n"), None);
    }
}
