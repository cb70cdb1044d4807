//! The client, the machine and the function under test.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ioasis_iommufd as iommufd;
use ioasis_iommufd::type1::{Container, GroupKind};
use ioasis_pci::{
    BARS, Bar, BarKind, Bdf, Bus, Description, Function, Ids, Line, Model, MsixTable, Pages,
    Progress, Segment, Vectors, Windows,
};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::process::is_same_file;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result, vfio};
use ioasis_vfio::{
    Client, Device, DeviceFile, DeviceMemory, GroupFile, IommuFile, Machine, Placement,
    REGION_SHIFT, Reply, VfioFile, region_offset,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// First byte of the client's memory.
pub(crate) const BASE: u64 = 0x10_0000;
/// Bytes of the client's memory.
pub(crate) const LENGTH: usize = 0x10000;
/// From here on the client's memory is read-only.
pub(crate) const READ_ONLY: u64 = BASE + 0xf000;
/// Where no memory is.
pub(crate) const NOWHERE: u64 = 0x10;
/// Where calls put their argument unless they say otherwise.
pub(crate) const ARG: u64 = BASE + 0x100;

/// BAR 0: registers that trap, and the MSI-X table.
pub(crate) const RAISE: u64 = 0x1000;
pub(crate) const LINE: u64 = 0x1004;
/// Mapped: anything but 0 there takes the cause of the pin away.
pub(crate) const ACKNOWLEDGE: u64 = 0x2000;
pub(crate) const FETCH: u64 = 0x1008;
pub(crate) const SCRATCH: u64 = 0x1018;
pub(crate) const TABLE: u64 = 0x3000;
pub(crate) const PENDING: u64 = 0x3800;
/// BAR 2: shared pages, and a trapped one behind them that holds what was stored last.
pub(crate) const WATCHED: u64 = 0x3000;
pub(crate) const MSI: u32 = 8;
pub(crate) const MSIX: u32 = 16;

/// What the model saw: offset and width of each trapped access of BAR 0.
pub(crate) type Log = Arc<Mutex<Vec<(u64, usize)>>>;

#[derive(Debug, Default)]
struct Probe {
    log: Log,
    fetched: u64,
    scratch: u64,
}

fn bar(size: u64, kind: BarKind, mappable: Vec<Pages>) -> Option<Bar> {
    Some(Bar { size, kind, prefetchable: false, mappable })
}

impl Model for Probe {
    fn description(&self) -> Description {
        Description {
            ids: Ids {
                vendor: 0x1234,
                device: 0x5678,
                subsystem_vendor: 0x1af4,
                subsystem_device: 0x1100,
                class: 0xff_0000,
                revision: 1,
            },
            bars: [
                bar(
                    0x4000,
                    BarKind::Memory32,
                    vec![Pages::shared(0..0x1000), Pages::shared(0x2000..0x3000)],
                ),
                None,
                bar(
                    0x4000,
                    BarKind::Memory64,
                    vec![Pages::shared(0..WATCHED), Pages::trapped(WATCHED..0x4000)],
                ),
                None,
                bar(0x20, BarKind::Io, vec![]),
                None,
            ],
            vectors: Vectors { intx: true, msi: 8, msix: 16 },
            msix: Some(MsixTable {
                table_bar: 0,
                table_offset: 0x3000,
                pba_bar: 0,
                pba_offset: 0x3800,
            }),
            rom: b"\x55\xaa a ROM".to_vec(),
            ..Description::default()
        }
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        bus.pages(2).fill(0, 0x4000, 0)?;
        self.scratch = 0;
        Ok(())
    }

    fn poll(&mut self, _bus: &Bus<'_>) -> Result<Progress> {
        Ok(Progress::Idle)
    }

    fn update_line(&mut self, bus: &Bus<'_>) -> Result<()> {
        if bus.pages(0).load_u32(ACKNOWLEDGE)? != 0 {
            bus.set_line(Line::Deasserted);
        }
        Ok(())
    }

    fn load(&mut self, _bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.log.lock().push((offset, bytes.len()));
        let value = match (bar, offset) {
            (0, FETCH) => self.fetched,
            (0, SCRATCH) | (2, WATCHED) => self.scratch,
            _ => 0xa5a5_a5a5_a5a5_a5a5,
        };
        bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        Ok(())
    }

    fn store(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.log.lock().push((offset, bytes.len()));
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        let value = u64::from_le_bytes(value);
        match (bar, offset) {
            (0, RAISE) => bus.raise(u16::try_from(value).expect("a vector")),
            (0, LINE) => bus.set_line(if value == 0 { Line::Deasserted } else { Line::Asserted }),
            (0, SCRATCH) | (2, WATCHED) => self.scratch = value,
            (0, FETCH) => {
                let mut word = [0xee; 8];
                // The word stays as it is when the transfer faults.
                let _ = bus.read(&[Segment { iova: value, length: 8 }], &mut word);
                self.fetched = u64::from_le_bytes(word);
            }
            _ => {}
        }
        Ok(())
    }
}

/// What the client's descriptors refer to.
enum File {
    Iommu(IommuFile),
    Event(OwnedFd),
    Vfio(VfioFile),
    Made(Arc<dyn iommufd::ClientFile>),
    Other,
}

/// A client: memory, descriptors, capabilities.
pub(crate) struct Caller {
    memory: iommufd::Memory,
    files: Mutex<BTreeMap<i32, File>>,
    next: AtomicI32,
    pub(crate) rawio: AtomicBool,
    /// Files made for devices.
    pub(crate) made: AtomicU32,
    /// A page that is written late.
    pub(crate) written_late: Late,
    /// A page that is read late.
    pub(crate) read_late: Late,
}

/// A page of the client that a call waits for until it comes.
#[derive(Default)]
pub(crate) struct Late {
    /// Where it begins; 0: there is none.
    pub(crate) start: AtomicU64,
    pub(crate) is_wanted: AtomicBool,
    pub(crate) has_come: AtomicBool,
}

impl Late {
    fn touch(&self, address: u64) {
        let start = self.start.load(Ordering::SeqCst);
        if start == 0 || !(start..start + 0x1000).contains(&address) {
            return;
        }
        self.is_wanted.store(true, Ordering::SeqCst);
        let begin = Instant::now();
        while !self.has_come.load(Ordering::SeqCst) {
            assert!(begin.elapsed() < Duration::from_secs(60), "the test lets it come");
            std::thread::yield_now();
        }
    }

    /// Does `meanwhile` while `call` waits for the page at `start`, and lets it come then.
    pub(crate) fn during<T: Send>(
        &self,
        start: u64,
        call: impl FnOnce() -> T + Send,
        meanwhile: impl FnOnce(),
    ) -> T {
        self.is_wanted.store(false, Ordering::SeqCst);
        self.has_come.store(false, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let call = scope.spawn(call);
            let begin = Instant::now();
            while !self.is_wanted.load(Ordering::SeqCst) {
                assert!(begin.elapsed() < Duration::from_secs(60), "the page is wanted");
                std::thread::yield_now();
            }
            meanwhile();
            self.has_come.store(true, Ordering::SeqCst);
            call.join().expect("the call ends")
        })
    }
}

