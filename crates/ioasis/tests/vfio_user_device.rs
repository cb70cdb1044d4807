//! `--device vfio-user`: a device of another process in a run, by servers that behave and servers
//! that do not.

mod vfio_user;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ioasis_vfio_user::message::{REGION_READABLE, REGION_WRITABLE, pci};
use ioasis_vfio_user::{
    Answer, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqInfo, Listener, Region, Server, SetIrqs,
};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;
use vfio_user::Folder;

fn run(socket: &str, options: &str, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    let device = format!("vfio-user,socket={socket}{options}");
    command.args(["run", "--root", "--device", &device, "--"]).args(words);
    command.output().expect("it starts")
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

fn image(path: &str, bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    let content: Vec<u8> = std::iter::repeat_with(next).take(bytes).collect();
    std::fs::write(path, &content).expect("written");
    content
}

#[test]
fn qemu_img_copies_an_image_through_a_served_nvme_disk_both_ways() {
    let folder = Folder::new("chain");
    let content = image(&folder.path("disk.img"), 4 << 20);
    let server = folder.serve(&[]);
    let socket = server.socket.to_str().expect("UTF-8").to_owned();
    let copy = folder.path("copy.img");
    let convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "nvme://0000:01:00.0/1", &copy];
    succeeded(&run(&socket, "", &convert));
    assert!(std::fs::read(&copy).expect("a copy") == content, "the copy differs");
    let source = folder.path("source.img");
    let content = image(&source, 2 << 20);
    let convert =
        ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", &source, "nvme://0000:01:00.0/1"];
    succeeded(&run(&socket, "", &convert));
    let image = server.image.clone();
    assert_eq!(server.end(Signal::TERM), "", "nothing to say");
    let written = std::fs::read(image).expect("the image");
    assert!(written[..content.len()] == content, "the image differs");
}

#[test]
fn a_server_that_is_not_there_is_said_before_anything_is_run() {
    let folder = Folder::new("absent");
    let output = run(&folder.socket(), "", &["true"]);
    assert_eq!(output.status.code(), Some(125));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("vfio-user: socket=") && words.contains("connect"), "{words}");
    let output = run(&folder.socket(), ",timeout=0", &["true"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("timeout=0"), "{output:?}");
}

/// What a server does when its first register is read.
#[derive(Clone, Copy)]
enum Misdeed {
    /// It does not answer.
    Hang,
    /// It closes its connection.
    Die,
    /// It sends what is no message.
    Garbage,
    /// It answers with other bytes than were asked for.
    Lie,
    /// It asks for memory all the time.
    Chatter,
}

/// A device of one page of registers.
struct Wicked {
    misdeed: Misdeed,
    raw: UnixStream,
    peer: ioasis_vfio_user::Peer,
}

impl Device for Wicked {
    fn info(&mut self) -> DeviceInfo {
        DeviceInfo::PCI
    }

    fn region(&mut self, index: u32) -> Answer<Region> {
        let size = match index {
            0 => 4096,
            pci::CONFIG => 256,
            _ => 0,
        };
        Ok(Region { flags: REGION_READABLE | REGION_WRITABLE, size, ..Region::default() })
    }

    fn irq(&mut self, _: u32) -> Answer<IrqInfo> {
        Ok(IrqInfo { flags: 1, count: 0 })
    }

    fn set_irqs(&mut self, _: SetIrqs) -> Answer<()> {
        Ok(())
    }

