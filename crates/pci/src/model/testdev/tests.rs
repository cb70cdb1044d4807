use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::bus::Session;
use crate::fake::{Interrupts, Memory, Told};
use crate::refusal::{Closed, Refusal, Way};
use crate::{Bdf, Function, Windows, create};
use ioasis_sys::mapping::Mapping;

struct Bench {
    function: Function,
    memory: Arc<Memory>,
    interrupts: Arc<Interrupts>,
    told: Arc<Told>,
    registers: Arc<Mapping>,
}

/// Memory of the program begins here.
const MEMORY: u64 = 0x1_0000_0000;

fn bench() -> Bench {
    let model = create("testdev", &[]).expect("no options");
    let address = Bdf::new(0, 2, 0, 0).expect("an address");
    let function = Function::new(address, model, &mut Windows::default());
    let memory = Arc::new(Memory::new(MEMORY, 64 << 10));
    let interrupts = Arc::new(Interrupts::default());
    let registers = Arc::new(Mapping::anonymous(BYTES).expect("memory"));
    let pages = [Some(Arc::clone(&registers)), None, None, None, None, None];
    let told = Arc::new(Told::default());
    let (dma, irq) = (Arc::clone(&memory), Arc::clone(&interrupts));
    let session = Session { dma, irq, witness: Arc::clone(&told) as _, pages, doorbells: None };
    function.open(session).expect("opened");
    function.config_write(4, &[6, 0]).expect("bus master");
    Bench { function, memory, interrupts, told, registers }
}

impl Bench {
    /// Waits until CMD bit 0 reads 0, as a program does.
    fn finish(&self) -> u32 {
        let begin = Instant::now();
        loop {
            let command = self.registers.load_u32(CMD).expect("mapped");
            if command & CMD_RUN == 0 {
                return command;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "the device answers");
        }
    }

    /// What people were told by now, once the device has done what it was at.
    fn told(&self) -> Vec<Refusal> {
        // A system call waits for the model, which raises its interrupt after CMD says that it is done.
        self.function.bar_read(0, 0, &mut [0]).expect("a register");
        self.function.update_line();
        self.told.take()
    }

    /// Stores to the mapped page, as a program does: nothing is called.
    fn copy(&self, command: u32, address: u64) -> u32 {
        self.registers.store_u64(ADDR, address).expect("mapped");
        self.registers.store_u32(CMD, command).expect("mapped");
        self.finish()
    }
}

#[test]
fn four_kibibytes_go_in_and_come_out_elsewhere() {
    let bench = bench();
    let bytes: Vec<u8> = (0..4096_u32).map(|index| index.to_le_bytes()[0] ^ 0x5a).collect();
    bench.memory.put(MEMORY + 12, &bytes);
    assert_eq!(bench.copy(3, MEMORY + 12), 0);
    assert_eq!(bench.copy(1, MEMORY + 0x8000), 0);
    assert_eq!(bench.memory.get(MEMORY + 0x8000, 4096), bytes);
    assert_eq!(*bench.interrupts.raised.lock(), [0, 0]);
}

#[test]
fn trapped_accesses_do_what_mapped_ones_do() {
    let bench = bench();
    bench.memory.put(MEMORY, &[7; 4096]);
    let low = u32::try_from(MEMORY & 0xffff_ffff).expect("half").to_le_bytes();
    bench.function.bar_write(0, 0, &low).expect("ADDR, low");
    bench.function.bar_write(0, 4, &1_u32.to_le_bytes()).expect("ADDR, high");
    bench.function.bar_write(0, 8, &3_u32.to_le_bytes()).expect("CMD");
    bench.finish();
    bench.function.bar_write(0, 0, &(MEMORY + 4096).to_le_bytes()).expect("ADDR at once");
    bench.function.bar_write(0, 8, &1_u32.to_le_bytes()).expect("CMD");
    bench.finish();
    let mut command = [0xff; 4];
    bench.function.bar_read(0, 8, &mut command).expect("CMD");
    assert_eq!(command, [0; 4]);
    assert_eq!(bench.memory.get(MEMORY + 4096, 4096), [7; 4096]);
}

#[test]
fn memory_that_cannot_be_reached_is_reported() {
    let bench = bench();
    let end = MEMORY + (64 << 10);
    for command in [1, 3] {
        assert_eq!(bench.copy(command, end - 4095), CMD_FAULTED);
        assert_eq!(bench.registers.load_u64(FAULT).expect("mapped"), end - 4095);
    }
    assert_eq!(bench.copy(3, MEMORY), 0);
    assert_eq!(bench.registers.load_u64(FAULT).expect("mapped"), 0);
}

#[test]
fn without_bus_mastering_nothing_is_copied() {
    let bench = bench();
    bench.function.config_write(4, &[2, 0]).expect("COMMAND");
    bench.memory.put(MEMORY, &[1; 4096]);
    assert_eq!(bench.copy(3, MEMORY), CMD_FAULTED);
    assert!(bench.interrupts.raised.lock().is_empty(), "a message is a memory write too");
    assert_eq!(bench.told(), transfer_refused(Way::Read, Closed::Master));
    assert_eq!(bench.copy(1, MEMORY), CMD_FAULTED);
    assert_eq!(bench.told(), transfer_refused(Way::Write, Closed::Master));
    bench.function.config_write(4, &[6, 0]).expect("COMMAND");
    bench.copy(3, MEMORY);
    assert_eq!(bench.told(), []);
}

/// What is told of a copy at MEMORY and its message.
fn transfer_refused(way: Way, closed: Closed) -> [Refusal; 2] {
    [Refusal::Dma { way, iova: MEMORY, closed }, Refusal::Message { vector: 0, closed }]
}

#[test]
fn a_reset_clears_the_buffer_and_the_registers() {
    let bench = bench();
    bench.memory.put(MEMORY, &[9; 4096]);
    bench.copy(3, MEMORY);
    bench.function.reset().expect("the pages are there");
    assert_eq!(bench.registers.load_u64(ADDR).expect("mapped"), 0);
    bench.copy(1, MEMORY);
    assert_eq!(bench.memory.get(MEMORY, 4096), [0; 4096]);
}

#[test]
fn another_address_space_is_reached_with_its_pasid() {
    let mut rig = crate::fake::Rig::new(made(&[]), 0x1000, 0x2000);
    let space = rig.memory.with_pasid(5, 0x8000, 0x1000);
    space.put(0x8000, b"of the other space");
    for (pasid, status) in [(5, 0), (6, CMD_FAULTED), (0, CMD_FAULTED)] {
        let registers = rig.pages(0);
        registers.store_u64(ADDR, 0x8000).expect("pages");
        registers.store_u32(PASID, pasid).expect("pages");
        registers.store_u32(CMD, CMD_RUN | CMD_FROM_MEMORY).expect("pages");
        rig.poll();
        assert_eq!(rig.pages(0).load_u32(CMD), Ok(status), "PASID {pasid}");
    }
}

#[test]
fn a_bar_of_memory_has_whole_large_pages_and_is_cleared_by_a_reset() {
    let options = [("memory".to_owned(), "2M".to_owned())];
    let mut rig = crate::fake::Rig::new(made(&options), 0x1000, 0x1000);
    let last = (2 << 20) - 8;
    rig.pages(4).store_u64(last, 77).expect("the last word");
    rig.reset();
    assert_eq!(rig.pages(4).load_u64(last), Ok(0));
    let wrong = [("memory".to_owned(), "3M".to_owned())];
    assert!(create("testdev", &wrong).is_err());
}

fn made(options: &[(String, String)]) -> Box<dyn Model> {
    create("testdev", options).expect("a device")
}
