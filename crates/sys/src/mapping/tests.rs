use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags};

use super::*;

const PAGE: usize = 4096;

fn memfd(pages: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("mapping-test", MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&fd, pages * PAGE as u64).expect("a size");
    fd
}

fn mapped(fd: &OwnedFd, pages: usize) -> Mapping {
    Mapping::file(fd.as_fd(), 0, pages * PAGE, Access::ReadWrite).expect("a mapping")
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from((i * 7 + i / 251) % 256).expect("below 256")).collect()
}

#[test]
fn every_length_and_alignment_is_copied_exactly() {
    let mapping = Mapping::anonymous(8 * PAGE).expect("a mapping");
    let lengths = (0..300).chain([511, 512, 513, 4095, 4096, 4097, 8191, 8192, 8193, 20_000]);
    for length in lengths {
        for shift in [0, 1, 15, 31, 33, 63] {
            let source = pattern(length + shift);
            mapping.fill(0, 8 * PAGE, 0xee).expect("fill");
            mapping.write(64 + shift as u64, &source[shift..]).expect("write");
            let mut back = vec![0; length + 2];
            mapping.read(63 + shift as u64, &mut back).expect("read");
            assert_eq!(
                (back[0], back[length + 1]),
                (0xee, 0xee),
                "{length} bytes at {shift} stay inside"
            );
            assert_eq!(&back[1..=length], &source[shift..], "{length} bytes at {shift}");
        }
    }
}

#[test]
fn the_routine_for_old_processors_copies_exactly() {
    copy::install();
    for length in 33..400 {
        let source = pattern(length);
        let mut target = vec![0xee; length + 1];
        // SAFETY: 1. both are local buffers of at least `length` bytes.
        let copied = unsafe { copy::copy_sse2(target.as_mut_ptr(), source.as_ptr(), length) };
        assert_eq!(copied, Ok(()));
        assert_eq!(&target[..length], &source[..]);
        assert_eq!(target[length], 0xee);
    }
}

#[test]
fn a_truncated_file_is_efault_for_every_access() {
    let fd = memfd(4);
    let mapping = mapped(&fd, 4);
    mapping.write(0, &pattern(4 * PAGE)).expect("the file is there");
    rustix::fs::ftruncate(&fd, 0).expect("truncate");
    let at = PAGE as u64;
    for length in [1, 3, 4, 8, 16, 32, 64, 100, 129, PAGE, 2 * PAGE, 3 * PAGE] {
        let mut buf = vec![0; length];
        assert_eq!(
            mapping.read(at, &mut buf).expect_err("gone").errno,
            Errno::EFAULT,
            "read of {length}"
        );
        assert_eq!(
            mapping.write(at, &buf).expect_err("gone").errno,
            Errno::EFAULT,
            "write of {length}"
        );
        assert_eq!(
            mapping.fill(at, length, 0).expect_err("gone").errno,
            Errno::EFAULT,
            "fill of {length}"
        );
    }
    assert_eq!(mapping.load_u32(at).expect_err("gone").errno, Errno::EFAULT);
    assert_eq!(mapping.load_u64(at).expect_err("gone").errno, Errno::EFAULT);
    assert_eq!(mapping.store_u32(at, 1).expect_err("gone").errno, Errno::EFAULT);
    assert_eq!(mapping.store_u64(at, 1).expect_err("gone").errno, Errno::EFAULT);
    assert_eq!(mapping.swap_u32(at, 1).expect_err("gone").errno, Errno::EFAULT);
    rustix::fs::ftruncate(&fd, 4 * PAGE as u64).expect("grow");
    assert_eq!(mapping.load_u32(at), Ok(0), "it works again once the file is back");
}

#[test]
fn a_copy_that_dies_half_way_says_so() {
    let fd = memfd(4);
    let mapping = mapped(&fd, 4);
    rustix::fs::ftruncate(&fd, 2 * PAGE as u64).expect("truncate");
    let mut buf = vec![0; 3 * PAGE];
    assert_eq!(mapping.read(0, &mut buf).expect_err("the third page is gone").errno, Errno::EFAULT);
    assert_eq!(
        mapping.write(100, &buf[..2 * PAGE]).expect_err("crosses the end").errno,
        Errno::EFAULT
    );
    assert_eq!(mapping.write(0, &buf[..2 * PAGE]), Ok(()));
}

#[test]
fn a_punched_hole_reads_zero() {
    let fd = memfd(2);
    let mapping = mapped(&fd, 2);
    mapping.fill(0, 2 * PAGE, 0x55).expect("fill");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&fd, punch, 0, PAGE as u64).expect("punch");
    let mut buf = [1; 2];
    mapping.read(PAGE as u64 - 1, &mut buf).expect("read");
    assert_eq!(buf, [0, 0x55]);
}

