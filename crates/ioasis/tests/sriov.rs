//! Virtual functions that come and go by writes to /sys, as scripts do it.

use std::process::{Command, Output};

/// What a script finds in its environment: the physical function, and the first two of its virtual
/// ones.
const WORDS: &str = "P=/sys/bus/pci; V=$P/drivers/vfio-pci; F=0000:01:00.0; D=$P/devices/$F; N=$D/sriov_numvfs; \
    A=0000:01:10.0; B=0000:01:10.1; \
    is() { [ -e $1 ] && echo -n yes || echo -n no; echo \" ${1##*/}\"; }; ";

fn run(options: &[&str], script: &str) -> Output {
    let script = format!("{WORDS}{script}; true");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.args(["run", "--timeout", "60"]).args(options);
    command.args(["--", "bash", "-c", &script]).output().expect("ioasis starts")
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
fn virtual_functions_come_with_their_files_and_go_with_them() {
    let script = "cat $D/sriov_totalvfs $N; ls $P/devices | wc -l; echo 2 > $N; cat $N; readlink $D/virtfn0 $D/virtfn1; \
        is $D/virtfn2; ls /dev/vfio; ls /dev/vfio/devices; readlink $P/devices/$B/physfn $P/devices/$B/iommu_group; \
        cat $P/devices/$B/driver_override $P/devices/$B/device; readlink $P/devices/$A/driver; is $V/$A; \
        echo 2 > $N; echo again $?; echo 0 > $N; cat $N; is $D/virtfn0; is $P/devices/$A; ls /dev/vfio; \
        is /sys/kernel/iommu_groups/3; is $V/$A; echo 0x4 > $N; ls -d $D/virtfn*; ls /dev/vfio/devices";
    let Some(said) = said(&["--device", "testdev,vfs=4"], script) else { return };
    let expected = "4\n0\n3\n2\n../0000:01:10.0\n../0000:01:10.1\n\
        no virtfn2\n1\n3\n4\ndevices\nvfio\nvfio0\nvfio1\nvfio2\n../0000:01:00.0\n../../../../kernel/iommu_groups/4\n\
        vfio-pci\n0x11ea\n../../../../bus/pci/drivers/vfio-pci\nyes 0000:01:10.0\n\
        again 0\n0\nno virtfn0\nno 0000:01:10.0\n1\ndevices\nvfio\n\
        no 3\nno 0000:01:10.0\n/sys/bus/pci/devices/0000:01:00.0/virtfn0\n/sys/bus/pci/devices/0000:01:00.0/virtfn1\n\
        /sys/bus/pci/devices/0000:01:00.0/virtfn2\n/sys/bus/pci/devices/0000:01:00.0/virtfn3\n\
        vfio0\nvfio1\nvfio2\nvfio3\nvfio4\n";
    assert_eq!(said, expected);
}

#[test]
fn a_number_is_refused_as_linux_refuses_it() {
    let script = "exec 2>&1; echo x > $N; echo -1 > $N; echo 65536 > $N; echo 5 > $N; echo 1 > $N; echo 2 > $N; echo 9 > $N; \
        cat $N; echo 2 > $D/sriov_drivers_autoprobe; echo no > $D/sriov_drivers_autoprobe; cat $D/sriov_drivers_autoprobe; \
        echo 3 > $P/devices/$A/sriov_vf_msix_count; echo -3 > $P/devices/$A/sriov_vf_msix_count; echo 0 > $N; \
        echo $F > $V/unbind; echo 0 > $N; echo 1 > $N; echo 5 > $N";
    let Some(said) = said(&["--device", "testdev,vfs=4"], script) else { return };
    let errors: Vec<&str> = said.lines().map(|line| line.rsplit(": ").next().unwrap()).collect();
    let (invalid, range) = ("Invalid argument", "Numerical result out of range");
    let expected = [
        invalid,
        invalid,
        invalid,
        range,
        "Device or resource busy",
        range,
        "1",
        invalid,
        "0",
        "Operation not supported",
        invalid,
        "No such file or directory",
        range,
    ];
    assert_eq!(errors, expected);
}

#[test]
fn who_ends_an_open_virtual_function_waits_and_nobody_else_does() {
    let script = "echo 2 > $N; exec 5<>/dev/vfio/devices/vfio1; (exec 5>&-; echo 0 > $N; echo ended $?) & \
        while [ -e $P/devices/$A/driver ]; do sleep 0.01; done; is /dev/vfio/devices/vfio1; is /dev/vfio/3; cat $N; \
        exec 6<>/dev/vfio/devices/vfio2; exec 6>&-; exec 6<>/dev/vfio/vfio; echo others go on; \
        exec 5>&-; wait; is $P/devices/$A; is $P/devices/$B; is /dev/vfio/devices/vfio2";
    let Some(said) = said(&["--device", "testdev,vfs=4"], script) else { return };
    let expected = "no vfio1\nyes 3\n2\nothers go on\nended 0\n\
        no 0000:01:10.0\nno 0000:01:10.1\nno vfio2\n";
    assert_eq!(said, expected);
}

#[test]
fn a_physical_function_that_loses_its_driver_loses_its_virtual_ones_first() {
    let script = "echo 2 > $N; exec 5<>/dev/vfio/devices/vfio1; (exec 5>&-; echo $F > $V/unbind; echo unbound $?) & \
        while [ -e $P/devices/$A/driver ]; do sleep 0.01; done; is /dev/vfio/devices/vfio0; exec 5>&-; wait; \
        is $P/devices/$A; is $D/driver; cat $N; echo $F > $V/bind; echo 1 > $N; is /dev/vfio/devices/vfio1";
    let Some(said) = said(&["--device", "testdev,vfs=4"], script) else { return };
    let expected = "yes vfio0\nunbound 0\nno 0000:01:10.0\nno driver\n0\nyes vfio1\n";
    assert_eq!(said, expected);
}

#[test]
fn a_virtual_function_that_is_offered_to_nobody_waits_for_a_driver() {
    let script = "echo 0 > $P/drivers_autoprobe; echo 1 > $N; is $D/virtfn0; is $P/devices/$A/driver; is /dev/vfio/3; \
        echo $A > $P/drivers_probe; is /dev/vfio/3; echo $A > $V/unbind; is /dev/vfio/3; echo 0 > $N; is $P/devices/$A; \
        echo 1 > $P/drivers_autoprobe; echo 1 > $N; is /dev/vfio/3";
    let Some(said) = said(&["--device", "testdev,vfs=4"], script) else { return };
    let expected = "yes virtfn0\nno driver\nno 3\nyes 3\nno 3\nno 0000:01:10.0\nyes 3\n";
    assert_eq!(said, expected);
}

#[test]
fn virtual_functions_are_there_from_the_start_if_that_is_wanted() {
    let output = run(
        &["--device", "testdev,vfs=4,numvfs=2"],
        "cat $N; ls /dev/vfio/devices; xxd -p -l 8 $P/devices/$A/config; sed -n 8p $D/resource; cat $P/devices/$B/resource | head -1",
    );
    let expected = "2\nvfio0\nvfio1\nvfio2\nffffffff00001000\n\
        0x00000000c0001000 0x00000000c0004fff 0x0000000000040200\n\
        0x00000000c0002000 0x00000000c0002fff 0x0000000000040200\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_is_said_before_anything_runs() {
    for (devices, message) in [
        (
            &["testdev,vfs=4,numvfs=5"][..],
            "numvfs=5 is more than the 4 virtual functions that vfs= gives the device",
        ),
        (
            &["testdev,numvfs=1"],
            "numvfs=1 is more than the 0 virtual functions that vfs= gives the device",
        ),
        (
            &["testdev,vfs=1,numvfs=1,driver=none"],
            "only vfio-pci has virtual functions, so that numvfs= goes with no other driver=",
        ),
        (
            &["testdev,vfs=2,address=00:0f.7"],
            "there is no room for so many virtual functions behind 0000:00:0f.7",
        ),
        (
            &["testdev,vfs=1,iommu=emulated"],
            "a device with iommu=emulated has no DMA, and no virtual functions",
        ),
        (
            &["testdev,vfs=2", "testdev,vfs=2,address=01:00.1"],
            "a virtual function would be at 0000:01:10.1, where another function is",
        ),
    ] {
        let options: Vec<&str> = devices.iter().flat_map(|device| ["--device", device]).collect();
        let output = run(&options, "echo ran");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{devices:?}: {said}");
        assert!(said.contains(message), "{devices:?}: {said}");
    }
}
