//! The VFIO ioctls by the kind of file: one number means different things on a container, a group and a device.

use ioasis_uapi::vfio as uapi;

use super::layout::Show::{Choice, Dec, Flags, Hex, Reserved, Signed};
use super::layout::{Field, Names, fields};
use super::row::{Row, Shape, Tail};

const EXTENSIONS: Names = &[
    (uapi::TYPE1_IOMMU as u64, "VFIO_TYPE1_IOMMU"),
    (uapi::SPAPR_TCE_IOMMU as u64, "VFIO_SPAPR_TCE_IOMMU"),
    (uapi::TYPE1v2_IOMMU as u64, "VFIO_TYPE1v2_IOMMU"),
    (uapi::DMA_CC_IOMMU as u64, "VFIO_DMA_CC_IOMMU"),
    (uapi::EEH as u64, "VFIO_EEH"),
    (uapi::__RESERVED_TYPE1_NESTING_IOMMU as u64, "VFIO_TYPE1_NESTING_IOMMU"),
    (uapi::SPAPR_TCE_v2_IOMMU as u64, "VFIO_SPAPR_TCE_v2_IOMMU"),
    (uapi::NOIOMMU_IOMMU as u64, "VFIO_NOIOMMU_IOMMU"),
    (uapi::UNMAP_ALL as u64, "VFIO_UNMAP_ALL"),
    (uapi::UPDATE_VADDR as u64, "VFIO_UPDATE_VADDR"),
];
const IOMMU_INFO: Names =
    &[(uapi::IOMMU_INFO_PGSIZES as u64, "PGSIZES"), (uapi::IOMMU_INFO_CAPS as u64, "CAPS")];
const MAP: Names = &[
    (uapi::DMA_MAP_FLAG_READ as u64, "READ"),
    (uapi::DMA_MAP_FLAG_WRITE as u64, "WRITE"),
    (uapi::DMA_MAP_FLAG_VADDR as u64, "VADDR"),
];
const UNMAP: Names = &[
    (uapi::DMA_UNMAP_FLAG_GET_DIRTY_BITMAP as u64, "GET_DIRTY_BITMAP"),
    (uapi::DMA_UNMAP_FLAG_ALL as u64, "ALL"),
    (uapi::DMA_UNMAP_FLAG_VADDR as u64, "VADDR"),
];
const DIRTY: Names = &[
    (uapi::IOMMU_DIRTY_PAGES_FLAG_START as u64, "START"),
    (uapi::IOMMU_DIRTY_PAGES_FLAG_STOP as u64, "STOP"),
    (uapi::IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP as u64, "GET_BITMAP"),
];
const STATUS: Names = &[
    (uapi::GROUP_FLAGS_VIABLE as u64, "VIABLE"),
    (uapi::GROUP_FLAGS_CONTAINER_SET as u64, "CONTAINER_SET"),
];
const DEVICE_FLAGS: Names = &[
    (uapi::DEVICE_FLAGS_RESET as u64, "RESET"),
    (uapi::DEVICE_FLAGS_PCI as u64, "PCI"),
    (uapi::DEVICE_FLAGS_PLATFORM as u64, "PLATFORM"),
    (uapi::DEVICE_FLAGS_AMBA as u64, "AMBA"),
    (uapi::DEVICE_FLAGS_CCW as u64, "CCW"),
    (uapi::DEVICE_FLAGS_AP as u64, "AP"),
    (uapi::DEVICE_FLAGS_FSL_MC as u64, "FSL_MC"),
    (uapi::DEVICE_FLAGS_CAPS as u64, "CAPS"),
    (uapi::DEVICE_FLAGS_CDX as u64, "CDX"),
];
/// The regions of a vfio-pci device.
pub(super) const REGIONS: Names = &[
    (uapi::PCI_BAR0_REGION_INDEX as u64, "BAR0"),
    (uapi::PCI_BAR1_REGION_INDEX as u64, "BAR1"),
    (uapi::PCI_BAR2_REGION_INDEX as u64, "BAR2"),
    (uapi::PCI_BAR3_REGION_INDEX as u64, "BAR3"),
    (uapi::PCI_BAR4_REGION_INDEX as u64, "BAR4"),
    (uapi::PCI_BAR5_REGION_INDEX as u64, "BAR5"),
    (uapi::PCI_ROM_REGION_INDEX as u64, "ROM"),
    (uapi::PCI_CONFIG_REGION_INDEX as u64, "CONFIG"),
    (uapi::PCI_VGA_REGION_INDEX as u64, "VGA"),
];

