//! Packages of Debian's archive, unpacked in the user's cache: nothing is installed, no apt setting
//! changes.
//!
//! Clones share them: whoever fetches holds a lock on the archive's folder, and what is unpacked
//! never changes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// The suites that carry current kernels.
const KERNELS: Suites = Suites(&["sid", "trixie-backports"]);
/// What Debian's next release is made of.
pub(crate) const SID: Suites = Suites(&["sid"]);
/// Debian 12.
pub(crate) const BOOKWORM: Suites = Suites(&["bookworm"]);
/// Debian 13 with what is newer in its backports.
pub(crate) const BACKPORTS: Suites = Suites(&["trixie", "trixie-backports"]);

/// What apt checks their signatures against.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Suites of the archive; a package is taken from the last that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suites(&'static [&'static str]);

/// A package at a version, or at the newest one of the same series if the archive dropped that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// Package name.
    pub(crate) package: &'a str,
    /// The version wanted.
    pub(crate) pin: &'a str,
    /// What every acceptable version starts with.
    pub(crate) series: &'a str,
}

/// An unpacked package.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Its version.
    pub(crate) version: String,
    /// The folder its files are in, as they would be in `/`.
    pub(crate) root: PathBuf,
}

/// Programs and every package they depend on, unpacked together.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
}

/// apt with lists and cache of its own.
#[derive(Debug)]
pub(crate) struct Archive {
    folder: PathBuf,
    suites: Suites,
}

impl Archive {
    /// The archive of current kernels; nothing is fetched yet.
    pub(crate) fn new(workspace: &Workspace) -> Result<Self> {
        Self::of(workspace, KERNELS)
    }

    /// The archive of `suites`.
    pub(crate) fn of(workspace: &Workspace, suites: Suites) -> Result<Self> {
        let folder = workspace.cache.join("debian").join(suites.0.join("+"));
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        Ok(Self { folder, suites })
    }

    /// Until it is dropped no other process fetches into this folder.
    fn lock(&self) -> Result<File> {
        let file = File::create(self.folder.join("lock"))?;
        file.lock().context("the folder of fetched packages could not be locked")?;
        Ok(file)
    }

