//! Chapter 6: the NVM command set.

use super::rig::{DATA, MEMORY, PAGE, READ_ONLY, Rig, transfer, with_data};
use crate::model::nvme::admin::SET_FEATURES;
use crate::model::nvme::command::Command;
use crate::model::nvme::io::{COMPARE, DATASET_MANAGEMENT, FLUSH, READ, WRITE, WRITE_ZEROES};
use crate::refusal::{ImageAccess, Refusal};
use ioasis_uapi::Errno;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::AsRawFd;

const LIST: u64 = DATA - PAGE;
const MEBIBYTE: usize = 1 << 20;

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) * 2 + 1;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| step()).collect()
}

/// PRP entries for `length` bytes from `data`, page after page, the list at [`LIST`].
fn prps(rig: &Rig, data: u64, length: u64) -> [u64; 2] {
    let first = PAGE - data % PAGE;
    match length.saturating_sub(first) {
        0 => [data, 0],
        rest if rest <= PAGE => [data, data + first],
        rest => {
            let pages = (0..rest.div_ceil(PAGE)).map(|page| data + first + page * PAGE);
            let list: Vec<u8> = pages.flat_map(u64::to_le_bytes).collect();
            assert!(list.len() <= 4096, "one list page");
            rig.memory.put(LIST, &list);
            [data, LIST]
        }
    }
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_image() {
    for lba in ["512", "4096"] {
        let block: u64 = lba.parse().expect("a number");
        let mut rig = Rig::with_queue(&[("lba", lba)]);
        let bytes = pattern(128 << 10, 1);
        rig.memory.put(DATA, &bytes);
        let list = prps(&rig, DATA, bytes.len() as u64);
        let blocks = u32::try_from(bytes.len() as u64 / block).expect("few");
        assert_eq!(rig.status(1, transfer(WRITE, 3, blocks, list)), 0);
        let at = usize::try_from(3 * block).expect("small");
        assert_eq!(rig.image()[at..at + bytes.len()], bytes);
        rig.memory.put(DATA, &vec![0; bytes.len()]);
        assert_eq!(rig.status(1, transfer(READ, 3, blocks, list)), 0);
        assert_eq!(rig.memory.get(DATA, bytes.len()), bytes);
    }
}

#[test]
fn neighbours_and_strangers_in_one_batch_get_their_own_blocks() {
    let mut rig = Rig::with_queue(&[]);
    let bytes = pattern(MEBIBYTE, 2);
    rig.put_image(0, &bytes);
    let lbas = [0_u64, 8, 16, 100, 108, 7, 8, 2040, 0];
    let commands =
        (0..).zip(lbas).map(|(index, lba)| transfer(READ, lba, 8, [DATA + index * PAGE, 0]));
    let commands: Vec<_> = commands.collect();
    assert!(rig.run(1, &commands).iter().all(|answer| answer.status == 0));
    for (index, lba) in (0..).zip(lbas) {
        let at = usize::try_from(lba * 512).expect("small");
        assert_eq!(rig.memory.get(DATA + index * PAGE, 4096), bytes[at..at + 4096], "LBA {lba}");
    }
}

#[test]
fn a_bad_command_in_a_batch_fails_alone() {
    let mut rig = Rig::with_queue(&[]);
    let bytes = pattern(MEBIBYTE, 3);
    rig.put_image(0, &bytes);
    let commands = [
        transfer(READ, 0, 8, [DATA, 0]),
        transfer(READ, 8, 8, [READ_ONLY, 0]),
        transfer(READ, 16, 8, [DATA + 2 * PAGE, 0]),
        transfer(READ, 2041, 8, [DATA, 0]),
        transfer(READ, 24, 8, [DATA + 3, 0]),
        transfer(READ, 32, 8, [DATA + 5 * PAGE, 0]),
        transfer(READ, 40, 8, [0, 0]),
    ];
    let statuses: Vec<_> = rig.run(1, &commands).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [0, 0x04, 0, 0x80, 0x13, 0, 0x04]);
    assert_eq!(rig.memory.get(DATA, 4096), bytes[..4096]);
    assert_eq!(rig.memory.get(DATA + 2 * PAGE, 4096), bytes[8192..8192 + 4096]);
    assert_eq!(rig.memory.get(DATA + 5 * PAGE, 4096), bytes[16384..16384 + 4096]);
}

