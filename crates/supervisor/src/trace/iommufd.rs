//! The ioctls of /dev/iommu, in the order of linux/iommufd.h.

use ioasis_uapi::iommufd::{self as uapi, test};

use super::layout::Show::{Choice, Dec, Flags, Hex, Reserved, Signed, Words};
use super::layout::{Field, Names, fields};
use super::row::{Row, Shape, Tail};

const MAP: Names = &[
    (uapi::IOAS_MAP_FIXED_IOVA as u64, "FIXED_IOVA"),
    (uapi::IOAS_MAP_WRITEABLE as u64, "WRITEABLE"),
    (uapi::IOAS_MAP_READABLE as u64, "READABLE"),
];
const HWPT: Names = &[
    (uapi::HWPT_ALLOC_NEST_PARENT as u64, "NEST_PARENT"),
    (uapi::HWPT_ALLOC_DIRTY_TRACKING as u64, "DIRTY_TRACKING"),
    (uapi::HWPT_FAULT_ID_VALID as u64, "FAULT_ID_VALID"),
    (uapi::HWPT_ALLOC_PASID as u64, "PASID"),
];
const HWPT_DATA: Names = &[
    (uapi::HWPT_DATA_NONE as u64, "NONE"),
    (uapi::HWPT_DATA_VTD_S1 as u64, "VTD_S1"),
    (uapi::HWPT_DATA_ARM_SMMUV3 as u64, "ARM_SMMUV3"),
    (uapi::HWPT_DATA_AMD_GUEST as u64, "AMD_GUEST"),
];
const HW_INFO: Names = &[
    (uapi::HW_INFO_TYPE_NONE as u64, "NONE"),
    (uapi::HW_INFO_TYPE_INTEL_VTD as u64, "INTEL_VTD"),
    (uapi::HW_INFO_TYPE_ARM_SMMUV3 as u64, "ARM_SMMUV3"),
    (uapi::HW_INFO_TYPE_TEGRA241_CMDQV as u64, "TEGRA241_CMDQV"),
    (uapi::HW_INFO_TYPE_AMD as u64, "AMD"),
];
const HW_CAP: Names = &[
    (uapi::HW_CAP_DIRTY_TRACKING, "DIRTY_TRACKING"),
    (uapi::HW_CAP_PCI_PASID_EXEC, "PCI_PASID_EXEC"),
    (uapi::HW_CAP_PCI_PASID_PRIV, "PCI_PASID_PRIV"),
    (uapi::HW_CAP_PCI_ATS_NOT_SUPPORTED, "PCI_ATS_NOT_SUPPORTED"),
];
const OPTIONS: Names = &[
    (uapi::OPTION_RLIMIT_MODE as u64, "RLIMIT_MODE"),
    (uapi::OPTION_HUGE_PAGES as u64, "HUGE_PAGES"),
];
const OPTION_OP: Names =
    &[(uapi::OPTION_OP_SET as u64, "SET"), (uapi::OPTION_OP_GET as u64, "GET")];
