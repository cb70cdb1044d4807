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

/// The process whose status the file `path` tells, where `path` is what /proc/self/fd says of it: a process's own
/// file, or that of one of its threads.
#[must_use]
pub fn process(path: &str) -> Option<u32> {
    let (pid, rest) = path.strip_prefix("/proc/")?.split_once('/')?;
    let thread = |rest: &str| -> Option<u32> {
        rest.strip_prefix("task/")?.strip_suffix("/status")?.parse().ok()
    };
    if rest != "status" && thread(rest).is_none() {
        return None;
    }
    pid.parse().ok()
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
    fn only_the_status_of_a_process_or_thread_is_one() {
        assert_eq!(process("/proc/12/status"), Some(12));
        assert_eq!(process("/proc/12/task/13/status"), Some(12));
        for path in [
            "/proc/status",
            "/proc/12/stat",
            "/proc/12/task/status",
            "/proc/12/fd/status",
            "/proc/self/status",
            "/tmp/12/status",
        ] {
            assert_eq!(process(path), None, "{path}");
        }
    }
}
