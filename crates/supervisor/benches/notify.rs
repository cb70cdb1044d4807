//! P11: an ioctl answered by the supervisor, beside a loop that only receives it, copies the same bytes, finds out which
//! file it is on, and answers.
//!
//! Each figure is the median of nine pairs of runs, one of each kind after the other, client and supervisor on one core.
//!
//! P16: how many times as many ioctls two threads of a client get answered as one, on every core there is, beside the loop that
//! only copies, again in nine pairs of runs.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ioasis_supervisor::{Explain, Leftovers, Machine, OnFaults, RunOptions, run, view};
use ioasis_sys::message;
use ioasis_sys::notify::{Answer, Listener, Slots};
use ioasis_sys::process::Thread;
use ioasis_sys::seccomp::{Arch, Filter, Half, Is, Rule, Test, no_new_privileges};
use ioasis_sys::spawn::{self, Fork};

const PAIRS: usize = 9;
/// Bytes copied in and out: those of `struct iommu_option`.
const BYTES: usize = 24;

/// What answers the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loop {
    /// This program.
    Supervisor,
    /// Copies, and finds out the file.
    Identity,
    /// Copies.
    Bare,
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.as_slice() {
        [kind, client @ ..] if !client.is_empty() => match kind.as_str() {
            "supervisor" => supervised(client),
            "identity" => looped(client, Loop::Identity),
            _ => looped(client, Loop::Bare),
        },
        _ => compare(),
    }
}

fn compare() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p11-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a folder under target");
    let client = path.join("latency");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/latency.c");
    let built =
        Command::new("gcc").args(["-O1", "-pthread", "-o"]).args([&client, &source]).status();
    assert!(built.expect("gcc is installed").success(), "latency.c does not compile");
    two_threads(&client);
    let mut core = rustix::thread::CpuSet::new();
    core.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &core).expect("a core of one's own");

    let (mut identity, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let ours = nanoseconds(Loop::Supervisor, &client);
        identity.push(ours / nanoseconds(Loop::Identity, &client));
        bare.push(ours / nanoseconds(Loop::Bare, &client));
    }
    let _ = std::fs::remove_dir_all(&path);
    println!("beside a loop that only copies: {:.2}", median(bare));
    let ratio = median(identity);
    println!("P11.ioctl {ratio:.2} <=1.15 {}", if ratio <= 1.15 { "met" } else { "missed" });
}

fn two_threads(client: &PathBuf) {
    let gain = |kind| printed(kind, client, &["2"]) / printed(kind, client, &["1"]);
    let gains: Vec<_> = (0..PAIRS).map(|_| (gain(Loop::Supervisor), gain(Loop::Bare))).collect();
    let ours = median(gains.iter().map(|(ours, _)| *ours).collect());
    let bare = median(gains.iter().map(|(_, bare)| *bare).collect());
    println!("# two threads: {ours:.2} times one's calls, {bare:.2} with a loop that only copies");
    for (goal, figure, bound) in
        [("P16.two_threads", ours / bare, 0.9), ("P16.two_threads_beside_one", ours, 1.0)]
    {
        let verdict = if figure >= bound { "met" } else { "missed" };
        println!("{goal} {figure:.2} >={bound} {verdict}");
    }
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn nanoseconds(kind: Loop, client: &PathBuf) -> f64 {
    printed(kind, client, &[])
}

/// The figure that the client prints.
fn printed(kind: Loop, client: &PathBuf, threads: &[&str]) -> f64 {
    let kind = match kind {
        Loop::Supervisor => "supervisor",
        Loop::Identity => "identity",
        Loop::Bare => "bare",
    };
    let program = std::env::current_exe().expect("this program");
    let file = if kind == "supervisor" { "iommu" } else { "input" };
    let mut command = Command::new(program);
    let command = command.arg(kind).arg(client).arg(file).args(threads).stdin(Stdio::null());
    let output = command.output();
    let output = output.expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().unwrap_or_else(|_| panic!("{kind}: {output:?}"))
}

/// Runs the client on a machine without devices: their threads would want the core too.
fn supervised(client: &[String]) {
    let machine = Machine {
        iommu: ioasis_iommufd::Machine::new(),
        devices: ioasis_vfio::Machine::new(Vec::new()),
        view: view::Options::default(),
        iommu_of: Vec::new(),
        drivers: std::collections::BTreeMap::new(),
    };
    let command = client.iter().map(Into::into).collect();
    let options = RunOptions {
        command,
        leftovers: Leftovers::Await,
        limit: None,
        explain: Explain::Nothing,
        faults: OnFaults::Pass,
        rules: Vec::new(),
        machine,
        trace: None,
        ledger: None,
        control: None,
    };
    let status = run(options).expect("a run starts");
    assert!(status.success(), "the client fails: {status}");
}

/// The least that a loop must do.
fn looped(client: &[String], kind: Loop) {
    let typed = [Test { arg: 1, half: Half::Low, mask: 0xff00, is: Is::Equal(0x3b00) }];
    let filter = Filter::new(&[Rule { arch: Arch::X86_64, number: 16, when: &typed }]);
    let (ours, theirs) = message::pair().expect("sockets");
    let child = match spawn::fork().expect("fork") {
        Fork::Child => {
            no_new_privileges().expect("always allowed");
            let listener = filter.install().expect("no listener yet");
            message::send(&theirs, b"x", &[listener.as_fd()]).expect("the parent lives");
            drop(listener);
            let error = Command::new(&client[0]).args(&client[1..]).exec();
            panic!("the client cannot be executed: {error}");
        }
        Fork::Parent(child) => child,
    };
    let (_, mut fds) = message::receive(&ours, 16).expect("a listener");
    let listener = Listener::new(fds.pop().expect("a listener"));
    listener.wake_synchronously();
    let slots = Slots::new(1, 0).expect("memory");
    let thread = Thread::open(child.id()).expect("it lives");
    let mut bytes = [0; BYTES];
    while let Ok(call) = slots.receive(&listener, 0) {
        if kind == Loop::Identity {
            let file = thread.fd(0).expect("standard input");
            rustix::fs::fstat(&file).expect("it is open");
        }
        child.read_memory(call.args[2], &mut bytes).expect("on its stack");
        child.write_memory(call.args[2], &bytes).expect("on its stack");
        listener.answer(call.id, Answer::Value(0)).expect("it waits");
    }
    assert!(child.wait().expect("a child").success(), "the client fails");
}
