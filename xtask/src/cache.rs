//! Where what is fetched is kept: below the user's cache folder, so that clones share it, and so
//! that it lies where no other user may write. DPDK loads no driver from below a folder that
//! everybody may write to, and a clone may well lie in /tmp.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Everybody may write (S_IWOTH).
const WORLD_WRITABLE: u32 = 0o002;

/// The first folder that this user can have for itself: `ioasis` below $XDG_CACHE_HOME or ~/.cache,
/// or else below `target`.
pub(crate) fn folder(target: &Path) -> PathBuf {
    let set = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let homes = [set("XDG_CACHE_HOME"), set("HOME").map(|home| home.join(".cache"))];
    choose(homes.into_iter().flatten().map(|home| home.join("ioasis")))
        .unwrap_or_else(|| target.join("fetched"))
}

/// The first that is there, or can be made, and that others cannot change.
fn choose(mut folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    folders.find(|folder| ours_alone(folder).is_ok())
}

fn ours_alone(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let made = trial(folder);
    fs::write(&made, "")?;
    fs::remove_file(&made)?;
    ensure_trusted(folder)
}

/// A name that no other process takes.
fn trial(folder: &Path) -> PathBuf {
    folder.join(format!(".writable-{}", std::process::id()))
}

/// An error unless no folder above `path`, nor itself, may be written to by everybody.
pub(crate) fn ensure_trusted(path: &Path) -> Result<()> {
    let path = path.canonicalize().with_context(|| format!("{} is not there", path.display()))?;
    for folder in path.ancestors() {
        let mode = fs::metadata(folder)?.mode();
        ensure!(
            mode & WORLD_WRITABLE == 0,
            "everybody may write to {} (mode {:o}), so nothing below it is trusted; set XDG_CACHE_HOME to a \
             folder elsewhere",
            folder.display(),
            mode & 0o7777
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder of a test's own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let path = env::temp_dir().join(format!("ioasis-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_folder_below_one_that_everybody_may_write_to_is_refused_by_name() {
        let folder = Folder::new("trust");
        let inner = folder.0.join("open/inner");
        fs::create_dir_all(&inner).expect("folders");
        let open = folder.0.join("open");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).expect("ours");
        let error = ensure_trusted(&inner).expect_err("a sticky bit does not help");
        let said = format!("everybody may write to {} (mode 1777)", open.display());
        assert!(error.to_string().starts_with(&said), "{error}");
        ensure_trusted(Path::new("/usr/bin")).expect("only root may write there");
    }

    #[test]
    fn a_folder_that_cannot_be_had_is_passed_over() {
        let folder = Folder::new("choice");
        fs::write(folder.0.join("file"), "").expect("a file");
        let open = folder.0.join("open");
        fs::create_dir(&open).expect("a folder");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("ours");
        let bad = [folder.0.join("file/below"), open];
        assert_eq!(choose(bad.into_iter()), None, "then it lies below the target folder");
        let left = fs::read_dir(folder.0.join("open")).expect("it is there").count();
        assert_eq!(left, 0, "the trial file is gone");
    }
}
