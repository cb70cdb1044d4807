//! Client memory: what IOAS_MAP and MAP_DMA find behind a client's addresses, and IOAS_MAP_FILE inside a file.
//!
//! Shared memory (memfd, tmpfs, hugetlbfs, shared anonymous, System V) is mapped here as well, once per file, and then
//! reached with a copy: the bytes stay in reach after the client unmapped them or ended, as pinned pages do. Private
//! memory is reached by address through the memory itself (`ioasis_sys::process::Mm`), which never becomes another's. So
//! is shared memory whose file we may not open, in any process that maps it (`unopened`): without privileges, a shared
//! anonymous mapping that no fd refers to.
//!
//! What follows from reaching by address:
//!
//! - A transfer follows the client's page tables at that moment. A page that the client and the device share is the
//!   same page without anything being done at pin time: no copy-on-write break is needed, because whatever page the
//!   client next writes is the one the next transfer reads.
//! - What a device may read and write is decided when the memory is pinned, as on Linux: an mprotect that comes later
//!   takes nothing away from the device.
//! - DIFFERS: memory the client unmaps or moves without unmapping the IOVA answers `EFAULT`, and memory it then maps at
//!   the same address is what the device reaches. On Linux the device goes on to reach the old pages.
//! - DIFFERS: no page is faulted in when it is pinned, so that mapping a gigabyte touches nothing. A page that is not there
//!   when a device asks for it and that only the program can give (userfaultfd) is a fault of that DMA; one of a file on
//!   a slow file system makes the device wait for it.
//! - DIFFERS: nothing of a client that has ended or executed another program is reached, unless another process uses the
//!   same memory (vfork, `CLONE_VM`); shared memory excepted, which is where it can be opened or another process maps it.
//!
//! And of shared memory: DIFFERS: pages are allocated when first touched, not when pinned, so that mapping a terabyte
//! costs nothing; a file system that is full by then is `EFAULT` to the device. A page truncated or punched away is gone
//! for the device too.
//!
//! The same page is the same (backing, offset): the key of a file is its device and inode, that of private memory a
//! number no other memory has. Files that are written back to somewhere are reached by address too: a client can be the
//! file system behind them, and need not answer.
//!
//! Lock order: `Memory::files` -> `MappedFile::file`, and `Memory::files` -> what is known of
//! mounts. The others are leaves.

mod file;
mod locate;
mod mapped;
mod process;
#[cfg(test)]
mod tests;
mod unopened;

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommufd::{Backing, inject};
use ioasis_iommupt::Prot;
use ioasis_sys::mapping::Access;
use ioasis_sys::process::{Thread, Vma};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

pub use file::FileMemory;
pub use process::ProcessMemory;

use locate::MemoryMounts;
use mapped::MappedFile;
use process::PrivateMemory;
use unopened::Unopened;

/// All client memory of one run.
#[derive(Debug)]
pub struct Memory {
    /// The file system our own device files live on: BARs, which are device memory and never pinned. Immutable.
    own_device: Option<u64>,
    /// Immutable.
    mounts: MemoryMounts,
    /// Files mapped here, as long as somebody holds an extent of them.
    files: Mutex<HashMap<FileId, Weak<MappedFile>>>,
    /// Shared memory that cannot be opened, as long as somebody holds an extent of it.
    unopened: Mutex<HashMap<FileId, Weak<Unopened>>>,
    /// What stands behind our own device files, by their inode.
    devices: Mutex<HashMap<FileId, DevicePages>>,
    /// Of every process that pinned some, as long as somebody holds an extent of it.
    spaces: Mutex<Vec<Weak<PrivateMemory>>>,
    next: AtomicU64,
}

/// A file, by what `stat` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    inode: u64,
}

/// The pages of an open device.
#[derive(Debug)]
struct DevicePages {
    backing: Weak<dyn Backing>,
    /// By offset in the file: pages that a program may write though its mapping says that it may only read them, since
    /// its stores there are trapped.
    trapped: Vec<Range<u64>>,
}

/// Set in the key of private memory only: device numbers have 32 bits.
const PRIVATE_KEY: u128 = 1 << 127;

impl FileId {
    fn key(self) -> u128 {
        assert!(self.device >> 63 == 0, "device numbers leave room for the mark of private memory");
        u128::from(self.device) << 64 | u128::from(self.inode)
    }
}