impl Caller {
    pub(crate) fn new() -> Self {
        Self {
            memory: iommufd::Memory::new(BASE, LENGTH).expect("memory"),
            files: Mutex::default(),
            next: AtomicI32::new(3),
            rawio: AtomicBool::new(false),
            made: AtomicU32::new(0),
            written_late: Late::default(),
            read_late: Late::default(),
        }
    }

    fn add(&self, file: File) -> i32 {
        let fd = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.lock().insert(fd, file);
        fd
    }

    /// The number the next descriptor gets.
    pub(crate) fn descriptors(&self) -> i32 {
        self.next.load(Ordering::Relaxed)
    }

    pub(crate) fn add_iommu(&self, file: IommuFile) -> i32 {
        self.add(File::Iommu(file))
    }

    pub(crate) fn add_group(&self, file: &Arc<GroupFile>) -> i32 {
        self.add_vfio(VfioFile::Group(Arc::clone(file)))
    }

    pub(crate) fn add_vfio(&self, file: VfioFile) -> i32 {
        self.add(File::Vfio(file))
    }

    pub(crate) fn add_other(&self) -> i32 {
        self.add(File::Other)
    }

    /// An eventfd, by number and as the client itself uses it.
    pub(crate) fn add_event(&self) -> (i32, EventFd) {
        let event = EventFd::create().expect("an eventfd");
        let copy = event.as_fd().try_clone_to_owned().expect("a duplicate");
        (self.add(File::Event(copy)), event)
    }

