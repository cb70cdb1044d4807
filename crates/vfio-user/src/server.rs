//! The side that offers a device.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::IrqInfo;
use crate::client::prefix;
use crate::connection::{Connection, Then, Wanted};
use crate::error::{Error, Result};
use crate::message::{
    Command, DEVICE_PCI, DEVICE_RESETS, DeviceInfoBody, DmaAccess, DmaMapBody, DmaTransfer,
    DmaUnmapBody, FEATURE_GET, FEATURE_MASK, FEATURE_PROBE, FEATURE_SET, FeatureBody,
    IRQ_DATA_BOOL, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, IRQ_MASK, IRQ_TRIGGER, IRQ_UNMASK, IrqInfoBody,
    IrqSetBody, MAX_DATA, MAX_FDS, MAX_WRITES, MINOR, MigrationData, MultiWrite, NO_REPLY,
    RegionAccess, RegionInfoBody, UNMAP_ALL,
};
use crate::region::Region;
use crate::version::{self, Capabilities};
use crate::wire::Message;

/// What a request comes to: an errno is answered, and ends nothing.
pub type Answer<T> = std::result::Result<T, Errno>;

/// What a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `DEVICE_RESETS` and `DEVICE_PCI`.
    pub flags: u32,
    /// Regions, those of size 0 included.
    pub regions: u32,
    /// Kinds of interrupts.
    pub irqs: u32,
}

impl DeviceInfo {
    /// A PCI device that can be reset.
    pub const PCI: Self = Self {
        flags: DEVICE_PCI | DEVICE_RESETS,
        regions: crate::message::pci::REGIONS,
        irqs: crate::message::pci::IRQS,
    };
}

/// A range of memory the client lets the device reach.
#[derive(Debug)]
pub struct DmaMap {
    /// Where the device finds it.
    pub address: u64,
    /// Bytes, at least 1; `address + size` does not wrap, except to 0.
    pub size: u64,
    /// How.
    pub access: DmaAccess,
    /// The file behind it and where in it the range begins; none when it is reached by messages.
    pub file: Option<(OwnedFd, u64)>,
}

/// What the client takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaUnmap {
    /// One range, as it was mapped.
    Range {
        /// Where it begins.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// All of it.
    All,
}

/// What comes along with SET_IRQS.
#[derive(Debug)]
pub enum IrqData {
    /// Nothing: all of them are meant.
    None,
    /// Which of them are meant, as many as `count`.
    Bool(Vec<bool>),
    /// Who hears each of them, as many as `count`; none at all takes away who did.
    Eventfd(Vec<OwnedFd>),
}

/// A SET_IRQS that is well formed; whether there are such interrupts the device knows.
#[derive(Debug)]
pub struct SetIrqs {
    /// Which kind.
    pub index: u32,
    /// The first.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// `IRQ_MASK`, `IRQ_UNMASK` or `IRQ_TRIGGER`.
    pub action: u32,
    /// What came along.
    pub data: IrqData,
}

/// What is offered. Calls come one after another, in the order of the client's messages.
pub trait Device {
    /// What there is.
    fn info(&mut self) -> DeviceInfo;

    /// Region `index`, which is below the number of regions.
    ///
    /// # Errors
    ///
    /// What the client is told, as in every call here.
    fn region(&mut self, index: u32) -> Answer<Region>;

    /// Interrupts of kind `index`, which is below the number of kinds.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn irq(&mut self, index: u32) -> Answer<IrqInfo>;

    /// What interrupts do from now on.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn set_irqs(&mut self, set: SetIrqs) -> Answer<()>;

    /// Fills `bytes` from `offset` of a region.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Answer<()>;

    /// Writes `bytes` to `offset` of a region, and acts on it.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Answer<()>;

    /// The client lets the device reach memory.
    ///
    /// # Errors
    ///
    /// `EEXIST` over a range there is.
    fn dma_map(&mut self, map: DmaMap) -> Answer<()>;

    /// The client takes it back: when this returns the device does not reach it any more.
    ///
    /// # Errors
    ///
    /// `ENOENT` for what was not mapped so.
    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Answer<()>;

