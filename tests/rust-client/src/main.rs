//! A client of VFIO and IOMMUFD built on the rust-vmm crates: `rust-client HOW DEVICE BDF`.
//!
//! HOW is `legacy` (container and group), `cdev` (the device's own node, an IOAS) or `iommufd` (a
//! page table of its own, memory of a file). DEVICE is `testdev`, whose copy is compared, or
//! `nvme`, whose first blocks go to standard output. `rust-client peer BDF BDF` lets the second
//! `testdev` read the first.

mod memory;
mod nvme;
mod peer;
mod testdev;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use iommufd_bindings::iommufd::{iommu_hw_info, iommu_hwpt_alloc};
use iommufd_ioctls::{IommuFd, IommufdIoas};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioIommufd, VfioOps};

use memory::{IOVA, LENGTH, Memory};

/// Index of configuration space.
const CONFIG: u32 = 7;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = |bdf: &String| Path::new("/sys/bus/pci/devices").join(bdf);
    let (how, device, path) = match arguments.as_slice() {
        [how, first, second] if how == "peer" => return peer::run(&path(first), &path(second)),
        [how, device, bdf] => (how, device, path(bdf)),
        _ => bail!(
            "usage: rust-client legacy|cdev|iommufd testdev|nvme BDF, or rust-client peer BDF BDF"
        ),
    };
    let (opened, memory) = match how.as_str() {
        "legacy" => legacy(&path)?,
        "cdev" => cdev(&path)?,
        "iommufd" => iommufd(&path)?,
        other => bail!("no way called {other:?}"),
    };
    // Memory decoding and bus mastering.
    opened.region_write(CONFIG, &6_u16.to_le_bytes(), 4);
    match device.as_str() {
        "testdev" => testdev::run(&opened, &memory),
        "nvme" => nvme::run(&opened, &memory),
        other => bail!("no device called {other:?}"),
    }
}

fn open(path: &Path, ops: Arc<dyn VfioOps>, attach_ioas: bool) -> Result<VfioDevice> {
    VfioDevice::new(path, ops, attach_ioas)
        .with_context(|| format!("{} does not open", path.display()))
}

fn legacy(path: &Path) -> Result<(VfioDevice, Memory)> {
    let container = Arc::new(VfioContainer::new(None).context("no container")?);
    let device = open(path, Arc::clone(&container) as _, false)?;
    Ok((device, Memory::of_program(&*container)?))
}

fn cdev(path: &Path) -> Result<(VfioDevice, Memory)> {
    let iommufd = Arc::new(IommuFd::new().context("no iommufd")?);
    let ops = Arc::new(VfioIommufd::new(iommufd, None, None).context("no IOAS")?);
    let device = open(path, Arc::clone(&ops) as _, true)?;
    Ok((device, Memory::of_program(&*ops)?))
}

fn iommufd(path: &Path) -> Result<(VfioDevice, Memory)> {
    let iommufd = Arc::new(IommuFd::new().context("no iommufd")?);
    let ioas = Arc::new(IommufdIoas::new(Arc::clone(&iommufd)).context("no IOAS")?);
    let memory = Memory::of_file(&ioas)?;
    let ops =
        VfioIommufd::new(Arc::clone(&iommufd), Some(Arc::clone(&ioas)), None).context("no VFIO")?;
    let device = open(path, Arc::new(ops), false)?;
    let dev_id = device.iommufd_dev_id().context("the device has no id")?;
    let mut info = iommu_hw_info {
        size: size_of::<iommu_hw_info>().try_into()?,
        dev_id,
        ..Default::default()
    };
    iommufd.get_hw_info(&mut info).context("no hardware information")?;
    let size = size_of::<iommu_hwpt_alloc>().try_into()?;
    let mut hwpt = iommu_hwpt_alloc { size, dev_id, pt_id: ioas.id(), ..Default::default() };
    iommufd.alloc_iommu_hwpt(&mut hwpt).context("no page table")?;
    device.attach_hwpt(hwpt.out_hwpt_id).context("the page table does not fit")?;
    device.detach_hwpt().context("the device does not detach")?;
    device.attach_hwpt(hwpt.out_hwpt_id).context("the page table fits once only")?;
    Ok((device, memory))
}

/// Asks `done` until it says yes.
fn wait(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        ensure!(Instant::now() < deadline, "{what} takes longer than 60 s");
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}
