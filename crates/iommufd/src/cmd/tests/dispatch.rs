use super::*;
use crate::tests::rig::{ARG, SIZE};

const END: u64 = BASE + SIZE as u64;

fn raw(fixture: &Fixture, ioctl: u32, bytes: &[u8]) -> Result<i64> {
    fixture.client.memory.write(ARG, bytes).unwrap();
    fixture.context.ioctl(&fixture.client, ioctl, ARG)
}

#[test]
fn the_size_is_read_before_the_code_is_judged() {
    let fixture = Fixture::new();
    // A hole of the table, wrong upper bits, and a good code, all without an argument to read.
    for code in [0x3b94, 0x1_3b81, abi::IOAS_ALLOC] {
        assert_eq!(
            fixture.context.ioctl(&fixture.client, code, 0).unwrap_err().errno,
            Errno::EFAULT
        );
    }
}

#[test]
fn a_code_that_differs_in_any_bit_is_unknown() {
    let fixture = Fixture::new();
    let mut cmd = abi::IoasAlloc { size: 12, ..Default::default() };
    for code in [abi::IOAS_ALLOC | 1 << 30, abi::IOAS_ALLOC ^ 1 << 8, 0x81] {
        assert_eq!(fixture.errno(code, &mut cmd), Errno::ENOTTY);
    }
    assert_eq!(fixture.errno(0x3b7f, &mut cmd), Errno::ENOTTY);
    assert_eq!(fixture.errno(0x3ba0, &mut cmd), Errno::ENOTTY);
}

#[test]
fn every_command_takes_its_first_size_and_no_less() {
    let fixture = Fixture::new();
    for row in &super::super::COMMANDS {
        let mut bytes = [0; 128];
        let short = u32::try_from(row.min_size - 1).unwrap();
        bytes[..4].copy_from_slice(&short.to_ne_bytes());
        assert_eq!(
            raw(&fixture, row.ioctl, &bytes).unwrap_err().errno,
            Errno::EINVAL,
            "{:#x}",
            row.ioctl
        );
    }
}

#[test]
fn an_unknown_tail_must_be_zero_and_changes_nothing_then() {
    let fixture = Fixture::new();
    for row in &super::super::COMMANDS {
        let mut bytes = [0; 128];
        // Longer than any struct there is.
        bytes[..4].copy_from_slice(&65_u32.to_ne_bytes());
        let zero = raw(&fixture, row.ioctl, &bytes).map_err(|error| error.errno);
        assert_ne!(zero, Err(Errno::E2BIG), "{:#x}", row.ioctl);
        bytes[64] = 0xff;
        assert_eq!(
            raw(&fixture, row.ioctl, &bytes).unwrap_err().errno,
            Errno::E2BIG,
            "{:#x}",
            row.ioctl
        );
    }
}

#[test]
fn the_tail_is_read_in_order_so_that_whichever_comes_first_decides() {
    let fixture = Fixture::new();
    let at = END - 4096;
    let mut bytes = [0; 4096];
    bytes[..4].copy_from_slice(&u32::MAX.to_ne_bytes());
    fixture.client.memory.write(at, &bytes).unwrap();
    // All zero to the end of the memory, then unreadable.
    assert_eq!(
        fixture.context.ioctl(&fixture.client, abi::DESTROY, at).unwrap_err().errno,
        Errno::EFAULT
    );
    fixture.client.memory.write(END - 1, &[1]).unwrap();
    assert_eq!(
        fixture.context.ioctl(&fixture.client, abi::DESTROY, at).unwrap_err().errno,
        Errno::E2BIG
    );
}

#[test]
fn who_has_a_long_tail_says_so_before_it_is_read() {
    let fixture = Fixture::new();
    for (size, is_long) in [(64 << 10, false), (128 << 10, true), (u32::MAX, true)] {
        fixture.client.took_long.set(false);
        let at = END - 4096;
        let mut bytes = [0; 4096];
        bytes[..4].copy_from_slice(&u32::to_ne_bytes(size));
        fixture.client.memory.write(at, &bytes).unwrap();
        fixture.context.ioctl(&fixture.client, abi::DESTROY, at).unwrap_err();
        assert_eq!(fixture.client.took_long.get(), is_long, "{size}");
    }
}

#[test]
fn missing_fields_are_zero() {
    let fixture = Fixture::new();
    let bound = fixture.device();
    let ioas = fixture.ioas();
    let mut cmd =
        abi::HwptAlloc { size: 24, dev_id: bound.id(), pt_id: ioas, ..Default::default() };
    // Beyond the 24 bytes the client says it has.
    cmd.data_type = abi::HWPT_DATA_VTD_S1;
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    assert_ne!(cmd.out_hwpt_id, 0);
}

#[test]
fn a_reply_that_cannot_be_written_leaves_no_object() {
    let mut fixture = Fixture::new();
    let (bound, ioas) = (fixture.device(), fixture.ioas());
    fixture.client.read_only = true;
    let mut cmd = abi::IoasAlloc { size: 12, ..Default::default() };
    assert_eq!(fixture.errno(abi::IOAS_ALLOC, &mut cmd), Errno::EFAULT);
    let mut cmd =
        abi::HwptAlloc { size: 48, dev_id: bound.id(), pt_id: ioas, ..Default::default() };
    assert_eq!(fixture.errno(abi::HWPT_ALLOC, &mut cmd), Errno::EFAULT);
    fixture.client.read_only = false;
    assert_eq!(fixture.ioas(), ioas + 1);
    fixture.destroy(ioas).unwrap();
}

#[test]
fn destroy_of_nothing_is_enoent_whatever_the_tail_says_if_it_is_zero() {
    let fixture = Fixture::new();
    assert_eq!(fixture.destroy(0).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(fixture.destroy(7).unwrap_err().errno, Errno::ENOENT);
    let id = fixture.ioas();
    fixture.destroy(id).unwrap();
    assert_eq!(fixture.destroy(id).unwrap_err().errno, Errno::ENOENT);
}

#[test]
fn container_codes_work_on_the_same_file() {
    let fixture = Fixture::new();
    let call = |code, arg| fixture.context.ioctl(&fixture.client, code, arg);
    assert_eq!(call(ioasis_uapi::vfio::GET_API_VERSION, 0), Ok(0));
    assert_eq!(call(ioasis_uapi::vfio::CHECK_EXTENSION, 1), Ok(1));
    assert_eq!(call(ioasis_uapi::vfio::CHECK_EXTENSION, 1 << 32 | 1), Ok(0));
    assert_eq!(call(ioasis_uapi::vfio::IOMMU_DIRTY_PAGES, 0).unwrap_err().errno, Errno::ENOTTY);
}
