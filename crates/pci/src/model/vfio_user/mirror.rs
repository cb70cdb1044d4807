//! Pages that program and server share: two pieces of memory that are kept the same, word by word.
//!
//! A program maps pages of the run's own device file, and the server's are in a file of its own, so
//! a store to one is carried to the other by the device's thread, when it next looks. As with every
//! page of memory that a model polls, of two stores to a word between two looks the other side sees
//! the last.

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

/// Bytes of a word.
const WORD: usize = 4;

/// A part of a BAR.
#[derive(Debug)]
pub(super) struct Mirror {
    pub(super) bar: usize,
    /// Where in the BAR it begins.
    offset: u64,
    theirs: Mapping,
    /// What both held at the last look.
    seen: Vec<u8>,
    now: Vec<u8>,
}

/// Which side's memory was out of reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The program's: the device is dead until it is reset.
    Ours(ioasis_uapi::Error),
    /// The server's: it cut its file short.
    Theirs,
}

impl Mirror {
    pub(super) fn new(bar: usize, offset: u64, theirs: Mapping) -> Self {
        let bytes = vec![0; theirs.len()];
        Self { bar, offset, theirs, seen: bytes.clone(), now: bytes }
    }

    /// Shows the program what the server has.
    pub(super) fn begin(&mut self, ours: &Mapping) -> std::result::Result<(), Lost> {
        self.theirs.read(0, &mut self.seen).map_err(|_| Lost::Theirs)?;
        ours.write(self.offset, &self.seen).map_err(Lost::Ours)
    }

    /// Carries what changed from one side to the other; whether anything did. Where both changed a
    /// word, the program's store is the later one.
    pub(super) fn carry(&mut self, ours: &Mapping) -> std::result::Result<bool, Lost> {
        ours.read(self.offset, &mut self.now).map_err(Lost::Ours)?;
        let mut carried =
            self.each_change(|theirs, at, word| theirs.store_u32(at, word), |at, _| at);
        let mut worked = carried.as_ref().is_ok_and(|&changed| changed);
        carried.as_mut().map_err(|_| Lost::Theirs).map(|_| ())?;
        self.theirs.read(0, &mut self.now).map_err(|_| Lost::Theirs)?;
        let offset = self.offset;
        let shown = self.each_change(|_, at, word| ours.store_u32(at, word), |at, _| at + offset);
        worked |= shown.map_err(Lost::Ours)?;
        Ok(worked)
    }

    /// Does `store` with each word of `now` that is not as seen, at the place that `place` makes of
    /// its offset, and notes it.
    fn each_change(
        &mut self,
        store: impl Fn(&Mapping, u64, u32) -> Result<()>,
        place: impl Fn(u64, u32) -> u64,
    ) -> Result<bool> {
        if self.now == self.seen {
            return Ok(false);
        }
        let words = self.seen.chunks_exact_mut(WORD).zip(self.now.chunks_exact(WORD));
        for (at, (seen, now)) in (0..).step_by(WORD).zip(words) {
            if seen != now {
                let word = u32::from_le_bytes(now.try_into().expect("four bytes"));
                store(&self.theirs, place(at, word), word)?;
                seen.copy_from_slice(now);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_on_either_side_is_carried_to_the_other() {
        let ours = Mapping::anonymous(0x2000).expect("memory");
        let theirs = Mapping::anonymous(0x1000).expect("memory");
        theirs.store_u32(8, 7).expect("stored");
        let mut mirror = Mirror::new(0, 0x1000, theirs);
        mirror.begin(&ours).expect("both are there");
        assert_eq!(ours.load_u32(0x1008), Ok(7));
        assert_eq!(mirror.carry(&ours), Ok(false));
        ours.store_u32(0x1004, 5).expect("stored");
        mirror.theirs.store_u32(12, 9).expect("stored");
        assert_eq!(mirror.carry(&ours), Ok(true));
        assert_eq!((mirror.theirs.load_u32(4), ours.load_u32(0x100c)), (Ok(5), Ok(9)));
        assert_eq!(mirror.carry(&ours), Ok(false));
        ours.store_u32(0x1004, 1).expect("stored");
        mirror.theirs.store_u32(4, 2).expect("stored");
        assert_eq!(mirror.carry(&ours), Ok(true));
        assert_eq!((mirror.theirs.load_u32(4), ours.load_u32(0x1004)), (Ok(1), Ok(1)));
    }
}
