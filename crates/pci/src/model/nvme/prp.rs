//! Physical region pages: where a command's data lies (NVMe 1.4, 4.3).
//!
//! PRP1 may begin anywhere in its page, at a multiple of 4. What does not fit there is at PRP2: one more page, or
//! the address of a list of pages. The last entry of a list page that does not hold all the rest is the address of
//! the next list page.

use super::status::Status;
use crate::bus::{Bus, Segment};

/// Bytes of a PRP entry.
const ENTRY: u64 = 8;

/// Appends the `length` bytes that `prp1` and `prp2` describe, neighbours merged.
///
/// The number of list pages is bounded by `length`: every one but the first holds an entry for data.
///
/// # Errors
///
/// `PRP Offset Invalid` for an entry with an offset it must not have, `Data Transfer Error` for a list that could
/// not be read.
pub(super) fn segments(
    bus: &Bus<'_>,
    page_size: u64,
    [prp1, prp2]: [u64; 2],
    length: u64,
    out: &mut Vec<Segment>,
) -> Result<(), Status> {
    if !prp1.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let first = length.min(page_size - prp1 % page_size);
    push(out, prp1, first);
    let rest = length - first;
    if rest == 0 {
        return Ok(());
    }
    if rest <= page_size {
        return page(page_size, prp2, rest, out);
    }
    list(bus, page_size, prp2, rest, out)
}

fn list(
    bus: &Bus<'_>,
    page_size: u64,
    start: u64,
    length: u64,
    out: &mut Vec<Segment>,
) -> Result<(), Status> {
    if !start.is_multiple_of(ENTRY) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let (mut next, mut rest) = (start, length);
    let mut bytes = Vec::new();
    loop {
        let room = (page_size - next % page_size) / ENTRY;
        let wanted = rest.div_ceil(page_size);
        let entries = room.min(wanted);
        bytes.resize(usize::try_from(entries * ENTRY).expect("at most a page"), 0);
        let here = [Segment { iova: next, length: bytes.len() }];
        bus.read(&here, &mut bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let (words, _) = bytes.as_chunks::<8>();
        let (pages, link) = match words.split_last() {
            Some((last, pages)) if wanted > room => (pages, Some(u64::from_le_bytes(*last))),
            _ => (words, None),
        };
        for word in pages {
            let piece = rest.min(page_size);
            page(page_size, u64::from_le_bytes(*word), piece, out)?;
            rest -= piece;
        }
        match link {
            Some(link) if link.is_multiple_of(page_size) => next = link,
            Some(_) => return Err(Status::PRP_OFFSET_INVALID),
            None => return Ok(()),
        }
    }
}

/// A page after the first: it has no offset.
fn page(page_size: u64, address: u64, length: u64, out: &mut Vec<Segment>) -> Result<(), Status> {
    if !address.is_multiple_of(page_size) {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    push(out, address, length);
    Ok(())
}

fn push(out: &mut Vec<Segment>, iova: u64, length: u64) {
    let length = usize::try_from(length).expect("at most a page");
    if let Some(last) = out.last_mut()
        && last.iova.checked_add(last.length as u64) == Some(iova)
    {
        last.length += length;
        return;
    }
    out.push(Segment { iova, length });
}
