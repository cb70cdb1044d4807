//! `vfio.h` against the crate vfio-bindings. Ioctl numbers are macros, which bindgen leaves out.

use ioasis_uapi::vfio as ours;
use vfio_bindings::bindings::vfio as theirs;

use crate::{same_layout, same_value};

#[test]
fn our_structs_lie_as_bindgen_lays_them() {
    same_layout! {
        IommuType1Info = vfio_iommu_type1_info { argsz, flags, iova_pgsizes, cap_offset, pad };
        IovaRange = vfio_iova_range { start, end };
        IommuType1InfoCapIovaRange = vfio_iommu_type1_info_cap_iova_range { header, nr_iovas, reserved };
        IommuType1InfoCapMigration = vfio_iommu_type1_info_cap_migration { header, flags, pgsize_bitmap, max_dirty_bitmap_size };
        IommuType1InfoDmaAvail = vfio_iommu_type1_info_dma_avail { header, avail };
        IommuType1DmaMap = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size };
        Bitmap = vfio_bitmap { pgsize, size, data };
        IommuType1DmaUnmap = vfio_iommu_type1_dma_unmap { argsz, flags, iova, size };
        IommuType1DirtyBitmap = vfio_iommu_type1_dirty_bitmap { argsz, flags };
        IommuType1DirtyBitmapGet = vfio_iommu_type1_dirty_bitmap_get { iova, size, bitmap };
        DeviceInfo = vfio_device_info { argsz, flags, num_regions, num_irqs, cap_offset, pad };
        DeviceInfoCapPciAtomicComp = vfio_device_info_cap_pci_atomic_comp { header, flags, reserved };
        DeviceBindIommufd = vfio_device_bind_iommufd { argsz, flags, iommufd, out_devid, token_uuid_ptr };
        DeviceAttachIommufdPt = vfio_device_attach_iommufd_pt { argsz, flags, pt_id, pasid };
        DeviceDetachIommufdPt = vfio_device_detach_iommufd_pt { argsz, flags, pasid };
        DeviceIoeventfd = vfio_device_ioeventfd { argsz, flags, offset, data, fd, reserved };
        DeviceGfxPlaneInfo = vfio_device_gfx_plane_info { argsz, flags, drm_plane_type, drm_format, drm_format_mod, width, height, stride, size, x_pos, y_pos, x_hot, y_hot, reserved };
        DeviceFeature = vfio_device_feature { argsz, flags };
        DeviceLowPowerEntryWithWakeup = vfio_device_low_power_entry_with_wakeup { wakeup_eventfd, reserved };
        DeviceFeatureDmaLoggingControl = vfio_device_feature_dma_logging_control { page_size, num_ranges, __reserved, ranges };
        DeviceFeatureDmaLoggingRange = vfio_device_feature_dma_logging_range { iova, length };
        DeviceFeatureDmaLoggingReport = vfio_device_feature_dma_logging_report { iova, length, page_size, bitmap };
        DeviceFeatureBusMaster = vfio_device_feature_bus_master { op };
        RegionDmaRange = vfio_region_dma_range { offset, length };
        DeviceFeatureDmaBuf = vfio_device_feature_dma_buf { region_index, open_flags, flags, nr_ranges };
        GroupStatus = vfio_group_status { argsz, flags };
        IrqInfo = vfio_irq_info { argsz, flags, index, count };
        IrqSet = vfio_irq_set { argsz, flags, index, start, count };
        DeviceFeatureMigration = vfio_device_feature_migration { flags };
        DeviceFeatureMigState = vfio_device_feature_mig_state { device_state, data_fd };
        PrecopyInfo = vfio_precopy_info { argsz, flags, initial_bytes, dirty_bytes };
        DeviceFeatureMigDataSize = vfio_device_feature_mig_data_size { stop_copy_length };
        DeviceMigrationInfo = vfio_device_migration_info { device_state, reserved, pending_bytes, data_offset, data_size };
        InfoCapHeader = vfio_info_cap_header { id, version, next };
        PciDependentDevice = vfio_pci_dependent_device { segment, bus, devfn };
        PciHotResetInfo = vfio_pci_hot_reset_info { argsz, flags, count };
        PciHotReset = vfio_pci_hot_reset { argsz, flags, count };
        RegionInfo = vfio_region_info { argsz, flags, index, cap_offset, size, offset };
        RegionSparseMmapArea = vfio_region_sparse_mmap_area { offset, size };
        RegionInfoCapSparseMmap = vfio_region_info_cap_sparse_mmap { header, nr_areas, reserved };
        RegionInfoCapType = vfio_region_info_cap_type { header, type_, subtype };
        RegionGfxEdid = vfio_region_gfx_edid { edid_offset, edid_max_size, edid_size, max_xres, max_yres, link_state };
        RegionInfoCapNvlink2Ssatgt = vfio_region_info_cap_nvlink2_ssatgt { header, tgt };
        RegionInfoCapNvlink2Lnkspd = vfio_region_info_cap_nvlink2_lnkspd { header, link_speed, __pad };
        IommuSpaprTceDdwInfo = vfio_iommu_spapr_tce_ddw_info { pgsizes, max_dynamic_windows_supported, levels };
        IommuSpaprTceInfo = vfio_iommu_spapr_tce_info { argsz, flags, dma32_window_start, dma32_window_size, ddw };
        EehPeErr = vfio_eeh_pe_err { type_, func, addr, mask };
        EehPeOp = vfio_eeh_pe_op { argsz, flags, op };
        IommuSpaprRegisterMemory = vfio_iommu_spapr_register_memory { argsz, flags, vaddr, size };
        IommuSpaprTceCreate = vfio_iommu_spapr_tce_create { argsz, flags, page_shift, __resv1, window_size, levels, __resv2, start_addr };
        IommuSpaprTceRemove = vfio_iommu_spapr_tce_remove { argsz, flags, start_addr };
    }
}

