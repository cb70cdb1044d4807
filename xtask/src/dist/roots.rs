//! Fresh systems, in which a package is installed and used as somebody would who has nothing else
//! of ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::workspace::Workspace;
use crate::{debian, process, tools};

/// Releases of Debian, oldest first; lintian is run in the last.
const SUITES: [&str; 3] = ["bookworm", "trixie", "sid"];

/// Installs the package, uses it, and removes it again; `$1` is its path. A mirror that lags behind
/// still serves what is needed here.
const USE: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -o Acquire::Check-Valid-Until=false update
apt-get -qq install --no-install-recommends "$1" qemu-utils >/dev/null
demo() {
    cd "$(mktemp -d)"
    head -c 16777216 /dev/urandom >disk.img
    timeout 60 ioasis run --device nvme,image=disk.img -- qemu-img convert -m 1 -O raw nvme://0000:01:00.0/1 copy.img
    cmp disk.img copy.img
    ioasis --version >/dev/null
}
demo
export -f demo
setpriv --reuid=65534 --regid=65534 --clear-groups env HOME=/tmp bash -euc demo
gzip -t /usr/share/man/man1/ioasis*.1.gz
bash -euc '. /usr/share/bash-completion/completions/ioasis; complete -p ioasis >/dev/null'
ioasis doctor >/tmp/doctor || { cat /tmp/doctor; exit 1; }
apt-get -qq remove ioasis >/dev/null
test ! -e /usr/bin/ioasis
"#;

/// Where lintian is: errors and warnings are failures; `$1` is the package.
const LINTIAN: &str = r#"
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq install --no-install-recommends lintian >/dev/null
lintian --allow-root --fail-on error,warning "$1"
"#;

/// Mounts what a system needs below `$1`, and runs the script `$2` there with `$3`.
const INSIDE: &str = r#"
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
cd "$1"
mkdir old
# Not a chroot, in which no user namespace can be made.
pivot_root . old
umount -l /old
rmdir /old
exec bash -c "$2" bash "$3"
"#;

/// Installs `package` in a fresh system of each release.
pub(super) fn install(workspace: &Workspace, package: &Path) -> Result<()> {
    tools::ensure_programs(&[&tools::DEBOOTSTRAP])?;
    let roots = workspace.target.join("dist-roots");
    for suite in SUITES {
        let base = base(workspace, suite)?;
        let root = roots.join(suite);
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        process::run(Command::new("tar").arg("-xf").arg(&base).arg("-C").arg(&root))?;
        if Path::new("/etc/resolv.conf").is_file() {
            fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf"))?;
        }
        let name = package.file_name().context("a package has a name")?;
        let inside = Path::new("/tmp").join(name);
        fs::copy(package, root.join("tmp").join(name))?;
        run(&root, USE, &inside).with_context(|| format!("the package fails on {suite}"))?;
        println!("{suite}: installed, used as root and as a plain user, removed");
        if Some(&suite) == SUITES.last() {
            run(&root, LINTIAN, &inside).context("lintian complains")?;
            println!("lintian: clean");
        }
        fs::remove_dir_all(&root)?;
    }
    Ok(())
}

/// A new system of a release, packed; made once.
fn base(workspace: &Workspace, suite: &str) -> Result<PathBuf> {
    let folder = workspace.cache.join("roots");
    let packed = folder.join(format!("{suite}.tar"));
    if packed.is_file() {
        return Ok(packed);
    }
    fs::create_dir_all(&folder)?;
    let (root, partial) = (folder.join("partial"), folder.join("partial.tar"));
    let _ = fs::remove_dir_all(&root);
    println!("making a system of Debian {suite} (100 MB are fetched)");
    let mut make = Command::new("debootstrap");
    make.args(["--variant=minbase", suite]).arg(&root).arg(debian::mirror()?);
    let made = process::output(&mut make);
    ensure!(
        made.is_ok(),
        "debootstrap failed: {}",
        made.err().map_or_else(String::new, |error| error.to_string())
    );
    let mut pack = Command::new("tar");
    process::run(
        pack.arg("--one-file-system").arg("-C").arg(&root).arg("-cf").arg(&partial).arg("."),
    )?;
    fs::rename(&partial, &packed)?;
    fs::remove_dir_all(&root)?;
    Ok(packed)
}

fn run(root: &Path, script: &str, package: &Path) -> Result<()> {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "bash", "-c", INSIDE, "bash"]);
    process::run(unshare.arg(root).arg(script).arg(package))
}
