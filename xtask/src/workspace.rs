//! Where the repository and its build outputs are.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process;

/// The workspace, as cargo sees it.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Its root folder.
    pub(crate) root: PathBuf,
    /// Its target folder.
    pub(crate) target: PathBuf,
    /// Every bench target as (package, bench).
    pub(crate) benches: Vec<(String, String)>,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let arguments = ["metadata", "--no-deps", "--format-version", "1"];
        let text = process::output(cargo().args(arguments))?;
        Self::read(&serde_json::from_str(&text)?).context("cargo metadata has another shape")
    }

    fn read(metadata: &Value) -> Option<Self> {
        let path = |key: &str| metadata[key].as_str().map(PathBuf::from);
        let mut benches = Vec::new();
        for package in metadata["packages"].as_array()? {
            for target in package["targets"].as_array()? {
                if target["kind"].as_array()?.iter().any(|kind| kind == "bench") {
                    benches.push((name(package)?, name(target)?));
                }
            }
        }
        Some(Self { root: path("workspace_root")?, target: path("target_directory")?, benches })
    }

    /// A cargo command at the root.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = cargo();
        cargo.current_dir(&self.root);
        cargo
    }
}

fn name(item: &Value) -> Option<String> {
    item["name"].as_str().map(str::to_owned)
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benches_are_found_among_the_targets() {
        let metadata = serde_json::json!({
            "workspace_root": "/w", "target_directory": "/w/target",
            "packages": [{ "name": "a", "targets": [
                { "name": "a", "kind": ["lib"] }, { "name": "walk", "kind": ["bench"] },
            ]}],
        });
        let workspace = Workspace::read(&metadata).expect("it is cargo's shape");
        assert_eq!(workspace.benches, [("a".to_owned(), "walk".to_owned())]);
        assert_eq!(workspace.target, PathBuf::from("/w/target"));
    }
}