#[test]
fn a_write_from_memory_that_is_not_there_changes_nothing() {
    let mut rig = Rig::with_queue(&[]);
    rig.memory.put(DATA, &pattern(8192, 4));
    let commands = [
        transfer(WRITE, 0, 8, [DATA, 0]),
        transfer(WRITE, 8, 8, [MEMORY - PAGE, 0]),
        transfer(WRITE, 16, 8, [READ_ONLY, 0]),
    ];
    let statuses: Vec<_> = rig.run(1, &commands).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [0, 0x04, 0], "memory that may only be read is good to write from");
    let image = rig.image();
    assert_eq!(image[..4096], pattern(8192, 4)[..4096]);
    assert_eq!(image[4096..8192], [0; 4096]);
}

#[test]
fn the_range_and_the_namespace_are_checked() {
    let mut rig = Rig::with_queue(&[]);
    let read = |lba, blocks| transfer(READ, lba, blocks, [DATA, 0]);
    assert_eq!(rig.status(1, read(2047, 1)), 0);
    for command in [read(2048, 1), read(2047, 2), read(u64::MAX, 1), read(u64::MAX, 0x1000)] {
        assert_eq!(rig.status(1, command), 0x80);
    }
    for namespace in [0, 2, 0xffff_ffff] {
        assert_eq!(rig.status(1, Command { namespace, ..read(0, 1) }), 0x0b);
    }
    assert_eq!(rig.status(1, Command { flags: 1, ..read(0, 1) }), 0x02);
    assert_eq!(rig.status(1, Command { flags: 0x80, ..read(0, 1) }), 0x02);
    assert_eq!(rig.status(1, with_data(0x7f, 1, [0; 6])), 0x01);
}

#[test]
fn a_transfer_larger_than_promised_is_refused() {
    let mut rig = Rig::with_queue(&[("size", "8M")]);
    let list = DATA + (8 << 20);
    let pages: Vec<u8> = (1..512).flat_map(|page| (DATA + page * PAGE).to_le_bytes()).collect();
    rig.memory.put(list, &pages);
    assert_eq!(rig.status(1, transfer(READ, 0, 4096, [DATA, list])), 0, "2 MiB");
    assert_eq!(rig.status(1, transfer(READ, 0, 4097, [DATA, list])), 0x02);
}

#[test]
fn an_image_cut_short_is_a_read_error() {
    let mut rig = Rig::with_queue(&[]);
    rig.put_image(0, &pattern(4096, 5));
    rig.cut_image(4096);
    let answers =
        rig.run(1, &[transfer(READ, 0, 8, [DATA, 0]), transfer(READ, 8, 8, [DATA + PAGE, 0])]);
    assert_eq!((answers[0].status, answers[1].status), (0, 0x281));
    assert_eq!(rig.memory.get(DATA, 4096), pattern(4096, 5));
    let cut =
        |offset, length| Refusal::Image { access: ImageAccess::Read, offset, length, errno: None };
    assert_eq!(rig.told.take(), [cut(4096, 4096)], "once, and the other one not at all");
    assert_eq!(rig.status(1, transfer(COMPARE, 16, 1, [DATA, 0])), 0x281);
    assert_eq!(rig.told.take(), [cut(8192, 512)]);
}

#[test]
fn an_image_that_cannot_be_written_is_told_with_what_the_system_answered() {
    let file = rustix::fs::memfd_create("image", MemfdFlags::ALLOW_SEALING).expect("a memfd");
    rustix::fs::ftruncate(&file, 1 << 20).expect("1 MiB");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut rig = Rig::with_queue(&[("image", &path)]);
    assert_eq!(rig.status(1, transfer(WRITE, 0, 1, [DATA, 0])), 0);
    assert_eq!(rig.told.take(), [], "nothing is told of what went well");
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).expect("sealed");
    let refused = |access, offset, length| Refusal::Image {
        access,
        offset,
        length,
        errno: Some(Errno::EPERM),
    };
    assert_eq!(rig.status(1, transfer(WRITE, 1, 2, [DATA, 0])), 0x280);
    assert_eq!(rig.told.take(), [refused(ImageAccess::Write, 512, 1024)]);
    let zeroes =
        |words| Command { opcode: WRITE_ZEROES, namespace: 1, words, ..Command::default() };
    assert_eq!(rig.status(1, zeroes([2, 0, 1 << 25, 0, 0, 0])), 0x280);
    assert_eq!(rig.told.take(), [refused(ImageAccess::Deallocate, 1024, 512)]);
}

