//! The worker's promises about time: how soon it looks, and how little it costs while nothing happens.

use std::time::{Duration, Instant};

use super::*;
use crate::fake::{Interrupts, Memory};
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
        pages: [Some(Arc::clone(&pages)), None, None, None, None, None],
    };
    function.open(session).expect("opened");
    function.config_write(4, &[6, 0]).expect("bus master");
    (function, pages)
}

/// CPU time of the thread called `name`.
fn cpu_time(name: &str) -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("proc");
    for task in tasks.flatten() {
        let comm = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if comm.trim_end() == name {
            let schedstat = std::fs::read_to_string(task.path().join("schedstat")).expect("proc");
            let ran = schedstat.split(' ').next().and_then(|field| field.parse().ok());
            return Duration::from_nanos(ran.expect("nanoseconds"));
        }
    }
    panic!("there is no thread {name}");
}

#[test]
fn an_idle_device_costs_less_than_a_hundredth_of_a_core() {
    let (function, _pages) = open_testdev(3);
    thread::sleep(Duration::from_millis(300));
    let share = || {
        let (before, begin) = (cpu_time("0000:03:00.0"), Instant::now());
        thread::sleep(Duration::from_millis(200));
        (cpu_time("0000:03:00.0") - before).as_secs_f64() / begin.elapsed().as_secs_f64()
    };
    // Time that a busy machine steals counts as the thread's; not in every window.
    let best = std::iter::repeat_with(share).take(5).fold(f64::MAX, f64::min);
    assert!(best < 0.01, "{best}");
    drop(function);
}

#[test]
fn a_store_is_seen_after_a_long_rest() {
    let (_function, pages) = open_testdev(4);
    thread::sleep(Duration::from_millis(300));
    let best = (0..5).map(|_| {
        thread::sleep(Duration::from_millis(50));
        pages.store_u32(8, 1).expect("mapped");
        let begin = Instant::now();
        while pages.load_u32(8) != Ok(0) {
            thread::sleep(Duration::from_micros(100));
        }
        begin.elapsed()
    });
    // A busy machine may delay one try; not all of them.
    let best = best.min().expect("five tries");
    assert!(best < Duration::from_millis(6), "{best:?}");
}

#[test]
fn a_kick_wakes_a_resting_worker() {
    let (function, pages) = open_testdev(5);
    thread::sleep(Duration::from_millis(300));
    let mut best = Duration::MAX;
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(20));
        let begin = Instant::now();
        pages.store_u32(8, 1).expect("mapped");
        function.wake();
        while pages.load_u32(8) != Ok(0) {
            thread::yield_now();
        }
        best = best.min(begin.elapsed());
    }
    assert!(best < Duration::from_millis(1), "{best:?}");
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
            assert!(begin.elapsed() < Duration::from_secs(10), "{count} threads");
            thread::yield_now();
        }
    };
    becomes(1);
    function.close();
    becomes(0);
}
