//! The rows of docs/map.md: both ends of each exist.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// A row: a function of the kernel and one of ours.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    kernel_file: &'a str,
    kernel: &'a str,
    file: &'a str,
    function: &'a str,
}

/// The rows of the tables, each below a heading that names the kernel's file.
fn rows(text: &str) -> Vec<Row<'_>> {
    let mut kernel_file = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            kernel_file = heading.trim();
        }
        let mut cells = line.split('`').skip(1).step_by(2);
        let (Some(kernel), Some(ours)) = (cells.next(), cells.next()) else { continue };
        if let Some((file, function)) = ours.split_once("::").filter(|_| line.starts_with("| `")) {
            found.push(Row { kernel_file, kernel, file, function });
        }
    }
    found
}

/// Whether `text` defines a function of ours called `name`.
fn defines(text: &str, name: &str) -> bool {
    let after = |rest: &str| rest.starts_with(['(', '<']);
    text.match_indices(&format!("fn {name}")).any(|(at, found)| after(&text[at + found.len()..]))
}

/// Whether C source defines a function called `name`: a line that begins at the margin has it
/// before a parenthesis, and no semicolon ends what follows before a brace opens.
fn defines_in_c(text: &str, name: &str) -> bool {
    text.match_indices(&format!("{name}(")).any(|(at, found)| {
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let before = &text[line..at];
        let whole = before.is_empty() || before.ends_with([' ', '*', '\t']);
        let at_margin = !before.starts_with([' ', '\t', '#', '/']);
        let after = &text[at + found.len()..];
        let opens = after.find('{').unwrap_or(usize::MAX);
        whole && at_margin && opens < after.find(';').unwrap_or(usize::MAX)
    })
}

/// What is wrong with the map: an end that does not exist. The kernel's ends are looked at where
/// its sources are.
pub(super) fn faults(root: &Path, linux: Option<&Path>) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join("docs/map.md")).context("docs/map.md")?;
    let mut faults = Vec::new();
    for row in rows(&text) {
        let ours = fs::read_to_string(root.join(row.file)).unwrap_or_default();
        if !defines(&ours, row.function) {
            faults.push(format!("docs/map.md: no {}::{}", row.file, row.function));
        }
        let Some(linux) = linux else { continue };
        let theirs = fs::read_to_string(linux.join(row.kernel_file)).unwrap_or_default();
        if !defines_in_c(&theirs, row.kernel) {
            faults.push(format!("docs/map.md: no {}:{}", row.kernel_file, row.kernel));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_below_its_file_and_its_ends_are_told_from_calls() {
        let text = "## a/b.c\n\n| kernel | here |\n|---|---|\n| `f` | `crates/x.rs::g` |\nsee `f` and `h::i`\n";
        let row = Row { kernel_file: "a/b.c", kernel: "f", file: "crates/x.rs", function: "g" };
        assert_eq!(rows(text), [row]);
        assert!(defines("pub(crate) fn g<T>(", "g") && !defines("fn go(", "g"));
        assert!(defines_in_c("static int f(int a,\n\t\t int b)\n{\n}", "f"));
        assert!(!defines_in_c("int f(int a);\n\nint g(void)\n{\n\treturn f(1);\n}", "f"));
    }

    #[test]
    fn the_map_has_at_least_150_rows_and_our_end_of_each_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
        let text = fs::read_to_string(root.join("docs/map.md")).unwrap();
        assert!(rows(&text).len() >= 150);
        assert_eq!(faults(root, None).unwrap(), Vec::<String>::new());
    }
}
