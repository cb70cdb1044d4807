//! Claims of the documentation that can be looked up.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every Rust file below `folder`.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The words between backquotes that are sentences: what tests are called.
fn sentences(text: &str) -> BTreeSet<&str> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_sentence = |word: &&str| {
        let letter = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        word.matches('_').count() >= 3 && word.chars().all(|c| letter(c) || c == '_')
    };
    quoted.filter(is_sentence).collect()
}

#[test]
fn every_test_that_the_rows_of_uapi_name_exists() {
    let text = fs::read_to_string(root().join("docs/uapi.md")).expect("docs/uapi.md");
    let mut files = Vec::new();
    ["crates", "tests"].iter().for_each(|folder| sources(&root().join(folder), &mut files));
    let code: Vec<String> =
        files.iter().map(|file| fs::read_to_string(file).expect("a source")).collect();
    let named = sentences(&text);
    assert!(named.len() > 40, "the rows name their tests: {}", named.len());
    let is_there = |name: &str| code.iter().any(|code| code.contains(&format!("fn {name}(")));
    let missing: Vec<_> = named.into_iter().filter(|name| !is_there(name)).collect();
    assert_eq!(missing, Vec::<&str>::new(), "no such tests");
    let suites = text.split(|c: char| c.is_whitespace() || ",|;`".contains(c));
    for file in
        suites.filter_map(|word| word.strip_prefix("suite/")).filter(|file| !file.is_empty())
    {
        let path = root().join("crates/vfio/tests/suite").join(file);
        assert!(path.is_file(), "{} is no file", path.display());
    }
}
