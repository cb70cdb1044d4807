use super::*;
use crate::description::{Ids, MsixTable, OwnCapability, Vectors};
use proptest::prelude::*;

const PM: usize = 0x40;
const MSI: usize = 0x50;
const EXPRESS: usize = 0x70;
const MSIX: usize = 0xb0;

fn description() -> Description {
    let bar =
        |size, kind, prefetchable| Some(Bar { size, kind, prefetchable, mappable: Vec::new() });
    Description {
        ids: Ids {
            vendor: 0x1b36,
            device: 0x0010,
            subsystem_vendor: 0x1af4,
            subsystem_device: 0x1100,
            class: 0x01_08_02,
            revision: 2,
        },
        bars: [
            bar(0x4000, BarKind::Memory64, true),
            None,
            bar(0x1000, BarKind::Memory32, false),
            bar(0x20, BarKind::Io, false),
            None,
            None,
        ],
        vectors: Vectors { intx: true, msi: 8, msix: 9 },
        msix: Some(MsixTable { table_bar: 2, table_offset: 0, pba_bar: 2, pba_offset: 0x800 }),
        ..Description::default()
    }
}

fn space() -> ConfigSpace {
    ConfigSpace::new(&description(), &[0x38_0000_4000, 0, 0xc000_1000, 0xc020, 0, 0], &Role::Plain)
}

fn read<const N: usize>(space: &ConfigSpace, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    space.read(offset as u64, &mut bytes, false).expect("inside");
    bytes
}

fn read16(space: &ConfigSpace, offset: usize) -> u16 {
    u16::from_le_bytes(read(space, offset))
}

fn read32(space: &ConfigSpace, offset: usize) -> u32 {
    u32::from_le_bytes(read(space, offset))
}

fn write16(space: &mut ConfigSpace, offset: usize, value: u16) -> Asked {
    space.write(offset as u64, &value.to_le_bytes()).expect("inside")
}

fn write32(space: &mut ConfigSpace, offset: usize, value: u32) -> Asked {
    space.write(offset as u64, &value.to_le_bytes()).expect("inside")
}

#[test]
fn identity_is_there_and_cannot_be_changed() {
    let mut space = space();
    space.write(0, &[0; 4]).expect("dropped");
    space.write(8, &[0; 4]).expect("dropped");
    space.write(0x2c, &[0; 4]).expect("dropped");
    assert_eq!(read32(&space, 0), 0x0010_1b36);
    assert_eq!(read32(&space, 8), 0x0108_0202);
    assert_eq!(read32(&space, 0x2c), 0x1100_1af4);
    assert_eq!(read::<1>(&space, 0x3d), [1], "INTA");
}

#[test]
fn an_open_begins_with_decoding_on_and_bus_mastering_off() {
    let space = space();
    assert_eq!(read16(&space, 4), 0x0003);
    let permissions = space.permissions();
    assert!(permissions.memory && permissions.io && !permissions.master && !permissions.d3hot);
}

#[test]
fn command_takes_its_own_bits_only() {
    let mut space = space();
    write16(&mut space, 4, 0xffff);
    assert_eq!(read16(&space, 4), 0x0547, "I/O, memory, master, parity, SERR, INTx disable");
    assert!(space.permissions().master && space.permissions().intx_disable);
    write16(&mut space, 4, 0);
    assert_eq!(read16(&space, 4), 0);
}

#[test]
fn the_status_register_shows_the_pin() {
    let space = space();
    assert_eq!(read16(&space, 6), 0x0010);
    let mut bytes = [0; 8];
    space.read(4, &mut bytes, true).expect("inside");
    assert_eq!(bytes[2], 0x18);
    let mut byte = [0];
    space.read(6, &mut byte, true).expect("inside");
    assert_eq!(byte, [0x18]);
}

#[test]
fn writing_all_ones_to_a_bar_reads_its_size() {
    let mut space = space();
    for bar in 0..6 {
        write32(&mut space, 0x10 + 4 * bar, 0xffff_ffff);
    }
    let sizes: Vec<_> = (0..6).map(|bar| read32(&space, 0x10 + 4 * bar)).collect();
    assert_eq!(sizes, [0xffff_c00c, 0xffff_ffff, 0xffff_f000, 0xffff_ffe1, 0, 0]);
    write32(&mut space, 0x30, 0xffff_ffff);
    assert_eq!(read32(&space, 0x30), 0, "no ROM");
}

#[test]
fn bars_show_the_addresses_they_were_given() {
    let mut space = space();
    let addresses: Vec<_> = (0..4).map(|bar| read32(&space, 0x10 + 4 * bar)).collect();
    assert_eq!(addresses, [0x400c, 0x38, 0xc000_1000, 0xc021]);
    space.write(0x12, &[0x77]).expect("inside");
    assert_eq!(read32(&space, 0x10), 0x0077_400c, "a byte at a time works too");
}

