//! The ioctl of Linux's own selftests, `drivers/iommu/iommufd/iommufd_test.h`.
//!
//! The command's union of anonymous structs is [`TestCmd::body`], six words; each member is a
//! struct of its own named `TestCmd` and the member's name, read from and written to the front of
//! `body`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{CMD_BASE, io};

/// Reserve a range of an IOAS; body [`TestCmdAddReserved`].
pub const TEST_OP_ADD_RESERVED: u32 = 1;

/// Create a mock device attached to a table; body [`TestCmdMockDomain`].
pub const TEST_OP_MOCK_DOMAIN: u32 = 2;

/// Check that a HWPT maps what client memory holds; body [`TestCmdCheckMap`].
pub const TEST_OP_MD_CHECK_MAP: u32 = 3;

/// Check the pin counts of client pages; body [`TestCmdCheckRefs`].
pub const TEST_OP_MD_CHECK_REFS: u32 = 4;

/// Create an access; body [`TestCmdCreateAccess`].
pub const TEST_OP_CREATE_ACCESS: u32 = 5;

/// Unpin what an access pinned; body [`TestCmdDestroyAccessPages`].
pub const TEST_OP_DESTROY_ACCESS_PAGES: u32 = 6;

/// Pin pages through an access; body [`TestCmdAccessPages`].
pub const TEST_OP_ACCESS_PAGES: u32 = 7;

/// Read or write through an access; body [`TestCmdAccessRw`].
pub const TEST_OP_ACCESS_RW: u32 = 8;

/// Limit the temporary memory of the pinning code; body [`TestCmdMemoryLimit`].
pub const TEST_OP_SET_TEMP_MEMORY_LIMIT: u32 = 9;

/// Attach a mock device to another table; body [`TestCmdMockDomainReplace`].
pub const TEST_OP_MOCK_DOMAIN_REPLACE: u32 = 10;

/// Move an access to another IOAS; body [`TestCmdAccessReplaceIoas`].
pub const TEST_OP_ACCESS_REPLACE_IOAS: u32 = 11;

/// Create a mock device with flags; body [`TestCmdMockDomainFlags`].
pub const TEST_OP_MOCK_DOMAIN_FLAGS: u32 = 12;

/// Make pages dirty; body [`TestCmdDirty`].
pub const TEST_OP_DIRTY: u32 = 13;

/// Check a mock IOTLB entry; body [`TestCmdCheckIotlb`].
pub const TEST_OP_MD_CHECK_IOTLB: u32 = 14;

/// Raise an I/O page fault; body [`TestCmdTriggerIopf`].
pub const TEST_OP_TRIGGER_IOPF: u32 = 15;

/// Check a mock device cache entry; body [`TestCmdCheckDevCache`].
pub const TEST_OP_DEV_CHECK_CACHE: u32 = 16;

/// Raise a virtual event; body [`TestCmdTriggerVevent`].
pub const TEST_OP_TRIGGER_VEVENT: u32 = 17;

/// Attach a PASID; body [`TestCmdPasidAttach`].
pub const TEST_OP_PASID_ATTACH: u32 = 18;

/// Replace a PASID's table; body [`TestCmdPasidReplace`].
pub const TEST_OP_PASID_REPLACE: u32 = 19;

/// Detach a PASID; body [`TestCmdPasidDetach`].
pub const TEST_OP_PASID_DETACH: u32 = 20;

/// Check which HWPT a PASID has; body [`TestCmdPasidCheck`].
pub const TEST_OP_PASID_CHECK_HWPT: u32 = 21;

/// Create a dma-buf; body [`TestCmdDmabufGet`].
pub const TEST_OP_DMABUF_GET: u32 = 22;

/// Revoke or restore a dma-buf; body [`TestCmdDmabufRevoke`].
pub const TEST_OP_DMABUF_REVOKE: u32 = 23;

/// Mock format: leaves of [`MOCK_PAGE_SIZE`].
pub const MOCK_IOMMUPT_DEFAULT: u32 = 0;

