//! The bytes of a migration stream: headers, and the state behind the last of them.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `ioasisMG` |
//! | 8..12 | 1, the version of this layout |
//! | 12..16 | the version of the model's state |
//! | 16..32 | the name of the model, zeroes behind it |
//! | 32..36 | 1: an announcement, nothing follows; 2: the state follows |
//! | 36..40 | CRC-32 of the header with zeroes here, and of the state |
//! | 40..48 | bytes of the state |
//!
//! A stream is any number of announcements, which a device that runs sends ahead, and one state.

use ioasis_uapi::{Errno, Error, Result};

use super::state::{Reader, bad};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 48;

/// Bytes of the longest stream that is taken.
pub const STREAM_MAX: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"ioasisMG";
const LAYOUT: u32 = 1;
const NAME_BYTES: usize = 16;
const CHECKSUM: std::ops::Range<usize> = 36..40;

const ANNOUNCEMENT: u32 = 1;
const STATE: u32 = 2;

/// Whose state a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) name: &'static str,
    pub(crate) version: u32,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    version: u32,
    kind: u32,
    checksum: u32,
    length: usize,
}

impl Origin {
    fn name_bytes(self) -> [u8; NAME_BYTES] {
        let mut name = [0; NAME_BYTES];
        name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        name
    }

    fn frame(self, kind: u32, state: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + state.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&LAYOUT.to_le_bytes());
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&self.name_bytes());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(state.len() as u64).to_le_bytes());
        bytes.extend_from_slice(state);
        let checksum = crc32fast::hash(&bytes);
        bytes[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// What is sent ahead.
    pub(crate) fn announcement(self) -> Vec<u8> {
        self.frame(ANNOUNCEMENT, &[])
    }

    /// The state.
    ///
    /// # Panics
    ///
    /// If it is longer than a stream may be.
    pub(crate) fn state(self, state: &[u8]) -> Vec<u8> {
        assert!(state.len() <= STREAM_MAX / 2, "a state fits into a stream");
        self.frame(STATE, state)
    }

    /// Looks at the first header of a stream: is it one that this device could take?
    ///
    /// # Errors
    ///
    /// `EINVAL` when it is not.
    pub(crate) fn check(self, stream: &[u8]) -> Result<()> {
        let Some((header, _)) = stream.split_at_checked(HEADER_BYTES) else { return Ok(()) };
        let found = self.header(header)?;
        if found.kind == ANNOUNCEMENT { check_sum(header, &[], found) } else { Ok(()) }
    }

    /// The state that a whole stream carries, and its version.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a stream of something else, a damaged one, and one that is not whole.
    pub(crate) fn open(self, stream: &[u8]) -> Result<(u32, &[u8])> {
        let mut rest = stream;
        loop {
            let Some((header, after)) = rest.split_at_checked(HEADER_BYTES) else {
                return bad("the stream ends before its state", stream.len() as u64);
            };
            let found = self.header(header)?;
            let Some((state, after)) = after.split_at_checked(found.length) else {
                return bad("the stream ends inside its state", stream.len() as u64);
            };
            check_sum(header, state, found)?;
            match (found.kind, after) {
                (ANNOUNCEMENT, after) => rest = after,
                (_, []) => return Ok((found.version, state)),
                (_, after) => return bad("something follows the state", after.len() as u64),
            }
        }
    }

    fn header(self, bytes: &[u8]) -> Result<Header> {
        let mut fields = Reader::new(bytes);
        if fields.bytes(MAGIC.len())? != MAGIC {
            return Err(Error::new(Errno::EINVAL, "the stream is none of a device of ours"));
        }
        let layout = fields.u32()?;
        if layout != LAYOUT {
            return bad("the stream has another layout", layout);
        }
        let version = fields.u32()?;
        if fields.bytes(NAME_BYTES)? != self.name_bytes() {
            return Err(Error::new(Errno::EINVAL, "the stream is of another model"));
        }
        if !(1..=self.version).contains(&version) {
            return bad("the state has a version that this model does not know", version);
        }
        let (kind, checksum, length) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let most = match kind {
            ANNOUNCEMENT => 0,
            STATE => STREAM_MAX,
            other => return bad("a header announces nothing and has no state", other),
        };
        match usize::try_from(length) {
            Ok(length) if length <= most => Ok(Header { version, kind, checksum, length }),
            _ => bad("the state is too long", length),
        }
    }
}

fn check_sum(header: &[u8], state: &[u8], found: Header) -> Result<()> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..CHECKSUM.start]);
    hasher.update(&[0; 4]);
    hasher.update(&header[CHECKSUM.end..]);
    hasher.update(state);
    let counted = hasher.finalize();
    if counted == found.checksum { Ok(()) } else { bad("the checksum is another", counted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { name: "testdev", version: 3 };

    fn stream() -> Vec<u8> {
        [ORIGIN.announcement(), ORIGIN.announcement(), ORIGIN.state(b"what it is like")].concat()
    }

    #[test]
    fn a_state_comes_out_as_it_went_in() {
        assert_eq!(ORIGIN.open(&stream()), Ok((3, b"what it is like".as_slice())));
        assert_eq!(ORIGIN.announcement().len(), HEADER_BYTES);
    }

    #[test]
    fn what_an_older_version_saved_is_opened() {
        let older = Origin { version: 1, ..ORIGIN };
        assert_eq!(ORIGIN.open(&older.state(b"old")), Ok((1, b"old".as_slice())));
        assert!(older.open(&ORIGIN.state(b"new")).is_err());
    }

    #[test]
    fn no_part_of_a_stream_is_taken_for_all_of_it() {
        let stream = stream();
        for end in 0..stream.len() {
            assert!(ORIGIN.open(&stream[..end]).is_err(), "{end} bytes");
            assert_eq!(ORIGIN.check(&stream[..end]), Ok(()), "more may come after {end} bytes");
        }
        assert!(ORIGIN.open(&[stream.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let stream = stream();
        for bit in 0..stream.len() * 8 {
            let mut flipped = stream.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ORIGIN.open(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_stream_of_another_model_is_refused_at_its_first_header() {
        let other = Origin { name: "nvme", version: 3 };
        assert!(other.check(&ORIGIN.announcement()).is_err());
        assert!(ORIGIN.check(&[0; HEADER_BYTES]).is_err());
    }
}
