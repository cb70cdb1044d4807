//! `cargo xtask conformance`: Linux's own IOMMUFD tests, unmodified, under `ioasis run --mock`.
//!
//! What passes is what passes on Linux: of the 246 cases of `iommufd` 241, and 5 skip by design; of
//! `iommufd_fail_nth`, which fails every step of its calls in turn, all 8. Root runs them, three
//! times in a row, and then a plain user, once; what fails for whom is what Linux asks more for
//! ([`needs`]).

mod needs;
mod sweep;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::kselftest::{Choice, HugePages, Totals, Tree};
use crate::workspace::Workspace;
use crate::{process, tools, uapi_check};
use needs::{Need, Rights};

/// A test program and what Linux makes of it.
#[derive(Debug)]
struct Test {
    name: &'static str,
    cases: u32,
    /// Cases left out by design.
    skipped: u32,
    /// Whether it fails every step of its calls in turn.
    sweeps: bool,
}

const TESTS: [Test; 2] = [
    Test { name: "iommufd", cases: 246, skipped: 5, sweeps: false },
    Test { name: "iommufd_fail_nth", cases: 8, skipped: 0, sweeps: true },
];

/// Huge pages of 2 MiB that the tests map at a time.
const HUGE_PAGES: u64 = 64;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    choice: Choice,
    /// How often root runs each test
    #[arg(long, value_name = "N", default_value_t = 3)]
    times: u32,
}

impl Args {
    /// What CI runs.
    pub(crate) fn once() -> Self {
        Self { choice: Choice::default(), times: 1 }
    }
}

/// Cases counted over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Passed.
    pub(crate) passed: u32,
    /// Did not do what they do on Linux.
    pub(crate) failed: u32,
    /// Left out by design, or for what the user has not, as on Linux.
    pub(crate) skipped: u32,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let counts = check(workspace, args)?;
    ensure!(counts.failed == 0, "Linux's tests do not give what they give on Linux");
    Ok(())
}

/// Runs the tests as everybody this user can be, and counts.
pub(crate) fn check(workspace: &Workspace, args: &Args) -> Result<Counts> {
    tools::ensure_programs(&[&tools::GCC])?;
    tools::ensure_header("/usr/include/sys/capability.h", "libcap-dev")?;
    let tree = Tree::get(workspace, &args.choice)?;
    if args.choice.is_pinned() {
        let header = tree.source.join("drivers/iommu/iommufd/iommufd_test.h");
        uapi_check::run(workspace, &uapi_check::Args::with_test_header(header))?;
    }
    process::run(workspace.cargo().args(["build", "--quiet", "--release", "--package", "ioasis"]))?;
    let place = Place::new(&workspace.target.join("release/ioasis"), tree.options)?;
    let program =
        |test: &Test| place.take(&tree.program(test.name, |path| compile(&tree, test.name, path))?);
    let programs: Vec<PathBuf> = TESTS.iter().map(program).collect::<Result<_>>()?;
    let pages = HugePages::reserve(2 << 10, HUGE_PAGES)?;

    let mut report = Vec::new();
    let mut counts = Counts::default();
    for user in users(pages.reserved())? {
        let times = if user.rights.capable { args.times } else { 1 };
        for (test, program) in TESTS.iter().zip(&programs) {
            for _ in 0..times {
                counts = counts.add(judge(&place, &user, test, program, &mut report)?);
            }
        }
    }
    println!("\n{}", report.join("\n"));
    Ok(counts)
}

/// Compiles a test as the kernel's makefile does.
fn compile(tree: &Tree, name: &str, program: &Path) -> Result<()> {
    let selftests = tree.source.join("tools/testing/selftests");
    let mut gcc = tree.gcc();
    gcc.args(["-O2", "-w", "-D_GNU_SOURCE="]).arg("-I").arg(&selftests);
    gcc.arg(selftests.join("iommu").join(format!("{name}.c"))).arg("-o").arg(program);
    process::run(gcc.arg("-lcap"))
}

/// Somebody who runs the tests.
struct User {
    name: &'static str,
    rights: Rights,
    /// What goes before `ioasis` on the command line.
    before: &'static [&'static str],
    /// What `ioasis run` is told beside `--mock`.
    options: &'static [&'static str],
}

/// Starts what follows as nobody.
const AS_NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
];

/// Root, as which Linux's tests want to be run, and a plain user. Who is a plain user is root of
/// the machine only.
fn users(huge_pages: bool) -> Result<[User; 2]> {
    let own = Rights::own(huge_pages)?;
    let is_root = tools::is_root()?;
    let mut root = User {
        name: "root",
        rights: Rights { capable: true, memlock: None, huge_pages },
        before: &[],
        options: &[],
    };
    if !is_root {
        println!("this is not root: what takes root on Linux fails and is listed at the end");
        (root.name, root.options) = ("root of the machine (--root)", &["--root"]);
    } else if !own.capable {
        println!("root lacks CAP_SYS_RESOURCE or CAP_IPC_LOCK here, and gets it by `--root`");
        root.options = &["--root"];
    }
    let plain = User {
        name: "a plain user",
        rights: Rights { capable: false, ..own },
        before: if is_root { &AS_NOBODY } else { &[] },
        options: &[],
    };
    Ok([root, plain])
}

