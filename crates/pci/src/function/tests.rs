use std::time::{Duration, Instant};

use super::*;
use crate::bus::{Bus, Dma, DmaFault, Line, Segment};
use crate::description::{PAGE_SIZE, Pages, Vectors, VendorCapability, VendorKind};
use crate::fake::{Interrupts, Memory, Told};
use crate::model::Progress;
use crate::refusal::Closed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

/// A model with a shared page, a page that system calls reach, an MSI-X table and a trapped page behind them, that counts
/// what is asked of it.
#[derive(Debug)]
struct Probe(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    polls: AtomicUsize,
    resets: AtomicUsize,
    trapped: AtomicU32,
    /// Stores to the trapped page, by offset in it.
    stores: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Nanoseconds, from a common begin, of the last poll that found something.
    found: Mutex<Option<Instant>>,
}

const TRAPPED: u64 = PAGE_SIZE;
const TABLE: u32 = 0x2000;
const PENDING: u32 = 0x3000;
const WATCHED: u64 = 0x4000;
/// Bytes of BAR 0 up to the end of its last mappable page.
const MAPPED: usize = 0x5000;

impl Model for Probe {
    fn description(&self) -> Description {
        let mapped = 0..PAGE_SIZE;
        let bar = Bar {
            size: 0x8000,
            kind: BarKind::Memory64,
            prefetchable: false,
            mappable: vec![Pages::shared(mapped), Pages::trapped(WATCHED..WATCHED + PAGE_SIZE)],
        };
        let io = Bar { size: 32, kind: BarKind::Io, prefetchable: false, mappable: Vec::new() };
        Description {
            ids: Ids {
                vendor: 1,
                device: 2,
                subsystem_vendor: 3,
                subsystem_device: 4,
                class: 5,
                revision: 6,
            },
            bars: [Some(bar), None, Some(io), None, None, None],
            vectors: Vectors { intx: true, msi: 0, msix: 4 },
            msix: Some(MsixTable {
                table_bar: 0,
                table_offset: TABLE,
                pba_bar: 0,
                pba_offset: PENDING,
            }),
            vendor: vec![
                VendorCapability { bytes: vec![7; 10], kind: VendorKind::Plain },
                VendorCapability { bytes: vec![0; 17], kind: VendorKind::Window },
            ],
            ..Description::default()
        }
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.0.resets.fetch_add(1, Ordering::SeqCst);
        bus.pages(0).fill(0, 4096, 0)
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        self.0.polls.fetch_add(1, Ordering::SeqCst);
        match bus.pages(0).load_u32(0)? {
            0 => return Ok(Progress::Idle),
            1 => bus.set_line(Line::Asserted),
            2 => bus.set_line(Line::Deasserted),
            _ => {
                let mut bytes = [0; 4];
                let _ = bus.read(&[Segment { iova: 0x1000, length: 4 }], &mut bytes);
            }
        }
        *self.0.found.lock() = Some(Instant::now());
        bus.pages(0).store_u32(0, 0)?;
        Ok(Progress::Worked)
    }

    fn load(&mut self, _bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let value = self.0.trapped.load(Ordering::SeqCst).to_le_bytes();
        bytes.fill(u8::try_from(offset & 0xff).expect("a byte") ^ value[0]);
        assert!(bar == 0 || bar == 2, "the BARs there are");
        Ok(())
    }

    fn store(&mut self, bus: &Bus<'_>, _bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.trapped.fetch_add(u32::try_from(bytes.len()).expect("at most 8"), Ordering::SeqCst);
        if offset >= WATCHED {
            self.0.stores.lock().push((offset - WATCHED, bytes.to_vec()));
            bus.pages(0).write(offset, bytes)?;
        }
        Ok(())
    }
}

struct Rig {
    function: Function,
    counts: Arc<Counts>,
    pages: Arc<Mapping>,
    interrupts: Arc<Interrupts>,
    told: Arc<Told>,
}

