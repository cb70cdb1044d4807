//! Linux's own selftests: their sources from Debian, and what they say at their end.
//!
//! The sources are those of Debian's linux-source-7.3, of which only the tests and what they
//! include are unpacked, under the target folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{Archive, Fetched, Wanted};
use crate::workspace::Workspace;
use crate::{process, uapi_check};

/// What is unpacked of it, relative to its root folder.
const PARTS: [&str; 10] = [
    "tools/testing/selftests/iommu",
    "tools/testing/selftests/vfio",
    "tools/testing/selftests/*.h",
    "tools/include",
    "tools/arch/x86/include",
    "include/linux/pci_ids.h",
    "drivers/dma/ioat",
    "drivers/dma/idxd",
    "drivers/net/ethernet/intel/igb",
    "drivers/iommu/iommufd/iommufd_test.h",
];

/// Which tests to run.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Choice {
    /// Take the tests from this Linux source tree instead of Debian's package
    #[arg(long, value_name = "FOLDER")]
    source: Option<PathBuf>,
    /// Take those of another kernel that Debian serves, as 7.2, 7.2.13 or 7.2.13-1
    #[arg(long, value_name = "VERSION", conflicts_with = "source")]
    kernel: Option<String>,
}

impl Choice {
    /// Whether they are those that the pinned headers belong to.
    pub(crate) fn is_pinned(&self) -> bool {
        self.kernel.is_none()
    }
}

/// Unpacked tests.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The source tree.
    pub(crate) source: PathBuf,
    /// Where the exported headers are, as `usr/include` below it.
    pub(crate) headers: PathBuf,
    /// Where to put what is made of them.
    pub(crate) work: PathBuf,
    /// Whether what was made of them before is still good: the sources do not change.
    fixed: bool,
    /// What `ioasis run` is told, so that the machine follows the rules of the tests' kernel.
    pub(crate) options: &'static [&'static str],
}

impl Tree {
    /// The tests chosen, fetched and unpacked as far as they are not there yet.
    pub(crate) fn get(workspace: &Workspace, choice: &Choice) -> Result<Self> {
        let work = workspace.target.join("selftests");
        fs::create_dir_all(&work)?;
        let archive = Archive::new(workspace)?;
        if let Some(folder) = &choice.source {
            let source = folder.canonicalize().context("the source tree is not there")?;
            let headers = archive.fetch(&uapi_check::PIN)?.root;
            let makefile = fs::read_to_string(source.join("Makefile"))?;
            let options = rules_of(&release(&makefile).unwrap_or_default());
            let work = made(&work, "given")?;
            return Ok(Self { source, headers, work, fixed: false, options });
        }
        let named = choice.kernel.as_deref().map(Named::read).transpose()?;
        let wanted = named.as_ref().map_or(uapi_check::SOURCE, Named::wanted);
        let fetched = archive.fetch(&wanted)?;
        let headers = match &named {
            // Tests use what their own kernel exports.
            Some(_) => archive.fetch_version(uapi_check::PIN.package, &fetched.version)?,
            None => archive.fetch(&uapi_check::PIN)?,
        };
        let source = unpacked(&work, &wanted, &fetched)?;
        let work = made(&work, &format!("built-{}", fetched.version))?;
        let options = rules_of(&fetched.version);
        Ok(Self { source, headers: headers.root, work, fixed: true, options })
    }

    /// The program `name`, made by `make` unless it was made before.
    pub(crate) fn program(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let program = self.work.join(name);
        if !(self.fixed && program.is_file()) {
            // Half of a program is never taken for one.
            let partial = self.work.join(format!("{name}.partial"));
            make(&partial)?;
            fs::rename(partial, &program)?;
        }
        Ok(program)
    }

    /// A compiler that finds the exported headers.
    pub(crate) fn gcc(&self) -> Command {
        let mut gcc = Command::new("gcc");
        for folder in ["usr/include", "usr/include/x86_64-linux-gnu"] {
            gcc.arg("-isystem").arg(self.headers.join(folder));
        }
        gcc
    }
}

/// A kernel that was asked for.
struct Named {
    package: String,
    pin: String,
    series: String,
}

