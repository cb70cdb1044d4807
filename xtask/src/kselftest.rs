//! Linux's own selftests: their sources from Debian, and what they say at their end.
//!
//! The sources are those of Debian's linux-source-7.2, of which only the tests and what they include are unpacked, under
//! the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{Archive, Wanted};
use crate::process;
use crate::workspace::Workspace;

/// The kernel whose tests are run.
const PIN: Wanted = Wanted { package: "linux-source-7.2", pin: "7.2.13-1", series: "7.2." };

/// What is unpacked of it, relative to its root folder.
const PARTS: [&str; 9] = [
    "tools/testing/selftests/iommu",
    "tools/testing/selftests/vfio",
    "tools/testing/selftests/*.h",
    "tools/include",
    "tools/arch/x86/include",
    "include/linux/pci_ids.h",
    "drivers/dma/ioat",
    "drivers/dma/idxd",
    "drivers/iommu/iommufd/iommufd_test.h",
];

/// The source tree: the one given, or the package's as far as it is needed, unpacked below `work`.
pub(crate) fn source(
    workspace: &Workspace,
    work: &Path,
    given: Option<&PathBuf>,
) -> Result<PathBuf> {
    if let Some(folder) = given {
        return folder.canonicalize().context("the source tree is not there");
    }
    let fetched = Archive::new(workspace)?.fetch(&PIN)?;
    let tree = work.join(format!("linux-{}", fetched.version));
    if PARTS.iter().all(|part| part.contains('*') || tree.join(part).exists()) {
        return Ok(tree);
    }
    let archive = fetched.root.join("usr/src").join(format!("{}.tar.xz", PIN.package));
    ensure!(archive.is_file(), "{} holds no {}", fetched.root.display(), archive.display());
    println!("unpacking the selftests of Linux {}", fetched.version);
    let partial = work.join("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(&archive).arg("-C").arg(&partial);
    tar.args(["--strip-components=1", "--wildcards"]);
    process::run(tar.args(PARTS.map(|part| format!("*/{part}"))))?;
    let _ = fs::remove_dir_all(&tree);
    fs::rename(&partial, &tree)?;
    Ok(tree)
}

/// What a test says at its end, and why it left cases out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Cases that passed.
    pub(crate) passed: u32,
    /// Cases that did not.
    pub(crate) failed: u32,
    /// Cases left out.
    pub(crate) skipped: u32,
    /// Reasons for skipping, each once.
    pub(crate) reasons: Vec<String>,
}

impl Totals {
    /// Reads the output of kselftest_harness.h.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let line = text.lines().rev().find_map(|line| line.strip_prefix("# Totals: "));
        let Some(line) = line else { bail!("there is no line of totals") };
        let mut totals = Self::default();
        for word in line.split_whitespace() {
            let (key, count) = word.split_once(':').context("a total without a count")?;
            let count: u32 = count.parse().context("a count that is none")?;
            match key {
                "pass" => totals.passed += count,
                "skip" => totals.skipped += count,
                "fail" | "xfail" | "xpass" | "error" => totals.failed += count,
                other => bail!("an unknown total {other:?}"),
            }
        }
        let mut reasons: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#      SKIP      "))
            .map(str::to_owned)
            .collect();
        reasons.sort();
        reasons.dedup();
        totals.reasons = reasons;
        Ok(totals)
    }

    /// Whether every one of `cases` passed but `skipped`, which said why they did not run.
    pub(crate) fn complete(&self, cases: u32, skipped: u32) -> bool {
        let explained = skipped == 0 || !self.reasons.is_empty();
        let counts = (self.passed + skipped, self.failed, self.skipped);
        explained && counts == (cases, 0, skipped)
    }

    /// With the counts of another test.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)?;
        if self.reasons.is_empty() { Ok(()) } else { write!(f, " ({})", self.reasons.join("; ")) }
    }
}

/// Huge pages of one size reserved for the tests; what was reserved before is restored at the end.
#[derive(Debug)]
pub(crate) struct HugePages {
    file: PathBuf,
    before: u64,
    reserved: bool,
}

impl HugePages {
    /// Sees to `count` pages of `kib` KiB. Where the host has none to give, or does not let us ask, the cases that
    /// map them are left out or fail, on Linux too.
    pub(crate) fn reserve(kib: u64, count: u64) -> Result<Self> {
        let folder = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
        let file = Path::new(&folder).join("nr_hugepages");
        let read = || anyhow::Ok(fs::read_to_string(&file)?.trim().parse()?);
        let Ok(before) = read() else {
            println!("this processor has no pages of {kib} KiB");
            return Ok(Self { file, before: 0, reserved: false });
        };
        let mut have = before;
        if before < count {
            println!(
                "reserving {count} pages of {kib} KiB while the tests run, there are {before}"
            );
            let written = fs::write(&file, count.to_string());
            have = read()?;
            if have < count {
                let why = written.err().map_or_else(String::new, |error| format!(": {error}"));
                println!("the host has only {have} pages of {kib} KiB to give{why}");
            }
        }
        Ok(Self { file, before, reserved: have >= count })
    }

    /// Whether they are all there.
    pub(crate) fn reserved(&self) -> bool {
        self.reserved
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // As a plain user nothing was changed, and nothing can be changed back.
        let _ = fs::write(&self.file, self.before.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ok 1 a\n#      SKIP      no pages\nok 2 b # SKIP no pages\n#      SKIP      no pages\n\
                        # Totals: pass:1 fail:0 xfail:0 xpass:0 skip:2 error:0\n";

    #[test]
    fn totals_and_reasons_are_read() {
        let totals = Totals::read(TEXT).expect("totals");
        assert_eq!((totals.passed, totals.failed, totals.skipped), (1, 0, 2));
        assert_eq!(totals.to_string(), "1 passed, 0 failed, 2 skipped (no pages)");
        assert!(totals.complete(3, 2));
        assert!(!totals.complete(4, 2), "a case is missing");
        assert!(!totals.complete(3, 1), "another case was left out");
    }

    #[test]
    fn a_test_that_fails_or_dies_is_not_complete() {
        let failing = TEXT.replace("fail:0", "fail:1");
        assert!(!Totals::read(&failing).expect("totals").complete(4, 2));
        assert!(Totals::read("ok 1 a\n").is_err());
        let silent = "# Totals: pass:1 fail:0 xfail:0 xpass:0 skip:1 error:0\n";
        assert!(!Totals::read(silent).expect("totals").complete(2, 1), "a skip without a reason");
    }
}
