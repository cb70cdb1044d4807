//! Translated DMA for device code of the rust-vmm crates.
//!
//! Device code that takes a [`vm_memory::GuestMemory`], a virtio queue for instance, is given an
//! [`IommuMemory`](vm_memory::IommuMemory) with a [`DeviceIommu`]: the addresses it uses are then
//! I/O virtual addresses, translated by the page tables of [`ioasis_iommufd`] in a hardware's own
//! format, with permissions, dirty tracking, page requests and a log of faults.
//!
//! ```
//! use std::sync::Arc;
//! use ioasis_iommufd::{
//!     Account, Context, Endpoint, EndpointConfig, Group, Iommu, IommuKind, Iova, Machine, MapRequest, Place, Prot,
//! };
//! use ioasis_vm_memory::{DeviceIommu, GuestRam};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, IommuMemory};
//!
//! // Guest memory as a VMM has it, and one device behind an IOMMU.
//! let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
//! let ram = GuestRam::new(memory.clone());
//! let machine = Machine::new();
//! let iommu = Arc::new(Iommu::new(IommuKind::Vtd));
//! let device = Endpoint::new(&Group::new(&machine, &iommu, 0), EndpointConfig {
//!     name: "0000:00:03.0".into(), requester_id: 0x18, reserved: iommu.reserved(),
//!     ..EndpointConfig::default()
//! });
//!
//! // The guest maps its page at 0x5000 at the address 0x1_0000 of its device.
//! let context = Context::new(&machine);
//! let ioas = context.alloc_ioas()?;
//! let account = Account {
//!     pid: 1, uid: 0, memlock_pages: None, ipc_lock: false, sys_resource: false, sys_rawio: false,
//! };
//! context.map(ioas, MapRequest {
//!     space: Arc::new(ram.clone()), address: 0x5000, length: 0x1000,
//!     place: Place::Fixed(Iova(0x1_0000)), prot: Prot::READ | Prot::WRITE, account,
//! })?;
//! let bound = context.bind(&device)?;
//! bound.attach(ioas)?;
//!
//! // Device code sees what the guest mapped, and nothing else.
//! let dma = IommuMemory::new(memory.clone(), DeviceIommu::new(&device, &ram), true, ());
//! dma.write_slice(b"hello", GuestAddress(0x1_0010)).unwrap();
//! let mut seen = [0; 5];
//! memory.read_slice(&mut seen, GuestAddress(0x5010)).unwrap();
//! assert_eq!(&seen, b"hello");
//! assert!(dma.read_slice(&mut seen, GuestAddress(0x5010)).is_err());
//! # Ok::<(), ioasis_uapi::Error>(())
//! ```
//!
//! An unmap waits for accesses under way as long as device code copies through
//! [`vm_memory::Bytes`], or keeps the iterator of `get_slices` while it copies. What it does with a
//! slice after that, no IOMMU sees.

use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

use ioasis_iommufd::{
    AddressSpace, Backing, DmaSection, Endpoint, Extent, Extents, Iova, Kind, Piece, Prot,
};
use ioasis_uapi::{Errno, Error, Result};
use vm_memory::iommu::{Error as IommuError, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, Iommu, Permissions};

/// Guest memory as an I/O address space maps it: an address is a guest physical one.
#[derive(Debug)]
pub struct GuestRam<M> {
    ram: Arc<Ram<M>>,
}

impl<M> Clone for GuestRam<M> {
    fn clone(&self) -> Self {
        Self { ram: Arc::clone(&self.ram) }
    }
}

#[derive(Debug)]
struct Ram<M> {
    memory: M,
}

/// What guest memory must be able to do.
pub trait Memory: GuestMemoryBackend + Debug + Send + Sync + 'static {}

impl<M: GuestMemoryBackend + Debug + Send + Sync + 'static> Memory for M {}

impl<M: Memory> GuestRam<M> {
    /// The memory of a guest.
    #[must_use]
    pub fn new(memory: M) -> Self {
        Self { ram: Arc::new(Ram { memory }) }
    }

    fn key(&self) -> u128 {
        Backing::key(&*self.ram)
    }
}

impl<M: Memory> AddressSpace for GuestRam<M> {
    fn key(&self) -> u128 {
        Self::key(self)
    }

