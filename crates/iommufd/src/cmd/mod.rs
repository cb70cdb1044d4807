//! The ioctls of `/dev/iommu`: bytes become typed requests, and typed answers bytes.
//!
//! The order of checks is part of the interface and is that of Linux 7.2: `drivers/iommu/iommufd/main.c` for what all commands share,
//! the file named in each module for the rest. A handler sees the client's bytes only as a decoded copy.

mod dirty;
mod hwpt;
mod ioas;
mod option;
mod queue;
mod viommu;

use std::fmt::Debug;
use std::sync::Arc;

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Client;
use crate::container::compat;
use crate::open::Context;
use crate::pages::Pages;

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
const COMMANDS: [Row; 21] = [
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
];

/// The highest command number; above, a code is not IOMMUFD's.
const CMD_LAST: u32 = abi::CMD_HW_QUEUE_ALLOC;

/// One call in progress.
pub(crate) struct Call<'a> {
    pub(crate) context: &'a Arc<Context>,
    pub(crate) client: &'a dyn Client,
    arg: u64,
    /// Bytes the client's struct has, by its own first field.
    size: usize,
}

/// A command that a machine has beside those of IOMMUFD.
pub(crate) trait Extension: Debug + Send + Sync {
    /// Its number.
    fn ioctl(&self) -> u32;

    /// Bytes of its struct's first version.
    fn min_size(&self) -> usize;

    /// Carries it out.
    fn run(&self, call: &Call<'_>) -> Result<i64>;

    /// Whether and how it reads the source of an IOAS_COPY with these flags: flags and source IOVA in its stead.
    fn copy_source(&self, context: &Context, ioas: u32, flags: u32, iova: u64) -> (u32, u64);

    /// Memory was mapped.
    fn pages_made(&self, pages: &Arc<Pages>);
}

impl Context {
    /// Carries out the ioctl `cmd` with argument `arg` for `client`.
    ///
    /// # Errors
    ///
    /// `EFAULT` for an argument that cannot be read or written, `ENOTTY` for a code of neither IOMMUFD nor VFIO's container, `EINVAL` and
    /// `E2BIG` for a struct that is too short or has unknown fields set, and whatever the command refuses.
    pub fn ioctl(self: &Arc<Self>, client: &dyn Client, cmd: u32, arg: u64) -> Result<i64> {
        let number = cmd & 0xff;
        let extension = self.machine().extension().filter(|extension| extension.ioctl() == cmd);
        if let Some(extension) = extension {
            let size = read_size(client, arg, extension.min_size())?;
            return extension.run(&Call { context: self, client, arg, size });
        }
        if !(abi::CMD_BASE..=CMD_LAST).contains(&number) {
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

/// The size the client's struct says it has.
fn read_size(client: &dyn Client, arg: u64, min_size: usize) -> Result<usize> {
    let mut size = [0; 4];
    client.read(arg, &mut size)?;
    let size = u32::from_ne_bytes(size);
    let bytes = usize::try_from(size).expect("32 bits fit usize");
    if bytes < min_size {
        return refuse!(EINVAL, "size is less than the struct's first version", u64::from(size));
    }
    Ok(bytes)
}

/// Bytes of an unknown tail that are read at once.
const TAIL_CHUNK: usize = 4096;

/// Bytes of an unknown tail from which on others do not wait until all of it was read: 16 reads of 3 us. The longest, of
/// 4 GiB, takes seconds.
const LONG_TAIL: usize = 16 * TAIL_CHUNK;

impl Call<'_> {
    /// The client's struct; fields it does not have are 0.
    ///
    /// # Errors
    ///
    /// `E2BIG` when a field unknown here is set, `EFAULT`.
    pub(crate) fn decode<T: FromBytes + IntoBytes>(&self) -> Result<T> {
        let known = size_of::<T>();
        let mut at = known;
        if self.size.saturating_sub(known) > LONG_TAIL {
            self.client.takes_long()?;
        }
        while at < self.size {
            let mut chunk = [0; TAIL_CHUNK];
            // Up to the next page boundary, so that what is unreadable is met where Linux meets it.
            let address = self.arg.wrapping_add(at as u64);
            let to_page = TAIL_CHUNK
                - usize::try_from(address % TAIL_CHUNK as u64).expect("less than a page");
            let part = &mut chunk[..to_page.min(self.size - at)];
            self.client.read(address, part)?;
            if let Some(set) = part.iter().position(|&byte| byte != 0) {
                return refuse!(
                    E2BIG,
                    "a field this version does not know is set, at offset",
                    (at + set) as u64
                );
            }
            at += part.len();
        }
        let mut cmd = T::new_zeroed();
        self.client.read(self.arg, &mut cmd.as_mut_bytes()[..known.min(self.size)])?;
        Ok(cmd)
    }

    /// Makes sure that the struct can be copied back, by writing the bytes that are there.
    pub(crate) fn prove_reply<T: FromBytes + IntoBytes>(&self) -> Result<()> {
        let mut there = T::new_zeroed();
        let there = there.as_mut_bytes();
        let length = there.len().min(self.size);
        self.client.read(self.arg, &mut there[..length])?;
        self.client.write(self.arg, &there[..length])
    }

    /// Copies the struct back, as far as the client has room.
    pub(crate) fn reply<T: IntoBytes + Immutable>(&self, cmd: &T) -> Result<()> {
        let bytes = cmd.as_bytes();
        self.client.write_back(self.arg, &bytes[..bytes.len().min(self.size)])
    }

    /// Copies one field back.
    fn reply_field(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.client.write(self.arg.wrapping_add(offset as u64), bytes)
    }
}

#[cfg(test)]
mod tests;
