//! What differs between IOMMUs: the operations of `struct iommu_ops` and its kin
//! (`include/linux/iommu.h`).
//!
//! An [`Iommu`] names its [`IommuOps`]; every kind this crate knows has one file that implements
//! them, and a program may bring its own. The core asks wherever Linux asks the driver: how a
//! device describes itself, which page tables it walks, what it thinks of the data a client sends
//! along. What an IOMMU does not have stays at the default, which is Linux's answer for a driver
//! without the operation.
//!
//! No lock of the core is an operation's to take; what it is called under is said at each method.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use ioasis_iommupt::{Iova, IovaRange, Pa, Prot, Quiesce, TableWriter};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::faultlog::Reason;
use super::iommu::{EndpointConfig, Iommu};
use super::phys::Phys;
use crate::client::{Client, PAGE_SIZE};
use crate::params::Linux;

/// What a client sent along for the driver: `data_type`, `data_uptr` and `data_len` of HWPT_ALLOC
/// and VIOMMU_ALLOC.
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
    /// The struct, which is of type `kind`; its first version has `min_size` bytes. As
    /// `iommu_copy_struct_from_user`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another type, less than `min_size` bytes or more than there are fields for,
    /// `EFAULT`.
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
    /// One request, whose first version has `min_size` bytes. As
    /// `iommu_copy_struct_from_user_array`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when a request has less than `min_size` bytes or more than there are fields for,
    /// `EFAULT`.
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
    pub const fn refused(error: Error) -> Self {
        Self { entries: 0, result: Err(error) }
    }

    /// Carries out requests `0..count` one after another, until one fails.
    pub fn each(count: u32, mut request: impl FnMut(u32) -> Result<()>) -> Self {
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

/// What the driver of an IOMMU does. Linux: `struct iommu_ops`.
///
/// `iommu` is the one that is asked, `device` the endpoint behind it that the call is about.
pub trait IommuOps: Debug + Send + Sync {
    /// The registers GET_HW_INFO shows, under their type; `wanted` is the type asked for, or the
    /// default.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type this hardware does not have.
    fn hw_info(
        &self,
        iommu: &Iommu,
        device: &EndpointConfig,
        wanted: u32,
    ) -> Result<(u32, Vec<u8>)>;

    /// Whether the device's writes set dirty bits: `capable` of `IOMMU_CAP_DIRTY_TRACKING`.
    fn tracks_dirty(&self, iommu: &Iommu, device: &EndpointConfig) -> bool {
        let _ = device;
        iommu.dirty_tracking
    }

    /// A page table for a HWPT with these HWPT_ALLOC flags: `domain_alloc_paging_flags`. `data` is
    /// there if the client sent any; `quiesce` waits for the DMA of whoever will translate through
    /// the table.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags or data this hardware has no use for, `ENOMEM`.
    fn alloc_paging(
        &self,
        iommu: &Iommu,
        device: &EndpointConfig,
        flags: u32,
        data: Option<&UserData<'_>>,
        quiesce: Arc<dyn Quiesce>,
    ) -> Result<PagingTable>;

    /// Whether a client's own table can hang directly on a nest parent.
    fn nests_directly(&self) -> bool {
        false
    }

    /// A client's own table directly on a nest parent: `domain_alloc_nested` of `iommu_ops`.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for flags or data of another type, `EINVAL`, `E2BIG` and `EFAULT` for bad data.
    fn alloc_nested(
        &self,
        iommu: &Iommu,
        flags: u32,
        data: &UserData<'_>,
    ) -> Result<Box<dyn NestedOps>> {
        let _ = (iommu, flags, data);
        refuse!(EOPNOTSUPP, "the device's IOMMU takes no tables of the client's own on a HWPT")
    }

    /// Whether virtual IOMMUs of type `kind` exist: `get_viommu_size`. Asked before the client's
    /// data is read.
    fn has_viommu(&self, iommu: &Iommu, kind: u32) -> bool {
        let _ = (iommu, kind);
        false
    }

    /// A virtual IOMMU of type `kind`, which exists: `viommu_init`. `data` is there if the client
    /// sent any.
    ///
    /// # Errors
    ///
    /// What reading the data meets, and `ENOSPC` when the hardware has no more of them.
    fn viommu_init(
        &self,
        iommu: &Iommu,
        kind: u32,
        data: Option<&UserData<'_>>,
    ) -> Result<Box<dyn ViommuOps>> {
        let _ = (iommu, data);
        refuse!(EOPNOTSUPP, "the IOMMU has no virtual IOMMUs", u64::from(kind))
    }

    /// Whether an endpoint may use a HWPT with a fault queue.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the driver wants page requests from it and it has none.
    fn check_faults(&self, device: &EndpointConfig) -> Result<()> {
        let _ = device;
        Ok(())
    }

    /// Whether the driver looks at a nested table's parent when a device is attached, and at the
    /// virtual id each time. The mock driver of Linux's tests looks at neither
    /// (`mock_domain_nop_attach`).
    fn judges_nested_attach(&self) -> bool {
        true
    }

    /// The device is about to translate `pasid` through something else; called with the lock of its
    /// attachments held.
    ///
    /// # Errors
    ///
    /// `EINVAL` when it does not suit the device, `ENOMEM`; never for [`AttachTo::Blocked`].
    fn attach(&self, device: &EndpointConfig, pasid: u32, to: AttachTo) -> Result<()> {
        let _ = (device, pasid, to);
        Ok(())
    }

    /// The type and bytes of the event that tells a guest of a refused transaction of the device it
    /// knows as `virtual_id`.
    fn refused(
        &self,
        virtual_id: u64,
        iova: Iova,
        need: Prot,
        reason: Reason,
    ) -> Option<(u32, Vec<u8>)> {
        let _ = (virtual_id, iova, need, reason);
        None
    }
}

/// Where a client's own table leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// To a page of the nest parent.
    Leaf {
        /// Address in the nest parent of the page's first byte.
        ipa: u64,
        /// lg2 of its bytes.
        lg2: u32,
        /// What it grants.
        prot: Prot,
    },
    /// Nowhere.
    Fault,
}