    /// The state after power-on.
    ///
    /// # Errors
    ///
    /// What the client is told.
    fn reset(&mut self) -> Answer<()>;

    /// A feature: number, one of `FEATURE_GET` and `FEATURE_SET` or `FEATURE_PROBE` with either,
    /// and data. Answers the data of a GET.
    ///
    /// # Errors
    ///
    /// `ENOTTY` for one there is not.
    fn feature(&mut self, feature: u32, action: u32, data: &[u8]) -> Answer<Vec<u8>> {
        let _ = (feature, action, data);
        Err(Errno::NOTTY)
    }

    /// The next piece of the device's state, at most `most` bytes.
    ///
    /// # Errors
    ///
    /// `ENOTTY` where there is no migration.
    fn migration_read(&mut self, most: usize) -> Answer<Vec<u8>> {
        let _ = most;
        Err(Errno::NOTTY)
    }

    /// A piece of the state it is to take on.
    ///
    /// # Errors
    ///
    /// `ENOTTY` where there is no migration.
    fn migration_write(&mut self, data: &[u8]) -> Answer<()> {
        let _ = data;
        Err(Errno::NOTTY)
    }
}

/// Messages of one transfer that are on their way at a time. Their answers, of some bytes or what was asked for, wait in the
/// socket while others are sent; this many always fit.
const UNDERWAY: usize = 16;

/// The client's memory, as any thread of a device asks for it.
#[derive(Clone, Debug)]
pub struct Peer {
    connection: Arc<Connection>,
    client: Arc<Capabilities>,
}

