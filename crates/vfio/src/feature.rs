//! VFIO_DEVICE_FEATURE. Linux: `vfio_ioctl_device_feature`, `vfio_pci_core_ioctl_feature`.

use std::sync::Arc;

use ioasis_uapi::vfio::{
    self, DeviceFeature, DeviceFeatureDmaBuf, DeviceFeatureDmaLoggingControl,
    DeviceFeatureDmaLoggingReport, DeviceFeatureMigDataSize, DeviceFeatureMigState,
    DeviceFeatureMigration, DeviceLowPowerEntryWithWakeup,
};
use ioasis_uapi::{Errno, Error, Result};

use crate::device::Relation;
use crate::token::Uuid;
use crate::{Client, Device, DeviceFile, arg, dmabuf, logging, migration};

/// A call after its header was checked.
struct Call {
    flags: u32,
    /// Bytes after the header, as `argsz` says.
    room: usize,
    /// Where they are.
    address: u64,
}

/// What a feature's own checks leave to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Todo {
    /// The call only asked whether the feature exists.
    Nothing,
    /// GET or SET.
    Act,
}

impl Call {
    /// Linux: `vfio_check_feature`.
    fn check(&self, allowed: u32, payload: usize) -> Result<Todo> {
        let wanted = self.flags & (vfio::DEVICE_FEATURE_GET | vfio::DEVICE_FEATURE_SET);
        if wanted & !allowed != 0 {
            return Err(Error::new(Errno::EINVAL, "the feature has no such operation"));
        }
        if self.flags & vfio::DEVICE_FEATURE_PROBE != 0 {
            return Ok(Todo::Nothing);
        }
        if wanted == 0 {
            return Err(Error::new(Errno::EINVAL, "neither GET nor SET"));
        }
        if self.room < payload {
            return Err(Error::at(
                Errno::EINVAL,
                "argsz does not cover the payload",
                payload as u64,
            ));
        }
        Ok(Todo::Act)
    }

    /// Does `act` with the address of the payload, unless the call only asked.
    fn act(&self, allowed: u32, payload: usize, act: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        match self.check(allowed, payload)? {
            Todo::Act => act(self.address),
            Todo::Nothing => Ok(()),
        }
    }
}

/// Answers DEVICE_FEATURE; only the export of a dma-buf has a number to tell.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` for a malformed call; `ENOTTY` for a feature this device does not have; what
/// the feature itself refuses.
pub(crate) fn call(client: &dyn Client, file: &Arc<DeviceFile>, address: u64) -> Result<i64> {
    const MIN: usize = size_of::<DeviceFeature>();
    let DeviceFeature { argsz, flags } = arg::first(client, address, MIN)?;
    let (get, set) = (vfio::DEVICE_FEATURE_GET, vfio::DEVICE_FEATURE_SET);
    let probe = vfio::DEVICE_FEATURE_PROBE;
    if flags & !(vfio::DEVICE_FEATURE_MASK | get | set | probe) != 0 {
        return Err(Error::at(Errno::EINVAL, "unknown flags", flags.into()));
    }
    if flags & probe == 0 && flags & get != 0 && flags & set != 0 {
        return Err(Error::new(Errno::EINVAL, "GET and SET at once"));
    }
    let room = usize::try_from(argsz).unwrap_or(usize::MAX) - MIN;
    let call = Call { flags, room, address: address.wrapping_add(MIN as u64) };
    if flags & vfio::DEVICE_FEATURE_MASK == vfio::DEVICE_FEATURE_DMA_BUF {
        return match call.check(get, size_of::<DeviceFeatureDmaBuf>())? {
            Todo::Act => dmabuf::export(client, file, call.address),
            Todo::Nothing => Ok(0),
        };
    }
    act(client, file.device(), &call).map(|()| 0)
}

