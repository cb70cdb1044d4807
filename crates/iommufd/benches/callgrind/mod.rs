//! Counts instructions: a bench runs itself under callgrind twice and takes the difference.

use std::process::Command;

/// The variable that tells a bench what to count: `name:times`.
const COUNT: &str = "IOASIS_COUNT";

/// What this process is to do, and how often, if it is one that is counted.
pub(crate) fn asked() -> Option<(String, u64)> {
    let what = std::env::var(COUNT).ok()?;
    let (name, times) = what.split_once(':').expect("name:times");
    Some((name.to_owned(), times.parse().expect("a number")))
}

/// Instructions of one turn of `name`; `None` where callgrind is not installed.
pub(crate) fn instructions(name: &str, few: u64, many: u64) -> Option<f64> {
    let collected = |times: u64| -> Option<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(std::env::current_exe().ok()?)
            .env(COUNT, format!("{name}:{times}"))
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().find(|line| line.contains("Collected"))?;
        line.rsplit(':').next()?.trim().parse().ok()
    };
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    let turns = (many - few) as f64;
    Some((collected(many)? - collected(few)?) / turns)
}

/// Prints the line of a goal.
pub(crate) fn line(goal: &str, value: f64, limit: f64) {
    println!("{goal} {value:.2} <={limit} {}", if value <= limit { "met" } else { "missed" });
}
