//! Drivers of devices, taken away and given by writes to /sys, as scripts do it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::process::{Command, Output, Stdio};

const PCI: &str = "/sys/bus/pci";
const FIRST: &str = "0000:01:00.0";
/// What a script finds in its environment.
const WORDS: &str = "B=0000:01:00.0; P=/sys/bus/pci; D=$P/devices/$B; V=$P/drivers/vfio-pci; \
    is() { [ -e $1 ] && echo -n yes || echo -n no; echo \" ${1##*/}\"; }; ";

fn run(options: &[&str], script: &str) -> Output {
    let script = format!("{WORDS}{script}; true");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    let limit = ["run", "--timeout", "60"];
    command.args(limit).args(options).args(["--", "bash", "-c", &script]);
    command.output().expect("ioasis starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a script that writes to /sys says; none where nothing can be written without delay.
fn said(options: &[&str], script: &str) -> Option<String> {
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if fuse.is_err() || !rustix::process::geteuid().is_root() {
        return None;
    }
    let output = run(options, script);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    Some(out + &err)
}

#[test]
fn a_device_is_taken_from_its_driver_and_given_back() {
    let script = "echo $B > $V/unbind; echo $?; is /dev/vfio/1; is /dev/vfio/devices/vfio0; is $D/driver; \
        head -1 $D/uevent; is /sys/class/vfio-dev/vfio0; is $V/$B; \
        echo $B > $V/bind; echo $?; is /dev/vfio/1; stat -c %t:%T /dev/vfio/1; readlink $D/driver; head -1 $D/uevent; \
        exec 3<>/dev/vfio/1 && echo opened";
    let Some(said) = said(&["--device", "testdev"], script) else { return };
    let expected = "0\nno 1\nno vfio0\nno driver\nPCI_CLASS=FF00\nno vfio0\nno 0000:01:00.0\n\
        0\nyes 1\nf2:1\n../../../../bus/pci/drivers/vfio-pci\nDRIVER=vfio-pci\nopened\n";
    assert_eq!(said, expected);
}

#[test]
fn a_driver_is_refused_as_linux_refuses_it() {
    let script = "exec 2>&1; echo $B > $V/bind; echo nobody > $V/unbind; echo 0000:00:01.0 > $V/bind; \
        echo $B > $V/unbind; echo $B > $V/unbind; echo nvme > $D/driver_override; echo $B > $V/bind; \
        echo > $D/driver_override; cat $D/driver_override; echo $B > $V/bind; echo $B > $P/drivers_probe; is $D/driver; \
        echo nobody > $P/drivers_probe; echo 1b36 > $V/new_id; echo 1 2 > $V/new_id; echo 1 2 > $V/new_id; \
        echo 1 2 3 4 5 6 7 > $V/new_id; echo 1 2 > $V/remove_id; echo 1 2 > $V/remove_id";
    let Some(said) = said(&["--device", "testdev"], script) else { return };
    let errors: Vec<&str> = said.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    let expected = [
        "Device or resource busy",
        "No such device",
        "No such device",
        "No such device",
        "No such device",
        "(null)",
        "No such device",
        "no driver",
        "No such device",
        "Invalid argument",
        "File exists",
        "Invalid argument",
        "No such device",
    ];
    assert_eq!(errors, expected);
}

#[test]
fn who_takes_an_open_device_waits_and_nobody_else_does() {
    let script = "exec 5<>/dev/vfio/devices/vfio0; (exec 5>&-; echo $B > $V/unbind; echo unbound $?) & \
        while [ -e $D/driver ]; do sleep 0.01; done; is /dev/vfio/devices/vfio0; is /dev/vfio/1; exec 6<>/dev/vfio/vfio; \
        echo 1 > $P/drivers_autoprobe; echo others go on; (exec 5>&-; echo $B > $V/bind; echo bound $?) & \
        sleep 0.1; exec 5>&-; wait; is /dev/vfio/devices/vfio0";
    let Some(said) = said(&["--device", "testdev"], script) else { return };
    let expected = "no vfio0\nyes 1\nothers go on\n";
    assert!(said.starts_with(expected), "{said}");
    let mut rest: Vec<&str> = said[expected.len()..].lines().collect();
    rest.sort_unstable();
    assert_eq!(rest, ["bound 0", "unbound 0", "yes vfio0"]);
}

#[test]
fn who_waits_for_an_open_device_dies_when_killed_and_the_driver_leaves_all_the_same() {
    let script = "exec 5<>/dev/vfio/devices/vfio0; bash -c \"exec 5>&-; echo $B > $V/unbind\" & K=$!; \
        while [ -e $D/driver ]; do sleep 0.01; done; kill -9 $K; wait $K 2>/dev/null; echo $?; is /dev/vfio/1; exec 5>&-; \
        for i in $(seq 500); do [ -e /dev/vfio/1 ] || break; sleep 0.01; done; is /dev/vfio/1; \
        echo $B > $V/bind; is /dev/vfio/1";
    let Some(said) = said(&["--device", "testdev"], script) else { return };
    assert_eq!(said, "137\nyes 1\nno 1\nyes 1\n");
}

#[test]
fn a_device_that_was_pulled_out_is_on_the_bus_until_its_last_close() {
    let fuse = std::fs::File::options().read(true).write(true).open("/dev/fuse");
    if fuse.is_err() || !rustix::process::geteuid().is_root() {
        return;
    }
    let name = format!("drivers-pull-{}", std::process::id());
    let runtime = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&runtime).expect("a folder under target");
    let ioasis = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
        command.env("XDG_RUNTIME_DIR", &runtime);
        command
    };
    let script = format!(
        "{WORDS} exec 2>&1; exec 5<>/dev/vfio/devices/vfio0; echo ready; read; \
         echo $B > $P/drivers_probe; echo $?; exec 5>&-; \
         for i in $(seq 500); do echo $B > $P/drivers_probe || break; sleep 0.01; done; echo $B > $V/unbind; true"
    );
    let options = ["run", "--timeout", "60", "--name", "pulled", "--device", "testdev", "--"];
    let mut run = ioasis();
    run.args(options).args(["bash", "-c", &script]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(run.stdout.take().expect("a pipe"));
    let mut said = String::new();
    lines.read_line(&mut said).expect("a line");
    let pulled = ioasis().args(["ctl", "pulled", "surprise-remove", FIRST]).output();
    let pulled = pulled.expect("ioasis starts");
    run.stdin.take().expect("a pipe").write_all(b"go on\n").expect("written");
    lines.read_to_string(&mut said).expect("text");
    assert!(run.wait().expect("it ends").success() && pulled.status.success(), "{pulled:?}");
    let _ = std::fs::remove_dir_all(&runtime);
    let ends: Vec<&str> = said.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    assert_eq!(ends, ["ready", "0", "No such device", "No such device"], "{said}");
}

#[test]
fn a_device_starts_with_the_driver_it_is_given() {
    let image = std::env::temp_dir().join(format!("ioasis-drivers-{}", std::process::id()));
    std::fs::write(&image, vec![0; 1 << 20]).expect("an image");
    let nvme = format!("nvme,image={},driver=nvme", image.display());
    let devices = ["--device", &nvme, "--device", "testdev,driver=none"];
    let script = "is /dev/vfio/1; is /dev/vfio/2; readlink $D/driver; cat $D/driver_override; \
        is $P/devices/0000:02:00.0/driver; is $P/drivers/nvme/$B; is /sys/module/nvme/drivers/pci:nvme; \
        echo vfio-pci > $D/driver_override; echo $B > $D/driver/unbind; echo $B > $P/drivers_probe; readlink $D/driver; \
        is /dev/vfio/1; echo > $D/driver_override; echo $B > $D/driver/unbind; echo $B > $P/drivers_probe; \
        readlink $D/driver; echo 1234 11e9 > $V/new_id; is /dev/vfio/2";
    let said = said(&devices, script);
    let _ = std::fs::remove_file(&image);
    let Some(said) = said else { return };
    let expected = "no 1\nno 2\n../../../../bus/pci/drivers/nvme\n(null)\nno driver\nyes 0000:01:00.0\nyes pci:nvme\n\
        ../../../../bus/pci/drivers/vfio-pci\nyes 1\n../../../../bus/pci/drivers/nvme\nyes 2\n";
    assert_eq!(said, expected);
}

#[test]
fn attributes_of_a_function_take_what_linux_takes() {
    let script = "exec 2>&1; cd $D; echo 1 > reset; echo 2 > reset; echo x > reset; echo 1 > enable; echo $B > driver/unbind; \
        echo 0 > enable; echo 1 > enable; cat enable; echo 0 > enable; cat enable; echo 0 > d3cold_allowed; cat d3cold_allowed; \
        echo -2 > numa_node; echo 4096 > numa_node; echo 0 > numa_node; cat numa_node; echo -1 > numa_node; cat numa_node; \
        echo bus > reset_method; echo > reset_method; cat reset_method; echo 1 > reset; echo default > reset_method; \
        cat reset_method; echo auto > power/control; cat power/control; echo off > power/control; cat power/control; \
        stat -c %a reset enable driver_override power/control";
    let Some(said) = said(&["--device", "testdev"], script) else { return };
    let lines: Vec<&str> = said.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    let expected = [
        "Invalid argument",
        "Invalid argument",
        "Device or resource busy",
        "Input/output error",
        "1",
        "0",
        "0",
        "Invalid argument",
        "Invalid argument",
        "0",
        "-1",
        "Invalid argument",
        "Inappropriate ioctl for device",
        "flr",
        "auto",
        "Invalid argument",
        "auto",
        "200",
        "644",
        "644",
        "644",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn configuration_space_is_read_as_it_is_and_written() {
    let script = "exec 2>&1; cd $D; stat -c %a config; line() { od -An -tx1 -j60 -N1 config; }; line; \
        printf '\\x2a' | dd of=config bs=1 seek=60 conv=notrunc status=none; line; \
        exec 3<>/dev/vfio/devices/vfio0; exec 4<>config; printf '\\x2b' | dd bs=1 seek=60 conv=notrunc status=none >&4; line; \
        exec 5<>config; dd bs=1 skip=60 count=1 status=none <&5 | od -An -tx1; \
        printf x | dd of=config bs=1 seek=4096 conv=notrunc status=none; cat config | wc -c; \
        setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all cat config | wc -c; \
        setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all bash -c 'echo > config'";
    let Some(said) = said(&["--device", "testdev"], script) else { return };
    let lines: Vec<&str> = said.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    let expected =
        ["644", " 00", " 2a", " 2b", " 2b", "File too large", "4096", "64", "Permission denied"];
    assert_eq!(lines, expected);
}

#[test]
fn nobody_but_root_writes_and_what_is_written_only_is_not_read() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let plain = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all";
    let script = format!(
        "exec 2>&1; {plain} bash -c \"echo > {PCI}/devices/{FIRST}/driver_override\"; \
         {plain} bash -c \"echo {FIRST} > {PCI}/drivers/vfio-pci/unbind\"; is $D/driver"
    );
    let output = run(&["--device", "testdev"], &script);
    let said = text(&output.stdout);
    assert_eq!(said.matches("Permission denied").count(), 2, "{said}");
    assert!(said.ends_with("yes driver\n"), "{said}");
}