fn act(client: &dyn Client, device: &Device, call: &Call) -> Result<()> {
    let (get, set) = (vfio::DEVICE_FEATURE_GET, vfio::DEVICE_FEATURE_SET);
    let migrating = device.migrating();
    match call.flags & vfio::DEVICE_FEATURE_MASK {
        vfio::DEVICE_FEATURE_LOW_POWER_ENTRY => call.act(set, 0, |_| device.enter_low_power(None)),
        vfio::DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP => with_wakeup(client, device, call),
        vfio::DEVICE_FEATURE_LOW_POWER_EXIT => call.act(set, 0, |_| {
            device.leave_low_power();
            Ok(())
        }),
        vfio::DEVICE_FEATURE_PCI_VF_TOKEN => token(client, device, call),
        vfio::DEVICE_FEATURE_MIGRATION => {
            migrating.check()?;
            call.act(get, size_of::<DeviceFeatureMigration>(), |address| {
                migration::flags(client, migrating, address)
            })
        }
        vfio::DEVICE_FEATURE_MIG_DEVICE_STATE => {
            migrating.check()?;
            call.act(get | set, size_of::<DeviceFeatureMigState>(), |address| {
                if call.flags & get != 0 {
                    migration::get_state(client, migrating, address)
                } else {
                    migration::set_state(client, migrating, address)
                }
            })
        }
        vfio::DEVICE_FEATURE_MIG_DATA_SIZE => {
            migrating.check()?;
            call.act(get, size_of::<DeviceFeatureMigDataSize>(), |address| {
                migration::data_size(client, migrating, address)
            })
        }
        vfio::DEVICE_FEATURE_MIG_PRECOPY_INFOv2 => {
            migrating.check_flags()?;
            call.act(set, 0, |_| {
                migrating.want_flags();
                Ok(())
            })
        }
        vfio::DEVICE_FEATURE_DMA_LOGGING_START => {
            let log = device.log()?;
            call.act(set, size_of::<DeviceFeatureDmaLoggingControl>(), |address| {
                logging::start(client, log, address)
            })
        }
        vfio::DEVICE_FEATURE_DMA_LOGGING_STOP => {
            let log = device.log()?;
            call.act(set, 0, |_| {
                log.stop();
                Ok(())
            })
        }
        vfio::DEVICE_FEATURE_DMA_LOGGING_REPORT => {
            let log = device.log()?;
            call.act(get, size_of::<DeviceFeatureDmaLoggingReport>(), |address| {
                logging::report(client, log, address)
            })
        }
        other => Err(Error::at(Errno::ENOTTY, "the device has no such feature", other.into())),
    }
}

/// Sets the token by which virtual functions are opened. Nobody reads it, as it may be an earlier
/// user's. Linux: `vfio_pci_core_feature_token`.
fn token(client: &dyn Client, device: &Device, call: &Call) -> Result<()> {
    let Relation::Physical { token, .. } = device.relation() else {
        return Err(Error::new(Errno::ENOTTY, "the device has no SR-IOV, so it has no token"));
    };
    let mut uuid = Uuid::default();
    if call.check(vfio::DEVICE_FEATURE_SET, uuid.len())? == Todo::Act {
        client.read(call.address, &mut uuid)?;
        token.set(uuid);
    }
    Ok(())
}

fn with_wakeup(client: &dyn Client, device: &Device, call: &Call) -> Result<()> {
    const PAYLOAD: usize = size_of::<DeviceLowPowerEntryWithWakeup>();
    if call.check(vfio::DEVICE_FEATURE_SET, PAYLOAD)? == Todo::Nothing {
        return Ok(());
    }
    let entry: DeviceLowPowerEntryWithWakeup = arg::copy(client, call.address, PAYLOAD)?;
    if entry.wakeup_eventfd < 0 {
        return Err(Error::new(Errno::EINVAL, "the wakeup eventfd is negative"));
    }
    device.enter_low_power(Some(arg::eventfd(client, entry.wakeup_eventfd)?))
}