#[test]
fn compare_tells_equal_from_different() {
    let mut rig = Rig::with_queue(&[]);
    let bytes = pattern(64 << 10, 6);
    rig.put_image(512, &bytes);
    rig.memory.put(DATA, &bytes);
    let list = prps(&rig, DATA, bytes.len() as u64);
    assert_eq!(rig.status(1, transfer(COMPARE, 1, 128, list)), 0);
    rig.memory.put(DATA + 65_535, &[!bytes[65_535]]);
    assert_eq!(rig.status(1, transfer(COMPARE, 1, 128, list)), 0x285);
    assert_eq!(rig.status(1, transfer(COMPARE, 1, 8, [MEMORY - PAGE, 0])), 0x04);
    assert_eq!(rig.status(1, transfer(COMPARE, 2048, 1, [DATA, 0])), 0x80);
}

#[test]
fn write_zeroes_zeroes_its_blocks_only() {
    for deallocate in [0, 1 << 25] {
        let mut rig = Rig::with_queue(&[]);
        rig.put_image(0, &vec![0xaa; MEBIBYTE]);
        let mut command = transfer(WRITE_ZEROES, 3, 1000, [0, 0]);
        command.words[2] |= deallocate;
        assert_eq!(rig.status(1, command), 0);
        let image = rig.image();
        let (start, end) = (3 * 512, 1003 * 512);
        assert!(image[start..end].iter().all(|&byte| byte == 0));
        assert!(image[..start].iter().chain(&image[end..]).all(|&byte| byte == 0xaa));
        assert_eq!(rig.status(1, transfer(WRITE_ZEROES, 2000, 49, [0, 0])), 0x80);
    }
}

fn range(start: u64, blocks: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[4..8].copy_from_slice(&blocks.to_le_bytes());
    range[8..].copy_from_slice(&start.to_le_bytes());
    range
}

#[test]
fn deallocated_ranges_read_zero() {
    let mut rig = Rig::with_queue(&[]);
    rig.put_image(0, &vec![0xaa; MEBIBYTE]);
    rig.memory.put(DATA, &[range(0, 8), range(100, 1), range(500, 0)].concat());
    assert_eq!(rig.status(1, with_data(DATASET_MANAGEMENT, 1, [2, 4, 0, 0, 0, 0])), 0);
    let image = rig.image();
    let zeroed = |byte: usize| byte < 8 * 512 || (100 * 512..101 * 512).contains(&byte);
    assert!(image.iter().enumerate().all(|(at, &byte)| byte == if zeroed(at) { 0 } else { 0xaa }));
}

#[test]
fn dataset_management_checks_all_ranges_before_it_starts() {
    let mut rig = Rig::with_queue(&[]);
    rig.put_image(0, &vec![0xaa; MEBIBYTE]);
    rig.memory.put(DATA, &[range(0, 8), range(2040, 9)].concat());
    assert_eq!(rig.status(1, with_data(DATASET_MANAGEMENT, 1, [1, 4, 0, 0, 0, 0])), 0x80);
    assert!(rig.image().iter().all(|&byte| byte == 0xaa));
    assert_eq!(rig.status(1, with_data(DATASET_MANAGEMENT, 1, [1, 0, 0, 0, 0, 0])), 0, "hints");
    let gone = Command { prp1: 0x1000, ..with_data(DATASET_MANAGEMENT, 1, [0, 4, 0, 0, 0, 0]) };
    assert_eq!(rig.status(1, gone), 0x04);
}

#[test]
fn flush_takes_this_namespace_or_all() {
    let mut rig = Rig::with_queue(&[]);
    for (namespace, status) in [(1, 0), (0xffff_ffff, 0), (0, 0x0b), (2, 0x0b)] {
        let flush = Command { opcode: FLUSH, namespace, ..Command::default() };
        assert_eq!(rig.status(1, flush), status);
    }
}

#[test]
fn completions_before_a_flush_do_not_wait_for_it() {
    let mut rig = Rig::with_queue(&[]);
    rig.raised();
    let flush = Command { opcode: FLUSH, namespace: 1, ..Command::default() };
    let answers = rig.run(1, &[transfer(READ, 0, 1, [DATA, 0]), flush]);
    assert!(answers.iter().all(|answer| answer.status == 0));
    assert_eq!(rig.raised(), [1, 1], "the read was delivered before the flush was begun");
}

#[test]
fn a_read_only_namespace_refuses_every_change() {
    let mut rig = Rig::with_queue(&[("ro", "on"), ("size", "1M")]);
    let zeroes = transfer(WRITE_ZEROES, 0, 8, [0, 0]);
    let trim = with_data(DATASET_MANAGEMENT, 1, [0, 4, 0, 0, 0, 0]);
    for command in [transfer(WRITE, 0, 8, [DATA, 0]), zeroes, trim] {
        assert_eq!(rig.status(1, command), 0x20);
    }
    assert_eq!(rig.status(1, transfer(READ, 0, 8, [DATA, 0])), 0);
    assert_eq!(rig.memory.get(DATA, 4096), [0x5a; 4096]);
    let flush = Command { opcode: FLUSH, namespace: 1, ..Command::default() };
    assert_eq!(rig.status(1, flush), 0);
}

