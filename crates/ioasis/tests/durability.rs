//! What a program was told is written stays written.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const DISK: &str = "nvme://0000:01:00.0/1";
/// The device's thread is called by its address.
const WORKER: &str = "0000:01:00.0";

/// A folder with an empty image of 1 MiB, removed when the test passes.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("{test}-{}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a folder under target");
        fs::write(path.join("disk.img"), vec![0; 1 << 20]).expect("an image");
        Self(path)
    }

    fn image(&self) -> PathBuf {
        self.0.join("disk.img")
    }

    fn device(&self) -> String {
        format!("nvme,image={}", self.image().display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// What the device's thread did, as strace saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// A write to the image.
    Write,
    /// A return of fdatasync.
    Sync,
    /// A completion queue entry put into the program's memory.
    Completion,
}

fn calls(trace: &str) -> Vec<Call> {
    // The device's thread is the one that writes blocks.
    let is_block = |line: &&str| line.contains(" pwrite64(") && line.ends_with(" = 4096");
    let writer = trace.lines().find(is_block);
    let thread = writer.and_then(|line| line.split(' ').next()).expect("the image is written");
    let own = trace.lines().filter(|line| line.split(' ').next() == Some(thread));
    let call = |line: &str| {
        // Image and the program's memory are both written by pwrite: an entry of a completion queue has 16 bytes, and
        // what qemu-io writes is 0xcd.
        if line.contains(" pwrite64(") && line.ends_with(" = 16") {
            Some(Call::Completion)
        } else if line.contains(" pwrite64(") && line.contains("\"\\315") {
            Some(Call::Write)
        } else {
            (line.contains("fdatasync") && line.ends_with("= 0")).then_some(Call::Sync)
        }
    };
    own.filter_map(call).skip_while(|&call| call != Call::Write).collect()
}

/// The first child of a process, once it has one.
fn child_of(pid: u32) -> u32 {
    let begun = Instant::now();
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let first = children.ok().and_then(|text| text.split(' ').next()?.parse().ok());
        match first {
            Some(first) => return first,
            None => assert!(begun.elapsed() < Duration::from_secs(20), "{pid} has no child"),
        }
    }
}