impl Named {
    fn read(version: &str) -> Result<Self> {
        let upstream = version.split('-').next().unwrap_or_default();
        let mut numbers = upstream.split('.');
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            bail!("{version} is no version of a kernel: 7.3, 7.3.4 and 7.3.4-1 are");
        };
        let series = match (version.contains('-'), numbers.next()) {
            (true, _) => version.to_owned(),
            (false, Some(_)) => format!("{version}-"),
            (false, None) => format!("{version}."),
        };
        let package = format!("linux-source-{major}.{minor}");
        Ok(Self { package, pin: version.to_owned(), series })
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted { package: &self.package, pin: &self.pin, series: &self.series }
    }
}

/// The release that the Makefile of a source tree names, as 7.2.13.
fn release(makefile: &str) -> Option<String> {
    let number = |key: &str| {
        let line = makefile.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches([' ', '=']).trim().to_owned())
    };
    Some([number("VERSION ")?, number("PATCHLEVEL ")?, number("SUBLEVEL ")?].join("."))
}

/// What `ioasis run` is told for the tests of a kernel: its default is the newest kernel.
fn rules_of(version: &str) -> &'static [&'static str] {
    if version.starts_with("7.2.") { &["--linux", "7.2"] } else { &[] }
}

fn made(work: &Path, name: &str) -> Result<PathBuf> {
    let folder = work.join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The source tree of a package as far as it is needed, unpacked below `work`.
fn unpacked(work: &Path, wanted: &Wanted<'_>, fetched: &Fetched) -> Result<PathBuf> {
    let tree = work.join(format!("linux-{}", fetched.version));
    if PARTS.iter().all(|part| part.contains('*') || tree.join(part).exists()) {
        return Ok(tree);
    }
    let archive = fetched.root.join("usr/src").join(format!("{}.tar.xz", wanted.package));
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

/// How often the host's caches are emptied for a page.
const ATTEMPTS: u32 = 3;

/// Gives the kernel's own memory back where it can be: a page of 1 GiB needs 1 GiB in which nothing
/// is fixed, and one cached directory entry is enough to spoil it. What is refused leaves the
/// memory as it is.
fn empty_caches() {
    println!("emptying the host's caches to make room");
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    for cache in fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten() {
        let _ = fs::write(cache.path().join("shrink"), "1");
    }
    let _ = fs::write("/proc/sys/vm/compact_memory", "1");
}

/// Huge pages of one size reserved for the tests; what was reserved before is restored at the end.
#[derive(Debug)]
pub(crate) struct HugePages {
    file: PathBuf,
    before: u64,
    reserved: bool,
}

impl HugePages {
    /// Sees to `count` pages of `kib` KiB. Where the host has none to give, or does not let us ask,
    /// the cases that map them are left out or fail, on Linux too.
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
            let ask = || anyhow::Ok((fs::write(&file, count.to_string()).err(), read()?));
            let mut why;
            (why, have) = ask()?;
            for _ in 0..ATTEMPTS {
                if have >= count || why.is_some() {
                    break;
                }
                empty_caches();
                (why, have) = ask()?;
            }
            if have < count {
                let why = why.map_or_else(String::new, |error| format!(": {error}"));
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

    #[test]
    fn a_kernel_is_named_by_series_release_or_package_version() {
        let read = |version| {
            let named = Named::read(version).expect("a version");
            (named.package, named.series)
        };
        let package = || "linux-source-7.3".to_owned();
        assert_eq!(read("7.3"), (package(), "7.3.".to_owned()));
        assert_eq!(read("7.3.4"), (package(), "7.3.4-".to_owned()));
        assert_eq!(read("7.3.4-1"), (package(), "7.3.4-1".to_owned()));
        assert!(Named::read("7").is_err());
    }

    #[test]
    fn tests_of_an_older_kernel_run_by_its_rules() {
        let makefile = "# x\nVERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 13\nEXTRAVERSION =\n";
        assert_eq!(release(makefile).as_deref(), Some("7.2.13"));
        assert_eq!(rules_of("7.2.13-1"), ["--linux", "7.2"]);
        assert!(rules_of("7.3.4-1~bpo13+1").is_empty());
        assert_eq!(release("all:\n"), None);
    }

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
