//! The worker's thread: it looks however long it has rested, and ends with its device. What it costs, and how soon it looks,
//! is measured by benches.

use std::time::{Duration, Instant};

use super::*;
use crate::fake::{Interrupts, Memory, Told};
use crate::{Bdf, Function, Windows, create};
use ioasis_sys::mapping::Mapping;

/// An open testdev on a bus of its own, which names its thread.
fn open_testdev(bus: u8) -> (Function, Arc<Mapping>) {
    let model = create("testdev", &[]).expect("no options");
    let address = Bdf::new(0, bus, 0, 0).expect("an address");
    let function = Function::new(address, model, &mut Windows::default());
    let pages = Arc::new(Mapping::anonymous(4096).expect("memory"));
    let session = Session {
        dma: Arc::new(Memory::new(0, 8192)),
        irq: Arc::new(Interrupts::default()),
        witness: Arc::new(Told::default()),
        pages: [Some(Arc::clone(&pages)), None, None, None, None, None],
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
