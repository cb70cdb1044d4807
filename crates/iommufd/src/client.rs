//! Who calls: what the core asks of the program behind an ioctl, and of the memory behind its
//! addresses.
//!
//! The supervisor implements these for another process, a VMM for itself.

use std::any::Any;
use std::fmt::Debug;
use std::sync::{Arc, Weak};

use ioasis_iommupt::Prot;
use ioasis_uapi::Result;
use smallvec::SmallVec;

/// Bytes of a page, the unit of pinning and charging.
pub const PAGE_SIZE: u64 = 1 << 12;

/// The task that issued a call. Its argument bytes are an allegation: read once, check, use.
pub trait Client {
    /// Copies `buf.len()` bytes from the caller's `address`.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()>;

    /// Copies `buf` to the caller's `address`.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of it can be written.
    fn write(&self, address: u64, buf: &[u8]) -> Result<()>;

    /// Copies `buf`, the last that the call has to say, back to where its argument is. Bytes that
    /// were there when the argument was read need not be written once more, if they may be: then it
    /// is as if they had been written at that moment.
    ///
    // DIFFERS: what another thread or a device has put there during the call stays then; Linux
    // writes last.
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn write_back(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.write(address, buf)
    }

    /// The call takes long from here on, for the sake of its caller alone.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if others would have to wait for it.
    fn takes_long(&self) -> Result<()> {
        Ok(())
    }

    /// The caller's own address space: what IOAS_MAP and MAP_DMA map.
    fn memory(&self) -> Arc<dyn AddressSpace>;

    /// The memory of the file `fd`: what IOAS_MAP_FILE maps.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such fd.
    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>>;

    /// Who pays for pinned pages.
    fn account(&self) -> Account;

    /// The caller's thread group, as its account has it.
    fn pid(&self) -> u32 {
        self.account().pid
    }

    /// Gives the caller a descriptor of `file` and returns its number. It cannot be taken back:
    /// what else may fail comes first, the proof that the reply can be written among it
    /// ([`write`](Self::write) of the bytes that are there).
    ///
    /// # Errors
    ///
    /// `EMFILE` when the caller can have no more descriptors; [`ClientFile::close`] was called
    /// then.
    fn install(&self, file: Arc<dyn ClientFile>, on_exec: OnExec) -> Result<i32> {
        let _ = on_exec;
        file.close();
        refuse!(EMFILE, "the client has no descriptors")
    }

    /// Makes `length` zeroed bytes, whole pages, that the caller can map from the file its call was
    /// made on.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    fn mappable(&self, length: u64) -> Result<Arc<dyn MappableMemory>> {
        refuse!(ENOMEM, "the client's file cannot be mapped", length)
    }

    /// The file behind a descriptor that [`install`](Self::install) gave out.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such descriptor, `EBADFD` if it is one of something else.
    fn installed(&self, fd: i32) -> Result<Arc<dyn ClientFile>> {
        refuse!(EBADF, "the client has no descriptors", u64::from(fd.unsigned_abs()))
    }
}

/// Whether a descriptor survives execve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExec {
    /// `O_CLOEXEC`.
    Close,
    /// It stays.
    Keep,
}

/// Memory that a client maps from the file of its context; gone when it is dropped.
pub trait MappableMemory: Debug + Send + Sync {
    /// The offset to give to mmap.
    fn offset(&self) -> u64;

    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    ///
    /// `EFAULT` outside, or when the memory is gone.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()>;

    /// One 32-bit load, acquire, of what the client or [`store`](Self::store) stored at `at`, a
    /// multiple of 4.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn load(&self, at: u64) -> Result<u32>;

    /// One 32-bit store, release, at `at`, a multiple of 4.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn store(&self, at: u64, value: u32) -> Result<()>;

    /// Whether any process has it mapped.
    fn is_mapped(&self) -> bool;
}

/// A file that a command makes for the client: a fault queue, an event queue, a dma-buf.
pub trait ClientFile: Debug + Send + Sync + Any {
    /// What its link in /proc/PID/fd says: `anon_inode:[iommufd-pgfault]`.
    fn name(&self) -> &'static str;

    /// How it is read and polled; `None` for a file with neither.
    fn queue(&self) -> Option<&dyn QueueFile> {
        None
    }

    /// Which of read(2) and write(2) its descriptors are open for.
    fn access(&self) -> FileAccess {
        FileAccess::Both
    }

    /// One ioctl on it.
    ///
    /// # Errors
    ///
    /// `ENOTTY` for a command it does not have; the others are each command's own.
    fn ioctl(&self, client: &dyn Client, command: u32, address: u64) -> Result<i64> {
        let _ = (client, address);
        refuse!(ENOTTY, "the file has no such ioctl", u64::from(command))
    }

