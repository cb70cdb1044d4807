//! Where the repository and its build outputs are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{cache, process};

/// The workspace, as cargo sees it.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// Its root folder.
    pub(crate) root: PathBuf,
    /// Its target folder.
    pub(crate) target: PathBuf,
    /// Where fetched packages and tools are.
    pub(crate) cache: PathBuf,
    /// Every bench target as (package, bench).
    pub(crate) benches: Vec<(String, String)>,
    /// The packages that are built with another scheduler behind their threads, by its
    /// configuration.
    pub(crate) schedulers: BTreeMap<&'static str, Vec<String>>,
    /// Every fuzz target, by name.
    pub(crate) fuzz_targets: Vec<String>,
    /// The folders of the projects under examples/.
    pub(crate) example_projects: Vec<PathBuf>,
}

/// The configurations that replace locks and threads. A package that has tests for one depends on
/// the crate behind it under `[target.'cfg(..)'.dependencies]`.
const SCHEDULERS: [&str; 2] = ["ioasis_shuttle", "loom"];

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let arguments = ["metadata", "--no-deps", "--format-version", "1"];
        let text = process::output(cargo().args(arguments))?;
        let mut workspace = Self::read(&serde_json::from_str(&text)?)
            .context("cargo metadata has another shape")?;
        workspace.cache = cache::folder(&workspace.target);
        workspace.fuzz_targets = workspace.find_fuzz_targets()?;
        workspace.example_projects = workspace.find_example_projects()?;
        Ok(workspace)
    }

    /// The programs in fuzz/fuzz_targets, which cargo-fuzz names after their files.
    fn find_fuzz_targets(&self) -> Result<Vec<String>> {
        let folder = self.root.join("fuzz/fuzz_targets");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs")
                && let Some(stem) = path.file_stem()
            {
                names.push(stem.to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The folders of examples/ that have a Cargo.toml.
    fn find_example_projects(&self) -> Result<Vec<PathBuf>> {
        let mut projects = Vec::new();
        for entry in fs::read_dir(self.root.join("examples"))? {
            let path = entry?.path();
            projects.extend(path.join("Cargo.toml").is_file().then_some(path));
        }
        projects.sort();
        Ok(projects)
    }

    fn read(metadata: &Value) -> Option<Self> {
        let path = |key: &str| metadata[key].as_str().map(PathBuf::from);
        let mut benches = Vec::new();
        let mut schedulers = BTreeMap::<_, Vec<_>>::new();
        for package in metadata["packages"].as_array()? {
            for scheduler in SCHEDULERS {
                let target = format!("cfg({scheduler})");
                let mut dependencies = package["dependencies"].as_array()?.iter();
                if dependencies.any(|dependency| dependency["target"] == target.as_str()) {
                    schedulers.entry(scheduler).or_default().push(name(package)?);
                }
            }
            for target in package["targets"].as_array()? {
                if target["kind"].as_array()?.iter().any(|kind| kind == "bench") {
                    benches.push((name(package)?, name(target)?));
                }
            }
        }
        Some(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            cache: PathBuf::new(),
            benches,
            schedulers,
            fuzz_targets: Vec::new(),
            example_projects: Vec::new(),
        })
    }

    /// Where cargo subcommands that a task installed are.
    pub(crate) fn tools(&self) -> PathBuf {
        self.cache.join("tools")
    }

    /// A cargo command at the root, which finds the subcommands a task installed.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = cargo();
        cargo.current_dir(&self.root);
        let mut path = env::var_os("PATH").unwrap_or_default();
        path.push(":");
        path.push(self.tools().join("bin"));
        cargo.env("PATH", path);
        cargo
    }
}

fn name(item: &Value) -> Option<String> {
    item["name"].as_str().map(str::to_owned)
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn benches_and_schedulers_are_found_in_the_metadata() {
        let metadata = serde_json::json!({
            "workspace_root": "/w", "target_directory": "/w/target",
            "packages": [{
                "name": "a",
                "targets": [{ "name": "a", "kind": ["lib"] }, { "name": "walk", "kind": ["bench"] }],
                "dependencies": [{ "target": null }, { "target": "cfg(loom)" }],
            }],
        });
        let workspace = Workspace::read(&metadata).expect("it is cargo's shape");
        assert_eq!(workspace.benches, [("a".to_owned(), "walk".to_owned())]);
        assert_eq!(workspace.schedulers, BTreeMap::from([("loom", vec!["a".to_owned()])]));
        assert_eq!(workspace.target, PathBuf::from("/w/target"));
    }
}
