//! The worker's thread: it looks however long it has rested, and ends with its device. What it
//! costs, and how soon it looks, is measured by benches.

use std::time::{Duration, Instant};

use super::*;
use crate::fake::{Interrupts, Memory, Told};
use crate::{Bdf, Function, Windows, create};
use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::Condvar;

/// An open testdev on a bus of its own, which names its thread.
fn open_testdev(bus: u8) -> (Function, Arc<Mapping>) {
    open_with(bus, |_| None)
}

fn open_with(
    bus: u8,
    doorbells: impl FnOnce(&Arc<Mapping>) -> Option<Arc<dyn Doorbells>>,
) -> (Function, Arc<Mapping>) {
    let model = create("testdev", &[]).expect("no options");
    let address = Bdf::new(0, bus, 0, 0).expect("an address");
    let function = Function::new(address, model, &mut Windows::default());
    let pages = Arc::new(Mapping::anonymous(4096).expect("memory"));
    let session = Session {
        dma: Arc::new(Memory::new(0, 8192)),
        irq: Arc::new(Interrupts::default()),
        witness: Arc::new(Told::default()),
        pages: [Some(Arc::clone(&pages)), None, None, None, None, None],
        doorbells: doorbells(&pages),
    };
    function.open(session).expect("opened");
    function.config_write(4, &[6, 0]).expect("bus master");
    (function, pages)
}

/// Nothing here takes this long unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_store_is_seen_after_a_long_rest() {
    let (_function, pages) = open_testdev(4);
    thread::sleep(Duration::from_millis(300));
    for _ in 0..5 {
        pages.store_u32(8, 1).expect("mapped");
        let begin = Instant::now();
        while pages.load_u32(8) != Ok(0) {
            assert!(begin.elapsed() < LIMIT, "the device looks");
            thread::sleep(Duration::from_micros(100));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program whose stores wait while they are told.
#[derive(Debug)]
struct Program {
    pages: Arc<Mapping>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_watched: bool,
    is_woken: bool,
    /// How often the device waited and nothing woke it.
    in_vain: u32,
}

impl Program {
    fn new(pages: &Arc<Mapping>) -> Arc<Self> {
        let pages = Arc::clone(pages);
        Arc::new(Self { pages, state: Mutex::default(), changed: Condvar::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn store(&self, value: u32) {
        let mut state = self.state();
        if state.is_watched {
            state.is_woken = true;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |state| state.is_watched);
        }
        self.pages.store_u32(8, value).expect("mapped");
        drop(state);
    }
}

impl Doorbells for Program {
    fn watch(&self) -> bool {
        let mut state = self.state();
        (state.is_watched, state.is_woken) = (true, false);
        true
    }

    fn wait(&self, limit: Duration) -> bool {
        let (begin, mut state) = (Instant::now(), self.state());
        while !state.is_woken {
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                state.in_vain += 1;
                break;
            }
            state = self.changed.wait_timeout(state, left).0;
        }
        state.is_woken
    }

    fn release(&self) {
        self.state().is_watched = false;
        self.changed.notify_all();
    }

    fn wake(&self) {
        self.state().is_woken = true;
        self.changed.notify_all();
    }
}

#[test]
fn a_store_is_acted_upon_whenever_it_comes_and_an_idle_device_does_not_look() {
    let mut program = None;
    let (_function, pages) = open_with(7, |pages| {
        let new = Program::new(pages);
        program = Some(Arc::clone(&new));
        Some(new)
    });
    let program = program.expect("it was opened");
    let mut pause = 1_u64;
    for round in 0..2000 {
        // About as long as a device takes to fall idle, and now and then longer.
        pause = pause.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let micros = if round % 100 == 0 { 3000 } else { (pause >> 33) % 400 };
        thread::sleep(Duration::from_micros(micros));
        let begin = Instant::now();
        program.store(1);
        while pages.load_u32(8) != Ok(0) {
            assert!(begin.elapsed() < LOOK, "the device looks by itself after that time");
            thread::yield_now();
        }
    }
    let begin = Instant::now();
    while !program.state().is_watched {
        assert!(begin.elapsed() < LIMIT, "it falls idle");
        thread::yield_now();
    }
    assert_eq!(program.state().in_vain, 0);
}

#[test]
fn a_device_that_waits_for_stores_hears_calls_and_closes() {
    let mut program = None;
    let (function, pages) = open_with(8, |pages| {
        let new = Program::new(pages);
        program = Some(Arc::clone(&new));
        Some(new)
    });
    let program = program.expect("it was opened");
    for _ in 0..20 {
        let begin = Instant::now();
        while !program.state().is_watched {
            assert!(begin.elapsed() < LIMIT, "it falls idle");
            thread::yield_now();
        }
        // Not told, as what another device writes.
        pages.store_u32(8, 1).expect("mapped");
        function.wake();
        while pages.load_u32(8) != Ok(0) {
            assert!(begin.elapsed() < LIMIT, "it looks");
            thread::yield_now();
        }
    }
    function.close();
    assert!(!program.state().is_watched, "nobody waits for it for ever");
}

#[test]
fn closing_ends_the_thread() {
    let (function, _pages) = open_testdev(6);
    let named = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("proc").flatten();
        let comm = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        tasks.filter_map(|task| comm(task).ok()).filter(|comm| comm == "0000:06:00.0\n").count()
    };
    // A thread names itself once it runs, and leaves /proc a little after it is joined.
    let becomes = |count: usize| {
        let begin = Instant::now();
        while named() != count {
            assert!(begin.elapsed() < LIMIT, "{count} threads");
            thread::yield_now();
        }
    };
    becomes(1);
    function.close();
    becomes(0);
}