    /// The memory IOAS_MAP_FILE finds in it; `None` for a file that holds none.
    fn memory(&self) -> Option<Arc<dyn AddressSpace>> {
        None
    }

    /// The last descriptor is gone; called once.
    fn close(&self);
}

/// What a descriptor is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// `O_RDONLY`.
    Read,
    /// `O_WRONLY`.
    Write,
    /// `O_RDWR`.
    Both,
}

/// Where the bytes of a read(2) go: to the caller's memory, or into a buffer that the kernel copies
/// from.
pub trait Destination {
    /// Puts `bytes` at `at`, counted from the first byte of the read. What was refused counts as
    /// not read.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be written.
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()>;
}

/// Where the bytes of a write(2) come from: from the caller's memory, or from a buffer that the
/// kernel copied them into.
pub trait Source {
    /// Fills `buf` with what is at `at`, counted from the first byte of the write.
    ///
    /// # Errors
    ///
    /// `EFAULT` unless all of them can be read.
    fn get(&mut self, at: u64, buf: &mut [u8]) -> Result<()>;
}

/// The caller's memory from an address on.
pub(crate) struct ClientBytes<'a> {
    pub(crate) client: &'a dyn Client,
    pub(crate) address: u64,
}

impl Destination for ClientBytes<'_> {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.client.write(self.address.wrapping_add(at), bytes)
    }
}

impl Source for ClientBytes<'_> {
    fn get(&mut self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.client.read(self.address.wrapping_add(at), buf)
    }
}

impl Destination for Vec<u8> {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(at, self.len() as u64, "a read fills its buffer from the front");
        self.extend_from_slice(bytes);
        Ok(())
    }
}

impl Source for &[u8] {
    fn get(&mut self, at: u64, buf: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at).expect("64 bits fit usize");
        match start.checked_add(buf.len()).and_then(|end| <[u8]>::get(self, start..end)) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return refuse!(EFAULT, "a write ends before its bytes do", at),
        }
        Ok(())
    }
}

/// A file that is read record by record, or as a text.
pub trait QueueFile {
    /// One read(2) of `length` bytes at position `offset`, which is 0 for a file without positions;
    /// returns the bytes read, 0 when there is nothing.
    ///
    /// # Errors
    ///
    /// `EINVAL`, `ESPIPE`, `EFAULT`, as the kind of file has it.
    fn read_to(&self, offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64>;

    /// One write(2) of `length` bytes; returns the bytes taken.
    ///
    /// # Errors
    ///
    /// `EINVAL`, `ESPIPE`, `EFAULT`, as the kind of file has it.
    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64>;

    /// One write(2) of `length` bytes at position `offset`, which a text does not ask for.
    ///
    /// # Errors
    ///
    /// As [`write_from`](Self::write_from).
    fn write_at(&self, offset: u64, length: u64, from: &mut dyn Source) -> Result<u64> {
        let _ = offset;
        self.write_from(length, from)
    }

    /// One read(2) from the start to the caller's `address`.
    ///
    /// # Errors
    ///
    /// As [`read_to`](Self::read_to).
    fn read(&self, client: &dyn Client, address: u64, length: u64) -> Result<u64> {
        self.read_at(client, address, (0, length))
    }

    /// One read(2) to the caller's `address`: position and length.
    ///
    /// # Errors
    ///
    /// As [`read_to`](Self::read_to).
    fn read_at(&self, client: &dyn Client, address: u64, part: (u64, u64)) -> Result<u64> {
        self.read_to(part.0, part.1, &mut ClientBytes { client, address })
    }

    /// One write(2) of `length` bytes from the caller's `address`.
    ///
    /// # Errors
    ///
    /// As [`write_from`](Self::write_from).
    fn write(&self, client: &dyn Client, address: u64, length: u64) -> Result<u64> {
        self.write_from(length, &mut ClientBytes { client, address })
    }

    /// Whether reads have positions; a queue has none.
    fn is_seekable(&self) -> bool {
        false
    }

    /// Whether poll calls it readable and writable at all times, as a file that has no say in it.
    fn is_always_ready(&self) -> bool {
        self.is_seekable()
    }

    /// Whether it is bytes without records, of which a call may move any number.
    fn is_stream(&self) -> bool {
        false
    }

    /// `bytes` were written to a duplicate of the descriptor whose writes nobody answers; known
    /// when the file is closed.
    fn stray_write(&self, bytes: &[u8]) {
        let _ = bytes;
    }

    /// Whether there is something to read.
    fn is_readable(&self) -> bool;

    /// Whether poll ever calls it writable.
    fn is_writable(&self) -> bool {
        true
    }

    /// `watcher` is told whenever there begins to be something to read, from whatever thread, with
    /// locks of the core held.
    fn watch(&self, watcher: Arc<dyn QueueWatcher>);
}

/// Who waits for a queue.
pub trait QueueWatcher: Debug + Send + Sync {
    /// There is something to read now. Takes no lock of the core and does not block.
    fn readable(&self);
}

/// Who pays for pinned pages, read when a mapping is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Thread-group id.
    pub pid: u32,
    /// Real user id.
    pub uid: u32,
    /// `RLIMIT_MEMLOCK` in pages of 4 KiB; `None` when unlimited.
    pub memlock_pages: Option<u64>,
    /// `CAP_IPC_LOCK`: the limit does not bind.
    pub ipc_lock: bool,
    /// `CAP_SYS_RESOURCE`: may change the accounting mode.
    pub sys_resource: bool,
    /// `CAP_SYS_RAWIO`: may use devices without an IOMMU.
    pub sys_rawio: bool,
}

