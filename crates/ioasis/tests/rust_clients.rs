//! A client built on the rust-vmm crates vfio-ioctls and iommufd-ioctls, run whole.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Bytes the client reads of an NVMe namespace.
const READ: usize = 0x4000;

/// The client, built beside `ioasis`.
fn client() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_ioasis")).parent().expect("a folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package", "ioasis-rust-client"]);
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.arg("--target-dir").arg(folder.parent().expect("target")).status();
    assert!(built.expect("cargo").success(), "the client does not compile");
    folder.join("ioasis-rust-client")
}

fn run(device: &str, how: &str, model: &str) -> Output {
    run_on(&[device], &[how, model, "0000:01:00.0"])
}

fn run_on(devices: &[&str], arguments: &[&str]) -> Output {
    let mut ioasis = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    ioasis.arg("run");
    for device in devices {
        ioasis.args(["--device", device]);
    }
    let output = ioasis.arg("--").arg(client()).args(arguments).output().expect("ioasis starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{error}", output.status);
    output
}

#[test]
fn a_device_reads_another_through_a_dma_buf_until_that_is_revoked() {
    let output = run_on(&["testdev", "testdev"], &["peer", "0000:01:00.0", "0000:02:00.0"]);
    assert_eq!(output.stdout, b"ok\n");
}

#[test]
fn a_rust_client_copies_a_page_through_testdev_in_three_ways() {
    for how in ["legacy", "cdev", "iommufd"] {
        assert_eq!(run("testdev", how, "testdev").stdout, b"ok\n", "{how}");
    }
}

#[test]
fn what_a_device_does_by_itself_is_traced() {
    let trace = format!("events-{}.trace", std::process::id());
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(trace);
    let mut ioasis = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    ioasis.args(["run", "--device", "testdev", &format!("--trace={}", trace.display()), "--"]);
    let status = ioasis.arg(client()).args(["cdev", "testdev", "0000:01:00.0"]).output();
    assert!(status.expect("ioasis starts").status.success());
    let text = std::fs::read_to_string(&trace).expect("a trace");
    let events = text.lines().filter_map(|line| line.strip_prefix("[0000:01:00.0] "));
    let expected = [
        "interrupt MSI 0",
        "interrupt MSI 0",
        "DMA read fault at iova 0x50000000: nothing is mapped; the nearest mapping is 0x100000-0x10ffff",
        "interrupt MSI 0",
        "reset",
    ];
    assert_eq!(events.collect::<Vec<_>>(), expected);
    std::fs::remove_file(&trace).expect("the trace is still there");
}

#[test]
fn a_rust_client_reads_an_image_through_nvme_in_three_ways() {
    let name = format!("rust-client-{}.img", std::process::id());
    let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let bytes: Vec<u8> =
        (0..1_u32 << 20).flat_map(|i| i.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    std::fs::write(&image, &bytes).expect("an image");
    for blocks in [512, 4096] {
        let device = format!("nvme,image={},lba={blocks}", image.display());
        for how in ["legacy", "cdev", "iommufd"] {
            assert!(
                run(&device, how, "nvme").stdout == bytes[..READ],
                "{how} with blocks of {blocks}"
            );
        }
    }
    std::fs::remove_file(&image).expect("the image is still there");
}
