//! Chapter 3: registers, enabling, resetting, shutting down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::rig::{CC_ENABLE, DATA, MEMORY, PAGE, Rig, transfer};
use crate::gate::Permissions;
use crate::model::nvme::io::{READ, WRITE};
use crate::model::nvme::registers::{
    ACQ, AQA, ASQ, CAP, CAP_VALUE, CC, CSTS, INTMC, INTMS, VERSION, VS, doorbells,
};

#[test]
fn the_capabilities_are_what_a_driver_relies_on() {
    let rig = Rig::new(&[]);
    let cap = rig.pages.load_u64(CAP).expect("mapped");
    assert_eq!(cap, CAP_VALUE);
    assert_eq!(cap & 0xffff, 1023, "1024 entries");
    assert_eq!(cap >> 16 & 1, 1, "queues are contiguous");
    assert_eq!(cap >> 32 & 0xf, 0, "doorbells are 4 bytes apart");
    assert_eq!(cap >> 37 & 1, 1, "the NVM command set");
    assert_eq!(cap >> 48 & 0xf, 0, "pages of 4 KiB");
    assert_eq!(rig.pages.load_u32(VS).expect("mapped"), VERSION);
    assert_eq!(rig.csts(), 0);
}

#[test]
fn read_only_registers_do_not_change() {
    let mut rig = Rig::enabled(&[]);
    rig.pages.store_u64(CAP, 0).expect("mapped");
    rig.pages.store_u32(VS, 7).expect("mapped");
    rig.pages.store_u32(CSTS, 0xffff_ffff).expect("mapped");
    rig.poll();
    assert_eq!(rig.pages.load_u64(CAP).expect("mapped"), CAP_VALUE);
    assert_eq!(rig.pages.load_u32(VS).expect("mapped"), VERSION);
    assert_eq!(rig.csts(), 1, "still ready, whatever was written there");
}

#[test]
fn a_configuration_the_controller_cannot_run_is_fatal() {
    for cc in [CC_ENABLE | 1 << 4, CC_ENABLE | 1 << 11, CC_ENABLE | 5 << 7] {
        let mut rig = Rig::new(&[]);
        rig.pages.store_u32(AQA, 15 << 16 | 15).expect("mapped");
        rig.pages.store_u32(CC, cc).expect("mapped");
        rig.poll();
        assert_eq!(rig.csts(), 2, "{cc:#x}");
    }
}

#[test]
fn admin_queues_that_cannot_be_are_fatal_and_a_reset_mends_it() {
    let mut rig = Rig::new(&[]);
    let full = 15 << 16 | 15;
    for (aqa, asq, acq) in [
        (15, MEMORY, MEMORY),
        (15 << 16, MEMORY, MEMORY),
        (full, MEMORY + 512, MEMORY),
        (full, MEMORY, 8),
    ] {
        rig.pages.store_u32(AQA, aqa).expect("mapped");
        rig.pages.store_u64(ASQ, asq).expect("mapped");
        rig.pages.store_u64(ACQ, acq).expect("mapped");
        rig.pages.store_u32(CC, CC_ENABLE).expect("mapped");
        rig.poll();
        assert_eq!(rig.csts(), 2, "{aqa:#x} {asq:#x} {acq:#x}");
        rig.pages.store_u32(CC, 0).expect("mapped");
        rig.poll();
        assert_eq!(rig.csts(), 0);
    }
    rig.enable();
}

#[test]
fn disabling_drops_the_queues_and_keeps_the_admin_queue_registers() {
    let mut rig = Rig::with_queue(&[]);
    assert_eq!(rig.status(1, transfer(READ, 0, 1, [DATA, 0])), 0);
    rig.pages.store_u32(CC, CC_ENABLE & !1).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 0);
    assert_eq!(rig.pages.load_u64(ASQ).expect("mapped"), MEMORY);
    // The old doorbell still holds its value; nothing may come of it.
    rig.enable();
    assert!(rig.answers(0).is_empty());
    rig.make_pair(1, 16, 1);
    assert_eq!(rig.status(1, transfer(READ, 0, 1, [DATA, 0])), 0);
}