/// Runs `program` under `strace` of the supervisor alone: a program that is traced itself cannot map registers.
fn strace_supervisor(folder: &Folder, trace: &Path, program: &str) {
    let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"))
        .args(["run", "--device", &folder.device(), "--", "sh", "-c"])
        .arg(format!("read go && exec {program}"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("ioasis starts");
    let supervisor = child_of(run.id());
    // It has started what it starts by itself.
    child_of(supervisor);
    let mut strace = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fdatasync,pwrite64", "-o"])
        .arg(trace)
        .args(["-p", &supervisor.to_string()])
        .spawn()
        .expect("strace starts");
    let is_traced = || {
        let status = fs::read_to_string(format!("/proc/{supervisor}/status"));
        status.is_ok_and(|text| !text.contains("TracerPid:\t0\n"))
    };
    let begun = Instant::now();
    while !is_traced() {
        assert!(begun.elapsed() < Duration::from_secs(20), "strace does not attach");
        std::thread::sleep(Duration::from_millis(1));
    }
    run.stdin.take().expect("piped").write_all(b"go\n").expect("it reads");
    assert!(run.wait().expect("it ends").success());
    assert!(strace.wait().expect("it ends with what it traces").success());
}

#[test]
fn fdatasync_returns_before_a_flush_completes() {
    let folder = Folder::new("flush");
    let trace = folder.0.join("trace");
    let program = format!(
        "qemu-io -f raw -t writeback -c 'write 0 4k' -c flush -c 'write 4k 4k' -c flush {DISK}"
    );
    strace_supervisor(&folder, &trace, &program);
    let calls = calls(&fs::read_to_string(&trace).expect("strace wrote its trace"));
    let syncs = calls.iter().filter(|&&call| call == Call::Sync).count();
    assert!(syncs >= 2, "{calls:?}");
    let last = calls.iter().rposition(|&call| call == Call::Sync).expect("there are some");
    for pair in calls[..last].chunks(2) {
        let &[work, Call::Completion] = pair else {
            panic!("work, then its completion: {calls:?}")
        };
        assert!(work == Call::Write || work == Call::Sync, "{calls:?}");
    }
}

/// A qemu-io under `ioasis run`, told on its standard input what to write.
struct Writer {
    run: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start(folder: &Folder) -> Self {
        let mut run = Command::new(env!("CARGO_BIN_EXE_ioasis"))
            .args(["run", "--device", &folder.device(), "--", "qemu-io", "-f", "raw", DISK])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ioasis starts");
        let answers = BufReader::new(run.stdout.take().expect("piped"));
        Self { run, answers }
    }

    /// The same after a kill: the dead may take a moment to leave the image.
    fn start_again(folder: &Folder, byte: u8) -> Self {
        let begin = Instant::now();
        loop {
            let mut writer = Self::start(folder);
            if writer.write(0, byte) {
                return writer;
            }
            writer.run.wait().expect("it ended");
            assert!(begin.elapsed() < Duration::from_secs(60), "the image is free again");
        }
    }

    /// Asks for block `block` to be filled with `byte`; answers whether the program said it was done.
    fn write(&mut self, block: usize, byte: u8) -> bool {
        let asked = writeln!(
            self.run.stdin.as_mut().expect("piped"),
            "write -P {byte} {} 4k",
            block * 4096
        );
        let mut line = String::new();
        while asked.is_ok() && self.answers.read_line(&mut line).is_ok_and(|length| length > 0) {
            if line.contains("wrote 4096/4096") {
                return true;
            }
            line.clear();
        }
        false
    }

    /// The processes of the run, the client's included.
    fn processes(&self) -> Vec<u32> {
        let pids = fs::read_dir("/proc").expect("proc").flatten();
        let parents: Vec<(u32, u32)> = pids
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let status = fs::read_to_string(entry.path().join("status")).ok()?;
                let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
                Some((pid, parent.trim().parse().ok()?))
            })
            .collect();
        let mut found = HashSet::from([self.run.id()]);
        loop {
            let more = parents.iter().filter(|(_, parent)| found.contains(parent));
            let more: Vec<_> =
                more.map(|&(pid, _)| pid).filter(|pid| !found.contains(pid)).collect();
            if more.is_empty() {
                return found.into_iter().collect();
            }
            found.extend(more);
        }
    }

    fn kill(mut self) {
        for pid in self.processes() {
            // It may have ended by itself.
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
        }
        self.run.wait().expect("it ended");
    }
}

/// Kills, with no pattern: times that a run of writes lasts.
fn delays() -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ u64::from(std::process::id());
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Duration::from_micros(state % 20_000)
    })
}

#[test]
fn a_completed_write_survives_the_kill_of_client_and_supervisor() {
    let kills = std::env::var("IOASIS_KILLS").map_or(10, |kills| kills.parse().expect("a number"));
    let folder = Folder::new("kill");
    let mut expected = vec![0_u8; 256];
    for (round, delay) in (1_u8..=u8::MAX).cycle().zip(delays()).take(kills) {
        let mut writer = Writer::start_again(&folder, round);
        expected[0] = round;
        let (begin, mut block) = (Instant::now(), 1);
        // One at least: on a busy machine the first may take longer than the delay.
        while block == 1 || begin.elapsed() < delay && block < 256 {
            assert!(writer.write(block, round));
            expected[block] = round;
            block += 1;
        }
        // One more is under way when everything dies: it may be there or not.
        let unsure = block % 256;
        let stdin = writer.run.stdin.as_mut().expect("piped");
        let _ = writeln!(stdin, "write -P {round} {} 4k", unsure * 4096);
        writer.kill();
        let image = fs::read(folder.image()).expect("readable");
        for (block, bytes) in image.chunks(4096).enumerate().filter(|(block, _)| *block != unsure) {
            assert!(
                bytes.iter().all(|&byte| byte == expected[block]),
                "round {round}, block {block}"
            );
        }
        expected[unsure] = image[unsure * 4096];
    }
}

#[test]
fn the_worker_is_called_by_its_address() {
    let folder = Folder::new("name");
    let mut writer = Writer::start(&folder);
    assert!(writer.write(0, 1));
    let tasks =
        writer.processes().into_iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")));
    let comm =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    let found = tasks.flatten().flatten().any(|task| comm(task).trim_end() == WORKER);
    writer.kill();
    assert!(found);
}