/// Runs a test and compares with what Linux would give the same user.
fn judge(
    place: &Place,
    user: &User,
    test: &Test,
    program: &Path,
    report: &mut Vec<String>,
) -> Result<Counts> {
    let trace = place.folder.join("trace");
    let mut words = user.before.iter().map(PathBuf::from).chain([place.ioasis.clone()]);
    let mut command = Command::new(words.next().context("a command has a program")?);
    command.args(words).args(["run", "--mock", "--kill-on-exit"]).args(user.options);
    command.args(place.options);
    if test.sweeps {
        command.arg(format!("--trace={}", trace.display()));
    }
    command.arg("--").arg(program).current_dir(&place.folder);
    let (_, text) = process::tee(command)?;
    let totals = Totals::read(&text).with_context(|| format!("{} did not count", test.name))?;
    report.push(format!("{} as {}: {totals}", test.name, user.name));

    let results = needs::results(&text);
    let (lacking, mut wrong) = compare(&results, &user.rights);
    report.extend(listed(&lacking));
    let counted = totals.passed + totals.failed + totals.skipped;
    if (counted, totals.skipped) != (test.cases, test.skipped) {
        wrong.push(format!("Linux counts {} cases and skips {}", test.cases, test.skipped));
    }
    if test.sweeps {
        let lines = fs::read_to_string(&trace)?;
        match sweep::judge(&sweep::read(&lines), &results) {
            Ok(lines) => report.extend(lines),
            Err(error) => wrong.push(error.to_string()),
        }
        fs::remove_file(trace)?;
    }
    report.extend(wrong.iter().map(|what| format!("  WRONG: {what}")));
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(Counts {
        passed: totals.passed,
        failed: count(wrong.len()),
        skipped: totals.skipped + count(lacking.len()),
    })
}

/// The cases that fail for what the user has not, and what is not as on Linux.
fn compare<'a>(
    results: &[(&'a str, bool)],
    rights: &Rights,
) -> (Vec<(&'a str, Need)>, Vec<String>) {
    let (mut lacking, mut wrong) = (Vec::new(), Vec::new());
    for &(case, passed) in results {
        match (passed, needs::unmet(case, rights)) {
            (true, None) => {}
            (false, Some(need)) => lacking.push((case, need)),
            (true, Some(need)) => wrong.push(format!("{case} passes, and needs {need}")),
            (false, None) => wrong.push(format!("{case} fails")),
        }
    }
    (lacking, wrong)
}

/// Cases that fail, by what they need.
fn listed(lacking: &[(&str, Need)]) -> Vec<String> {
    let mut needs: Vec<Need> = lacking.iter().map(|&(_, need)| need).collect();
    needs.sort_unstable();
    needs.dedup();
    let line = |need| {
        let of_it = lacking.iter().filter(|&&(_, other)| other == need);
        let cases: Vec<_> = of_it.map(|&(case, _)| case).collect();
        format!("  fail without {need}, as on Linux: {}", cases.join(", "))
    };
    needs.into_iter().map(line).collect()
}

impl Counts {
    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// A folder that everybody can reach, gone at the end: the target folder may be root's alone.
struct Place {
    folder: PathBuf,
    ioasis: PathBuf,
    /// What `ioasis run` is told of the tests' kernel.
    options: &'static [&'static str],
}

impl Place {
    fn new(ioasis: &Path, options: &'static [&'static str]) -> Result<Self> {
        let name = format!("ioasis-conformance-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder)?;
        let mut place = Self { folder, ioasis: PathBuf::new(), options };
        // A plain user's trace goes there too.
        fs::set_permissions(&place.folder, fs::Permissions::from_mode(0o1777))?;
        place.ioasis = place.take(ioasis)?;
        Ok(place)
    }

    /// Copies a program there.
    fn take(&self, program: &Path) -> Result<PathBuf> {
        let Some(name) = program.file_name() else { bail!("{} is no file", program.display()) };
        let copy = self.folder.join(name);
        fs::copy(program, &copy).with_context(|| format!("cannot copy {}", program.display()))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        Ok(copy)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_without_what_it_needs_is_as_wrong_as_what_fails_with_it() {
        let rights = Rights { capable: false, memlock: None, huge_pages: true };
        let results = [
            ("iommufd.global_options", false),
            ("change_process.account_mm.basic", true),
            ("iommufd.simple_close", false),
            ("iommufd.cmd_fail", true),
        ];
        let (lacking, wrong) = compare(&results, &rights);
        assert_eq!(lacking, [("iommufd.global_options", Need::SysResource)]);
        assert_eq!(
            wrong,
            [
                "change_process.account_mm.basic passes, and needs CAP_SYS_RESOURCE",
                "iommufd.simple_close fails"
            ]
        );
    }

    #[test]
    fn cases_are_listed_by_what_they_need() {
        let lacking = [("b", Need::HugePages), ("a", Need::SysResource), ("c", Need::SysResource)];
        assert_eq!(
            listed(&lacking),
            [
                "  fail without CAP_SYS_RESOURCE, as on Linux: a, c",
                "  fail without 64 reserved huge pages, which root reserves, as on Linux: b"
            ]
        );
    }
}
