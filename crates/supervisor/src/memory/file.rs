//! The memory of a file, by offset: what IOAS_MAP_FILE maps.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioasis_iommufd::{AddressSpace, Extent, Extents, Kind};
use ioasis_iommupt::Prot;
use ioasis_sys::because;
use ioasis_sys::mapping::Access;
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{OFlags, SealFlags};

use super::{FileId, Memory, access, locate};

/// The memory of a file. Any file will do until it is pinned.
#[derive(Debug)]
pub struct FileMemory {
    memory: Arc<Memory>,
    fd: OwnedFd,
    id: FileId,
    regular: bool,
}

impl FileMemory {
    pub(super) fn new(memory: Arc<Memory>, fd: OwnedFd) -> Result<Self> {
        let (id, regular) = locate::identify(&fd)?;
        Ok(Self { memory, fd, id, regular })
    }

    /// mm/gup.c, memfd_pin_folios: shmem and hugetlbfs only, which are the files that have seals.
    fn check_kind(&self) -> Result<SealFlags> {
        let own = self.memory.own_device == Some(self.id.device);
        match rustix::fs::fcntl_get_seals(&self.fd) {
            Ok(seals) if self.regular && !own => Ok(seals),
            _ => Err(Error::new(
                Errno::EINVAL,
                "only memfd, tmpfs and hugetlbfs files can be pinned",
            )),
        }
    }

    // DIFFERS: Linux looks at neither the open mode nor the seals, and lets a device write where the owner of the fd may
    // not. We answer what mmap(2) answers to PROT_WRITE.
    fn check_writable(&self, seals: SealFlags) -> Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.fd)
            .map_err(because("the mode of the file is not to be learnt"))?;
        if flags & OFlags::RWMODE != OFlags::RDWR {
            return Err(Error::new(Errno::EACCES, "the file is not open for reading and writing"));
        }
        if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
            return Err(Error::new(Errno::EPERM, "the file is sealed against writing"));
        }
        Ok(())
    }
}

impl AddressSpace for FileMemory {
    fn kind(&self) -> Kind {
        Kind::File
    }

    fn key(&self) -> u128 {
        self.id.key()
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        assert!(length > 0, "nobody pins nothing");
        let seals = self.check_kind()?;
        let stat =
            rustix::fs::fstat(&self.fd).map_err(because("nothing is known about the file"))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if address.checked_add(length - 1).is_none_or(|last| last >= size) {
            return Err(Error::at(Errno::EINVAL, "the file ends before the range does", size));
        }
        let access = access(need);
        if access == Access::ReadWrite {
            self.check_writable(seals)?;
        }
        let open = || {
            self.fd.try_clone().map(Some).map_err(|_| Error::new(Errno::EMFILE, "no fd to be had"))
        };
        let Some(file) = self.memory.mapped(self.id, access, open)? else {
            return Err(Error::new(Errno::EINVAL, "the file cannot be mapped"));
        };
        file.map(address, length, file.size()?, access)?;
        Ok(Extents::from_buf([Extent { backing: file, offset: address, length }]))
    }
}
