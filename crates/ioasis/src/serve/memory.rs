//! The client's memory as a served device reaches it: ranges that came with a descriptor are mapped
//! here, the others are asked for by messages.
//!
//! Invariant: when a range was taken back, nothing here reaches its mapping any more. Copies hold
//! `Memory::ranges` for reading, which whoever takes a range back waits for. A message is asked for
//! without the lock: what comes too late for its range the client refuses.
//!
//! Pieces that follow each other are asked for as one, and the messages of a transfer are on their way together: a transfer
//! of many pieces takes the time of few messages. Of one that is refused, pieces behind the first fault may have been moved.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use ioasis_pci::{Dma, DmaFault, Segment};
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::RwLock;
use ioasis_vfio_user::message::DmaAccess;
use ioasis_vfio_user::{Answer, DmaMap, DmaUnmap, Errno, Error, Peer};

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

/// A piece of a transfer that is to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    iova: u64,
    /// Where in the buffer it lies.
    at: std::ops::Range<usize>,
    /// The first address of its range.
    range: u64,
}

impl Piece {
    /// Takes `next` in, if it follows in memory, in the buffer and in the same range: whoever maps two ranges side by side
    /// may refuse what reaches from one into the other.
    fn takes(&mut self, next: &Self) -> bool {
        let follows = self.at.end == next.at.start
            && self.range == next.range
            && self.iova.checked_add(self.at.len() as u64) == Some(next.iova);
        if follows {
            self.at.end = next.at.end;
        }
        follows
    }
}

/// Those of `pieces` that follow each other as one.
fn joined(pieces: &[Piece]) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        if !joined.last_mut().is_some_and(|last| last.takes(piece)) {
            joined.push(piece.clone());
        }
    }
    joined
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

    /// Has `copy` move each piece of `segments` that lies in a range that is mapped here; the others are yet to be asked
    /// for. With them comes the address at which memory ended before the segments did.
    fn each(
        &self,
        segments: &[Segment],
        need: DmaAccess,
        copy: &mut dyn FnMut(&Mapping, u64, std::ops::Range<usize>) -> bool,
    ) -> (Vec<Piece>, Result<(), DmaFault>) {
        let (mut asked, mut at) = (Vec::new(), 0);
        for segment in segments {
            let (mut iova, end) = (segment.iova, at + segment.length);
            while at < end {
                let ranges = self.ranges.read();
                let found = ranges.range(..=iova).next_back();
                let found = found.filter(|(start, range)| {
                    iova - **start < range.size && range.access.contains(need)
                });
                let Some((&start, range)) = found else { return (asked, Err(DmaFault { iova })) };
                let inside = iova - start;
                let left = usize::try_from(range.size - inside).unwrap_or(usize::MAX);
                let piece = at..end.min(at.saturating_add(left));
                let length = piece.len();
                match &range.mapping {
                    Some(mapping) if copy(mapping, inside, piece.clone()) => {}
                    Some(_) => return (asked, Err(DmaFault { iova })),
                    None => asked.push(Piece { iova, at: piece, range: start }),
                }
                at += length;
                iova = iova.wrapping_add(length as u64);
            }
        }
        (asked, Ok(()))
    }
}

/// Asks for `pieces`, together and, where one of them is refused, one by one to learn which.
fn ask(
    pieces: &[Piece],
    mut ask: impl FnMut(&[Piece]) -> Result<(), (usize, Error)>,
) -> Result<(), DmaFault> {
    if pieces.is_empty() {
        return Ok(());
    }
    let Err((_, error)) = ask(&joined(pieces)) else { return Ok(()) };
    if error.is_final() {
        return Err(DmaFault { iova: pieces[0].iova });
    }
    pieces.iter().try_for_each(|piece| {
        ask(std::slice::from_ref(piece)).map_err(|_| DmaFault { iova: piece.iova })
    })
}

/// The same error in the words of the messages.
pub(super) fn errno(errno: ioasis_uapi::Errno) -> Errno {
    Errno::from_raw_os_error(errno.raw())
}

impl Dma for Memory {
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault> {
        let (asked, ended) = self.each(segments, DmaAccess::READ, &mut |mapping, offset, piece| {
            mapping.read(offset, &mut buf[piece]).is_ok()
        });
        ask(&asked, |pieces| {
            let (mut rest, mut begin) = (&mut buf[..], 0);
            let cut = pieces.iter().map(|piece| {
                let (_, from) = std::mem::take(&mut rest).split_at_mut(piece.at.start - begin);
                let (bytes, after) = from.split_at_mut(piece.at.len());
                (rest, begin) = (after, piece.at.end);
                (piece.iova, bytes)
            });
            self.peer.dma_read_each(&mut cut.collect::<Vec<_>>())
        })?;
        ended
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        let (asked, ended) =
            self.each(segments, DmaAccess::WRITE, &mut |mapping, offset, piece| {
                mapping.write(offset, &buf[piece]).is_ok()
            });
        ask(&asked, |pieces| {
            let cut = pieces.iter().map(|piece| (piece.iova, &buf[piece.at.clone()]));
            self.peer.dma_write_each(&cut.collect::<Vec<_>>())
        })?;
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(iova: u64, at: std::ops::Range<usize>, range: u64) -> Piece {
        Piece { iova, at, range }
    }

    #[test]
    fn pieces_are_joined_where_memory_buffer_and_range_go_on() {
        let pieces = [
            piece(0x1000, 0..16, 0),
            piece(0x1010, 16..32, 0),
            // Elsewhere in memory, elsewhere in the buffer, another range, the end of all addresses.
            piece(0x3000, 32..48, 0),
            piece(0x3010, 64..80, 0),
            piece(0x3020, 80..96, 0x3020),
            piece(u64::MAX - 15, 96..112, 0x3020),
            piece(0, 112..128, 0x3020),
        ];
        let mut expected = pieces[1..].to_vec();
        expected[0] = piece(0x1000, 0..32, 0);
        assert_eq!(joined(&pieces), expected);
    }

    #[test]
    fn a_refusal_of_joined_pieces_is_found_in_one_of_them() {
        let pieces = [piece(0x1000, 0..16, 0), piece(0x1010, 16..32, 0), piece(0x1020, 32..48, 0)];
        let refuse = Error::Refused {
            command: ioasis_vfio_user::message::Command::DMA_WRITE,
            errno: Errno::FAULT,
        };
        let mut calls = Vec::new();
        let fault = ask(&pieces, |pieces| {
            calls.push(pieces.len());
            let bad =
                |piece: &Piece| (piece.iova..piece.iova + piece.at.len() as u64).contains(&0x1010);
            match pieces.iter().position(bad) {
                Some(index) => Err((index, refuse.clone())),
                None => Ok(()),
            }
        });
        assert_eq!(fault, Err(DmaFault { iova: 0x1010 }));
        assert_eq!(calls, [1, 1, 1]);
        let mut calls = 0;
        let closed = ask(&pieces, |_| {
            calls += 1;
            Err((0, Error::Closed))
        });
        assert!(closed.is_err() && calls == 1, "nobody is asked twice who is gone");
    }
}
