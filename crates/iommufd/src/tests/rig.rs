//! A client and a machine for tests.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommupt::Prot;
use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::{Condvar, Mutex};
use ioasis_uapi::Result;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    Account, AddressSpace, Backing, Client, ClientFile, Context, Endpoint, EndpointConfig, Extent,
    Extents, Group, Importer, Iommu, IommuKind, Kind, Linux, Machine, MappableMemory, Memory,
    OnExec, PAGE_SIZE, Piece,
};

/// First address of the client's memory.
pub(crate) const BASE: u64 = 0x10_0000_0000;
/// Bytes of the client's memory.
pub(crate) const SIZE: usize = 4 << 20;
/// Where [`TestClient::call`] puts the struct: the last pages are for arguments.
pub(crate) const ARG: u64 = BASE + SIZE as u64 - 0x8000;

/// The descriptor of a file that is the client's memory.
pub(crate) const FILE: i32 = 7;

/// A client whose memory is local.
#[derive(Debug)]
pub(crate) struct TestClient {
    pub(crate) memory: Memory,
    pub(crate) account: Account,
    /// Nothing can be written back.
    pub(crate) read_only: bool,
    /// A call said that it takes long.
    pub(crate) took_long: Cell<bool>,
    /// Files that calls made.
    pub(crate) files: RefCell<Vec<Arc<dyn ClientFile>>>,
    /// Memory that calls made to be mapped.
    pub(crate) regions: RefCell<Vec<Arc<Region>>>,
}

/// Memory that a client maps.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Mapping,
    /// Whether it does.
    pub(crate) mapped: AtomicBool,
}

impl MappableMemory for Region {
    fn offset(&self) -> u64 {
        1 << 40
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write(at, bytes)
    }

    fn load(&self, at: u64) -> Result<u32> {
        self.memory.load_u32(at)
    }

    fn store(&self, at: u64, value: u32) -> Result<()> {
        self.memory.store_u32(at, value)
    }

    fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::Acquire)
    }
}

pub(crate) const ACCOUNT: Account = Account {
    pid: 100,
    uid: 1000,
    memlock_pages: Some(1 << 20),
    ipc_lock: false,
    sys_resource: false,
    sys_rawio: false,
};

impl TestClient {
    pub(crate) fn new() -> Self {
        Self {
            memory: Memory::new(BASE, SIZE).unwrap(),
            account: ACCOUNT,
            read_only: false,
            took_long: Cell::new(false),
            files: RefCell::default(),
            regions: RefCell::default(),
        }
    }

    /// Puts `cmd` into memory, calls, and reads it back.
    pub(crate) fn call<T>(&self, context: &Arc<Context>, ioctl: u32, cmd: &mut T) -> Result<i64>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        self.memory.write(ARG, cmd.as_bytes()).unwrap();
        let answer = context.ioctl(self, ioctl, ARG);
        self.memory.read(ARG, cmd.as_mut_bytes()).unwrap();
        answer
    }
}

impl Client for TestClient {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.memory.read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        if self.read_only {
            return refuse!(EFAULT, "the client's memory is read-only", address);
        }
        self.memory.write(address, buf)
    }

    fn takes_long(&self) -> Result<()> {
        self.took_long.set(true);
        Ok(())
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        Arc::new(self.memory.clone())
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
        if fd == FILE {
            return Ok(Arc::new(FileMemory(self.memory.clone())));
        }
        refuse!(EBADF, "no file is open", u64::from(fd.unsigned_abs()))
    }

    fn account(&self) -> Account {
        self.account
    }

    fn install(&self, file: Arc<dyn ClientFile>, _on_exec: OnExec) -> Result<i32> {
        let mut files = self.files.borrow_mut();
        files.push(file);
        Ok(99 + i32::try_from(files.len()).unwrap())
    }

    fn mappable(&self, length: u64) -> Result<Arc<dyn MappableMemory>> {
        let memory = Mapping::anonymous(usize::try_from(length).unwrap())?;
        let region = Arc::new(Region { memory, mapped: AtomicBool::new(false) });
        self.regions.borrow_mut().push(Arc::clone(&region));
        Ok(region)
    }

    fn installed(&self, fd: i32) -> Result<Arc<dyn ClientFile>> {
        let files = self.files.borrow();
        let file = usize::try_from(fd).ok().and_then(|fd| files.get(fd.checked_sub(100)?));
        match file {
            Some(file) => Ok(Arc::clone(file)),
            None => refuse!(EBADF, "no such file", u64::from(fd.unsigned_abs())),
        }
    }
}

/// The client's memory as a file, whose offsets are its addresses.
#[derive(Debug)]
struct FileMemory(Memory);

impl AddressSpace for FileMemory {
    fn key(&self) -> u128 {
        AddressSpace::key(&self.0)
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        self.0.pin(address, length, need)
    }

    fn kind(&self) -> Kind {
        Kind::File
    }
}

impl TestClient {
    /// Takes the file that was made last.
    pub(crate) fn take_file(&self) -> Arc<dyn ClientFile> {
        self.files.borrow_mut().pop().expect("a file was made")
    }
}

/// Sends a word whenever a queue becomes readable.
#[derive(Debug)]
pub(crate) struct Bell(pub(crate) std::sync::mpsc::Sender<()>);