#[test]
fn a_shutdown_completes_and_ends_the_work() {
    for notification in [1, 2] {
        let mut rig = Rig::with_queue(&[]);
        rig.pages.store_u32(CC, CC_ENABLE | notification << 14).expect("mapped");
        rig.poll();
        assert_eq!(rig.csts(), 1 | 2 << 2, "ready, shutdown complete");
        rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
        rig.poll();
        assert!(rig.answers(1).is_empty());
        rig.pages.store_u32(CC, 0).expect("mapped");
        rig.poll();
        assert_eq!(rig.csts(), 0);
        rig.enable();
    }
}

#[test]
fn a_doorbell_is_zeroed_when_its_queue_is_made() {
    let mut rig = Rig::enabled(&[]);
    rig.pages.store_u64(doorbells(1), 0x0000_0003_0000_0005).expect("mapped");
    rig.make_pair(1, 16, 1);
    assert_eq!(rig.pages.load_u64(doorbells(1)).expect("mapped"), 0);
    rig.poll();
    assert!(rig.answers(1).is_empty());
}

#[test]
fn doorbells_of_queues_that_are_not_there_do_nothing() {
    let mut rig = Rig::enabled(&[]);
    for id in 1..=100 {
        rig.pages.store_u64(doorbells(id), u64::MAX).expect("mapped");
    }
    rig.poll();
    assert_eq!(rig.csts(), 1);
}

#[test]
fn one_interrupt_is_raised_for_a_batch() {
    let mut rig = Rig::with_queue(&[]);
    rig.raised();
    let answers = rig.run(1, &[transfer(READ, 0, 1, [DATA, 0]); 10]);
    assert_eq!(answers.len(), 10);
    assert_eq!(rig.raised(), [1]);
    assert_eq!(answers[9].head, 10);
}

#[test]
fn the_pin_follows_the_completion_queue() {
    let mut rig = Rig::with_queue(&[]);
    let pin = |rig: &Rig| rig.interrupts.asserted.load(Ordering::SeqCst);
    rig.poll();
    assert!(!pin(&rig), "all completions were taken");
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
    rig.poll();
    assert!(pin(&rig));
    assert_eq!(rig.answers(1).len(), 1);
    rig.poll();
    assert!(!pin(&rig));
}

#[test]
fn the_pin_follows_a_head_before_the_next_poll() {
    let mut rig = Rig::with_queue(&[]);
    let pin = |rig: &Rig| rig.interrupts.asserted.load(Ordering::SeqCst);
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
    rig.poll();
    assert_eq!(rig.answers(1).len(), 1);
    assert!(pin(&rig));
    rig.update_line();
    assert!(!pin(&rig), "the completion was taken");
    rig.update_line();
    rig.poll();
    assert!(!pin(&rig));
}

#[test]
fn a_masked_vector_is_raised_when_it_is_unmasked() {
    let mut rig = Rig::with_queue(&[]);
    rig.pages.store_u32(INTMS, 1 << 1).expect("mapped");
    rig.poll();
    rig.raised();
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
    rig.poll();
    assert!(rig.raised().is_empty());
    assert!(!rig.interrupts.asserted.load(Ordering::SeqCst));
    rig.pages.store_u32(INTMC, 1 << 1).expect("mapped");
    rig.poll();
    assert_eq!(rig.raised(), [1]);
    assert!(rig.interrupts.asserted.load(Ordering::SeqCst));
    assert_eq!(rig.pages.load_u32(INTMS).expect("mapped"), 0);
}

#[test]
fn a_mask_is_gone_after_a_controller_reset() {
    let mut rig = Rig::with_queue(&[]);
    rig.pages.store_u32(INTMS, 1 << 1).expect("mapped");
    rig.poll();
    rig.pages.store_u32(CC, 0).expect("mapped");
    rig.poll();
    rig.poll();
    assert_eq!(rig.pages.load_u32(INTMS).expect("mapped"), 0);
}

