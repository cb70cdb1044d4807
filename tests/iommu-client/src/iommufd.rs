//! /dev/iommu, one method a command.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use ioasis_uapi::Errno;
use ioasis_uapi::iommufd as abi;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::memory;

/// Makes an ioctl whose argument is a struct that says its own size.
#[expect(unsafe_code, reason = "an ioctl is one")]
pub(crate) fn call<T>(file: &impl AsRawFd, code: u32, argument: &mut T) -> io::Result<()>
where
    T: FromBytes + IntoBytes + Immutable,
{
    // SAFETY: 1. the kernel reads and writes the struct within the size that stands in its first
    // field, which is its own;
    // 2. the addresses in it are of memory that lives as long as the program, or through the call.
    let done = unsafe { ioctl_with_mut_ref(file, code.into(), argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// That `result` is this errno.
pub(crate) fn refused<T>(what: &str, result: io::Result<T>, errno: Errno) -> Result<()> {
    let got = result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw);
    ensure!(got == Some(errno), "{what}: {got:?} instead of {errno:?}");
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "a struct is short")]
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// An open of /dev/iommu.
#[derive(Debug)]
pub(crate) struct Iommufd(File);

impl AsFd for Iommufd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Iommufd {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Iommufd {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/iommu");
        Ok(Self(file.context("/dev/iommu does not open")?))
    }

    pub(crate) fn ioas(&self) -> Result<u32> {
        let mut cmd = abi::IoasAlloc { size: size::<abi::IoasAlloc>(), ..Default::default() };
        call(self, abi::IOAS_ALLOC, &mut cmd).context("no IOAS")?;
        Ok(cmd.out_ioas_id)
    }

    /// Maps the memory from `offset` at `iova`.
    pub(crate) fn map(&self, ioas: u32, iova: u64, offset: u64, length: u64) -> io::Result<()> {
        self.map_address(ioas, iova, memory::address() + offset, length)
    }

    /// Maps what is at `address` at `iova`.
    pub(crate) fn map_address(
        &self,
        ioas: u32,
        iova: u64,
        address: u64,
        length: u64,
    ) -> io::Result<()> {
        let flags = abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_READABLE | abi::IOAS_MAP_WRITEABLE;
        let mut cmd = abi::IoasMap {
            size: size::<abi::IoasMap>(),
            flags,
            ioas_id: ioas,
            __reserved: 0,
            user_va: address,
            length,
            iova,
        };
        call(self, abi::IOAS_MAP, &mut cmd)
    }

    pub(crate) fn unmap(&self, ioas: u32, iova: u64, length: u64) -> io::Result<()> {
        let mut cmd =
            abi::IoasUnmap { size: size::<abi::IoasUnmap>(), ioas_id: ioas, iova, length };
        call(self, abi::IOAS_UNMAP, &mut cmd)
    }

    /// Where `iova` leads a device without an IOMMU, and for how many bytes of `length`.
    pub(crate) fn phys(&self, ioas: u32, iova: u64, length: u64) -> io::Result<(u64, u64)> {
        let size = size::<abi::IoasNoiommuGetPa>();
        let mut cmd =
            abi::IoasNoiommuGetPa { size, ioas_id: ioas, iova, length, ..Default::default() };
        call(self, abi::IOAS_NOIOMMU_GET_PA, &mut cmd)?;
        Ok((cmd.out_phys, cmd.length))
    }

    /// Leaves of one page only, so that dirty bits are exact.
    pub(crate) fn small_pages(&self, ioas: u32) -> io::Result<()> {
        let mut cmd = abi::Option {
            size: size::<abi::Option>(),
            option_id: abi::OPTION_HUGE_PAGES,
            op: abi::OPTION_OP_SET,
            object_id: ioas,
            ..Default::default()
        };
        call(self, abi::OPTION, &mut cmd)
    }

    /// The type and length of what GET_HW_INFO has to say.
    pub(crate) fn hw_info(&self, dev_id: u32) -> io::Result<abi::HwInfo> {
        let mut cmd = abi::HwInfo { size: size::<abi::HwInfo>(), dev_id, ..Default::default() };
        call(self, abi::GET_HW_INFO, &mut cmd)?;
        Ok(cmd)
    }

    /// What GET_HW_INFO has to say of this type.
    pub(crate) fn hw_info_of<T: IntoBytes + FromBytes>(
        &self,
        dev_id: u32,
        data_type: u32,
        data: &mut T,
    ) -> io::Result<()> {
        let mut cmd = abi::HwInfo {
            size: size::<abi::HwInfo>(),
            flags: abi::HW_INFO_FLAG_INPUT_TYPE,
            dev_id,
            data_len: size::<T>(),
            data_uptr: std::ptr::from_mut(data).addr() as u64,
            data_type,
            ..Default::default()
        };
        call(self, abi::GET_HW_INFO, &mut cmd)?;
        // The kernel wrote it behind the compiler's back.
        std::hint::black_box(data);
        Ok(())
    }

    pub(crate) fn destroy(&self, id: u32) -> io::Result<()> {
        call(self, abi::DESTROY, &mut abi::Destroy { size: size::<abi::Destroy>(), id })
    }

    pub(crate) fn hwpt(&self, dev_id: u32, pt_id: u32, flags: u32) -> io::Result<u32> {
        let mut cmd = abi::HwptAlloc {
            size: size::<abi::HwptAlloc>(),
            flags,
            dev_id,
            pt_id,
            ..Default::default()
        };
        call(self, abi::HWPT_ALLOC, &mut cmd)?;
        Ok(cmd.out_hwpt_id)
    }

    pub(crate) fn hwpt_with_faults(&self, dev_id: u32, pt_id: u32, fault: u32) -> io::Result<u32> {
        let mut cmd = abi::HwptAlloc {
            size: size::<abi::HwptAlloc>(),
            flags: abi::HWPT_FAULT_ID_VALID,
            dev_id,
            pt_id,
            fault_id: fault,
            ..Default::default()
        };
        call(self, abi::HWPT_ALLOC, &mut cmd)?;
        Ok(cmd.out_hwpt_id)
    }

    pub(crate) fn nested<T: IntoBytes + Immutable>(
        &self,
        dev_id: u32,
        pt_id: u32,
        data_type: u32,
        data: &T,
    ) -> io::Result<u32> {
        let mut cmd = abi::HwptAlloc {
            size: size::<abi::HwptAlloc>(),
            dev_id,
            pt_id,
            data_type,
            data_len: size::<T>(),
            data_uptr: std::ptr::from_ref(data).addr() as u64,
            ..Default::default()
        };
        call(self, abi::HWPT_ALLOC, &mut cmd)?;
        Ok(cmd.out_hwpt_id)
    }

    pub(crate) fn invalidate<T: IntoBytes + Immutable>(
        &self,
        hwpt_id: u32,
        data_type: u32,
        request: &T,
    ) -> io::Result<()> {
        let mut cmd = abi::HwptInvalidate {
            size: size::<abi::HwptInvalidate>(),
            hwpt_id,
            data_uptr: std::ptr::from_ref(request).addr() as u64,
            data_type,
            entry_len: size::<T>(),
            entry_num: 1,
            __reserved: 0,
        };
        call(self, abi::HWPT_INVALIDATE, &mut cmd)
    }

    pub(crate) fn set_dirty_tracking(&self, hwpt_id: u32) -> io::Result<()> {
        let mut cmd = abi::HwptSetDirtyTracking {
            size: size::<abi::HwptSetDirtyTracking>(),
            flags: abi::HWPT_DIRTY_TRACKING_ENABLE,
            hwpt_id,
            __reserved: 0,
        };
        call(self, abi::HWPT_SET_DIRTY_TRACKING, &mut cmd)
    }

    /// A bit for each of the 64 pages from `iova`.
    pub(crate) fn dirty(&self, hwpt_id: u32, iova: u64, flags: u32) -> io::Result<u64> {
        let mut bitmap = [0_u64];
        let mut cmd = abi::HwptGetDirtyBitmap {
            size: size::<abi::HwptGetDirtyBitmap>(),
            hwpt_id,
            flags,
            __reserved: 0,
            iova,
            length: 64 << 12,
            page_size: 1 << 12,
            data: bitmap.as_mut_ptr().addr() as u64,
        };
        call(self, abi::HWPT_GET_DIRTY_BITMAP, &mut cmd)?;
        // The kernel wrote it behind the compiler's back.
        Ok(std::hint::black_box(bitmap)[0])
    }

    #[expect(unsafe_code, reason = "the kernel made a descriptor")]
    pub(crate) fn fault_queue(&self) -> io::Result<(u32, File)> {
        let mut cmd = abi::FaultAlloc { size: size::<abi::FaultAlloc>(), ..Default::default() };
        call(self, abi::FAULT_QUEUE_ALLOC, &mut cmd)?;
        // SAFETY: the descriptor is new, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(cmd.out_fault_fd.cast_signed()) };
        Ok((cmd.out_fault_id, fd.into()))
    }

    pub(crate) fn viommu(&self, kind: u32, dev_id: u32, hwpt_id: u32) -> io::Result<u32> {
        let mut cmd = abi::ViommuAlloc {
            size: size::<abi::ViommuAlloc>(),
            type_: kind,
            dev_id,
            hwpt_id,
            ..Default::default()
        };
        call(self, abi::VIOMMU_ALLOC, &mut cmd)?;
        Ok(cmd.out_viommu_id)
    }

    pub(crate) fn viommu_with<T: IntoBytes + FromBytes>(
        &self,
        kind: u32,
        dev_id: u32,
        hwpt_id: u32,
        data: &mut T,
    ) -> io::Result<u32> {
        let mut cmd = abi::ViommuAlloc {
            size: size::<abi::ViommuAlloc>(),
            type_: kind,
            dev_id,
            hwpt_id,
            data_len: size::<T>(),
            data_uptr: std::ptr::from_mut(data).addr() as u64,
            ..Default::default()
        };
        call(self, abi::VIOMMU_ALLOC, &mut cmd)?;
        std::hint::black_box(data);
        Ok(cmd.out_viommu_id)
    }

    pub(crate) fn hw_queue(
        &self,
        viommu_id: u32,
        index: u32,
        base: u64,
        length: u64,
    ) -> io::Result<u32> {
        let mut cmd = abi::HwQueueAlloc {
            size: size::<abi::HwQueueAlloc>(),
            viommu_id,
            type_: abi::HW_QUEUE_TYPE_TEGRA241_CMDQV,
            index,
            nesting_parent_iova: base,
            length,
            ..Default::default()
        };
        call(self, abi::HW_QUEUE_ALLOC, &mut cmd)?;
        Ok(cmd.out_hw_queue_id)
    }

    pub(crate) fn vdevice(&self, viommu_id: u32, dev_id: u32, virt_id: u64) -> io::Result<u32> {
        let mut cmd = abi::VdeviceAlloc {
            size: size::<abi::VdeviceAlloc>(),
            viommu_id,
            dev_id,
            virt_id,
            ..Default::default()
        };
        call(self, abi::VDEVICE_ALLOC, &mut cmd)?;
        Ok(cmd.out_vdevice_id)
    }

    #[expect(unsafe_code, reason = "the kernel made a descriptor")]
    pub(crate) fn event_queue(&self, viommu_id: u32, kind: u32, depth: u32) -> io::Result<File> {
        let mut cmd = abi::VeventqAlloc {
            size: size::<abi::VeventqAlloc>(),
            viommu_id,
            type_: kind,
            veventq_depth: depth,
            ..Default::default()
        };
        call(self, abi::VEVENTQ_ALLOC, &mut cmd)?;
        // SAFETY: the descriptor is new, and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(cmd.out_veventq_fd.cast_signed()) };
        Ok(fd.into())
    }
}
