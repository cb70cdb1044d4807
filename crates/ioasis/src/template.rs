//! `ioasis new`: a project with a device model of one's own.
//!
//! What it writes are the files of examples/ringsum and examples/ringsum-python, which CI builds and runs, with another name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// What `ioasis new` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct New {
    /// The folder to make; its last part is what the device and the project are called
    #[arg(value_name = "NAME")]
    folder: PathBuf,

    /// A device in Python, in a process of its own (vfio-user), in place of one in Rust
    #[arg(long)]
    python: bool,

    /// Build against the crates of this checkout of ioasis, in place of the version of this program
    #[arg(long, value_name = "CHECKOUT", conflicts_with = "python")]
    path: Option<PathBuf>,
}

/// The name that the template has.
const TEMPLATE: &str = "ringsum";
/// The dependency that it has.
const DEPENDENCY: &str = r#"{ path = "../../crates/ioasis" }"#;

const RUST: [(&str, &str); 6] = [
    ("Cargo.toml", include_str!("../template/rust/manifest.toml")),
    ("src/main.rs", include_str!("../template/rust/main.rs")),
    ("src/model.rs", include_str!("../template/rust/model.rs")),
    ("src/model/tests.rs", include_str!("../template/rust/tests.rs")),
    ("tests/run.rs", include_str!("../template/rust/run.rs")),
    ("driver.py", DRIVER),
];

const PYTHON: [(&str, &str); 2] =
    [("ringsum.py", include_str!("../template/python/ringsum.py")), ("driver.py", DRIVER)];

const DRIVER: &str = include_str!("../template/rust/driver.py");

/// Writes the project; what to do next.
pub(crate) fn write(new: &New) -> Result<String> {
    let folder = &new.folder;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let wanted = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
    ensure!(
        wanted,
        "{}: a name of a device is lowercase letters, digits, - and _, and begins with a letter",
        folder.display()
    );
    ensure!(
        ioasis_pci::models().iter().all(|model| model.name != name),
        "{name} is a device model of ioasis already; choose another name"
    );
    let dependency = dependency(new.path.as_deref())?;
    fs::create_dir(folder)
        .with_context(|| format!("{} cannot be made a new folder", folder.display()))?;
    let files: &[(&str, &str)] = if new.python { &PYTHON } else { &RUST };
    for (path, text) in files {
        let path = folder.join(path.replace(TEMPLATE, name));
        let text = text.replace(DEPENDENCY, &dependency).replace(TEMPLATE, name);
        let above = path.parent().context("a file is in a folder")?;
        fs::create_dir_all(above)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !new.python {
        let path = folder.join(".gitignore");
        fs::write(&path, "/target\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let folder = folder.display();
    Ok(if new.python {
        format!(
            "cd {folder}\npython3 {name}.py {name}.sock & sleep 1\nioasis run --device vfio-user,socket={name}.sock -- python3 driver.py\n"
        )
    } else {
        format!("cd {folder}\ncargo test\ncargo run -- run --device {name} -- python3 driver.py\n")
    })
}

/// What stands behind `ioasis =` in the project's Cargo.toml.
fn dependency(checkout: Option<&Path>) -> Result<String> {
    let Some(checkout) = checkout else {
        return Ok(format!("{:?}", env!("CARGO_PKG_VERSION")));
    };
    let here = || format!("--path {}", checkout.display());
    let package = checkout.join("crates/ioasis").canonicalize().with_context(here)?;
    ensure!(package.join("Cargo.toml").is_file(), "{} is no checkout of ioasis", here());
    let path = package.to_str().with_context(|| format!("{}: its name is no UTF-8", here()))?;
    Ok(format!("{{ path = {} }}", toml::Value::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_has_what_is_replaced() {
        let [(_, manifest), ..] = RUST;
        assert_eq!(manifest.matches(DEPENDENCY).count(), 1);
        for (path, text) in
            RUST.iter().chain(&PYTHON).filter(|(path, _)| *path != "src/model/tests.rs")
        {
            assert!(text.contains(TEMPLATE), "{path}");
        }
    }
}
