//! The client's memory as a served device reaches it: ranges that came with a descriptor are mapped
//! here, the others are asked for by messages.
//!
//! Invariant: when a range was taken back, nothing here reaches its mapping any more. Copies hold
//! `Memory::ranges` for reading, which whoever takes a range back waits for. A message is asked for
//! without the lock: what comes too late for its range the client refuses.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use ioasis_pci::{Dma, DmaFault, Segment};
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::RwLock;
use ioasis_vfio_user::message::DmaAccess;
use ioasis_vfio_user::{Answer, DmaMap, DmaUnmap, Errno, Peer};

/// Ranges at a time: what this side says in `max_dma_maps`.
const MOST: usize = 0xffff;

/// A range of the client's memory.
#[derive(Debug)]
struct Range {
    size: u64,
    access: DmaAccess,
    mapping: Option<Arc<Mapping>>,
}

/// What the client lets its device reach.
#[derive(Debug)]
pub(super) struct Memory {
    peer: Peer,
    /// By the first address.
    ranges: RwLock<BTreeMap<u64, Range>>,
}

/// Where a piece of a transfer lies.
enum Place {
    Mapped,
    Asked,
}

impl Memory {
    pub(super) fn new(peer: Peer) -> Self {
        Self { peer, ranges: RwLock::default() }
    }

    pub(super) fn map(&self, map: DmaMap) -> Answer<()> {
        let DmaMap { address, size, access, file } = map;
        let mut ranges = self.ranges.write();
        let last = address + (size - 1);
        let before = ranges.range(..=last).next_back();
        if before.is_some_and(|(&start, range)| start + (range.size - 1) >= address) {
            return Err(Errno::EXIST);
        }
        if ranges.len() >= MOST {
            return Err(Errno::NOSPC);
        }
        let mapping = match file {
            None => None,
            Some((file, offset)) => {
                let writes = access.contains(DmaAccess::WRITE);
                let access = if writes { Access::ReadWrite } else { Access::Read };
                let length = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
                let mapping = Mapping::file(file.as_fd(), offset, length, access);
                Some(Arc::new(mapping.map_err(|error| errno(error.errno))?))
            }
        };
        ranges.insert(address, Range { size, access, mapping });
        Ok(())
    }

    pub(super) fn unmap(&self, unmap: DmaUnmap) -> Answer<()> {
        let mut ranges = self.ranges.write();
        match unmap {
            DmaUnmap::All => ranges.clear(),
            DmaUnmap::Range { address, size } => {
                ranges.get(&address).filter(|range| range.size == size).ok_or(Errno::NOENT)?;
                ranges.remove(&address);
            }
        }
        Ok(())
    }

    /// Does `step` with each piece of `segments` that lies in one range; `copy` moves those that
    /// are mapped here, `ask` the others. Both are told where in the buffer the piece lies.
    fn each(
        &self,
        segments: &[Segment],
        need: DmaAccess,
        copy: &mut dyn FnMut(&Mapping, u64, std::ops::Range<usize>) -> bool,
        ask: &mut dyn FnMut(&Peer, u64, std::ops::Range<usize>) -> bool,
    ) -> Result<(), DmaFault> {
        let mut at = 0;
        for segment in segments {
            let (mut iova, end) = (segment.iova, at + segment.length);
            while at < end {
                let fault = DmaFault { iova };
                let ranges = self.ranges.read();
                let (&start, range) = ranges.range(..=iova).next_back().ok_or(fault)?;
                let inside = iova - start;
                if inside >= range.size || !range.access.contains(need) {
                    return Err(fault);
                }
                let left = usize::try_from(range.size - inside).unwrap_or(usize::MAX);
                let piece = at..end.min(at.saturating_add(left));
                let length = piece.len();
                let place = match &range.mapping {
                    Some(mapping) if copy(mapping, inside, piece.clone()) => Place::Mapped,
                    Some(_) => return Err(fault),
                    None => Place::Asked,
                };
                drop(ranges);
                if matches!(place, Place::Asked) && !ask(&self.peer, iova, piece) {
                    return Err(fault);
                }
                at += length;
                iova = iova.wrapping_add(length as u64);
            }
        }
        Ok(())
    }
}

/// The same error in the words of the messages.
pub(super) fn errno(errno: ioasis_uapi::Errno) -> Errno {
    Errno::from_raw_os_error(errno.raw())
}

impl Dma for Memory {
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault> {
        let buf = std::cell::RefCell::new(buf);
        self.each(
            segments,
            DmaAccess::READ,
            &mut |mapping, offset, piece| {
                mapping.read(offset, &mut buf.borrow_mut()[piece]).is_ok()
            },
            &mut |peer, address, piece| {
                peer.dma_read(address, &mut buf.borrow_mut()[piece]).is_ok()
            },
        )
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        self.each(
            segments,
            DmaAccess::WRITE,
            &mut |mapping, offset, piece| mapping.write(offset, &buf[piece]).is_ok(),
            &mut |peer, address, piece| peer.dma_write(address, &buf[piece]).is_ok(),
        )
    }
}
