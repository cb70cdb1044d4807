//! `cargo xtask uapi-check`: is `uapi` what the kernel's headers say, to the last byte and name?
//!
//! Gets Linux's headers from Debian, lets the C compiler tell every size, offset and value, and
//! compares. What the headers have and `uapi` lacks fails with the pinned release; with another it
//! is listed as an addition.

mod header;
mod layout;
mod probe;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::debian::{Archive, Wanted};
use crate::workspace::Workspace;
use header::Names;
use layout::{Field, Struct, Value};
use probe::{Headers, Question};

/// The kernel that `uapi` and the tests are of, as Debian numbers its packages.
const LINUX: &str = "7.3.4-1~bpo13+1";
/// Its headers.
pub(crate) const PIN: Wanted<'_> = Wanted { package: "linux-libc-dev", pin: LINUX, series: "7.3." };
/// Its sources.
pub(crate) const SOURCE: Wanted<'_> = Wanted { package: "linux-source-7.3", ..PIN };

/// Macros with parameters, which are logic and not layout.
const FUNCTIONS: [&str; 3] =
    ["VFIO_DEVICE_STATE_IS_ERROR", "VFIO_DEVICE_STATE_SET_ERROR", "VFIO_DEVICE_STATE_VALID"];

/// Arguments of the task.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Use the headers in this folder (it contains linux/iommufd.h) instead of Debian's
    #[arg(long, value_name = "FOLDER")]
    headers: Option<PathBuf>,
    /// Take this version of linux-libc-dev; what it adds is listed
    #[arg(long, value_name = "VERSION", conflicts_with = "headers")]
    version: Option<String>,
    /// Compare iommufd::test too, with this iommufd_test.h of a kernel source
    #[arg(long, value_name = "FILE")]
    test_header: Option<PathBuf>,
}

impl Args {
    /// A comparison of `iommufd::test` too.
    pub(crate) fn with_test_header(file: PathBuf) -> Self {
        Self { test_header: Some(file), ..Self::default() }
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
struct Findings {
    /// Ours and C's differ, or ours has no counterpart.
    wrong: Vec<String>,
    /// C has it and we do not.
    missing: Vec<String>,
}

/// Runs the task.
pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let (folder, pinned, source) = obtain(workspace, args)?;
    println!("uapi-check: comparing with {source}");
    let work = workspace.target.join("uapi-check");
    fs::create_dir_all(&work)?;

    let mut headers = Headers {
        search: search_path(&folder),
        include: vec!["linux/iommufd.h".to_owned(), "linux/vfio.h".to_owned()],
    };
    let mut files = vec!["linux/iommufd.h", "linux/vfio.h"];
    if let Some(file) = &args.test_header {
        headers.include.push(fs::canonicalize(file)?.display().to_string());
        files.push("iommufd_test.h");
    }

    let names = Names::read(&headers.preprocess(&work)?, &files)?;
    let mut findings = Findings::default();
    let questions = ask_about(&names, args.test_header.is_some(), &mut findings);
    for (question, theirs) in headers.ask(&work, &questions)? {
        let Question { what, expression, ours } = question;
        findings.wrong.push(format!("{what}: {ours:?}, but {expression} is {theirs}"));
    }
    report(&names, questions.len(), &findings, pinned)
}

/// The folder of the headers, whether they are the pinned ones, and words for both.
fn obtain(workspace: &Workspace, args: &Args) -> Result<(PathBuf, bool, String)> {
    if let Some(folder) = &args.headers {
        return Ok((folder.clone(), false, folder.display().to_string()));
    }
    let archive = Archive::new(workspace)?;
    let fetched = match &args.version {
        Some(version) => archive.fetch_version(PIN.package, version)?,
        None => archive.fetch(&PIN)?,
    };
    let pinned = fetched.version == PIN.pin;
    let source = format!("{} {}", PIN.package, fetched.version);
    Ok((fetched.root.join("usr/include"), pinned, source))
}

/// `linux/...` first, then where the package keeps this machine's `asm/...`.
fn search_path(folder: &Path) -> Vec<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        "riscv64" => "riscv",
        other => other,
    };
    let asm = folder.join("../lib/linux/uapi").join(arch);
    let triplet = folder.join(format!("{}-linux-gnu", std::env::consts::ARCH));
    [folder.to_owned(), asm, triplet].into_iter().filter(|path| path.is_dir()).collect()
}

