//! Unmodified programs, run whole: what they open, map and copy is there, and is right.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `ioasis run` with `devices`, ready for a client's name and arguments.
fn ioasis(devices: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.arg("run");
    for device in devices {
        command.args(["--device", device]);
    }
    command.arg("--");
    command
}

fn succeeded(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

/// A folder of this test's own, removed when it passes.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder under target");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }

    /// A file of `length` bytes that do not repeat.
    fn image(&self, name: &str, length: usize) -> String {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_le_bytes());
        }
        bytes.truncate(length);
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("an image");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A C client, built without a shared library: its system calls are its own.
fn static_client(folder: &Folder, name: &str) -> String {
    let program = folder.path(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
    let built = Command::new("gcc").args(["-O1", "-static", "-o", &program]).arg(source).status();
    assert!(built.expect("gcc is installed").success(), "{name}.c does not compile");
    program
}

fn testdev(how: &str) {
    let folder = Folder::new(how);
    let program = static_client(&folder, "testdev");
    let output = ioasis(&["testdev"]).args([&program, how]).output().expect("ioasis starts");
    assert_eq!(succeeded(&output), "ok\n");
}

#[test]
fn a_static_client_copies_a_page_through_a_container_and_a_mapped_bar() {
    testdev("legacy-mmap");
}

#[test]
fn a_static_client_copies_a_page_through_a_container_and_trapped_registers() {
    testdev("legacy-pread");
}

#[test]
fn a_static_client_copies_a_page_through_a_cdev_and_an_iommufd() {
    testdev("cdev");
}

#[test]
fn two_processes_share_an_iommufd_passed_over_a_socket() {
    testdev("shared");
}

#[test]
fn a_disk_is_read_without_an_error_while_its_mappings_change_their_process() {
    let folder = Folder::new("update");
    let image = folder.path("disk.img");
    let words = (0..32_u64 << 17).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    std::fs::write(&image, words.flat_map(u64::to_le_bytes).collect::<Vec<_>>()).expect("an image");
    let program = static_client(&folder, "update");
    let device = format!("nvme,image={image}");
    let output = ioasis(&[&device]).arg(&program).output().expect("ioasis starts");
    assert_eq!(succeeded(&output), "ok after enough reads\n");
}

#[test]
fn kvm_is_told_of_our_groups_and_devices() {
    // What is tested is what the supervisor answers; whether the host's KVM can be asked at all is the host's.
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = kvm {
        println!("/dev/kvm: {error}");
        return;
    }
    let folder = Folder::new("kvm");
    let program = static_client(&folder, "kvm");
    let output = ioasis(&["testdev"]).arg(&program).output().expect("ioasis starts");
    assert_eq!(succeeded(&output), "ok\n");
}

#[test]
fn qemu_img_reads_the_image_through_nvme() {
    let folder = Folder::new("read");
    let image = folder.image("disk.img", 8 << 20);
    let copy = folder.path("copy.img");
    let convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "nvme://0000:01:00.0/1", &copy];
    let device = format!("nvme,image={image}");
    succeeded(&ioasis(&[&device]).args(convert).output().expect("ioasis starts"));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&copy).unwrap(), "the copy differs");
}

#[test]
fn qemu_img_writes_the_image_through_nvme() {
    let folder = Folder::new("write");
    let source = folder.image("source.img", 8 << 20);
    let image = folder.path("disk.img");
    let convert =
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &source, "nvme://0000:01:00.0/1"];
    let device = format!("nvme,image={image},size=8M");
    succeeded(&ioasis(&[&device]).args(convert).output().expect("ioasis starts"));
    assert!(std::fs::read(&image).unwrap() == std::fs::read(&source).unwrap(), "the image differs");
    let compare =
        ["qemu-img", "compare", "-f", "raw", "-F", "raw", &source, "nvme://0000:01:00.0/1"];
    let out = succeeded(&ioasis(&[&device]).args(compare).output().expect("ioasis starts"));
    assert_eq!(out, "Images are identical.\n");
}

#[test]
fn qemu_img_knows_the_size_of_the_namespace() {
    let folder = Folder::new("info");
    let device = format!("nvme,image={},size=64M", folder.path("disk.img"));
    let info = ["qemu-img", "info", "--output=json", "nvme://0000:01:00.0/1"];
    let out = succeeded(&ioasis(&[&device]).args(info).output().expect("ioasis starts"));
    assert!(out.contains("\"virtual-size\": 67108864"), "{out}");
}

#[test]
fn qemu_img_benches_reads_and_writes_with_many_under_way() {
    let folder = Folder::new("bench");
    let device = format!("nvme,image={},size=16M", folder.path("disk.img"));
    for options in [&["-d", "64", "-s", "4096"][..], &["-w", "-d", "16", "-s", "65536"]] {
        let mut bench = ioasis(&[&device]);
        bench.args(["qemu-img", "bench", "-f", "raw", "-c", "1000"]).args(options);
        let output = bench.arg("nvme://0000:01:00.0/1").output().expect("ioasis starts");
        let text = succeeded(&output);
        assert!(text.contains("Run completed in") && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn qemu_io_reads_back_what_it_wrote() {
    let folder = Folder::new("io");
    let device = format!("nvme,image={},size=16M", folder.path("disk.img"));
    let io = [
        "qemu-io",
        "-f",
        "raw",
        "-c",
        "write -P 0x5a 1M 64k",
        "-c",
        "flush",
        "-c",
        "read -P 0x5a 1M 64k",
        "-c",
        "write -z 1M 4k",
        "-c",
        "read -P 0 1M 4k",
        "nvme://0000:01:00.0/1",
    ];
    let out = succeeded(&ioasis(&[&device]).args(io).output().expect("ioasis starts"));
    assert!(!out.contains("failed") && !out.contains("error"), "{out}");
    let image = std::fs::read(folder.path("disk.img")).unwrap();
    assert_eq!(image[(1 << 20) + 4096..][..4096], [0x5a; 4096]);
}

#[test]
fn the_exit_status_is_the_clients() {
    let status = |script: &str| ioasis(&[]).args(["sh", "-c", script]).status().unwrap();
    assert_eq!(status("exit 7").code(), Some(7));
    assert_eq!(status("kill -TERM $$").signal(), Some(15));
    let missing = ioasis(&[]).arg("/no/such/program").output().unwrap();
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/program"));
}