const VFIO_IOAS_OP: Names = &[
    (uapi::VFIO_IOAS_GET as u64, "GET"),
    (uapi::VFIO_IOAS_SET as u64, "SET"),
    (uapi::VFIO_IOAS_CLEAR as u64, "CLEAR"),
];
const INVALIDATE: Names = &[
    (uapi::HWPT_INVALIDATE_DATA_VTD_S1 as u64, "VTD_S1"),
    (uapi::VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 as u64, "VIOMMU_ARM_SMMUV3"),
];
const VIOMMU: Names = &[
    (uapi::VIOMMU_TYPE_DEFAULT as u64, "DEFAULT"),
    (uapi::VIOMMU_TYPE_ARM_SMMUV3 as u64, "ARM_SMMUV3"),
    (uapi::VIOMMU_TYPE_TEGRA241_CMDQV as u64, "TEGRA241_CMDQV"),
];
const VEVENTQ: Names = &[
    (uapi::VEVENTQ_TYPE_DEFAULT as u64, "DEFAULT"),
    (uapi::VEVENTQ_TYPE_ARM_SMMUV3 as u64, "ARM_SMMUV3"),
    (uapi::VEVENTQ_TYPE_TEGRA241_CMDQV as u64, "TEGRA241_CMDQV"),
];
const HW_QUEUE: Names = &[
    (uapi::HW_QUEUE_TYPE_DEFAULT as u64, "DEFAULT"),
    (uapi::HW_QUEUE_TYPE_TEGRA241_CMDQV as u64, "TEGRA241_CMDQV"),
];
const TRACKING: Names = &[(uapi::HWPT_DIRTY_TRACKING_ENABLE as u64, "ENABLE")];
const NO_CLEAR: Names = &[(uapi::HWPT_GET_DIRTY_BITMAP_NO_CLEAR as u64, "NO_CLEAR")];
const INPUT_TYPE: Names = &[(uapi::HW_INFO_FLAG_INPUT_TYPE as u64, "INPUT_TYPE")];
const TEST_OPS: Names = &[
    (test::TEST_OP_ADD_RESERVED as u64, "ADD_RESERVED"),
    (test::TEST_OP_MOCK_DOMAIN as u64, "MOCK_DOMAIN"),
    (test::TEST_OP_MD_CHECK_MAP as u64, "MD_CHECK_MAP"),
    (test::TEST_OP_MD_CHECK_REFS as u64, "MD_CHECK_REFS"),
    (test::TEST_OP_CREATE_ACCESS as u64, "CREATE_ACCESS"),
    (test::TEST_OP_DESTROY_ACCESS_PAGES as u64, "DESTROY_ACCESS_PAGES"),
    (test::TEST_OP_ACCESS_PAGES as u64, "ACCESS_PAGES"),
    (test::TEST_OP_ACCESS_RW as u64, "ACCESS_RW"),
    (test::TEST_OP_SET_TEMP_MEMORY_LIMIT as u64, "SET_TEMP_MEMORY_LIMIT"),
    (test::TEST_OP_MOCK_DOMAIN_REPLACE as u64, "MOCK_DOMAIN_REPLACE"),
    (test::TEST_OP_ACCESS_REPLACE_IOAS as u64, "ACCESS_REPLACE_IOAS"),
    (test::TEST_OP_MOCK_DOMAIN_FLAGS as u64, "MOCK_DOMAIN_FLAGS"),
    (test::TEST_OP_DIRTY as u64, "DIRTY"),
    (test::TEST_OP_MD_CHECK_IOTLB as u64, "MD_CHECK_IOTLB"),
    (test::TEST_OP_TRIGGER_IOPF as u64, "TRIGGER_IOPF"),
    (test::TEST_OP_DEV_CHECK_CACHE as u64, "DEV_CHECK_CACHE"),
    (test::TEST_OP_TRIGGER_VEVENT as u64, "TRIGGER_VEVENT"),
    (test::TEST_OP_PASID_ATTACH as u64, "PASID_ATTACH"),
    (test::TEST_OP_PASID_REPLACE as u64, "PASID_REPLACE"),
    (test::TEST_OP_PASID_DETACH as u64, "PASID_DETACH"),
    (test::TEST_OP_PASID_CHECK_HWPT as u64, "PASID_CHECK_HWPT"),
    (test::TEST_OP_DMABUF_GET as u64, "DMABUF_GET"),
    (test::TEST_OP_DMABUF_REVOKE as u64, "DMABUF_REVOKE"),
];
const PERMISSIONS: Names = &[
    (uapi::PGFAULT_PERM_READ as u64, "READ"),
    (uapi::PGFAULT_PERM_WRITE as u64, "WRITE"),
    (uapi::PGFAULT_PERM_EXEC as u64, "EXEC"),
    (uapi::PGFAULT_PERM_PRIV as u64, "PRIV"),
];
const FAULT: Names = &[
    (uapi::PGFAULT_FLAGS_PASID_VALID as u64, "PASID_VALID"),
    (uapi::PGFAULT_FLAGS_LAST_PAGE as u64, "LAST_PAGE"),
];
const RESPONSE: Names =
    &[(uapi::PAGE_RESP_SUCCESS as u64, "SUCCESS"), (uapi::PAGE_RESP_INVALID as u64, "INVALID")];