/// Pairs ours with C's by name; what has no pair goes into `findings`, the rest becomes questions.
fn ask_about(names: &Names, with_test: bool, findings: &mut Findings) -> Vec<Question> {
    let mut questions = Vec::new();
    let compared = |module: &str| with_test || module != "iommufd::test";

    let mut claimed = BTreeSet::new();
    for ours in layout::structs().iter().filter(|ours| compared(ours.module)) {
        let Some(c) = c_struct(names, ours) else {
            findings.wrong.push(format!("{}::{} is in no header", ours.module, ours.name));
            continue;
        };
        claimed.insert(c.clone());
        ask_about_struct(names, ours, &c, &mut questions, findings);
    }
    let unclaimed = names.structs.keys().filter(|name| !claimed.contains(*name));
    findings.missing.extend(unclaimed.map(|name| format!("struct {name}")));

    let mut claimed = BTreeSet::new();
    for ours in layout::constants().into_iter().filter(|ours| compared(ours.module)) {
        let what = format!("{}::{}", ours.module, ours.name);
        let candidates = c_constants(ours.module, ours.name);
        let mut found = candidates.into_iter().filter(|name| names.constants.contains(name));
        match (found.next(), found.next()) {
            (Some(name), None) => {
                let expression = name.clone();
                questions.push(Question { what, expression, ours: ours.value });
                claimed.insert(name);
            }
            (None, _) => findings.wrong.push(format!("{what} is in no header")),
            (Some(a), Some(b)) => findings.wrong.push(format!("{what} may be {a} or {b}")),
        }
    }
    let unclaimed = names.constants.iter().filter(|name| !claimed.contains(*name));
    findings.missing.extend(unclaimed.cloned());
    let functions = names.functions.iter().filter(|name| !FUNCTIONS.contains(&name.as_str()));
    findings.missing.extend(functions.map(|name| format!("{name}(..)")));
    questions
}

/// Asks about the size of one struct and each of its fields, and accounts for every C field.
fn ask_about_struct(
    names: &Names,
    ours: &Struct,
    c: &str,
    questions: &mut Vec<Question>,
    findings: &mut Findings,
) {
    let what = format!("{}::{}", ours.module, ours.name);
    let place = Place::of(c);
    questions.push(Question {
        what: format!("size of {what}"),
        expression: format!("sizeof({})", place.object()),
        ours: Value::count(ours.size),
    });

    let members = &names.structs[c];
    let mut claimed = BTreeSet::new();
    for field in &ours.fields {
        let c_names = c_fields(field);
        if field.name.starts_with("__padding") {
            continue;
        }
        for name in &c_names {
            if members.iter().any(|member| member.name == *name) {
                claimed.insert(*name);
            } else {
                findings.wrong.push(format!("{what}.{}: struct {c} has no {name}", field.name));
            }
        }
        if c_names.iter().all(|name| claimed.contains(name)) {
            ask_about_field(&format!("{what}.{}", field.name), field, &place, &c_names, questions);
        }
    }
    for member in members.iter().filter(|member| !claimed.contains(member.name.as_str())) {
        if member.flexible {
            questions.push(Question {
                what: format!("what follows {what}"),
                expression: place.offset(&member.name),
                ours: Value::count(ours.size),
            });
        } else {
            findings.missing.push(format!("struct {c}: field {}", member.name));
        }
    }
}

fn ask_about_field(
    what: &str,
    field: &Field,
    place: &Place<'_>,
    c_names: &[&str],
    questions: &mut Vec<Question>,
) {
    for name in c_names {
        questions.push(Question {
            what: format!("offset of {what}"),
            expression: place.offset(name),
            ours: Value::count(field.offset),
        });
    }
    // The members of a union, as one: its size is that of the largest.
    let member = |name: &&str| format!("__typeof__({}.{name}) {name};", place.object());
    let members: Vec<String> = c_names.iter().map(member).collect();
    questions.push(Question {
        what: format!("size of {what}"),
        expression: format!("sizeof(union {{ {} }})", members.join(" ")),
        ours: Value::count(field.size),
    });
    if let (Some(signed), [name]) = (field.signed, c_names) {
        let of = format!("__typeof__({}.{name})", place.object());
        questions.push(Question {
            what: format!("signedness of {what}"),
            expression: format!("({of})-1 < ({of})0"),
            ours: Value::from(u32::from(signed)),
        });
    }
}

/// How C names a struct that may be an anonymous member of another.
struct Place<'c> {
    outer: &'c str,
    member: Option<&'c str>,
}

impl<'c> Place<'c> {
    fn of(c: &'c str) -> Self {
        match c.split_once('.') {
            Some((outer, member)) => Self { outer, member: Some(member) },
            None => Self { outer: c, member: None },
        }
    }

