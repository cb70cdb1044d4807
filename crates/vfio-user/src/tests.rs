//! Client against server, and each against a peer that does as it likes.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::connection::{Connection, Then, Wanted};
use crate::message::{self, Command, DmaAccess, Header, REGION_MMAP, REGION_READABLE, pci};
use crate::server::Answer;
use crate::{
    Area, Client, Device, DeviceInfo, DmaMap, DmaUnmap, Error, IrqData, IrqInfo, Listener, Memory,
    Peer, Region, Server, SetIrqs,
};

const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// A device of one region of 64 KiB, which keeps what it is told.
#[derive(Default)]
struct Fake {
    bytes: Vec<u8>,
    maps: Vec<(u64, u64, bool)>,
    irqs: Vec<String>,
    eventfds: Vec<OwnedFd>,
    resets: u32,
    peer: Option<Peer>,
    state: Vec<u8>,
}

impl Fake {
    fn new() -> Self {
        Self { bytes: vec![0; 0x1_0000], ..Self::default() }
    }

    fn span(&self, region: u32, offset: u64, length: usize) -> Answer<std::ops::Range<usize>> {
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let end = start.checked_add(length).ok_or(Errno::INVAL)?;
        if region != 0 || end > self.bytes.len() {
            return Err(Errno::INVAL);
        }
        Ok(start..end)
    }
}

impl Device for Fake {
    fn info(&mut self) -> DeviceInfo {
        DeviceInfo::PCI
    }

    fn region(&mut self, index: u32) -> Answer<Region> {
        if index != 0 {
            return Ok(Region::default());
        }
        let file = memfd_create("region", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&file, 0x1_0000).expect("room");
        let areas =
            vec![Area { offset: 0x1000, size: 0x2000 }, Area { offset: 0x8000, size: 0x1000 }];
        Ok(Region {
            flags: REGION_READABLE | REGION_MMAP,
            size: 0x1_0000,
            file_offset: 0x10,
            areas,
            file: Some(file),
        })
    }

