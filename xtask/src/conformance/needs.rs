//! What a case of Linux's tests needs of the user who runs it, on Linux as here.

use std::{fmt, fs};

use anyhow::{Context, Result};

/// What a user may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rights {
    /// Has CAP_SYS_RESOURCE and CAP_IPC_LOCK.
    pub(super) capable: bool,
    /// RLIMIT_MEMLOCK in bytes, where it binds.
    pub(super) memlock: Option<u64>,
    /// Huge pages are reserved.
    pub(super) huge_pages: bool,
}

impl Rights {
    /// Those of this process.
    pub(super) fn own(huge_pages: bool) -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let limits = fs::read_to_string("/proc/self/limits")?;
        Self::read(&status, &limits, huge_pages).context("/proc/self has another form")
    }

    /// From the texts of /proc/PID/status and /proc/PID/limits.
    fn read(status: &str, limits: &str, huge_pages: bool) -> Option<Self> {
        // linux/capability.h: CAP_IPC_LOCK and CAP_SYS_RESOURCE.
        const BOTH: u64 = 1 << 14 | 1 << 24;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
        let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
        let memlock = match limit.split_whitespace().next()? {
            "unlimited" => None,
            bytes => Some(bytes.parse().ok()?),
        };
        Some(Self { capable: effective & BOTH == BOTH, memlock, huge_pages })
    }
}

/// What a case needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// To change how a context accounts.
    SysResource,
    /// To pin so many bytes.
    Memlock(u64),
    /// To map huge pages.
    HugePages,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SysResource => f.write_str("CAP_SYS_RESOURCE"),
            Self::Memlock(bytes) => {
                write!(f, "CAP_IPC_LOCK or an RLIMIT_MEMLOCK of {} MiB", bytes >> 20)
            }
            Self::HugePages => f.write_str("64 reserved huge pages, which root reserves"),
        }
    }
}

/// The cases that change how a context accounts.
const ACCOUNTING: [&str; 3] = [
    "iommufd.global_options",
    "change_process.account_user.basic",
    "change_process.account_mm.basic",
];

/// What `case` needs and a user with these `rights` lacks.
pub(super) fn unmet(case: &str, rights: &Rights) -> Option<Need> {
    let needs = [
        ACCOUNTING.contains(&case).then_some(Need::SysResource),
        maps_huge_pages(case).then_some(Need::HugePages),
        pinned(case).map(Need::Memlock),
    ];
    needs.into_iter().flatten().find(|need| match need {
        Need::SysResource => !rights.capable,
        Need::HugePages => !rights.huge_pages,
        Need::Memlock(bytes) => rights.memlock.is_some_and(|limit| limit < *bytes),
    })
}

fn maps_huge_pages(case: &str) -> bool {
    let Some((fixture, name)) = case.rsplit_once('.') else { return false };
    matches!(name, "access_domain_destory" | "huge_map")
        || fixture.ends_with("_huge")
        || fixture.ends_with("_hugepage")
            && !fixture.ends_with("_file_hugepage")
            && matches!(name, "basic" | "all_aligns" | "all_aligns_copy")
}

/// The bytes that a case pins at once, where those are many.
fn pinned(case: &str) -> Option<u64> {
    let (fixture, name) = case.rsplit_once('.')?;
    let size = fixture.strip_prefix("iommufd_dirty_tracking.domain_dirty")?;
    let mebibytes: u64 = size.trim_end_matches("_huge").strip_suffix('M')?.parse().ok()?;
    name.starts_with("get_dirty_bitmap").then_some(mebibytes << 20)
}

/// Every case that was not left out, and whether it passed, from the output of kselftest_harness.h.
pub(super) fn results(text: &str) -> Vec<(&str, bool)> {
    text.lines().filter_map(result).collect()
}

/// Reads `ok 1 iommufd.simple_close`, `not ok 2 a.b` or `ok 3 a.b # SKIP why`.
fn result(line: &str) -> Option<(&str, bool)> {
    let (rest, passed) = match line.strip_prefix("not ok ") {
        Some(rest) => (rest, false),
        None => (line.strip_prefix("ok ")?, true),
    };
    let (number, case) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    (!case.contains(" # SKIP")).then_some((case.trim(), passed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rights = Rights { capable: false, memlock: Some(8 << 20), huge_pages: true };
    const ROOT: Rights = Rights { capable: true, memlock: None, huge_pages: true };

    #[test]
    fn what_fails_for_a_plain_user_passes_for_root() {
        let big = "iommufd_dirty_tracking.domain_dirty128M_huge.get_dirty_bitmap_no_clear";
        for (case, need) in [
            ("iommufd.global_options", Need::SysResource),
            (big, Need::Memlock(128 << 20)),
            ("iommufd_dirty_tracking.domain_dirty64M.get_dirty_bitmap", Need::Memlock(64 << 20)),
        ] {
            assert_eq!((unmet(case, &PLAIN), unmet(case, &ROOT)), (Some(need), None), "{case}");
        }
        for case in [
            "change_process.account_none.basic",
            "iommufd_dirty_tracking.domain_dirty64M.enforce_dirty",
            "iommufd_dirty_tracking.domain_dirty320k.get_dirty_bitmap",
        ] {
            assert_eq!(unmet(case, &PLAIN), None, "{case}");
        }
        assert_eq!(unmet(big, &Rights { memlock: Some(128 << 20), ..PLAIN }), None);
    }

    #[test]
    fn without_huge_pages_those_fail_that_map_them() {
        let rights = Rights { huge_pages: false, ..ROOT };
        for (case, need) in [
            ("iommufd_mock_domain.two_domains_hugepage.all_aligns", Some(Need::HugePages)),
            ("iommufd_mock_domain.two_domains_hugepage.ro_unshare", None),
            ("iommufd_mock_domain.one_domain_file_hugepage.basic", None),
            ("iommufd_ioas.no_domain.access_domain_destory", Some(Need::HugePages)),
            ("vfio_compat_mock_domain.Ver1v0.huge_map", Some(Need::HugePages)),
            ("vfio_compat_mock_domain.Ver1v0.map", None),
            ("iommufd_dirty_tracking.domain_dirty64M_huge.enforce_dirty", Some(Need::HugePages)),
        ] {
            assert_eq!(unmet(case, &rights), need, "{case}");
        }
    }

    #[test]
    fn results_are_read_and_what_is_left_out_is_none() {
        let text = "TAP version 13\n#  OK  a.b\nok 1 a.b\nnot ok 2 a.c\nok 3 a.d # SKIP no pages\n";
        assert_eq!(results(text), [("a.b", true), ("a.c", false)]);
    }

    #[test]
    fn rights_are_those_that_proc_tells() {
        let limits = "Limit  Soft\nMax locked memory         8388608   8388608   bytes\n";
        let read = |capabilities: &str, limits| {
            Rights::read(&format!("Name:\tx\nCapEff:\t{capabilities}\n"), limits, true)
        };
        assert_eq!(read("0000000000000000", limits), Some(PLAIN));
        let unlimited = "Max locked memory         unlimited  unlimited  bytes\n";
        assert_eq!(read("000001ffffffffff", unlimited), Some(ROOT));
        let lacking = read("000001fffeffffff", unlimited).map(|rights| rights.capable);
        assert_eq!(lacking, Some(false), "without CAP_SYS_RESOURCE");
        assert_eq!(read("x", limits), None);
    }
}
