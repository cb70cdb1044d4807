//! Reads, writes and mappings of a device file.

use ioasis_uapi::Errno;

use crate::rig::{RAISE, Rig, SCRATCH, TABLE, WATCHED, at, errno};

/// Command register: decode memory and I/O.
const DECODE: u16 = 3;

#[test]
fn an_access_is_cut_into_the_widest_aligned_pieces() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    rig.log.lock().clear();
    let mut buf = [0; 23];
    assert_eq!(file.read(at(0, RAISE + 0x101), &mut buf).expect("registers"), 23);
    let seen = std::mem::take(&mut *rig.log.lock());
    let at = RAISE + 0x100;
    assert_eq!(seen, [(at + 1, 1), (at + 2, 2), (at + 4, 4), (at + 8, 8), (at + 16, 8)]);
}

#[test]
fn a_trapped_register_reads_back() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    assert_eq!(file.write(at(0, SCRATCH), &[1, 2, 3, 4, 5, 6, 7, 8]).expect("a register"), 8);
    let mut buf = [0; 8];
    assert_eq!(file.read(at(0, SCRATCH), &mut buf).expect("a register"), 8);
    assert_eq!(buf, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn the_msix_table_reads_all_ones_and_drops_writes() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    file.write(at(0, TABLE), &[0; 16]).expect("dropped");
    let mut buf = [0; 16];
    file.read(at(0, TABLE), &mut buf).expect("all ones");
    assert_eq!(buf, [0xff; 16]);
}

#[test]
fn a_mapped_page_and_a_read_see_the_same_bytes() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    file.write(at(2, 0x1ffe), &[1, 2, 3]).expect("memory");
    let pages = file.memory().pages[2].clone().expect("BAR 2 has pages");
    let mut buf = [0; 3];
    pages.read(0x1ffe, &mut buf).expect("the mapping");
    assert_eq!(buf, [1, 2, 3]);
}

#[test]
fn an_access_ends_where_the_bar_does() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let mut buf = [0; 64];
    assert_eq!(file.read(at(2, 0x3ff0), &mut buf).expect("the rest"), 16);
    assert_eq!(file.write(at(2, 0x3ff0), &buf).expect("the rest"), 16);
    assert_eq!(errno(file.read(at(2, 0x4000), &mut buf)), Some(Errno::EINVAL));
    assert_eq!(file.read(at(4, 0x1c), &mut buf).expect("the rest"), 4);
}

#[test]
fn an_access_outside_the_regions_is_refused() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let mut buf = [0; 4];
    // Below the first region, absent BARs, VGA, past the last region, the end of the offsets.
    for offset in [0, 0x1000, at(1, 0), at(5, 0), at(6, 2048), at(8, 0), at(10, 0), u64::MAX - 8] {
        assert_eq!(errno(file.read(offset, &mut buf)), Some(Errno::EINVAL), "{offset:#x}");
        assert_eq!(errno(file.write(offset, &buf)), Some(Errno::EINVAL), "{offset:#x}");
        assert_eq!(file.read(offset, &mut []).expect("nothing"), 0, "{offset:#x}");
    }
}

#[test]
fn the_rom_is_read_and_all_ones_behind_its_content_and_never_written() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let mut bytes = [0; 16];
    assert_eq!(file.read(at(6, 0), &mut bytes).expect("the ROM"), 16);
    assert_eq!(&bytes, b"\x55\xaa a ROM\xff\xff\xff\xff\xff\xff\xff\xff");
    assert_eq!(file.read(at(6, 2040), &mut bytes).expect("the rest"), 8);
    assert_eq!(errno(file.write(at(6, 0), &bytes)), Some(Errno::EINVAL));
    let mut config = [0; 4];
    file.write(at(7, 0x30), &[0xff; 4]).expect("its register");
    file.read(at(7, 0x30), &mut config).expect("its register");
    assert_eq!(u32::from_le_bytes(config), 0xffff_f801, "its size, and the enable bit");
    file.write(at(7, 4), &[0, 0]).expect("no decoding");
    assert_eq!(errno(file.read(at(6, 0), &mut bytes)), Some(Errno::EIO));
}

#[test]
fn configuration_space_is_read_whole_or_not_at_all() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let mut whole = [0; 4096];
    assert_eq!(file.read(at(7, 0), &mut whole).expect("all of it"), 4096);
    assert_eq!(whole[..4], [0x34, 0x12, 0x78, 0x56]);
    for (offset, length) in [(0, 4097), (4095, 2), (4096, 1)] {
        let mut buf = vec![0; length];
        assert_eq!(
            errno(file.read(at(7, offset), &mut buf)),
            Some(Errno::EFAULT),
            "{offset} {length}"
        );
        assert_eq!(
            errno(file.write(at(7, offset), &buf)),
            Some(Errno::EFAULT),
            "{offset} {length}"
        );
    }
}