fn closed() -> Rig {
    let counts = Arc::new(Counts::default());
    let model = Box::new(Probe(Arc::clone(&counts)));
    let address = Bdf::new(0, 1, 0, 0).expect("an address");
    let function = Function::new(address, model, &mut Windows::default());
    let pages = Arc::new(Mapping::anonymous(MAPPED).expect("memory"));
    Rig { function, counts, pages, interrupts: Arc::default(), told: Arc::default() }
}

impl Rig {
    fn open(&self) {
        let memory = Arc::new(Memory::new(0x1000, 4096));
        let irq = Arc::clone(&self.interrupts);
        let pages = [Some(Arc::clone(&self.pages)), None, None, None, None, None];
        self.function
            .open(Session {
                dma: memory,
                irq,
                witness: Arc::clone(&self.told) as _,
                pages,
                doorbells: None,
            })
            .expect("opened");
    }

    /// Stores a command to the mapped page, and waits until the worker took it.
    fn store(&self, command: u32) {
        self.pages.store_u32(0, command).expect("mapped");
        wait(|| self.pages.load_u32(0).expect("mapped") == 0);
    }
}

fn opened() -> Rig {
    let rig = closed();
    rig.open();
    rig
}

fn wait(done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it happens");
        std::thread::yield_now();
    }
}

#[test]
fn a_closed_function_polls_nothing() {
    let rig = closed();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.counts.polls.load(Ordering::SeqCst), 0);
    assert_eq!(
        rig.function.bar_read(0, TRAPPED, &mut [0]).expect_err("closed").errno,
        Errno::ENODEV
    );
    rig.open();
    wait(|| rig.counts.polls.load(Ordering::SeqCst) > 0);
    rig.function.close();
    let polls = rig.counts.polls.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.counts.polls.load(Ordering::SeqCst), polls);
    rig.function.close();
}

#[test]
fn every_open_begins_from_the_start() {
    let rig = opened();
    rig.function.config_write(4, &[7, 4]).expect("COMMAND");
    assert!(rig.function.bus_master() && rig.function.intx_disabled());
    let resets = rig.counts.resets.load(Ordering::SeqCst);
    rig.function.close();
    rig.open();
    assert!(!rig.function.bus_master() && rig.function.memory_enabled());
    assert_eq!(rig.counts.resets.load(Ordering::SeqCst), resets + 2, "at close and at open");
}

#[test]
fn accesses_go_to_whoever_owns_the_offset() {
    let rig = opened();
    let mut bytes = [0; 8];
    rig.function.bar_write(0, 64, &0x1122_3344_u32.to_le_bytes()).expect("mapped page");
    assert_eq!(rig.pages.load_u32(64), Ok(0x1122_3344));
    rig.function.bar_read(0, u64::from(TABLE) + 8, &mut bytes).expect("table");
    assert_eq!(bytes, [0xff; 8]);
    rig.function.bar_write(0, u64::from(TABLE), &[0; 8]).expect("dropped");
    rig.function.bar_read(0, u64::from(PENDING), &mut bytes).expect("pending bits");
    assert_eq!(bytes, [0; 8]);
    assert_eq!(rig.counts.trapped.load(Ordering::SeqCst), 0);
    rig.function.bar_write(0, TRAPPED, &[1, 2, 3]).expect("trapped page");
    assert_eq!(rig.counts.trapped.load(Ordering::SeqCst), 3);
    rig.function.bar_read(2, 4, &mut bytes[..1]).expect("I/O");
    assert_eq!(bytes[0], 4 ^ 3);
}

#[test]
fn a_long_access_is_cut_into_aligned_pieces() {
    let rig = opened();
    let mut bytes = [0; 15];
    rig.function.bar_read(0, TRAPPED + 1, &mut bytes).expect("trapped page");
    // 1 byte at 1, 2 at 2, 4 at 4, 8 at 8: each filled with its own offset.
    assert_eq!(bytes, [1, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8]);
}

