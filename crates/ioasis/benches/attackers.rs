//! P28: what a program waits for its container's GET_API_VERSION while others in the same run do their worst, all at once,
//! beside the same in a run where nothing else happens. Who stops the supervisor itself is not among them.
//!
//! Lines with `#` say what one attack alone costs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ATTACKS: [&str; 9] = [
    "silent_commands",
    "silent_names",
    "long_commands",
    "all_descriptors",
    "ends_while_copying",
    "unmaps_while_copying",
    "fill_files",
    "endless_status",
    "executes",
];

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How long calls took, in nanoseconds.
struct Waits {
    median: f64,
    /// One call in a hundred took longer.
    rare: f64,
    worst: f64,
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p28-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    let client = compile(&folder.0);
    let alone = waits(&client, &[]);
    say("nothing", &alone, &alone);
    for attack in ATTACKS {
        say(attack, &waits(&client, &[attack]), &alone);
    }
    let all = waits(&client, &ATTACKS);
    say("all at once", &all, &alone);
    goal("P28.attacked_median", all.median / alone.median, 3.0);
    goal("P28.attacked_worst_ms", all.worst / 1e6, 50.0);
}

fn say(attack: &str, waits: &Waits, alone: &Waits) {
    let Waits { median, rare, worst } = waits;
    println!(
        "# {attack}: median {:.1} us ({:.2}), 99 % {:.1} us, worst {:.1} ms",
        median / 1e3,
        median / alone.median,
        rare / 1e3,
        worst / 1e6
    );
}

fn goal(name: &str, figure: f64, bound: f64) {
    println!("{name} {figure:.2} <={bound} {}", if figure <= bound { "met" } else { "missed" });
}

fn waits(client: &Path, attacks: &[&str]) -> Waits {
    let mut run = Command::new("timeout");
    run.args(["--kill-after=10", "120", env!("CARGO_BIN_EXE_ioasis"), "run", "--kill-on-exit"]);
    run.args(["--device", "testdev"].repeat(4)).arg("--").arg(client);
    let output = run.args(attacks).stdin(Stdio::null()).output().expect("timeout starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut figures = text.split_whitespace().filter_map(|word| word.parse().ok());
    let mut next = || figures.next();
    match (output.status.success(), next(), next(), next()) {
        (true, Some(median), Some(rare), Some(worst)) => Waits { median, rare, worst },
        // It never ended, or its own calls failed.
        _ => {
            println!("# {attacks:?}: {}", output.status);
            Waits { median: f64::INFINITY, rare: f64::INFINITY, worst: f64::INFINITY }
        }
    }
}

fn compile(folder: &Path) -> PathBuf {
    let (package, client) = (Path::new(env!("CARGO_MANIFEST_DIR")), folder.join("attackers"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"]);
    gcc.arg(package.join("tests/clients")).arg(package.join("benches/clients/attackers.c"));
    let built = gcc.arg("-o").arg(&client).status();
    assert!(built.expect("gcc is installed").success(), "attackers.c does not compile");
    client
}
