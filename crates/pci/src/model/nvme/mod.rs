//! `nvme`: an NVM Express 1.4 controller whose one namespace is a raw image file.
//!
//! One file a chapter of the specification: `registers` (3), `command`, `queue`, `prp` and `status` (4), `admin`,
//! `identify`, `features`, `log` and `events` (5), `io` (6), `controller` (7).
//!
//! `migration` is how it moves to another run.
//!
//! Registers and doorbells are pages that the program maps; BAR 4 holds the MSI-X table. Admin and I/O queues may
//! use any of the vectors, of which there is one more than I/O queue pairs.

mod admin;
mod command;
mod controller;
mod events;
mod features;
mod identify;
mod io;
mod log;
mod migration;
mod prp;
mod queue;
mod registers;
mod status;

use std::path::Path;

use ioasis_uapi::Result;

use self::controller::Controller;
use self::identify::Identity;
use self::registers::DOORBELLS;
use super::image::{self, Image, Wanted};
use super::options::{ModelError, OptionInfo, Options};
use super::{After, Model, ModelInfo, Progress};
use crate::bus::Bus;
use crate::description::{Bar, BarKind, Description, Ids, MsixTable, Pages, Vectors};
use crate::migration::Migration;

/// How `ioasis models` lists it.
pub(super) const INFO: ModelInfo = ModelInfo {
    name: "nvme",
    summary: "an NVMe 1.4 controller on a raw image file (1b36:0010)",
    options: OPTIONS,
    create,
};

const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "image",
        meaning: "the raw image file behind the namespace",
        accepted: "the path of a file or block device",
        default: "it must be given",
    },
    OptionInfo {
        name: "size",
        meaning: "makes the image, sparse, when it does not exist",
        accepted: "a number of bytes with K, M, G or T for powers of 1024, a multiple of the block size",
        default: "the image must exist",
    },
    OptionInfo {
        name: "ro",
        meaning: "write-protects the namespace and opens the image for reading only",
        accepted: "on or off",
        default: "off",
    },
    OptionInfo {
        name: "serial",
        meaning: "the serial number of the controller",
        accepted: "1 to 20 printable ASCII characters",
        default: "made from the identity of the image file",
    },
    OptionInfo {
        name: "queues",
        meaning: "the number of I/O queue pairs",
        accepted: "a number from 1 to 64",
        default: "64",
    },
    OptionInfo {
        name: "lba",
        meaning: "the block size in bytes",
        accepted: "512 or 4096",
        default: "512",
    },
    OptionInfo {
        name: "incoming",
        meaning: "another run has the image until this device takes over its state, or uses the disk",
        accepted: "on or off",
        default: "off",
    },
];

/// Mass storage, non-volatile memory, NVM Express (PCI Code and ID Assignment 1.11, 1.2).
const CLASS: u32 = 0x01_08_02;

/// Bytes of BAR 0: the least that 2.1.10 allows, room for more doorbells than there are queues.
const BAR_BYTES: u64 = 16 << 10;
/// BAR of the MSI-X structures, and where in it the pending bits lie.
const MSIX_BAR: usize = 4;
const MSIX_BAR_BYTES: u64 = 4096;
const MSIX_PENDING: u32 = 0x800;
/// The most messages MSI can have.
const MSI_MAX: u16 = 32;

const QUEUES_MAX: u16 = 64;
/// Bytes of a serial number, 5.15.
const SERIAL_MAX: usize = 20;

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    let path = Path::new(options.required("image")?);
    let block = image::block(options)?;
    let size = image::size(options, block)?;
    let queues = options.parsed("queues", QUEUES_MAX, |text| {
        text.parse().ok().filter(|queues| (1..=QUEUES_MAX).contains(queues))
    })?;
    let serial = image::serial(options, SERIAL_MAX)?;
    let protection = image::protection(options)?;
    let possession = image::possession(options)?;
    let wanted = Wanted { model: "nvme", path, size, protection, possession, block };
    let image = Image::open(&wanted)?;
    let identity = Identity::new(serial.unwrap_or_else(|| serial_of(&image)));
    Ok(Box::new(Nvme(Controller::new(image, identity, queues, block.trailing_zeros()))))
}

/// A serial number that stays the same as long as the image is the same file.
fn serial_of(image: &Image) -> String {
    let (device, inode) = image.identity();
    let bytes = [device.to_le_bytes(), inode.to_le_bytes()].concat();
    format!("IO{:016X}", identify::hash(&bytes, 0))
}

/// The model: the controller in the shape of a PCI function.
#[derive(Debug)]
struct Nvme(Controller);

impl Model for Nvme {
    fn description(&self) -> Description {
        let vectors = self.0.queues + 1;
        let memory = |size, kind, mappable| Some(Bar { size, kind, prefetchable: false, mappable });
        // Doorbells only move forward, or say where a ring's head is by now: they need no trap.
        let pages = vec![Pages::trapped(0..DOORBELLS), Pages::shared(DOORBELLS..BAR_BYTES)];
        let registers = memory(BAR_BYTES, BarKind::Memory64, pages);
        let pages = vec![Pages::shared(0..MSIX_BAR_BYTES)];
        let msix = memory(MSIX_BAR_BYTES, BarKind::Memory32, pages);
        Description {
            ids: Ids {
                vendor: identify::VENDOR,
                device: identify::DEVICE,
                subsystem_vendor: identify::SUBSYSTEM_VENDOR,
                subsystem_device: identify::SUBSYSTEM_DEVICE,
                class: CLASS,
                revision: 2,
            },
            bars: [registers, None, None, None, msix, None],
            vectors: Vectors {
                intx: true,
                msi: vectors.next_power_of_two().min(MSI_MAX),
                msix: vectors,
            },
            msix: Some(MsixTable {
                table_bar: MSIX_BAR,
                table_offset: 0,
                pba_bar: MSIX_BAR,
                pba_offset: MSIX_PENDING,
            }),
            ..Description::default()
        }
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.0.reset(bus)
    }

    fn update_line(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.0.update_line(bus)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.image.sync()
    }

    fn load(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if bar == registers::BAR {
            self.0.load(bus, offset, bytes)
        } else {
            bytes.fill(0);
            Ok(())
        }
    }

    fn store(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if bar == registers::BAR { self.0.store(bus, offset, bytes) } else { Ok(()) }
    }

    fn after_store(&self, bar: usize, offset: u64) -> After {
        if bar == registers::BAR && offset < DOORBELLS { After::Settled } else { After::Work }
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        self.0.poll(bus)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

#[cfg(test)]
pub(in crate::model) use tests::image_path;

#[cfg(test)]
mod tests;