impl Peer {
    /// Fills `bytes` from the client's `address`, in as many messages as its limit needs.
    ///
    /// # Errors
    ///
    /// What the client answers, or what finished the connection.
    pub fn dma_read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.dma_read_each(&mut [(address, bytes)]).map_err(|(_, error)| error)
    }

    /// Fills each of `pieces` from the client's memory at its address. Several messages are on their way at a time, so that
    /// many pieces take the time of few.
    ///
    /// # Errors
    ///
    /// As [`Peer::dma_read`], with the index of the first piece that was refused; others may have been filled.
    pub fn dma_read_each(
        &self,
        pieces: &mut [(u64, &mut [u8])],
    ) -> std::result::Result<(), (usize, Error)> {
        let most = self.client.data();
        let parts = pieces.iter_mut().enumerate().flat_map(|(index, (address, bytes))| {
            let parts = bytes.chunks_mut(most).zip(addresses(*address, most));
            parts.map(move |(part, address)| (index, address, part))
        });
        let command = Command::DMA_READ;
        self.each(
            command,
            parts,
            |_| &[],
            |transfer, part, body| match prefix::<DmaTransfer>(command, body) {
                Ok((head, data)) if head == *transfer && data.len() == part.len() => {
                    part.copy_from_slice(data);
                    true
                }
                _ => false,
            },
        )
    }

    /// Writes `bytes` to the client's `address`.
    ///
    /// # Errors
    ///
    /// As [`Peer::dma_read`].
    pub fn dma_write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.dma_write_each(&[(address, bytes)]).map_err(|(_, error)| error)
    }

    /// Writes each of `pieces` to the client's memory at its address, as [`Peer::dma_read_each`] reads. The client gets them in
    /// their order.
    ///
    /// # Errors
    ///
    /// As [`Peer::dma_write`], with the index of the first piece that was refused; others may have been written, those
    /// behind it too.
    pub fn dma_write_each(
        &self,
        pieces: &[(u64, &[u8])],
    ) -> std::result::Result<(), (usize, Error)> {
        let most = self.client.data();
        let parts = pieces.iter().enumerate().flat_map(|(index, &(address, bytes))| {
            let parts = bytes.chunks(most).zip(addresses(address, most));
            parts.map(move |(part, address)| (index, address, part))
        });
        // The specification gives the count of this reply 4 bytes, implementations 8.
        let is_right = |transfer: &DmaTransfer, _: &mut &[u8], body: &[u8]| {
            body.get(..12) == Some(&transfer.as_bytes()[..12])
        };
        self.each(Command::DMA_WRITE, parts, |part| part, is_right)
    }

    /// Asks for each of `parts`, a piece's index, an address and what is there, with [`UNDERWAY`] of them on their way at
    /// most. `data` goes with a message, `take` has its answer and says whether it is one. Every answer is waited for, also
    /// when one before it is a refusal: none may be left behind.
    fn each<P: AsRef<[u8]>>(
        &self,
        command: Command,
        mut parts: impl Iterator<Item = (usize, u64, P)>,
        data: fn(&P) -> &[u8],
        mut take: impl FnMut(&DmaTransfer, &mut P, &[u8]) -> bool,
    ) -> std::result::Result<(), (usize, Error)> {
        let mut underway = VecDeque::with_capacity(UNDERWAY);
        let mut refused: Option<(usize, Error)> = None;
        loop {
            // All answers, then the next: between two of them nothing is sent, so that this thread alone receives.
            let mut room = if underway.is_empty() && refused.is_none() { UNDERWAY } else { 0 };
            while room > 0
                && let Some((index, address, part)) = parts.next()
            {
                let transfer = transfer(address, part.as_ref().len());
                let sent = self.connection.begin(command, &[transfer.as_bytes(), data(&part)], &[]);
                let id = sent.map_err(|error| (index, error))?;
                underway.push_back((index, id, transfer, part));
                room -= 1;
            }
            let Some((index, id, transfer, mut part)) = underway.pop_front() else { break };
            let then = if underway.is_empty() { Then::Leaves } else { Then::Waits };
            match self.connection.answer(command, id, None, then) {
                Ok(reply) if take(&transfer, &mut part, &reply.body) => {}
                Ok(reply) => return Err((index, self.broke(command, reply.body.len()))),
                Err(error) if error.is_final() => return Err((index, error)),
                Err(error) => {
                    refused.get_or_insert((index, error));
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn broke(&self, command: Command, length: usize) -> Error {
        let why = "an answer about another transfer";
        self.connection.finish(Error::malformed(command, why, length as u64))
    }
}

/// Where each part of `most` bytes begins, of those from `address` on.
fn addresses(address: u64, most: usize) -> impl Iterator<Item = u64> {
    (0_u64..).map(move |part| address.wrapping_add(part.wrapping_mul(most as u64)))
}

fn transfer(address: u64, count: usize) -> DmaTransfer {
    DmaTransfer { address: address.into(), count: (count as u64).into() }
}

/// Ends a [`Server::serve`] from another thread.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Connection>);

impl Shutdown {
    /// Finishes the connection.
    pub fn now(&self) {
        self.0.shutdown();
    }
}

/// A connection to a client, agreed on.
#[derive(Debug)]
pub struct Server {
    connection: Arc<Connection>,
    client: Arc<Capabilities>,
}

impl Server {
    /// Agrees on a version with who connected. Every wait for the client ends after `limit`, but
    /// not that for its next command.
    ///
    /// # Errors
    ///
    /// Why they do not agree.
    pub fn new(socket: OwnedFd, limit: Duration) -> Result<Self> {
        let connection = Connection::new(socket, limit);
        let first = first(&connection)?;
        let (minor, client) = match version::decode(&first.body) {
            Ok(decoded) => decoded,
            Err(error) => {
                // The specification says to close, and who is told why can say so.
                let _ = connection.refuse(&first.header, Errno::OPNOTSUPP);
                return Err(connection.finish(error));
            }
        };
        let mut own = Capabilities::own();
        own.write_multiple &= client.write_multiple;
        let answer = version::encode(minor.min(MINOR), &own);
        connection.reply(&first.header, &[&answer], &[])?;
        Ok(Self { connection: Arc::new(connection), client: Arc::new(client) })
    }

    /// Answers the VERSION of who connected with `errno`, for a device that cannot be had.
    ///
    /// # Errors
    ///
    /// What went wrong with that.
    pub fn refuse(socket: OwnedFd, limit: Duration, errno: Errno) -> Result<()> {
        let connection = Connection::new(socket, limit);
        let first = first(&connection)?;
        connection.refuse(&first.header, errno)
    }

    /// The client's memory.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer { connection: Arc::clone(&self.connection), client: Arc::clone(&self.client) }
    }

    /// What ends [`Server::serve`].
    #[must_use]
    pub fn shutdown(&self) -> Shutdown {
        Shutdown(Arc::clone(&self.connection))
    }

    /// What the client can take.
    #[must_use]
    pub fn client(&self) -> &Capabilities {
        &self.client
    }

    /// Answers commands until the client is gone.
    ///
    /// # Errors
    ///
    /// What else finished the connection.
    pub fn serve(&self, device: &mut dyn Device) -> Result<()> {
        let wanted = Wanted { reply: None, command: true, stays: false };
        loop {
            let message = match self.connection.wait(wanted, None) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(Error::Closed) => return Ok(()),
                Err(error) => return Err(error),
            };
            match self.answer(device, message) {
                Err(Error::Closed) => return Ok(()),
                done => done?,
            }
        }
    }

    fn answer(&self, device: &mut dyn Device, message: Message) -> Result<()> {
        let header = message.header;
        let takes_fds = match message.command() {
            Command::DMA_MAP => 1,
            Command::DEVICE_SET_IRQS => MAX_FDS,
            _ => 0,
        };
        let answered =
            if message.fds.len() > takes_fds { Err(Errno::INVAL) } else { answer(device, message) };
        match answered {
            Ok(Reply { parts, file }) => {
                let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
                let fds: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
                self.connection.reply(&header, &parts, &fds)
            }
            Err(errno) => self.connection.refuse(&header, errno),
        }
    }
}

/// The VERSION that a connection begins with.
fn first(connection: &Connection) -> Result<Message> {
    let wanted = Wanted { reply: None, command: true, stays: false };
    let deadline = Instant::now() + connection.limit();
    let Some(message) = connection.wait(wanted, Some(deadline))? else {
        let silent = Error::Silent { command: Command::VERSION, limit: connection.limit() };
        return Err(connection.finish(silent));
    };
    let command = message.command();
    if command != Command::VERSION || message.header.flags.get() & NO_REPLY != 0 {
        let why = "a connection begins with a VERSION that wants an answer";
        return Err(connection.finish(Error::malformed(command, why, 0)));
    }
    Ok(message)
}

/// The body of a reply.
#[derive(Default)]
struct Reply {
    parts: Vec<Vec<u8>>,
    file: Option<OwnedFd>,
}

impl Reply {
    fn bytes(body: &[u8]) -> Self {
        Self { parts: vec![body.to_vec()], file: None }
    }

    fn with(head: &[u8], data: Vec<u8>) -> Self {
        Self { parts: vec![head.to_vec(), data], file: None }
    }
}

fn body<T: FromBytes>(bytes: &[u8]) -> Answer<(T, &[u8])> {
    T::read_from_prefix(bytes).map_err(|_| Errno::INVAL)
}

/// The length of some bytes for a field of 32 bits.
fn length(bytes: usize) -> zerocopy::little_endian::U32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).into()
}