const LOST: Names = &[(uapi::VEVENTQ_FLAG_LOST_EVENTS as u64, "LOST_EVENTS")];
const NONE: Names = &[];

/// What is read from a fault queue.
pub(super) const PAGE_FAULT: &[Field] = fields!(uapi::HwptPgfault {
    flags: In Flags(FAULT), dev_id: In Dec, pasid: In Dec, grpid: In Dec, perm: In Flags(PERMISSIONS),
    __reserved: In Reserved, addr: In Hex, length: In Dec, cookie: In Dec,
});

/// What is written to a fault queue.
pub(super) const PAGE_RESPONSE: &[Field] =
    fields!(uapi::HwptPageResponse { cookie: In Dec, code: In Choice(RESPONSE) });

/// What every event of an event queue starts with.
pub(super) const EVENT: &[Field] =
    fields!(uapi::VeventHeader { flags: In Flags(LOST), sequence: In Dec });

/// What `data_uptr` of uapi::HWPT_ALLOC leads to, by data type.
pub(super) fn hwpt_data(data_type: u32) -> Option<&'static [Field]> {
    const VTD: &[Field] = fields!(uapi::HwptVtdS1 {
        flags: In Flags(&[(uapi::VTD_S1_SRE, "SRE"), (uapi::VTD_S1_EAFE, "EAFE"), (uapi::VTD_S1_WPE, "WPE")]),
        pgtbl_addr: In Hex, addr_width: In Dec, __reserved: In Reserved,
    });
    const SMMU: &[Field] = fields!(uapi::HwptArmSmmuv3 { ste: In Words });
    const AMD: &[Field] = fields!(uapi::HwptAmdGuest { dte: In Words });
    match data_type {
        uapi::HWPT_DATA_VTD_S1 => Some(VTD),
        uapi::HWPT_DATA_ARM_SMMUV3 => Some(SMMU),
        uapi::HWPT_DATA_AMD_GUEST => Some(AMD),
        _ => None,
    }
}

/// What `data_uptr` of uapi::GET_HW_INFO leads to, by data type.
pub(super) fn hw_info(data_type: u32) -> Option<&'static [Field]> {
    const VTD: &[Field] =
        fields!(uapi::HwInfoVtd { flags: Out Hex, cap_reg: Out Hex, ecap_reg: Out Hex });
    const SMMU: &[Field] = fields!(uapi::HwInfoArmSmmuv3 { flags: Out Hex, idr: Out Words, iidr: Out Hex, aidr: Out Hex });
    const AMD: &[Field] = fields!(uapi::HwInfoAmd { efr: Out Hex, efr2: Out Hex });
    match data_type {
        uapi::HW_INFO_TYPE_INTEL_VTD => Some(VTD),
        uapi::HW_INFO_TYPE_ARM_SMMUV3 => Some(SMMU),
        uapi::HW_INFO_TYPE_AMD => Some(AMD),
        _ => None,
    }
}

const fn row(request: u32, name: &'static str, fields: &'static [Field], tail: Tail) -> Row {
    Row { request, name, shape: Shape::Struct(fields, tail) }
}

