//! Driver: an IOMMU that a program brings along, beside the kinds this crate knows.
//!
//! An [`Endpoint`](crate::Endpoint) made with [`Endpoint::with_driver`](crate::Endpoint::with_driver) asks its driver wherever Linux
//! asks `struct iommu_ops` (`include/linux/iommu.h`) about a device: how it describes itself, which page tables it walks, what it
//! thinks of the data a client sends along. Everything else is the same for all.
//!
//! No lock of the core is a driver's to take; what it is called under is said at each method.

use std::any::Any;
use std::fmt::Debug;

use ioasis_iommupt::{IovaRange, Pa, TableWriter};
use ioasis_uapi::{Error, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Client;

/// What a client sent along for the driver: `data_type`, `data_uptr` and `data_len` of HWPT_ALLOC and VIOMMU_ALLOC.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a client cannot be printed")]
pub struct UserData<'a> {
    /// Whose memory it is in.
    pub client: &'a dyn Client,
    /// What it claims to be.
    pub kind: u32,
    /// Where.
    pub address: u64,
    /// Bytes.
    pub length: usize,
}

impl UserData<'_> {
    /// The struct, which is of type `kind`; its first version has `min_size` bytes. As `iommu_copy_struct_from_user`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another type, less than `min_size` bytes or more than there are fields for, `EFAULT`.
    pub fn read<T: FromBytes + IntoBytes>(&self, kind: u32, min_size: usize) -> Result<T> {
        if self.kind != kind {
            return refuse!(EINVAL, "the data is of another type", u64::from(self.kind));
        }
        check_length::<T>(self.length, min_size)?;
        read_struct(self.client, self.address, self.length)
    }

    /// Copies the struct back, as far as the client has room. As `iommu_copy_struct_to_user`.
    ///
    /// # Errors
    ///
    /// `EFAULT`.
    pub fn write<T: IntoBytes + Immutable>(&self, data: &T) -> Result<()> {
        let bytes = data.as_bytes();
        self.client.write(self.address, &bytes[..bytes.len().min(self.length)])
    }
}

/// Requests of HWPT_INVALIDATE.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a client cannot be printed")]
pub struct UserArray<'a> {
    /// Whose memory they are in.
    pub client: &'a dyn Client,
    /// What they claim to be.
    pub kind: u32,
    /// Where the first is.
    pub address: u64,
    /// Bytes of one.
    pub entry_length: usize,
    /// How many.
    pub entries: u32,
}

impl UserArray<'_> {
    /// One request, whose first version has `min_size` bytes. As `iommu_copy_struct_from_user_array`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when a request has less than `min_size` bytes or more than there are fields for, `EFAULT`.
    pub fn read<T: FromBytes + IntoBytes>(&self, index: u32, min_size: usize) -> Result<T> {
        check_length::<T>(self.entry_length, min_size)?;
        read_struct(self.client, self.address_of(index), self.entry_length)
    }

    /// All requests, of any length. As `iommu_copy_struct_from_full_user_array`.
    ///
    /// # Errors
    ///
    /// `E2BIG` when an unknown field is set, `EFAULT`.
    pub fn read_all<T: FromBytes + IntoBytes>(&self) -> Result<Vec<T>> {
        let one = |index| read_struct(self.client, self.address_of(index), self.entry_length);
        (0..self.entries).map(one).collect()
    }

    fn address_of(&self, index: u32) -> u64 {
        self.address.wrapping_add(u64::from(index) * self.entry_length as u64)
    }
}

fn check_length<T>(length: usize, min_size: usize) -> Result<()> {
    if length < min_size || length > size_of::<T>() {
        return refuse!(EINVAL, "the data is too short or too long for its type", length as u64);
    }
    Ok(())
}

/// A struct of `length` bytes, as `copy_struct_from_user` reads it.
fn read_struct<T: FromBytes + IntoBytes>(
    client: &dyn Client,
    address: u64,
    length: usize,
) -> Result<T> {
    let mut data = T::new_zeroed();
    let known = length.min(size_of::<T>());
    let mut at = known;
    let mut chunk = [0; 256];
    while at < length {
        let part = length.min(at + chunk.len()) - at;
        let part = &mut chunk[..part];
        client.read(address.wrapping_add(at as u64), part)?;
        if part.iter().any(|&byte| byte != 0) {
            return refuse!(E2BIG, "a field this version does not know is set", at as u64);
        }
        at += part.len();
    }
    client.read(address, &mut data.as_mut_bytes()[..known])?;
    Ok(data)
}

