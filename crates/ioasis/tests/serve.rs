//! `ioasis serve`: an NVMe controller driven by vfio-user messages.

#[path = "vfio_user/disk.rs"]
mod disk;
mod vfio_user;

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Stdio;
use std::time::Duration;

use disk::{Disk, Shared};
use ioasis_vfio_user::{Client, Command, Errno, Error};
use rustix::process::{Pid, Signal, kill_process};
use vfio_user::Folder;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn an_nvme_disk_is_identified_written_and_read_in_shared_memory() {
    let folder = Folder::new("shared");
    let server = folder.serve(&["size=1M"]);
    let client = Client::connect(&server.socket, LIMIT).expect("a version");
    let mut disk = Disk::new(client, Shared::Descriptor);
    disk.enable();
    assert_eq!(disk.blocks(), 2048);
    let bytes: Vec<u8> = (0..8192_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
    disk.write(16, &bytes);
    assert_eq!(disk.read(16, bytes.len()), bytes);
    assert!(disk.interrupts() >= 2, "a message for each command of the I/O queue");
    drop(disk);
    assert_eq!(std::fs::read(&server.image).expect("the image")[8192..16384], bytes);
}

#[test]
fn an_nvme_disk_works_by_messages_alone() {
    let folder = Folder::new("messages");
    let server = folder.serve(&["size=1M"]);
    let client = Client::connect(&server.socket, LIMIT).expect("a version");
    let mut disk = Disk::new(client, Shared::Messages);
    disk.enable();
    let bytes = vec![0x5a; 4096];
    disk.write(0, &bytes);
    assert_eq!(disk.read(0, 4096), bytes);
    drop(disk);
    assert_eq!(std::fs::read(&server.image).expect("the image")[..4096], bytes);
}

#[test]
fn each_client_finds_the_device_as_after_power_on() {
    let folder = Folder::new("again");
    let server = folder.serve(&["size=1M"]);
    for round in 0..3 {
        // At once: whoever has hung up has the device no more.
        let client = Client::connect(&server.socket, LIMIT).expect("the one before is gone");
        let mut disk = Disk::new(client, Shared::Descriptor);
        assert_eq!(disk.configuration(), 0, "round {round}");
        disk.enable();
        disk.write(round, &[u8::try_from(round).expect("small"); 512]);
    }
    let image = std::fs::read(&server.image).expect("the image");
    assert_eq!((image[0], image[512], image[1024]), (0, 1, 2));
}

#[test]
fn a_second_client_is_refused_with_words_and_the_first_goes_on() {
    let folder = Folder::new("second");
    let server = folder.serve(&["size=1M"]);
    let client = Client::connect(&server.socket, LIMIT).expect("a version");
    let refused = Client::connect(&server.socket, LIMIT).expect_err("one has it");
    assert_eq!(refused, Error::Refused { command: Command::VERSION, errno: Errno::BUSY });
    let mut disk = Disk::new(client, Shared::Descriptor);
    disk.enable();
    assert_eq!(disk.blocks(), 2048);
    drop(disk);
    let words = server.end(Signal::TERM);
    let own = std::process::id();
    let expected = format!("process {own} was refused: process {own} has the device");
    assert!(words.contains(&expected), "{words}");
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_server() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = Folder::new(&format!("socket-{}", signal.as_raw()));
        let server = folder.serve(&["size=1M"]);
        let mode = std::fs::metadata(&server.socket).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let socket = server.socket.clone();
        let client = Client::connect(&socket, LIMIT).expect("a version");
        server.end(signal);
        assert!(!socket.exists(), "it was left behind");
        assert!(client.reset(&mut ()).is_err(), "nobody answers");
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_refused_with_words() {
    let folder = Folder::new("stale");
    drop(UnixListener::bind(folder.socket()).expect("bound"));
    let server = folder.serve(&["size=1M"]);
    let mut second = folder.command(&format!("nvme,image={},size=1M", folder.path("two.img")));
    let output = second.output().expect("it starts");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("is in use: a server listens there"), "{words}");
    assert_eq!(output.status.code(), Some(125));
    let client = Client::connect(&server.socket, LIMIT).expect("the first goes on");
    client.reset(&mut ()).expect("answered");
}

#[test]
fn who_waits_for_the_server_is_told_when_it_is_ready() {
    let folder = Folder::new("ready");
    let manager = UnixDatagram::bind(folder.path("notify")).expect("bound");
    manager.set_read_timeout(Some(LIMIT)).expect("a limit");
    let (mut ready, writer) = std::io::pipe().expect("a pipe");
    let mut command = folder.command(&format!("nvme,image={},size=1M", folder.path("disk.img")));
    command.env("NOTIFY_SOCKET", folder.path("notify"));
    // A descriptor that stays open in the child has the number of its standard input there.
    let script = "exec 9>&0 </dev/null; exec \"$@\" --ready-fd 9";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env("NOTIFY_SOCKET", folder.path("notify"));
    let mut child = shell.stdin(Stdio::from(writer)).spawn().expect("it starts");
    let mut line = String::new();
    drop(shell);
    ready.read_to_string(&mut line).expect("a line and the end");
    assert_eq!(line, "READY=1\n");
    Client::connect(folder.socket().as_ref(), LIMIT).expect("clients can connect by then");
    let mut told = [0; 64];
    let length = manager.recv(&mut told).expect("told");
    assert_eq!(&told[..length], b"READY=1");
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::TERM).expect("sent");
    assert!(child.wait().expect("ended").success());
    let length = manager.recv(&mut told).expect("told");
    assert_eq!(&told[..length], b"STOPPING=1");
}

#[test]
fn memory_that_was_taken_back_is_not_reached_any_more() {
    let folder = Folder::new("taken");
    let server = folder.serve(&["size=1M"]);
    let client = Client::connect(&server.socket, LIMIT).expect("a version");
    let mut disk = Disk::new(client, Shared::Descriptor);
    disk.enable();
    disk.write(0, &[7; 512]);
    disk.take_back_data();
    assert_eq!(disk.read_status(0), 4, "Data Transfer Error");
    assert_eq!(disk.data(512), [7; 512], "the page keeps what was in it");
}

#[test]
fn a_file_that_its_client_cuts_short_is_a_failed_transfer() {
    let folder = Folder::new("cut");
    let server = folder.serve(&["size=1M"]);
    let client = Client::connect(&server.socket, LIMIT).expect("a version");
    let mut disk = Disk::new(client, Shared::Descriptor);
    disk.enable();
    disk.cut_data();
    assert_eq!(disk.read_status(0), 4, "Data Transfer Error");
    assert_eq!(disk.blocks_again(), 4, "identify writes there too, and the server lives");
}

#[test]
fn a_client_that_sends_nonsense_is_left_and_the_next_is_served() {
    use std::io::Write;
    let folder = Folder::new("nonsense");
    let server = folder.serve(&["size=1M"]);
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64], &[0; 16]] {
        let mut socket =
            std::os::unix::net::UnixStream::connect(&server.socket).expect("connected");
        let _ = socket.write_all(nonsense);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
    }
    let client = Client::connect(&server.socket, LIMIT).expect("a version");
    client.reset(&mut ()).expect("served");
    assert!(rustix::io::fcntl_getfd(client.as_fd()).is_ok());
}