/// Every command.
pub(super) static TABLE: &[Row] = &[
    row(
        uapi::DESTROY,
        "IOMMU_DESTROY",
        fields!(uapi::Destroy { size: In Dec, id: In Dec }),
        Tail::None,
    ),
    row(
        uapi::IOAS_ALLOC,
        "IOMMU_IOAS_ALLOC",
        fields!(uapi::IoasAlloc { size: In Dec, flags: In Flags(NONE), out_ioas_id: Out Dec }),
        Tail::None,
    ),
    row(
        uapi::IOAS_ALLOW_IOVAS,
        "IOMMU_IOAS_ALLOW_IOVAS",
        fields!(uapi::IoasAllowIovas {
            size: In Dec, ioas_id: In Dec, num_iovas: In Dec, __reserved: In Reserved,
        }),
        Tail::AllowIovas,
    ),
    row(
        uapi::IOAS_COPY,
        "IOMMU_IOAS_COPY",
        fields!(uapi::IoasCopy {
            size: In Dec, flags: In Flags(MAP), dst_ioas_id: In Dec, src_ioas_id: In Dec, length: In Hex,
            dst_iova: InOut Hex, src_iova: In Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOAS_IOVA_RANGES,
        "IOMMU_IOAS_IOVA_RANGES",
        fields!(uapi::IoasIovaRanges {
            size: In Dec, ioas_id: In Dec, num_iovas: InOut Dec, __reserved: In Reserved,
            out_iova_alignment: Out Hex,
        }),
        Tail::IovaRanges,
    ),
    row(
        uapi::IOAS_MAP,
        "IOMMU_IOAS_MAP",
        fields!(uapi::IoasMap {
            size: In Dec, flags: In Flags(MAP), ioas_id: In Dec, __reserved: In Reserved, user_va: In Hex,
            length: In Hex, iova: InOut Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOAS_NOIOMMU_GET_PA,
        "IOMMU_IOAS_NOIOMMU_GET_PA",
        fields!(uapi::IoasNoiommuGetPa {
            size: In Dec, flags: In Flags(NONE), ioas_id: In Dec, __reserved: In Reserved, iova: In Hex,
            length: InOut Hex, out_phys: Out Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOAS_UNMAP,
        "IOMMU_IOAS_UNMAP",
        fields!(uapi::IoasUnmap { size: In Dec, ioas_id: In Dec, iova: In Hex, length: InOut Hex }),
        Tail::None,
    ),
    row(
        uapi::OPTION,
        "IOMMU_OPTION",
        fields!(uapi::Option {
            size: In Dec, option_id: In Choice(OPTIONS), op: In Choice(OPTION_OP), __reserved: In Reserved,
            object_id: In Dec, val64: InOut Dec,
        }),
        Tail::None,
    ),
    row(
        uapi::VFIO_IOAS,
        "IOMMU_VFIO_IOAS",
        fields!(uapi::VfioIoas {
            size: In Dec, ioas_id: InOut Dec, op: In Choice(VFIO_IOAS_OP), __reserved: In Reserved,
        }),
        Tail::None,
    ),
    row(
        uapi::HWPT_ALLOC,
        "IOMMU_HWPT_ALLOC",
        fields!(uapi::HwptAlloc {
            size: In Dec, flags: In Flags(HWPT), dev_id: In Dec, pt_id: In Dec, out_hwpt_id: Out Dec,
            __reserved: In Reserved, data_type: In Choice(HWPT_DATA), data_len: In Dec, fault_id: In Dec,
            __reserved2: In Reserved,
        }),
        Tail::HwptData,
    ),
    row(
        uapi::GET_HW_INFO,
        "IOMMU_GET_HW_INFO",
        fields!(uapi::HwInfo {
            size: In Dec, flags: In Flags(INPUT_TYPE), dev_id: In Dec, data_len: InOut Dec,
            data_type: Out Choice(HW_INFO), out_max_pasid_log2: Out Dec, __reserved: In Reserved,
            out_capabilities: Out Flags(HW_CAP),
        }),
        Tail::HwInfo,
    ),
    row(
        uapi::HWPT_SET_DIRTY_TRACKING,
        "IOMMU_HWPT_SET_DIRTY_TRACKING",
        fields!(uapi::HwptSetDirtyTracking {
            size: In Dec, flags: In Flags(TRACKING), hwpt_id: In Dec, __reserved: In Reserved,
        }),
        Tail::None,
    ),
    row(
        uapi::HWPT_GET_DIRTY_BITMAP,
        "IOMMU_HWPT_GET_DIRTY_BITMAP",
        fields!(uapi::HwptGetDirtyBitmap {
            size: In Dec, hwpt_id: In Dec, flags: In Flags(NO_CLEAR), __reserved: In Reserved, iova: In Hex,
            length: In Hex, page_size: In Hex, data: In Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::HWPT_INVALIDATE,
        "IOMMU_HWPT_INVALIDATE",
        fields!(uapi::HwptInvalidate {
            size: In Dec, hwpt_id: In Dec, data_uptr: In Hex, data_type: In Choice(INVALIDATE),
            entry_len: In Dec, entry_num: InOut Dec, __reserved: In Reserved,
        }),
        Tail::None,
    ),
    row(
        uapi::FAULT_QUEUE_ALLOC,
        "IOMMU_FAULT_QUEUE_ALLOC",
        fields!(uapi::FaultAlloc { size: In Dec, flags: In Flags(NONE), out_fault_id: Out Dec, out_fault_fd: Out Dec }),
        Tail::None,
    ),
    row(
        uapi::IOAS_MAP_FILE,
        "IOMMU_IOAS_MAP_FILE",
        fields!(uapi::IoasMapFile {
            size: In Dec, flags: In Flags(MAP), ioas_id: In Dec, fd: In Signed, start: In Hex, length: In Hex,
            iova: InOut Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::VIOMMU_ALLOC,
        "IOMMU_VIOMMU_ALLOC",
        fields!(uapi::ViommuAlloc {
            size: In Dec, flags: In Flags(NONE), type_: In Choice(VIOMMU), dev_id: In Dec, hwpt_id: In Dec,
            out_viommu_id: Out Dec, data_len: In Dec, __reserved: In Reserved, data_uptr: In Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::VDEVICE_ALLOC,
        "IOMMU_VDEVICE_ALLOC",
        fields!(uapi::VdeviceAlloc {
            size: In Dec, viommu_id: In Dec, dev_id: In Dec, out_vdevice_id: Out Dec, virt_id: In Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOAS_CHANGE_PROCESS,
        "IOMMU_IOAS_CHANGE_PROCESS",
        fields!(uapi::IoasChangeProcess { size: In Dec, __reserved: In Reserved }),
        Tail::None,
    ),
    row(
        uapi::VEVENTQ_ALLOC,
        "IOMMU_VEVENTQ_ALLOC",
        fields!(uapi::VeventqAlloc {
            size: In Dec, flags: In Flags(NONE), viommu_id: In Dec, type_: In Choice(VEVENTQ),
            veventq_depth: In Dec, out_veventq_id: Out Dec, out_veventq_fd: Out Dec, __reserved: In Reserved,
        }),
        Tail::None,
    ),
    row(
        uapi::HW_QUEUE_ALLOC,
        "IOMMU_HW_QUEUE_ALLOC",
        fields!(uapi::HwQueueAlloc {
            size: In Dec, flags: In Flags(NONE), viommu_id: In Dec, type_: In Choice(HW_QUEUE), index: In Dec,
            out_hw_queue_id: Out Dec, nesting_parent_iova: In Hex, length: In Hex,
        }),
        Tail::None,
    ),
    row(
        test::TEST_CMD,
        "IOMMU_TEST_CMD",
        fields!(test::TestCmd {
            size: In Dec, op: In Choice(TEST_OPS), id: In Dec, __reserved: In Reserved, body: In Words,
        }),
        Tail::None,
    ),
];