#[test]
fn a_trapped_page_tells_the_model_of_every_store_in_order() {
    let rig = opened();
    rig.function.store(0, WATCHED + 2, &[1, 2, 3, 4, 5, 6]).expect("an instruction");
    rig.function.bar_write(0, WATCHED, &[7]).expect("a system call");
    rig.function.store(0, WATCHED, &[7]).expect("the same value again");
    let stores = std::mem::take(&mut *rig.counts.stores.lock());
    let expected: [(u64, &[u8]); 4] = [(2, &[1, 2]), (4, &[3, 4, 5, 6]), (0, &[7]), (0, &[7])];
    assert!(stores.iter().map(|(offset, bytes)| (*offset, bytes.as_slice())).eq(expected));
    let mut answer = [0; 2];
    rig.function.load(0, WATCHED + 0x46, &mut answer).expect("an instruction");
    let trapped = u8::try_from(rig.counts.trapped.load(Ordering::SeqCst)).expect("few");
    assert_eq!(answer, [0x46 ^ trapped; 2], "the model's answer, not the memory behind the page");
    rig.function.store(0, WATCHED, &[9; 64]).expect("the widest instruction");
    assert_eq!(rig.counts.stores.lock().len(), 8);
}

#[test]
fn only_a_trapped_page_takes_what_an_instruction_did() {
    let rig = opened();
    for (bar, offset) in [
        (0, 0),
        (0, TRAPPED),
        (0, u64::from(TABLE)),
        (0, WATCHED - 1),
        (0, WATCHED + PAGE_SIZE - 1),
        (2, 0),
        (1, 0),
        (9, 0),
        (0, u64::MAX),
    ] {
        let refused = rig.function.store(bar, offset, &[0; 2]).expect_err("not trapped");
        assert_eq!(refused.errno, Errno::EINVAL, "BAR {bar} at {offset:#x}");
        let refused = rig.function.load(bar, offset, &mut [0; 2]).expect_err("not trapped");
        assert_eq!(refused.errno, Errno::EINVAL, "BAR {bar} at {offset:#x}");
    }
    rig.function.config_write(4, &[1, 0]).expect("COMMAND");
    assert_eq!(rig.function.load(0, WATCHED, &mut [0]).expect_err("off").errno, Errno::EIO);
    rig.function.close();
    assert_eq!(rig.function.store(0, WATCHED, &[0]).expect_err("closed").errno, Errno::ENODEV);
    assert!(rig.counts.stores.lock().is_empty());
}

#[test]
fn pages_that_follow_each_other_are_one_area_whatever_their_kind() {
    let pages = [Pages::trapped(0..0x1000), Pages::shared(0x1000..0x4000)];
    let apart = [Pages::shared(0x6000..0x7000), Pages::trapped(0x7000..0x9000)];
    let mappable = [pages, apart].concat();
    let bar = Bar { size: 0x1_0000, kind: BarKind::Memory32, prefetchable: false, mappable };
    assert_eq!(bar.areas(), [0..0x4000, 0x6000..0x9000]);
    for (offset, length, answer) in [
        (0, 0x4000, true),
        (0xfff, 2, true),
        (0x3fff, 2, false),
        (0x4000, 1, false),
        (0x6000, 0x3000, true),
        (0x6000, 0x3001, false),
        (0x8fff, u64::MAX, false),
    ] {
        assert_eq!(bar.is_mappable(offset, length), answer, "{offset:#x} {length:#x}");
    }
    assert_eq!(bar.trapped(&(0x800..0x7800)), [0x800..0x1000, 0x7000..0x7800]);
    assert!(bar.trapped(&(0x1000..0x7000)).is_empty());
    assert_eq!(bar.mappable_end(), Some(0x9000));
}

#[test]
fn accesses_outside_are_refused() {
    let rig = opened();
    for (bar, offset) in [(1, 0), (3, 0), (9, 0), (0, 0x8000), (0, 0x7ffd), (0, u64::MAX), (2, 29)]
    {
        let error = rig.function.bar_read(bar, offset, &mut [0; 4]).expect_err("outside");
        assert_eq!(error.errno, Errno::EINVAL, "BAR {bar} at {offset:#x}");
    }
}

