//! A client's address space.

use std::sync::Arc;

use ioasis_iommufd::{AddressSpace, Backing, Extent, Extents, Kind, Piece};
use ioasis_iommupt::Prot;
use ioasis_sys::mapping::Access;
use ioasis_sys::process::{Mm, Process, Thread, Vma};
use ioasis_uapi::{Errno, Error, Result};

use super::{FileId, Memory, access, locate};

/// The memory of a process, by address: what is private, and what is shared but cannot be opened.
#[derive(Debug)]
pub(super) struct PrivateMemory {
    key: u128,
    mm: Arc<Mm>,
    /// Whom it was found by, where somebody asked for it: to find out whether another has the same.
    thread: Option<Arc<Thread>>,
}

impl PrivateMemory {
    pub(super) fn new(key: u128, thread: &Arc<Thread>) -> Result<Self> {
        Ok(Self { key, mm: thread.mm()?, thread: Some(Arc::clone(thread)) })
    }

    /// The memory of a process that did not ask for anything itself.
    pub(super) fn of_another(process: &Process) -> Result<Self> {
        // Nothing is ever found by this key, which no device's page has.
        Ok(Self { key: u128::MAX ^ u128::from(process.pid()), mm: process.mm()?, thread: None })
    }

    /// Whether it is known to be the memory `mm`.
    pub(super) fn is(&self, mm: &Arc<Mm>) -> bool {
        Arc::ptr_eq(&self.mm, mm)
    }

    /// Whether `thread` has this memory: asked of the kernel. After a failed exec of the thread that it was found by,
    /// nobody knows.
    pub(super) fn is_of(&self, thread: &Thread) -> bool {
        self.thread.as_ref().is_some_and(|other| {
            other.shares_memory_with(thread) && !other.process().has_executed()
        })
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

    /// Asks for the byte at `address`, and waits for it without keeping the program from anything.
    fn is_there(&self, address: u64) -> Result<()> {
        if let Some(thread) = &self.thread {
            thread.touch(address, 1);
        }
        self.mm.read(address, &mut [0])
    }

    /// The same where no file system is waited for.
    fn is_in_memory(&self, address: u64) -> Result<()> {
        self.mm.read(address, &mut [0]).or_else(|_| self.is_there(address))
    }

    /// Whether any process still has this memory: asked of the kernel.
    pub(super) fn is_current(&self) -> bool {
        self.mm.is_live()
    }
}

impl Backing for PrivateMemory {
    fn key(&self) -> u128 {
        self.key
    }

    // A call for each piece: preadv scatters the bytes of one place of the file, and `mem` has no other form.
    fn read(&self, pieces: &[Piece], mut buf: &mut [u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at_mut(piece.length);
            self.mm.read(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], mut buf: &[u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at(piece.length);
            self.mm.write(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }
}

/// The same memory, where a page may have to come from a file system that takes its time: such pages are made to come
/// before the memory itself is read or written.
#[derive(Debug)]
struct SlowMemory(Arc<PrivateMemory>);

/// Set in the key of memory behind which a slow file stands, beside the mark of private memory.
const SLOW_KEY: u128 = 1 << 124;

impl SlowMemory {
    fn wait_for(&self, pieces: &[Piece]) {
        if let Some(thread) = &self.0.thread {
            pieces.iter().for_each(|piece| thread.touch(piece.offset, piece.length));
        }
    }
}

impl Backing for SlowMemory {
    fn key(&self) -> u128 {
        SLOW_KEY | self.0.key
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        self.wait_for(pieces);
        self.0.read(pieces, buf)
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        self.wait_for(pieces);
        self.0.write(pieces, buf)
    }
}

/// The address space of a process, as it is until the process ends or executes another program.
#[derive(Debug)]
pub struct ProcessMemory {
    memory: Arc<Memory>,
    private: Arc<PrivateMemory>,
    /// Whose mount table and descriptors are looked through for a file.
    process: Arc<Process>,
}

impl ProcessMemory {
    pub(super) const fn new(
        memory: Arc<Memory>,
        private: Arc<PrivateMemory>,
        process: Arc<Process>,
    ) -> Self {
        Self { memory, private, process }
    }

    /// The part `first..=last` of `vma`.
    fn extent(&self, vma: &Vma, first: u64, last: u64, need: Prot) -> Result<Extent> {
        let length = last - first + 1;
        if vma.shared
            && let Some(extent) = self.shared(vma, first, length, need)?
        {
            return Ok(extent);
        }
        // Device memory, all of it, and the part of a mapping past the end of its file are mapped
        // but not there: nothing of it is where the last byte is not. Plain private memory always
        // is.
        let in_memory = vma.inode == 0 || self.memory.mounts.hold(&self.process, vma);
        if vma.inode != 0 || !vma.prot.write {
            let is_there = if in_memory {
                self.private.is_in_memory(last)
            } else {
                self.private.is_there(first).and_then(|()| self.private.is_there(last))
            };
            is_there.map_err(|error| not_there(error.at.unwrap_or(first)))?;
        }
        if vma.shared && in_memory {
            let backing = self.memory.unopened(FileId { device: vma.device, inode: vma.inode });
            backing.add(&self.private, vma);
            return Ok(Extent { backing, offset: vma.offset + (first - vma.start), length });
        }
        let private = Arc::clone(&self.private);
        let backing: Arc<dyn Backing> =
            if in_memory { private } else { Arc::new(SlowMemory(private)) };
        Ok(Extent { backing, offset: first, length })
    }

    /// The extent of a device file of ours: a BAR, which is VM_PFNMAP on Linux. pin_user_pages refuses it (mm/gup.c,
    /// check_vma_flags); the type1 container takes it all the same (vfio_iommu_type1.c, follow_fault_pfn).
    fn device(&self, id: FileId, offset: u64, length: u64, need: Prot) -> Result<Extent> {
        let known = self.memory.devices.lock().get(&id).and_then(|pages| pages.backing.upgrade());
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
        let process = &self.process;
        let access = access(need);
        // Where the client may write, so may we, now: a page read today may be mapped for writing tomorrow.
        let wanted = if vma.prot.write { Access::ReadWrite } else { access };
        let open = || {
            let in_memory = self.memory.mounts.hold(process, vma);
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
            if !(vma.prot.read && self.memory.is_trapped(vma)) {
                permit(vma, at, need)?;
            }
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