    fn pin(&self, address: u64, length: u64, _need: Prot) -> Result<Extents> {
        let there = usize::try_from(length).is_ok_and(|length| {
            GuestMemoryBackend::check_range(&self.ram.memory, GuestAddress(address), length)
        });
        if !there {
            return Err(Error::at(Errno::EFAULT, "the guest has no memory there", address));
        }
        let backing: Arc<dyn Backing> = Arc::clone(&self.ram) as _;
        Ok([Extent { backing, offset: address, length }].into_iter().collect())
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}

const GONE: &str = "the guest has no memory there any more";

impl<M: Memory> Backing for Ram<M> {
    fn key(&self) -> u128 {
        // Two bits above any pointer: the upper one keeps it apart from keys of files, the lower
        // one from the library's own memory.
        std::ptr::from_ref(self).addr() as u128 | 3 << 126
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        let mut rest = buf;
        for piece in pieces {
            let (now, later) = rest.split_at_mut(piece.length);
            self.memory
                .read_slice(now, GuestAddress(piece.offset))
                .map_err(|_| Error::at(Errno::EFAULT, GONE, piece.offset))?;
            rest = later;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        let mut rest = buf;
        for piece in pieces {
            let (now, later) = rest.split_at(piece.length);
            self.memory
                .write_slice(now, GuestAddress(piece.offset))
                .map_err(|_| Error::at(Errno::EFAULT, GONE, piece.offset))?;
            rest = later;
        }
        Ok(())
    }
}

/// The IOMMU as one device sees it.
#[derive(Clone, Debug)]
pub struct DeviceIommu {
    endpoint: Arc<Endpoint>,
    pasid: u32,
    ram: u128,
}

impl DeviceIommu {
    /// Translates for `endpoint`, in whose address spaces `ram` is mapped.
    #[must_use]
    pub fn new<M: Memory>(endpoint: &Arc<Endpoint>, ram: &GuestRam<M>) -> Self {
        Self { endpoint: Arc::clone(endpoint), pasid: 0, ram: ram.key() }
    }

    /// The same, for transactions with a PASID; 0 is none.
    #[must_use]
    pub fn with_pasid(&self, pasid: u32) -> Self {
        Self { pasid, ..self.clone() }
    }
}

/// What was translated, and what keeps it true: an unmap waits until it is dropped.
#[derive(Debug)]
pub struct Translated<'a> {
    iotlb: Iotlb,
    _section: DmaSection<'a>,
}

impl Deref for Translated<'_> {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.iotlb
    }
}

/// How much of the range was translated before an address was not reached.
enum Filled {
    All,
    Unreached(ioasis_iommufd::Unreached),
    /// Something else than guest memory is mapped there.
    Foreign,
}

fn prot(access: Permissions) -> Prot {
    match access {
        Permissions::No => Prot::empty(),
        Permissions::Read => Prot::READ,
        Permissions::Write => Prot::WRITE,
        Permissions::ReadWrite => Prot::READ | Prot::WRITE,
    }
}

impl DeviceIommu {
    fn fill(
        &self,
        section: &DmaSection<'_>,
        iotlb: &mut Iotlb,
        (start, length): (u64, usize),
        access: Permissions,
    ) -> Result<Filled, IommuError> {
        let mut done = 0;
        while done < length {
            let at = start + done as u64;
            let left = length - done;
            let reached = match section.translate(Iova(at), left as u64, prot(access)) {
                Ok(reached) => reached,
                Err(unreached) => return Ok(Filled::Unreached(unreached)),
            };
            if reached.backing.key() != self.ram {
                return Ok(Filled::Foreign);
            }
            let piece = usize::try_from(reached.length).map_or(left, |length| length.min(left));
            let target = GuestAddress(reached.offset);
            iotlb.set_mapping(GuestAddress(at), target, piece, access)?;
            done += piece;
        }
        Ok(Filled::All)
    }
}

impl Iommu for DeviceIommu {
    type IotlbGuard<'a> = Translated<'a>;

    /// Walks the page table; where a page is missing that the device may ask for, waits for the
    /// answer and walks again.
    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Translated<'_>>, IommuError> {
        let failed = |reason: &str| IommuError::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: reason.to_owned(),
        };
        if iova.0.checked_add(length as u64).is_none() {
            return Err(failed("the range wraps"));
        }
        loop {
            let section = self.endpoint.section(self.pasid);
            let mut iotlb = Iotlb::new();
            match self.fill(&section, &mut iotlb, (iova.0, length), access)? {
                Filled::All => {
                    let translated = Translated { iotlb, _section: section };
                    return Iotlb::lookup(translated, iova, length, access)
                        .map_err(|_| failed("what was translated does not grant the access"));
                }
                Filled::Foreign => return Err(failed("what is mapped there is no guest memory")),
                Filled::Unreached(unreached) => {
                    drop(section);
                    let settled = self.endpoint.settle(unreached);
                    settled.map_err(|_| failed("nothing is mapped there with this access"))?;
                }
            }
        }
    }
}