#[test]
fn the_capability_chain_holds_what_the_device_has() {
    let space = space();
    let mut chain = Vec::new();
    let [mut at] = read::<1>(&space, 0x34);
    while at != 0 {
        let [id, next] = read::<2>(&space, usize::from(at));
        chain.push((usize::from(at), id));
        at = next;
    }
    assert_eq!(chain, [(PM, 1), (MSI, 5), (EXPRESS, 0x10), (MSIX, 0x11)]);
    assert_eq!(read32(&space, 0x100), 0, "no extended capabilities");
}

#[test]
fn a_device_without_messages_has_no_capability_for_them() {
    let without = Description { vectors: Vectors::default(), msix: None, ..description() };
    let space = ConfigSpace::new(&without, &[0; 6], &Role::Plain);
    assert_eq!(read::<2>(&space, PM), [1, 0x70]);
    assert_eq!(read::<2>(&space, EXPRESS), [0x10, 0]);
    assert_eq!(read::<1>(&space, 0x3d), [0], "no pin");
}

#[test]
fn power_states_are_d0_and_d3hot() {
    let mut space = space();
    write16(&mut space, PM + 4, 3);
    assert!(space.permissions().d3hot);
    write16(&mut space, PM + 4, 1);
    assert!(space.permissions().d3hot, "D1 is not there, so nothing changes");
    write16(&mut space, PM + 4, 0xff00);
    assert!(!space.permissions().d3hot);
    assert_eq!(read16(&space, PM + 4), 0x0008, "no PME, no soft reset");
}

#[test]
fn the_reset_bit_asks_for_a_reset_and_reads_zero() {
    let mut space = space();
    assert!(!write16(&mut space, EXPRESS + 8, 0x2810).reset);
    assert!(write16(&mut space, EXPRESS + 8, 0xa810).reset);
    assert_eq!(read16(&space, EXPRESS + 8), 0x2810);
    assert!(space.write(EXPRESS as u64 + 9, &[0x80]).expect("inside").reset, "by its byte alone");
    write16(&mut space, EXPRESS + 8, 0x0200);
    assert_eq!(read16(&space, EXPRESS + 8) & 0x0200, 0, "no phantom functions");
    write16(&mut space, EXPRESS + 40, 0xffff);
    assert_eq!(read16(&space, EXPRESS + 40), 0xffdf, "no ARI forwarding");
}

#[test]
fn a_reset_brings_d0_and_keeps_the_rest() {
    let mut space = space();
    write16(&mut space, 4, 0x0406);
    write16(&mut space, PM + 4, 3);
    space.reset();
    assert!(!space.permissions().d3hot);
    assert_eq!(read16(&space, 4), 0x0406);
}

#[test]
fn the_msi_enable_bit_sticks_only_while_the_ioctl_enabled_it() {
    let mut space = space();
    assert_eq!(read16(&space, MSI + 2), 0x0086, "eight messages, 64-bit");
    write16(&mut space, MSI + 2, 0x0031);
    assert_eq!(read16(&space, MSI + 2) & 0x71, 0);
    space.set_irq_mode(IrqMode::Msi { messages: 3 });
    write16(&mut space, MSI + 2, 0x0031);
    assert_eq!(read16(&space, MSI + 2) & 0x71, 0x21, "capped to what was enabled, rounded up");
    space.set_irq_mode(IrqMode::Off);
    write16(&mut space, MSI + 2, 0x0001);
    assert_eq!(read16(&space, MSI + 2) & 0x01, 0);
}

#[test]
fn msi_address_and_data_are_kept() {
    let mut space = space();
    write32(&mut space, MSI + 4, 0xfee0_1000);
    write32(&mut space, MSI + 8, 0x1);
    write16(&mut space, MSI + 12, 0x4041);
    assert_eq!(read32(&space, MSI + 4), 0xfee0_1000);
    assert_eq!(read32(&space, MSI + 8), 0x1);
    assert_eq!(read16(&space, MSI + 12), 0x4041);
}

#[test]
fn msix_is_read_only_and_shows_what_the_ioctl_did() {
    let mut space = space();
    write16(&mut space, MSIX + 2, 0xc000);
    assert_eq!(read16(&space, MSIX + 2), 8, "nine vectors, disabled");
    assert_eq!(read32(&space, MSIX + 4), 2);
    assert_eq!(read32(&space, MSIX + 8), 0x802);
    space.set_irq_mode(IrqMode::Msix);
    assert_eq!(read16(&space, MSIX + 2), 0x8008);
    space.set_irq_mode(IrqMode::Intx);
    assert_eq!(read16(&space, MSIX + 2), 8);
}

#[test]
fn an_access_past_the_end_moves_nothing() {
    let mut space = space();
    let mut bytes = [0xaa; 4];
    for offset in [4093, 4096, u64::MAX] {
        let error = space.read(offset, &mut bytes, false).expect_err("past the end");
        assert_eq!(error.errno, Errno::EFAULT);
        assert_eq!(bytes, [0xaa; 4]);
        assert_eq!(space.write(offset, &[0; 4]).expect_err("past the end").errno, Errno::EFAULT);
    }
    assert_eq!(space.write(4092, &[1; 4]), Ok(Asked::default()));
}

