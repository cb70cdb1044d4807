use ioasis::pci::fake::Rig;

use super::*;

const MEMORY: u64 = 0x10_0000;

fn rig() -> Rig {
    Rig::new(INFO.create(&[]).expect("a device"), MEMORY, 0x10000)
}

fn load(rig: &mut Rig, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    rig.load(0, offset, &mut bytes);
    let page = rig.pages(0).load_u32(offset).expect("the page");
    let value = u32::from_le_bytes(bytes);
    assert!(!is_access(offset, 4) || page == value, "a mapped load gives the same at {offset:#x}");
    value
}

fn store(rig: &mut Rig, offset: u64, value: u32) {
    rig.store(0, offset, &value.to_le_bytes());
}

fn transfer(rig: &mut Rig, source: u64, destination: u64, count: u64, command: u64) {
    for (offset, value) in [
        (DMA_SOURCE, source),
        (DMA_DESTINATION, destination),
        (DMA_COUNT, count),
        (DMA_COMMAND, command | RUN),
    ] {
        rig.store(0, offset, &value.to_le_bytes());
    }
    assert_eq!(load(rig, DMA_COMMAND) & 1, 1, "it runs until it is polled");
    rig.poll();
    assert_eq!(load(rig, DMA_COMMAND) & 1, 0);
}

#[test]
fn the_card_is_there_and_alive() {
    let mut rig = rig();
    assert_eq!(load(&mut rig, IDENTIFICATION), 0x0100_00ed);
    store(&mut rig, LIVENESS, 0x1234_5678);
    assert_eq!(load(&mut rig, LIVENESS), !0x1234_5678);
    store(&mut rig, IDENTIFICATION, 0);
    assert_eq!(load(&mut rig, IDENTIFICATION), 0x0100_00ed, "read-only");
}

#[test]
fn a_factorial_is_computed_between_two_looks_and_can_interrupt() {
    let mut rig = rig();
    for (value, result) in [(0, 1), (5, 120), (12, 479_001_600), (13, 1_932_053_504), (u32::MAX, 0)]
    {
        store(&mut rig, FACTORIAL, value);
        assert_eq!(load(&mut rig, STATUS) & COMPUTING, COMPUTING);
        store(&mut rig, FACTORIAL, 3);
        rig.poll();
        assert_eq!(load(&mut rig, FACTORIAL), result, "{value}!");
        assert_eq!(load(&mut rig, STATUS), 0);
    }
    assert!(rig.raised().is_empty());
    store(&mut rig, STATUS, 0xff);
    store(&mut rig, FACTORIAL, 4);
    rig.poll();
    assert_eq!(rig.raised(), [0]);
    assert_eq!(load(&mut rig, IRQ_STATUS), FACTORIAL_DONE);
}

#[test]
fn an_interrupt_stays_until_each_of_its_causes_is_acknowledged() {
    let mut rig = rig();
    let asserted = |rig: &Rig| rig.interrupts.asserted.load(std::sync::atomic::Ordering::SeqCst);
    store(&mut rig, IRQ_RAISE, 6);
    assert_eq!((load(&mut rig, IRQ_STATUS), asserted(&rig)), (6, true));
    store(&mut rig, IRQ_ACKNOWLEDGE, 2);
    assert_eq!((load(&mut rig, IRQ_STATUS), asserted(&rig)), (4, true));
    store(&mut rig, IRQ_ACKNOWLEDGE, 4);
    assert_eq!((load(&mut rig, IRQ_STATUS), asserted(&rig)), (0, false));
    assert_eq!(rig.raised(), [0]);
}

#[test]
fn bytes_go_into_the_device_and_back_by_the_bits_of_the_mask() {
    let mut rig = rig();
    rig.memory.put(MEMORY, b"into the device");
    transfer(&mut rig, 0x7000_0000 | MEMORY, BUFFER + 8, 15, 0);
    assert!(rig.raised().is_empty());
    transfer(&mut rig, BUFFER + 8, MEMORY + 0x100, 15, TO_MEMORY | DMA_IRQ);
    assert_eq!(rig.memory.get(MEMORY + 0x100, 15), b"into the device");
    assert_eq!(rig.raised(), [0]);
    assert_eq!(load(&mut rig, IRQ_STATUS), DMA_DONE);
}

#[test]
fn a_wild_transfer_moves_nothing_and_ends() {
    let mut rig = rig();
    for (source, destination, count) in [
        (MEMORY, BUFFER - 1, 2),
        (MEMORY, BUFFER + 1, 4096),
        (MEMORY, u64::MAX, 1),
        (MEMORY, BUFFER, u64::MAX),
        (0, BUFFER, 4096),
    ] {
        transfer(&mut rig, source, destination, count, 0);
    }
    transfer(&mut rig, BUFFER, MEMORY, 4096, TO_MEMORY);
    assert_eq!(rig.memory.get(MEMORY, 4096), vec![0; 4096]);
}

#[test]
fn accesses_of_another_width_read_ones_and_store_nothing() {
    let mut rig = rig();
    let mut byte = [0];
    rig.load(0, LIVENESS, &mut byte);
    assert_eq!(byte, [0xff]);
    rig.store(0, LIVENESS, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(load(&mut rig, LIVENESS), 0);
    assert_eq!(rig.pages(0).load_u32(0x40).expect("the page"), 0);
}

#[test]
fn a_mask_is_a_number_or_a_sentence_says_so() {
    let mask = |text: &str| INFO.create(&[("dma_mask".to_owned(), text.to_owned())]);
    assert!(mask("0xffffffff").is_ok() && mask("4095").is_ok());
    let error = mask("wide").expect_err("no number").to_string();
    assert!(error.contains("dma_mask=wide is not accepted"), "{error}");
}
