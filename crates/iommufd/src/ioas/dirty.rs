//! Dirty pages: from the leaves of a page table to the bits of a client's bitmap.
//!
//! A bitmap is bytes, least significant bit first; bit 0 stands for the first byte of the range
//! asked for. Bits are set, never cleared.
//! Linux: `drivers/iommu/iommufd/{io_pagetable,iova_bitmap}.c`.

use ioasis_iommupt::{Dirty, Iova, IovaRange};
use ioasis_uapi::Result;

use crate::Client;
use crate::hw::domain::Domain;
use crate::ioas::Ioas;

/// A range of IOVAs and the bitmap that is to describe it.
#[derive(Clone, Copy, Debug)]
pub struct Bitmap {
    /// What bit 0 onward stands for.
    pub range: IovaRange,
    /// Bytes a bit stands for, as a power of two.
    pub page_lg2: u32,
    /// Client address of the first byte.
    pub data: u64,
}

/// IOVAs harvested at once: the dirty ranges of this much are kept here while no lock is held and
/// the client's memory is written.
const WINDOW: u64 = 1 << 30;

/// Bytes of the bitmap that are read, changed and written at once.
const CHUNK: usize = 4096;

impl Ioas {
    /// Reads what `domain` has dirty inside the bitmap's range and sets the bits. Like Linux, it
    /// ends silently where nothing is mapped or the bitmap cannot be written.
    pub(crate) fn read_dirty(
        &self,
        domain: &Domain,
        bitmap: Bitmap,
        dirty: Dirty,
        client: &dyn Client,
    ) {
        let Some(covered) = self.covered(bitmap.range) else { return };
        let mut ranges = Vec::new();
        let mut left = Some(covered);
        while let Some(rest) = left {
            let window_last = rest.start().0 | (WINDOW - 1);
            let last = Iova(window_last.min(rest.last().0));
            let window = IovaRange::closed(rest.start(), last).expect("a window is not empty");
            ranges.clear();
            domain.read_dirty(window, dirty, &mut |range| ranges.push(range));
            if bitmap.set(&ranges, client).is_err() {
                return;
            }
            left = last
                .0
                .checked_add(1)
                .and_then(|next| IovaRange::closed(Iova(next), rest.last()).ok());
        }
    }

    /// The part of `range` from its start on that areas cover without a gap.
    fn covered(&self, range: IovaRange) -> Option<IovaRange> {
        let mut last = None;
        // The error is the gap; what lies before it counts.
        let _gap = self.lock().cover(range, |_, part| {
            last = Some(part.last());
            Ok(())
        });
        last.and_then(|last| IovaRange::closed(range.start(), last).ok())
    }
}

impl Bitmap {
    /// Sets the bits of `ranges`, which ascend, as far as they lie in the bitmap's range.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn set(&self, ranges: &[IovaRange], client: &dyn Client) -> Result<()> {
        let mut chunk = Chunk { base: 0, first: CHUNK, last: 0, bits: [0; CHUNK] };
        for range in ranges.iter().filter_map(|range| range.intersect(self.range)) {
            let bit = |iova: Iova| (iova.0 - self.range.start().0) >> self.page_lg2;
            let (mut first, last) = (bit(range.start()), bit(range.last()));
            loop {
                let base = first / 8 / CHUNK as u64 * CHUNK as u64;
                if base != chunk.base {
                    chunk.flush(self.data, client)?;
                    chunk.base = base;
                }
                let end = last.min((base + CHUNK as u64) * 8 - 1);
                chunk.set(first, end);
                if end == last {
                    break;
                }
                first = end + 1;
            }
        }
        chunk.flush(self.data, client)
    }
}

/// Part of a bitmap, and which of its bytes have bits.
struct Chunk {
    /// Byte of the bitmap it begins at.
    base: u64,
    first: usize,
    last: usize,
    bits: [u8; CHUNK],
}

impl Chunk {
    /// Sets the bits from `first` to `last`, which lie in this chunk.
    fn set(&mut self, first: u64, last: u64) {
        let place = |bit: u64| {
            let bit = usize::try_from(bit - self.base * 8).expect("a bit of this chunk");
            (bit / 8, bit % 8)
        };
        let ((first, low), (last, high)) = (place(first), place(last));
        let (head, tail) = (0xff_u8 << low, 0xff_u8 >> (7 - high));
        if first == last {
            self.bits[first] |= head & tail;
        } else {
            self.bits[first] |= head;
            self.bits[first + 1..last].fill(0xff);
            self.bits[last] |= tail;
        }
        self.first = self.first.min(first);
        self.last = self.last.max(last);
    }

    /// Adds the bits to the client's, touching no other byte.
    fn flush(&mut self, data: u64, client: &dyn Client) -> Result<()> {
        if self.first > self.last {
            return Ok(());
        }
        let ours = &mut self.bits[self.first..=self.last];
        let address = data.wrapping_add(self.base).wrapping_add(self.first as u64);
        let mut theirs = [0; CHUNK];
        let theirs = &mut theirs[..ours.len()];
        client.read(address, theirs)?;
        theirs.iter_mut().zip(&*ours).for_each(|(theirs, ours)| *theirs |= ours);
        client.write(address, theirs)?;
        ours.fill(0);
        (self.first, self.last) = (CHUNK, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::{BASE, TestClient};
    use proptest::prelude::*;

    fn bits(ranges: &[(u64, u64)], page_lg2: u32, at: u64) -> Vec<u8> {
        let client = TestClient::new();
        let range = IovaRange::new(Iova(0x10_0000), 64 << 20).unwrap();
        let list: Vec<IovaRange> = ranges
            .iter()
            .map(|&(start, last)| IovaRange::closed(Iova(start), Iova(last)).unwrap())
            .collect();
        Bitmap { range, page_lg2, data: BASE + at }.set(&list, &client).unwrap();
        let mut seen = vec![0; 8192];
        client.memory.read(BASE + at, &mut seen).unwrap();
        seen
    }

    #[test]
    fn bit_zero_is_the_start_of_the_range() {
        let seen = bits(&[(0x10_0000, 0x10_0fff), (0x10_9000, 0x10_bfff)], 12, 3);
        assert_eq!(seen[..3], [0b0000_0001, 0b0000_1110, 0]);
    }

    #[test]
    fn a_leaf_that_begins_before_the_range_sets_only_bits_of_the_range() {
        assert_eq!(bits(&[(0, 0x10_1fff)], 12, 0)[..2], [0b11, 0]);
    }

    proptest! {
        #[test]
        fn bits_agree_with_a_list_of_pages(
            starts in proptest::collection::btree_set(0_u64..16384, 0..40), long in 0_u64..9000, at in 0_u64..70,
        ) {
            // Every other start begins a range of one page, one of them a long range.
            let mut ranges: Vec<(u64, u64)> = Vec::new();
            for (index, start) in starts.iter().enumerate() {
                let length = if index == 3 { long } else { 0 };
                let last = (start + length).min(16383);
                if ranges.last().is_none_or(|&(_, before)| before < *start) {
                    ranges.push((*start, last));
                }
            }
            let mut model = vec![0_u8; 8192];
            for &(start, last) in &ranges {
                (start..=last).for_each(|page| model[usize::try_from(page / 8).unwrap()] |= 1 << (page % 8));
            }
            let bytes: Vec<(u64, u64)> =
                ranges.iter().map(|&(start, last)| (0x10_0000 + start * 4096, 0x10_0000 + last * 4096 + 4095)).collect();
            prop_assert_eq!(bits(&bytes, 12, at), model);
        }
    }
}
