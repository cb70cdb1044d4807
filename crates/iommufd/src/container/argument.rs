//! The structs of VFIO's container: their first field says how long they are, and more than is
//! known is ignored.

use ioasis_uapi::Result;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Client;

/// Reads the first `min_size` bytes of the client's struct; `argsz`, its first field, must be no
/// less.
///
/// # Errors
///
/// `EFAULT`, then `EINVAL`.
pub(super) fn read<T: FromBytes + IntoBytes>(
    client: &dyn Client,
    arg: u64,
    min_size: usize,
) -> Result<T> {
    let mut value = T::new_zeroed();
    let bytes = &mut value.as_mut_bytes()[..min_size];
    client.read(arg, bytes)?;
    let argsz = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    if u64::from(argsz) < min_size as u64 {
        return refuse!(EINVAL, "argsz is less than the struct's first version", u64::from(argsz));
    }
    Ok(value)
}

/// Reads a struct that follows another.
pub(super) fn read_tail<T: FromBytes + IntoBytes>(client: &dyn Client, address: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    client.read(address, value.as_mut_bytes())?;
    Ok(value)
}

/// Capabilities behind a struct, chained by offsets from its start.
#[derive(Debug)]
pub(super) struct Chain {
    bytes: Vec<u8>,
    base: usize,
    last: Option<usize>,
}

/// Offset of `next` in a capability's header.
const NEXT: usize = 4;

impl Chain {
    /// No capability yet, behind a struct of `base` bytes.
    pub(super) fn new(base: usize) -> Self {
        Self { bytes: Vec::new(), base, last: None }
    }

    /// Appends one capability: a struct that begins with its header, and what follows it.
    pub(super) fn push(&mut self, capability: &(impl IntoBytes + Immutable), tail: &[u8]) {
        let at = self.bytes.len();
        if let Some(last) = self.last {
            let next = u32::try_from(self.base + at).expect("a chain is short");
            self.bytes[last + NEXT..last + NEXT + 4].copy_from_slice(&next.to_ne_bytes());
        }
        self.last = Some(at);
        self.bytes.extend_from_slice(capability.as_bytes());
        self.bytes.extend_from_slice(tail);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Bytes of the struct and the chain.
    pub(super) fn total(&self) -> u32 {
        u32::try_from(self.base + self.bytes.len()).expect("a chain is short")
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
