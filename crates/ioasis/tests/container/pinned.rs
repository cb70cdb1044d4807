//! What a device reaches of memory that it may use, whatever becomes of the mapping and of who asked for it.

use super::rules::{ATTACHED, Machine, same};

/// Two pages of the client's own memory, the second full of sevens, which the device has read.
const MAPPED: [super::rules::Step; 7] = [
    same("command d 6", "0"),
    same("private +0 0x4000", "0"),
    same("fill +0x1000 7", "0"),
    same("map c rw 0x1000 +0 0x2000", "0"),
    same("dma d read 0x2000", "0"),
    same("fill +0x1000 0", "0"),
    same("peek +0x1000", "0 0"),
];

fn mapped(steps: &[super::rules::Step]) {
    Machine::with(&["testdev"]).answers(&[&ATTACHED[..], &MAPPED, steps].concat());
}

#[test]
fn what_mprotect_takes_from_the_program_stays_the_devices() {
    mapped(&[
        same("protect +0x1000 0x1000 r", "0"),
        same("dma d write 0x2000", "0"),
        same("peek +0x1000", "0 0x7"),
        same("protect +0x1000 0x1000 none", "0"),
        same("dma d read 0x2000", "0"),
        same("dma d write 0x1000", "0"),
        same("peek +0", "0 0x7"),
        // What is mapped from now on is judged anew.
        same("map c rw 0x8000 +0x1000 0x1000", "EFAULT"),
        same("protect +0x1000 0x1000 r", "0"),
        same("map c rw 0x8000 +0x1000 0x1000", "EFAULT"),
        same("map c r 0x8000 +0x1000 0x1000", "0"),
        same("dma d write 0x8000", "0 fault=0x8000"),
    ]);
}

#[test]
fn a_map_by_the_child_of_a_vfork_lives_as_long_as_the_memory() {
    mapped(&[
        same("vchild map c rw 0x8000 +0x2000 0x1000", "0"),
        same("dma d write 0x8000", "0"),
        same("peek +0x2000", "0 0x7"),
        // It is the same memory: the page that both mappings show has one place.
        same("vchild map c rw 0x9000 +0x1000 0x1000", "0"),
        same("dma d write 0x9000", "0"),
        same("peek +0x1000", "0 0x7"),
    ]);
}

#[test]
fn a_map_by_a_thread_lives_as_long_as_the_memory() {
    mapped(&[
        same("thread map c rw 0x8000 +0x2000 0x1000", "0"),
        same("dma d write 0x8000", "0"),
        same("peek +0x2000", "0 0x7"),
    ]);
}

#[test]
fn a_map_by_another_process_ends_with_its_memory() {
    mapped(&[
        same("child map c rw 0x8000 +0x2000 0x1000", "0"),
        // On Linux the pages are pinned and live on.
        same("dma d write 0x8000", "0 fault=0x8000"),
        same("peek +0x2000", "0 0"),
    ]);
}

#[test]
fn memory_that_moves_away_is_a_fault_and_what_comes_in_its_place_is_reached() {
    mapped(&[
        same("move +0x1000 0x1000 +0x3000", "0"),
        same("dma d write 0x2000", "0 fault=0x2000"),
        same("peek +0x3000", "0 0"),
        same("private +0x1000 0x1000", "0"),
        same("dma d write 0x2000", "0"),
        same("peek +0x1000", "0 0x7"),
        same("munmap +0x1000 0x1000", "0"),
        same("dma d read 0x2000", "0 fault=0x2000"),
    ]);
}