    /// The client closes a descriptor.
    pub(crate) fn close(&self, fd: i32) {
        self.files.lock().remove(&fd).expect("it was open");
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).expect("inside");
    }

    pub(crate) fn get<T: FromBytes>(&self, address: u64) -> T {
        let mut bytes = vec![0; size_of::<T>()];
        self.memory.read(address, &mut bytes).expect("inside");
        T::read_from_bytes(&bytes).expect("all of it")
    }

    /// Puts `arg` at [`ARG`].
    pub(crate) fn arg(&self, arg: &(impl IntoBytes + Immutable)) -> u64 {
        self.put(ARG, arg.as_bytes());
        ARG
    }

    /// Puts a string at [`ARG`].
    pub(crate) fn text(&self, text: &str) -> u64 {
        self.put(ARG, text.as_bytes());
        self.put(ARG + text.len() as u64, &[0]);
        ARG
    }
}

impl iommufd::Client for Caller {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.read_late.touch(address);
        self.memory.read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        if address.saturating_add(buf.len() as u64) > READ_ONLY {
            return Err(Error::at(Errno::EFAULT, "read-only memory", address));
        }
        self.written_late.touch(address);
        self.memory.write(address, buf)
    }

    fn memory(&self) -> Arc<dyn iommufd::AddressSpace> {
        Arc::new(self.memory.clone())
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn iommufd::AddressSpace>> {
        let memory = iommufd::Client::installed(self, fd)?.memory();
        memory.ok_or(Error::new(Errno::EINVAL, "no memory"))
    }

    fn install(&self, file: Arc<dyn iommufd::ClientFile>, _: iommufd::OnExec) -> Result<i32> {
        Ok(self.add(File::Made(file)))
    }

    fn installed(&self, fd: i32) -> Result<Arc<dyn iommufd::ClientFile>> {
        match self.files.lock().get(&fd) {
            None => Err(Error::new(Errno::EBADF, "not open")),
            Some(File::Made(file)) => Ok(Arc::clone(file)),
            Some(_) => Err(Error::new(Errno::EBADFD, "another kind")),
        }
    }

    fn account(&self) -> iommufd::Account {
        iommufd::Account {
            pid: 1,
            uid: 0,
            memlock_pages: None,
            ipc_lock: true,
            sys_resource: true,
            sys_rawio: self.rawio.load(Ordering::Relaxed),
        }
    }
}

impl Client for Caller {
    fn iommu_file(&self, fd: i32) -> Result<IommuFile> {
        match self.files.lock().get(&fd) {
            None => Err(Error::new(Errno::EBADF, "not open")),
            Some(File::Iommu(file)) => Ok(file.clone()),
            Some(_) => Err(Error::new(Errno::EBADFD, "another kind")),
        }
    }

    fn eventfd(&self, fd: i32) -> Result<EventFd> {
        match self.files.lock().get(&fd) {
            None => Err(Error::new(Errno::EBADF, "not open")),
            Some(File::Event(event)) => EventFd::from_fd(event.try_clone().expect("a duplicate")),
            Some(_) => Err(Error::new(Errno::EINVAL, "another kind")),
        }
    }

    fn has_open(&self, eventfd: &EventFd) -> bool {
        let is_it = |file: &File| match file {
            File::Event(event) => is_same_file(event.as_fd(), eventfd.as_fd()),
            _ => false,
        };
        self.files.lock().values().any(is_it)
    }

    fn vfio_file(&self, fd: i32) -> Result<VfioFile> {
        match self.files.lock().get(&fd) {
            None => Err(Error::new(Errno::EBADF, "not open")),
            Some(File::Vfio(file)) => Ok(file.clone()),
            Some(_) => Err(Error::new(Errno::EINVAL, "another kind")),
        }
    }

    fn device_memory(&self, device: &Device) -> Result<DeviceMemory> {
        let inode = self.made.fetch_add(1, Ordering::Relaxed).into();
        let file =
            rustix::fs::memfd_create("device", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&file, 10 << REGION_SHIFT).expect("a sparse file");
        let mut pages: [Option<Arc<Mapping>>; BARS] = Default::default();
        for (index, slot) in pages.iter_mut().enumerate() {
            if let Some(end) = device.function().bar(index).and_then(Bar::mappable_end) {
                let offset = (index as u64 + 1) << REGION_SHIFT;
                let length = usize::try_from(end).expect("a small BAR");
                let mapping = Mapping::file(file.as_fd(), offset, length, Access::ReadWrite);
                *slot = Some(Arc::new(mapping.expect("a mapping")));
            }
        }
        Ok(DeviceMemory { inode, pages, doorbells: None })
    }
}

