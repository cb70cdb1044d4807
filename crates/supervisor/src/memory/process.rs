//! A client's address space.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use ioasis_iommufd::{AddressSpace, Backing, Extent, Extents, Kind, Piece};
use ioasis_iommupt::Prot;
use ioasis_sys::mapping::Access;
use ioasis_sys::process::{Mm, Process, Vma};
use ioasis_uapi::{Errno, Error, Result};

use super::{FileId, Memory, access, locate};

/// Microseconds a process is believed to have the memory it had. `process_vm_readv` takes a pid, and a pid passes to another
/// process after some 32 000 others were handed out: that takes far longer.
const BELIEVED_US: u64 = 1000;

/// The memory of one process, by address: what is private, and what is shared but cannot be opened.
#[derive(Debug)]
pub(super) struct PrivateMemory {
    key: u128,
    process: Arc<Process>,
    mm: Arc<Mm>,
    made: Instant,
    /// When `mm` was last seen alive, in microseconds after `made`.
    seen: AtomicU64,
    gone: AtomicBool,
}

impl PrivateMemory {
    pub(super) fn new(key: u128, process: &Arc<Process>) -> Result<Self> {
        let (mm, made) = (process.mm()?, Instant::now());
        let process = Arc::clone(process);
        Ok(Self { key, process, mm, made, seen: AtomicU64::new(0), gone: AtomicBool::new(false) })
    }

    /// The memory of a process that did not ask for anything itself.
    pub(super) fn of_another(process: &Arc<Process>) -> Result<Self> {
        // Nothing is ever found by this key, which no device's page has.
        Self::new(u128::MAX ^ u128::from(process.pid()), process)
    }

    /// Whether the process has `length` bytes of the file `id`, from `offset`, at `address`, to be shared: asked of the kernel.
    pub(super) fn shows(&self, id: FileId, offset: u64, address: u64, length: u64) -> bool {
        let last = address + (length - 1);
        let Ok(vmas) = self.mm.vmas(address, last) else { return false };
        let mut next = address;
        for vma in &vmas {
            let same = vma.shared && (vma.device, vma.inode) == (id.device, id.inode);
            if !same || vma.start > next {
                return false;
            }
            if vma.offset.wrapping_add(next - vma.start) != offset + (next - address) {
                return false;
            }
            if vma.last >= last {
                return true;
            }
            next = vma.last + 1;
        }
        false
    }

    /// Whether the process still has this memory: asked of the kernel.
    pub(super) fn is_current(&self) -> bool {
        let live = !self.gone.load(Ordering::Relaxed) && self.mm.is_live();
        if !live {
            self.gone.store(true, Ordering::Relaxed);
        }
        live
    }

    /// The same, asked of the kernel once in [`BELIEVED_US`].
    fn check(&self, address: u64) -> Result<()> {
        let now = u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX);
        let fresh = now.saturating_sub(self.seen.load(Ordering::Relaxed)) < BELIEVED_US;
        if fresh && !self.gone.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.seen.store(now, Ordering::Relaxed);
        if self.is_current() {
            return Ok(());
        }
        Err(Error::at(Errno::EFAULT, "the process has ended or executed another program", address))
    }
}

impl Backing for PrivateMemory {
    fn key(&self) -> u128 {
        self.key
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        let Some(first) = pieces.first() else { return Ok(()) };
        self.check(first.offset)?;
        match pieces {
            [piece] => self.process.read(piece.offset, buf),
            _ => self.process.read_vectored(&remote(pieces), buf),
        }
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        let Some(first) = pieces.first() else { return Ok(()) };
        self.check(first.offset)?;
        match pieces {
            [piece] => self.process.write(piece.offset, buf),
            _ => self.process.write_vectored(&remote(pieces), buf),
        }
    }
}

fn remote(pieces: &[Piece]) -> Vec<(u64, usize)> {
    pieces.iter().map(|piece| (piece.offset, piece.length)).collect()
}

/// The address space of a process, as it is until the process ends or executes another program.
#[derive(Debug)]
pub struct ProcessMemory {
    memory: Arc<Memory>,
    private: Arc<PrivateMemory>,
}

impl ProcessMemory {
    pub(super) const fn new(memory: Arc<Memory>, private: Arc<PrivateMemory>) -> Self {
        Self { memory, private }
    }

