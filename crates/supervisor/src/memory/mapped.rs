//! A file of the client's, mapped here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ioasis_iommufd::{Backing, Piece, inject};
use ioasis_sys::because;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use super::FileId;

/// `HUGETLBFS_MAGIC` of linux/magic.h.
const HUGETLBFS: u32 = 0x9584_58f6;
const PAGE_SIZE: u64 = 4096;

/// Files up to this size are mapped whole at once; of larger ones, what is pinned.
const WHOLE: u64 = 1 << 40;

/// Times a file can be mapped anew because it grew or is larger than [`WHOLE`].
const WINDOWS: usize = 64;

/// One file, mapped as far as it was ever pinned. Transfers take no lock.
#[derive(Debug)]
pub(super) struct MappedFile {
    id: FileId,
    /// Bytes of a page when the file is on hugetlbfs. Immutable.
    huge: Option<u64>,
    file: Mutex<Opened>,
    /// How many of `windows` there are; grows under `file`.
    count: AtomicUsize,
    /// The newest is the most likely to hold everything.
    windows: [OnceLock<Window>; WINDOWS],
}

#[derive(Debug)]
struct Opened {
    fd: OwnedFd,
    access: Access,
}

#[derive(Debug)]
struct Window {
    start: u64,
    mapping: Mapping,
}

impl Window {
    /// Bytes from `offset` to the end of the window; none outside, or when the window does not do `access`.
    fn reach(&self, offset: u64, access: Access) -> u64 {
        if access == Access::ReadWrite && self.mapping.access() == Access::Read
            || offset < self.start
        {
            return 0;
        }
        (self.mapping.len() as u64).saturating_sub(offset - self.start)
    }
}

impl MappedFile {
    pub(super) fn new(id: FileId, fd: OwnedFd, access: Access) -> Result<Self> {
        let found = rustix::fs::fstatfs(&fd)
            .map_err(because("the file system of a file is not to be learnt"))?;
        let huge =
            (u32::try_from(found.f_type) == Ok(HUGETLBFS)).then(|| found.f_bsize.unsigned_abs());
        Ok(Self {
            id,
            huge,
            file: Mutex::new(Opened { fd, access }),
            count: AtomicUsize::new(0),
            windows: [const { OnceLock::new() }; WINDOWS],
        })
    }

    fn page_size(&self) -> u64 {
        self.huge.unwrap_or(PAGE_SIZE)
    }

    pub(super) fn permits(&self, access: Access) -> bool {
        access == Access::Read || self.file.lock().access == Access::ReadWrite
    }

    /// From now on maps through `fd`, the same file opened for more.
    pub(super) fn replace(&self, fd: OwnedFd, access: Access) {
        *self.file.lock() = Opened { fd, access };
    }

    /// Bytes of the file now, the last page whole.
    pub(super) fn size(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.file.lock().fd)
            .map_err(because("a mapped file has no size"))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0).next_multiple_of(self.page_size()))
    }

    /// Makes sure that `length` bytes from `offset`, which end inside a file of `size` bytes, are mapped.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without address space, `EACCES` or `EPERM` when the file does not permit `access`.
    pub(super) fn map(&self, offset: u64, length: u64, size: u64, access: Access) -> Result<()> {
        let file = self.file.lock();
        if self.window(offset, access).is_some_and(|window| window.reach(offset, access) >= length)
        {
            return Ok(());
        }
        inject::step("a mapping of a file")?;
        let count = self.count.load(Ordering::Relaxed);
        if count == WINDOWS {
            return Err(Error::at(
                Errno::ENOMEM,
                "the file has been mapped anew too often",
                offset,
            ));
        }
        // Twice the room, so that a file that grows page by page is not mapped for each. Not on hugetlbfs, where a
        // mapping past the end makes the file longer.
        let before = self.windows.get(count.wrapping_sub(1)).and_then(OnceLock::get);
        let room = match (self.huge, before) {
            (Some(_), _) | (_, None) => size,
            (None, Some(window)) => size.max((window.mapping.len() as u64 * 2).min(WHOLE)),
        };
        let whole = (room <= WHOLE).then(|| Self::map_window(&file, 0, room));
        let window = match whole {
            Some(Ok(window)) => window,
            Some(Err(error)) if error.errno != Errno::ENOMEM => return Err(error),
            _ => {
                let page = self.page_size();
                let start = offset / page * page;
                Self::map_window(&file, start, (offset - start + length).next_multiple_of(page))?
            }
        };
        let placed = self.windows[count].set(window);
        assert!(placed.is_ok(), "windows are added under the lock");
        self.count.store(count + 1, Ordering::Release);
        Ok(())
    }

    fn map_window(file: &Opened, start: u64, length: u64) -> Result<Window> {
        let length = usize::try_from(length)
            .map_err(|_| Error::at(Errno::ENOMEM, "larger than the address space", length))?;
        Ok(Window { start, mapping: Mapping::file(file.fd.as_fd(), start, length, file.access)? })
    }

    /// The newest window that holds the byte at `offset`.
    #[inline]
    fn window(&self, offset: u64, access: Access) -> Option<&Window> {
        let count = self.count.load(Ordering::Acquire);
        self.windows[..count]
            .iter()
            .rev()
            .filter_map(OnceLock::get)
            .find(|window| window.reach(offset, access) > 0)
    }

    /// Calls `copy` with a mapping, an offset inside it and a range of the buffer, until `pieces` are done.
    #[inline]
    fn each(
        &self,
        pieces: &[Piece],
        access: Access,
        mut copy: impl FnMut(&Mapping, u64, std::ops::Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        for piece in pieces {
            let (mut offset, end) = (piece.offset, done + piece.length);
            while done < end {
                let Some(window) = self.window(offset, access) else {
                    return Err(Error::at(
                        Errno::EFAULT,
                        "a part of the file that is not pinned",
                        offset,
                    ));
                };
                let reach = usize::try_from(window.reach(offset, access)).unwrap_or(usize::MAX);
                let length = reach.min(end - done);
                copy(&window.mapping, offset - window.start, done..done + length)?;
                done += length;
                offset += length as u64;
            }
        }
        Ok(())
    }
}

impl Backing for MappedFile {
    fn key(&self) -> u128 {
        self.id.key()
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn page_lg2(&self) -> u32 {
        self.page_size().trailing_zeros()
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        self.each(pieces, Access::Read, |mapping, offset, range| {
            mapping.read(offset, &mut buf[range])
        })
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        self.each(pieces, Access::ReadWrite, |mapping, offset, range| {
            mapping.write(offset, &buf[range])
        })
    }
}