    /// `packages` with all they depend on, as they are when first asked for.
    pub(crate) fn tree(&self, packages: &[&str]) -> Result<Tree> {
        // Another list is another folder: a clone at another commit may be using this one.
        let (root, list) = (self.folder.join(packages.join("+")), packages.join(" "));
        let _lock = self.lock()?;
        if root.is_dir() {
            return Ok(Tree { root });
        }
        self.update()?;
        println!("fetching {list} and what they depend on ({})", self.goes());
        let work = self.folder.join("partial");
        let _ = fs::remove_dir_all(&work);
        let (debs, unpacked) = (work.join("debs"), work.join("root"));
        fs::create_dir_all(debs.join("partial"))?;
        let suite = self.suites.0.last().context("an archive has suites")?;
        let mut apt = self.apt("apt-get");
        apt.arg("-o").arg(format!("Dir::Cache::Archives={}", debs.display()));
        apt.args(["-q", "-y", "--no-install-recommends", "--download-only", "-t", suite]);
        process::run(apt.arg("install").args(packages))?;
        for entry in fs::read_dir(&debs)? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                process::output(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
            }
        }
        fs::rename(&unpacked, &root)?;
        fs::remove_dir_all(&work)?;
        Ok(Tree { root })
    }

    /// The pinned version, or the newest of its series if the archive no longer serves it.
    pub(crate) fn fetch(&self, wanted: &Wanted<'_>) -> Result<Fetched> {
        let _lock = self.lock()?;
        if let Some(fetched) = self.unpacked(wanted.package, wanted.pin) {
            return Ok(fetched);
        }
        self.update()?;
        let served = self.served(wanted.package)?;
        let version = choose(&served, wanted)?;
        if version != wanted.pin {
            println!("{} {} is no longer served; taking {version}", wanted.package, wanted.pin);
        }
        // An earlier fetch may have taken it in the pin's place.
        if let Some(fetched) = self.unpacked(wanted.package, &version) {
            return Ok(fetched);
        }
        self.download(wanted.package, &version)
    }

    /// Exactly this version.
    pub(crate) fn fetch_version(&self, package: &str, version: &str) -> Result<Fetched> {
        let _lock = self.lock()?;
        if let Some(fetched) = self.unpacked(package, version) {
            return Ok(fetched);
        }
        self.update()?;
        self.download(package, version)
    }

    fn unpacked(&self, package: &str, version: &str) -> Option<Fetched> {
        let root = self.root(package, version);
        root.is_dir().then(|| Fetched { version: version.to_owned(), root })
    }

    fn root(&self, package: &str, version: &str) -> PathBuf {
        self.folder.join(format!("{package}_{version}"))
    }

    /// Where packages go, in words.
    fn goes(&self) -> String {
        format!("unpacked below {}, not installed", self.folder.display())
    }

    fn update(&self) -> Result<()> {
        fs::write(self.folder.join("sources.list"), sources(&mirror()?, self.suites))?;
        println!("fetching Debian's package lists into {}", self.folder.display());
        process::run(self.apt("apt-get").args(["-q", "update"])).with_context(|| {
            format!("apt-get could not fetch the package lists of {}", self.suites.0.join(", "))
        })
    }

    /// Every version the archive serves, newest first as apt lists them.
    fn served(&self, package: &str) -> Result<Vec<String>> {
        let table = process::output(self.apt("apt-cache").args(["madison", package]))?;
        Ok(versions(&table))
    }

    fn download(&self, package: &str, version: &str) -> Result<Fetched> {
        let work = self.folder.join("download");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        println!("fetching {package} {version} ({})", self.goes());
        let wanted = format!("{package}={version}");
        process::run(self.apt("apt-get").args(["-q", "download", &wanted]).current_dir(&work))?;
        let deb = only_file(&work)?;

        let (root, partial) = (self.root(package, version), work.join("root"));
        process::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&partial))?;
        fs::rename(&partial, &root)?;
        fs::remove_dir_all(&work)?;
        Ok(Fetched { version: version.to_owned(), root })
    }

    /// An apt program that reads and writes nothing of the system's but its keyring.
    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        let path = |name: &str| self.folder.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", path("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", path("lists")),
            "Dir::State::Status=/dev/null".to_owned(),
            format!("Dir::Cache={}", path("cache")),
            "Dir::Log=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Debug::NoLocking=true".to_owned(),
        ];
        for option in options {
            apt.arg("-o").arg(option);
        }
        apt
    }
}

impl Tree {
    /// Where libraries are.
    const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

    /// What is installed on this system.
    pub(crate) fn system() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// A file of the packages.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The folders libraries are in.
    pub(crate) fn libraries(&self) -> Vec<PathBuf> {
        Self::LIBRARIES.iter().map(|folder| self.path(folder)).collect()
    }

    /// The only file in `folder` whose name begins with `prefix`.
    pub(crate) fn one(&self, folder: &str, prefix: &str) -> Result<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path(folder))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                found.push(entry.path());
            }
        }
        match <[PathBuf; 1]>::try_from(found) {
            Ok([path]) => Ok(path),
            Err(found) => bail!("{folder} holds {} files {prefix}*, not one", found.len()),
        }
    }

    /// The words that start a program of the packages with their own libraries.
    pub(crate) fn program(&self, name: &str) -> Result<Vec<OsString>> {
        let folders = ["usr/bin", "usr/sbin", "bin", "sbin"];
        let mut paths = folders.iter().map(|folder| self.path(folder).join(name));
        let path = paths.find(|path| path.is_file());
        let path = path.with_context(|| format!("{} holds no {name}", self.root.display()))?;
        self.with_libraries(&path)
    }

    /// The words that start the program at `path` with the libraries of the packages.
    pub(crate) fn with_libraries(&self, path: &Path) -> Result<Vec<OsString>> {
        let mut loaders =
            self.libraries().into_iter().map(|path| path.join("ld-linux-x86-64.so.2"));
        let loader = loaders.find(|path| path.is_file()).context("the packages hold no loader")?;
        let libraries = std::env::join_paths(self.libraries())?;
        Ok(vec![loader.into(), "--library-path".into(), libraries, path.into()])
    }
}

