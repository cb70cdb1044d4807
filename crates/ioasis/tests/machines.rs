//! Machines as the command line and machine files describe them, looked at from inside.

use std::process::{Command, Output};

fn run(options: &[&str], command: &[&str]) -> Output {
    let mut ioasis = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    ioasis.arg("run").args(options).arg("--").args(command).output().expect("ioasis starts")
}

/// What `script` prints inside a machine with these options.
fn seen(options: &[&str], script: &str) -> String {
    let output = run(options, &["sh", "-c", script]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn sysfs_shows_each_iommu_as_its_kind_with_its_devices_behind_it() {
    let options = [
        "--iommu",
        "kind=vtd",
        "--iommu",
        "kind=amd",
        "--iommu",
        "kind=smmuv3",
        "--iommu",
        "kind=riscv",
        "--device",
        "testdev",
        "--device",
        "testdev,iommu=1",
        "--device",
        "testdev,iommu=2",
        "--device",
        "testdev,iommu=3",
    ];
    // Bus 0 has bridges alone.
    let links = "for d in /sys/bus/pci/devices/0000:0[1-9]*; do basename $(readlink -f $d/iommu); done; \
                 for i in /sys/class/iommu/*; do ls $i/devices | grep -v 0000:00; done";
    assert_eq!(
        seen(&options, links),
        "dmar0\nivhd1\nsmmu3.0x0000000009090000\nriscv-iommu@3013000.iommu\n\
         0000:01:00.0\n0000:02:00.0\n0000:04:00.0\n0000:03:00.0\n"
    );
    let groups = "for g in 1 2 3 4; do cat /sys/kernel/iommu_groups/$g/type /sys/kernel/iommu_groups/$g/reserved_regions; done";
    assert_eq!(
        seen(&options, groups),
        "DMA-FQ\n0x00000000fee00000 0x00000000feefffff msi\n\
         DMA-FQ\n0x00000000fee00000 0x00000000feefffff msi\n0x000000fd00000000 0x000000ffffffffff reserved\n\
         DMA\n0x0000000008000000 0x00000000080fffff msi\n\
         DMA\n"
    );
}

#[test]
fn a_machine_of_power_has_host_bridges_groups_by_endpoint_and_no_nodes_of_devices() {
    let options = ["--iommu", "kind=spapr", "--device", "testdev"];
    let script = "cd /sys/class/iommu; echo *; ls -d iommu-phb0000/spapr-tce-iommu; \
                  cat /sys/kernel/iommu_groups/1/name /sys/kernel/iommu_groups/1/type; \
                  cat /sys/kernel/iommu_groups/1/reserved_regions; ls /dev/vfio/devices; \
                  basename $(readlink -f /sys/bus/pci/devices/0000:01:00.0/iommu); \
                  ls /sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio0; \
                  cat /sys/module/vfio_iommu_spapr_tce/version; ls /sys/module | grep -c type1";
    let seen = seen(&options, &format!("{script}; true"));
    assert!(
        seen.starts_with(
            "iommu-phb0000\niommu-phb0000/spapr-tce-iommu\ndomain0-pe1\nunknown\niommu-phb0000\n"
        ),
        "{seen}"
    );
    assert!(seen.ends_with("0.1\n0\n") && !seen.contains("\ndev\n"), "{seen}");
}

#[test]
fn a_root_port_is_above_each_device_and_behind_its_iommu() {
    let options = [
        "--iommu",
        "kind=vtd",
        "--iommu",
        "kind=amd",
        "--device",
        "testdev,iommu=1",
        "--device",
        "testdev,group=9",
        "--device",
        "testdev,address=0000:02:00.1",
    ];
    let script = "for d in 0000:01:00.0 0000:02:00.0 0000:02:00.1; do \
                  p=$(dirname $(readlink -f /sys/bus/pci/devices/$d)); \
                  cat $p/class $p/secondary_bus_number; \
                  basename $(readlink -f $p/iommu_group); basename $(readlink -f $p/iommu); done; \
                  ls /sys/kernel/iommu_groups/0/devices /dev/vfio/devices";
    // The third device has the first free group; ports come after the largest.
    assert_eq!(
        seen(&options, script),
        "0x060400\n1\n10\nivhd1\n0x060400\n2\n11\ndmar0\n0x060400\n2\n11\ndmar0\n\
         /dev/vfio/devices:\nvfio0\nvfio1\nvfio2\n\n/sys/kernel/iommu_groups/0/devices:\n0000:00:00.0\n"
    );
}

#[test]
fn a_device_may_take_the_place_and_the_group_of_the_host_bridge() {
    let options = ["--device", "testdev,address=0000:00:00.0,group=0"];
    let script = "ls /sys/bus/pci/devices /sys/kernel/iommu_groups; \
                  cat /sys/kernel/iommu_groups/0/devices/0000:00:00.0/vendor";
    assert_eq!(
        seen(&options, script),
        "/sys/bus/pci/devices:\n0000:00:00.0\n\n/sys/kernel/iommu_groups:\n0\n0x1234\n"
    );
}

#[test]
fn a_bar_is_a_file_that_is_not_opened() {
    let script = "stat -c '%s %a' /sys/bus/pci/devices/0000:01:00.0/resource0; \
                  cat /sys/bus/pci/devices/0000:01:00.0/resource0 2>&1 | sed 's/.*: //'";
    assert_eq!(seen(&["--device", "testdev"], script), "4096 600\nPermission denied\n");
}

#[test]
fn the_registers_in_sysfs_are_those_of_the_capabilities_asked_for() {
    let cap = |options: &str| {
        let device = ["--iommu", options, "--device", "testdev"];
        let text = seen(&device, "cat /sys/class/iommu/dmar0/intel-iommu/ecap");
        u64::from_str_radix(text.trim(), 16).expect("a register")
    };
    // VT-d 11.4.3: SSADS and PASID.
    assert_eq!(cap("kind=vtd") & (1 << 45 | 1 << 40), 1 << 45 | 1 << 40);
    assert_eq!(cap("dirty=off,pasid_bits=0") & (1 << 45 | 1 << 40), 0);
}

#[test]
fn a_group_of_two_devices_reserves_what_both_reserve() {
    let options = ["--device", "testdev,group=3", "--device", "testdev,group=3"];
    let script = "ls /sys/kernel/iommu_groups/3/devices; cat /sys/kernel/iommu_groups/3/reserved_regions; ls /dev/vfio";
    assert_eq!(
        seen(&options, script),
        "0000:01:00.0\n0000:02:00.0\n0x00000000fee00000 0x00000000feefffff msi\n3\ndevices\nvfio\n"
    );
}

#[test]
fn a_machine_that_cannot_be_is_refused_before_the_program_starts() {
    for (options, message) in [
        (
            ["--iommu", "kind=vtx"],
            "ioasis: --iommu \"kind=vtx\": kind=\"vtx\" is not vtd, amd, smmuv3, riscv or spapr: no such kind\n",
        ),
        (
            ["--device", "testdev,iommu=1"],
            "ioasis: --device \"testdev,iommu=1\": iommu 1 does not exist, the machine has 1, counted from 0\n",
        ),
    ] {
        let output = run(&options, &["echo", "started"]);
        assert_eq!(output.status.code(), Some(125));
        assert_eq!(String::from_utf8_lossy(&output.stderr), message);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_hosts_disks_and_interfaces_are_found_as_before_and_its_functions_are_not() {
    let host = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("it is installed");
        String::from_utf8(output.stdout).expect("text")
    };
    let device = ["--device", "testdev"];
    for (program, arguments) in [
        ("lsblk", &["--noheadings", "--list", "--output", "NAME,MAJ:MIN,SIZE,TYPE"][..]),
        ("findmnt", &["--noheadings", "--output", "SOURCE,FSTYPE", "/"]),
        ("ls", &["/sys/class/net"]),
        ("ls", &["/sys/block"]),
    ] {
        let script = format!("{program} {}", arguments.join(" "));
        assert_eq!(seen(&device, &script), host(program, arguments), "{script}");
    }
    let script = "for f in /sys/bus/pci/devices/*; do cat $f/vendor; done; \
                  ls /sys/devices | grep -c ^pci";
    assert_eq!(seen(&device, script), "0x1b36\n0x1b36\n0x1234\n1\n");
}

#[test]
fn files_of_proc_tell_of_the_runs_machine() {
    let device = ["--device", "testdev"];
    let script = "grep -e ' vfio$' -e vfio-dev /proc/devices; cd /proc; head -2 misc; \
                  grep -c '[0-9a-f]:[0-9a-f][0-9a-f]\\.[0-7]' interrupts; grep -c CPU0 //proc/./interrupts; \
                  grep -c misc /proc/devices; test -w /proc/interrupts; wc -l < /proc/self/status | grep -c 0";
    let text = seen(&device, &format!("{script}; true"));
    let lines: Vec<_> = text.lines().take(7).collect();
    assert_eq!(
        lines,
        ["242 vfio", "511 vfio-dev", "126 iommu", "196 vfio", "0", "1", "1"],
        "{text}"
    );
    if std::path::Path::new("/proc/bus/pci/devices").exists() {
        let text = seen(
            &device,
            "cut -f 1,2 /proc/bus/pci/devices; sed -n '$s/.*\t//p' /proc/bus/pci/devices",
        );
        assert_eq!(text, "0000\t1b360008\n0008\t1b36000c\n0100\t123411e9\nvfio-pci\n");
    }
    // The host's own, where its functions are shown.
    let shown = seen(&["--host-devices", "--device", "testdev"], "wc -l < /proc/interrupts");
    let host = std::fs::read_to_string("/proc/interrupts").expect("the host's");
    assert_eq!(shown.trim(), host.lines().count().to_string());
}

#[test]
fn a_program_mounts_a_procfs_in_a_user_namespace_of_its_own() {
    let script = "unshare --user --map-root-user --mount --pid --fork --mount-proc echo mounted";
    assert_eq!(seen(&["--device", "testdev"], script), "mounted\n");
}