#[test]
fn memory_answers_only_while_it_is_decoded() {
    let rig = opened();
    rig.function.config_write(4, &[1, 0]).expect("COMMAND");
    assert_eq!(rig.function.bar_read(0, 0, &mut [0]).expect_err("off").errno, Errno::EIO);
    rig.function.bar_read(2, 0, &mut [0]).expect("I/O does not care");
    let polls = rig.counts.polls.load(Ordering::SeqCst);
    rig.pages.store_u32(0, 1).expect("mapped");
    std::thread::sleep(Duration::from_millis(20));
    assert!(rig.counts.polls.load(Ordering::SeqCst) <= polls + 1, "at most the one under way");
    rig.function.config_write(4, &[2, 0]).expect("COMMAND");
    wait(|| rig.pages.load_u32(0) == Ok(0));
    rig.function.config_write(0x44, &[3, 0]).expect("D3hot");
    assert!(rig.function.in_d3hot() && !rig.function.memory_enabled());
    rig.function.reset().expect("pages");
    assert!(rig.function.memory_enabled(), "a reset brings D0");
}

#[test]
fn the_reset_bit_resets_the_model() {
    let rig = opened();
    let resets = rig.counts.resets.load(Ordering::SeqCst);
    rig.pages.store_u32(128, 7).expect("mapped");
    rig.function.config_write(0x78, &[0, 0x80]).expect("device control");
    assert_eq!(rig.counts.resets.load(Ordering::SeqCst), resets + 1);
    assert_eq!(rig.pages.load_u32(128), Ok(0));
}

#[test]
fn the_pin_shows_in_the_status_register_and_falls_at_reset() {
    let rig = opened();
    let status = || {
        let mut bytes = [0; 2];
        rig.function.config_read(6, &mut bytes).expect("STATUS");
        bytes[0]
    };
    rig.store(1);
    assert_eq!(status(), 0x18);
    assert!(rig.interrupts.asserted.load(Ordering::SeqCst));
    rig.store(2);
    assert_eq!(status(), 0x10);
    rig.store(1);
    rig.function.reset().expect("pages");
    assert_eq!(status(), 0x10);
    assert!(!rig.interrupts.asserted.load(Ordering::SeqCst));
}

#[test]
fn pages_that_vanish_kill_the_device_until_a_reset() {
    let file = rustix::fs::memfd_create("bar", rustix::fs::MemfdFlags::empty()).expect("a memfd");
    rustix::fs::ftruncate(&file, MAPPED as u64).expect("a page");
    let access = ioasis_sys::mapping::Access::ReadWrite;
    let pages = Mapping::file(std::os::fd::AsFd::as_fd(&file), 0, MAPPED, access).expect("mapped");
    let rig = Rig { pages: Arc::new(pages), ..closed() };
    rig.open();
    wait(|| rig.counts.polls.load(Ordering::SeqCst) > 0);
    rustix::fs::ftruncate(&file, 0).expect("gone");
    assert_eq!(rig.function.bar_read(0, 0, &mut [0; 4]).expect_err("gone").errno, Errno::EFAULT);
    // A poll that finds the pages gone is the last one.
    let polls = || rig.counts.polls.load(Ordering::SeqCst);
    wait(|| {
        let before = polls();
        std::thread::sleep(Duration::from_millis(20));
        polls() == before
    });
    assert_eq!(rig.function.reset().expect_err("still gone").errno, Errno::EFAULT);
    rustix::fs::ftruncate(&file, MAPPED as u64).expect("back");
    rig.function.reset().expect("pages");
    rig.store(1);
}

#[test]
fn bars_do_not_overlap_on_the_bus() {
    let mut windows = Windows::default();
    let mut seen: Vec<std::ops::Range<u64>> = Vec::new();
    let mut pieces = std::collections::BTreeSet::new();
    // No more buses have I/O ports: 64 KiB are 16 windows, the first of which is the machine's own.
    for bus in 0..15 {
        let address = Bdf::new(0, bus, 0, 0).expect("an address");
        let model = Box::new(Probe(Arc::default()));
        let function = Function::new(address, model, &mut windows);
        for index in 0..BARS {
            let Some(bar) = function.bar(index) else { continue };
            let start = function.bar_address(index);
            assert!(start != 0 && start.is_multiple_of(bar.size));
            let range = start..start + bar.size;
            assert!(seen.iter().all(|other| range.end <= other.start || other.end <= range.start));
            let unit = if bar.kind == BarKind::Io { 1 << 12 } else { 1 << 20 };
            assert!(
                pieces.insert((bar.kind == BarKind::Io, start / unit)),
                "a window is one bus's"
            );
            seen.push(range);
        }
    }
}