/// The version column of `apt-cache madison`.
fn versions(madison: &str) -> Vec<String> {
    let column = |line: &str| line.split('|').nth(1).map(|version| version.trim().to_owned());
    madison.lines().filter_map(column).collect()
}

/// The pin if served, else the first (newest) of the series.
fn choose(served: &[String], wanted: &Wanted<'_>) -> Result<String> {
    let pin = served.iter().find(|version| **version == wanted.pin);
    let series = || served.iter().find(|version| version.starts_with(wanted.series));
    match pin.or_else(series) {
        Some(version) => Ok(version.clone()),
        None => bail!(
            "Debian serves no {} {}x any more, only {}",
            wanted.package,
            wanted.series,
            if served.is_empty() { "nothing".to_owned() } else { served.join(", ") }
        ),
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(folder)?;
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(file?.path()),
        _ => bail!("{} holds not exactly one file", folder.display()),
    }
}

/// The mirror that this system gets Debian from.
pub(crate) fn mirror() -> Result<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)"]);
    let targets = apt.output().context("apt-get does not run; this needs a Debian system")?;
    choose_mirror(&String::from_utf8_lossy(&targets.stdout))
        .context("apt knows no Debian mirror: /etc/apt/sources.list* name none")
}

/// Finds the mirror among lines of an origin, which may not be known yet, and an address.
fn choose_mirror(targets: &str) -> Option<String> {
    let mut mirrors =
        targets.lines().filter_map(|line| line.split_once(' ')).filter(|&(origin, address)| {
            let named = address.trim_end_matches('/').ends_with("/debian");
            !address.contains("security") && (origin == "Debian" || origin.is_empty() && named)
        });
    mirrors.next().map(|(_, address)| address.to_owned())
}

/// The lines of a sources.list.
fn sources(mirror: &str, suites: Suites) -> String {
    let line = |suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    suites.0.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> =
        Wanted { package: "linux-libc-dev", pin: "7.2.13-1", series: "7.2." };

    fn served(list: &[&str]) -> Vec<String> {
        list.iter().map(|version| (*version).to_owned()).collect()
    }

    #[test]
    fn the_table_of_versions_is_read() {
        let table = "linux-libc-dev | 7.3.4-1~bpo13+1 | http://x trixie-backports/main amd64 Packages\n\
                     linux-libc-dev |  7.2.13-1 | http://x sid/main amd64 Packages\n";
        assert_eq!(versions(table), ["7.3.4-1~bpo13+1", "7.2.13-1"]);
    }

    #[test]
    fn the_pin_is_taken_before_the_newest_of_its_series() {
        let all = served(&["7.3.4-1~bpo13+1", "7.2.14-1", "7.2.13-1"]);
        assert_eq!(choose(&all, &WANTED).expect("served"), "7.2.13-1");
        assert_eq!(choose(&all[..2], &WANTED).expect("same series"), "7.2.14-1");
    }

    #[test]
    fn a_series_that_is_gone_is_an_error_that_says_so() {
        let error = choose(&served(&["7.3.4-1"]), &WANTED).expect_err("no 7.2");
        assert_eq!(
            error.to_string(),
            "Debian serves no linux-libc-dev 7.2.x any more, only 7.3.4-1"
        );
    }

    #[test]
    fn the_mirror_is_debians_own_and_not_that_of_its_security_updates() {
        let targets = "Docker https://a.example/debian/\nDebian http://b.example/debian-security/\n\
                       Debian http://b.example/debian/\n";
        assert_eq!(choose_mirror(targets).as_deref(), Some("http://b.example/debian/"));
        assert_eq!(
            choose_mirror(" http://c.example/debian\n").as_deref(),
            Some("http://c.example/debian")
        );
        assert_eq!(choose_mirror(" https://d.example/other\n"), None);
    }
}