/// Mock format: large leaves too.
pub const MOCK_IOMMUPT_HUGE: u32 = 1;

/// First IOVA the default mock format maps.
pub const MOCK_APERTURE_START: u64 = 1 << 24;

/// Last IOVA the default mock format maps.
pub const MOCK_APERTURE_LAST: u64 = (1 << 31) - 1;

/// Bytes of a mock page.
pub const MOCK_PAGE_SIZE: u64 = 2048;

/// Bytes of a large mock page.
pub const MOCK_HUGE_PAGE_SIZE: u64 = 512 * MOCK_PAGE_SIZE;

/// [`TestCmdAccessPages`]: pin for writing.
pub const MOCK_FLAGS_ACCESS_WRITE: u32 = 1 << 0;

/// [`TestCmdAccessPages`]: the kernel fuzzer asks; round the address.
pub const MOCK_FLAGS_ACCESS_SYZ: u32 = 1 << 16;

/// [`TestCmdAccessRw`]: write.
pub const MOCK_ACCESS_RW_WRITE: u32 = 1 << 0;

/// [`TestCmdAccessRw`]: page by page.
pub const MOCK_ACCESS_RW_SLOW_PATH: u32 = 1 << 2;

/// [`TestCmdCreateAccess`]: the access will pin pages.
pub const MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES: u32 = 1 << 0;

/// Mock device behind an IOMMU without dirty tracking.
pub const MOCK_FLAGS_DEVICE_NO_DIRTY: u32 = 1 << 0;

/// Mock device with PASIDs.
pub const MOCK_FLAGS_DEVICE_PASID: u32 = 1 << 2;

/// Last mock IOTLB entry.
pub const MOCK_NESTED_DOMAIN_IOTLB_ID_MAX: u32 = 3;

/// Number of mock IOTLB entries.
pub const MOCK_NESTED_DOMAIN_IOTLB_NUM: u32 = 4;

/// Last mock device cache entry.
pub const MOCK_DEV_CACHE_ID_MAX: u32 = 3;

/// Number of mock device cache entries.
pub const MOCK_DEV_CACHE_NUM: u32 = 4;

/// A PASID whose replacement fails by design.
pub const TEST_PASID_RESERVED: u32 = 1024;

/// Argument of [`TEST_CMD`].
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmd {
    /// Size of this struct in bytes.
    pub size: u32,
    /// One of `TEST_OP_*`.
    pub op: u32,
    /// The object the operation is about.
    pub id: u32,
    /// Must be 0.
    pub __reserved: u32,
    /// The operation's own arguments, a union in C.
    #[doc(alias = "add_reserved")]
    #[doc(alias = "mock_domain")]
    #[doc(alias = "mock_domain_flags")]
    #[doc(alias = "mock_domain_replace")]
    #[doc(alias = "check_map")]
    #[doc(alias = "check_refs")]
    #[doc(alias = "create_access")]
    #[doc(alias = "destroy_access_pages")]
    #[doc(alias = "access_pages")]
    #[doc(alias = "access_rw")]
    #[doc(alias = "memory_limit")]
    #[doc(alias = "access_replace_ioas")]
    #[doc(alias = "dirty")]
    #[doc(alias = "check_iotlb")]
    #[doc(alias = "trigger_iopf")]
    #[doc(alias = "check_dev_cache")]
    #[doc(alias = "trigger_vevent")]
    #[doc(alias = "pasid_attach")]
    #[doc(alias = "pasid_replace")]
    #[doc(alias = "pasid_detach")]
    #[doc(alias = "pasid_check")]
    #[doc(alias = "dmabuf_get")]
    #[doc(alias = "dmabuf_revoke")]
    pub body: [u64; 6],
    /// Marks the end of the union.
    pub last: u32,
    /// Not a field in C: the padding that aligns the size to 8 bytes.
    pub __padding: u32,
}