    fn read(&mut self, region: u32, _: u64, bytes: &mut [u8]) -> Answer<()> {
        bytes.fill(0);
        if region != 0 {
            bytes[..4].copy_from_slice(&[0x34, 0x12, 0xcd, 0xab]);
            return Ok(());
        }
        match self.misdeed {
            Misdeed::Hang => thread::sleep(Duration::from_secs(20)),
            Misdeed::Die => self.raw.shutdown(std::net::Shutdown::Both).expect("closed"),
            Misdeed::Garbage => self.raw.write_all(&[0xa5; 64]).expect("sent"),
            // A reply to the command it has not read yet.
            Misdeed::Lie => {
                let reply = [77, 0, 9, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
                self.raw.write_all(&reply).expect("sent");
            }
            Misdeed::Chatter => {
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_secs(20) {
                    if self.peer.dma_read(0, &mut [0; 8]).is_err_and(|error| error.is_final()) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Answer<()> {
        Ok(())
    }

    fn dma_map(&mut self, _: DmaMap) -> Answer<()> {
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmap) -> Answer<()> {
        Err(Errno::NOENT)
    }

    fn reset(&mut self) -> Answer<()> {
        Ok(())
    }
}

fn wicked(path: &Path, misdeed: Misdeed) -> JoinHandle<()> {
    let listener = Listener::bind(path).expect("bound");
    thread::spawn(move || {
        rustix::event::poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).expect("polled");
        let socket = listener.accept().expect("accepted").expect("somebody");
        let raw = UnixStream::from(socket.try_clone().expect("a duplicate"));
        let server = Server::new(socket, Duration::from_secs(20)).expect("a version");
        let mut device = Wicked { misdeed, raw, peer: server.peer() };
        let _ = server.serve(&mut device);
    })
}

fn client(folder: &Folder, name: &str) -> String {
    let program = folder.path(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/clients/{name}.c"));
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wall", "-Wextra", "-Wno-unused-result", "-o", &program]).arg(source);
    assert!(gcc.status().expect("gcc is installed").success(), "it does not compile");
    program
}

/// Runs the client on a server that does `misdeed`; the line must have `words`.
fn vanishes(test: &str, misdeed: Misdeed, part: &str, words: &str) {
    let folder = Folder::new(test);
    let socket = folder.socket();
    let server = wicked(socket.as_ref(), misdeed);
    let output = run(&socket, ",timeout=300ms", &[&client(&folder, "vanishing"), part]);
    let said = String::from_utf8_lossy(&output.stderr);
    let line = format!("ioasis: 0000:01:00.0 is gone: vfio-user socket {socket}: {words}");
    assert!(said.contains(&line), "{said}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let expected = if part == "mapped" { "loaded 0xffffffff\nENODEV\n" } else { "ENODEV\n" };
    assert_eq!(stdout, expected, "{said}");
    if !matches!(misdeed, Misdeed::Hang) {
        server.join().expect("no panic");
    }
}

#[test]
fn a_server_that_hangs_is_surprise_removal_with_a_line() {
    vanishes("hang", Misdeed::Hang, "", "REGION_READ: no answer within 0.3 s");
}

#[test]
fn a_mapped_load_that_a_server_does_not_answer_gives_all_ones() {
    vanishes("mapped", Misdeed::Hang, "mapped", "REGION_READ: no answer within 0.3 s");
}

#[test]
fn a_server_that_dies_is_surprise_removal_with_a_line() {
    vanishes("die", Misdeed::Die, "", "the connection was closed");
}

#[test]
fn a_server_that_sends_garbage_is_surprise_removal_with_a_line() {
    vanishes("garbage", Misdeed::Garbage, "", "message 42405: a message of that size (0xa5a5a5a5)");
}

#[test]
fn a_server_that_answers_what_was_not_asked_is_surprise_removal_with_a_line() {
    vanishes("lie", Misdeed::Lie, "", "REGION_READ: a reply to what was not asked (0x4d)");
}

#[test]
fn a_server_that_asks_all_the_time_is_surprise_removal_with_a_line() {
    vanishes("chatter", Misdeed::Chatter, "", "REGION_READ: no answer within 0.3 s");
}

#[test]
fn a_device_in_python_reaches_memory_and_interrupts() {
    let folder = Folder::new("python");
    let socket = folder.socket();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/vfio_user_reverser.py");
    let lines = std::fs::read_to_string(&script).expect("the example").lines().count();
    let mut python = Command::new("python3");
    let mut server = python.arg(&script).arg(&socket).spawn().expect("python3 is installed");
    while !Path::new(&socket).exists() {
        assert!(server.try_wait().expect("a child").is_none(), "it ended at once");
        thread::sleep(Duration::from_millis(5));
    }
    let output = run(&socket, "", &[&client(&folder, "reverse")]);
    succeeded(&output);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "0x11ea1234\n0 ssecorp rehto eht morf\n0xffffffff past the end\n");
    assert!(server.wait().expect("a child").success(), "it ends with its client");
    assert!(lines < 100, "{lines} lines");
}
