//! Lines of comment that are too wide.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// Every Rust file below `folder`, but for what is built.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "target" && name != ".git" {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// Folders whose older comments are wider: each goes from the list when its comments are wrapped.
const OLDER: [&str; 5] =
    ["crates/ioasis/", "crates/pci/", "crates/supervisor/", "crates/sys/", "crates/vfio-user/"];

/// `file:line` of every line of comment with more than `width` columns.
pub(super) fn too_wide(root: &Path, width: usize) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "tests", "fuzz"] {
        sources(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        if OLDER.iter().any(|folder| name.starts_with(folder)) {
            continue;
        }
        let text = fs::read_to_string(&file)?;
        found.extend(wide_lines(&text, width).map(|number| format!("{name}:{number}")));
    }
    Ok(found)
}

/// The numbers of the lines of `text` that are too wide. An example in documentation is code, which
/// is not judged here.
fn wide_lines(text: &str, width: usize) -> impl Iterator<Item = usize> {
    let mut in_example = false;
    (1..).zip(text.lines()).filter_map(move |(number, line)| {
        let comment = line.trim_start().strip_prefix("//");
        let fence =
            comment.is_some_and(|text| text.trim_start_matches(['/', '!', ' ']).starts_with("```"));
        in_example = comment.is_some() && (in_example != fence);
        (!in_example && is_too_wide(line, width)).then_some(number)
    })
}

/// A line that cannot be broken, a table's row or one long word, may be as wide as it must.
fn is_too_wide(line: &str, width: usize) -> bool {
    let text = line.trim_start();
    if !text.starts_with("//") || line.chars().count() <= width {
        return false;
    }
    let words = text.trim_start_matches(['/', '!', ' ']);
    !words.starts_with('|') && words.contains(' ') && !words.starts_with('[')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_comments_that_could_be_broken_are_too_wide() {
        let long = "word ".repeat(30);
        assert!(is_too_wide(&format!("    /// {long}"), 100));
        assert!(!is_too_wide(&format!("    let text = \"{long}\";"), 100), "rustfmt judges code");
        assert!(!is_too_wide(&format!("//! | {long}|"), 100), "a row of a table is one line");
        assert!(!is_too_wide(&format!("// {}", "x".repeat(120)), 100), "one word is one line");
        assert!(!is_too_wide("/// short", 100));
        let example = format!("/// ```\n/// {long}\n/// ```\n/// {long}\nfn f() {{}}\n// {long}");
        assert_eq!(wide_lines(&example, 100).collect::<Vec<_>>(), [4, 6]);
    }
}