const REGION: Names = &[
    (uapi::REGION_INFO_FLAG_READ as u64, "READ"),
    (uapi::REGION_INFO_FLAG_WRITE as u64, "WRITE"),
    (uapi::REGION_INFO_FLAG_MMAP as u64, "MMAP"),
    (uapi::REGION_INFO_FLAG_CAPS as u64, "CAPS"),
];
const IRQ: Names = &[
    (uapi::IRQ_INFO_EVENTFD as u64, "EVENTFD"),
    (uapi::IRQ_INFO_MASKABLE as u64, "MASKABLE"),
    (uapi::IRQ_INFO_AUTOMASKED as u64, "AUTOMASKED"),
    (uapi::IRQ_INFO_NORESIZE as u64, "NORESIZE"),
];
const IRQ_SET: Names = &[
    (uapi::IRQ_SET_DATA_NONE as u64, "DATA_NONE"),
    (uapi::IRQ_SET_DATA_BOOL as u64, "DATA_BOOL"),
    (uapi::IRQ_SET_DATA_EVENTFD as u64, "DATA_EVENTFD"),
    (uapi::IRQ_SET_ACTION_MASK as u64, "ACTION_MASK"),
    (uapi::IRQ_SET_ACTION_UNMASK as u64, "ACTION_UNMASK"),
    (uapi::IRQ_SET_ACTION_TRIGGER as u64, "ACTION_TRIGGER"),
];
const IRQS: Names = &[
    (uapi::PCI_INTX_IRQ_INDEX as u64, "INTX"),
    (uapi::PCI_MSI_IRQ_INDEX as u64, "MSI"),
    (uapi::PCI_MSIX_IRQ_INDEX as u64, "MSIX"),
    (uapi::PCI_ERR_IRQ_INDEX as u64, "ERR"),
    (uapi::PCI_REQ_IRQ_INDEX as u64, "REQ"),
];
const HOT_RESET: Names = &[
    (uapi::PCI_HOT_RESET_FLAG_DEV_ID as u64, "DEV_ID"),
    (uapi::PCI_HOT_RESET_FLAG_DEV_ID_OWNED as u64, "DEV_ID_OWNED"),
];
const IOEVENTFD: Names = &[
    (uapi::DEVICE_IOEVENTFD_8 as u64, "8"),
    (uapi::DEVICE_IOEVENTFD_16 as u64, "16"),
    (uapi::DEVICE_IOEVENTFD_32 as u64, "32"),
    (uapi::DEVICE_IOEVENTFD_64 as u64, "64"),
];
const GFX: Names = &[
    (uapi::GFX_PLANE_TYPE_PROBE as u64, "PROBE"),
    (uapi::GFX_PLANE_TYPE_DMABUF as u64, "DMABUF"),
    (uapi::GFX_PLANE_TYPE_REGION as u64, "REGION"),
];
const BIND: Names = &[(uapi::DEVICE_BIND_FLAG_TOKEN as u64, "TOKEN")];
const PASID: Names = &[(uapi::DEVICE_ATTACH_PASID as u64, "PASID")];
const REINIT: Names = &[(uapi::PRECOPY_INFO_REINIT as u64, "REINIT")];
const NONE: Names = &[];
const SPAPR_INFO: Names = &[(uapi::IOMMU_SPAPR_INFO_DDW as u64, "DDW")];

