//! The system under test: a machine with two opens of `/dev/iommu`, a container, and devices behind
//! two IOMMUs.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, OnceLock, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use super::memories::Memories;
use super::model::{
    CONTEXTS, DEVICE_PASIDS, DEVICES, GROUP_OF, GROUPS, IOMMU_OF, IOMMU_PASIDS, LIMIT, PAGE, UID,
    pid,
};
use super::step::Space;
use crate::container::Container;
use crate::tests::rig::Buffer;
use crate::{
    AccessHandle, AccessUser, Account, AddressSpace, Bound, Client, ClientFile, Context, Endpoint,
    EndpointConfig, Extents, Group, Iommu, IommuKind, Kind, Machine, Memory, OnExec,
};

/// Address of the first byte of a client's memory, and of the file's.
pub(super) fn base_of(space: Space) -> u64 {
    match space {
        Space::User(_) => BASE,
        Space::File => 0,
    }
}

pub(super) const BASE: u64 = 0x10_0000_0000;
/// Where arguments go, behind what is mapped and a hole.
pub(super) const ARG: u64 = BASE + 0x10_0000;
/// Where what arguments point to goes.
pub(super) const DATA: u64 = ARG + PAGE;
/// The descriptor of the file.
pub(super) const FILE: i32 = 7;

/// The descriptor of the dma-buf, whose bytes are the first client's memory.
pub(super) const BUFFER: i32 = 8;

/// Byte `index` of what is written at `iova`.
pub(super) fn written(iova: u64, index: usize) -> u8 {
    (iova / 7 + index as u64 * 3 + 1).to_le_bytes()[0]
}

/// A file by offset.
#[derive(Debug)]
pub(super) struct FileSpace(pub(super) Memory);

impl AddressSpace for FileSpace {
    fn key(&self) -> u128 {
        self.0.key()
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        self.0.pin(address, length, need)
    }

    fn kind(&self) -> Kind {
        Kind::File
    }
}

/// A client's mappable memory, and a page or two for arguments.
#[derive(Debug)]
pub(super) struct Actor {
    pub(super) memory: Memory,
    pub(super) argument: Memory,
    file: Arc<FileSpace>,
    buffer: RefCell<Arc<Buffer>>,
    pub(super) pid: Cell<u32>,
    pub(super) ipc_lock: Cell<bool>,
    pub(super) made: RefCell<Vec<Arc<dyn ClientFile>>>,
}

impl Actor {
    fn part(&self, address: u64) -> &Memory {
        if address >= ARG { &self.argument } else { &self.memory }
    }
}

impl Client for Actor {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.part(address).read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.part(address).write(address, buf)
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        Arc::new(self.memory.clone())
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
        match fd {
            FILE => return Ok(Arc::clone(&self.file) as _),
            BUFFER => return Ok(Arc::clone(&self.buffer.borrow()) as _),
            _ => {}
        }
        refuse!(EBADF, "no such file", u64::from(fd.unsigned_abs()))
    }

    fn account(&self) -> Account {
        Account {
            pid: self.pid.get(),
            uid: UID,
            memlock_pages: Some(LIMIT),
            ipc_lock: self.ipc_lock.get(),
            sys_resource: true,
            sys_rawio: false,
        }
    }

    fn install(&self, file: Arc<dyn ClientFile>, _on_exec: OnExec) -> Result<i32> {
        self.made.borrow_mut().push(file);
        Ok(20)
    }
}

/// Unpins whatever touches what is to be unmapped.
#[derive(Debug, Default)]
pub(super) struct Pinner {
    pub(super) access: OnceLock<Weak<AccessHandle>>,
    /// Each pin, as often as it was made.
    pub(super) pins: Mutex<Vec<(u64, u64)>>,
}

impl AccessUser for Pinner {
    fn unmap(&self, range: IovaRange) {
        let gone: Vec<(u64, u64)> = {
            let touches = |pin: &mut (u64, u64)| {
                let pin = IovaRange::new(Iova(pin.0), pin.1).unwrap();
                pin.intersect(range).is_some()
            };
            self.pins.lock().extract_if(.., touches).collect()
        };
        let access = self.access.get().and_then(Weak::upgrade);
        for (iova, length) in gone {
            access.as_ref().unwrap().unpin(Iova(iova), length).unwrap();
        }
    }
}

#[derive(Debug)]
pub(super) struct OfAccess {
    pub(super) handle: Arc<AccessHandle>,
    pub(super) pinner: Arc<Pinner>,
}

#[derive(Debug)]
pub(super) struct System {
    pub(super) machine: Arc<Machine>,
    pub(super) memories: Memories,
    pub(super) actors: [Actor; CONTEXTS],
    pub(super) groups: Vec<Arc<Group>>,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) contexts: [Arc<Context>; CONTEXTS],
    pub(super) container: Arc<Container>,
    pub(super) bound: [Option<Bound>; DEVICES],
    pub(super) accesses: Vec<Option<OfAccess>>,
    pub(super) files: Vec<Option<Arc<dyn ClientFile>>>,
}

impl System {
    pub(super) fn new(kinds: [IommuKind; 2]) -> Self {
        Self::with(kinds, Memories::take())
    }

    /// With nothing in its memory.
    pub(super) fn empty(kinds: [IommuKind; 2]) -> Self {
        Self::with(kinds, Memories::empty())
    }

    fn with(kinds: [IommuKind; 2], memories: Memories) -> Self {
        let machine = Machine::new();
        let iommus = [0, 1].map(|index| {
            Arc::new(Iommu { pasid_bits: IOMMU_PASIDS[index], ..Iommu::new(kinds[index]) })
        });
        let groups: Vec<_> = (0..GROUPS)
            .map(|index| {
                let number = u32::try_from(index).unwrap();
                Group::new(&machine, &iommus[IOMMU_OF[index]], number)
            })
            .collect();
        let endpoints = (0..DEVICES).map(|device| endpoint(&groups[GROUP_OF[device]], device));
        let endpoints = endpoints.collect();
        let file = Arc::new(FileSpace(memories.file.clone()));
        let buffer = Buffer::new(&memories.users[0]);
        let actors = std::array::from_fn(|index| Actor {
            memory: memories.users[index].clone(),
            argument: memories.arguments[index].clone(),
            file: Arc::clone(&file),
            buffer: RefCell::new(Arc::clone(&buffer)),
            pid: Cell::new(pid(index)),
            ipc_lock: Cell::new(false),
            made: RefCell::default(),
        });
        let contexts = std::array::from_fn(|_| Context::new(&machine));
        let container = Container::new(&machine);
        Self {
            machine,
            memories,
            actors,
            groups,
            endpoints,
            contexts,
            container,
            bound: [const { None }; DEVICES],
            accesses: Vec::new(),
            files: Vec::new(),
        }
    }
}

impl System {
    pub(super) fn revoke(&self, renew: bool) {
        self.actors[0].buffer.borrow().revoke();
        if renew {
            let renewed = Buffer::new(&self.memories.users[0]);
            for actor in &self.actors {
                *actor.buffer.borrow_mut() = Arc::clone(&renewed);
            }
        }
    }
}

fn endpoint(group: &Arc<Group>, device: usize) -> Arc<Endpoint> {
    Endpoint::new(
        group,
        EndpointConfig {
            name: format!("device {device}").into(),
            requester_id: u16::try_from(device).unwrap(),
            reserved: group.iommu().reserved(),
            pasid_bits: DEVICE_PASIDS[device],
            pri: device == super::dma::ASKER,
            ..EndpointConfig::default()
        },
    )
}