impl crate::QueueWatcher for Bell {
    fn readable(&self) {
        self.0.send(()).unwrap();
    }
}

/// A machine with one VT-d IOMMU and devices in groups of their own.
#[derive(Debug)]
pub(crate) struct TestMachine {
    pub(crate) machine: Arc<Machine>,
    pub(crate) iommu: Arc<Iommu>,
    groups: Cell<u32>,
}

impl TestMachine {
    pub(crate) fn new() -> Self {
        Self::with(Iommu::new(IommuKind::Vtd))
    }

    pub(crate) fn with(iommu: Iommu) -> Self {
        Self::of(Linux::default(), iommu)
    }

    pub(crate) fn of(linux: Linux, iommu: Iommu) -> Self {
        Self { machine: Machine::of(linux), iommu: Arc::new(iommu), groups: Cell::new(0) }
    }

    pub(crate) fn group(&self) -> Arc<Group> {
        self.groups.set(self.groups.get() + 1);
        Group::new(&self.machine, &self.iommu, self.groups.get())
    }

    pub(crate) fn endpoint(&self) -> Arc<Endpoint> {
        self.endpoint_in(&self.group())
    }

    pub(crate) fn endpoint_in(&self, group: &Arc<Group>) -> Arc<Endpoint> {
        Endpoint::new(
            group,
            EndpointConfig {
                name: "0000:01:00.0".into(),
                requester_id: 0x100,
                reserved: self.iommu.reserved(),
                pasid_bits: 20,
                pri: true,
                ..EndpointConfig::default()
            },
        )
    }

    /// Nothing is held, pinned or charged any more.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.machine.ledger.processes(), []);
        assert_eq!(self.machine.phys.windows(), 0);
    }
}

/// Read and write.
pub(crate) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// A dma-buf that can be revoked.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Memory,
    revoked: AtomicBool,
    importers: Mutex<Vec<Weak<dyn Importer>>>,
}

impl Buffer {
    /// The bytes of `memory`.
    pub(crate) fn new(memory: &Memory) -> Arc<Self> {
        Arc::new(Self {
            memory: memory.clone(),
            revoked: AtomicBool::new(false),
            importers: Mutex::default(),
        })
    }

    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
        let importers = std::mem::take(&mut *self.importers.lock());
        let importers = importers.iter().filter_map(Weak::upgrade);
        importers.for_each(|importer| importer.invalidate(self.key()));
    }
}

impl AddressSpace for Buffer {
    fn key(&self) -> u128 {
        self.memory.key()
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        self.memory.pin(BASE + address, length, need)
    }

    fn kind(&self) -> Kind {
        Kind::DmaBuf
    }

    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    fn import(&self, importer: Weak<dyn Importer>) {
        self.importers.lock().push(importer);
    }
}

/// Memory whose first page is not there while it is held: whoever copies from or to it waits until
/// it is given.
#[derive(Clone, Debug)]
pub(crate) struct Slow(Arc<SlowBacking>);

#[derive(Debug)]
struct SlowBacking {
    memory: Memory,
    may_wait: bool,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    held: bool,
    waiting: u32,
}

impl Slow {
    /// `length` bytes; `may_wait` is what the memory says of itself.
    pub(crate) fn new(length: usize, may_wait: bool) -> Self {
        Self(Arc::new(SlowBacking {
            memory: Memory::new(0, length).unwrap(),
            may_wait,
            gate: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// The bytes, for whoever does not wait.
    pub(crate) fn memory(&self) -> &Memory {
        &self.0.memory
    }

    pub(crate) fn hold(&self) {
        self.0.gate.lock().held = true;
    }

    pub(crate) fn give(&self) {
        self.0.gate.lock().held = false;
        self.0.changed.notify_all();
    }

    pub(crate) fn until_somebody_waits(&self) {
        let gate = self.0.gate.lock();
        drop(self.0.changed.wait_while(gate, |gate| gate.waiting == 0));
    }
}

impl SlowBacking {
    fn pass(&self, pieces: &[Piece]) {
        let mut gate = self.gate.lock();
        if pieces.iter().any(|piece| piece.offset < PAGE_SIZE) {
            gate.waiting += 1;
            self.changed.notify_all();
            gate = self.changed.wait_while(gate, |gate| gate.held);
            gate.waiting -= 1;
        }
    }
}

impl Backing for SlowBacking {
    fn key(&self) -> u128 {
        AddressSpace::key(&self.memory)
    }

    fn may_wait(&self) -> bool {
        self.may_wait
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        self.pass(pieces);
        let mut rest = buf;
        for piece in pieces {
            let (now, later) = rest.split_at_mut(piece.length);
            self.memory.read(piece.offset, now)?;
            rest = later;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        self.pass(pieces);
        let mut rest = buf;
        for piece in pieces {
            let (now, later) = rest.split_at(piece.length);
            self.memory.write(piece.offset, now)?;
            rest = later;
        }
        Ok(())
    }
}

impl AddressSpace for Slow {
    fn key(&self) -> u128 {
        AddressSpace::key(&self.0.memory)
    }

    fn pin(&self, address: u64, length: u64, _need: Prot) -> Result<Extents> {
        let backing: Arc<dyn Backing> = Arc::clone(&self.0) as _;
        Ok(Extents::from_buf([Extent { backing, offset: address, length }]))
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}