/// A machine and its client.
pub(crate) struct Rig {
    pub(crate) caller: Caller,
    pub(crate) machine: Machine,
    pub(crate) hardware: Hardware,
    pub(crate) log: Log,
}

impl Rig {
    /// The group whose devices have no IOMMU.
    pub(crate) const NO_IOMMU: u32 = 9;
    /// The group whose devices have no DMA of their own.
    pub(crate) const EMULATED: u32 = 8;

    /// One device, 0000:01:00.0 in group 1.
    pub(crate) fn new() -> Self {
        Self::with(&[("0000:01:00.0", 1)])
    }

    /// Devices by address and group.
    pub(crate) fn with(places: &[(&str, u32)]) -> Self {
        Self::of(iommufd::Linux::default(), places)
    }

    /// The same by the rules of `linux`.
    pub(crate) fn of(linux: iommufd::Linux, places: &[(&str, u32)]) -> Self {
        let probe = |log: &Log| {
            Box::new(Probe { log: Arc::clone(log), ..Probe::default() }) as Box<dyn Model>
        };
        Self::build(linux, places, probe)
    }

    /// One testdev with this `migration=`.
    pub(crate) fn testdev(migration: &str) -> Self {
        let options = [("migration".to_owned(), migration.to_owned())];
        Self::build(iommufd::Linux::default(), &[("0000:01:00.0", 1)], |_| {
            ioasis_pci::create("testdev", &options).expect("a testdev")
        })
    }

    fn build(
        linux: iommufd::Linux,
        places: &[(&str, u32)],
        model: impl Fn(&Log) -> Box<dyn Model>,
    ) -> Self {
        let mut hardware = Hardware::new(linux);
        let mut windows = Windows::default();
        let log = Log::default();
        let placements = places.iter().map(|&(bdf, group)| {
            let address: Bdf = bdf.parse().expect("an address");
            let function = Function::new(address, model(&log), &mut windows);
            let kind = match group {
                Self::NO_IOMMU => GroupKind::NoIommu,
                Self::EMULATED => GroupKind::Emulated,
                _ => GroupKind::Iommu,
            };
            Placement { function, endpoint: hardware.endpoint(address, group), kind }
        });
        let placements = placements.collect();
        let machine = Machine::new(placements);
        Self { caller: Caller::new(), machine, hardware, log }
    }

    /// A testdev at 0000:01:00.0 in group 1 that can have `count` virtual functions, which are in
    /// the groups behind it, and are not there yet.
    pub(crate) fn with_virtual_functions(count: u16) -> Self {
        let mut hardware = Hardware::new(iommufd::Linux::default());
        let options = [("vfs".to_owned(), count.to_string())];
        let model = ioasis_pci::create("testdev", &options).expect("a model");
        let address = "0000:01:00.0".parse().expect("an address");
        let windows = &mut Windows::default();
        let (physical, virtuals) =
            Function::with_virtual_functions(address, model, windows).expect("room");
        let functions = std::iter::once(physical).chain(virtuals);
        let placements = (1..).zip(functions).map(|(group, function)| {
            let endpoint = hardware.endpoint(function.address(), group);
            Placement { function, endpoint, kind: GroupKind::Iommu }
        });
        let machine = Machine::new(placements.collect());
        Self { caller: Caller::new(), machine, hardware, log: Log::default() }
    }

    pub(crate) fn first(&self) -> &Arc<Device> {
        &self.machine.devices()[0]
    }

    pub(crate) fn group(&self, index: usize) -> Arc<GroupFile> {
        self.machine.groups()[index].open(&self.caller).expect("a group")
    }

    /// The group with a fresh container that has a driver.
    pub(crate) fn group_in_container(&self, index: usize) -> Arc<GroupFile> {
        let group = self.group(index);
        let container = self.hardware.container();
        let fd = self.caller.add_iommu(IommuFile::Container(Arc::clone(&container)));
        self.set_container(&group, fd).expect("a container");
        self.hardware.set_iommu(&container, &self.caller);
        group
    }

    pub(crate) fn set_container(&self, group: &GroupFile, fd: i32) -> Result<()> {
        let address = self.caller.arg(&fd);
        group.ioctl(&self.caller, vfio::GROUP_SET_CONTAINER, address).map(|_| ())
    }

    pub(crate) fn device_fd(&self, group: &GroupFile, name: &str) -> Result<Arc<DeviceFile>> {
        let address = self.caller.text(name);
        match group.ioctl(&self.caller, vfio::GROUP_GET_DEVICE_FD, address)? {
            Reply::Open(file) => Ok(file),
            Reply::Value(value) => panic!("a descriptor, not {value}"),
        }
    }

