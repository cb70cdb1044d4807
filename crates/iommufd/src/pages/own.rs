//! The pages of an area: its own, until somebody shares them.

use std::ops::Deref;
use std::sync::Arc;

use ioasis_iommupt::Run;
use ioasis_uapi::Result;

use super::{GivenBack, PageRange, Pages};

/// The pages object behind an area. Most are never shared, and lie in the area without an
/// allocation: then whoever may change the area needs no lock.
#[derive(Debug)]
pub(crate) enum AreaPages {
    /// Of this area alone.
    Own(Pages),
    /// Other areas, a call in progress, or a test may have them too.
    Shared(Arc<Pages>),
    /// On the way from one to the other.
    Moving,
}

impl AreaPages {
    /// The pages for another area.
    pub(crate) fn share(&mut self) -> Arc<Pages> {
        if let Self::Own(_) = self
            && let Self::Own(pages) = std::mem::replace(self, Self::Moving)
        {
            *self = Self::Shared(Arc::new(pages));
        }
        match self {
            Self::Shared(pages) => Arc::clone(pages),
            Self::Own(_) | Self::Moving => unreachable!("they are shared now"),
        }
    }
}

/// Pages that are about to become an area's, or are.
pub(crate) trait Fill: Deref<Target = Pages> + Into<AreaPages> {
    /// [`Pages::hold_runs`] for the domains.
    ///
    /// # Errors
    ///
    /// As that.
    fn fill(&mut self, start_byte: u64, length: u64, runs: &mut Vec<Run>) -> Result<()>;

    /// [`Pages::release`] of what the domains hold.
    fn unfill(&mut self, range: PageRange);
}

impl Fill for AreaPages {
    #[inline]
    fn fill(&mut self, start_byte: u64, length: u64, runs: &mut Vec<Run>) -> Result<()> {
        match self {
            Self::Own(Pages { about, pins, .. }) => {
                pins.get_mut().hold_runs(about, start_byte, length, runs)
            }
            shared => shared.hold_runs(start_byte, length, runs),
        }
    }

    #[inline]
    fn unfill(&mut self, range: PageRange) {
        match self {
            Self::Own(Pages { about, pins, .. }) => pins.get_mut().release(about, range),
            shared => shared.release(range),
        }
    }
}

impl AreaPages {
    /// [`Pages::release`] of what the domains hold, where more areas go: `back` takes what is given
    /// back.
    #[inline]
    pub(crate) fn unfill_into(&mut self, range: PageRange, back: &mut GivenBack) {
        if let Self::Own(Pages { about, pins, .. }) = self
            && pins.get_mut().release_into(about, range, back)
        {
            return;
        }
        self.unfill(range);
    }
}

impl Fill for Arc<Pages> {
    #[inline]
    fn fill(&mut self, start_byte: u64, length: u64, runs: &mut Vec<Run>) -> Result<()> {
        self.hold_runs(start_byte, length, runs)
    }

    #[inline]
    fn unfill(&mut self, range: PageRange) {
        self.release(range);
    }
}

impl From<Arc<Pages>> for AreaPages {
    #[inline]
    fn from(pages: Arc<Pages>) -> Self {
        Self::Shared(pages)
    }
}

impl Deref for AreaPages {
    type Target = Pages;

    #[inline]
    fn deref(&self) -> &Pages {
        match self {
            Self::Own(pages) => pages,
            Self::Shared(pages) => pages,
            Self::Moving => unreachable!("nobody looks while they move"),
        }
    }
}
