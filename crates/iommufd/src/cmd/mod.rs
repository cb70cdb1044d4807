//! The ioctls of `/dev/iommu`: bytes become typed requests, and typed answers bytes.
//!
//! The order of checks is part of the interface and is that of Linux:
//! `drivers/iommu/iommufd/main.c` for what all commands share, the file named in each module for
//! the rest. A handler sees the client's bytes only as a decoded copy.

mod call;
mod dirty;
mod hwpt;
mod ioas;
mod option;
mod queue;
mod viommu;

use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

pub(crate) use call::{Call, Extension};

use crate::client::Client;
use crate::container::compat;
use crate::open::Context;
use crate::params::Linux;
use call::read_size;

/// One command: its number, the size of its first version, and who carries it out.
struct Row {
    ioctl: u32,
    min_size: usize,
    run: fn(&Call<'_>) -> Result<i64>,
}

const fn row(ioctl: u32, min_size: usize, run: fn(&Call<'_>) -> Result<i64>) -> Row {
    Row { ioctl, min_size, run }
}

/// Every command, in the order of their numbers.
const COMMANDS: [Row; 22] = [
    row(abi::DESTROY, 8, option::destroy),
    row(abi::IOAS_ALLOC, 12, ioas::alloc),
    row(abi::IOAS_ALLOW_IOVAS, 24, ioas::allow_iovas),
    row(abi::IOAS_COPY, 40, ioas::copy),
    row(abi::IOAS_IOVA_RANGES, 32, ioas::iova_ranges),
    row(abi::IOAS_MAP, 40, ioas::map),
    row(abi::IOAS_UNMAP, 24, ioas::unmap),
    row(abi::OPTION, 24, option::option),
    row(abi::VFIO_IOAS, 12, option::vfio_ioas),
    row(abi::HWPT_ALLOC, 24, hwpt::alloc),
    row(abi::GET_HW_INFO, 32, hwpt::get_hw_info),
    row(abi::HWPT_SET_DIRTY_TRACKING, 16, dirty::set_tracking),
    row(abi::HWPT_GET_DIRTY_BITMAP, 48, dirty::get_bitmap),
    row(abi::HWPT_INVALIDATE, 32, hwpt::invalidate),
    row(abi::FAULT_QUEUE_ALLOC, 16, queue::fault_alloc),
    row(abi::IOAS_MAP_FILE, 40, ioas::map_file),
    row(abi::VIOMMU_ALLOC, 24, viommu::alloc),
    row(abi::VDEVICE_ALLOC, 24, viommu::vdevice_alloc),
    row(abi::IOAS_CHANGE_PROCESS, 8, ioas::change_process),
    row(abi::VEVENTQ_ALLOC, 28, queue::veventq_alloc),
    row(abi::HW_QUEUE_ALLOC, 40, viommu::hw_queue_alloc),
    row(abi::IOAS_NOIOMMU_GET_PA, 40, ioas::noiommu_get_pa),
];

/// The highest command number; above, a code is not IOMMUFD's.
const fn last(linux: Linux) -> u32 {
    match linux {
        Linux::V7_2 => abi::CMD_HW_QUEUE_ALLOC,
        Linux::V7_3 => abi::CMD_IOAS_NOIOMMU_GET_PA,
    }
}

impl Context {
    /// Carries out the ioctl `cmd` with argument `arg` for `client`.
    ///
    /// # Errors
    ///
    /// `EFAULT` for an argument that cannot be read or written, `ENOTTY` for a code of neither
    /// IOMMUFD nor VFIO's container, `EINVAL` and `E2BIG` for a struct that is too short or has
    /// unknown fields set, and whatever the command refuses.
    pub fn ioctl(self: &Arc<Self>, client: &dyn Client, cmd: u32, arg: u64) -> Result<i64> {
        let number = cmd & 0xff;
        let extension = self.machine().added::<Arc<dyn Extension>>();
        let extension = extension.filter(|extension| extension.ioctl() == cmd);
        if let Some(extension) = extension {
            let size = read_size(client, arg, extension.min_size())?;
            return extension.run(&Call { context: self, client, arg, size });
        }
        if !(abi::CMD_BASE..=last(self.machine().linux)).contains(&number) {
            return compat::ioctl(self, client, cmd, arg);
        }
        let Some(row) = COMMANDS.iter().find(|row| row.ioctl == cmd) else {
            // The size is read before the code is judged.
            read_size(client, arg, 0)?;
            return refuse!(ENOTTY, "no such ioctl on /dev/iommu", u64::from(cmd));
        };
        let size = read_size(client, arg, row.min_size)?;
        (row.run)(&Call { context: self, client, arg, size })
    }
}

#[cfg(test)]
mod tests;
