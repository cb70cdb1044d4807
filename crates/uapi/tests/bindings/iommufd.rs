//! `iommufd.h` against the crate iommufd-bindings. Ioctl numbers are macros, which bindgen leaves
//! out.

use ioasis_uapi::iommufd as ours;
use iommufd_bindings as theirs;

use crate::{same_layout, same_value};

#[test]
fn our_structs_lie_as_bindgen_lays_them() {
    same_layout! {
        HwptPgfault = iommu_hwpt_pgfault { flags, dev_id, pasid, grpid, perm, __reserved, addr, length, cookie };
        HwptPageResponse = iommu_hwpt_page_response { cookie, code };
        FaultAlloc = iommu_fault_alloc { size, flags, out_fault_id, out_fault_fd };
        HwInfoVtd = iommu_hw_info_vtd { flags, __reserved, cap_reg, ecap_reg };
        HwInfoArmSmmuv3 = iommu_hw_info_arm_smmuv3 { flags, __reserved, idr, iidr, aidr };
        HwInfoTegra241Cmdqv = iommu_hw_info_tegra241_cmdqv { flags, version, log2vcmdqs, log2vsids, __reserved };
        HwInfoAmd = iommu_hw_info_amd { efr, efr2 };
        HwInfo = iommu_hw_info { size, flags, dev_id, data_len, data_uptr, out_max_pasid_log2, __reserved, out_capabilities };
        HwptVtdS1 = iommu_hwpt_vtd_s1 { flags, pgtbl_addr, addr_width, __reserved };
        HwptArmSmmuv3 = iommu_hwpt_arm_smmuv3 { ste };
        HwptAmdGuest = iommu_hwpt_amd_guest { dte };
        HwptAlloc = iommu_hwpt_alloc { size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len, data_uptr, fault_id, __reserved2 };
        HwptSetDirtyTracking = iommu_hwpt_set_dirty_tracking { size, flags, hwpt_id, __reserved };
        HwptGetDirtyBitmap = iommu_hwpt_get_dirty_bitmap { size, hwpt_id, flags, __reserved, iova, length, page_size, data };
        HwptVtdS1Invalidate = iommu_hwpt_vtd_s1_invalidate { addr, npages, flags, __reserved };
        ViommuArmSmmuv3Invalidate = iommu_viommu_arm_smmuv3_invalidate { cmd };
        HwptInvalidate = iommu_hwpt_invalidate { size, hwpt_id, data_uptr, data_type, entry_len, entry_num, __reserved };
        IoasAlloc = iommu_ioas_alloc { size, flags, out_ioas_id };
        IovaRange = iommu_iova_range { start, last };
        IoasIovaRanges = iommu_ioas_iova_ranges { size, ioas_id, num_iovas, __reserved, allowed_iovas, out_iova_alignment };
        IoasAllowIovas = iommu_ioas_allow_iovas { size, ioas_id, num_iovas, __reserved, allowed_iovas };
        IoasMap = iommu_ioas_map { size, flags, ioas_id, __reserved, user_va, length, iova };
        IoasMapFile = iommu_ioas_map_file { size, flags, ioas_id, fd, start, length, iova };
        IoasCopy = iommu_ioas_copy { size, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova };
        IoasUnmap = iommu_ioas_unmap { size, ioas_id, iova, length };
        IoasChangeProcess = iommu_ioas_change_process { size, __reserved };
        Destroy = iommu_destroy { size, id };
        Option = iommu_option { size, option_id, op, __reserved, object_id, val64 };
        VfioIoas = iommu_vfio_ioas { size, ioas_id, op, __reserved };
        ViommuTegra241Cmdqv = iommu_viommu_tegra241_cmdqv { out_vintf_mmap_offset, out_vintf_mmap_length };
        ViommuAlloc = iommu_viommu_alloc { size, flags, type_, dev_id, hwpt_id, out_viommu_id, data_len, __reserved, data_uptr };
        VdeviceAlloc = iommu_vdevice_alloc { size, viommu_id, dev_id, out_vdevice_id, virt_id };
        VeventHeader = iommufd_vevent_header { flags, sequence };
        VeventArmSmmuv3 = iommu_vevent_arm_smmuv3 { evt };
        VeventTegra241Cmdqv = iommu_vevent_tegra241_cmdqv { lvcmdq_err_map };
        VeventqAlloc = iommu_veventq_alloc { size, flags, viommu_id, type_, veventq_depth, out_veventq_id, out_veventq_fd, __reserved };
        HwQueueAlloc = iommu_hw_queue_alloc { size, flags, viommu_id, type_, index, out_hw_queue_id, nesting_parent_iova, length };
    }
}