impl Walked {
    /// Where an address leads that is not translated: to itself, page by page.
    #[must_use]
    pub fn bypass(iova: u64) -> Self {
        Self::Leaf {
            ipa: iova & !(PAGE_SIZE - 1),
            lg2: PAGE_SIZE.trailing_zeros(),
            prot: Prot::READ | Prot::WRITE,
        }
    }
}

/// Reads a word of a client's own table, by its address in the nest parent; `None` where nothing is
/// mapped.
pub type ReadWord<'a> = &'a mut dyn FnMut(u64) -> Option<u64>;

/// What was walked in a client's own table, and is remembered.
pub trait Iotlb {
    /// Forgets what was walked for addresses from `start` to `last`. DMA that has begun may still
    /// use it.
    fn invalidate(&self, start: u64, last: u64);
}

/// A client's own first stage: where it begins, and what its words mean. Linux: `struct
/// iommu_domain_ops` of a nested domain.
pub trait NestedOps: Debug + Send + Sync + Any {
    /// Follows the table from `iova`, used with `pasid`.
    fn walk(&self, pasid: u32, iova: u64, read: ReadWord<'_>) -> Walked;

    /// Whether a device can be attached only with a virtual id in the virtual IOMMU.
    fn needs_vdevice(&self) -> bool {
        false
    }

    /// Whether it says where each PASID of the device leads, so that the guest has all of them.
    fn has_pasids(&self) -> bool {
        false
    }

    /// Whether a command exists by which the client invalidates what was walked; else nothing is
    /// remembered.
    fn is_invalidated(&self) -> bool {
        true
    }

    /// Carries out requests of HWPT_INVALIDATE: `cache_invalidate_user`. No request at all asks
    /// whether their type is known.
    fn invalidate(&self, iotlb: &dyn Iotlb, requests: &UserArray<'_>) -> Invalidated {
        let _ = (iotlb, requests);
        Invalidated::refused(Error::new(Errno::EOPNOTSUPP, "the nested table has no invalidations"))
    }
}

/// Where a virtual IOMMU's events go.
pub trait EventSink: Debug + Send + Sync {
    /// Tells the guest of an event of type `kind`: `iommufd_viommu_report_event`.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` when nobody listens.
    fn report(&self, kind: u32, event: &[u8]) -> Result<()>;
}

/// What the core has of a virtual IOMMU. Linux: `struct iommufd_viommu`.
pub trait ViommuCore: Iotlb + EventSink {
    /// Runs `with` on the device that the guest knows by this virtual id; whether there is one.
    fn with_device(&self, virtual_id: u64, with: &mut dyn FnMut(&EndpointConfig)) -> bool;

    /// What output addresses mean.
    fn phys(&self) -> &Phys;

    /// Whose rules hold.
    fn linux(&self) -> Linux;

    /// Returns when no DMA uses what was invalidated before.
    fn wait_for_dma(&self);
}

/// A virtual IOMMU. Linux: `struct iommufd_viommu_ops`.
pub trait ViommuOps: Debug + Send + Sync + Any {
    /// A client's own table on it: `alloc_domain_nested`.
    ///
    /// # Errors
    ///
    /// As [`IommuOps::alloc_nested`].
    fn alloc_nested(&self, flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
        let _ = (flags, data);
        refuse!(EOPNOTSUPP, "the virtual IOMMU takes no tables of the client's own")
    }

    /// Carries out requests of HWPT_INVALIDATE: `cache_invalidate`.
    fn invalidate(&self, viommu: &dyn ViommuCore, requests: &UserArray<'_>) -> Invalidated {
        let _ = (viommu, requests);
        let why = "the virtual IOMMU has no invalidations";
        Invalidated::refused(Error::new(Errno::EOPNOTSUPP, why))
    }

    /// A device is to have this virtual id, beside `others`: `vdevice_init`.
    ///
    /// # Errors
    ///
    /// `EINVAL` and `ENOSPC` where the hardware matches virtual ids itself.
    fn vdevice_init(&self, virtual_id: u64, others: usize) -> Result<()> {
        let _ = (virtual_id, others);
        Ok(())
    }

    /// Whether it has hardware queues of type `kind`: `get_hw_queue_size`.
    fn has_queue(&self, kind: u32) -> bool {
        let _ = kind;
        false
    }

    /// Takes queue `index`, whose `length` bytes begin at `base`, into use: `hw_queue_init_phys`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an index it does not have, `EEXIST` when it is in use, `EIO` when one that must
    /// precede it is not.
    fn start_queue(
        &self,
        viommu: &Arc<dyn ViommuCore>,
        index: u32,
        base: Pa,
        length: u64,
    ) -> Result<()> {
        let _ = (viommu, base, length);
        refuse!(EINVAL, "the virtual IOMMU has no queues", u64::from(index))
    }

    /// Whether queue `index` may go: no queue that follows it is in use. Whoever hears so stops it.
    /// Asked under the lock of the objects.
    fn may_stop_queue(&self, index: u32) -> bool {
        let _ = index;
        true
    }

    /// Queue `index` is used no more.
    fn stop_queue(&self, index: u32) {
        let _ = index;
    }

    /// Whether a client has memory of it mapped: then it is not destroyed.
    fn is_mapped(&self) -> bool {
        false
    }
}
