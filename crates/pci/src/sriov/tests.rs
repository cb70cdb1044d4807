use super::*;
use crate::config::CONFIG_SIZE;
use crate::function::Function;
use crate::model;
use crate::windows::Windows;

const CAPABILITY: u64 = 0x140;

fn made(bdf: &str, vfs: &str) -> Result<(Function, Vec<Function>)> {
    let address = bdf.parse().expect("an address");
    let options = [("vfs".to_owned(), vfs.to_owned()), ("latch".to_owned(), "on".to_owned())];
    let model = model::create("testdev", &options).expect("a model");
    Function::with_virtual_functions(address, model, &mut Windows::default())
}

fn read16(function: &Function, at: u64) -> u16 {
    let mut bytes = [0; 2];
    function.config_read(at, &mut bytes).expect("inside");
    u16::from_le_bytes(bytes)
}

fn read32(function: &Function, at: u64) -> u32 {
    u32::from(read16(function, at)) | u32::from(read16(function, at + 2)) << 16
}

#[test]
fn a_function_that_can_have_virtual_ones_has_the_capability() {
    let (physical, virtuals) = made("0000:01:00.0", "4").unwrap();
    assert_eq!(read32(&physical, 0x100), 0x1401_000e, "ARI, and what follows it");
    let at = |offset: u64| CAPABILITY + offset;
    assert_eq!(read32(&physical, at(0)), 0x0001_0010, "the last one");
    assert_eq!(read32(&physical, at(4)), 0, "no migration");
    assert_eq!(read32(&physical, at(8)), 0, "not enabled");
    assert_eq!(read32(&physical, at(0xc)), 0x0004_0004, "initial and total");
    assert_eq!(read32(&physical, at(0x14)), 0x0001_0080, "offset and stride");
    assert_eq!(read32(&physical, at(0x18)), 0x11ea_0000);
    assert_eq!((read32(&physical, at(0x1c)), read32(&physical, at(0x20))), (0x553, 1));
    let addresses: Vec<_> =
        virtuals.iter().map(|function| function.address().to_string()).collect();
    assert_eq!(addresses, ["0000:01:10.0", "0000:01:10.1", "0000:01:10.2", "0000:01:10.3"]);
}

#[test]
fn a_function_without_has_none() {
    let (physical, virtuals) = made("0000:01:00.0", "0").unwrap();
    assert!(physical.sriov().is_none() && !physical.is_virtual() && virtuals.is_empty());
    assert_eq!(read32(&physical, 0x100), 0);
}

#[test]
fn bars_of_virtual_functions_follow_each_other_apart_from_all_others() {
    let (physical, virtuals) = made("0000:01:00.0", "3").unwrap();
    let sriov = physical.sriov().unwrap();
    let mut pages = vec![physical.bar_address(0), physical.bar_address(2)];
    for (index, function) in (0..).zip(&virtuals) {
        for bar in [0, 2] {
            let (_, first) = sriov.bar(bar).unwrap();
            assert_eq!(function.bar_address(bar), first + index * 0x1000);
            pages.push(function.bar_address(bar));
        }
    }
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), 8, "no page twice");
    let of_capability = read32(&physical, CAPABILITY + 0x24);
    assert_eq!(u64::from(of_capability), virtuals[0].bar_address(0));
}

#[test]
fn virtual_functions_that_pass_the_end_of_the_bus_are_refused() {
    assert!(made("0000:00:0f.7", "1").is_ok(), "the last one");
    let error = made("0000:00:0f.7", "2").unwrap_err();
    assert_eq!((error.errno, error.at), (Errno::ENOSPC, Some(1)));
}

