//! The side that drives a device.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::connection::{Connection, Wanted};
use crate::error::{Error, Result};
use crate::message::{
    Command, DEVICE_PCI, DeviceInfoBody, DmaAccess, DmaMapBody, DmaTransfer, DmaUnmapBody,
    FeatureBody, IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IrqInfoBody, IrqSetBody, MINOR,
    MigrationData, MultiWrite, RegionAccess, RegionInfoBody,
};
use crate::region::Region;
use crate::server::DeviceInfo;
use crate::version::{self, Capabilities};
use crate::wire::Message;

/// The memory that a server asks for by DMA_READ and DMA_WRITE. A refusal is answered to the server
/// and ends nothing.
pub trait Memory {
    /// Fills `bytes` from `address`.
    ///
    /// # Errors
    ///
    /// What the server is told.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> std::result::Result<(), Errno>;

    /// Writes `bytes` to `address`.
    ///
    /// # Errors
    ///
    /// What the server is told.
    fn write(&mut self, address: u64, bytes: &[u8]) -> std::result::Result<(), Errno>;
}

/// No memory at all: every request is refused with `EFAULT`.
impl Memory for () {
    fn read(&mut self, _: u64, _: &mut [u8]) -> std::result::Result<(), Errno> {
        Err(Errno::FAULT)
    }

    fn write(&mut self, _: u64, _: &[u8]) -> std::result::Result<(), Errno> {
        Err(Errno::FAULT)
    }
}

/// One kind of interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// VFIO's `IRQ_INFO` flags.
    pub flags: u32,
    /// How many there are.
    pub count: u32,
}

/// The most regions and kinds of interrupts that are taken from a server.
const MAX_REGIONS: u32 = 64;
const MAX_IRQS: u32 = 64;

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    server: Capabilities,
    info: DeviceInfo,
}