#[test]
fn truncation_under_a_running_copy_never_kills() {
    let fd = memfd(16);
    let mapping = mapped(&fd, 16);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut good, mut bad) = (0_u32, 0_u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                rustix::fs::ftruncate(&fd, 0).expect("truncate");
                rustix::fs::ftruncate(&fd, 16 * PAGE as u64).expect("grow");
            }
        });
        let mut buf = vec![0; 16 * PAGE];
        let begun = std::time::Instant::now();
        while begun.elapsed().as_millis() < 300
            || (good == 0 || bad == 0) && begun.elapsed().as_secs() < 60
        {
            for answer in [mapping.read(0, &mut buf), mapping.write(0, &buf)] {
                match answer {
                    Ok(()) => good += 1,
                    Err(error) => {
                        assert_eq!(error.errno, Errno::EFAULT);
                        bad += 1;
                    }
                }
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(good > 0 && bad > 0, "both outcomes were met: {good} copies, {bad} faults");
}

#[test]
fn nothing_outside_the_mapping_is_touched() {
    let mapping = Mapping::anonymous(PAGE).expect("a mapping");
    let mut buf = [0; 8];
    for offset in [PAGE as u64 - 7, PAGE as u64 + 1, u64::MAX, u64::MAX - 7] {
        assert_eq!(
            mapping.read(offset, &mut buf).expect_err("outside").errno,
            Errno::EFAULT,
            "{offset:#x}"
        );
        assert_eq!(
            mapping.write(offset, &buf).expect_err("outside").errno,
            Errno::EFAULT,
            "{offset:#x}"
        );
    }
    assert_eq!(mapping.load_u32(PAGE as u64).expect_err("outside").errno, Errno::EFAULT);
    assert_eq!(mapping.read(PAGE as u64, &mut []), Ok(()), "no bytes are always inside");
}

#[test]
fn a_single_access_must_be_aligned() {
    let mapping = Mapping::anonymous(PAGE).expect("a mapping");
    assert_eq!(mapping.load_u32(2).expect_err("misaligned").errno, Errno::EINVAL);
    assert_eq!(mapping.load_u64(4).expect_err("misaligned").errno, Errno::EINVAL);
    assert_eq!(mapping.store_u64(12, 0).expect_err("misaligned").errno, Errno::EINVAL);
    mapping.store_u64(8, 0x1122_3344_5566_7788).expect("store");
    assert_eq!(mapping.load_u32(8), Ok(0x5566_7788));
    mapping.store_u32(12, 1).expect("store");
    assert_eq!(mapping.load_u64(8), Ok(0x1_5566_7788));
    assert_eq!(mapping.swap_u32(6, 0).expect_err("misaligned").errno, Errno::EINVAL);
    assert_eq!(mapping.swap_u32(8, 2), Ok(0x5566_7788));
    assert_eq!(mapping.load_u64(8), Ok(0x1_0000_0002), "the word beside it stays");
}

#[test]
fn a_read_only_mapping_refuses_stores_without_a_signal() {
    let fd = memfd(1);
    let mapping = Mapping::file(fd.as_fd(), 0, PAGE, Access::Read).expect("a mapping");
    assert_eq!(mapping.write(0, &[1]).expect_err("read-only").errno, Errno::EFAULT);
    assert_eq!(mapping.fill(0, 1, 1).expect_err("read-only").errno, Errno::EFAULT);
    assert_eq!(mapping.store_u32(0, 1).expect_err("read-only").errno, Errno::EFAULT);
    assert_eq!(mapping.swap_u32(0, 1).expect_err("read-only").errno, Errno::EFAULT);
    assert_eq!(mapping.load_u32(0), Ok(0));
}

#[test]
fn a_file_opened_for_reading_cannot_be_mapped_for_writing() {
    let fd =
        rustix::fs::open("/proc/self/exe", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
            .expect("open");
    let refused =
        Mapping::file(fd.as_fd(), 0, PAGE, Access::ReadWrite).expect_err("opened O_RDONLY");
    assert_eq!(refused.errno, Errno::EACCES);
    assert_eq!(Mapping::anonymous(0).expect_err("no bytes").errno, Errno::EINVAL);
}

/// A child process that runs the test named `name` with `IOASIS_SIGBUS_CHILD` set; how it ended.
fn run_child(name: &str) -> std::process::ExitStatus {
    let exe = std::env::current_exe().expect("this test binary");
    let path = format!("mapping::tests::{name}");
    std::process::Command::new(exe)
        .args(["--exact", &path, "--test-threads=1"])
        .env("IOASIS_SIGBUS_CHILD", "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .expect("the child ran")
}

#[test]
fn a_sigbus_that_is_not_ours_still_kills() {
    if std::env::var_os("IOASIS_SIGBUS_CHILD").is_some() {
        let mapping = mapped(&memfd(1), 2);
        // SAFETY: 1. mapped memory past the end of its file: the read raises SIGBUS, which is what is tested.
        std::hint::black_box(unsafe { mapping.base.as_ptr().add(PAGE).read_volatile() });
        return;
    }
    let status = run_child("a_sigbus_that_is_not_ours_still_kills");
    // Of the signal, or of whatever a sanitizer put in its place.
    assert!(!status.success(), "{status}");
}

#[test]
fn a_sigbus_another_process_sends_goes_to_the_handler_before_ours() {
    if std::env::var_os("IOASIS_SIGBUS_CHILD").is_some() {
        let _mapping = Mapping::anonymous(PAGE).expect("a mapping");
        // The handler before ours is the Rust runtime's: it makes the next SIGBUS deadly.
        for _ in 0..2 {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS)
                .expect("kill");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        return;
    }
    let status = run_child("a_sigbus_another_process_sends_goes_to_the_handler_before_ours");
    // Of the signal, or of whatever a sanitizer put in its place.
    assert!(!status.success(), "{status}");
}
