//! Module parameters and the node of the container, as a shell finds them.

use std::process::{Command, Output};

const TYPE1: &str = "/sys/module/vfio_iommu_type1/parameters";

fn sh(options: &[&str], script: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.arg("run").args(options).args(["--", "sh", "-c", script]);
    command.output().expect("ioasis starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_parameter_shows_what_a_shell_wrote() {
    let script = format!(
        "cd {TYPE1}; cat *; echo 0x10 > dma_entry_limit; echo y > disable_hugepages; cat *"
    );
    let output = sh(&[], &script);
    assert_eq!(text(&output.stdout), "N\nN\n65535\nN\nY\n16\n", "{}", text(&output.stderr));
}

/// `script`, in a mount namespace where /dev/fuse does not open.
fn sh_without_fuse(script: &str) -> Output {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c"]);
    command.args(["mount --bind /dev/null /dev/fuse && exec \"$@\"", "sh"]);
    command.args([env!("CARGO_BIN_EXE_ioasis"), "run", "--", "sh", "-c", script]);
    command.output().expect("unshare is installed")
}

/// What a shell is told of values that are none, and of one that is too large.
fn wrong_values() -> String {
    format!(
        "cd {TYPE1}; /bin/echo many > dma_entry_limit; cat dma_entry_limit; echo 99999999999 | tee dma_entry_limit; cat dma_entry_limit"
    )
}

#[test]
fn a_value_that_is_none_is_refused_and_changes_nothing() {
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        // The other test is about that.
        return;
    }
    let output = sh(&[], &wrong_values());
    assert_eq!(text(&output.stdout), "65535\n99999999999\n65535\n");
    let said = text(&output.stderr);
    assert!(said.contains("Invalid argument"), "{said}");
    assert!(said.contains("Numerical result out of range"), "{said}");
}

#[test]
fn without_a_file_system_a_value_that_is_none_is_refused_or_reported() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let output = sh_without_fuse(&wrong_values());
    assert_eq!(text(&output.stdout), "65535\n99999999999\n65535\n");
    let said = text(&output.stderr);
    assert!(said.contains("\"many\" is no value of vfio_iommu_type1.dma_entry_limit"), "{said}");
    assert!(said.contains("Numerical result out of range"), "{said}");
}

#[test]
fn an_open_parameter_is_written_more_than_once_and_read_as_it_is_then() {
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return;
    }
    let script = format!(
        "cd {TYPE1}; exec 3<>dma_entry_limit 4<dma_entry_limit; echo 7 >&3; cat dma_entry_limit; echo 9 >&3; \
         cat <&4; cat <&4; /bin/echo x >&3; stat -L -c '%a %s' /proc/self/fd/3; /bin/echo 1 >&4"
    );
    let output = sh(&[], &script);
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), "7\n9\n644 4096\n", "{said}");
    assert!(said.contains("Invalid argument") && said.contains("Bad file descriptor"), "{said}");
}

#[test]
fn a_parameter_has_the_permissions_of_linux() {
    let output = sh(&[], &format!("stat -c %a {TYPE1}/*; stat -c %F {TYPE1}/dma_entry_limit"));
    assert!(text(&output.stdout).starts_with("644\n644\n644\nregular"), "{}", text(&output.stdout));
}

#[test]
fn the_machine_file_gives_parameters_their_first_values() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("parameters-{}.toml", std::process::id()));
    let machine =
        "[module.vfio_iommu_type1]\ndma_entry_limit = 5\nallow_unsafe_interrupts = true\n";
    std::fs::write(&path, machine).expect("a machine file");
    let options = ["--machine", path.to_str().expect("an UTF-8 path")];
    let output = sh(&options, &format!("cat {TYPE1}/*"));
    assert_eq!(text(&output.stdout), "Y\nN\n5\n", "{}", text(&output.stderr));
    std::fs::write(&path, "[module.vfio]\nno_such = 1\n").expect("a machine file");
    let output = sh(&options, "true");
    assert!(text(&output.stderr).contains("there is no parameter vfio.no_such"));
    std::fs::remove_file(&path).expect("it was there");
}

#[test]
fn without_a_container_neither_its_node_nor_its_module_is_there() {
    let script = "ls /dev/vfio; test -e /sys/module/vfio_iommu_type1; echo $?";
    assert_eq!(text(&sh(&["--container", "none"], script).stdout), "devices\n1\n");
    assert_eq!(text(&sh(&["--container", "iommufd"], script).stdout), "devices\nvfio\n1\n");
    assert_eq!(text(&sh(&[], script).stdout), "devices\nvfio\n0\n");
}

#[test]
fn a_group_without_an_iommu_has_a_node_of_its_own_and_its_parameter_on() {
    let script = "ls /dev/vfio; cat /sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    let output = sh(&["--device", "testdev,iommu=none"], script);
    assert_eq!(text(&output.stdout), "devices\nnoiommu-1\nvfio\nY\n", "{}", text(&output.stderr));
}

#[test]
fn the_rules_of_linux_7_2_are_a_choice() {
    let device = ["--device", "testdev,iommu=none"];
    let nodes = |options: &[&str]| {
        let script = "ls /dev/vfio/devices; cd /sys/class/vfio-dev; echo *; ls */dev 2>&1";
        text(&sh(&[&device[..], options].concat(), script).stdout)
    };
    let (old, new) = (nodes(&["--linux", "7.2"]), nodes(&["--linux", "7.3"]));
    assert_eq!(new, "noiommu-vfio0\nnoiommu-vfio0\nnoiommu-vfio0/dev\n");
    assert!(old.starts_with("vfio0\n") && old.contains("No such file"), "{old}");
    assert_eq!(nodes(&[]), new);
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("linux-{}.toml", std::process::id()));
    std::fs::write(&path, "linux = \"7.2\"\n").expect("a machine file");
    let file = ["--machine", path.to_str().expect("an UTF-8 path")];
    assert_eq!((nodes(&file), nodes(&[&file[..], &["--linux=7.3"]].concat())), (old, new));
    for (text_of_file, message) in [
        ("linux = \"7.4\"\n", ":1: linux=\"7.4\" is not 7.2 or 7.3"),
        ("linux = 7.2\n", ":1: linux: expected text, a number, a boolean or a list, found float"),
        (
            "linux = \"7.2\"\n[iommu]\nkind = \"smmuv3\"\nrepeat_invalidations = true\n",
            "repeat_invalidations=on needs Linux 7.3, whose GET_HW_INFO says so",
        ),
    ] {
        std::fs::write(&path, text_of_file).expect("a machine file");
        let said = text(&sh(&file, "true").stderr);
        assert!(said.contains(message), "{said}");
    }
    std::fs::remove_file(&path).expect("it was there");
}