/// Names of uapi::DEVICE_FEATURE's lower 16 bits.
pub(super) const FEATURES: Names = &[
    (uapi::DEVICE_FEATURE_PCI_VF_TOKEN as u64, "PCI_VF_TOKEN"),
    (uapi::DEVICE_FEATURE_MIGRATION as u64, "MIGRATION"),
    (uapi::DEVICE_FEATURE_MIG_DEVICE_STATE as u64, "MIG_DEVICE_STATE"),
    (uapi::DEVICE_FEATURE_LOW_POWER_ENTRY as u64, "LOW_POWER_ENTRY"),
    (uapi::DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP as u64, "LOW_POWER_ENTRY_WITH_WAKEUP"),
    (uapi::DEVICE_FEATURE_LOW_POWER_EXIT as u64, "LOW_POWER_EXIT"),
    (uapi::DEVICE_FEATURE_DMA_LOGGING_START as u64, "DMA_LOGGING_START"),
    (uapi::DEVICE_FEATURE_DMA_LOGGING_STOP as u64, "DMA_LOGGING_STOP"),
    (uapi::DEVICE_FEATURE_DMA_LOGGING_REPORT as u64, "DMA_LOGGING_REPORT"),
    (uapi::DEVICE_FEATURE_MIG_DATA_SIZE as u64, "MIG_DATA_SIZE"),
    (uapi::DEVICE_FEATURE_BUS_MASTER as u64, "BUS_MASTER"),
    (uapi::DEVICE_FEATURE_DMA_BUF as u64, "DMA_BUF"),
    (uapi::DEVICE_FEATURE_MIG_PRECOPY_INFOv2 as u64, "MIG_PRECOPY_INFOv2"),
    (uapi::DEVICE_FEATURE_ZPCI_ERROR as u64, "ZPCI_ERROR"),
];

/// Names of uapi::DEVICE_FEATURE's operations.
pub(super) const FEATURE_OPS: Names = &[
    (uapi::DEVICE_FEATURE_GET as u64, "GET"),
    (uapi::DEVICE_FEATURE_SET as u64, "SET"),
    (uapi::DEVICE_FEATURE_PROBE as u64, "PROBE"),
];

const STATES: Names = &[
    (uapi::DEVICE_STATE_ERROR as u64, "ERROR"),
    (uapi::DEVICE_STATE_STOP as u64, "STOP"),
    (uapi::DEVICE_STATE_RUNNING as u64, "RUNNING"),
    (uapi::DEVICE_STATE_STOP_COPY as u64, "STOP_COPY"),
    (uapi::DEVICE_STATE_RESUMING as u64, "RESUMING"),
    (uapi::DEVICE_STATE_RUNNING_P2P as u64, "RUNNING_P2P"),
    (uapi::DEVICE_STATE_PRE_COPY as u64, "PRE_COPY"),
    (uapi::DEVICE_STATE_PRE_COPY_P2P as u64, "PRE_COPY_P2P"),
];