#[test]
fn what_does_not_answer_says_what_to_do_about_it() {
    let rig = opened();
    let why = |rig: &Rig| rig.function.bar_read(0, 0, &mut [0]).expect_err("refused").why;
    rig.function.config_write(4, &[1, 0]).expect("COMMAND");
    assert_eq!(why(&rig), "memory decoding is off: set bit 1 of COMMAND");
    rig.function.ring(0, TRAPPED, &[1]);
    let doorbell = |closed| Refusal::Doorbell { bar: 0, offset: TRAPPED, closed };
    assert_eq!(rig.told.take(), [doorbell(Closed::Memory)]);
    rig.function.config_write(4, &[2, 0]).expect("COMMAND");
    rig.function.config_write(0x44, &[3, 0]).expect("D3hot");
    assert_eq!(
        why(&rig),
        "the function is in D3hot: write power state D0 to its power management capability, or reset it"
    );
    rig.function.ring(0, TRAPPED, &[1]);
    assert_eq!(rig.told.take(), [doorbell(Closed::D3hot)]);
    rig.function.config_write(0x44, &[0, 0]).expect("D0");
    rig.function.ring(0, TRAPPED, &[1]);
    rig.function.ring(0, 0x8000, &[1]);
    assert_eq!(rig.told.take(), [], "one was done, the other is past the end of the BAR");
}

/// Where capabilities of `id` lie, in the order of the chain.
fn capabilities(function: &Function, id: u8) -> Vec<u64> {
    let byte = |at: u64| {
        let mut byte = [0];
        function.config_read(at, &mut byte).expect("inside");
        byte[0]
    };
    let mut found = Vec::new();
    let mut at = byte(0x34).into();
    while at != 0 {
        if byte(at) == id {
            found.push(at);
        }
        at = byte(at + 1).into();
    }
    found
}