/// Something addresses lead into: a process by virtual address, or a file by offset.
pub trait AddressSpace: Debug + Send + Sync {
    /// Equal for two handles of the same space, different otherwise, for as long as either lives.
    fn key(&self) -> u128;

    /// The memory behind `length` bytes from `address`, in order and without gaps; both are
    /// multiples of 4 KiB. This is the moment pages are pinned: shared memory found here stays
    /// reachable whatever its owner unmaps later. A `need` with [`Prot::MMIO`] accepts device
    /// memory too, a client's mapping of a BAR for instance.
    ///
    /// # Errors
    ///
    /// `EFAULT` where nothing is mapped, or not with `need`; `EINVAL` for a file that cannot be
    /// pinned or ends before the range does.
    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents>;

    /// What an address means here.
    fn kind(&self) -> Kind;

    /// Whether the memory, that of a dma-buf, has been taken away for now: it is not mapped then.
    fn is_revoked(&self) -> bool {
        false
    }

    /// Bytes, for a space that has an end it tells: a dma-buf.
    fn length(&self) -> Option<u64> {
        None
    }

    /// `importer` maps the space and is told when it is revoked.
    fn import(&self, importer: Weak<dyn Importer>) {
        let _ = importer;
    }
}

/// Who maps a dma-buf.
pub trait Importer: Debug + Send + Sync {
    /// The memory of the dma-buf with this [`AddressSpace::key`] was taken away, or given back:
    /// when this returns, no device reaches what was mapped before. Called with no lock held that
    /// an access to the memory takes.
    fn invalidate(&self, key: u128);
}

/// What [`AddressSpace::pin`] finds: one extent, nearly always, which then needs no allocation.
pub type Extents = SmallVec<[Extent; 1]>;

/// What an address of an [`AddressSpace`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A virtual address of a process.
    User,
    /// An offset into a file.
    File,
    /// An offset into a dma-buf: device memory that may be revoked.
    DmaBuf,
}

/// A stretch of a backing.
#[derive(Clone, Debug)]
pub struct Extent {
    /// What holds the bytes.
    pub backing: Arc<dyn Backing>,
    /// First byte inside the backing.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// One piece of a scattered transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte inside the backing.
    pub offset: u64,
    /// Bytes.
    pub length: usize,
}

/// Bytes that can stand behind an IOVA: a shared file, a process's private memory by address, a
/// BAR, a VMM's own memory. Two mappings reach the same page when key and offset are the same.
pub trait Backing: Debug + Send + Sync {
    /// Equal for two handles of the same backing, different otherwise, for as long as either lives.
    fn key(&self) -> u128;

    /// Fills `buf` from `pieces`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the memory is gone.
    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()>;

    /// Whether [`read`](Self::read) and [`write`](Self::write) may wait for somebody who must give
    /// the page first: the program whose memory it is, or a file system. Then only those wait for
    /// the copy who take away what it uses. Memory that is here, or that nothing but the kernel's
    /// own memory stands behind, never waits: its copies cost a little less.
    fn may_wait(&self) -> bool {
        true
    }

    /// lg2 of the bytes of the pages it is made of: of huge pages, if it is.
    fn page_lg2(&self) -> u32 {
        PAGE_SIZE.trailing_zeros()
    }

    /// Whether it is device memory, a BAR: nobody pays for pinning that.
    fn is_device(&self) -> bool {
        false
    }

    /// Writes `buf` to `pieces`, one after another; their lengths add up to `buf.len()`.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the memory is gone.
    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()>;
}
