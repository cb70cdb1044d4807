//! `cargo xtask dist`: what people install, as files: a static program, a tarball, a Debian
//! package, and their checksums.
//!
//! The same commit gives the same bytes: paths are mapped away, times are the commit's, owners are
//! root, and entries are in the order of their names. `--twice` builds in two folders and compares;
//! `--install` installs the package in fresh systems and runs the demo there.

mod roots;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process;
use crate::tools;
use crate::workspace::Workspace;

/// The target of the static program: glibc's, whose resolver and locales nothing here needs.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The largest a stripped program may be.
const LARGEST: u64 = 12 << 20;
const SHELLS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/ioasis"),
    ("zsh", "usr/share/zsh/vendor-completions/_ioasis"),
    ("fish", "usr/share/fish/vendor_completions.d/ioasis.fish"),
];
/// Documents that go into /usr/share/doc/ioasis.
const DOCUMENTS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// Arguments of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build twice, in two folders, and compare every byte
    #[arg(long)]
    twice: bool,
    /// Install the package in a fresh system of each release of Debian, run the demo there as root
    /// and as a plain user, and let lintian look at it; this takes root
    #[arg(long)]
    install: bool,
}

/// What is made, and from what.
struct Release<'a> {
    workspace: &'a Workspace,
    version: String,
    /// Seconds since 1970 of the commit.
    epoch: String,
}

pub(crate) fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    tools::ensure_programs(&[&tools::DPKG_DEB])?;
    let git = |words: &[&str]| {
        let text = process::output(Command::new("git").args(words).current_dir(&workspace.root));
        text.map(|text| text.trim().to_owned())
    };
    let release = Release {
        workspace,
        version: version(workspace)?,
        epoch: git(&["log", "-1", "--format=%ct"])?,
    };
    let folder = workspace.target.join("dist");
    let made = release.make(&workspace.target.join("dist-build"), &folder)?;
    if args.twice {
        let again = workspace.target.join("dist-again");
        release.make(&workspace.target.join("dist-build-again"), &again)?;
        for name in &made {
            let same = fs::read(folder.join(name))? == fs::read(again.join(name))?;
            ensure!(
                same,
                "{name} differs between two builds: see {} and {}",
                folder.display(),
                again.display()
            );
            println!("{name}: the same bytes twice");
        }
    }
    if args.install {
        for name in made.iter().filter(|name| name.ends_with(".deb")) {
            roots::install(workspace, &folder.join(name))?;
        }
    }
    for name in made {
        println!("{}", folder.join(name).display());
    }
    Ok(())
}