    /// The part `first..=last` of `vma`.
    fn extent(&self, vma: &Vma, first: u64, last: u64, need: Prot) -> Result<Extent> {
        let length = last - first + 1;
        if vma.shared
            && let Some(extent) = self.shared(vma, first, length, need)?
        {
            return Ok(extent);
        }
        // Device memory and the part of a mapping past the end of its file are mapped but not there. Plain private
        // memory always is.
        let unopened =
            vma.shared && self.memory.kernel_mounts.in_memory(&self.private.process, vma.device);
        if vma.inode != 0 || !vma.prot.write {
            self.private.process.read(first, &mut [0]).map_err(|_| not_there(first))?;
            self.private.process.read(last, &mut [0]).map_err(|_| not_there(last))?;
        }
        if unopened {
            let backing = self.memory.unopened(FileId { device: vma.device, inode: vma.inode });
            backing.add(&self.private, vma);
            return Ok(Extent { backing, offset: vma.offset + (first - vma.start), length });
        }
        Ok(Extent { backing: Arc::clone(&self.private) as Arc<dyn Backing>, offset: first, length })
    }

    /// The extent of a device file of ours: a BAR, which is VM_PFNMAP on Linux. pin_user_pages refuses it (mm/gup.c,
    /// check_vma_flags); the type1 container takes it all the same (vfio_iommu_type1.c, follow_fault_pfn).
    fn device(&self, id: FileId, offset: u64, length: u64, need: Prot) -> Result<Extent> {
        let known = self.memory.devices.lock().get(&id).and_then(Weak::upgrade);
        match known {
            Some(backing) if need.contains(Prot::MMIO) => Ok(Extent { backing, offset, length }),
            _ => Err(Error::at(Errno::EFAULT, "device memory cannot be pinned", offset)),
        }
    }

    /// The extent of the file behind a shared mapping; `None` when we may not open it.
    fn shared(&self, vma: &Vma, first: u64, length: u64, need: Prot) -> Result<Option<Extent>> {
        let id = FileId { device: vma.device, inode: vma.inode };
        let offset = vma.offset + (first - vma.start);
        if self.memory.own_device == Some(vma.device) {
            return self.device(id, offset, length, need).map(Some);
        }
        let process = &self.private.process;
        let access = access(need);
        // Where the client may write, so may we, now: a page read today may be mapped for writing tomorrow.
        let wanted = if vma.prot.write { Access::ReadWrite } else { access };
        let open = || {
            let in_memory = self.memory.kernel_mounts.in_memory(process, vma.device);
            if !in_memory && access == Access::ReadWrite {
                // mm/gup.c, writable_file_mapping_allowed: such pages would be written behind the file system's back.
                let why = "a file that is written back cannot be pinned for writing";
                return Err(Error::at(Errno::EFAULT, why, first));
            }
            Ok(if in_memory { locate::open(process, vma, wanted) } else { None })
        };
        let Some(file) = self.memory.mapped(id, wanted, open)? else { return Ok(None) };
        let size = file.size()?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Error::at(Errno::EFAULT, "the file ends before the mapping does", first));
        }
        match file.map(offset, length, size, access) {
            Ok(()) => Ok(Some(Extent { backing: file, offset, length })),
            // Sealed since the client mapped it (F_SEAL_FUTURE_WRITE): the client's own mapping still permits it.
            Err(error) if error.errno == Errno::EPERM => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AddressSpace for ProcessMemory {
    fn kind(&self) -> Kind {
        Kind::User
    }

    fn key(&self) -> u128 {
        self.private.key
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        assert!(length > 0, "nobody pins nothing");
        let Some(last) = address.checked_add(length - 1) else {
            return Err(Error::at(Errno::EFAULT, "the range wraps", address));
        };
        let vmas = self.private.mm.vmas(address, last);
        let vmas = vmas.map_err(|error| Error::at(Errno::EFAULT, error.why, address))?;
        let mut extents = Extents::new();
        let mut at = address;
        for vma in &vmas {
            if vma.start > at {
                break;
            }
            permit(vma, at, need)?;
            let end = vma.last.min(last);
            append(&mut extents, self.extent(vma, at, end, need)?);
            if end == last {
                return Ok(extents);
            }
            at = end + 1;
        }
        Err(Error::at(Errno::EFAULT, "nothing is mapped at the address", at))
    }
}

/// What Linux asks of a mapping (mm/gup.c, check_vma_flags): to write, that it is writable; else, that it is readable.
fn permit(vma: &Vma, address: u64, need: Prot) -> Result<()> {
    if need.contains(Prot::WRITE) && !vma.prot.write {
        return Err(Error::at(Errno::EFAULT, "mapped, but not writable", address));
    }
    if !need.contains(Prot::WRITE) && !vma.prot.read {
        return Err(Error::at(Errno::EFAULT, "mapped, but not readable", address));
    }
    Ok(())
}

/// Adds `extent`, joined with the last where it goes on.
fn append(extents: &mut Extents, extent: Extent) {
    match extents.last_mut() {
        Some(last)
            if last.backing.key() == extent.backing.key()
                && last.offset + last.length == extent.offset =>
        {
            last.length += extent.length;
        }
        _ => extents.push(extent),
    }
}

fn not_there(address: u64) -> Error {
    Error::at(Errno::EFAULT, "mapped, but nothing is there", address)
}
