//! A device without DMA of its own: its driver moves its bytes, through a container or an access
//! object.
//!
//! What it writes it pins first, and keeps pinned until that is unmapped or the device is closed,
//! as a driver does that hands addresses to other hardware; what it reads it reads through the
//! mapping. Linux: `vfio_pin_pages`, `vfio_dma_rw`.
//!
//! Lock order: `EmulatedDma::state` comes before every lock of `iommufd`. [`AccessUser::unmap`] is
//! called with none of them held.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{AccessHandle, AccessUser, Iova, IovaRange, PAGE_SIZE, Prot};
use ioasis_pci::{Dma, DmaFault, Segment};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

/// Where its bytes are.
#[derive(Debug)]
pub(crate) enum Memory {
    /// A type1 container.
    Container(Arc<Container>),
    /// The IOAS an access object is attached to.
    Access(AccessHandle),
}

#[derive(Debug, Default)]
struct State {
    memory: Option<Memory>,
    /// Pages it keeps, by their IOVA.
    pinned: BTreeSet<u64>,
}

/// The bytes of an emulated device.
#[derive(Debug)]
pub(crate) struct EmulatedDma {
    state: Mutex<State>,
    this: Weak<Self>,
}

impl Memory {
    fn pin(&self, page: u64) -> Result<()> {
        match self {
            Self::Container(container) => container.pin(Iova(page), 1, Prot::READ | Prot::WRITE),
            Self::Access(access) => access.pin(Iova(page), PAGE_SIZE, Prot::WRITE).map(|_| ()),
        }
    }

    fn unpin(&self, page: u64) {
        match self {
            Self::Container(container) => container.unpin(Iova(page), 1),
            // It was pinned by itself, so that nothing can be wrong with giving it back.
            Self::Access(access) => access.unpin(Iova(page), PAGE_SIZE).unwrap_or(()),
        }
    }

    fn read(&self, iova: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Container(container) => container.read(Iova(iova), buf),
            Self::Access(access) => access.read(Iova(iova), buf),
        }
    }

    fn write(&self, iova: u64, buf: &[u8]) -> Result<()> {
        match self {
            Self::Container(container) => container.write(Iova(iova), buf),
            Self::Access(access) => access.write(Iova(iova), buf),
        }
    }
}

impl EmulatedDma {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self { state: Mutex::default(), this: Weak::clone(this) })
    }

    /// Who is told before pages go.
    pub(crate) fn user(&self) -> Arc<dyn AccessUser> {
        self.this.upgrade().expect("a device that is called is alive")
    }

    /// The device is opened on `memory`.
    pub(crate) fn begin(&self, memory: Memory) {
        if let Memory::Container(container) = &memory {
            container.register(&self.user());
        }
        self.state.lock().memory = Some(memory);
    }

    /// The device is closed: it lets go of everything.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        let pinned = std::mem::take(&mut state.pinned);
        let Some(memory) = state.memory.take() else { return };
        drop(state);
        pinned.into_iter().for_each(|page| memory.unpin(page));
        if let Memory::Container(container) = &memory {
            container.unregister(&self.user());
        }
    }

    fn pin(state: &mut State, iova: u64, length: usize) -> std::result::Result<(), DmaFault> {
        let State { memory: Some(memory), pinned } = state else { return Err(DmaFault { iova }) };
        let Some(last) = (length as u64).checked_sub(1).and_then(|span| iova.checked_add(span))
        else {
            return if length == 0 { Ok(()) } else { Err(DmaFault { iova }) };
        };
        for page in iova / PAGE_SIZE..=last / PAGE_SIZE {
            let page = page * PAGE_SIZE;
            if pinned.contains(&page) {
                continue;
            }
            memory.pin(page).map_err(|_| DmaFault { iova: page.max(iova) })?;
            pinned.insert(page);
        }
        Ok(())
    }
}

impl AccessUser for EmulatedDma {
    fn unmap(&self, range: IovaRange) {
        let mut state = self.state.lock();
        let State { memory: Some(memory), pinned } = &mut *state else { return };
        let first = range.start().0 / PAGE_SIZE * PAGE_SIZE;
        let gone: Vec<u64> = pinned.range(first..=range.last().0).copied().collect();
        for page in gone {
            pinned.remove(&page);
            memory.unpin(page);
        }
    }
}

impl Dma for EmulatedDma {
    fn read(&self, segments: &[Segment], mut buf: &mut [u8]) -> std::result::Result<(), DmaFault> {
        let state = self.state.lock();
        for &Segment { iova, length } in segments {
            let (part, rest) = buf.split_at_mut(length);
            let memory = state.memory.as_ref().ok_or(DmaFault { iova })?;
            memory.read(iova, part).map_err(|_| DmaFault { iova })?;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, segments: &[Segment], mut buf: &[u8]) -> std::result::Result<(), DmaFault> {
        let mut state = self.state.lock();
        for &Segment { iova, length } in segments {
            let (part, rest) = buf.split_at(length);
            Self::pin(&mut state, iova, length)?;
            let memory = state.memory.as_ref().ok_or(DmaFault { iova })?;
            memory.write(iova, part).map_err(|_| DmaFault { iova })?;
            buf = rest;
        }
        Ok(())
    }
}