fn version(workspace: &Workspace) -> Result<String> {
    let text = fs::read_to_string(workspace.root.join("Cargo.toml"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(line.context("Cargo.toml has no version")?.trim_matches('"').to_owned())
}

impl Release<'_> {
    /// Makes everything in `folder`, which is emptied first; returns the names of the files.
    fn make(&self, build: &Path, folder: &Path) -> Result<Vec<String>> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
        let program = self.program(build)?;
        let tree = folder.join("tree");
        self.install(&program, &tree)?;
        let names = [
            self.tarball(&tree, folder)?,
            self.package(&tree, folder)?,
            self.alone(&program, folder)?,
        ];
        fs::remove_dir_all(tree)?;
        let mut sums = Command::new("sha256sum");
        fs::write(
            folder.join("SHA256SUMS"),
            process::output(sums.args(&names).current_dir(folder))?,
        )?;
        Ok(names.into_iter().chain(["SHA256SUMS".to_owned()]).collect())
    }

    /// The static, stripped program.
    fn program(&self, build: &Path) -> Result<PathBuf> {
        let home = std::env::var("CARGO_HOME")
            .or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"));
        let flags = format!(
            "-C target-feature=+crt-static -C strip=symbols --remap-path-prefix={}=/ioasis --remap-path-prefix={}=/cargo --remap-path-prefix={}=/build",
            self.workspace.root.display(),
            home?,
            build.display(),
        );
        let mut cargo = self.workspace.cargo();
        cargo.args(["build", "--release", "--locked", "-p", "ioasis", "--target", TARGET]);
        cargo
            .arg("--target-dir")
            .arg(build)
            .env("RUSTFLAGS", flags)
            .env("SOURCE_DATE_EPOCH", &self.epoch);
        // Without it each rlib's debug lines would keep what the map leaves.
        cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        process::run(&mut cargo)?;
        let program = build.join(TARGET).join("release/ioasis");
        let length = fs::metadata(&program)?.len();
        ensure!(length < LARGEST, "the program has {length} bytes, at most {LARGEST} are wanted");
        println!("the program has {length} bytes");
        Ok(program)
    }

    /// Puts everything where it belongs below `tree`.
    fn install(&self, program: &Path, tree: &Path) -> Result<()> {
        put(tree, "usr/bin/ioasis", &fs::read(program)?, 0o755)?;
        let pages = tree.join("man");
        fs::create_dir_all(&pages)?;
        process::run(Command::new(program).arg("man").arg(&pages))?;
        for page in sorted(&pages)? {
            let name =
                page.file_name().context("a page has a name")?.to_string_lossy().into_owned();
            let mut gzip = Command::new("gzip");
            process::run(gzip.args(["-9", "-n"]).arg(&page))?;
            let text = fs::read(pages.join(format!("{name}.gz")))?;
            put(tree, &format!("usr/share/man/man1/{name}.gz"), &text, 0o644)?;
        }
        fs::remove_dir_all(pages)?;
        for (shell, path) in SHELLS {
            let script = process::output(Command::new(program).args(["completions", shell]))?;
            put(tree, path, script.as_bytes(), 0o644)?;
        }
        for name in DOCUMENTS {
            let text = fs::read(self.workspace.root.join(name))?;
            put(tree, &format!("usr/share/doc/ioasis/{name}"), &text, 0o644)?;
        }
        let profile = fs::read(self.workspace.root.join("packaging/apparmor"))?;
        put(tree, "usr/share/ioasis/apparmor", &profile, 0o644)
    }

    fn tarball(&self, tree: &Path, folder: &Path) -> Result<String> {
        let name = format!("ioasis-{}-x86_64-linux.tar.gz", self.version);
        let plain = folder.join(name.trim_end_matches(".gz"));
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=ustar"]);
        tar.arg(format!("--mtime=@{}", self.epoch)).arg("--transform=s,^usr,ioasis,");
        process::run(tar.arg("-C").arg(tree).arg("-cf").arg(&plain).arg("usr"))?;
        process::run(Command::new("gzip").args(["-9", "-n"]).arg(&plain))?;
        Ok(name)
    }

    fn package(&self, tree: &Path, folder: &Path) -> Result<String> {
        let name = format!("ioasis_{}_amd64.deb", self.version);
        let bytes: u64 = sizes(tree)?;
        let control = format!(
            "Package: ioasis\nVersion: {}\nArchitecture: amd64\nMaintainer: The ioasis authors <ioasis@users.noreply.github.com>\n\
             Section: devel\nPriority: optional\nInstalled-Size: {}\nSuggests: qemu-utils\nHomepage: https://github.com/ioasis/ioasis\n\
             Description: IOMMUFD and VFIO in user space\n Runs a program, unmodified, on a machine with an IOMMU, VFIO and PCI\n \
             devices that are not there: for tests of VFIO programs and of device\n models without hardware and without root.\n",
            self.version,
            bytes.div_ceil(1024)
        );
        put(tree, "DEBIAN/control", control.as_bytes(), 0o644)?;
        for script in ["postinst", "prerm"] {
            let text = fs::read(self.workspace.root.join("packaging").join(script))?;
            put(tree, &format!("DEBIAN/{script}"), &text, 0o755)?;
        }
        let changes = tree.join("changelog");
        fs::write(&changes, self.debian_changelog()?)?;
        process::run(Command::new("gzip").args(["-9", "-n"]).arg(&changes))?;
        let packed = tree.join("changelog.gz");
        put(tree, "usr/share/doc/ioasis/changelog.gz", &fs::read(&packed)?, 0o644)?;
        fs::remove_file(packed)?;
        // Static, so that it runs in whatever root a program is tested in.
        let overrides = "ioasis: statically-linked-binary [usr/bin/ioasis]\n";
        put(tree, "usr/share/lintian/overrides/ioasis", overrides.as_bytes(), 0o644)?;
        let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: ioasis\n\n\
                         Files: *\nCopyright: 2026 The ioasis authors\nLicense: Apache-2.0 or MIT\n \
                         The texts are LICENSE-APACHE and LICENSE-MIT in this folder.\n";
        put(tree, "usr/share/doc/ioasis/copyright", copyright.as_bytes(), 0o644)?;
        let mut build = Command::new("dpkg-deb");
        build.args(["--root-owner-group", "-Zxz", "--build"]).arg(tree).arg(folder.join(&name));
        process::run(build.env("SOURCE_DATE_EPOCH", &self.epoch))?;
        fs::remove_dir_all(tree.join("DEBIAN"))?;
        Ok(name)
    }

    /// The package's own changelog; what changed in the program is in CHANGELOG.md beside it.
    fn debian_changelog(&self) -> Result<String> {
        let mut date = Command::new("date");
        date.args(["-u", "-R", "-d"]).arg(format!("@{}", self.epoch)).env("LC_ALL", "C");
        let (date, version) = (process::output(&mut date)?, &self.version);
        Ok(format!(
            "ioasis ({version}) unstable; urgency=medium\n\n  * What changed is in CHANGELOG.md.\n\n \
             -- The ioasis authors <ioasis@users.noreply.github.com>  {}\n",
            date.trim()
        ))
    }

    /// The program by itself, for those who fetch one file.
    fn alone(&self, program: &Path, folder: &Path) -> Result<String> {
        let name = format!("ioasis-{}-x86_64", self.version);
        fs::copy(program, folder.join(&name))?;
        Ok(name)
    }
}

fn put(tree: &Path, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let path = tree.join(path);
    fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn sizes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for path in sorted(folder)? {
        sum += if path.is_dir() { sizes(&path)? } else { fs::metadata(&path)?.len() };
    }
    Ok(sum)
}
