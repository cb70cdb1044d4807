//! What a section costs, beside a fence and a reference count. Figures for the module doc; no goal is set.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use ioasis_sys::quiesce::Sections;

const TURNS: u32 = 2_000_000;

fn measure(name: &str, mut turn: impl FnMut()) {
    let mut runs: Vec<f64> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            for _ in 0..TURNS {
                turn();
            }
            begun.elapsed().as_secs_f64() * 1e9 / f64::from(TURNS)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    println!("quiesce.{name} {:.2} ns", runs[4]);
}

fn main() {
    let sections = Sections::new();
    measure("enter_exit", || {
        sections.enter(1);
        sections.exit();
    });
    let slot = AtomicU64::new(0);
    measure("store_fence_store", || {
        black_box(&slot).store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        black_box(&slot).store(0, Ordering::Release);
    });
    measure("reference_count", || {
        black_box(&slot).fetch_add(1, Ordering::AcqRel);
        black_box(&slot).fetch_sub(1, Ordering::AcqRel);
    });
    let wait = |name: &str| {
        let begun = Instant::now();
        for _ in 0..100_000 {
            sections.wait(|label| label == 1);
        }
        println!("quiesce.{name} {:.2} us", begun.elapsed().as_secs_f64() * 10.0);
    };
    wait("wait_alone");
    let stop = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::Relaxed) == 0 {
                sections.enter(1);
                sections.exit();
            }
        });
        wait("wait_beside_a_running_thread");
        stop.store(1, Ordering::Relaxed);
    });
}
