//! What a container does for devices whose driver moves their bytes. Linux:
//! `vfio_device_container_pin_pages` and what follows it.

use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_uapi::Result;
use ioasis_uapi::vfio as abi;

use super::pins::{PIN_PAGES_MAX, pages_of};
use super::type1::Type1;
use super::{Container, Driver, State};
use crate::Client;
use crate::device::access::AccessUser;
use crate::pages::Way;

/// Rounds of asking the devices to let go of a mapping before their pins are taken. Linux has a bug
/// check there.
const NOTIFY_ROUNDS: u32 = 10;

impl State {
    fn type1(&mut self) -> Result<&mut Type1> {
        match &mut self.driver {
            Some(Driver::Type1(type1)) => Ok(type1),
            _ => refuse!(ENOTTY, "the container has no driver that could pin"),
        }
    }
}

impl Container {
    /// A device that may pin is open: `user` is told of unmaps.
    pub fn register(&self, user: &Arc<dyn AccessUser>) {
        self.state.lock().users.push(Arc::clone(user));
    }

    /// It is closed, and has unpinned all.
    pub fn unregister(&self, user: &Arc<dyn AccessUser>) {
        self.state.lock().users.retain(|other| !Arc::ptr_eq(other, user));
    }

    /// Pins `pages` pages from `iova` for a registered device.
    ///
    /// # Errors
    ///
    /// `E2BIG` for more than a call may pin; `ENOTTY` without a driver; `EINVAL` for no page,
    /// without a registered device, or where nothing is mapped; `EACCES` in a v1 container;
    /// `EOVERFLOW`; `EBUSY` while a mapping has no process address; `EPERM` without all of `need`;
    /// `EFAULT` and `ENOMEM` of pinning.
    pub fn pin(&self, iova: Iova, pages: u64, need: Prot) -> Result<()> {
        if pages > PIN_PAGES_MAX {
            return refuse!(E2BIG, "more pages than one call pins", pages);
        }
        let mut state = self.state.lock();
        let registered = !state.users.is_empty();
        let type1 = state.type1()?;
        if pages == 0 {
            return refuse!(EINVAL, "no page");
        }
        if !type1.is_v2() {
            return refuse!(EACCES, "only a v2 container pins");
        }
        let range = pages_of(iova, pages)?;
        if !registered {
            return refuse!(EINVAL, "no device is registered that could be told of an unmap");
        }
        type1.pin(range, need)
    }

    /// Gives back one pin of each of `pages` pages; those that have none are passed over.
    pub fn unpin(&self, iova: Iova, pages: u64) {
        let mut state = self.state.lock();
        if let (Ok(type1), Ok(range)) = (state.type1(), pages_of(iova, pages)) {
            type1.unpin(range);
        }
    }

    /// Fills `buf` from `iova`.
    ///
    /// # Errors
    ///
    /// `ENOTTY` without a driver; `EBUSY` while a mapping has no process address; `EINVAL` where
    /// nothing is mapped; `EPERM` where READ is not granted; `EFAULT` when the memory is gone.
    pub fn read(&self, iova: Iova, buf: &mut [u8]) -> Result<()> {
        let mut state = self.state.lock();
        let mut rest = buf;
        state.type1()?.access(iova, rest.len(), Prot::READ, |area, byte, length| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(length);
            rest = later;
            area.pages.read(byte, now)
        })
    }

    /// Writes `buf` to `iova`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and `EPERM` where WRITE is not granted.
    pub fn write(&self, iova: Iova, buf: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let mut rest = buf;
        state.type1()?.access(iova, rest.len(), Prot::WRITE, |area, byte, length| {
            let (now, later) = rest.split_at(length);
            rest = later;
            area.pages.write(byte, now, Way::Copied)
        })
    }

    /// UNMAP_DMA. Before a mapping with pinned pages goes, the devices are asked to let go of it,
    /// with no lock held.
    pub(super) fn unmap_dma(&self, client: &dyn Client, arg: u64) -> Result<i64> {
        let mut asked: Option<(IovaRange, u32)> = None;
        loop {
            let mut state = self.state.lock();
            let users = state.users.clone();
            let Some(Driver::Type1(type1)) = &mut state.driver else {
                let code = u64::from(abi::IOMMU_UNMAP_DMA);
                return refuse!(EINVAL, "the container has no IOMMU any more", code);
            };
            let Some(pinned) = type1.pinned_by_unmap(client, arg)? else {
                return type1.unmap_dma(client, arg);
            };
            let round = match asked {
                Some((mapping, round)) if mapping == pinned => round + 1,
                _ => 0,
            };
            if round == NOTIFY_ROUNDS || users.is_empty() {
                type1.take_pins(pinned);
                continue;
            }
            asked = Some((pinned, round));
            drop(state);
            users.iter().for_each(|user| user.unmap(pinned));
        }
    }
}
