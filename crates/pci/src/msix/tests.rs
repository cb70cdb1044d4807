use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_sys::mapping::Mapping;

use super::*;
use crate::bus::{Bus, Wires};
use crate::description::{Bar, BarKind, Ids, PAGE_SIZE, Pages, Vectors};
use crate::fake::{Interrupts, Memory, Told};
use crate::gate::Permissions;

const TABLE: u32 = 0x1000;
const PENDING: u32 = 0x9800;
/// Where the last page of the structures ends.
const END: usize = 0xa000;
const ON: Permissions = Permissions {
    master: true,
    memory: true,
    io: false,
    intx_disable: false,
    d3hot: false,
    vectors_masked: false,
};

/// A function with an MSI-X table alone, MSI-X enabled.
struct Rig {
    wires: Wires,
    session: Session,
    interrupts: Arc<Interrupts>,
}

/// Where a program finds table and pending bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Mapped,
    Calls,
}

fn rig(vectors: u16, reach: Reach) -> Rig {
    let mappable = match reach {
        Reach::Mapped => vec![Pages::shared(PAGE_SIZE..END as u64)],
        Reach::Calls => Vec::new(),
    };
    let bar = Bar { size: 0x1_0000, kind: BarKind::Memory32, prefetchable: false, mappable };
    let ids = Ids {
        vendor: 1,
        device: 2,
        subsystem_vendor: 3,
        subsystem_device: 4,
        class: 5,
        revision: 6,
    };
    let description = Description {
        ids,
        bars: [None, Some(bar), None, None, None, None],
        vectors: Vectors { intx: false, msi: 0, msix: vectors },
        msix: Some(MsixTable {
            table_bar: 1,
            table_offset: TABLE,
            pba_bar: 1,
            pba_offset: PENDING,
        }),
        ..Description::default()
    };
    description.check();
    let interrupts = Arc::new(Interrupts::default());
    let mut pages: [Option<Arc<Mapping>>; 6] = Default::default();
    if reach == Reach::Mapped {
        pages[1] = Some(Arc::new(Mapping::anonymous(END).expect("memory")));
    }
    let irq = Arc::clone(&interrupts);
    let session = Session {
        dma: Arc::new(Memory::new(0, 0)),
        irq,
        witness: Arc::new(Told::default()),
        pages,
        doorbells: None,
    };
    let wires = Wires::new(&description);
    wires.gate.set(ON);
    wires.msix.reset(&session).expect("pages");
    wires.msix.set_enabled(Some(&session), true);
    Rig { wires, session, interrupts }
}

impl Rig {
    fn bus(&self) -> Bus<'_> {
        Bus::new(&self.session, &self.wires)
    }

    fn handle(&self, vector: u16, handler: Handler) {
        let may_send = self.wires.gate.may_send();
        self.wires.msix.set_handler(&self.session, vector, handler, may_send);
    }

    fn look(&self) {
        self.wires.msix.send_waiting(&self.session, self.wires.gate.may_send());
    }

    fn sent(&self) -> Vec<u16> {
        std::mem::take(&mut self.interrupts.raised.lock())
    }

    /// The pending bits, as a system call and as a mapped page show them.
    fn pending(&self) -> Vec<u64> {
        let mut bytes = vec![0; usize::from(self.wires.msix.vectors.div_ceil(64)) * 8];
        self.wires.msix.read_pending(0, &mut bytes);
        if let Some(pages) = &self.session.pages[1] {
            let mut mapped = vec![0; bytes.len()];
            pages.read(PENDING.into(), &mut mapped).expect("pages");
            assert_eq!(mapped, bytes, "either shows the same");
        }
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().map(|word| u64::from_le_bytes(*word)).collect()
    }

    fn control(&self, vector: u16) -> u64 {
        u64::from(TABLE) + u64::from(vector) * ENTRY + VECTOR_CONTROL
    }

    /// The program's own store to Vector Control.
    fn store_control(&self, vector: u16, value: u32) {
        let pages = self.session.pages[1].as_deref().expect("a mapped table");
        pages.store_u32(self.control(vector), value).expect("pages");
    }

    fn load_control(&self, vector: u16) -> u32 {
        let pages = self.session.pages[1].as_deref().expect("a mapped table");
        pages.load_u32(self.control(vector)).expect("pages")
    }
}