const _: () = assert!(size_of::<TestCmd>() == 72);

/// Ioctl that drives the mock devices, with [`TestCmd`].
pub const TEST_CMD: u32 = io(CMD_BASE + 32);

/// Member `add_reserved` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.add_reserved")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdAddReserved {
    /// First IOVA.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

const _: () = assert!(size_of::<TestCmdAddReserved>() == 16);

/// Member `mock_domain` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.mock_domain")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdMockDomain {
    /// Out: ID of the mock device.
    pub out_stdev_id: u32,
    /// Out: ID of the HWPT it was attached to.
    pub out_hwpt_id: u32,
    /// Out: ID of the bound device object.
    pub out_idev_id: u32,
}

const _: () = assert!(size_of::<TestCmdMockDomain>() == 12);

/// Member `mock_domain_flags` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.mock_domain_flags")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdMockDomainFlags {
    /// Out: ID of the mock device.
    pub out_stdev_id: u32,
    /// Out: ID of the HWPT it was attached to.
    pub out_hwpt_id: u32,
    /// Out: ID of the bound device object.
    pub out_idev_id: u32,
    /// `MOCK_FLAGS_DEVICE_*` bits.
    pub dev_flags: u32,
}

const _: () = assert!(size_of::<TestCmdMockDomainFlags>() == 16);

/// Member `mock_domain_replace` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.mock_domain_replace")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdMockDomainReplace {
    /// The IOAS or HWPT to attach to.
    pub pt_id: u32,
}

const _: () = assert!(size_of::<TestCmdMockDomainReplace>() == 4);

/// Member `check_map` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.check_map")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdCheckMap {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Client address the range must map.
    pub uptr: u64,
}

const _: () = assert!(size_of::<TestCmdCheckMap>() == 24);

/// Member `check_refs` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.check_refs")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdCheckRefs {
    /// Bytes.
    pub length: u64,
    /// Client address of the pages.
    pub uptr: u64,
    /// Pins every page must have.
    pub refs: u32,
    /// Not a field in C: the padding that aligns the size to 8 bytes.
    pub __padding: u32,
}

const _: () = assert!(size_of::<TestCmdCheckRefs>() == 24);

/// Member `create_access` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.create_access")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdCreateAccess {
    /// Out: descriptor that holds the access.
    pub out_access_fd: u32,
    /// [`MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES`] or 0.
    pub flags: u32,
}

const _: () = assert!(size_of::<TestCmdCreateAccess>() == 8);

/// Member `destroy_access_pages` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.destroy_access_pages")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdDestroyAccessPages {
    /// What to unpin, from [`TestCmdAccessPages::out_access_pages_id`].
    pub access_pages_id: u32,
}

const _: () = assert!(size_of::<TestCmdDestroyAccessPages>() == 4);

/// Member `access_pages` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.access_pages")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdAccessPages {
    /// `MOCK_FLAGS_ACCESS_*` bits.
    pub flags: u32,
    /// Out: names the pinned pages.
    pub out_access_pages_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Client address the pages must be.
    pub uptr: u64,
}

const _: () = assert!(size_of::<TestCmdAccessPages>() == 32);

/// Member `access_rw` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.access_rw")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdAccessRw {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Client address to copy from or to.
    pub uptr: u64,
    /// `MOCK_ACCESS_RW_*` bits.
    pub flags: u32,
    /// Not a field in C: the padding that aligns the size to 8 bytes.
    pub __padding: u32,
}

const _: () = assert!(size_of::<TestCmdAccessRw>() == 32);

/// Member `memory_limit` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.memory_limit")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdMemoryLimit {
    /// Bytes.
    pub limit: u32,
}

const _: () = assert!(size_of::<TestCmdMemoryLimit>() == 4);

/// Member `access_replace_ioas` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.access_replace_ioas")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdAccessReplaceIoas {
    /// The IOAS to move to.
    pub ioas_id: u32,
}