#[test]
fn memory_that_is_not_decoded_is_an_input_output_error() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    file.write(at(7, 4), &0_u16.to_le_bytes()).expect("decoding off");
    let mut buf = [0; 4];
    for bar in [0, 2] {
        assert_eq!(errno(file.read(at(bar, 0), &mut buf)), Some(Errno::EIO), "BAR {bar}");
        assert_eq!(errno(file.write(at(bar, 0), &buf)), Some(Errno::EIO), "BAR {bar}");
    }
    assert_eq!(file.read(at(4, 0), &mut buf).expect("I/O ports need no memory decoding"), 4);
    file.write(at(7, 4), &DECODE.to_le_bytes()).expect("decoding on");
    file.read(at(0, 0), &mut buf).expect("back");
}

#[test]
fn only_mappable_pages_are_mapped_and_only_shared() {
    const SHARED: u32 = 1;
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let good =
        [(at(0, 0), 0x1000), (at(0, 0x2000), 1), (at(2, 0), 0x4000), (at(2, 0x1000), 0x2001)];
    for (offset, length) in good {
        file.mmap(offset, length, SHARED).expect("mappable");
        assert_eq!(errno(file.mmap(offset, length, 2)), Some(Errno::EINVAL), "private");
    }
    let bad = [
        (at(0, 0), 0x1001),
        (at(0, 0x1000), 0x1000),
        (at(0, 0x3000), 0x1000),
        (at(0, 0), 0x4000),
        (at(2, 0), 0x4001),
        (at(2, 0x4000), 0x1000),
        (at(2, 0), u64::MAX),
        (at(1, 0), 0x1000),
        (at(4, 0), 0x1000),
        (at(6, 0), 0x1000),
        (at(7, 0), 0x1000),
        (at(20, 0), 0x1000),
        (0, 0x1000),
    ];
    for (offset, length) in bad {
        assert_eq!(
            errno(file.mmap(offset, length, SHARED)),
            Some(Errno::EINVAL),
            "{offset:#x} {length:#x}"
        );
    }
}

#[test]
fn a_mapping_says_which_of_its_pages_are_trapped() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    let watched = at(2, WATCHED)..at(2, 0x4000);
    assert_eq!(
        file.trapped(at(2, 0), 0x4000),
        std::slice::from_ref(&watched),
        "one area, two kinds"
    );
    assert_eq!(file.trapped(at(2, WATCHED), 0x1000), std::slice::from_ref(&watched));
    assert_eq!(file.trapped(at(2, 0x2000), u64::MAX), [watched], "no further than the BAR");
    for (offset, length) in [
        (at(2, 0), WATCHED),
        (at(0, 0), 0x4000),
        (at(1, 0), 0x1000),
        (at(7, 0), 0x1000),
        (0, 0x1000),
        (u64::MAX, 1),
    ] {
        assert!(file.trapped(offset, length).is_empty(), "{offset:#x} {length:#x}");
    }
}

#[test]
fn an_instruction_on_a_trapped_page_is_a_system_call_to_the_model() {
    let rig = Rig::new();
    let (_group, file) = rig.open();
    file.store(at(2, WATCHED), &0x1122_3344_5566_7788_u64.to_le_bytes()).expect("a store");
    let mut bytes = [0; 4];
    file.load(at(2, WATCHED), &mut bytes).expect("a load");
    assert_eq!(bytes, [0x88, 0x77, 0x66, 0x55]);
    file.write(at(2, WATCHED), &[5]).expect("pwrite");
    file.load(at(2, WATCHED), &mut bytes).expect("a load");
    assert_eq!(bytes, [5, 0, 0, 0]);
    assert_eq!(*rig.log.lock(), [(WATCHED, 8), (WATCHED, 4), (WATCHED, 1), (WATCHED, 4)]);
    for offset in [at(2, 0), at(0, 0), at(1, 0), at(7, 0), at(8, 0), 0, u64::MAX] {
        assert_eq!(errno(file.store(offset, &[1])), Some(Errno::EINVAL), "{offset:#x}");
    }
    file.write(at(7, 4), &0_u16.to_le_bytes()).expect("decoding off");
    assert_eq!(errno(file.load(at(2, WATCHED), &mut bytes)), Some(Errno::EIO));
    rig.machine.remove_all();
    assert_eq!(errno(file.store(at(2, WATCHED), &[1])), Some(Errno::ENODEV));
}

#[test]
fn configuration_space_lies_where_programs_that_do_not_ask_look_for_it() {
    // DPDK up to 22.11: the index, shifted by 40.
    let config = ioasis_uapi::vfio::PCI_CONFIG_REGION_INDEX;
    assert_eq!(at(u64::from(config), 4), (7 << 40) + 4);
    for index in 0..9 {
        let first = at(index, 0);
        assert!(first >= 1 << 40, "ordinary offsets are nobody's");
        for offset in [first, first + (1 << 40) - 1] {
            assert_eq!(ioasis_vfio::region_index(offset).map(u64::from), Some(index));
        }
    }
    // Where the rule of all others would have it, it answers too.
    let by_rule = (8 << 40) + 0x3c;
    assert_eq!(
        ioasis_vfio::region_index(by_rule),
        Some(ioasis_uapi::vfio::PCI_CONFIG_REGION_INDEX)
    );
}