#[test]
fn vendor_specific_capabilities_lie_in_the_chain_with_their_bytes() {
    let rig = opened();
    let found = capabilities(&rig.function, 9);
    assert_eq!(found.len(), 2);
    let mut bytes = [0; 11];
    rig.function.config_read(found[0] + 2, &mut bytes).expect("inside");
    assert_eq!(bytes, [13, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    rig.function.config_write(found[0] + 4, &[1; 4]).expect("inside");
    rig.function.config_read(found[0] + 2, &mut bytes).expect("inside");
    assert_eq!(bytes[2..], [7; 9], "it is read-only");
}

#[test]
fn a_window_in_configuration_space_reaches_the_bars() {
    let rig = opened();
    let window = capabilities(&rig.function, 9)[1];
    let set = |bar: u8, offset: u32, length: u32| {
        let write = |at: u64, bytes: &[u8]| {
            rig.function.config_write(window + at, bytes).expect("inside");
        };
        write(4, &[bar]);
        write(8, &offset.to_le_bytes());
        write(12, &length.to_le_bytes());
    };
    let read = || {
        let mut bytes = [0; 4];
        rig.function.config_read(window + 16, &mut bytes).expect("inside");
        u32::from_le_bytes(bytes)
    };
    // A shared page, which both see.
    set(0, 0x20, 4);
    rig.function.config_write(window + 16, &0x1234_5678_u32.to_le_bytes()).expect("inside");
    assert_eq!(rig.pages.load_u32(0x20).expect("mapped"), 0x1234_5678);
    rig.pages.store_u32(0x20, 0x8765_4321).expect("mapped");
    assert_eq!(read(), 0x8765_4321);
    // The model's own registers, of which two bytes are written.
    set(0, 0x1002, 2);
    rig.function.config_write(window + 16, &[1, 2, 3, 4]).expect("inside");
    assert_eq!(rig.counts.trapped.load(Ordering::SeqCst), 2);
    assert_eq!(read() & 0xffff, 0x0000, "the probe answers its count against the offset");
    // What is no access, or of no BAR, changes nothing.
    for (bar, offset, length) in
        [(0, 2, 4), (0, 0, 3), (0, 0, 8), (0, 0x8000, 4), (1, 0, 4), (9, 0, 4)]
    {
        set(bar, offset, length);
        rig.function.config_write(window + 16, &[0x55; 4]).expect("inside");
        assert_eq!(read(), 0x5555_5555, "it keeps what was written");
    }
    assert_eq!(rig.counts.trapped.load(Ordering::SeqCst), 2);
    assert_eq!(rig.pages.load_u32(0).expect("mapped"), 0);
}

/// Memory whose one page comes when somebody lets it.
#[derive(Debug, Default)]
struct LateMemory {
    is_wanted: AtomicBool,
    has_come: AtomicBool,
}

impl Dma for LateMemory {
    fn read(&self, _: &[Segment], _: &mut [u8]) -> Result<(), DmaFault> {
        self.is_wanted.store(true, Ordering::SeqCst);
        wait(|| self.has_come.load(Ordering::SeqCst));
        Ok(())
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        self.read(segments, &mut vec![0; buf.len()])
    }
}

/// A function that masters the bus, whose worker waits for a page.
fn waiting() -> (Arc<Rig>, Arc<LateMemory>) {
    let (rig, memory) = (closed(), Arc::new(LateMemory::default()));
    let session = Session {
        dma: Arc::clone(&memory) as _,
        irq: Arc::clone(&rig.interrupts) as _,
        witness: Arc::clone(&rig.told) as _,
        pages: [Some(Arc::clone(&rig.pages)), None, None, None, None, None],
        doorbells: None,
    };
    rig.function.open(session).expect("opened");
    rig.function.config_write(4, &[6, 0]).expect("COMMAND");
    rig.pages.store_u32(0, 3).expect("mapped");
    wait(|| memory.is_wanted.load(Ordering::SeqCst));
    (Arc::new(rig), memory)
}

#[test]
fn a_reset_of_the_physical_function_does_not_wait_for_a_page_of_a_virtual_one() {
    let (rig, memory) = waiting();
    rig.pages.store_u32(8, 7).expect("mapped");
    let resets = rig.counts.resets.load(Ordering::SeqCst);
    let begin = Instant::now();
    rig.function.reset_with_physical();
    assert!(begin.elapsed() < Duration::from_secs(20), "it did not wait");
    assert!(!rig.function.bus_master());
    assert_eq!(rig.counts.resets.load(Ordering::SeqCst), resets, "the worker has the model");
    // The program lets it master the bus again, and still it sends nothing of before.
    rig.function.config_write(4, &[6, 0]).expect("COMMAND");
    assert!(!rig.function.device.wires.may_send());
    memory.has_come.store(true, Ordering::SeqCst);
    wait(|| rig.counts.resets.load(Ordering::SeqCst) == resets + 1);
    wait(|| rig.function.device.wires.may_send());
    assert_eq!(rig.pages.load_u32(8).expect("mapped"), 0, "it is reset");
}

#[test]
fn who_finds_a_function_that_is_due_for_a_reset_finds_it_reset() {
    let rig = opened();
    let resets = rig.counts.resets.load(Ordering::SeqCst);
    // Memory decoding is off: the worker polls nothing, and resets it all the same.
    rig.function.device.wires.reset_due.store(true, Ordering::SeqCst);
    rig.function.wake();
    wait(|| rig.counts.resets.load(Ordering::SeqCst) == resets + 1);
    rig.function.stop();
    rig.function.reset_with_physical();
    wait(|| rig.counts.resets.load(Ordering::SeqCst) == resets + 2);
    assert!(!rig.function.device.wires.is_stopped());
}

#[test]
fn all_who_close_a_function_wait_until_it_is_closed() {
    let (rig, memory) = waiting();
    let closes = [0, 1].map(|_| {
        let rig = Arc::clone(&rig);
        std::thread::spawn(move || rig.function.close())
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(closes.iter().all(|close| !close.is_finished()), "a page is on its way");
    memory.has_come.store(true, Ordering::SeqCst);
    for close in closes {
        close.join().expect("closed");
    }
}