/// What HWPT_INVALIDATE did: requests carried out, also when one was refused.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Invalidated {
    /// Requests carried out.
    pub entries: u32,
    /// What the first one that was not met.
    pub result: Result<()>,
}

impl Invalidated {
    /// Nothing was carried out.
    pub(crate) const fn refused(error: Error) -> Self {
        Self { entries: 0, result: Err(error) }
    }

    /// Carries out requests `0..count` one after another, until one fails.
    pub(crate) fn each(count: u32, mut request: impl FnMut(u32) -> Result<()>) -> Self {
        for entries in 0..count {
            if let Err(error) = request(entries) {
                return Self { entries, result: Err(error) };
            }
        }
        Self { entries: count, result: Ok(()) }
    }
}

/// A page table for a paging HWPT.
#[derive(Debug)]
pub struct PagingTable {
    /// The table, empty.
    pub writer: Box<dyn TableWriter>,
    /// The IOVAs it may map.
    pub aperture: IovaRange,
    /// Bit `n` set: leaves of `1 << n` bytes exist.
    pub page_sizes: u64,
}

/// What a device is about to translate through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachTo {
    /// Nothing.
    Blocked,
    /// A paging HWPT.
    Paging {
        /// It was made for dirty tracking.
        dirty_tracking: bool,
    },
    /// A nested HWPT.
    Nested,
}

/// The IOMMU driver's side of one device.
pub trait Driver: Debug + Send + Sync + Any {
    /// What GET_HW_INFO shows, under its type; `wanted` is the type asked for, or the default.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type this hardware does not have.
    fn hw_info(&self, wanted: u32) -> Result<(u32, Vec<u8>)>;

    /// Whether the device's writes set dirty bits.
    fn tracks_dirty(&self) -> bool;

    /// A page table for a HWPT with these HWPT_ALLOC flags. `data` is there if the client sent any.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags or data this hardware has no use for, `ENOMEM`.
    fn alloc_paging(&self, flags: u32, data: Option<&UserData<'_>>) -> Result<PagingTable>;

    /// A nested HWPT directly over a paging one.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags or data this hardware has no use for, and what reading the data meets.
    fn alloc_nested(&self, flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedDriver>>;

    /// Whether there are vIOMMUs of type `kind`; asked before the client's data is read.
    fn has_viommu(&self, kind: u32) -> bool {
        let _ = kind;
        true
    }

    /// A vIOMMU of type `kind`. `data` is there if the client sent any.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type this hardware does not have, and what reading the data meets.
    fn alloc_viommu(&self, kind: u32, data: Option<&UserData<'_>>)
    -> Result<Box<dyn ViommuDriver>>;

    /// The device is about to translate `pasid` through something else; called with the lock of its attachments held.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it does not suit the device, `ENOMEM`; never for [`AttachTo::Blocked`].
    fn attach(&self, pasid: u32, to: AttachTo) -> Result<()>;
}

/// The driver's side of a nested HWPT.
pub trait NestedDriver: Debug + Send + Sync + Any {
    /// Carries out requests of HWPT_INVALIDATE. No request at all asks whether their type is known.
    fn invalidate(&self, requests: &UserArray<'_>) -> Invalidated;
}

/// The driver's side of a vIOMMU.
pub trait ViommuDriver: Debug + Send + Sync + Any {
    /// A nested HWPT over the vIOMMU's parent.
    ///
    /// # Errors
    ///
    /// As [`Driver::alloc_nested`].
    fn alloc_nested(&self, flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedDriver>>;

    /// Carries out requests of HWPT_INVALIDATE; `device` finds the driver of the device with a virtual id.
    fn invalidate(
        &self,
        requests: &UserArray<'_>,
        device: &dyn Fn(u64) -> Option<std::sync::Arc<dyn Driver>>,
    ) -> Invalidated;

    /// Whether it has hardware queues of type `kind`.
    fn has_queue(&self, kind: u32) -> bool;

    /// Takes queue `index`, whose memory begins at `base`, into use.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an index it does not have, `EEXIST` when it is in use, `EIO` when one that must precede it is not.
    fn start_queue(&self, index: u32, base: Pa) -> Result<()>;

    /// Whether queue `index` may go: no queue that follows it is in use.
    fn may_stop_queue(&self, index: u32) -> bool;

    /// Queue `index` is used no more.
    fn stop_queue(&self, index: u32);

    /// Whether a client has memory of it mapped: then it is not destroyed.
    fn is_mapped(&self) -> bool {
        false
    }
}