fn answer(device: &mut dyn Device, message: Message) -> Answer<Reply> {
    let bytes = message.body.as_slice();
    match message.command() {
        Command::DMA_MAP => dma_map(device, bytes, message.fds),
        Command::DMA_UNMAP => dma_unmap(device, bytes),
        Command::DEVICE_GET_INFO => device_info(device, bytes),
        Command::DEVICE_GET_REGION_INFO => region_info(device, bytes),
        Command::DEVICE_GET_IRQ_INFO => irq_info(device, bytes),
        Command::DEVICE_SET_IRQS => set_irqs(device, bytes, message.fds),
        Command::REGION_READ => region_read(device, bytes),
        Command::REGION_WRITE => region_write(device, bytes),
        Command::REGION_WRITE_MULTI => region_write_multi(device, bytes),
        Command::DEVICE_RESET => {
            device.reset()?;
            Ok(Reply::default())
        }
        Command::DEVICE_FEATURE => feature(device, bytes),
        Command::MIG_DATA_READ => migration_read(device, bytes),
        Command::MIG_DATA_WRITE => migration_write(device, bytes),
        Command::VERSION => Err(Errno::INVAL),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn dma_map(device: &mut dyn Device, bytes: &[u8], mut fds: Vec<OwnedFd>) -> Answer<Reply> {
    let (map, _): (DmaMapBody, _) = body(bytes)?;
    let access = DmaAccess::from_bits(map.flags.get()).ok_or(Errno::INVAL)?;
    let (address, size, offset) = (map.address.get(), map.size.get(), map.offset.get());
    let last = size.checked_sub(1).and_then(|span| address.checked_add(span));
    if last.is_none() || access.is_empty() || offset.checked_add(size).is_none() {
        return Err(Errno::INVAL);
    }
    let file = fds.pop().map(|file| (file, offset));
    device.dma_map(DmaMap { address, size, access, file })?;
    Ok(Reply::default())
}

fn dma_unmap(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (unmap, _): (DmaUnmapBody, _) = body(bytes)?;
    let (address, size) = (unmap.address.get(), unmap.size.get());
    let wanted = match unmap.flags.get() {
        0 => DmaUnmap::Range { address, size },
        UNMAP_ALL if address == 0 && size == 0 => DmaUnmap::All,
        UNMAP_ALL => return Err(Errno::INVAL),
        // Dirty pages are not known here.
        _ => return Err(Errno::OPNOTSUPP),
    };
    device.dma_unmap(wanted)?;
    Ok(Reply::bytes(unmap.as_bytes()))
}

fn device_info(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (asked, _): (DeviceInfoBody, _) = body(bytes)?;
    let size = size_of::<DeviceInfoBody>();
    if (asked.argsz.get() as usize) < size {
        return Err(Errno::INVAL);
    }
    let info = device.info();
    let mut reply = DeviceInfoBody::new_zeroed();
    reply.argsz = length(size);
    reply.flags = info.flags.into();
    (reply.regions, reply.irqs) = (info.regions.into(), info.irqs.into());
    Ok(Reply::bytes(reply.as_bytes()))
}

fn region_info(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (asked, _): (RegionInfoBody, _) = body(bytes)?;
    let (index, room) = (asked.index.get(), asked.argsz.get() as usize);
    if room < size_of::<RegionInfoBody>() || index >= device.info().regions {
        return Err(Errno::INVAL);
    }
    let region = device.region(index)?;
    let encoded = region.encode(index, room);
    Ok(Reply { parts: vec![encoded], file: region.file })
}

fn irq_info(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (mut info, _): (IrqInfoBody, _) = body(bytes)?;
    let size = size_of::<IrqInfoBody>();
    if (info.argsz.get() as usize) < size || info.index.get() >= device.info().irqs {
        return Err(Errno::INVAL);
    }
    let found = device.irq(info.index.get())?;
    info.argsz = length(size);
    (info.flags, info.count) = (found.flags.into(), found.count.into());
    Ok(Reply::bytes(info.as_bytes()))
}

fn set_irqs(device: &mut dyn Device, bytes: &[u8], fds: Vec<OwnedFd>) -> Answer<Reply> {
    let (set, rest): (IrqSetBody, _) = body(bytes)?;
    let (start, count) = (set.start.get(), set.count.get());
    if set.index.get() >= device.info().irqs || start.checked_add(count).is_none() {
        return Err(Errno::INVAL);
    }
    let action = set.flags.get() & (IRQ_MASK | IRQ_UNMASK | IRQ_TRIGGER);
    let data = set.flags.get() & !action;
    if action.count_ones() != 1 || !fds.is_empty() && data != IRQ_DATA_EVENTFD {
        return Err(Errno::INVAL);
    }
    let count_bytes = usize::try_from(count).unwrap_or(usize::MAX);
    let data = match data {
        IRQ_DATA_NONE => IrqData::None,
        IRQ_DATA_BOOL => {
            let bytes = rest.get(..count_bytes).ok_or(Errno::INVAL)?;
            IrqData::Bool(bytes.iter().map(|&byte| byte != 0).collect())
        }
        IRQ_DATA_EVENTFD if fds.is_empty() || fds.len() == count_bytes => IrqData::Eventfd(fds),
        _ => return Err(Errno::INVAL),
    };
    device.set_irqs(SetIrqs { index: set.index.get(), start, count, action, data })?;
    Ok(Reply::default())
}

/// An access of at most as many bytes as may be moved at once, to a region that there may be.
fn access(device: &mut dyn Device, bytes: &[u8], most: usize) -> Answer<(RegionAccess, usize)> {
    let (access, _): (RegionAccess, _) = body(bytes)?;
    let count = usize::try_from(access.count.get()).unwrap_or(usize::MAX);
    let (offset, region) = (access.offset.get(), access.region.get());
    let wraps = offset.checked_add(count as u64).is_none();
    if count > most || wraps || region >= device.info().regions {
        return Err(Errno::INVAL);
    }
    Ok((access, count))
}

fn region_read(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (access, count) = access(device, bytes, MAX_DATA)?;
    let mut data = vec![0; count];
    device.read(access.region.get(), access.offset.get(), &mut data)?;
    Ok(Reply::with(access.as_bytes(), data))
}

fn region_write(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (access, count) = access(device, bytes, MAX_DATA)?;
    let data = &bytes[size_of::<RegionAccess>()..];
    if data.len() != count {
        return Err(Errno::INVAL);
    }
    device.write(access.region.get(), access.offset.get(), data)?;
    Ok(Reply::bytes(access.as_bytes()))
}

fn region_write_multi(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (count, rest): (U64, _) = body(bytes)?;
    let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
    if count > MAX_WRITES || rest.len() != count * size_of::<MultiWrite>() {
        return Err(Errno::INVAL);
    }
    let mut done = 0;
    for entry in rest.chunks(size_of::<MultiWrite>()) {
        let (access, length) = access(device, entry, 8)?;
        let data = &entry[size_of::<RegionAccess>()..][..length];
        match device.write(access.region.get(), access.offset.get(), data) {
            Ok(()) => done += 1,
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(Reply::bytes(U64::new(done).as_bytes()))
}

fn feature(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (mut head, data): (FeatureBody, _) = body(bytes)?;
    let flags = head.flags.get();
    let action = flags & (FEATURE_GET | FEATURE_SET | FEATURE_PROBE);
    let both = action & (FEATURE_GET | FEATURE_SET) == FEATURE_GET | FEATURE_SET;
    if flags & !(FEATURE_MASK | action) != 0
        || action == 0
        || both && action & FEATURE_PROBE == 0
        || action == FEATURE_PROBE
    {
        return Err(Errno::INVAL);
    }
    let got = device.feature(flags & FEATURE_MASK, action, data)?;
    if action != FEATURE_GET {
        return Ok(Reply::with(head.as_bytes(), data.to_vec()));
    }
    let need = size_of::<FeatureBody>() + got.len();
    if (head.argsz.get() as usize) < need || got.len() > MAX_DATA {
        return Err(Errno::INVAL);
    }
    head.argsz = length(need);
    Ok(Reply::with(head.as_bytes(), got))
}

fn migration_read(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (asked, _): (MigrationData, _) = body(bytes)?;
    let most = asked.size.get() as usize;
    let head = size_of::<MigrationData>();
    if most > MAX_DATA || (asked.argsz.get() as usize) < head + most {
        return Err(Errno::INVAL);
    }
    let mut data = device.migration_read(most)?;
    data.truncate(most);
    let reply = MigrationData { argsz: length(head + data.len()), size: length(data.len()) };
    Ok(Reply::with(reply.as_bytes(), data))
}

fn migration_write(device: &mut dyn Device, bytes: &[u8]) -> Answer<Reply> {
    let (head, data): (MigrationData, _) = body(bytes)?;
    if data.len() != head.size.get() as usize || data.len() > MAX_DATA {
        return Err(Errno::INVAL);
    }
    device.migration_write(data)?;
    Ok(Reply::bytes(head.as_bytes()))
}
