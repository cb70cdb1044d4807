//! Memory that the device and the program share.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use iommufd_ioctls::IommufdIoas;
use vfio_ioctls::VfioOps;

/// Where the device finds it.
pub(crate) const IOVA: u64 = 0x10_0000;
/// Bytes.
pub(crate) const LENGTH: usize = 0x1_0000;

#[repr(align(4096))]
struct Pages([AtomicU8; LENGTH]);

static PAGES: Pages = Pages([const { AtomicU8::new(0) }; LENGTH]);

/// Memory mapped at [`IOVA`].
#[derive(Debug)]
pub(crate) enum Memory {
    /// The program's own, private.
    Program,
    /// A file's, which the program does not even map.
    File(File),
}

impl Memory {
    #[expect(unsafe_code, reason = "vfio-ioctls cannot know what becomes of the memory")]
    pub(crate) fn of_program(ops: &dyn VfioOps) -> Result<Self> {
        let pages = PAGES.0.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: 1. the pages live as long as the program; 2. they are atomics, used by atomic
        // operations only, so that the device may read and write them at any time.
        unsafe { ops.vfio_dma_map(IOVA, LENGTH, pages) }
            .context("the program's memory is not mapped")?;
        Ok(Self::Program)
    }

    pub(crate) fn of_file(ioas: &IommufdIoas) -> Result<Self> {
        let memfd = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memfd, LENGTH as u64)?;
        let mapped = ioas.map_file(memfd.as_raw_fd(), 0, LENGTH as u64, IOVA, true);
        mapped.context("the file's memory is not mapped")?;
        Ok(Self::File(memfd.into()))
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Program => {
                for (place, &byte) in PAGES.0[offset..].iter().zip(bytes) {
                    place.store(byte, Ordering::Release);
                }
            }
            Self::File(file) => file.write_all_at(bytes, offset as u64)?,
        }
        Ok(())
    }

    pub(crate) fn read(&self, offset: usize, length: usize) -> Result<Vec<u8>> {
        match self {
            Self::Program => {
                let places = &PAGES.0[offset..offset + length];
                Ok(places.iter().map(|place| place.load(Ordering::Acquire)).collect())
            }
            Self::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, offset as u64)?;
                Ok(bytes)
            }
        }
    }
}