impl Client {
    /// Connects to the socket at `path` and agrees on a version. Every wait for the server ends
    /// after `limit`.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let address = SocketAddrUnix::new(path).map_err(Error::system("the socket's path"))?;
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(Error::system("socket"))?;
        // A queue of connections that is full keeps a connect(2) that may block for ever.
        rustix::io::ioctl_fionbio(&socket, true).map_err(Error::system("FIONBIO"))?;
        let deadline = Instant::now() + limit;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => break,
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(errno) => return Err(Error::System { what: "connect", errno }),
            }
        }
        Self::new(socket, limit)
    }

    /// Agrees on a version over a connected stream socket.
    ///
    /// # Errors
    ///
    /// Why they do not agree.
    pub fn new(socket: OwnedFd, limit: Duration) -> Result<Self> {
        let connection = Connection::new(socket, limit);
        let offer = version::encode(MINOR, &Capabilities::own());
        let reply = connection.ask(Command::VERSION, &[&offer], &[], None)?;
        let (minor, mut server) = version::decode(&reply.body)?;
        if minor > MINOR {
            return Err(Error::Version(format!("the server chose minor version {minor}")));
        }
        server.write_multiple &= Capabilities::own().write_multiple;
        let none = DeviceInfo { flags: 0, regions: 0, irqs: 0 };
        let mut client = Self { connection, server, info: none };
        client.info = client.get_info()?;
        Ok(client)
    }

    fn get_info(&self) -> Result<DeviceInfo> {
        let command = Command::DEVICE_GET_INFO;
        let mut body = DeviceInfoBody::new_zeroed();
        body.argsz = argsz(size_of::<DeviceInfoBody>());
        let reply = self.ask(command, &[body.as_bytes()], &[], &mut ())?;
        let info: DeviceInfoBody = prefix(command, &reply.body)?.0;
        let (regions, irqs) = (info.regions.get(), info.irqs.get());
        if regions > MAX_REGIONS || irqs > MAX_IRQS {
            let why = "that many regions or kinds of interrupts";
            return Err(Error::malformed(command, why, u64::from(regions.max(irqs))));
        }
        if info.flags.get() & DEVICE_PCI == 0 {
            return Err(Error::malformed(command, "no PCI device", info.flags.get().into()));
        }
        Ok(DeviceInfo { flags: info.flags.get(), regions, irqs })
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What the server can take.
    #[must_use]
    pub fn server(&self) -> &Capabilities {
        &self.server
    }

    /// What the device has.
    #[must_use]
    pub fn info(&self) -> DeviceInfo {
        self.info
    }

    fn ask(
        &self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        memory: &mut dyn Memory,
    ) -> Result<Message> {
        let connection = &self.connection;
        let mut serve = |message| serve(connection, message, memory);
        let reply = connection.ask(command, parts, fds, Some(&mut serve));
        // A reply that the caller finds wrong finishes the connection there.
        reply
    }

    /// Finishes the connection if `checked` found that the server broke the protocol.
    fn checked<T>(&self, checked: Result<T>) -> Result<T> {
        checked.inspect_err(|error| {
            if error.is_final() {
                self.connection.finish(error.clone());
            }
        })
    }

    /// Answers what the server has asked for by now, without waiting for more; whether there was
    /// anything.
    ///
    /// # Errors
    ///
    /// What finished the connection.
    pub fn serve_pending(&self, memory: &mut dyn Memory) -> Result<bool> {
        let mut served = false;
        while self.connection.has_input() {
            let wanted = Wanted { reply: None, command: true, stays: false };
            let deadline = Instant::now();
            let Some(message) = self.connection.wait(wanted, Some(deadline))? else { break };
            serve(&self.connection, message, memory)?;
            served = true;
        }
        Ok(served)
    }

    /// Region `index`.
    ///
    /// # Errors
    ///
    /// What the server answers, or what finished the connection.
    pub fn region(&self, index: u32, memory: &mut dyn Memory) -> Result<Region> {
        let command = Command::DEVICE_GET_REGION_INFO;
        let mut room = size_of::<RegionInfoBody>();
        // A second time where the capabilities had no room.
        for _ in 0..2 {
            let mut body = RegionInfoBody::new_zeroed();
            (body.argsz, body.index) = (argsz(room), index.into());
            let reply = self.ask(command, &[body.as_bytes()], &[], memory)?;
            match self.checked(Region::need(&reply.body, room.max(reply.body.len())))? {
                Some(need) => room = need,
                None => return self.checked(Region::decode(index, &reply.body, reply.fds)),
            }
        }
        self.checked(Err(Error::malformed(command, "capabilities that grow", room as u64)))
    }

    /// Interrupts of kind `index`.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn irq(&self, index: u32, memory: &mut dyn Memory) -> Result<IrqInfo> {
        let command = Command::DEVICE_GET_IRQ_INFO;
        let mut body = IrqInfoBody::new_zeroed();
        (body.argsz, body.index) = (argsz(size_of::<IrqInfoBody>()), index.into());
        let reply = self.ask(command, &[body.as_bytes()], &[], memory)?;
        let info: IrqInfoBody = self.checked(prefix(command, &reply.body))?.0;
        if info.index.get() != index {
            let why = "an answer about another kind of interrupt";
            return self.checked(Err(Error::malformed(command, why, info.index.get().into())));
        }
        Ok(IrqInfo { flags: info.flags.get(), count: info.count.get() })
    }

    /// Tells who hears interrupts `start` and the next ones of kind `index`: as many as there are
    /// `eventfds`. It is said in as many messages as the server's limit of descriptors needs.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn set_eventfds(
        &self,
        index: u32,
        action: u32,
        start: u32,
        eventfds: &[BorrowedFd<'_>],
        memory: &mut dyn Memory,
    ) -> Result<()> {
        let mut start = start;
        for some in eventfds.chunks(self.server.fds().max(1)) {
            let count = u32::try_from(some.len()).unwrap_or(u32::MAX);
            self.set_irqs(IRQ_DATA_EVENTFD | action, (index, start, count), &[], some, memory)?;
            start = start.saturating_add(count);
        }
        Ok(())
    }

    /// Does `action` with `count` interrupts from `start` of kind `index`; none of them and no
    /// action but `IRQ_TRIGGER` disables the kind.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn set_irq(
        &self,
        index: u32,
        action: u32,
        (start, count): (u32, u32),
        memory: &mut dyn Memory,
    ) -> Result<()> {
        self.set_irqs(IRQ_DATA_NONE | action, (index, start, count), &[], &[], memory)
    }

    /// Does `action` with those interrupts from `start` of kind `index` that are meant.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn set_irq_bools(
        &self,
        index: u32,
        action: u32,
        start: u32,
        meant: &[bool],
        memory: &mut dyn Memory,
    ) -> Result<()> {
        let bytes: Vec<u8> = meant.iter().map(|&meant| u8::from(meant)).collect();
        let count = u32::try_from(meant.len()).unwrap_or(u32::MAX);
        self.set_irqs(IRQ_DATA_BOOL | action, (index, start, count), &bytes, &[], memory)
    }

    fn set_irqs(
        &self,
        flags: u32,
        (index, start, count): (u32, u32, u32),
        data: &[u8],
        fds: &[BorrowedFd<'_>],
        memory: &mut dyn Memory,
    ) -> Result<()> {
        let body = IrqSetBody {
            argsz: argsz(size_of::<IrqSetBody>() + data.len()),
            flags: flags.into(),
            index: index.into(),
            start: start.into(),
            count: count.into(),
        };
        let parts = [body.as_bytes(), data];
        self.ask(Command::DEVICE_SET_IRQS, &parts, fds, memory).map(|_| ())
    }

    /// Lets the device reach `size` bytes at `address`: those of a file from an offset, or what it
    /// asks for by messages.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn dma_map(
        &self,
        (address, size): (u64, u64),
        access: DmaAccess,
        file: Option<(BorrowedFd<'_>, u64)>,
        memory: &mut dyn Memory,
    ) -> Result<()> {
        let body = DmaMapBody {
            argsz: argsz(size_of::<DmaMapBody>()),
            flags: access.bits().into(),
            offset: file.map_or(0, |(_, offset)| offset).into(),
            address: address.into(),
            size: size.into(),
        };
        let fds: Vec<_> = file.iter().map(|&(file, _)| file).collect();
        self.ask(Command::DMA_MAP, &[body.as_bytes()], &fds, memory).map(|_| ())
    }

    /// Takes back what one [`Client::dma_map`] gave: when this returns the server does not reach it
    /// any more.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn dma_unmap(&self, (address, size): (u64, u64), memory: &mut dyn Memory) -> Result<()> {
        let body = DmaUnmapBody {
            argsz: argsz(size_of::<DmaUnmapBody>()),
            flags: 0.into(),
            address: address.into(),
            size: size.into(),
        };
        self.ask(Command::DMA_UNMAP, &[body.as_bytes()], &[], memory).map(|_| ())
    }

    /// Fills `bytes` from `offset` of a region, in as many messages as the server's limit needs.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn region_read(
        &self,
        region: u32,
        offset: u64,
        bytes: &mut [u8],
        memory: &mut dyn Memory,
    ) -> Result<()> {
        let command = Command::REGION_READ;
        let mut offset = offset;
        for piece in bytes.chunks_mut(self.server.data()) {
            let access = access(region, offset, piece.len());
            let reply = self.ask(command, &[access.as_bytes()], &[], memory)?;
            let data = self.checked(echoed(command, access, &reply.body))?;
            if data.len() != piece.len() {
                let why = "not as many bytes as were asked for";
                return self.checked(Err(Error::malformed(command, why, data.len() as u64)));
            }
            piece.copy_from_slice(data);
            offset = offset.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Writes `bytes` to `offset` of a region; the device has acted when this returns.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn region_write(
        &self,
        region: u32,
        offset: u64,
        bytes: &[u8],
        memory: &mut dyn Memory,
    ) -> Result<()> {
        let command = Command::REGION_WRITE;
        let mut offset = offset;
        for piece in bytes.chunks(self.server.data()) {
            let access = access(region, offset, piece.len());
            let reply = self.ask(command, &[access.as_bytes(), piece], &[], memory)?;
            self.checked(echoed(command, access, &reply.body))?;
            offset = offset.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Does many stores of at most 8 bytes each by one message, or by one each where the server
    /// takes no other. Answers how many were done.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    ///
    /// # Panics
    ///
    /// If a store has more than 8 bytes.
    pub fn region_write_multi(
        &self,
        writes: &[(u32, u64, &[u8])],
        memory: &mut dyn Memory,
    ) -> Result<usize> {
        if !self.server.write_multiple {
            for (index, &(region, offset, bytes)) in writes.iter().enumerate() {
                match self.region_write(region, offset, bytes, memory) {
                    Ok(()) => {}
                    Err(Error::Refused { .. }) if index > 0 => return Ok(index),
                    Err(error) => return Err(error),
                }
            }
            return Ok(writes.len());
        }
        let command = Command::REGION_WRITE_MULTI;
        let mut done = 0;
        for some in writes.chunks(crate::message::MAX_WRITES) {
            let mut body = U64::new(some.len() as u64).as_bytes().to_vec();
            for &(region, offset, bytes) in some {
                let mut data = [0; 8];
                data[..bytes.len()].copy_from_slice(bytes);
                let write = MultiWrite { access: access(region, offset, bytes.len()), data };
                body.extend_from_slice(write.as_bytes());
            }
            let reply = self.ask(command, &[&body], &[], memory)?;
            let count: U64 = self.checked(prefix(command, &reply.body))?.0;
            let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
            if count > some.len() {
                let why = "more stores done than there were";
                return self.checked(Err(Error::malformed(command, why, count as u64)));
            }
            done += count;
            if count < some.len() {
                break;
            }
        }
        Ok(done)
    }

    /// The device as after power-on.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn reset(&self, memory: &mut dyn Memory) -> Result<()> {
        self.ask(Command::DEVICE_RESET, &[], &[], memory).map(|_| ())
    }

    /// Gets, sets or probes a feature; answers its data.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn feature(
        &self,
        flags: u32,
        data: &[u8],
        room: usize,
        memory: &mut dyn Memory,
    ) -> Result<Vec<u8>> {
        let command = Command::DEVICE_FEATURE;
        let size = size_of::<FeatureBody>() + data.len().max(room);
        let body = FeatureBody { argsz: argsz(size), flags: flags.into() };
        let reply = self.ask(command, &[body.as_bytes(), data], &[], memory)?;
        let (head, data): (FeatureBody, _) = self.checked(prefix(command, &reply.body))?;
        if head.flags.get() != flags || size_of::<FeatureBody>() + data.len() > size {
            let why = "an answer about another feature, or a longer one";
            return self.checked(Err(Error::malformed(command, why, head.flags.get().into())));
        }
        Ok(data.to_vec())
    }

    /// The next piece of the device's state, at most `most` bytes; none when that was all.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn migration_read(&self, most: usize, memory: &mut dyn Memory) -> Result<Vec<u8>> {
        let command = Command::MIG_DATA_READ;
        let most = most.min(self.server.data());
        let size = size_of::<MigrationData>() + most;
        let body = MigrationData { argsz: argsz(size), size: argsz(most) };
        let reply = self.ask(command, &[body.as_bytes()], &[], memory)?;
        let (head, data): (MigrationData, _) = self.checked(prefix(command, &reply.body))?;
        if data.len() > most || head.size.get() as usize != data.len() {
            let why = "not the bytes that it says";
            return self.checked(Err(Error::malformed(command, why, head.size.get().into())));
        }
        Ok(data.to_vec())
    }

    /// Gives the device a piece of its state.
    ///
    /// # Errors
    ///
    /// As [`Client::region`].
    pub fn migration_write(&self, data: &[u8], memory: &mut dyn Memory) -> Result<()> {
        for piece in data.chunks(self.server.data()) {
            let size = size_of::<MigrationData>() + piece.len();
            let body = MigrationData { argsz: argsz(size), size: argsz(piece.len()) };
            self.ask(Command::MIG_DATA_WRITE, &[body.as_bytes(), piece], &[], memory)?;
        }
        Ok(())
    }
}