    /// An expression of the struct's type, never evaluated.
    fn object(&self) -> String {
        let pointer = format!("(*(struct {} *)0)", self.outer);
        match self.member {
            Some(member) => format!("{pointer}.{member}"),
            None => pointer,
        }
    }

    /// Offset of a field from the start of the struct.
    fn offset(&self, field: &str) -> String {
        let outer = self.outer;
        match self.member {
            Some(member) => format!(
                "offsetof(struct {outer}, {member}.{field}) - offsetof(struct {outer}, {member})"
            ),
            None => format!("offsetof(struct {outer}, {field})"),
        }
    }
}

/// The C struct that `ours` describes, by alias or by the naming rule.
fn c_struct(names: &Names, ours: &Struct) -> Option<String> {
    let candidates = match ours.alias {
        Some(alias) => vec![alias.to_owned()],
        None => {
            let snake = snake(ours.name);
            let prefixes: &[&str] =
                if ours.module == "vfio" { &["vfio_"] } else { &["iommu_", "iommufd_"] };
            prefixes.iter().map(|prefix| format!("{prefix}{snake}")).collect()
        }
    };
    candidates.into_iter().find(|name| names.structs.contains_key(name))
}

/// The C names of a field: its aliases, or its own name without the `_` that keeps it from being a
/// keyword.
fn c_fields(field: &Field) -> Vec<&'static str> {
    if field.aliases.is_empty() {
        vec![field.name.strip_suffix('_').unwrap_or(field.name)]
    } else {
        field.aliases.to_vec()
    }
}

/// The C names a constant of ours may have.
fn c_constants(module: &str, name: &str) -> Vec<String> {
    let prefixes: &[&str] = match module {
        "vfio" => &["VFIO_"],
        "iommufd::test" => &["IOMMU_", ""],
        _ => &["IOMMU_", "IOMMUFD_"],
    };
    let (underscores, rest) = name.split_at(name.len() - name.trim_start_matches('_').len());
    prefixes.iter().map(|prefix| format!("{underscores}{prefix}{rest}")).collect()
}

/// `HwptVtdS1` to `hwpt_vtd_s1`.
fn snake(camel: &str) -> String {
    let mut snake = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn report(names: &Names, questions: usize, findings: &Findings, pinned: bool) -> Result<()> {
    for wrong in &findings.wrong {
        println!("differs: {wrong}");
    }
    let word = if pinned { "missing" } else { "addition" };
    for missing in &findings.missing {
        println!("{word}: {missing}");
    }
    println!(
        "uapi-check: {} structs and {} constants in the headers; {questions} sizes, offsets and values compared; \
         {} differ, {} {word}",
        names.structs.len(),
        names.constants.len(),
        findings.wrong.len(),
        findings.missing.len(),
    );
    if !findings.wrong.is_empty() || (pinned && !findings.missing.is_empty()) {
        bail!("uapi is not what the headers say");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_naming_rule_gives_c_names() {
        assert_eq!(snake("IommuType1DmaMap"), "iommu_type1_dma_map");
        assert_eq!(snake("HwptVtdS1"), "hwpt_vtd_s1");
        assert_eq!(c_constants("iommufd", "IOAS_MAP"), ["IOMMU_IOAS_MAP", "IOMMUFD_IOAS_MAP"]);
        assert_eq!(c_constants("vfio", "__RESERVED_X"), ["__VFIO_RESERVED_X"]);
    }

    #[test]
    fn what_a_header_has_more_is_missing_and_what_it_lacks_is_wrong() {
        let text =
            "# 1 \"linux/vfio.h\"\n#define VFIO_NOVELTY 1\nstruct vfio_novelty { int x; };\n";
        let names = Names::read(text, &["linux/vfio.h"]).expect("it parses");
        let mut findings = Findings::default();
        let questions = ask_about(&names, false, &mut findings);
        assert!(questions.is_empty());
        assert_eq!(findings.missing, ["struct vfio_novelty", "VFIO_NOVELTY"]);
        assert!(findings.wrong.contains(&"iommufd::IoasMap is in no header".to_owned()));
        assert!(findings.wrong.contains(&"vfio::IOMMU_MAP_DMA is in no header".to_owned()));
        assert!(report(&names, 0, &findings, true).is_err());
    }

    #[test]
    fn an_addition_fails_only_with_the_pinned_release() {
        let findings = Findings { missing: vec!["VFIO_NOVELTY".to_owned()], ..Findings::default() };
        assert!(report(&Names::default(), 0, &findings, true).is_err());
        assert!(report(&Names::default(), 0, &findings, false).is_ok());
    }
}