#[test]
fn a_vector_without_a_handler_waits_until_it_has_one() {
    for reach in [Reach::Mapped, Reach::Calls] {
        for (vectors, vector) in [(4, 0), (65, 64), (2048, 127)] {
            let rig = rig(vectors, reach);
            rig.handle(vector, Handler::Present);
            rig.bus().raise(vector);
            assert_eq!(rig.sent(), [vector], "{reach:?}");
            rig.handle(vector, Handler::Absent);
            rig.bus().raise(vector);
            rig.bus().raise(vector);
            rig.look();
            assert!(rig.sent().is_empty(), "{reach:?}");
            assert_eq!(rig.pending()[usize::from(vector / 64)], 1 << (vector % 64), "{reach:?}");
            rig.handle(vector, Handler::Present);
            assert_eq!(rig.sent(), [vector], "{reach:?}: once, however often it was raised");
            assert!(rig.pending().iter().all(|&word| word == 0) && !rig.bus().has_pending());
        }
    }
}

#[test]
fn a_vector_that_the_program_masks_waits_until_it_unmasks_it() {
    let rig = rig(8, Reach::Mapped);
    for vector in [0, 3, 7] {
        rig.handle(vector, Handler::Present);
        assert_eq!(rig.load_control(vector), 0);
    }
    assert_eq!(rig.load_control(1), 1, "no handler");
    rig.store_control(3, 0xffff_ffff);
    for vector in [0, 3, 7] {
        rig.bus().raise(vector);
    }
    rig.look();
    assert_eq!(rig.sent(), [0, 7]);
    assert_eq!(rig.pending(), [1 << 3]);
    rig.store_control(3, 0xffff_fffe);
    rig.look();
    assert_eq!(rig.sent(), [3], "the other bits are reserved");
    assert_eq!(rig.pending(), [0]);
}

#[test]
fn a_handler_overrides_what_the_program_stored() {
    let rig = rig(8, Reach::Mapped);
    rig.handle(2, Handler::Present);
    rig.store_control(2, 1);
    rig.bus().raise(2);
    rig.handle(2, Handler::Present);
    assert_eq!((rig.sent(), rig.load_control(2)), (vec![2], 0), "request_irq unmasks the entry");
    rig.handle(2, Handler::Absent);
    rig.store_control(2, 0);
    rig.bus().raise(2);
    assert_eq!(
        rig.sent(),
        [2],
        "an entry the program unmasked sends; that nobody listens is its own doing"
    );
}

#[test]
fn a_masked_function_sends_nothing_until_it_is_unmasked() {
    for reach in [Reach::Mapped, Reach::Calls] {
        let rig = rig(66, reach);
        for vector in [1, 65] {
            rig.handle(vector, Handler::Present);
        }
        rig.wires.gate.set(Permissions { vectors_masked: true, ..ON });
        for vector in [1, 2, 65] {
            rig.bus().raise(vector);
        }
        rig.handle(65, Handler::Present);
        rig.look();
        assert!(rig.sent().is_empty());
        assert_eq!(rig.pending(), [0b110, 0b10]);
        rig.wires.gate.set(ON);
        rig.look();
        assert_eq!(rig.sent(), [1, 65]);
        assert_eq!(rig.pending(), [0b100, 0], "2 has no handler");
    }
}

#[test]
fn what_is_pending_is_not_sent_while_bus_mastering_is_off() {
    let rig = rig(4, Reach::Mapped);
    rig.bus().raise(1);
    rig.wires.gate.set(Permissions { master: false, ..ON });
    rig.handle(1, Handler::Present);
    rig.look();
    assert!(rig.sent().is_empty());
    rig.bus().raise(2);
    assert_eq!(rig.pending(), [0b10], "2 is dropped");
    rig.wires.gate.set(ON);
    rig.look();
    assert_eq!(rig.sent(), [1]);
}

#[test]
fn a_cause_that_is_gone_sends_nothing() {
    let rig = rig(70, Reach::Mapped);
    for vector in [5, 69] {
        rig.bus().raise(vector);
    }
    rig.bus().withdraw(69);
    rig.bus().withdraw(6);
    rig.bus().withdraw(u16::MAX);
    assert_eq!(rig.pending(), [1 << 5, 0]);
    for vector in [5, 69] {
        rig.handle(vector, Handler::Present);
    }
    assert_eq!(rig.sent(), [5]);
    rig.bus().withdraw(5);
    rig.bus().raise(69);
    assert_eq!(rig.sent(), [69], "the next one is sent");
}