const _: () = assert!(size_of::<TestCmdAccessReplaceIoas>() == 4);

/// Member `dirty` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.dirty")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdDirty {
    /// As of [`HWPT_GET_DIRTY_BITMAP`](super::HWPT_GET_DIRTY_BITMAP).
    pub flags: u32,
    /// Not a field in C: the padding that aligns the next field to 8 bytes.
    pub __padding: u32,
    /// IOVA of bit 0.
    pub iova: u64,
    /// Bytes of IOVA the bitmap covers.
    pub length: u64,
    /// Bytes a bit stands for.
    pub page_size: u64,
    /// Client address of the bitmap of pages to make dirty.
    pub uptr: u64,
    /// Out: pages made dirty.
    pub out_nr_dirty: u64,
}

const _: () = assert!(size_of::<TestCmdDirty>() == 48);

/// Member `check_iotlb` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.check_iotlb")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdCheckIotlb {
    /// The IOTLB entry.
    pub id: u32,
    /// The value it must have.
    pub iotlb: u32,
}

const _: () = assert!(size_of::<TestCmdCheckIotlb>() == 8);

/// Member `trigger_iopf` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.trigger_iopf")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdTriggerIopf {
    /// The faulting device.
    pub dev_id: u32,
    /// Its PASID.
    pub pasid: u32,
    /// Page request group index.
    pub grpid: u32,
    /// `PGFAULT_PERM_*` bits.
    pub perm: u32,
    /// The faulting address.
    pub addr: u64,
}

const _: () = assert!(size_of::<TestCmdTriggerIopf>() == 24);

/// Member `check_dev_cache` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.check_dev_cache")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdCheckDevCache {
    /// The cache entry.
    pub id: u32,
    /// The value it must have.
    pub cache: u32,
}

const _: () = assert!(size_of::<TestCmdCheckDevCache>() == 8);

/// Member `trigger_vevent` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.trigger_vevent")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdTriggerVevent {
    /// The device that reports.
    pub dev_id: u32,
}

const _: () = assert!(size_of::<TestCmdTriggerVevent>() == 4);

/// Member `pasid_attach` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.pasid_attach")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdPasidAttach {
    /// The PASID.
    pub pasid: u32,
    /// The IOAS or HWPT to attach to.
    pub pt_id: u32,
}

const _: () = assert!(size_of::<TestCmdPasidAttach>() == 8);

/// Member `pasid_replace` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.pasid_replace")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdPasidReplace {
    /// The PASID.
    pub pasid: u32,
    /// The IOAS or HWPT to attach to.
    pub pt_id: u32,
}

const _: () = assert!(size_of::<TestCmdPasidReplace>() == 8);

/// Member `pasid_detach` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.pasid_detach")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdPasidDetach {
    /// The PASID.
    pub pasid: u32,
}

const _: () = assert!(size_of::<TestCmdPasidDetach>() == 4);

/// Member `pasid_check` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.pasid_check")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdPasidCheck {
    /// The PASID.
    pub pasid: u32,
    /// The HWPT it must have, 0 for none.
    pub hwpt_id: u32,
}

const _: () = assert!(size_of::<TestCmdPasidCheck>() == 8);

/// Member `dmabuf_get` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.dmabuf_get")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdDmabufGet {
    /// Bytes.
    pub length: u32,
    /// Flags of open(2) for the descriptor.
    pub open_flags: u32,
}

const _: () = assert!(size_of::<TestCmdDmabufGet>() == 8);

/// Member `dmabuf_revoke` of the union in [`TestCmd`].
#[doc(alias = "iommu_test_cmd.dmabuf_revoke")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestCmdDmabufRevoke {
    /// The dma-buf.
    pub dmabuf_fd: i32,
    /// 1 to revoke, 0 to restore.
    pub revoked: u32,
}

const _: () = assert!(size_of::<TestCmdDmabufRevoke>() == 8);

/// Bits of a mock PASID.
pub const MOCK_PASID_WIDTH: u32 = 20;