    /// The first device, opened through its group; the group file is to be kept.
    pub(crate) fn open(&self) -> (Arc<GroupFile>, Arc<DeviceFile>) {
        let group = self.group_in_container(0);
        let file = self.device_fd(&group, self.first().name()).expect("a device");
        (group, file)
    }

    /// Issues an ioctl whose argument is `arg`, and returns what it became.
    pub(crate) fn call<T>(&self, file: &DeviceFile, command: u32, arg: &T) -> Result<T>
    where
        T: FromBytes + IntoBytes + Immutable,
    {
        let address = self.caller.arg(arg);
        file.ioctl(&self.caller, command, address)?;
        Ok(self.caller.get(ARG))
    }

    /// Maps a stretch of the client's memory, readable and writable.
    pub(crate) fn map(&self, context: &iommufd::Context, ioas: u32, address: u64, iova: u64) {
        let space = iommufd::Client::memory(&self.caller);
        context.map(ioas, self.request(space, address, iova)).expect("mapped");
    }

    /// Maps a page of a file that a call made.
    pub(crate) fn map_file(
        &self,
        (context, ioas): (&iommufd::Context, u32),
        fd: i32,
        start: u64,
        iova: u64,
    ) -> Result<()> {
        let space = iommufd::Client::file_memory(&self.caller, fd)?;
        context.map(ioas, self.request(space, start, iova)).map(|_| ())
    }

    fn request(
        &self,
        space: Arc<dyn iommufd::AddressSpace>,
        address: u64,
        iova: u64,
    ) -> iommufd::MapRequest {
        iommufd::MapRequest {
            space,
            address,
            length: 0x1000,
            place: iommufd::Place::Fixed(iommufd::Iova(iova)),
            prot: iommufd::Prot::READ | iommufd::Prot::WRITE,
            account: iommufd::Client::account(&self.caller),
        }
    }

    /// Writes a 32-bit register of BAR 0.
    pub(crate) fn write32(&self, file: &DeviceFile, register: u64, value: u32) {
        let done = file.write(at(0, register), &value.to_le_bytes());
        assert_eq!(done.expect("a register"), 4);
    }
}

/// The file offset of a byte of region `index`.
pub(crate) fn at(index: u64, offset: u64) -> u64 {
    region_offset(u32::try_from(index).expect("a small number")) + offset
}

/// The errno of a call that is to fail.
pub(crate) fn errno<T>(result: Result<T>) -> Option<Errno> {
    result.err().map(|error| error.errno)
}

/// One IOMMU, and the groups behind it.
pub(crate) struct Hardware {
    pub(crate) machine: Arc<iommufd::Machine>,
    iommu: Arc<iommufd::Iommu>,
    none: Arc<iommufd::Iommu>,
    groups: BTreeMap<u32, Arc<iommufd::Group>>,
}

impl Hardware {
    fn new(linux: iommufd::Linux) -> Self {
        let iommu = Arc::new(iommufd::Iommu::new(iommufd::IommuKind::Vtd));
        let none = Arc::new(iommufd::Iommu::none());
        Self { machine: iommufd::Machine::of(linux), iommu, none, groups: BTreeMap::new() }
    }

    fn endpoint(&mut self, address: Bdf, group: u32) -> Arc<iommufd::Endpoint> {
        let iommu = if group == Rig::NO_IOMMU { &self.none } else { &self.iommu };
        let machine = &self.machine;
        let group =
            self.groups.entry(group).or_insert_with(|| iommufd::Group::new(machine, iommu, group));
        let config = iommufd::EndpointConfig {
            name: address.to_string().into(),
            requester_id: address.requester_id(),
            reserved: iommu.reserved(),
            pasid_bits: 20,
            ..iommufd::EndpointConfig::default()
        };
        iommufd::Endpoint::new(group, config)
    }

    pub(crate) fn container(&self) -> Arc<Container> {
        Container::new(&self.machine)
    }

    pub(crate) fn context(&self) -> Arc<iommufd::Context> {
        iommufd::Context::new(&self.machine)
    }

    /// SET_IOMMU(TYPE1v2).
    pub(crate) fn set_iommu(&self, container: &Container, caller: &Caller) {
        let done = container.ioctl(caller, vfio::SET_IOMMU, vfio::TYPE1v2_IOMMU.into());
        done.expect("an IOMMU");
    }
}