impl AsFd for Client {
    /// To be polled for input, never to be read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Answers one command of the server's.
fn serve(connection: &Connection, message: Message, memory: &mut dyn Memory) -> Result<()> {
    let (command, header) = (message.command(), message.header);
    let transfer = if matches!(command, Command::DMA_READ | Command::DMA_WRITE) {
        prefix::<DmaTransfer>(command, &message.body)
    } else {
        Err(Error::malformed(command, "not for a client", 0))
    };
    let (transfer, data) = match transfer {
        Ok(transfer) => transfer,
        Err(error) => return Err(connection.finish(error)),
    };
    let count = transfer.count.get();
    let own = Capabilities::own().data() as u64;
    let wrong = match command {
        _ if count > own => Some("more bytes than may be moved at once"),
        Command::DMA_WRITE if data.len() as u64 != count => Some("not the bytes that it says"),
        Command::DMA_READ if !data.is_empty() => Some("data in a request to read"),
        _ => None,
    };
    if let Some(why) = wrong {
        return Err(connection.finish(Error::malformed(command, why, count)));
    }
    let address = transfer.address.get();
    if command == Command::DMA_WRITE {
        return match memory.write(address, data) {
            Ok(()) => connection.reply(&header, &[transfer.as_bytes()], &[]),
            Err(errno) => connection.refuse(&header, errno),
        };
    }
    let mut bytes = vec![0; usize::try_from(count).expect("at most a mebibyte")];
    match memory.read(address, &mut bytes) {
        Ok(()) => connection.reply(&header, &[transfer.as_bytes(), &bytes], &[]),
        Err(errno) => connection.refuse(&header, errno),
    }
}

fn argsz(bytes: usize) -> U32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).into()
}

fn access(region: u32, offset: u64, count: usize) -> RegionAccess {
    RegionAccess { offset: offset.into(), region: region.into(), count: argsz(count) }
}

/// The struct a body begins with, and the rest.
pub(crate) fn prefix<T: FromBytes>(command: Command, body: &[u8]) -> Result<(T, &[u8])> {
    T::read_from_prefix(body)
        .map_err(|_| Error::malformed(command, "a body that is too short", body.len() as u64))
}

/// The data after the repeated head of an access.
fn echoed(command: Command, access: RegionAccess, body: &[u8]) -> Result<&[u8]> {
    let (head, data): (RegionAccess, _) = prefix(command, body)?;
    if head != access {
        let why = "an answer about another access";
        return Err(Error::malformed(command, why, head.offset.get()));
    }
    Ok(data)
}