/// Data is [`TestHwInfo`].
pub const HW_INFO_TYPE_SELFTEST: u32 = 0xfeed_beef;

/// What [`TestHwInfo::test_reg`] holds.
pub const HW_INFO_SELFTEST_REGVAL: u32 = 0xdead_beef;

/// Hardware information of a mock IOMMU.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct TestHwInfo {
    /// Must be 0.
    pub flags: u32,
    /// [`HW_INFO_SELFTEST_REGVAL`].
    pub test_reg: u32,
}

const _: () = assert!(size_of::<TestHwInfo>() == 8);

/// Data is [`HwptSelftest`].
pub const HWPT_DATA_SELFTEST: u32 = 0xdead;

/// Value of a mock IOTLB entry that nothing invalidated.
pub const TEST_IOTLB_DEFAULT: u32 = 0xbad_beef;

/// Value of a mock device cache entry that nothing invalidated.
pub const TEST_DEV_CACHE_DEFAULT: u32 = 0xbad_dad;

/// Data of a mock HWPT.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptSelftest {
    /// Value every mock IOTLB entry starts with.
    pub iotlb: u32,
    /// [`MOCK_IOMMUPT_DEFAULT`] or [`MOCK_IOMMUPT_HUGE`].
    pub pagetable_type: u32,
}

const _: () = assert!(size_of::<HwptSelftest>() == 8);

/// Requests are [`HwptInvalidateSelftest`].
pub const HWPT_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;

/// A type nothing serves.
pub const HWPT_INVALIDATE_DATA_SELFTEST_INVALID: u32 = 0xdad_beef;

/// Invalidate every entry.
pub const TEST_INVALIDATE_FLAG_ALL: u32 = 1 << 0;

/// One mock invalidation request.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HwptInvalidateSelftest {
    /// [`TEST_INVALIDATE_FLAG_ALL`] or 0.
    pub flags: u32,
    /// The IOTLB entry.
    pub iotlb_id: u32,
}

const _: () = assert!(size_of::<HwptInvalidateSelftest>() == 8);

/// A mock vIOMMU, with [`ViommuSelftest`].
pub const VIOMMU_TYPE_SELFTEST: u32 = 0xdead_beef;

/// Data of a mock vIOMMU.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ViommuSelftest {
    /// Any value.
    pub in_data: u32,
    /// Out: the same value.
    pub out_data: u32,
    /// Out: offset to give mmap.
    pub out_mmap_offset: u64,
    /// Out: bytes to map.
    pub out_mmap_length: u64,
}

const _: () = assert!(size_of::<ViommuSelftest>() == 24);

/// Requests are [`ViommuInvalidateSelftest`].
pub const VIOMMU_INVALIDATE_DATA_SELFTEST: u32 = 0xdead_beef;

/// A type nothing serves.
pub const VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID: u32 = 0xdad_beef;

/// One mock vIOMMU invalidation request.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ViommuInvalidateSelftest {
    /// [`TEST_INVALIDATE_FLAG_ALL`] or 0.
    pub flags: u32,
    /// The device's number on the vIOMMU.
    pub vdev_id: u32,
    /// The device cache entry.
    pub cache_id: u32,
}

const _: () = assert!(size_of::<ViommuInvalidateSelftest>() == 12);

/// Events are [`ViommuEventSelftest`].
pub const VEVENTQ_TYPE_SELFTEST: u32 = 0xbeef_beef;

/// A mock virtual event.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ViommuEventSelftest {
    /// The device's number on the vIOMMU.
    pub virt_id: u32,
}

const _: () = assert!(size_of::<ViommuEventSelftest>() == 4);

/// A mock hardware queue.
pub const HW_QUEUE_TYPE_SELFTEST: u32 = 0xdead_beef;

/// Mock hardware queues of a vIOMMU.
pub const TEST_HW_QUEUE_MAX: u32 = 2;
