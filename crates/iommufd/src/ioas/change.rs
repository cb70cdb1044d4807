//! Moving the charge for mapped files to another process: IOAS_CHANGE_PROCESS. Linux:
//! `iommufd_ioas_change_process`.

use std::sync::Arc;

use ioasis_iommupt::IovaRange;
use ioasis_uapi::Result;

use super::Ioas;
use crate::account::Rule;
use crate::hw::machine::Machine;
use crate::object::Held;
use crate::pages::Pages;
use crate::{Account, Kind};

impl Ioas {
    /// Makes `account` pay for the pages of all of `ioases`, which are in the order of their ids:
    /// all or none.
    pub(crate) fn change_process(
        machine: &Machine,
        ioases: &[Held<Self>],
        account: Account,
    ) -> Result<()> {
        let mut spaces: Vec<_> = ioases.iter().map(|ioas| ioas.lock()).collect();
        let mut areas = spaces.iter().flat_map(|space| space.areas.iter());
        if let Some(area) = areas.find(|area| area.pages.kind() != Kind::File) {
            return refuse!(
                EINVAL,
                "memory that is no file cannot change its process",
                area.range.start().0
            );
        }
        drop(areas);
        let mut all: Vec<Arc<Pages>> = Vec::new();
        for space in &mut spaces {
            space.areas.each_mut(IovaRange::ALL, |area| all.push(area.pages.share()));
        }
        all.sort_unstable_by_key(|pages| Arc::as_ptr(pages).addr());
        all.dedup_by(|one, other| Arc::ptr_eq(one, other));
        // What the same process, and where it counts the same user, pays already is not charged
        // once more on the way. In Linux: need_charge_update.
        // DIFFERS: pages that nobody's limit counts move to the new process's VmPin too; Linux
        // takes them out of it when they are unmapped, and never puts them in.
        all.retain(|pages| {
            let (payer, rule) = pages.payer();
            payer.pid != account.pid || rule == Rule::User && payer.uid != account.uid
        });

        let mut charged = [(Rule::User, 0), (Rule::Process, 0), (Rule::None, 0)];
        for pages in &all {
            let rule = pages.payer().1;
            let sum = charged.iter_mut().find(|(other, _)| *other == rule);
            sum.expect("a context charges under these rules").1 += pages.pinned();
        }
        for (index, &(rule, pages)) in
            charged.iter().enumerate().filter(|(_, (_, pages))| *pages > 0)
        {
            if let Err(error) = machine.ledger.charge(rule, &account, pages) {
                let done = charged[..index].iter().filter(|(_, pages)| *pages > 0);
                done.for_each(|&(rule, pages)| machine.ledger.uncharge(rule, &account, pages));
                return Err(error);
            }
        }
        for pages in &all {
            let rule = pages.payer().1;
            pages.change_payer(account, rule);
        }
        Ok(())
    }
}