/// What follows the header of uapi::DEVICE_FEATURE.
pub(super) fn feature(number: u32) -> Option<&'static [Field]> {
    const MIGRATION: &[Field] = fields!(uapi::DeviceFeatureMigration {
        flags: Out Flags(&[
            (uapi::MIGRATION_STOP_COPY, "STOP_COPY"), (uapi::MIGRATION_P2P, "P2P"), (uapi::MIGRATION_PRE_COPY, "PRE_COPY"),
        ]),
    });
    const STATE: &[Field] = fields!(uapi::DeviceFeatureMigState { device_state: InOut Choice(STATES), data_fd: Out Signed });
    const WAKEUP: &[Field] = fields!(uapi::DeviceLowPowerEntryWithWakeup { wakeup_eventfd: In Signed, reserved: In Reserved });
    const LOGGING: &[Field] = fields!(uapi::DeviceFeatureDmaLoggingControl {
        page_size: In Hex, num_ranges: In Dec, __reserved: In Reserved, ranges: In Hex,
    });
    const REPORT: &[Field] = fields!(uapi::DeviceFeatureDmaLoggingReport {
        iova: In Hex, length: In Hex, page_size: In Hex, bitmap: In Hex,
    });
    const SIZE: &[Field] = fields!(uapi::DeviceFeatureMigDataSize { stop_copy_length: Out Hex });
    const MASTER: &[Field] = fields!(uapi::DeviceFeatureBusMaster {
        op: In Choice(&[
            (uapi::DEVICE_FEATURE_CLEAR_MASTER as u64, "CLEAR_MASTER"), (uapi::DEVICE_FEATURE_SET_MASTER as u64, "SET_MASTER"),
        ]),
    });
    const DMA_BUF: &[Field] = fields!(uapi::DeviceFeatureDmaBuf {
        region_index: In Choice(REGIONS), open_flags: In Hex, flags: In Hex, nr_ranges: In Dec,
    });
    match number {
        uapi::DEVICE_FEATURE_MIGRATION => Some(MIGRATION),
        uapi::DEVICE_FEATURE_MIG_DEVICE_STATE => Some(STATE),
        uapi::DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP => Some(WAKEUP),
        uapi::DEVICE_FEATURE_DMA_LOGGING_START => Some(LOGGING),
        uapi::DEVICE_FEATURE_DMA_LOGGING_REPORT => Some(REPORT),
        uapi::DEVICE_FEATURE_MIG_DATA_SIZE => Some(SIZE),
        uapi::DEVICE_FEATURE_BUS_MASTER => Some(MASTER),
        uapi::DEVICE_FEATURE_DMA_BUF => Some(DMA_BUF),
        _ => None,
    }
}

/// `struct vfio_bitmap`, which follows two ioctls' arguments.
pub(super) const BITMAP: &[Field] =
    fields!(uapi::Bitmap { pgsize: In Hex, size: In Hex, data: In Hex });

/// `struct vfio_iommu_type1_dirty_bitmap_get`.
pub(super) const BITMAP_RANGE: &[Field] =
    fields!(uapi::IommuType1DirtyBitmapGet { iova: In Hex, size: In Hex });

const fn row(request: u32, name: &'static str, fields: &'static [Field], tail: Tail) -> Row {
    Row { request, name, shape: Shape::Struct(fields, tail) }
}

const fn bare(request: u32, name: &'static str) -> Row {
    Row { request, name, shape: Shape::Nothing }
}

/// What a virtual machine tells of VFIO.
pub(super) const KVM: &[Row] = &[
    bare(ioasis_vfio::KVM_CREATE_DEVICE, "KVM_CREATE_DEVICE"),
    bare(ioasis_vfio::KVM_SET_DEVICE_ATTR, "KVM_SET_DEVICE_ATTR"),
    bare(ioasis_vfio::KVM_GET_DEVICE_ATTR, "KVM_GET_DEVICE_ATTR"),
    bare(ioasis_vfio::KVM_HAS_DEVICE_ATTR, "KVM_HAS_DEVICE_ATTR"),
];