    fn irq(&mut self, index: u32) -> Answer<IrqInfo> {
        Ok(IrqInfo { flags: 1, count: if index == pci::MSIX { 100 } else { 0 } })
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Answer<()> {
        let SetIrqs { index, start, count, action, data } = set;
        let data = match data {
            IrqData::None => "none".to_owned(),
            IrqData::Bool(meant) => format!("{meant:?}"),
            IrqData::Eventfd(fds) => {
                let text = format!("{} fds", fds.len());
                self.eventfds.extend(fds);
                text
            }
        };
        self.irqs.push(format!("{index} {start}+{count} {action:#x} {data}"));
        Ok(())
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Answer<()> {
        let span = self.span(region, offset, bytes.len())?;
        bytes.copy_from_slice(&self.bytes[span]);
        Ok(())
    }

    /// A store to the last word has the device reverse 16 bytes of the client's memory at the
    /// address stored.
    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Answer<()> {
        let span = self.span(region, offset, bytes.len())?;
        self.bytes[span].copy_from_slice(bytes);
        if offset == 0xfff8
            && let Some(peer) = self.peer.clone()
        {
            let address = u64::from_le_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?);
            let mut moved = [0; 16];
            peer.dma_read(address, &mut moved).map_err(|_| Errno::IO)?;
            moved.reverse();
            peer.dma_write(address, &moved).map_err(|_| Errno::IO)?;
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Answer<()> {
        if self.maps.iter().any(|&(address, ..)| address == map.address) {
            return Err(Errno::EXIST);
        }
        self.maps.push((map.address, map.size, map.file.is_some()));
        Ok(())
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Answer<()> {
        let before = self.maps.len();
        self.maps.retain(|&(address, size, _)| match unmap {
            DmaUnmap::All => false,
            DmaUnmap::Range { .. } => unmap != DmaUnmap::Range { address, size },
        });
        if self.maps.len() == before { Err(Errno::NOENT) } else { Ok(()) }
    }

    fn reset(&mut self) -> Answer<()> {
        self.resets += 1;
        Ok(())
    }

    fn feature(&mut self, feature: u32, action: u32, _: &[u8]) -> Answer<Vec<u8>> {
        match (feature, action) {
            (message::FEATURE_MIGRATION, message::FEATURE_GET) => Ok(vec![1, 0, 0, 0, 0, 0, 0, 0]),
            _ => Err(Errno::NOTTY),
        }
    }

    fn migration_read(&mut self, most: usize) -> Answer<Vec<u8>> {
        let count = most.min(self.state.len());
        Ok(self.state.drain(..count).collect())
    }

    fn migration_write(&mut self, data: &[u8]) -> Answer<()> {
        self.state.extend_from_slice(data);
        Ok(())
    }
}

/// Memory that begins at an address.
struct Ram(u64, Vec<u8>);

impl Ram {
    fn span(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, Errno> {
        let start = address.checked_sub(self.0).ok_or(Errno::FAULT)?;
        let start = usize::try_from(start).map_err(|_| Errno::FAULT)?;
        let end = start.checked_add(length).filter(|&end| end <= self.1.len());
        Ok(start..end.ok_or(Errno::FAULT)?)
    }
}

impl Memory for Ram {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let span = self.span(address, bytes.len())?;
        bytes.copy_from_slice(&self.1[span]);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let span = self.span(address, bytes.len())?;
        self.1[span].copy_from_slice(bytes);
        Ok(())
    }
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("sockets")
}

/// What gives the device back when the client is gone.
type Served = thread::JoinHandle<(Fake, Result<(), Error>)>;

/// A client of a fake device.
fn served() -> (Client, Served) {
    let (one, other) = pair();
    let server = thread::spawn(move || {
        let server = Server::new(other.into(), LIMIT).expect("a version");
        let mut device = Fake { peer: Some(server.peer()), ..Fake::new() };
        let ended = server.serve(&mut device);
        (device, ended)
    });
    (Client::new(one.into(), LIMIT).expect("a version"), server)
}

fn refused<T: std::fmt::Debug>(result: crate::Result<T>) -> Errno {
    match result.expect_err("a refusal") {
        Error::Refused { errno, .. } => errno,
        other => panic!("not a refusal: {other}"),
    }
}

#[test]
fn a_client_sees_the_device_that_a_server_offers() {
    let (client, server) = served();
    assert_eq!(client.info(), DeviceInfo::PCI);
    assert!(client.server().write_multiple);
    let region = client.region(0, &mut ()).expect("a region");
    assert_eq!((region.size, region.file_offset, region.file.is_some()), (0x1_0000, 0x10, true));
    let areas = [Area { offset: 0x1000, size: 0x2000 }, Area { offset: 0x8000, size: 0x1000 }];
    assert_eq!(region.mappable(), areas);
    assert_eq!(client.region(1, &mut ()).expect("an empty one").size, 0);
    assert_eq!(refused(client.region(9, &mut ())), Errno::INVAL);
    assert_eq!(client.irq(pci::MSIX, &mut ()).expect("MSI-X").count, 100);
    assert_eq!(refused(client.irq(5, &mut ())), Errno::INVAL);
    client.region_write(0, 0x20, b"registers", &mut ()).expect("written");
    let mut read = [0; 9];
    client.region_read(0, 0x20, &mut read, &mut ()).expect("read");
    assert_eq!(&read, b"registers");
    assert_eq!(refused(client.region_read(0, 0xffff, &mut read, &mut ())), Errno::INVAL);
    assert_eq!(refused(client.region_read(0, u64::MAX, &mut read, &mut ())), Errno::INVAL);
    client.reset(&mut ()).expect("reset");
    drop(client);
    let (device, ended) = server.join().expect("no panic");
    assert_eq!((device.resets, ended), (1, Ok(())));
}

#[test]
fn many_stores_go_in_one_message_up_to_the_first_that_fails() {
    let (client, server) = served();
    let bytes = [7; 8];
    let writes: Vec<(u32, u64, &[u8])> = (0..5000).map(|at| (0, at * 8, &bytes[..8])).collect();
    assert_eq!(client.region_write_multi(&writes, &mut ()).expect("done"), 5000);
    let some = [(0, 0, &bytes[..4]), (0, 0x1_0000, &bytes[..1]), (0, 8, &bytes[..1])];
    assert_eq!(client.region_write_multi(&some, &mut ()).expect("one"), 1);
    assert_eq!(refused(client.region_write_multi(&some[1..], &mut ())), Errno::INVAL);
    drop(client);
    assert!(server.join().expect("no panic").0.bytes[..40000].iter().all(|&byte| byte == 7));
}

#[test]
fn eventfds_arrive_in_as_many_messages_as_the_limit_needs() {
    let (client, server) = served();
    let own: Vec<OwnedFd> =
        (0..100).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).collect();
    let fds: Vec<_> = own.iter().map(AsFd::as_fd).collect();
    client.set_eventfds(pci::MSIX, message::IRQ_TRIGGER, 0, &fds, &mut ()).expect("set");
    client.set_irq_bools(pci::MSIX, message::IRQ_TRIGGER, 3, &[true, false], &mut ()).expect("set");
    client.set_irq(pci::MSIX, message::IRQ_TRIGGER, (0, 0), &mut ()).expect("set");
    drop(client);
    let (mut device, _) = server.join().expect("no panic");
    assert_eq!(device.irqs.remove(0), "2 0+16 0x20 16 fds");
    device.irqs.drain(..5);
    let said = ["2 96+4 0x20 4 fds", "2 3+2 0x20 [true, false]", "2 0+0 0x20 none"];
    assert_eq!(device.irqs, said);
    rustix::io::write(&device.eventfds[99], &1_u64.to_ne_bytes()).expect("signalled");
    let mut count = [0; 8];
    rustix::io::read(&own[99], &mut count).expect("heard");
    assert_eq!(u64::from_ne_bytes(count), 1);
}

#[test]
fn a_server_reaches_memory_while_the_client_waits_for_it() {
    let (client, server) = served();
    let mut ram = Ram(0x4000, b"0123456789abcdef and more".to_vec());
    client.dma_map((0x4000, 0x1000), DmaAccess::all(), None, &mut ram).expect("mapped");
    assert_eq!(
        refused(client.dma_map((0x4000, 0x1000), DmaAccess::all(), None, &mut ram)),
        Errno::EXIST
    );
    client.region_write(0, 0xfff8, &0x4000_u64.to_le_bytes(), &mut ram).expect("acted");
    assert_eq!(&ram.1, b"fedcba9876543210 and more");
    let outside = client.region_write(0, 0xfff8, &0x3fff_u64.to_le_bytes(), &mut ram);
    assert_eq!(refused(outside), Errno::IO, "the device saw its request refused");
    let file = memfd_create("ram", MemfdFlags::CLOEXEC).expect("memory");
    client.dma_map((0, 0x1000), DmaAccess::READ, Some((file.as_fd(), 0)), &mut ram).expect("one");
    client.dma_unmap((0x4000, 0x1000), &mut ram).expect("unmapped");
    assert_eq!(refused(client.dma_unmap((0, 0x800), &mut ram)), Errno::NOENT);
    drop(client);
    assert_eq!(server.join().expect("no panic").0.maps, [(0, 0x1000, true)]);
}

#[test]
fn requests_of_a_devices_own_thread_are_answered_when_the_client_looks() {
    let (one, other) = pair();
    // A server that asks before the client has given it memory finds none.
    let (go, may_go) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let server = Server::new(other.into(), LIMIT).expect("a version");
        let peer = server.peer();
        let moved = thread::spawn(move || {
            may_go.recv().expect("the client");
            let mut bytes = vec![0; 3 << 20];
            peer.dma_read(0, &mut bytes).expect("more than one message");
            peer.dma_write(0, &vec![9; 3 << 20]).expect("the same");
            bytes
        });
        server.serve(&mut Fake::new()).expect("served");
        moved.join().expect("no panic")
    });
    let client = Client::new(one.into(), LIMIT).expect("a version");
    let mut ram = Ram(0, vec![5; 3 << 20]);
    go.send(()).expect("the server");
    while ram.1.iter().any(|&byte| byte != 9) {
        let ready = rustix::event::PollFd::new(&client, rustix::event::PollFlags::IN);
        rustix::event::poll(&mut [ready], None).expect("polled");
        client.serve_pending(&mut ram).expect("served");
    }
    client.region_write(0, 0, b"x", &mut ram).expect("the last answer was taken");
    drop(client);
    assert!(server.join().expect("no panic").iter().all(|&byte| byte == 5));
}

#[test]
fn pieces_asked_for_together_come_each_to_its_place_and_the_first_refusal_is_told() {
    let (one, other) = pair();
    let (go, may_go) = std::sync::mpsc::channel();
    let server = thread::spawn(move || {
        let server = Server::new(other.into(), LIMIT).expect("a version");
        let peer = server.peer();
        let moved = thread::spawn(move || {
            may_go.recv().expect("the client");
            // More than are on their way at a time, from behind to the front.
            let mut bytes = vec![0; 64 * 16];
            let pieces = bytes.chunks_mut(16).zip((0..64_u64).rev());
            let mut pieces: Vec<_> = pieces.map(|(piece, at)| (at * 16, piece)).collect();
            peer.dma_read_each(&mut pieces).expect("all are there");
            pieces[40].0 = 1 << 40;
            pieces[20].0 = 1 << 40;
            let read = peer.dma_read_each(&mut pieces).expect_err("two are not");
            let pieces: Vec<_> = pieces.iter().map(|(at, piece)| (*at, &**piece)).collect();
            let written = peer.dma_write_each(&pieces).expect_err("two are not");
            assert_eq!((read.0, written.0), (20, 20));
            let refusals = [read.1, written.1].map(|error| matches!(error, Error::Refused { .. }));
            assert_eq!(refusals, [true; 2]);
            // No answer was left behind for it.
            peer.dma_write(0, &[0xee]).expect("the connection goes on");
            bytes
        });
        server.serve(&mut Fake::new()).expect("served");
        moved.join().expect("no panic")
    });
    let client = Client::new(one.into(), LIMIT).expect("a version");
    let mut ram = Ram(0, (0..64 * 16).map(|at| u8::try_from(at / 16).expect("below 64")).collect());
    go.send(()).expect("the server");
    while ram.1[0] != 0xee {
        let ready = rustix::event::PollFd::new(&client, rustix::event::PollFlags::IN);
        rustix::event::poll(&mut [ready], None).expect("polled");
        client.serve_pending(&mut ram).expect("served");
    }
    client.region_write(0, 0, b"x", &mut ram).expect("the last answer was taken");
    drop(client);
    let bytes = server.join().expect("no panic");
    let expected: Vec<u8> = (0..64_u8).rev().flat_map(|at| [at; 16]).collect();
    assert_eq!(bytes, expected);
}

#[test]
fn who_waits_for_a_command_gets_it_after_replies_that_came_in_another_order() {
    let (one, mut other) = pair();
    let connection = Arc::new(Connection::new(one.into(), LIMIT));
    let asks = Arc::clone(&connection);
    let asker = thread::spawn(move || {
        let command = Command::DMA_READ;
        let ids = [(); 2].map(|()| asks.begin(command, &[], &[]).expect("sent"));
        asks.answer(command, ids[0], None, Then::Waits).expect("the first");
        asks.answer(command, ids[1], None, Then::Leaves).expect("the second");
    });
    let mut sent = [0; 2 * message::HEADER];
    other.read_exact(&mut sent).expect("two commands");
    let waits = Arc::clone(&connection);
    let waiter = thread::spawn(move || {
        let wanted = Wanted { reply: None, command: true, stays: false };
        waits.wait(wanted, Some(Instant::now() + LIMIT)).expect("whole").is_some()
    });
    // Until the one receives and the other waits beside it; either order is right.
    thread::sleep(Duration::from_millis(50));
    let (first, second) = sent.split_at(message::HEADER);
    for (header, flags) in [(second, 1), (first, 1), (second, 0)] {
        let mut header = header.to_vec();
        header[8] = flags;
        other.write_all(&header).expect("sent");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(waiter.join().expect("no panic"), "nobody received the command");
    asker.join().expect("no panic");
}

#[test]
fn features_and_the_state_of_a_device_go_through() {
    let (client, server) = served();
    let get = message::FEATURE_GET | message::FEATURE_MIGRATION;
    assert_eq!(client.feature(get, &[], 8, &mut ()).expect("one"), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(refused(client.feature(get, &[], 4, &mut ())), Errno::INVAL, "no room");
    assert_eq!(refused(client.feature(get + 1, &[], 8, &mut ())), Errno::NOTTY);
    let both = message::FEATURE_GET | message::FEATURE_SET;
    assert_eq!(refused(client.feature(both, &[], 8, &mut ())), Errno::INVAL);
    client.migration_write(b"the state of it", &mut ()).expect("written");
    assert_eq!(client.migration_read(9, &mut ()).expect("a piece"), b"the state");
    assert_eq!(client.migration_read(99, &mut ()).expect("the rest"), b" of it");
    assert_eq!(client.migration_read(99, &mut ()).expect("no more"), b"");
    drop(client);
    server.join().expect("no panic").1.expect("served");
}

/// A peer that says what a test has it say, to a client.
fn client_of(answers: &[&[u8]]) -> crate::Result<Client> {
    let (one, mut other) = pair();
    for answer in answers {
        other.write_all(answer).expect("sent");
    }
    Client::new(one.into(), SHORT)
}

fn message(id: u16, command: Command, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = Header {
        id: id.into(),
        command: command.0.into(),
        size: u32::try_from(16 + body.len()).expect("small").into(),
        flags: flags.into(),
        error: 0.into(),
    };
    [header.as_bytes(), body].concat()
}

#[test]
fn a_server_that_lies_is_found_out_and_named() {
    let version = message(1, Command::VERSION, 1, &[0, 0, 1, 0]);
    let info = |flags: u8, regions: u8| [16, 0, 0, 0, flags, 0, 0, 0, regions, 0, 0, 0, 5, 0, 0, 0];
    let said = |answers: &[&[u8]]| client_of(answers).expect_err("a lie").to_string();
    assert_eq!(said(&[]), "VERSION: no answer within 0.05 s");
    assert_eq!(said(&[&version[..7]]), "a message of which the rest did not come within 0.05 s");
    let wrong_id = message(7, Command::VERSION, 1, &[0, 0, 1, 0]);
    assert_eq!(said(&[&wrong_id]), "VERSION: a reply to what was not asked (0x7)");
    let wrong_command = message(1, Command::DMA_MAP, 1, &[0, 0, 1, 0]);
    assert_eq!(said(&[&wrong_command]), "DMA_MAP: a reply to what was not asked (0x1)");
    let wrong_type = message(1, Command::VERSION, 2, &[0, 0, 1, 0]);
    assert_eq!(said(&[&wrong_type]), "VERSION: neither a command nor a reply (0x2)");
    let short = message(1, Command::VERSION, 1, &[0]);
    assert_eq!(said(&[&short]), "VERSION: too short for a version (0x1)");
    let other = message(1, Command::VERSION, 1, &[9, 0, 1, 0]);
    assert_eq!(said(&[&other]), "the peer speaks version 9.1 of the protocol, this side 0.1");
    let json = message(1, Command::VERSION, 1, b"\0\0\x01\0{\"capabilities\":3}\0");
    assert_eq!(said(&[&json]), "VERSION: capabilities that are no object (0x13)");
    let mut huge = version.clone();
    huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(said(&[&huge]), "VERSION: a message of that size (0xffffffff)");
    huge[4..8].copy_from_slice(&15_u32.to_le_bytes());
    assert_eq!(said(&[&huge]), "VERSION: a message of that size (0xf)");
    let many = message(2, Command::DEVICE_GET_INFO, 1, &info(3, 200));
    assert_eq!(
        said(&[&version, &many]),
        "DEVICE_GET_INFO: that many regions or kinds of interrupts (0xc8)"
    );
    let none = message(2, Command::DEVICE_GET_INFO, 1, &info(1, 9));
    assert_eq!(said(&[&version, &none]), "DEVICE_GET_INFO: no PCI device (0x1)");
    let asks = message(0, Command::REGION_READ, 0, &[0; 16]);
    assert_eq!(said(&[&version, &asks]), "REGION_READ: not for a client (0x0)");
    let asks = message(0, Command::DMA_READ, 0, &[0xff; 16]);
    assert!(said(&[&version, &asks]).starts_with("DMA_READ: more bytes than may be moved at once"));
}

#[test]
fn a_server_that_refuses_a_client_is_heard() {
    let (one, other) = pair();
    let server = thread::spawn(move || Server::refuse(other.into(), LIMIT, Errno::BUSY));
    let error = Client::new(one.into(), LIMIT).expect_err("refused");
    assert_eq!(error, Error::Refused { command: Command::VERSION, errno: Errno::BUSY });
    server.join().expect("no panic").expect("said");
}

#[test]
fn a_region_whose_capabilities_lie_is_refused() {
    let body = |cap_offset: u32, caps: &[u8]| {
        let need = u32::try_from(32 + caps.len()).expect("small");
        let words = [need, 0xf, 0, cap_offset, 0x1_0000, 0, 0, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(caps);
        bytes
    };
    let cap = |next: u32, areas: u32, offset: u64| {
        let mut bytes = vec![1, 0, 1, 0];
        bytes.extend(next.to_le_bytes());
        bytes.extend(areas.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(offset.to_le_bytes());
        bytes.extend(0x1000_u64.to_le_bytes());
        bytes
    };
    let decode = |bytes: &[u8]| Region::decode(0, bytes, Vec::new());
    assert_eq!(decode(&body(32, &cap(0, 1, 0x1000))).expect("honest").areas.len(), 1);
    for (what, bytes) in [
        ("too short", vec![0; 31]),
        ("an area outside", body(32, &cap(0, 1, 0xf001))),
        ("an area that wraps", body(32, &cap(0, 1, u64::MAX))),
        ("more areas than there are", body(32, &cap(0, 2, 0))),
        ("areas without end", body(32, &cap(0, u32::MAX, 0))),
        ("a chain that turns round", body(32, &cap(32, 1, 0))),
        ("a capability in the info", body(8, &cap(0, 1, 0))),
        ("a capability after the end", body(1 << 20, &cap(0, 1, 0))),
        ("a next after the end", body(32, &cap(u32::MAX, 1, 0))),
    ] {
        assert!(decode(&bytes).is_err(), "{what}");
    }
    assert!(Region::decode(1, &body(32, &cap(0, 1, 0)), Vec::new()).is_err(), "another region");
}

/// What a server makes of bytes after the VERSION, and what it answered.
fn said_to(bytes: &[u8]) -> (crate::Result<()>, Vec<u8>, Fake) {
    let (mut one, other) = pair();
    one.write_all(&message(9, Command::VERSION, 0, &[0, 0, 1, 0])).expect("sent");
    one.write_all(bytes).expect("sent");
    one.shutdown(std::net::Shutdown::Write).expect("the end");
    let mut device = Fake::new();
    let server = Server::new(other.into(), SHORT).expect("a version");
    let ended = server.serve(&mut device);
    drop(server);
    let mut answers = Vec::new();
    let _ = one.read_to_end(&mut answers);
    let version = usize::from(answers[4]);
    (ended, answers.split_off(version), device)
}

#[test]
fn a_client_that_sends_nonsense_is_answered_with_an_errno_or_left() {
    let einval = |id, command: Command| {
        let mut header = message(id, command, 0x21, &[]);
        header[12] = 22;
        header
    };
    for (command, body) in [
        (Command::DMA_MAP, vec![0xff; 32]),
        (Command::DMA_MAP, vec![0; 31]),
        (Command::DMA_UNMAP, vec![0; 23]),
        (Command::DEVICE_GET_INFO, vec![0; 16]),
        (Command::DEVICE_GET_REGION_INFO, vec![0xff; 32]),
        (Command::DEVICE_GET_IRQ_INFO, vec![0xff; 16]),
        (Command::DEVICE_SET_IRQS, vec![0xff; 20]),
        (Command::REGION_READ, vec![0xff; 16]),
        (Command::REGION_WRITE, vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1]),
        (Command::REGION_WRITE_MULTI, vec![0xff; 8]),
        (Command::DEVICE_FEATURE, vec![0xff; 8]),
        (Command::MIG_DATA_READ, vec![0xff; 8]),
        (Command::MIG_DATA_WRITE, vec![0xff; 8]),
        (Command::VERSION, vec![0; 4]),
    ] {
        let (ended, answers, _) = said_to(&message(3, command, 0, &body));
        assert_eq!((ended, answers), (Ok(()), einval(3, command)), "{command}");
    }
    let (_, answers, _) = said_to(&message(4, Command(99), 0, &[]));
    assert_eq!(answers[12], 95, "EOPNOTSUPP");
    let (ended, answers, _) = said_to(&message(4, Command::DEVICE_RESET, 1, &[]));
    assert!(ended.is_err() && answers.is_empty(), "a reply that nobody waits for");
    let (ended, ..) = said_to(&message(4, Command::DEVICE_RESET, 0, &[])[..9]);
    assert_eq!(ended, Ok(()), "it went in the middle of a message");
}

#[test]
fn a_command_that_wants_no_reply_is_done_and_gets_none() {
    let quiet = message(1, Command::DEVICE_RESET, message::NO_REPLY, &[]);
    let wrong = message(2, Command::DMA_UNMAP, message::NO_REPLY, &[0; 24]);
    let (ended, answers, device) = said_to(&[quiet, wrong].concat());
    assert_eq!((ended, answers.len(), device.resets), (Ok(()), 0, 1));
}

#[test]
fn more_descriptors_than_a_message_takes_are_refused_and_closed() {
    let (one, other) = pair();
    let server = thread::spawn(move || {
        let server = Server::new(other.into(), LIMIT).expect("a version");
        server.serve(&mut Fake::new())
    });
    let client = Client::new(one.into(), LIMIT).expect("a version");
    let file = memfd_create("ram", MemfdFlags::CLOEXEC).expect("memory");
    let two = [file.as_fd(), file.as_fd()];
    let mut body = vec![0; 32];
    (body[0], body[4], body[25]) = (32, 3, 0x10);
    let asked = client.connection().ask(Command::DMA_MAP, &[&body], &two, None);
    assert_eq!(refused(asked), Errno::INVAL);
    client.region_write(0, 0, b"x", &mut ()).expect("it goes on");
    drop(client);
    server.join().expect("no panic").expect("served");
}

#[test]
fn a_server_that_asks_all_the_time_and_never_answers_is_silent() {
    let (one, mut other) = pair();
    other.write_all(&message(1, Command::VERSION, 1, &[0, 0, 1, 0])).expect("sent");
    let chatter = thread::spawn(move || {
        let ask = message(0, Command::DMA_READ, 0, &[0; 16]);
        while other.write_all(&ask).is_ok() {
            let mut answer = [0; 32];
            if other.read(&mut answer).is_err() {
                break;
            }
        }
    });
    let error = Client::new(one.into(), SHORT).expect_err("silence");
    assert_eq!(error, Error::Silent { command: Command::DEVICE_GET_INFO, limit: SHORT });
    chatter.join().expect("no panic");
}

#[test]
fn a_peer_that_takes_nothing_is_not_waited_for() {
    let (one, _other) = pair();
    let connection = Connection::new(one.into(), SHORT);
    let to = Header { command: Command::REGION_READ.0.into(), ..Header::default() };
    let data = vec![0; 1 << 20];
    let error = (0..9).find_map(|_| connection.reply(&to, &[&data], &[]).err()).expect("full");
    assert_eq!(error, Error::Silent { command: Command::REGION_READ, limit: SHORT });
    assert_eq!(connection.broken(), Some(error));
}

fn path(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vfio-user-{test}-{}", std::process::id()))
}

#[test]
fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
    let path = path("stale");
    let first = Listener::bind(&path).expect("bound");
    let mode = std::fs::metadata(&path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let error = Listener::bind(&path).expect_err("a live one");
    assert_eq!(error, Error::System { what: "bind", errno: Errno::ADDRINUSE });
    std::mem::forget(first.accept().expect("the look of the second"));
    drop(first);
    assert!(!path.exists(), "it goes with its listener");
    // What a server leaves that is killed.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let second = Listener::bind(&path).expect("a stale one is replaced");
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "a file").expect("written");
    drop(second);
    assert!(path.exists(), "what another put there is not removed");
    assert!(Listener::bind(&path).is_err(), "nor replaced");
    std::fs::remove_file(&path).expect("removed");
}
