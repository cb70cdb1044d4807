//! What only a file of the device's own node answers: bind, attach, detach. Linux:
//! `drivers/vfio/device_cdev.c`.

use std::sync::atomic::Ordering;

use ioasis_uapi::vfio::{self, DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromZeros, IntoBytes};

use super::{DeviceFile, Path};
use crate::attached::Attached;
use crate::device::{Open, Opens};
use crate::token::Uuid;
use crate::{Client, IommuFile, arg};

impl DeviceFile {
    /// Answers DEVICE_BIND_IOMMUFD.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `E2BIG` for unknown fields; `EINVAL` for a malformed call, a file of a group, and
    /// a device that is bound; `EBUSY` when the group is open; `EBADF` or `EBADFD` for what is no
    /// iommufd; what binding answers.
    pub(super) fn bind(&self, client: &dyn Client, address: u64) -> Result<()> {
        let call = read_bind(client, address)?;
        if call.iommufd < 0 || call.flags & !vfio::DEVICE_BIND_FLAG_TOKEN != 0 {
            return Err(Error::at(
                Errno::EINVAL,
                "unknown flags or a negative fd",
                call.flags.into(),
            ));
        }
        if self.path != Path::Cdev {
            return Err(Error::new(Errno::EINVAL, "the file was opened through its group"));
        }
        self.device.group().block()?;
        let done = self.bind_blocked(client, address, &call);
        if done.is_err() {
            self.device.group().unblock();
        }
        done
    }

    fn bind_blocked(
        &self,
        client: &dyn Client,
        address: u64,
        call: &DeviceBindIommufd,
    ) -> Result<()> {
        /// Offset of `out_devid`.
        const OUT_DEVID: u64 = 12;
        self.unbound()?;
        let token = read_token(client, call)?;
        let (slot, lock) = (self.device.slot(), self.device.set().opens());
        let mut opens = lock.lock();
        // Another call may have bound it while this one read.
        self.unbound()?;
        self.device.check_token(token.as_ref())?;
        let IommuFile::Iommufd(context) = client.iommu_file(call.iommufd)? else {
            return Err(Error::new(Errno::EBADFD, "the fd is no iommufd"));
        };
        match &opens[slot] {
            Open::Closed => {}
            // DIFFERS: Linux waits for the other call.
            Open::Opening | Open::Closing => {
                return Err(Error::new(Errno::EBUSY, "the device is being opened or closed"));
            }
            Open::Group { .. } | Open::Cdev(_) => {
                return Err(Error::new(Errno::EINVAL, "another file of the device is bound"));
            }
        }
        let bound = context.bind(self.device.endpoint())?;
        self.device.begin(&self.memory)?;
        opens[slot] = Open::Opening;
        drop(opens);
        let told = client.write(address.wrapping_add(OUT_DEVID), bound.id().as_bytes());
        if told.is_err() {
            self.device.end();
            drop(bound);
            lock.lock()[slot] = Open::Closed;
            return told;
        }
        let mut opens = lock.lock();
        opens[slot] = Open::Cdev(Attached::new(bound));
        self.granted.store(true, Ordering::Release);
        drop(opens);
        // A close that came meanwhile found nothing to close.
        if self.is_closed() {
            self.close_device();
        }
        Ok(())
    }

    fn unbound(&self) -> Result<()> {
        if self.granted.load(Ordering::Acquire) {
            return Err(Error::new(Errno::EINVAL, "the file is bound"));
        }
        Ok(())
    }

    /// Answers DEVICE_ATTACH_IOMMUFD_PT; what is attached is replaced.
    ///
    /// # Errors
    ///
    /// `EFAULT`, after which the attachment is undone; `EINVAL` for a malformed call; what
    /// attaching answers.
    pub(super) fn attach(&self, client: &dyn Client, address: u64) -> Result<()> {
        /// Up to `pt_id`; `pasid` came later.
        const MIN: usize = 12;
        const PT_ID: u64 = 8;
        let mut call: DeviceAttachIommufdPt = arg::first(client, address, MIN)?;
        let target = pasid(client, address, call.argsz, call.flags, MIN)?;
        let lock = self.device.set().opens();
        let mut opens = lock.lock();
        call.pt_id = self.attached(&mut opens)?.attach(call.pt_id, target)?;
        // The write may wait for the client, and others want the lock.
        drop(opens);
        let written = client.write(address.wrapping_add(PT_ID), call.pt_id.as_bytes());
        if written.is_err() {
            // DIFFERS: Linux detaches the device itself, also when a PASID was attached.
            if let Ok(attached) = self.attached(&mut lock.lock()) {
                attached.detach(target);
            }
        }
        written
    }

    /// Answers DEVICE_DETACH_IOMMUFD_PT; detaching what is not attached succeeds.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EINVAL` for a malformed call.
    pub(super) fn detach(&self, client: &dyn Client, address: u64) -> Result<()> {
        /// Up to `flags`.
        const MIN: usize = 8;
        let call: DeviceDetachIommufdPt = arg::first(client, address, MIN)?;
        let target = pasid(client, address, call.argsz, call.flags, MIN)?;
        let mut opens = self.device.set().opens().lock();
        self.attached(&mut opens)?.detach(target);
        Ok(())
    }

    /// # Errors
    ///
    /// `EINVAL` when the file was closed while the call was on its way.
    fn attached<'a>(&self, opens: &'a mut Opens) -> Result<&'a mut Attached> {
        self.usable()?;
        match &mut opens[self.device.slot()] {
            Open::Cdev(attached) => Ok(attached),
            _ => unreachable!("a granted file of the device's own node is bound"),
        }
    }
}

/// BIND is the one VFIO call that refuses unknown fields.
fn read_bind(client: &dyn Client, address: u64) -> Result<DeviceBindIommufd> {
    /// Up to `out_devid`.
    const MIN: usize = 16;
    const KNOWN: usize = size_of::<DeviceBindIommufd>();
    let mut argsz = 0_u32;
    client.read(address, argsz.as_mut_bytes())?;
    arg::check_argsz(argsz, MIN)?;
    let size = usize::try_from(argsz).unwrap_or(usize::MAX);
    arg::check_tail(client, address, KNOWN, size)?;
    let mut call = DeviceBindIommufd::new_zeroed();
    client.read(address, &mut call.as_mut_bytes()[..size.min(KNOWN)])?;
    Ok(call)
}

/// The token that comes with the call, if one does. Linux: `vfio_df_check_token`.
fn read_token(client: &dyn Client, call: &DeviceBindIommufd) -> Result<Option<Uuid>> {
    if call.flags & vfio::DEVICE_BIND_FLAG_TOKEN == 0 {
        return Ok(None);
    }
    let mut token = Uuid::default();
    client.read(call.token_uuid_ptr, &mut token)?;
    Ok(Some(token))
}

/// The PASID of an attach or detach call, which lies after the `min` bytes of its first version.
fn pasid(
    client: &dyn Client,
    address: u64,
    argsz: u32,
    flags: u32,
    min: usize,
) -> Result<Option<u32>> {
    const _: () = assert!(vfio::DEVICE_ATTACH_PASID == vfio::DEVICE_DETACH_PASID);
    if flags & !vfio::DEVICE_ATTACH_PASID != 0 {
        return Err(Error::at(Errno::EINVAL, "unknown flags", flags.into()));
    }
    if flags == 0 {
        return Ok(None);
    }
    let mut pasid = 0_u32;
    arg::check_argsz(argsz, min + size_of::<u32>())?;
    client.read(address.wrapping_add(min as u64), pasid.as_mut_bytes())?;
    Ok(Some(pasid))
}
