//! Dma-bufs: zeroed memory that stands for a device's, and can be revoked.
//!
//! `MockBuffer::importers` is taken alone, and let go before an importer is told.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use ioasis_iommupt::Prot;
use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::iommufd as abi;
use ioasis_uapi::{Errno, Error, Result};

use super::Test;
use crate::client::PAGE_SIZE;
use crate::inject::step;
use crate::{AddressSpace, Backing, ClientFile, Extent, Extents, Importer, Kind, OnExec, Piece};

/// Most pages of a dma-buf.
const PAGES_MAX: u64 = 512;

/// `O_CLOEXEC` (asm-generic/fcntl.h).
const O_CLOEXEC: u32 = 0o2_000_000;

/// The memory of one dma-buf.
#[derive(Debug)]
struct MockBuffer {
    /// A number no other memory has: the upper half says what it is a number of.
    key: u128,
    memory: Mapping,
    revoked: AtomicBool,
    importers: Mutex<Vec<Weak<dyn Importer>>>,
}

/// Private memory has bit 127 of its key set, files their device number in the upper half, BAR
/// pages bit 126.
const KEY: u128 = 1 << 125;

impl Backing for MockBuffer {
    fn key(&self) -> u128 {
        self.key
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn read(&self, pieces: &[Piece], mut buf: &mut [u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at_mut(piece.length);
            self.memory.read(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }

    fn is_device(&self) -> bool {
        true
    }

    fn write(&self, pieces: &[Piece], mut buf: &[u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at(piece.length);
            self.memory.write(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }
}

/// A handle of a [`MockBuffer`]: the descriptor, or a mapping of it.
#[derive(Clone, Debug)]
struct MockDmabuf(Arc<MockBuffer>);

impl AddressSpace for MockDmabuf {
    fn key(&self) -> u128 {
        self.0.key
    }

    fn kind(&self) -> Kind {
        Kind::DmaBuf
    }

    fn pin(&self, address: u64, length: u64, _: Prot) -> Result<Extents> {
        let end = address.checked_add(length);
        if end.is_none_or(|end| end > self.0.memory.len() as u64) {
            return refuse!(EINVAL, "the dma-buf ends before", address);
        }
        let backing = Arc::clone(&self.0) as Arc<dyn Backing>;
        Ok(Extents::from_buf([Extent { backing, offset: address, length }]))
    }

    fn length(&self) -> Option<u64> {
        Some(self.0.memory.len() as u64)
    }

    fn is_revoked(&self) -> bool {
        self.0.revoked.load(Ordering::Acquire)
    }

    fn import(&self, importer: Weak<dyn Importer>) {
        let mut importers = self.0.importers.lock();
        importers.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&importer));
        importers.push(importer);
    }
}

impl ClientFile for MockDmabuf {
    fn name(&self) -> &'static str {
        "/dmabuf:"
    }

    fn memory(&self) -> Option<Arc<dyn AddressSpace>> {
        Some(Arc::new(self.clone()))
    }

    fn close(&self) {}
}

impl Test<'_> {
    pub(super) fn dmabuf_get(&self) -> Result<i64> {
        let body: abi::test::TestCmdDmabufGet = self.body();
        let length = u64::from(body.length).next_multiple_of(PAGE_SIZE);
        if length == 0 || length > PAGE_SIZE * PAGES_MAX {
            return refuse!(EINVAL, "no length a mock dma-buf can have", length);
        }
        step("the memory of a dma-buf")?;
        let length = usize::try_from(length).expect("at most 2 MiB");
        let buffer = MockBuffer {
            key: KEY | u128::from(self.call.context.machine().token()),
            memory: Mapping::anonymous(length)?,
            revoked: AtomicBool::new(false),
            importers: Mutex::default(),
        };
        let on_exec = if body.open_flags & O_CLOEXEC == 0 { OnExec::Keep } else { OnExec::Close };
        step("a dma-buf")?;
        let file = Arc::new(MockDmabuf(Arc::new(buffer)));
        self.call.client.install(file, on_exec).map(i64::from)
    }

    pub(super) fn dmabuf_revoke(&self) -> Result<i64> {
        let body: abi::test::TestCmdDmabufRevoke = self.body();
        // dma_buf_get: EBADF without a descriptor, EINVAL for one of something else.
        let file =
            self.call.client.installed(body.dmabuf_fd).map_err(|error| match error.errno {
                Errno::EBADFD => Error { errno: Errno::EINVAL, ..error },
                _ => error,
            })?;
        let Some(MockDmabuf(buffer)) = (&*file as &dyn Any).downcast_ref() else {
            let is_dmabuf = file.memory().is_some_and(|memory| memory.kind() == Kind::DmaBuf);
            if is_dmabuf {
                return refuse!(EOPNOTSUPP, "the dma-buf is not the mock's");
            }
            return refuse!(EINVAL, "the descriptor is no dma-buf");
        };
        buffer.revoked.store(body.revoked != 0, Ordering::Release);
        let importers: Vec<_> = buffer.importers.lock().iter().filter_map(Weak::upgrade).collect();
        importers.iter().for_each(|importer| importer.invalidate(buffer.key));
        Ok(0)
    }
}
