//! The virtual interfaces of a CMDQ-V: which are in use.
//!
//! `Cmdqv::vintfs` is a leaf lock.

use std::sync::Arc;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

/// lg2 of the interfaces.
pub(super) const VINTFS_LG2: u32 = 6;
const VINTFS: u32 = 1 << VINTFS_LG2;

/// A CMDQ-V: which of its interfaces are in use. A clone is another one, all of whose interfaces
/// are free.
#[derive(Debug)]
pub struct Cmdqv {
    /// A bit for each interface. The first is the host's own.
    vintfs: Arc<Mutex<u64>>,
}

impl Default for Cmdqv {
    fn default() -> Self {
        Self { vintfs: Arc::new(Mutex::new(1)) }
    }
}

impl Clone for Cmdqv {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Cmdqv {
    /// Takes a free interface.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when there is none.
    pub(super) fn take(&self) -> Result<Taken> {
        let mut vintfs = self.vintfs.lock();
        let number = vintfs.trailing_ones();
        if number == VINTFS {
            return refuse!(ENOSPC, "all virtual interfaces are in use", u64::from(VINTFS - 1));
        }
        *vintfs |= 1 << number;
        Ok(Taken { number, of: Arc::clone(&self.vintfs) })
    }
}

/// The number of an interface; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) number: u32,
    of: Arc<Mutex<u64>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        *self.of.lock() &= !(1 << self.number);
    }
}