/// Registers that change by other rules than a mask.
fn is_special(offset: usize) -> bool {
    (0x10..0x28).contains(&offset)
        || (PM + 4..PM + 6).contains(&offset)
        || (MSI + 2..MSI + 4).contains(&offset)
        || (EXPRESS + 8..EXPRESS + 10).contains(&offset)
}

proptest! {
    #[test]
    fn a_write_changes_writable_bits_only(
        offset in 0..CONFIG_SIZE,
        bytes in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut space = space();
        let length = bytes.len().min(CONFIG_SIZE - offset);
        let before = *space.bytes.clone();
        space.write(offset as u64, &bytes[..length]).expect("inside");
        for at in (0..CONFIG_SIZE).filter(|&at| !is_special(at)) {
            let written = at.checked_sub(offset).and_then(|index| bytes[..length].get(index));
            let mask = space.writable[at];
            let expected = written.map_or(before[at], |value| before[at] & !mask | value & mask);
            prop_assert_eq!(space.bytes[at], expected, "byte {:#x}", at);
        }
    }

    #[test]
    fn a_write_in_pieces_is_the_write_in_one(
        offset in 0..256_usize,
        bytes in proptest::collection::vec(any::<u8>(), 1..32),
        width in 1..5_usize,
    ) {
        let (mut whole, mut pieces) = (space(), space());
        // The MSI flags settle after each piece, so only their byte-wise result may differ.
        whole.set_irq_mode(IrqMode::Off);
        whole.write(offset as u64, &bytes).expect("inside");
        for (index, piece) in bytes.chunks(width).enumerate() {
            pieces.write((offset + index * width) as u64, piece).expect("inside");
        }
        prop_assert_eq!(whole.bytes, pieces.bytes);
    }
}

#[test]
fn capabilities_of_a_model_stand_behind_ours_and_cannot_be_written() {
    let own = OwnCapability { id: 0x0d, bytes: vec![0, 0, 0xf4, 0x1a, 0, 0x11] };
    let description = Description { own: vec![own], ..description() };
    let mut space = ConfigSpace::new(&description, &[0; BARS], &Role::Plain);
    let mut at = usize::from(read::<1>(&space, 0x34)[0]);
    while read::<1>(&space, at)[0] != 0x0d {
        at = usize::from(read::<1>(&space, at + 1)[0]);
        assert_ne!(at, 0, "it is in the list");
    }
    assert_eq!(read32(&space, at + 4), 0x1100_1af4);
    write32(&mut space, at + 4, 0);
    assert_eq!(read32(&space, at + 4), 0x1100_1af4);
    assert_eq!(read::<1>(&space, at + 1), [0], "it is the last");
}

#[test]
fn extended_capabilities_are_a_list_of_which_marked_bits_can_be_written() {
    let serial = ExtendedCapability {
        id: 3,
        version: 1,
        bytes: vec![1, 2, 3, 4, 5, 6, 7, 8],
        writable: Vec::new(),
    };
    let vendor = ExtendedCapability {
        id: 0xb,
        version: 2,
        bytes: vec![0x77, 0, 0xc0, 0, 0, 0, 0, 0],
        writable: vec![0, 0, 0, 0, 0xff, 0x0f, 0, 0],
    };
    let plain = description();
    let description = Description { extended: vec![serial, vendor], ..description() };
    let mut space = ConfigSpace::new(&description, &[0; BARS], &Role::Plain);
    let head = read32(&space, 0x100);
    assert_eq!(head & 0xf_ffff, 0x1_0003);
    assert_eq!(read::<8>(&space, 0x104), [1, 2, 3, 4, 5, 6, 7, 8]);
    let next = (head >> 20) as usize;
    assert!(next >= 0x10c && next.is_multiple_of(4), "{next:#x}");
    assert_eq!(read32(&space, next), 0x2_000b, "the last");
    write32(&mut space, next + 8, !0);
    assert_eq!(read32(&space, next + 8), 0xfff);
    write32(&mut space, 0x104, 0);
    assert_eq!(read32(&space, 0x104), 0x0403_0201);
    assert_eq!(read32(&ConfigSpace::new(&plain, &[0; BARS], &Role::Plain), 0x100), 0);
}

#[test]
fn the_register_of_a_rom_tells_its_size_and_keeps_its_enable_bit() {
    let mut space = space();
    space.place_rom(0xc010_0000, 0x1_0000);
    assert_eq!(read32(&space, 0x30), 0xc010_0000);
    write32(&mut space, 0x30, !0);
    assert_eq!(read32(&space, 0x30), 0xffff_0001);
    write32(&mut space, 0x30, 0xd000_0000);
    assert_eq!(read32(&space, 0x30), 0xd000_0000);
}