#[test]
fn enabling_shows_and_a_program_changes_nothing() {
    let (physical, _) = made("0000:01:00.0", "4").unwrap();
    let sriov = physical.sriov().unwrap();
    assert_eq!(sriov.enable(5).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(sriov.enabled(), 0);
    sriov.enable(2).unwrap();
    assert_eq!(sriov.enabled(), 2);
    assert_eq!(sriov.enable(3).unwrap_err().errno, Errno::EINVAL);
    let before: Vec<_> = (0..16).map(|i| read32(&physical, CAPABILITY + 4 * i)).collect();
    assert_eq!((before[2], before[4] & 0xffff), (9, 2));
    physical.config_write(0x100, &[0xff; 0x100]).unwrap();
    let after: Vec<_> = (0..16).map(|i| read32(&physical, CAPABILITY + 4 * i)).collect();
    assert_eq!(before, after);
    let mut byte = [0];
    physical.config_read(CAPABILITY + 0x10, &mut byte).unwrap();
    assert_eq!(byte, [2], "a piece of a register");
    sriov.disable();
    assert_eq!((sriov.enabled(), read32(&physical, CAPABILITY + 8)), (0, 0));
}

#[test]
fn each_register_takes_what_it_may() {
    let (physical, _) = made("0000:01:00.0", "4").unwrap();
    let sriov = physical.sriov().unwrap();
    let register = |at: usize| read32(&physical, CAPABILITY + at as u64);
    let before: Vec<_> = (0..16).map(|index| register(4 * index)).collect();
    sriov.write(0, &[0xff; LENGTH]);
    let changed: Vec<_> = (0..16).filter(|&index| register(4 * index) != before[index]).collect();
    assert_eq!(changed, [2, 9, 11], "control and the BARs; NumVFs and the page size are nonsense");
    assert_eq!(register(CONTROL), 9);
    assert_eq!((register(BAR_0), register(BAR_0 + 8)), (0xffff_f000, 0xffff_f000));
    sriov.write(CONTROL, &[0; 2]);
    sriov.write(NUM_VFS, &[3, 0]);
    sriov.write(SYSTEM_PAGE, &[0x10, 0, 0, 0]);
    assert_eq!((register(NUM_VFS) & 0xffff, register(SYSTEM_PAGE)), (3, 0x10));
    sriov.write(SYSTEM_PAGE, &[4, 0, 0, 0]);
    assert_eq!(register(SYSTEM_PAGE), 0x10, "no pages of 16 KiB");
    sriov.write(CONTROL, &[1, 0]);
    sriov.write(NUM_VFS, &[1, 0]);
    sriov.write(SYSTEM_PAGE, &[1, 0, 0, 0]);
    assert_eq!((register(NUM_VFS) & 0xffff, register(SYSTEM_PAGE)), (3, 0x10), "while enabled");
}

#[test]
fn a_virtual_function_shows_what_vfio_makes_of_it() {
    let (_, virtuals) = made("0000:01:00.0", "1").unwrap();
    let function = &virtuals[0];
    assert!(function.is_virtual() && function.sriov().is_none());
    assert_eq!(read32(function, 0), 0x11ea_1234);
    assert_eq!(read16(function, 4), 2, "memory, which no register of it holds");
    assert_eq!(read16(function, 0x3c), 0, "no pin");
    assert_eq!(read32(function, 0x100), 0x0001_000e, "ARI alone");
    assert_eq!(u64::from(read32(function, 0x10)), function.bar_address(0));
    function.config_write(0x10, &[0xff; 4]).unwrap();
    assert_eq!(read32(function, 0x10), 0xffff_f000);
}

#[test]
fn memory_of_a_virtual_function_answers_whatever_its_command_says() {
    let (_, virtuals) = made("0000:01:00.0", "1").unwrap();
    let function = &virtuals[0];
    function.config_write(4, &[0xff, 0xff]).unwrap();
    assert_eq!(read16(function, 4), 0x0406, "memory, bus mastering and INTx disable");
    function.config_write(4, &[0, 0]).unwrap();
    assert_eq!(read16(function, 4), 0);
    assert!(function.memory_enabled() && !function.bus_master());
    function.config_write(0x44, &[3]).unwrap();
    assert!(!function.memory_enabled(), "not in D3hot");
    function.config_write(0x0c, &[0xff, 0xff]).unwrap();
    assert_eq!(read16(function, 0x0c), 0, "no cache line size, no latency timer");
}

#[test]
fn the_host_reads_of_a_virtual_function_what_its_registers_hold() {
    let (physical, virtuals) = made("0000:01:00.0", "1").unwrap();
    let bytes = virtuals[0].config_of_host();
    assert_eq!(bytes.len(), CONFIG_SIZE);
    assert_eq!(bytes[..6], [0xff, 0xff, 0xff, 0xff, 0, 0]);
    assert_eq!(bytes[0x10..0x28], [0; 24]);
    assert_eq!(bytes[0x34], 0x40, "capabilities are there");
    assert_eq!(physical.config_of_host()[..4], [0x34, 0x12, 0xe9, 0x11]);
}

#[test]
fn a_physical_function_stays_awake_while_it_has_virtual_ones() {
    let (physical, _) = made("0000:01:00.0", "1").unwrap();
    let sriov = physical.sriov().unwrap();
    sriov.enable(1).unwrap();
    physical.config_write(0x44, &[3]).unwrap();
    assert!(!physical.in_d3hot());
    sriov.disable();
    physical.config_write(0x44, &[3]).unwrap();
    assert!(physical.in_d3hot());
}

#[test]
fn no_more_virtual_functions_than_the_option_takes() {
    for vfs in ["65", "-1", "x", ""] {
        let options = [("vfs".to_owned(), vfs.to_owned())];
        assert!(model::create("testdev", &options).is_err(), "{vfs:?}");
    }
}