#[test]
fn no_mask_is_lost_that_is_stored_while_the_controller_looks() {
    const ROUNDS: u32 = 5_000;
    let mut rig = Rig::with_queue(&[]);
    let pages = Arc::clone(&rig.pages);
    let looks = AtomicU32::new(0);
    let client = || {
        for round in 0..ROUNDS {
            let (set, clear) = (1 << (round % 2), 1 << ((round + 1) % 2));
            pages.store_u32(INTMS, set).expect("mapped");
            pages.store_u32(INTMC, clear).expect("mapped");
            // Not before the stores are seen. The look that is under way then may have passed a register; the next sees both.
            fence(Ordering::SeqCst);
            let enough = looks.load(Ordering::SeqCst) + 2;
            while looks.load(Ordering::SeqCst) < enough {
                std::hint::spin_loop();
            }
            let shown = [INTMS, INTMC].map(|register| pages.load_u32(register).expect("mapped"));
            if shown != [set, 0] {
                return Some((round, shown));
            }
        }
        None
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(client);
        while !client.is_finished() {
            rig.poll();
            looks.fetch_add(1, Ordering::SeqCst);
        }
        assert_eq!(client.join().expect("no panic"), None, "a round, INTMS and INTMC");
    });
}

#[test]
fn without_bus_mastering_the_controller_is_fatal_and_a_reset_mends_it() {
    let mut rig = Rig::with_queue(&[]);
    rig.raised();
    rig.allow(Permissions { memory: true, ..Permissions::default() });
    rig.submit(1, &[transfer(WRITE, 0, 1, [DATA, 0])]);
    rig.poll();
    assert_eq!(rig.csts(), 1 | 2, "ready and fatal");
    assert!(rig.raised().is_empty());
    rig.allow(Permissions { memory: true, master: true, ..Permissions::default() });
    rig.pages.store_u32(CC, 0).expect("mapped");
    rig.poll();
    rig.enable();
}

/// AQA, ASQ and ACQ with which the controller runs.
fn store_admin_queues(rig: &mut Rig) {
    rig.store(AQA, &(15_u32 << 16 | 15).to_le_bytes());
    rig.store(ASQ, &MEMORY.to_le_bytes());
    rig.store(ACQ, &(MEMORY + 4 * PAGE).to_le_bytes());
}

#[test]
fn each_store_acts_before_the_next() {
    let mut rig = Rig::new(&[]);
    rig.store(AQA, &(15_u32 << 16).to_le_bytes());
    rig.store(ASQ, &MEMORY.to_le_bytes());
    rig.store(CC, &CC_ENABLE.to_le_bytes());
    assert_eq!(rig.load(CSTS), 2, "a submission queue of one entry");
    rig.store(CC, &(CC_ENABLE & !1).to_le_bytes());
    assert_eq!(rig.load(CSTS), 0);
    store_admin_queues(&mut rig);
    rig.store(CC, &CC_ENABLE.to_le_bytes());
    assert_eq!(rig.load(CSTS), 1);
    for cc in [CC_ENABLE & !1, CC_ENABLE, 0, CC_ENABLE] {
        rig.store(CC, &cc.to_le_bytes());
        assert_eq!(rig.load(CSTS), cc & 1);
    }
}

#[test]
fn a_reset_between_two_looks_takes_the_queues_away() {
    let mut rig = Rig::with_queue(&[]);
    rig.store(CC, &(CC_ENABLE & !1).to_le_bytes());
    rig.store(CC, &CC_ENABLE.to_le_bytes());
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
    rig.poll();
    assert!(rig.answers(1).is_empty(), "queue 1 went with the reset");
    assert_eq!(rig.load(CSTS), 1);
}

#[test]
fn masks_are_set_and_cleared_one_after_the_other() {
    let mut rig = Rig::with_queue(&[]);
    rig.store(INTMS, &0b110_u32.to_le_bytes());
    rig.store(INTMC, &0b100_u32.to_le_bytes());
    rig.store(INTMS, &0b001_u32.to_le_bytes());
    assert_eq!(rig.load(INTMS), 0b011);
    assert_eq!(rig.load(INTMC), 0b011, "either shows the mask");
    rig.raised();
    rig.submit(1, &[transfer(READ, 0, 1, [DATA, 0])]);
    rig.poll();
    assert!(rig.raised().is_empty(), "vector 1 is masked");
    rig.store(INTMC, &0b010_u32.to_le_bytes());
    assert_eq!(rig.raised(), [1]);
    assert!(rig.interrupts.asserted.load(Ordering::SeqCst));
    rig.store(INTMS, &0b010_u32.to_le_bytes());
    assert!(!rig.interrupts.asserted.load(Ordering::SeqCst), "before the next poll");
    rig.store(INTMS, &[0, 0x80]);
    assert_eq!(rig.load(INTMS), 0x8003, "bits of bytes not stored stay");
}

