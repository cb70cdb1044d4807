//! What a device that was opened through its own node has attached, as its file knows it. Linux:
//! `drivers/vfio/iommufd.c`.
//!
//! The file keeps two accounts, one of the device itself and one of its PASIDs, and neither knows
//! what the other attached: PASID 0 is the device itself and yet another account.

use std::collections::BTreeSet;

use ioasis_iommufd::Bound;
use ioasis_uapi::{Errno, Error, Result};

/// A bound device and what calls on its file attached.
#[derive(Debug)]
pub(crate) struct Attached {
    bound: Bound,
    /// Without a PASID: `iommufd_attached`.
    itself: bool,
    /// With one: `pasids`.
    pasids: BTreeSet<u32>,
}

impl Attached {
    pub(crate) fn new(bound: Bound) -> Self {
        Self { bound, itself: false, pasids: BTreeSet::new() }
    }

    pub(crate) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// Attaches the device or a PASID, or moves what was attached in the same way; returns the id
    /// of the HWPT.
    ///
    /// # Errors
    ///
    /// `ENOSPC` for a PASID of 32 bits, and what attaching answers.
    pub(crate) fn attach(&mut self, pt_id: u32, pasid: Option<u32>) -> Result<u32> {
        let Some(pasid) = pasid else {
            let id =
                if self.itself { self.bound.replace(pt_id)? } else { self.bound.attach(pt_id)? };
            self.itself = true;
            return Ok(id);
        };
        if self.pasids.contains(&pasid) {
            return self.bound.replace_pasid(pasid, pt_id);
        }
        // ida_alloc_range
        if i32::try_from(pasid).is_err() {
            return Err(Error::at(Errno::ENOSPC, "a PASID has 31 bits at most", pasid.into()));
        }
        let id = self.bound.attach_pasid(pasid, pt_id)?;
        self.pasids.insert(pasid);
        Ok(id)
    }

    /// Detaches what was attached in the same way, if anything was.
    pub(crate) fn detach(&mut self, pasid: Option<u32>) {
        match pasid {
            None if self.itself => {
                self.bound.detach();
                self.itself = false;
            }
            Some(pasid) if self.pasids.remove(&pasid) => self.bound.detach_pasid(pasid),
            _ => {}
        }
    }
}
