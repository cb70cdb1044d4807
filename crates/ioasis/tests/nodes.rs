//! The device nodes of a run, as programs that look at them before they open them find them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder of a test's own that everybody may enter, removed when it passes.
struct Folder(PathBuf);

impl Folder {
    /// On a file system with devices, which /tmp need not be.
    fn new(test: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = PathBuf::from(format!("/var/tmp/ioasis-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("its owner");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }

    fn client(&self) -> String {
        let program = self.path("nodes");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/nodes.c");
        let options = ["-O1", "-static", "-o", &program];
        let built = Command::new("gcc").args(options).arg(source).status();
        assert!(built.expect("gcc is installed").success(), "nodes.c does not compile");
        program
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

const IOASIS: &str = env!("CARGO_BIN_EXE_ioasis");
const DEVICES: [&str; 4] = ["--device", "testdev", "--device", "testdev"];
const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this user opens /dev/fuse, on which device nodes with numbers stand.
fn opens_fuse() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok()
}

fn run(options: &[&str], command: &[&str]) -> Output {
    let mut ioasis = Command::new(IOASIS);
    let ioasis = ioasis.arg("run").args(options).args(DEVICES).arg("--").args(command);
    ioasis.output().expect("ioasis starts")
}

/// The same in a mount namespace, after `before`, as `who`; for root.
fn run_after(before: &str, who: &str, options: &str, command: &str) -> Output {
    let devices = DEVICES.join(" ");
    let script = format!("{before} && exec {who} {IOASIS} run {options} {devices} -- {command}");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "sh", "-c", &script]).current_dir("/").output().expect("unshare")
}

fn succeeded(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

/// Shell words that make /dev/fuse one that everybody opens.
fn for_all(folder: &Folder) -> String {
    let place = folder.path("dev");
    format!(
        "mkdir {place} && mount -t tmpfs -o dev none {place} && mknod -m 666 {place}/fuse c 10 229 \
         && mount --bind {place}/fuse /dev/fuse"
    )
}

#[test]
fn stat_of_a_node_says_the_number_of_its_device_and_keeps_what_is_set() {
    if !opens_fuse() {
        return;
    }
    let folder = Folder::new("numbers");
    let program = folder.client();
    for options in [&[][..], &["--root"]] {
        for part in ["numbers", "kept", "held"] {
            assert_eq!(succeeded(&run(options, &[&program, part])), "ok\n", "{options:?}");
        }
    }
}

#[test]
fn a_plain_users_nodes_have_their_numbers_where_dev_fuse_opens() {
    // Only root makes it open to others.
    if !is_root() || !opens_fuse() {
        return;
    }
    let folder = Folder::new("plain-numbers");
    let (program, before) = (folder.client(), for_all(&folder));
    for options in ["", "--root"] {
        for part in ["numbers", "kept", "held"] {
            let command = format!("{program} {part}");
            let output = run_after(&before, NOBODY, options, &command);
            assert_eq!(succeeded(&output), "ok\n", "{options}");
            std::fs::remove_dir(folder.path("dev")).expect("its mount is gone");
        }
    }
}

#[test]
fn without_dev_fuse_nodes_have_no_numbers_and_open_all_the_same() {
    if !is_root() {
        return;
    }
    let folder = Folder::new("placeholders");
    let command = format!("{} placeholders", folder.client());
    for (who, options) in [("", ""), ("", "--root"), (NOBODY, ""), (NOBODY, "--root")] {
        let output = run_after("mount --bind /dev/null /dev/fuse", who, options, &command);
        assert_eq!(succeeded(&output), "ok\n", "{who} {options}");
    }
}

#[test]
fn a_node_is_copied_by_the_numbers_that_stat_says() {
    if !is_root() || !opens_fuse() {
        return;
    }
    let folder = Folder::new("copies");
    let script = format!(
        "cd {} && for n in vfio/vfio iommu vfio/1 vfio/devices/vfio1; do \
         test -c /dev/$n && cp -a /dev/$n node && (exec 3<>node) && rm node && echo opened; done",
        folder.path("")
    );
    for options in [&[][..], &["--root"]] {
        let output = run(options, &["sh", "-c", &script]);
        assert_eq!(succeeded(&output), "opened\n".repeat(4), "{options:?}");
    }
    let output = run_after(&for_all(&folder), NOBODY, "--root", &format!("sh -c '{script}'"));
    assert_eq!(succeeded(&output), "opened\n".repeat(4), "a plain user's");
}

#[test]
fn udev_finds_the_device_of_a_node() {
    if !opens_fuse() {
        return;
    }
    let output = run(&[], &["udevadm", "info", "--query=path", "/dev/vfio/vfio", "/dev/vfio/1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    // A host without udev has no such program.
    if output.status.code() != Some(127) {
        assert_eq!(text, "/devices/virtual/misc/vfio\n/devices/virtual/vfio/1\n", "{output:?}");
    }
}

#[test]
fn who_is_not_the_nodes_owner_sees_them_and_may_do_what_their_modes_let() {
    if !is_root() || !opens_fuse() {
        return;
    }
    let script = "stat -c %t:%T /dev/vfio/vfio /dev/vfio/1; test -w /dev/vfio/vfio && echo may; \
                  test -w /dev/vfio/1 || echo may not; test -r /dev/iommu || echo nor read";
    let who: Vec<&str> = NOBODY.split(' ').chain(["sh", "-c", script]).collect();
    for options in [&[][..], &["--root"]] {
        let text = succeeded(&run(options, &who));
        assert_eq!(text, "a:c4\nf2:1\nmay\nmay not\nnor read\n", "{options:?}");
    }
}

#[test]
fn nodes_outlive_a_supervisor_that_is_killed() {
    let script = "kill -9 $PPID; while test -e /proc/$PPID; do :; done; \
                  stat -c %F /dev/vfio/vfio /dev/vfio/1 && test -w /dev/vfio/vfio && test -c /dev/iommu && echo there";
    let mut ioasis = Command::new("timeout");
    ioasis.args(["60", IOASIS, "run"]).args(DEVICES);
    let output = ioasis.args(["--", "sh", "-c", script]).output().expect("ioasis starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let file = "character special file\n";
    assert_eq!(text, format!("{file}{file}there\n"), "{output:?}");
}

#[test]
fn a_device_held_by_another_process_says_where_it_is() {
    let script = "sleep 100 4<>/dev/vfio/devices/vfio0 & p=$!; until test -e /proc/$p/fd/4; do :; done; \
                  grep -c ^lock: /proc/$p/fdinfo/4; sed -n 's/^vfio-device-syspath: //p' /proc/$p/fdinfo/4; kill $p; \
                  readlink -f /sys/bus/pci/devices/0000:01:00.0";
    for options in [&[][..], &["--root"]] {
        let text = succeeded(&run(options, &["sh", "-c", script]));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (3, "0"), "{options:?}: {text}");
        assert_eq!(lines[1], lines[2], "{options:?}");
    }
}

#[test]
fn fuser_names_who_holds_a_node_and_nobody_else() {
    if !opens_fuse() {
        return;
    }
    let script = "sleep 100 3<>/dev/vfio/vfio & one=$!; sleep 100 4<>/dev/vfio/devices/vfio0 & other=$!; \
                  until test -e /proc/$one/fd/3 && test -e /proc/$other/fd/4; do :; done; \
                  for n in vfio/vfio vfio/devices/vfio0 vfio/1; do \
                  for p in $(fuser /dev/$n 2>/dev/null); do case $p in $one) echo $n one;; $other) echo $n other;; \
                  *) echo $n $p;; esac; done; done; kill $one $other";
    for options in [&[][..], &["--root"]] {
        if !Path::new("/usr/bin/fuser").exists() {
            return;
        }
        let text = succeeded(&run(options, &["sh", "-c", script]));
        assert_eq!(text, "vfio/vfio one\nvfio/devices/vfio0 other\n", "{options:?}");
    }
}