#[test]
fn our_constants_have_bindgens_values() {
    same_value! {
        PGFAULT_FLAGS_PASID_VALID = iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID;
        PGFAULT_FLAGS_LAST_PAGE = iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_LAST_PAGE;
        PGFAULT_PERM_READ = iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_READ;
        PGFAULT_PERM_WRITE = iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_WRITE;
        PGFAULT_PERM_EXEC = iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_EXEC;
        PGFAULT_PERM_PRIV = iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_PRIV;
        PAGE_RESP_SUCCESS = iommufd_page_response_code_IOMMUFD_PAGE_RESP_SUCCESS;
        PAGE_RESP_INVALID = iommufd_page_response_code_IOMMUFD_PAGE_RESP_INVALID;
        HW_INFO_VTD_ERRATA_772415_SPR17 = iommu_hw_info_vtd_flags_IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17;
        HW_INFO_TYPE_NONE = iommu_hw_info_type_IOMMU_HW_INFO_TYPE_NONE;
        HW_INFO_TYPE_DEFAULT = iommu_hw_info_type_IOMMU_HW_INFO_TYPE_DEFAULT;
        HW_INFO_TYPE_INTEL_VTD = iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD;
        HW_INFO_TYPE_ARM_SMMUV3 = iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3;
        HW_INFO_TYPE_TEGRA241_CMDQV = iommu_hw_info_type_IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV;
        HW_INFO_TYPE_AMD = iommu_hw_info_type_IOMMU_HW_INFO_TYPE_AMD;
        HW_CAP_DIRTY_TRACKING = iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING;
        HW_CAP_PCI_PASID_EXEC = iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_EXEC;
        HW_CAP_PCI_PASID_PRIV = iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_PASID_PRIV;
        HW_CAP_PCI_ATS_NOT_SUPPORTED = iommufd_hw_capabilities_IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED;
        HW_INFO_FLAG_INPUT_TYPE = iommufd_hw_info_flags_IOMMU_HW_INFO_FLAG_INPUT_TYPE;
        HWPT_ALLOC_NEST_PARENT = iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        HWPT_ALLOC_DIRTY_TRACKING = iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
        HWPT_FAULT_ID_VALID = iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
        HWPT_ALLOC_PASID = iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;
        VTD_S1_SRE = iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_SRE;
        VTD_S1_EAFE = iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_EAFE;
        VTD_S1_WPE = iommu_hwpt_vtd_s1_flags_IOMMU_VTD_S1_WPE;
        HWPT_DATA_NONE = iommu_hwpt_data_type_IOMMU_HWPT_DATA_NONE;
        HWPT_DATA_VTD_S1 = iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1;
        HWPT_DATA_ARM_SMMUV3 = iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3;
        HWPT_DATA_AMD_GUEST = iommu_hwpt_data_type_IOMMU_HWPT_DATA_AMD_GUEST;
        HWPT_DIRTY_TRACKING_ENABLE = iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
        HWPT_GET_DIRTY_BITMAP_NO_CLEAR = iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
        HWPT_INVALIDATE_DATA_VTD_S1 = iommu_hwpt_invalidate_data_type_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
        VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
        VTD_INV_FLAGS_LEAF = iommu_hwpt_vtd_s1_invalidate_flags_IOMMU_VTD_INV_FLAGS_LEAF;
        IOAS_MAP_FIXED_IOVA = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
        IOAS_MAP_WRITEABLE = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
        IOAS_MAP_READABLE = iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        TYPE = IOMMUFD_TYPE;
        CMD_BASE = IOMMUFD_CMD_BASE;
        CMD_DESTROY = IOMMUFD_CMD_DESTROY;
        CMD_IOAS_ALLOC = IOMMUFD_CMD_IOAS_ALLOC;
        CMD_IOAS_ALLOW_IOVAS = IOMMUFD_CMD_IOAS_ALLOW_IOVAS;
        CMD_IOAS_COPY = IOMMUFD_CMD_IOAS_COPY;
        CMD_IOAS_IOVA_RANGES = IOMMUFD_CMD_IOAS_IOVA_RANGES;
        CMD_IOAS_MAP = IOMMUFD_CMD_IOAS_MAP;
        CMD_IOAS_UNMAP = IOMMUFD_CMD_IOAS_UNMAP;
        CMD_OPTION = IOMMUFD_CMD_OPTION;
        CMD_VFIO_IOAS = IOMMUFD_CMD_VFIO_IOAS;
        CMD_HWPT_ALLOC = IOMMUFD_CMD_HWPT_ALLOC;
        CMD_GET_HW_INFO = IOMMUFD_CMD_GET_HW_INFO;
        CMD_HWPT_SET_DIRTY_TRACKING = IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING;
        CMD_HWPT_GET_DIRTY_BITMAP = IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP;
        CMD_HWPT_INVALIDATE = IOMMUFD_CMD_HWPT_INVALIDATE;
        CMD_FAULT_QUEUE_ALLOC = IOMMUFD_CMD_FAULT_QUEUE_ALLOC;
        CMD_IOAS_MAP_FILE = IOMMUFD_CMD_IOAS_MAP_FILE;
        CMD_VIOMMU_ALLOC = IOMMUFD_CMD_VIOMMU_ALLOC;
        CMD_VDEVICE_ALLOC = IOMMUFD_CMD_VDEVICE_ALLOC;
        CMD_IOAS_CHANGE_PROCESS = IOMMUFD_CMD_IOAS_CHANGE_PROCESS;
        CMD_VEVENTQ_ALLOC = IOMMUFD_CMD_VEVENTQ_ALLOC;
        CMD_HW_QUEUE_ALLOC = IOMMUFD_CMD_HW_QUEUE_ALLOC;
        OPTION_RLIMIT_MODE = iommufd_option_IOMMU_OPTION_RLIMIT_MODE;
        OPTION_HUGE_PAGES = iommufd_option_IOMMU_OPTION_HUGE_PAGES;
        OPTION_OP_SET = iommufd_option_ops_IOMMU_OPTION_OP_SET;
        OPTION_OP_GET = iommufd_option_ops_IOMMU_OPTION_OP_GET;
        VFIO_IOAS_GET = iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_GET;
        VFIO_IOAS_SET = iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_SET;
        VFIO_IOAS_CLEAR = iommufd_vfio_ioas_op_IOMMU_VFIO_IOAS_CLEAR;
        VIOMMU_TYPE_DEFAULT = iommu_viommu_type_IOMMU_VIOMMU_TYPE_DEFAULT;
        VIOMMU_TYPE_ARM_SMMUV3 = iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3;
        VIOMMU_TYPE_TEGRA241_CMDQV = iommu_viommu_type_IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV;
        VEVENTQ_FLAG_LOST_EVENTS = iommu_veventq_flag_IOMMU_VEVENTQ_FLAG_LOST_EVENTS;
        VEVENTQ_TYPE_DEFAULT = iommu_veventq_type_IOMMU_VEVENTQ_TYPE_DEFAULT;
        VEVENTQ_TYPE_ARM_SMMUV3 = iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3;
        VEVENTQ_TYPE_TEGRA241_CMDQV = iommu_veventq_type_IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV;
        HW_QUEUE_TYPE_DEFAULT = iommu_hw_queue_type_IOMMU_HW_QUEUE_TYPE_DEFAULT;
        HW_QUEUE_TYPE_TEGRA241_CMDQV = iommu_hw_queue_type_IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV;
    }
}
