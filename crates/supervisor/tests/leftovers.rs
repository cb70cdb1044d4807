//! What runs leave on the host: nothing. Alone in its program, since it counts processes.

mod bench;

use std::process::Child;

use bench::{ioasis, wait_until};

#[test]
fn many_runs_leave_nothing() {
    let before = bench::census();
    for _ in 0..bench::count("IOASIS_RUNS", 40) {
        assert!(ioasis().arg("true").status().unwrap().success());
    }
    let together: Vec<Child> = (0..bench::count("IOASIS_TOGETHER", 12))
        .map(|_| ioasis().args(["sleep", "0.2"]).spawn().unwrap())
        .collect();
    for mut run in together {
        assert!(run.wait().unwrap().success());
    }
    wait_until("everything as before", || bench::census() == before);
}
