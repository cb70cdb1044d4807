//! Giving back what many pages objects pinned.

use std::sync::Arc;

use ioasis_iommupt::Pa;

use super::{About, PageRange, Pins};
use crate::Account;
use crate::account::Rule;
use crate::hw::machine::Machine;
use crate::hw::phys::Phys;

/// Holds and charges that are given back together when it is dropped: areas that go at once are
/// often of one payer and one window.
#[derive(Debug, Default)]
pub(crate) struct GivenBack {
    machine: Option<Arc<Machine>>,
    charge: Option<(Rule, Account, u64)>,
    window: Option<(Pa, u64)>,
}

impl GivenBack {
    fn uncharge(&mut self) {
        if let (Some(machine), Some((rule, payer, pages))) = (&self.machine, self.charge.take()) {
            machine.ledger.uncharge(rule, &payer, pages);
        }
    }

    fn release(&mut self) {
        if let (Some(machine), Some((pa, times))) = (&self.machine, self.window.take()) {
            machine.phys.release_times(pa, times);
        }
    }

    #[inline]
    fn add_charge(&mut self, rule: Rule, payer: &Account, pages: u64) {
        if let Some((other, account, sum)) = &mut self.charge
            && *other == rule
            && account == payer
        {
            *sum += pages;
            return;
        }
        self.uncharge();
        self.charge = Some((rule, *payer, pages));
    }

    #[inline]
    fn add_window(&mut self, pa: Pa) {
        if let Some((other, times)) = &mut self.window
            && Phys::place(*other) == Phys::place(pa)
        {
            *times += 1;
            return;
        }
        self.release();
        self.window = Some((pa, 1));
    }
}

impl Drop for GivenBack {
    fn drop(&mut self) {
        self.uncharge();
        self.release();
    }
}

impl Pins {
    /// [`release`](Self::release) where `range` is all that is pinned, in one run and for one
    /// holder; whether it is.
    #[inline]
    pub(super) fn release_into(
        &mut self,
        about: &About,
        range: PageRange,
        back: &mut GivenBack,
    ) -> bool {
        let [span] = self.spans.as_slice() else { return false };
        let [run] = span.runs.as_slice() else { return false };
        if span.pages != range || span.holders != 1 {
            return false;
        }
        // An IOAS, and whatever is copied into it, is of one machine.
        if back.machine.is_none() {
            back.machine = Some(Arc::clone(&about.machine));
        }
        back.add_window(run.pa);
        if span.charged {
            let pages = range.count();
            back.add_charge(self.rule, &self.payer, pages);
            self.pinned -= pages;
        }
        self.spans.clear();
        true
    }
}