#[test]
fn disabling_keeps_what_is_pending_and_sends_none_of_it() {
    let rig = rig(4, Reach::Mapped);
    rig.bus().raise(1);
    rig.wires.msix.set_enabled(Some(&rig.session), false);
    rig.look();
    rig.handle(1, Handler::Present);
    assert!(rig.sent().is_empty());
    assert_eq!(rig.pending(), [0b10]);
    rig.wires.msix.set_enabled(Some(&rig.session), true);
    assert_eq!(rig.load_control(1), 1, "all entries are masked where it is enabled");
    rig.handle(1, Handler::Present);
    assert_eq!(rig.sent(), [1]);
}

#[test]
fn a_reset_forgets_what_is_pending_and_restores_the_masks_of_the_host() {
    for reach in [Reach::Mapped, Reach::Calls] {
        let rig = rig(4, reach);
        rig.handle(1, Handler::Present);
        rig.bus().raise(2);
        if reach == Reach::Mapped {
            rig.store_control(1, 1);
            rig.bus().raise(1);
            assert_eq!(rig.pending(), [0b110]);
        }
        rig.wires.msix.reset(&rig.session).expect("pages");
        assert_eq!(rig.pending(), [0]);
        rig.look();
        rig.bus().raise(1);
        assert_eq!(rig.sent(), [1], "its handler is there still");
        rig.bus().raise(2);
        assert_eq!(rig.pending(), [0b100]);
    }
}

#[test]
fn a_program_cannot_write_pending_bits() {
    let rig = rig(4, Reach::Mapped);
    let pages = rig.session.pages[1].as_deref().expect("mapped");
    pages.store_u64(PENDING.into(), u64::MAX).expect("pages");
    for vector in 0..4 {
        rig.handle(vector, Handler::Present);
    }
    rig.look();
    assert!(rig.sent().is_empty());
    rig.handle(3, Handler::Absent);
    rig.bus().raise(3);
    assert_eq!(rig.pending(), [0b1000]);
}

#[test]
fn vectors_past_the_table_are_nobodys() {
    let rig = rig(4, Reach::Mapped);
    rig.bus().raise(4);
    rig.bus().raise(u16::MAX);
    rig.handle(4, Handler::Present);
    assert!(!rig.bus().has_pending());
}

#[test]
fn pages_that_are_gone_do_no_harm() {
    let file = rustix::fs::memfd_create("table", rustix::fs::MemfdFlags::empty()).expect("a memfd");
    rustix::fs::ftruncate(&file, END as u64).expect("pages");
    let access = ioasis_sys::mapping::Access::ReadWrite;
    let pages = Mapping::file(std::os::fd::AsFd::as_fd(&file), 0, END, access).expect("mapped");
    let mut rig = rig(4, Reach::Mapped);
    rig.session.pages[1] = Some(Arc::new(pages));
    rig.wires.msix.reset(&rig.session).expect("pages");
    rig.bus().raise(1);
    rustix::fs::ftruncate(&file, 0).expect("gone");
    rig.bus().raise(2);
    rig.handle(1, Handler::Present);
    rig.look();
    rig.bus().withdraw(1);
    assert!(rig.wires.msix.reset(&rig.session).is_err(), "a reset tells");
}

#[test]
fn nothing_is_lost_where_handlers_come_and_go_beside_messages() {
    const ROUNDS: u32 = 2_000;
    let rig = rig(4, Reach::Mapped);
    std::thread::scope(|scope| {
        let host = scope.spawn(|| {
            for _ in 0..ROUNDS {
                rig.handle(1, Handler::Absent);
                rig.interrupts.deaf.store(true, Ordering::SeqCst);
                std::hint::spin_loop();
                rig.interrupts.deaf.store(false, Ordering::SeqCst);
                rig.handle(1, Handler::Present);
            }
        });
        let mut messages = 0;
        while !host.is_finished() {
            rig.bus().raise(1);
            messages += 1;
            // Whatever the handler does meanwhile, it is there in the end.
            let begin = Instant::now();
            while rig.sent().is_empty() {
                assert!(begin.elapsed() < Duration::from_secs(60), "message {messages} is lost");
                std::thread::yield_now();
            }
        }
        host.join().expect("no panic");
    });
    assert_eq!(rig.pending(), [0]);
}