#[test]
fn a_disk_that_takes_no_more_is_a_write_fault() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::fd::AsRawFd;
    let file = memfd_create("image", MemfdFlags::ALLOW_SEALING).expect("a memfd");
    rustix::fs::ftruncate(&file, 1 << 20).expect("1 MiB");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut rig = Rig::with_queue(&[("image", &path)]);
    assert_eq!(rig.status(1, transfer(WRITE, 0, 8, [DATA, 0])), 0);
    fcntl_add_seals(&file, SealFlags::FUTURE_WRITE | SealFlags::WRITE).expect("sealed");
    let commands = [transfer(WRITE, 0, 8, [DATA, 0]), transfer(READ, 0, 8, [DATA, 0])];
    let statuses: Vec<_> = rig.run(1, &commands).iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [0x280, 0]);
    assert_eq!(rig.status(1, transfer(WRITE_ZEROES, 0, 8, [0, 0])), 0x280);
}

#[test]
fn writes_complete_with_the_cache_off_and_with_forced_access() {
    let mut rig = Rig::with_queue(&[]);
    let mut forced = transfer(WRITE, 0, 8, [DATA, 0]);
    forced.words[2] |= 1 << 30;
    assert_eq!(rig.status(1, forced), 0);
    assert_eq!(rig.status(0, with_data(SET_FEATURES, 0, [6, 0, 0, 0, 0, 0])), 0);
    assert_eq!(rig.status(1, transfer(WRITE, 0, 8, [DATA, 0])), 0);
    assert_eq!(rig.status(1, transfer(WRITE_ZEROES, 0, 8, [0, 0])), 0);
}

/// What a random sequence does, against a plain array.
#[derive(Clone, Debug)]
enum Step {
    Write { lba: u64, blocks: u32, seed: u8 },
    Read { lba: u64, blocks: u32 },
    Zero { lba: u64, blocks: u32 },
    Trim { lba: u64, blocks: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let extent = (0..2100_u64, 1..200_u32);
    let step = (0..4, extent, any::<u8>()).prop_map(|(kind, (lba, blocks), seed)| match kind {
        0 => Step::Write { lba, blocks, seed },
        1 => Step::Read { lba, blocks },
        2 => Step::Zero { lba, blocks },
        _ => Step::Trim { lba, blocks },
    });
    proptest::collection::vec(step, 1..20)
}

fn apply(rig: &mut Rig, model: &mut [u8], step: &Step) {
    let (Step::Write { lba, blocks, .. }
    | Step::Read { lba, blocks }
    | Step::Zero { lba, blocks }
    | Step::Trim { lba, blocks }) = *step;
    let expected = if lba + u64::from(blocks) > 2048 { 0x80 } else { 0 };
    let length = blocks as usize * 512;
    let start = usize::try_from(lba).expect("small") * 512;
    let list = prps(rig, DATA, length as u64);
    let inside = (expected == 0).then_some(start..start + length);
    match *step {
        Step::Write { seed, .. } => {
            let bytes = pattern(length, seed);
            rig.memory.put(DATA, &bytes);
            assert_eq!(rig.status(1, transfer(WRITE, lba, blocks, list)), expected);
            inside.into_iter().for_each(|range| model[range].copy_from_slice(&bytes));
        }
        Step::Read { .. } => {
            assert_eq!(rig.status(1, transfer(READ, lba, blocks, list)), expected);
            if let Some(range) = inside {
                assert_eq!(rig.memory.get(DATA, length), model[range]);
            }
        }
        Step::Zero { .. } => {
            assert_eq!(rig.status(1, transfer(WRITE_ZEROES, lba, blocks, [0, 0])), expected);
            inside.into_iter().for_each(|range| model[range].fill(0));
        }
        Step::Trim { .. } => {
            rig.memory.put(DATA, &range(lba, blocks));
            let trim = with_data(DATASET_MANAGEMENT, 1, [0, 4, 0, 0, 0, 0]);
            assert_eq!(rig.status(1, trim), expected);
            inside.into_iter().for_each(|range| model[range].fill(0));
        }
    }
}

proptest! {
    #[test]
    fn the_image_is_what_the_commands_say(steps in steps()) {
        let mut rig = Rig::with_queue(&[]);
        let mut model = vec![0; MEBIBYTE];
        for step in &steps {
            apply(&mut rig, &mut model, step);
        }
        prop_assert_eq!(rig.image(), model);
    }
}
