//! A vfio-user peer that sends anything.
//!
//! The first byte of an input says to whom, the rest are messages: their headers are made right
//! where a bit of the input says so, so that more than the header is tried. The other side must
//! come to an end by itself, without a panic, within the limits it was given; and a server that was
//! asked for memory must have written nothing outside it.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ioasis_vfio_user::message::{self, DmaAccess, REGION_MMAP, REGION_READABLE, pci};
use ioasis_vfio_user::{
    Answer, Area, Client, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqData, IrqInfo, Memory,
    Region, Server, SetIrqs,
};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// Every wait. All that is sent is there before it is waited for.
const LIMIT: Duration = Duration::from_millis(5);
/// Bytes of an input that are used: they and their answers fit into a socket.
const MOST: usize = 16 << 10;

/// A device that checks what reaches it.
#[derive(Debug, Default)]
struct Checked {
    calls: u64,
}

impl Device for Checked {
    fn info(&mut self) -> DeviceInfo {
        DeviceInfo::PCI
    }

    fn region(&mut self, index: u32) -> Answer<Region> {
        assert!(index < pci::REGIONS, "a region that was not offered");
        self.calls += 1;
        let areas = vec![Area { offset: 0, size: 0x1000 }];
        let flags = REGION_READABLE | REGION_MMAP;
        Ok(Region { flags, size: 0x4000, areas, ..Region::default() })
    }

    fn irq(&mut self, index: u32) -> Answer<IrqInfo> {
        assert!(index < pci::IRQS, "an interrupt that was not offered");
        self.calls += 1;
        Ok(IrqInfo { flags: 1, count: 3 })
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Answer<()> {
        self.calls += 1;
        let count = set.count as usize;
        match set.data {
            IrqData::None => {}
            IrqData::Bool(meant) => assert_eq!(meant.len(), count),
            IrqData::Eventfd(fds) => assert!(fds.is_empty() || fds.len() == count),
        }
        assert_eq!(set.action.count_ones(), 1);
        Ok(())
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Answer<()> {
        assert!(region < pci::REGIONS && bytes.len() <= message::MAX_DATA);
        assert!(offset.checked_add(bytes.len() as u64).is_some());
        self.calls += 1;
        if bytes.len() > 4096 { Err(Errno::INVAL) } else { Ok(()) }
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Answer<()> {
        assert!(region < pci::REGIONS && bytes.len() <= MOST);
        assert!(offset.checked_add(bytes.len() as u64).is_some());
        self.calls += 1;
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Answer<()> {
        assert!(map.size > 0 && map.address.checked_add(map.size - 1).is_some());
        assert!(!map.access.is_empty() && DmaAccess::all().contains(map.access));
        self.calls += 1;
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmap) -> Answer<()> {
        self.calls += 1;
        Ok(())
    }

    fn reset(&mut self) -> Answer<()> {
        self.calls += 1;
        Ok(())
    }

    fn feature(&mut self, feature: u32, _: u32, _: &[u8]) -> Answer<Vec<u8>> {
        assert!(feature <= message::FEATURE_MASK);
        self.calls += 1;
        Ok(vec![1; 8])
    }
}

/// Memory that checks what is asked of it.
struct Small;

impl Memory for Small {
    fn read(&mut self, _: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        assert!(bytes.len() <= message::MAX_DATA);
        if bytes.len() > 64 { Err(Errno::FAULT) } else { Ok(()) }
    }

    fn write(&mut self, _: u64, bytes: &[u8]) -> Result<(), Errno> {
        assert!(bytes.len() <= MOST);
        Ok(())
    }
}

/// The messages of an input, each with descriptors or without.
fn messages(input: &[u8], reply: bool) -> Vec<(Vec<u8>, usize)> {
    let (mut messages, mut rest) = (Vec::new(), input);
    while let [shape, id, command, rest_length, after @ ..] = rest {
        let length = usize::from(*rest_length).min(after.len());
        let (body, left) = after.split_at(length);
        rest = left;
        if shape & 1 == 0 {
            messages.push((body.to_vec(), usize::from(shape >> 5)));
            continue;
        }
        let size = u32::try_from(16 + length).unwrap_or(u32::MAX);
        let flags = u32::from(reply) | u32::from(shape & 0b110) << 3;
        let mut bytes = vec![*id, 0, *command % 20, 0];
        bytes.extend(size.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend([shape >> 3 & 3, 0, 0, 0]);
        bytes.extend_from_slice(body);
        messages.push((bytes, usize::from(shape >> 5)));
    }
    messages
}

fn send(socket: &UnixStream, (bytes, fds): &(Vec<u8>, usize), file: &OwnedFd) {
    if bytes.is_empty() {
        return;
    }
    let many = [0, 0, 0, 0, 1, 2, 30, 100][*fds];
    let fds = vec![file.as_fd(); many];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "room");
    let slices = [std::io::IoSlice::new(bytes)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    // A socket that is full takes no more of this input.
    let _ = rustix::net::sendmsg(socket, &slices, &mut ancillary, flags);
}

/// Sends an input to a server or a client; answers how many messages that were.
///
/// # Panics
///
/// If the other side does what it must not, or no sockets are to be had.
pub fn run(input: &[u8]) -> u64 {
    let Some((&to, rest)) = input.split_first() else { return 0 };
    let rest = &rest[..rest.len().min(MOST)];
    let (mut one, other) = UnixStream::pair().expect("sockets");
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC).expect("memory");
    if to & 1 == 0 {
        let version = [9, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        if to & 2 == 0 {
            one.write_all(&version).expect("room");
        }
        let messages = messages(rest, false);
        messages.iter().for_each(|message| send(&one, message, &file));
        one.shutdown(std::net::Shutdown::Write).expect("the end");
        if let Ok(server) = Server::new(other.into(), LIMIT) {
            let _ = server.serve(&mut Checked::default());
        }
        return messages.len() as u64;
    }
    // Replies are to what a client asks first, its ids from 1.
    let version = [1, 0, 1, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let mut info = vec![2, 0, 4, 0, 32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    info.extend([16, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0]);
    if to & 2 == 0 {
        one.write_all(&version).expect("room");
        one.write_all(&info).expect("room");
    }
    let messages = messages(rest, to & 4 == 0);
    messages.iter().for_each(|message| send(&one, message, &file));
    one.shutdown(std::net::Shutdown::Write).expect("the end");
    if let Ok(client) = Client::new(other.into(), LIMIT) {
        drive(&client);
    }
    messages.len() as u64
}

/// Asks what a client asks, until the connection is finished.
fn drive(client: &Client) {
    let memory = &mut Small;
    for index in 0..client.info().regions {
        if let Ok(region) = client.region(index, memory) {
            for area in region.mappable() {
                assert!(area.offset.checked_add(area.size).is_some_and(|end| end <= region.size));
            }
        }
        if client.connection().broken().is_some() {
            return;
        }
    }
    let _ = client.irq(pci::MSIX, memory);
    let mut bytes = [0; 64];
    let _ = client.region_read(0, 0, &mut bytes, memory);
    let _ = client.region_write(0, 0, &bytes, memory);
    let _ = client.feature(message::FEATURE_GET | 1, &[], 64, memory);
    let _ = client.migration_read(64, memory);
    let _ = client.serve_pending(memory);
    let _ = client.reset(memory);
}