impl Memory {
    /// No memory known yet. `own_device` is the `st_dev` of the file system that holds our own device files.
    #[must_use]
    pub fn new(own_device: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            own_device,
            mounts: MemoryMounts::find(),
            files: Mutex::new(HashMap::new()),
            unopened: Mutex::new(HashMap::new()),
            devices: Mutex::new(HashMap::new()),
            spaces: Mutex::new(Vec::new()),
            next: AtomicU64::new(0),
        })
    }

    /// The memory `thread` has now: the same key as long as any process uses it, and for all that share it.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the thread is gone, `EACCES` when it is not ours to look at.
    pub fn of(self: &Arc<Self>, thread: &Arc<Thread>) -> Result<Arc<ProcessMemory>> {
        let mm = thread.mm()?;
        let mut spaces = self.spaces.lock();
        let known = || spaces.iter().filter_map(Weak::upgrade);
        let found = known().find(|known| known.is(&mm));
        let private = match found.or_else(|| known().find(|known| known.is_of(thread))) {
            Some(known) => known,
            None => {
                inject::step("the memory of a process")?;
                spaces.retain(|memory| memory.strong_count() > 0);
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                let private =
                    Arc::new(PrivateMemory::new(PRIVATE_KEY | u128::from(number), thread)?);
                spaces.push(Arc::downgrade(&private));
                private
            }
        };
        Ok(Arc::new(ProcessMemory::new(Arc::clone(self), private, Arc::clone(thread.process()))))
    }

    /// The memory of the file behind `fd`, whatever it is: whether it can be pinned shows when it is.
    ///
    /// # Errors
    ///
    /// `EIO`, `ENOMEM`: nothing can be learnt about `fd`.
    pub fn file(self: &Arc<Self>, fd: OwnedFd) -> Result<Arc<FileMemory>> {
        FileMemory::new(Arc::clone(self), fd).map(Arc::new)
    }

    /// Says that a client's mapping of `file`, one of our own device files, is a mapping of `backing`, whose offsets are
    /// those of the file, and where stores to it are `trapped`. Forgotten when the backing is dropped.
    ///
    /// # Errors
    ///
    /// `EIO`, `ENOMEM`: nothing can be learnt about `file`.
    pub fn add_device(
        &self,
        file: impl AsFd,
        backing: &Arc<dyn Backing>,
        trapped: Vec<Range<u64>>,
    ) -> Result<()> {
        let (id, _) = locate::identify(file)?;
        let mut devices = self.devices.lock();
        devices.retain(|_, device| device.backing.strong_count() > 0);
        devices.insert(id, DevicePages { backing: Arc::downgrade(backing), trapped });
        Ok(())
    }

    /// Whether a page of `vma` may have to come from a file system that takes its time: not where
    /// it is the program's own, or of memory without a file that anybody could name.
    pub(crate) fn may_wait(&self, vma: &Vma) -> bool {
        vma.inode != 0 && !self.mounts.are_kernels(vma)
    }

    /// Whether all of `vma` are pages of a device whose stores are trapped.
    fn is_trapped(&self, vma: &Vma) -> bool {
        let id = FileId { device: vma.device, inode: vma.inode };
        let (first, last) = (vma.offset, vma.offset.saturating_add(vma.last - vma.start));
        let within = |range: &Range<u64>| range.contains(&first) && range.contains(&last);
        self.own_device == Some(vma.device)
            && self.devices.lock().get(&id).is_some_and(|pages| pages.trapped.iter().any(within))
    }

    /// The one memory there is for the file `id`, which we may not open.
    fn unopened(&self, id: FileId) -> Arc<Unopened> {
        let mut unopened = self.unopened.lock();
        if let Some(known) = unopened.get(&id).and_then(Weak::upgrade) {
            return known;
        }
        unopened.retain(|_, memory| memory.strong_count() > 0);
        let memory = Arc::new(Unopened::new(id));
        unopened.insert(id, Arc::downgrade(&memory));
        memory
    }

    /// The one mapped file there is for `id`, able to do `access`; `open` opens it if need be, or knows that it cannot.
    fn mapped(
        &self,
        id: FileId,
        access: Access,
        open: impl FnOnce() -> Result<Option<OwnedFd>>,
    ) -> Result<Option<Arc<MappedFile>>> {
        let mut files = self.files.lock();
        let known = files.get(&id).and_then(Weak::upgrade);
        if let Some(file) = known.as_ref().filter(|file| file.permits(access)) {
            return Ok(Some(Arc::clone(file)));
        }
        let Some(fd) = open()? else { return Ok(None) };
        if let Some(file) = known {
            file.replace(fd, access);
            return Ok(Some(file));
        }
        files.retain(|_, file| file.strong_count() > 0);
        let file = Arc::new(MappedFile::new(id, fd, access)?);
        files.insert(id, Arc::downgrade(&file));
        Ok(Some(file))
    }
}

fn access(need: Prot) -> Access {
    if need.contains(Prot::WRITE) { Access::ReadWrite } else { Access::Read }
}