#[test]
fn a_register_is_stored_in_parts_of_any_width() {
    let mut rig = Rig::new(&[]);
    rig.store(AQA, &[15]);
    rig.store(AQA + 2, &[15, 0]);
    rig.store(ASQ, &0x1000_u32.to_le_bytes());
    rig.store(ASQ + 4, &7_u32.to_le_bytes());
    rig.store(ACQ + 4, &[9]);
    assert_eq!(rig.load(AQA), 15 << 16 | 15);
    assert_eq!((rig.load(ASQ), rig.load(ASQ + 4)), (0x1000, 7));
    assert_eq!((rig.load(ACQ), rig.load(ACQ + 4)), (0, 9));
    store_admin_queues(&mut rig);
    rig.store(CC + 2, &[0x46]);
    rig.store(CC, &[1]);
    assert_eq!(rig.load(CSTS), 1);
    assert_eq!(rig.load(CC), CC_ENABLE);
}

#[test]
fn stores_to_read_only_registers_are_dropped() {
    let mut rig = Rig::enabled(&[]);
    for register in [CAP, CAP + 4, VS, CSTS, 0x20, 0x38, 0x3c, 0xf00] {
        let before = rig.load(register);
        rig.store(register, &[0xa5; 4]);
        assert_eq!(rig.load(register), before, "{register:#x}");
    }
    rig.store(CAP, &[0xff; 8]);
    assert_eq!(rig.load(CSTS), 1);
}

#[test]
fn a_store_that_came_past_the_trap_comes_first() {
    let mut rig = Rig::new(&[]);
    store_admin_queues(&mut rig);
    rig.pages.store_u32(CC, CC_ENABLE).expect("mapped");
    rig.store(CC, &(CC_ENABLE & !1).to_le_bytes());
    assert_eq!(rig.load(CSTS), 0, "enabled, then disabled");
    rig.pages.store_u32(INTMS, 0b11).expect("mapped");
    rig.store(INTMC, &1_u32.to_le_bytes());
    assert_eq!(rig.load(INTMS), 0b10);
    rig.pages.store_u32(CSTS, 7).expect("mapped");
    assert_eq!(rig.load(CSTS), 0, "what is in the page is not the truth");
}

#[test]
fn a_failed_enable_is_tried_again_where_a_reset_was_too_short_to_be_seen() {
    let mut rig = Rig::new(&[]);
    rig.pages.store_u32(AQA, 15 << 16).expect("mapped");
    rig.pages.store_u64(ASQ, MEMORY).expect("mapped");
    rig.pages.store_u64(ACQ, MEMORY + 4 * PAGE).expect("mapped");
    rig.pages.store_u32(CC, CC_ENABLE).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 2);
    rig.poll();
    assert_eq!(rig.csts(), 2, "the same wish fails once");
    rig.pages.store_u32(CC, 0).expect("mapped");
    rig.pages.store_u32(AQA, 15 << 16 | 15).expect("mapped");
    rig.pages.store_u32(CC, CC_ENABLE).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 1);
}

#[test]
fn another_page_size_is_tried_again_where_a_reset_was_too_short_to_be_seen() {
    let mut rig = Rig::new(&[]);
    rig.pages.store_u32(AQA, 15 << 16 | 15).expect("mapped");
    rig.pages.store_u64(ASQ, MEMORY).expect("mapped");
    rig.pages.store_u64(ACQ, MEMORY + 4 * PAGE).expect("mapped");
    rig.pages.store_u32(CC, CC_ENABLE | 5 << 7).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 2, "pages of 128 KiB");
    rig.pages.store_u32(CC, CC_ENABLE | 6 << 7).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 2, "pages of 256 KiB");
    rig.pages.store_u32(CC, CC_ENABLE).expect("mapped");
    rig.poll();
    assert_eq!(rig.csts(), 1);
}
