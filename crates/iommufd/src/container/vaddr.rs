//! Mappings that change their process: UNMAP_DMA and MAP_DMA with VADDR.
//!
//! A live update takes the process address away, hands the container to a process that has the same
//! memory elsewhere, and gives the new address. Devices go on all the while: what is pinned stays
//! pinned.

use ioasis_iommupt::IovaRange;
use ioasis_uapi::Result;

use super::type1::Type1;
use crate::Client;
use crate::account::Rule;
use crate::pages::Origin;

impl Type1 {
    /// Takes the process address of every mapping in `range` away; returns the bytes.
    pub(super) fn invalidate_vaddr(&mut self, range: IovaRange) -> Result<u64> {
        let ranges = self.ioas().ranges_in(range);
        let twice = ranges.iter().find(|range| self.invalid.contains(&range.start().0));
        if let Some(twice) = twice {
            return refuse!(EINVAL, "the mapping has no process address already", twice.start().0);
        }
        self.invalid.extend(ranges.iter().map(|range| range.start().0));
        Ok(ranges.iter().fold(0, |bytes: u64, range| bytes.wrapping_add(range.span() + 1)))
    }

    /// Gives the mapping of exactly `range` the caller's address `vaddr`; the caller pays from now
    /// on.
    pub(super) fn set_vaddr(
        &mut self,
        client: &dyn Client,
        range: IovaRange,
        vaddr: u64,
    ) -> Result<()> {
        let Some(found) = self.ioas().first_area(range) else {
            return refuse!(ENOENT, "nothing is mapped at the IOVA", range.start().0);
        };
        let start = range.start().0;
        if found != range || !self.invalid.contains(&start) {
            return refuse!(
                EINVAL,
                "not exactly a mapping whose process address was taken away",
                start
            );
        }
        let pages = self.ioas().pages_of(range).expect("the area was found");
        let space = client.memory();
        if pages.space_key() != space.key() {
            let account = client.account();
            let rule = Rule::type1(&account);
            let pinned = pages.pinned();
            if pinned > 0 {
                self.machine().ledger.charge(rule, &account, pinned)?;
            }
            pages.change_payer(account, rule);
        }
        pages.change_origin(Origin { space, address: vaddr });
        self.invalid.remove(&start);
        Ok(())
    }
}