/// On /dev/vfio/vfio, and on /dev/iommu.
pub(super) static CONTAINER: &[Row] = &[
    bare(uapi::GET_API_VERSION, "VFIO_GET_API_VERSION"),
    Row {
        request: uapi::CHECK_EXTENSION,
        name: "VFIO_CHECK_EXTENSION",
        shape: Shape::Choice(EXTENSIONS),
    },
    Row { request: uapi::SET_IOMMU, name: "VFIO_SET_IOMMU", shape: Shape::Choice(EXTENSIONS) },
    row(
        uapi::IOMMU_GET_INFO,
        "VFIO_IOMMU_GET_INFO",
        fields!(uapi::IommuType1Info {
            argsz: InOut Dec, flags: Out Flags(IOMMU_INFO), iova_pgsizes: Out Hex, cap_offset: Out Dec,
        }),
        Tail::IommuCapabilities,
    ),
    row(
        uapi::IOMMU_MAP_DMA,
        "VFIO_IOMMU_MAP_DMA",
        fields!(uapi::IommuType1DmaMap {
            argsz: In Dec, flags: In Flags(MAP), vaddr: In Hex, iova: In Hex, size: In Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOMMU_UNMAP_DMA,
        "VFIO_IOMMU_UNMAP_DMA",
        fields!(uapi::IommuType1DmaUnmap { argsz: In Dec, flags: In Flags(UNMAP), iova: In Hex, size: InOut Hex }),
        Tail::UnmapBitmap,
    ),
    bare(uapi::IOMMU_ENABLE, "VFIO_IOMMU_ENABLE"),
    bare(uapi::IOMMU_DISABLE, "VFIO_IOMMU_DISABLE"),
    row(
        uapi::IOMMU_DIRTY_PAGES,
        "VFIO_IOMMU_DIRTY_PAGES",
        fields!(uapi::IommuType1DirtyBitmap { argsz: In Dec, flags: In Flags(DIRTY) }),
        Tail::DirtyBitmap,
    ),
    row(
        uapi::IOMMU_SPAPR_UNREGISTER_MEMORY,
        "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY",
        fields!(uapi::IommuSpaprRegisterMemory { argsz: In Dec, flags: In Flags(NONE), vaddr: In Hex, size: In Hex }),
        Tail::None,
    ),
    row(
        uapi::IOMMU_SPAPR_TCE_CREATE,
        "VFIO_IOMMU_SPAPR_TCE_CREATE",
        fields!(uapi::IommuSpaprTceCreate {
            argsz: In Dec, flags: In Flags(NONE), page_shift: In Dec, window_size: In Hex, levels: In Dec,
            start_addr: Out Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOMMU_SPAPR_TCE_REMOVE,
        "VFIO_IOMMU_SPAPR_TCE_REMOVE",
        fields!(uapi::IommuSpaprTceRemove { argsz: In Dec, flags: In Flags(NONE), start_addr: In Hex }),
        Tail::None,
    ),
    row(
        uapi::EEH_PE_OP,
        "VFIO_EEH_PE_OP",
        fields!(uapi::EehPeOp { argsz: In Dec, flags: In Flags(NONE), op: In Dec }),
        Tail::None,
    ),
];

/// What has the number of another call in [`CONTAINER`].
pub(super) static SPAPR: &[Row] = &[
    row(
        uapi::IOMMU_SPAPR_TCE_GET_INFO,
        "VFIO_IOMMU_SPAPR_TCE_GET_INFO",
        fields!(uapi::IommuSpaprTceInfo {
            argsz: In Dec, flags: Out Flags(SPAPR_INFO), dma32_window_start: Out Hex, dma32_window_size: Out Hex,
        }),
        Tail::None,
    ),
    row(
        uapi::IOMMU_SPAPR_REGISTER_MEMORY,
        "VFIO_IOMMU_SPAPR_REGISTER_MEMORY",
        fields!(uapi::IommuSpaprRegisterMemory { argsz: In Dec, flags: In Flags(NONE), vaddr: In Hex, size: In Hex }),
        Tail::None,
    ),
];

/// On /dev/vfio/N.
pub(super) static GROUP: &[Row] = &[
    row(
        uapi::GROUP_GET_STATUS,
        "VFIO_GROUP_GET_STATUS",
        fields!(uapi::GroupStatus { argsz: In Dec, flags: Out Flags(STATUS) }),
        Tail::None,
    ),
    Row { request: uapi::GROUP_SET_CONTAINER, name: "VFIO_GROUP_SET_CONTAINER", shape: Shape::Fd },
    bare(uapi::GROUP_UNSET_CONTAINER, "VFIO_GROUP_UNSET_CONTAINER"),
    Row {
        request: uapi::GROUP_GET_DEVICE_FD,
        name: "VFIO_GROUP_GET_DEVICE_FD",
        shape: Shape::Text,
    },
];

/// On a device.
pub(super) static DEVICE: &[Row] = &[
    row(
        uapi::DEVICE_GET_INFO,
        "VFIO_DEVICE_GET_INFO",
        fields!(uapi::DeviceInfo {
            argsz: InOut Dec, flags: Out Flags(DEVICE_FLAGS), num_regions: Out Dec, num_irqs: Out Dec,
            cap_offset: Out Dec,
        }),
        Tail::DeviceCapabilities,
    ),
    row(
        uapi::DEVICE_GET_REGION_INFO,
        "VFIO_DEVICE_GET_REGION_INFO",
        fields!(uapi::RegionInfo {
            argsz: InOut Dec, index: In Choice(REGIONS), flags: Out Flags(REGION), cap_offset: Out Dec,
            size: Out Hex, offset: Out Hex,
        }),
        Tail::RegionCapabilities,
    ),
    row(
        uapi::DEVICE_GET_IRQ_INFO,
        "VFIO_DEVICE_GET_IRQ_INFO",
        fields!(uapi::IrqInfo { argsz: In Dec, index: In Choice(IRQS), flags: Out Flags(IRQ), count: Out Dec }),
        Tail::None,
    ),
    row(
        uapi::DEVICE_SET_IRQS,
        "VFIO_DEVICE_SET_IRQS",
        fields!(uapi::IrqSet {
            argsz: In Dec, flags: In Flags(IRQ_SET), index: In Choice(IRQS), start: In Dec, count: In Dec,
        }),
        Tail::IrqData,
    ),
    bare(uapi::DEVICE_RESET, "VFIO_DEVICE_RESET"),
    row(
        uapi::DEVICE_GET_PCI_HOT_RESET_INFO,
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO",
        fields!(uapi::PciHotResetInfo { argsz: In Dec, flags: Out Flags(HOT_RESET), count: InOut Dec }),
        Tail::Dependents,
    ),
    row(
        uapi::DEVICE_PCI_HOT_RESET,
        "VFIO_DEVICE_PCI_HOT_RESET",
        fields!(uapi::PciHotReset { argsz: In Dec, flags: In Flags(NONE), count: In Dec }),
        Tail::GroupFds,
    ),
    row(
        uapi::DEVICE_QUERY_GFX_PLANE,
        "VFIO_DEVICE_QUERY_GFX_PLANE",
        fields!(uapi::DeviceGfxPlaneInfo { argsz: In Dec, flags: In Flags(GFX) }),
        Tail::None,
    ),
    bare(uapi::DEVICE_GET_GFX_DMABUF, "VFIO_DEVICE_GET_GFX_DMABUF"),
    row(
        uapi::DEVICE_IOEVENTFD,
        "VFIO_DEVICE_IOEVENTFD",
        fields!(uapi::DeviceIoeventfd {
            argsz: In Dec, flags: In Flags(IOEVENTFD), offset: In Hex, data: In Hex, fd: In Signed,
            reserved: In Reserved,
        }),
        Tail::None,
    ),
    row(
        uapi::DEVICE_FEATURE,
        "VFIO_DEVICE_FEATURE",
        fields!(uapi::DeviceFeature { argsz: In Dec }),
        Tail::Feature,
    ),
    row(
        uapi::DEVICE_BIND_IOMMUFD,
        "VFIO_DEVICE_BIND_IOMMUFD",
        fields!(uapi::DeviceBindIommufd {
            argsz: In Dec, flags: In Flags(BIND), iommufd: In Signed, out_devid: Out Dec,
        }),
        Tail::Token,
    ),
    row(
        uapi::DEVICE_ATTACH_IOMMUFD_PT,
        "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
        fields!(uapi::DeviceAttachIommufdPt { argsz: In Dec, flags: In Flags(PASID), pt_id: InOut Dec, pasid: In Dec }),
        Tail::None,
    ),
    row(
        uapi::DEVICE_DETACH_IOMMUFD_PT,
        "VFIO_DEVICE_DETACH_IOMMUFD_PT",
        fields!(uapi::DeviceDetachIommufdPt { argsz: In Dec, flags: In Flags(PASID), pasid: In Dec }),
        Tail::None,
    ),
    row(
        uapi::MIG_GET_PRECOPY_INFO,
        "VFIO_MIG_GET_PRECOPY_INFO",
        fields!(uapi::PrecopyInfo {
            argsz: In Dec, flags: Out Flags(REINIT), initial_bytes: Out Hex, dirty_bytes: Out Hex,
        }),
        Tail::None,
    ),
];
