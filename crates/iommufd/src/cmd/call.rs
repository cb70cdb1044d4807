//! One call: the client's struct, read once, and the reply. A handler sees the client's bytes only
//! as a decoded copy.

use std::fmt::Debug;
use std::sync::Arc;

use ioasis_uapi::Result;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::client::Client;
use crate::open::Context;

/// One call in progress.
pub(crate) struct Call<'a> {
    pub(crate) context: &'a Arc<Context>,
    pub(crate) client: &'a dyn Client,
    pub(super) arg: u64,
    /// Bytes the client's struct has, by its own first field.
    pub(super) size: usize,
}

/// A command that a machine has beside those of IOMMUFD.
pub(crate) trait Extension: Debug + Send + Sync {
    /// Its number.
    fn ioctl(&self) -> u32;

    /// Bytes of its struct's first version.
    fn min_size(&self) -> usize;

    /// Carries it out.
    fn run(&self, call: &Call<'_>) -> Result<i64>;

    /// Whether and how it reads the source of an IOAS_COPY with these flags: flags and source IOVA
    /// in its stead.
    fn copy_source(&self, context: &Context, ioas: u32, flags: u32, iova: u64) -> (u32, u64);
}

/// The size the client's struct says it has.
pub(super) fn read_size(client: &dyn Client, arg: u64, min_size: usize) -> Result<usize> {
    let mut size = [0; 4];
    client.read(arg, &mut size)?;
    let size = u32::from_ne_bytes(size);
    let bytes = usize::try_from(size).expect("32 bits fit usize");
    if bytes < min_size {
        return refuse!(EINVAL, "size is less than the struct's first version", u64::from(size));
    }
    Ok(bytes)
}

/// Bytes of an unknown tail that are read at once.
const TAIL_CHUNK: usize = 4096;

/// Bytes of an unknown tail from which on others do not wait until all of it was read: 16 reads of
/// 3 us. The longest, of 4 GiB, takes seconds.
const LONG_TAIL: usize = 16 * TAIL_CHUNK;

impl Call<'_> {
    /// The client's struct; fields it does not have are 0.
    ///
    /// # Errors
    ///
    /// `E2BIG` when a field unknown here is set, `EFAULT`.
    pub(crate) fn decode<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        let known = size_of::<T>();
        let mut at = known;
        if self.size.saturating_sub(known) > LONG_TAIL {
            self.client.takes_long()?;
        }
        while at < self.size {
            let mut chunk = [0; TAIL_CHUNK];
            // Up to the next page boundary, so that what is unreadable is met where Linux meets it.
            let address = self.arg.wrapping_add(at as u64);
            let to_page = TAIL_CHUNK
                - usize::try_from(address % TAIL_CHUNK as u64).expect("less than a page");
            let part = &mut chunk[..to_page.min(self.size - at)];
            self.client.read(address, part)?;
            if let Some(set) = part.iter().position(|&byte| byte != 0) {
                return refuse!(
                    E2BIG,
                    "a field this version does not know is set, at offset",
                    (at + set) as u64
                );
            }
            at += part.len();
        }
        let mut cmd = T::new_zeroed();
        self.client.read(self.arg, &mut cmd.as_mut_bytes()[..known.min(self.size)])?;
        Ok(cmd)
    }

    /// Makes sure that the struct can be copied back, by writing the bytes that are there.
    pub(crate) fn prove_reply<T: FromBytes + IntoBytes>(&self) -> Result<()> {
        let mut there = T::new_zeroed();
        let there = there.as_mut_bytes();
        let length = there.len().min(self.size);
        self.client.read(self.arg, &mut there[..length])?;
        self.client.write(self.arg, &there[..length])
    }

    /// Copies the struct back, as far as the client has room.
    pub(crate) fn reply<T: IntoBytes + Immutable>(&self, cmd: &T) -> Result<()> {
        let bytes = cmd.as_bytes();
        self.client.write_back(self.arg, &bytes[..bytes.len().min(self.size)])
    }

    /// Copies one field back.
    pub(super) fn reply_field(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.client.write(self.arg.wrapping_add(offset as u64), bytes)
    }
}
