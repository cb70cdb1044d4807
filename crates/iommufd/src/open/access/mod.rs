//! The handle of an access.

use std::sync::Arc;

use ioasis_iommupt::{Iova, Prot, Run};
use ioasis_uapi::Result;

use super::Context;
use crate::device::access::{Access, AccessKind};
use crate::object::{Head, Held};
use crate::pages::Way;

/// An access of a driver of ours. Dropping it detaches and destroys the object.
#[derive(Debug)]
pub struct AccessHandle {
    context: Arc<Context>,
    access: Held<Access>,
}

impl AccessHandle {
    fn new(context: &Arc<Context>, access: &Arc<Access>) -> Self {
        Self { context: Arc::clone(context), access: Held::new(access) }
    }

    /// The object's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.access.id()
    }

    /// Attaches to an IOAS.
    ///
    /// # Errors
    ///
    /// `EINVAL` when attached already, `ENOENT` without the IOAS, `EADDRINUSE` when its mappings
    /// are less aligned than pins need.
    pub fn attach(&self, ioas: u32) -> Result<()> {
        if self.access.is_attached() {
            return refuse!(EINVAL, "the access is attached already");
        }
        self.access.arc().change_ioas(Some(self.context.ioas(ioas)?))
    }

    /// Moves to another IOAS; the user is asked to let go of all pins first.
    ///
    /// # Errors
    ///
    /// `ENOENT` when not attached or without the IOAS, `EADDRINUSE` as [`attach`](Self::attach).
    pub fn replace(&self, ioas: u32) -> Result<()> {
        if !self.access.is_attached() {
            return refuse!(ENOENT, "the access is not attached");
        }
        self.access.arc().change_ioas(Some(self.context.ioas(ioas)?))
    }

    /// Leaves the IOAS, if attached.
    pub fn detach(&self) {
        self.access.arc().detach();
    }

    /// Pins the pages of `length` bytes from `iova`, which begin on a page, and returns where the
    /// pages are.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no bytes, bytes that do not begin on a page or go on within one in the next
    /// area, or a dma-buf; `EOVERFLOW` past the end; `ENOENT` where nothing is mapped or the access
    /// is not attached; `EPERM` without the permission; `EFAULT` and `ENOMEM` of pinning.
    pub fn pin(&self, iova: Iova, length: u64, need: Prot) -> Result<Vec<Run>> {
        self.access.pin(iova, length, need)
    }

    /// Gives back what [`pin`](Self::pin) was called with.
    ///
    /// # Errors
    ///
    /// `EINVAL` unless exactly this range is pinned.
    pub fn unpin(&self, iova: Iova, length: u64) -> Result<()> {
        self.access.unpin(iova, length)
    }

    /// Fills `buf` from `iova`.
    ///
    /// # Errors
    ///
    /// As [`pin`](Self::pin), without the rule of whole pages.
    pub fn read(&self, iova: Iova, buf: &mut [u8]) -> Result<()> {
        self.access.read(iova, buf)
    }

    /// Writes `buf` to `iova`.
    ///
    /// # Errors
    ///
    /// As [`pin`](Self::pin), without the rule of whole pages.
    pub fn write(&self, iova: Iova, buf: &[u8]) -> Result<()> {
        self.access.write(iova, buf, Way::Copied)
    }
}

#[cfg(feature = "mock")]
impl AccessHandle {
    /// The access itself.
    pub(crate) fn access(&self) -> &Access {
        self.access.arc()
    }
}

impl Drop for AccessHandle {
    fn drop(&mut self) {
        self.access.arc().detach();
        let object = self.context.objects().evict(self.access.id());
        drop(object);
    }
}

impl Context {
    /// Makes an access object, which reads, writes and pins memory behind IOVAs without DMA.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn create_access(self: &Arc<Self>, kind: AccessKind) -> Result<AccessHandle> {
        let reservation = self.objects.reserve()?;
        let access = Access::new(Head::new(reservation.id()), self.machine.token(), kind);
        let handle = AccessHandle::new(self, &access);
        reservation.publish(access);
        Ok(handle)
    }
}

#[cfg(test)]
mod tests;
