//! DMA that was refused, remembered for people. Linux reports it to nobody but the kernel log.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::Mutex;

/// One refused access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedDma {
    /// The device's name.
    pub device: Arc<str>,
    /// The PASID it used; 0 is none.
    pub pasid: u32,
    /// The address it used.
    pub iova: Iova,
    /// What it wanted to do.
    pub need: Prot,
    /// Why not.
    pub reason: Reason,
    /// The mapping nearest to the address, if there is any. Not known for addresses of a client's
    /// own table.
    pub nearest: Option<IovaRange>,
    /// The range around the address that was unmapped last, and the process that unmapped it: what
    /// was mapped there before. Not known for addresses of a client's own table.
    pub unmapped: Option<(IovaRange, u32)>,
}

/// Is told of refused DMA as it happens.
pub trait FaultWatcher: Debug + Send + Sync {
    /// DMA was refused. Called by the device's thread, which holds no lock of the core.
    fn refused(&self, refused: &RefusedDma);
}

/// Why DMA was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The device is attached to nothing.
    Blocked,
    /// Nothing is mapped there.
    NotMapped,
    /// The client's own table, or what it leads to in the nest parent, has nothing there.
    NotNested,
    /// The mapping does not grant these permissions.
    Missing(Prot),
    /// The memory behind the mapping could not be reached: why, in the words of whoever keeps it.
    Memory(&'static str),
    /// The mapping is of a dma-buf that was taken away.
    Revoked,
    /// An error before froze the device (EEH).
    Frozen,
}

/// How many are remembered.
const KEPT: usize = 256;

#[derive(Debug, Default)]
struct Ring {
    refused: VecDeque<RefusedDma>,
    total: u64,
}

impl Reason {
    /// A place in physical space that nothing has any more.
    pub(crate) const GONE: Self = Self::Memory("the memory behind the mapping is gone");

    /// The reason in words.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Self::Blocked => "the device is attached to nothing",
            Self::NotMapped => "nothing is mapped",
            Self::NotNested => "the client's own table, or its parent, maps nothing",
            Self::Missing(missing) if missing == Prot::WRITE => "the mapping is not writable",
            Self::Missing(missing) if missing == Prot::READ => "the mapping is not readable",
            Self::Missing(_) => "the mapping does not grant the access",
            Self::Memory(why) => why,
            Self::Frozen => "an error before froze the device: EEH_PE_OP recovers it",
            Self::Revoked => {
                "the dma-buf there was revoked, by a reset or because its BAR stopped answering: map it again"
            }
        }
    }
}

/// The most recent refusals.
#[derive(Debug, Default)]
pub struct FaultLog {
    ring: Mutex<Ring>,
    watcher: OnceLock<Arc<dyn FaultWatcher>>,
}

impl FaultLog {
    /// Tells `watcher` of every refusal from now on.
    ///
    /// # Panics
    ///
    /// If there is a watcher already.
    pub fn watch(&self, watcher: Arc<dyn FaultWatcher>) {
        assert!(self.watcher.set(watcher).is_ok(), "one watcher is told");
    }

    pub(crate) fn record(&self, refused: RefusedDma) {
        if let Some(watcher) = self.watcher.get() {
            watcher.refused(&refused);
        }
        let mut ring = self.ring.lock();
        if ring.refused.len() == KEPT {
            ring.refused.pop_front();
        }
        ring.refused.push_back(refused);
        ring.total += 1;
    }

    /// Takes what is remembered, oldest first.
    pub fn take(&self) -> Vec<RefusedDma> {
        self.ring.lock().refused.drain(..).collect()
    }

    /// How many there were, remembered or not.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ring.lock().total
    }
}