#[test]
fn our_constants_have_bindgens_values() {
    same_value! {
        IOMMU_INFO_PGSIZES = VFIO_IOMMU_INFO_PGSIZES;
        IOMMU_INFO_CAPS = VFIO_IOMMU_INFO_CAPS;
        IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE;
        IOMMU_TYPE1_INFO_CAP_MIGRATION = VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION;
        IOMMU_TYPE1_INFO_DMA_AVAIL = VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL;
        DMA_MAP_FLAG_READ = VFIO_DMA_MAP_FLAG_READ;
        DMA_MAP_FLAG_WRITE = VFIO_DMA_MAP_FLAG_WRITE;
        DMA_MAP_FLAG_VADDR = VFIO_DMA_MAP_FLAG_VADDR;
        DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
        DMA_UNMAP_FLAG_ALL = VFIO_DMA_UNMAP_FLAG_ALL;
        DMA_UNMAP_FLAG_VADDR = VFIO_DMA_UNMAP_FLAG_VADDR;
        IOMMU_DIRTY_PAGES_FLAG_START = VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
        IOMMU_DIRTY_PAGES_FLAG_STOP = VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP;
        IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
        DEVICE_FLAGS_RESET = VFIO_DEVICE_FLAGS_RESET;
        DEVICE_FLAGS_PCI = VFIO_DEVICE_FLAGS_PCI;
        DEVICE_FLAGS_PLATFORM = VFIO_DEVICE_FLAGS_PLATFORM;
        DEVICE_FLAGS_AMBA = VFIO_DEVICE_FLAGS_AMBA;
        DEVICE_FLAGS_CCW = VFIO_DEVICE_FLAGS_CCW;
        DEVICE_FLAGS_AP = VFIO_DEVICE_FLAGS_AP;
        DEVICE_FLAGS_FSL_MC = VFIO_DEVICE_FLAGS_FSL_MC;
        DEVICE_FLAGS_CAPS = VFIO_DEVICE_FLAGS_CAPS;
        DEVICE_FLAGS_CDX = VFIO_DEVICE_FLAGS_CDX;
        DEVICE_INFO_CAP_ZPCI_BASE = VFIO_DEVICE_INFO_CAP_ZPCI_BASE;
        DEVICE_INFO_CAP_ZPCI_GROUP = VFIO_DEVICE_INFO_CAP_ZPCI_GROUP;
        DEVICE_INFO_CAP_ZPCI_UTIL = VFIO_DEVICE_INFO_CAP_ZPCI_UTIL;
        DEVICE_INFO_CAP_ZPCI_PFIP = VFIO_DEVICE_INFO_CAP_ZPCI_PFIP;
        DEVICE_INFO_CAP_PCI_ATOMIC_COMP = VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP;
        PCI_ATOMIC_COMP32 = VFIO_PCI_ATOMIC_COMP32;
        PCI_ATOMIC_COMP64 = VFIO_PCI_ATOMIC_COMP64;
        PCI_ATOMIC_COMP128 = VFIO_PCI_ATOMIC_COMP128;
        DEVICE_BIND_FLAG_TOKEN = VFIO_DEVICE_BIND_FLAG_TOKEN;
        DEVICE_ATTACH_PASID = VFIO_DEVICE_ATTACH_PASID;
        DEVICE_DETACH_PASID = VFIO_DEVICE_DETACH_PASID;
        DEVICE_IOEVENTFD_8 = VFIO_DEVICE_IOEVENTFD_8;
        DEVICE_IOEVENTFD_16 = VFIO_DEVICE_IOEVENTFD_16;
        DEVICE_IOEVENTFD_32 = VFIO_DEVICE_IOEVENTFD_32;
        DEVICE_IOEVENTFD_64 = VFIO_DEVICE_IOEVENTFD_64;
        DEVICE_IOEVENTFD_SIZE_MASK = VFIO_DEVICE_IOEVENTFD_SIZE_MASK;
        GFX_PLANE_TYPE_PROBE = VFIO_GFX_PLANE_TYPE_PROBE;
        GFX_PLANE_TYPE_DMABUF = VFIO_GFX_PLANE_TYPE_DMABUF;
        GFX_PLANE_TYPE_REGION = VFIO_GFX_PLANE_TYPE_REGION;
        DEVICE_FEATURE_MASK = VFIO_DEVICE_FEATURE_MASK;
        DEVICE_FEATURE_GET = VFIO_DEVICE_FEATURE_GET;
        DEVICE_FEATURE_SET = VFIO_DEVICE_FEATURE_SET;
        DEVICE_FEATURE_PROBE = VFIO_DEVICE_FEATURE_PROBE;
        DEVICE_FEATURE_PCI_VF_TOKEN = VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
        DEVICE_FEATURE_LOW_POWER_ENTRY = VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY;
        DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP;
        DEVICE_FEATURE_LOW_POWER_EXIT = VFIO_DEVICE_FEATURE_LOW_POWER_EXIT;
        DEVICE_FEATURE_DMA_LOGGING_START = VFIO_DEVICE_FEATURE_DMA_LOGGING_START;
        DEVICE_FEATURE_DMA_LOGGING_STOP = VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP;
        DEVICE_FEATURE_DMA_LOGGING_REPORT = VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT;
        DEVICE_FEATURE_CLEAR_MASTER = VFIO_DEVICE_FEATURE_CLEAR_MASTER;
        DEVICE_FEATURE_SET_MASTER = VFIO_DEVICE_FEATURE_SET_MASTER;
        DEVICE_FEATURE_BUS_MASTER = VFIO_DEVICE_FEATURE_BUS_MASTER;
        DEVICE_FEATURE_DMA_BUF = VFIO_DEVICE_FEATURE_DMA_BUF;
        GROUP_FLAGS_VIABLE = VFIO_GROUP_FLAGS_VIABLE;
        GROUP_FLAGS_CONTAINER_SET = VFIO_GROUP_FLAGS_CONTAINER_SET;
        IRQ_INFO_EVENTFD = VFIO_IRQ_INFO_EVENTFD;
        IRQ_INFO_MASKABLE = VFIO_IRQ_INFO_MASKABLE;
        IRQ_INFO_AUTOMASKED = VFIO_IRQ_INFO_AUTOMASKED;
        IRQ_INFO_NORESIZE = VFIO_IRQ_INFO_NORESIZE;
        IRQ_SET_DATA_NONE = VFIO_IRQ_SET_DATA_NONE;
        IRQ_SET_DATA_BOOL = VFIO_IRQ_SET_DATA_BOOL;
        IRQ_SET_DATA_EVENTFD = VFIO_IRQ_SET_DATA_EVENTFD;
        IRQ_SET_ACTION_MASK = VFIO_IRQ_SET_ACTION_MASK;
        IRQ_SET_ACTION_UNMASK = VFIO_IRQ_SET_ACTION_UNMASK;
        IRQ_SET_ACTION_TRIGGER = VFIO_IRQ_SET_ACTION_TRIGGER;
        IRQ_SET_DATA_TYPE_MASK = VFIO_IRQ_SET_DATA_TYPE_MASK;
        IRQ_SET_ACTION_TYPE_MASK = VFIO_IRQ_SET_ACTION_TYPE_MASK;
        CCW_CONFIG_REGION_INDEX = VFIO_CCW_CONFIG_REGION_INDEX;
        CCW_NUM_REGIONS = VFIO_CCW_NUM_REGIONS;
        CCW_IO_IRQ_INDEX = VFIO_CCW_IO_IRQ_INDEX;
        CCW_CRW_IRQ_INDEX = VFIO_CCW_CRW_IRQ_INDEX;
        CCW_REQ_IRQ_INDEX = VFIO_CCW_REQ_IRQ_INDEX;
        CCW_NUM_IRQS = VFIO_CCW_NUM_IRQS;
        AP_REQ_IRQ_INDEX = VFIO_AP_REQ_IRQ_INDEX;
        AP_CFG_CHG_IRQ_INDEX = VFIO_AP_CFG_CHG_IRQ_INDEX;
        AP_NUM_IRQS = VFIO_AP_NUM_IRQS;
        MIGRATION_STOP_COPY = VFIO_MIGRATION_STOP_COPY;
        MIGRATION_P2P = VFIO_MIGRATION_P2P;
        MIGRATION_PRE_COPY = VFIO_MIGRATION_PRE_COPY;
        DEVICE_FEATURE_MIGRATION = VFIO_DEVICE_FEATURE_MIGRATION;
        DEVICE_FEATURE_MIG_DEVICE_STATE = VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
        DEVICE_STATE_ERROR = vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR;
        DEVICE_STATE_STOP = vfio_device_mig_state_VFIO_DEVICE_STATE_STOP;
        DEVICE_STATE_RUNNING = vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING;
        DEVICE_STATE_STOP_COPY = vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY;
        DEVICE_STATE_RESUMING = vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING;
        DEVICE_STATE_RUNNING_P2P = vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P;
        DEVICE_STATE_PRE_COPY = vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY;
        DEVICE_STATE_PRE_COPY_P2P = vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P;
        DEVICE_STATE_NR = vfio_device_mig_state_VFIO_DEVICE_STATE_NR;
        PRECOPY_INFO_REINIT = VFIO_PRECOPY_INFO_REINIT;
        DEVICE_FEATURE_MIG_DATA_SIZE = VFIO_DEVICE_FEATURE_MIG_DATA_SIZE;
        DEVICE_FEATURE_MIG_PRECOPY_INFOv2 = VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2;
        DEVICE_STATE_V1_STOP = VFIO_DEVICE_STATE_V1_STOP;
        DEVICE_STATE_V1_RUNNING = VFIO_DEVICE_STATE_V1_RUNNING;
        DEVICE_STATE_V1_SAVING = VFIO_DEVICE_STATE_V1_SAVING;
        DEVICE_STATE_V1_RESUMING = VFIO_DEVICE_STATE_V1_RESUMING;
        DEVICE_STATE_MASK = VFIO_DEVICE_STATE_MASK;
        API_VERSION = VFIO_API_VERSION;
        TYPE1_IOMMU = VFIO_TYPE1_IOMMU;
        SPAPR_TCE_IOMMU = VFIO_SPAPR_TCE_IOMMU;
        TYPE1v2_IOMMU = VFIO_TYPE1v2_IOMMU;
        DMA_CC_IOMMU = VFIO_DMA_CC_IOMMU;
        EEH = VFIO_EEH;
        __RESERVED_TYPE1_NESTING_IOMMU = __VFIO_RESERVED_TYPE1_NESTING_IOMMU;
        SPAPR_TCE_v2_IOMMU = VFIO_SPAPR_TCE_v2_IOMMU;
        NOIOMMU_IOMMU = VFIO_NOIOMMU_IOMMU;
        UNMAP_ALL = VFIO_UNMAP_ALL;
        UPDATE_VADDR = VFIO_UPDATE_VADDR;
        TYPE = VFIO_TYPE;
        BASE = VFIO_BASE;
        PCI_BAR0_REGION_INDEX = VFIO_PCI_BAR0_REGION_INDEX;
        PCI_BAR1_REGION_INDEX = VFIO_PCI_BAR1_REGION_INDEX;
        PCI_BAR2_REGION_INDEX = VFIO_PCI_BAR2_REGION_INDEX;
        PCI_BAR3_REGION_INDEX = VFIO_PCI_BAR3_REGION_INDEX;
        PCI_BAR4_REGION_INDEX = VFIO_PCI_BAR4_REGION_INDEX;
        PCI_BAR5_REGION_INDEX = VFIO_PCI_BAR5_REGION_INDEX;
        PCI_ROM_REGION_INDEX = VFIO_PCI_ROM_REGION_INDEX;
        PCI_CONFIG_REGION_INDEX = VFIO_PCI_CONFIG_REGION_INDEX;
        PCI_VGA_REGION_INDEX = VFIO_PCI_VGA_REGION_INDEX;
        PCI_NUM_REGIONS = VFIO_PCI_NUM_REGIONS;
        PCI_INTX_IRQ_INDEX = VFIO_PCI_INTX_IRQ_INDEX;
        PCI_MSI_IRQ_INDEX = VFIO_PCI_MSI_IRQ_INDEX;
        PCI_MSIX_IRQ_INDEX = VFIO_PCI_MSIX_IRQ_INDEX;
        PCI_ERR_IRQ_INDEX = VFIO_PCI_ERR_IRQ_INDEX;
        PCI_REQ_IRQ_INDEX = VFIO_PCI_REQ_IRQ_INDEX;
        PCI_NUM_IRQS = VFIO_PCI_NUM_IRQS;
        PCI_DEVID_OWNED = VFIO_PCI_DEVID_OWNED;
        PCI_HOT_RESET_FLAG_DEV_ID = VFIO_PCI_HOT_RESET_FLAG_DEV_ID;
        PCI_HOT_RESET_FLAG_DEV_ID_OWNED = VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED;
        REGION_INFO_FLAG_READ = VFIO_REGION_INFO_FLAG_READ;
        REGION_INFO_FLAG_WRITE = VFIO_REGION_INFO_FLAG_WRITE;
        REGION_INFO_FLAG_MMAP = VFIO_REGION_INFO_FLAG_MMAP;
        REGION_INFO_FLAG_CAPS = VFIO_REGION_INFO_FLAG_CAPS;
        REGION_INFO_CAP_SPARSE_MMAP = VFIO_REGION_INFO_CAP_SPARSE_MMAP;
        REGION_INFO_CAP_TYPE = VFIO_REGION_INFO_CAP_TYPE;
        REGION_TYPE_PCI_VENDOR_TYPE = VFIO_REGION_TYPE_PCI_VENDOR_TYPE;
        REGION_TYPE_PCI_VENDOR_MASK = VFIO_REGION_TYPE_PCI_VENDOR_MASK;
        REGION_TYPE_GFX = VFIO_REGION_TYPE_GFX;
        REGION_TYPE_CCW = VFIO_REGION_TYPE_CCW;
        REGION_TYPE_MIGRATION_DEPRECATED = VFIO_REGION_TYPE_MIGRATION_DEPRECATED;
        REGION_SUBTYPE_INTEL_IGD_OPREGION = VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION;
        REGION_SUBTYPE_INTEL_IGD_HOST_CFG = VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG;
        REGION_SUBTYPE_INTEL_IGD_LPC_CFG = VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG;
        REGION_SUBTYPE_NVIDIA_NVLINK2_RAM = VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM;
        REGION_SUBTYPE_IBM_NVLINK2_ATSD = VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD;
        REGION_SUBTYPE_GFX_EDID = VFIO_REGION_SUBTYPE_GFX_EDID;
        DEVICE_GFX_LINK_STATE_UP = VFIO_DEVICE_GFX_LINK_STATE_UP;
        DEVICE_GFX_LINK_STATE_DOWN = VFIO_DEVICE_GFX_LINK_STATE_DOWN;
        REGION_SUBTYPE_CCW_ASYNC_CMD = VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD;
        REGION_SUBTYPE_CCW_SCHIB = VFIO_REGION_SUBTYPE_CCW_SCHIB;
        REGION_SUBTYPE_CCW_CRW = VFIO_REGION_SUBTYPE_CCW_CRW;
        REGION_SUBTYPE_MIGRATION_DEPRECATED = VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED;
        REGION_INFO_CAP_MSIX_MAPPABLE = VFIO_REGION_INFO_CAP_MSIX_MAPPABLE;
        REGION_INFO_CAP_NVLINK2_SSATGT = VFIO_REGION_INFO_CAP_NVLINK2_SSATGT;
        REGION_INFO_CAP_NVLINK2_LNKSPD = VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD;
        IOMMU_SPAPR_INFO_DDW = VFIO_IOMMU_SPAPR_INFO_DDW;
        EEH_PE_DISABLE = VFIO_EEH_PE_DISABLE;
        EEH_PE_ENABLE = VFIO_EEH_PE_ENABLE;
        EEH_PE_UNFREEZE_IO = VFIO_EEH_PE_UNFREEZE_IO;
        EEH_PE_UNFREEZE_DMA = VFIO_EEH_PE_UNFREEZE_DMA;
        EEH_PE_GET_STATE = VFIO_EEH_PE_GET_STATE;
        EEH_PE_STATE_NORMAL = VFIO_EEH_PE_STATE_NORMAL;
        EEH_PE_STATE_RESET = VFIO_EEH_PE_STATE_RESET;
        EEH_PE_STATE_STOPPED = VFIO_EEH_PE_STATE_STOPPED;
        EEH_PE_STATE_STOPPED_DMA = VFIO_EEH_PE_STATE_STOPPED_DMA;
        EEH_PE_STATE_UNAVAIL = VFIO_EEH_PE_STATE_UNAVAIL;
        EEH_PE_RESET_DEACTIVATE = VFIO_EEH_PE_RESET_DEACTIVATE;
        EEH_PE_RESET_HOT = VFIO_EEH_PE_RESET_HOT;
        EEH_PE_RESET_FUNDAMENTAL = VFIO_EEH_PE_RESET_FUNDAMENTAL;
        EEH_PE_CONFIGURE = VFIO_EEH_PE_CONFIGURE;
        EEH_PE_INJECT_ERR = VFIO_EEH_PE_INJECT_ERR;
    }
}

#[test]
fn our_strings_are_bindgens_without_the_nul() {
    assert_eq!(
        theirs::VFIO_DEVICE_API_PCI_STRING,
        with_nul(ours::DEVICE_API_PCI_STRING).as_slice()
    );
    assert_eq!(
        theirs::VFIO_DEVICE_API_PLATFORM_STRING,
        with_nul(ours::DEVICE_API_PLATFORM_STRING).as_slice()
    );
    assert_eq!(
        theirs::VFIO_DEVICE_API_AMBA_STRING,
        with_nul(ours::DEVICE_API_AMBA_STRING).as_slice()
    );
    assert_eq!(
        theirs::VFIO_DEVICE_API_CCW_STRING,
        with_nul(ours::DEVICE_API_CCW_STRING).as_slice()
    );
    assert_eq!(theirs::VFIO_DEVICE_API_AP_STRING, with_nul(ours::DEVICE_API_AP_STRING).as_slice());
}

fn with_nul(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}
