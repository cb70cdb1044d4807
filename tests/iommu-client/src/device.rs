//! A `testdev` through its own node.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ioasis_uapi::vfio as abi;

use crate::iommufd::{Iommufd, call};

/// In configuration space.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;

const ADDR: u64 = 0x00;
const CMD: u64 = 0x08;
const FAULT: u64 = 0x10;
const PASID: u64 = 0x18;
const TO_MEMORY: u32 = 1;
const FROM_MEMORY: u32 = 3;
const FAULTED: u32 = 1 << 31;

/// An open device, bound to an iommufd.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    id: u32,
    bar: u64,
    config: u64,
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a struct is short")]
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

impl Device {
    /// /dev/vfio/devices/vfio`number`, able to do DMA.
    pub(crate) fn open(iommufd: &Iommufd, number: u32) -> Result<Self> {
        Self::named(iommufd, &format!("vfio{number}"))
    }

    /// The same, by the name of its node.
    pub(crate) fn named(iommufd: &Iommufd, name: &str) -> Result<Self> {
        let path = format!("/dev/vfio/devices/{name}");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("{path} does not open"))?;
        let mut bind = abi::DeviceBindIommufd {
            argsz: size::<abi::DeviceBindIommufd>(),
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        call(&file, abi::DEVICE_BIND_IOMMUFD, &mut bind).context("the device is not bound")?;
        let region = |index| -> Result<u64> {
            let mut info =
                abi::RegionInfo { argsz: size::<abi::RegionInfo>(), index, ..Default::default() };
            call(&file, abi::DEVICE_GET_REGION_INFO, &mut info).context("no region")?;
            Ok(info.offset)
        };
        let config = region(abi::PCI_CONFIG_REGION_INDEX)?;
        file.write_all_at(&MEMORY_AND_MASTER.to_le_bytes(), config + COMMAND)?;
        let bar = region(abi::PCI_BAR0_REGION_INDEX)?;
        Ok(Self { file, id: bind.out_devid, bar, config })
    }

    /// Its id in the iommufd.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn attach(&self, pt_id: u32) -> io::Result<()> {
        let mut cmd = abi::DeviceAttachIommufdPt {
            argsz: size::<abi::DeviceAttachIommufdPt>(),
            pt_id,
            ..Default::default()
        };
        call(self, abi::DEVICE_ATTACH_IOMMUFD_PT, &mut cmd)
    }

    pub(crate) fn attach_pasid(&self, pasid: u32, pt_id: u32) -> io::Result<()> {
        let mut cmd = abi::DeviceAttachIommufdPt {
            argsz: size::<abi::DeviceAttachIommufdPt>(),
            flags: abi::DEVICE_ATTACH_PASID,
            pt_id,
            pasid,
        };
        call(self, abi::DEVICE_ATTACH_IOMMUFD_PT, &mut cmd)
    }

    pub(crate) fn detach(&self) -> io::Result<()> {
        let argsz = size::<abi::DeviceDetachIommufdPt>();
        let mut cmd = abi::DeviceDetachIommufdPt { argsz, ..Default::default() };
        call(self, abi::DEVICE_DETACH_IOMMUFD_PT, &mut cmd)
    }

    pub(crate) fn detach_pasid(&self, pasid: u32) -> io::Result<()> {
        let mut cmd = abi::DeviceDetachIommufdPt {
            argsz: size::<abi::DeviceDetachIommufdPt>(),
            flags: abi::DEVICE_DETACH_PASID,
            pasid,
        };
        call(self, abi::DEVICE_DETACH_IOMMUFD_PT, &mut cmd)
    }

    /// Resets the function, which has to be let onto the bus again.
    #[expect(unsafe_code, reason = "an ioctl is one")]
    pub(crate) fn reset(&self) -> Result<()> {
        // SAFETY: the call has no argument.
        let done = unsafe { vmm_sys_util::ioctl::ioctl(self, abi::DEVICE_RESET.into()) };
        ensure!(done == 0, "the device is not reset: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Resets the function as its own driver does: PCI Express 7.5.3.4, Initiate Function Level
    /// Reset.
    pub(crate) fn reset_function(&self) -> Result<()> {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, self.config + 0x34)?;
        while byte[0] != 0 {
            let mut header = [0; 2];
            self.file.read_exact_at(&mut header, self.config + u64::from(byte[0]))?;
            if header[0] == 0x10 {
                let control = self.config + u64::from(byte[0]) + 8;
                return Ok(self.file.write_all_at(&0x8000_u16.to_le_bytes(), control)?);
            }
            byte[0] = header[1];
        }
        bail!("the function has no PCI Express capability")
    }

    fn store(&self, at: u64, value: u32) -> io::Result<()> {
        self.file.write_all_at(&value.to_le_bytes(), self.bar + at)
    }

    fn load(&self, at: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, self.bar + at)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The PASID of the copies that follow; 0 is none.
    pub(crate) fn use_pasid(&self, pasid: u32) -> io::Result<()> {
        self.store(PASID, pasid)
    }

    fn begin(&self, iova: u64, command: u32) -> io::Result<()> {
        self.file.write_all_at(&iova.to_le_bytes(), self.bar + ADDR)?;
        self.store(CMD, command)
    }

    /// Begins to read the page at `iova`.
    pub(crate) fn begin_reading(&self, iova: u64) -> io::Result<()> {
        self.begin(iova, FROM_MEMORY)
    }

    /// Waits for what was begun: the address that faulted, if one did.
    pub(crate) fn finish(&self) -> Result<Option<u64>> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = self.load(CMD)?;
            if status & 1 == 0 {
                let fault = u64::from(self.load(FAULT)?) | u64::from(self.load(FAULT + 4)?) << 32;
                return Ok((status & FAULTED != 0).then_some(fault));
            }
            if Instant::now() > deadline {
                bail!("a copy takes longer than 60 s");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Reads the page at `from` and writes it to `to`: the address that faulted, if one did.
    pub(crate) fn copy(&self, from: u64, to: u64) -> Result<Option<u64>> {
        self.begin(from, FROM_MEMORY)?;
        if let Some(fault) = self.finish()? {
            return Ok(Some(fault));
        }
        self.begin(to, TO_MEMORY)?;
        self.finish()
    }
}
