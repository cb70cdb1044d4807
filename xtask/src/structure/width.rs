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

/// `file:line` of every line of comment with more than `width` columns.
pub(super) fn too_wide(root: &Path, width: usize) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for folder in ["crates", "xtask", "tests", "fuzz"] {
        sources(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let name = file.strip_prefix(root).unwrap_or(&file).display();
        let wide = text.lines().enumerate().filter(|(_, line)| is_too_wide(line, width));
        found.extend(wide.map(|(number, _)| format!("{name}:{}", number + 1)));
    }
    Ok(found)
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
    }
}
