//! `virtio-blk`: a disk whose contents are a raw image file (Virtio 1.2, 5.2). `request` does what
//! it is asked.

mod request;

use std::path::Path;

use self::request::{Executor, SECTOR};
use super::queue::Queue;
use super::transport::{Interface, Transport};
use super::{Device, Identity, Portable, Stopped, quadword};
use crate::bus::Bus;
use crate::migration::{Reader, Writer};
use crate::model::image::{self, Image, Wanted};
use crate::model::options::{ModelError, OptionInfo, Options};
use crate::model::{Model, ModelInfo, Progress};

/// How `ioasis models` lists it.
pub(in crate::model) const INFO: ModelInfo = ModelInfo {
    name: "virtio-blk",
    summary: "a virtio 1.2 disk on a raw image file (1af4:1042)",
    options: OPTIONS,
    create,
};

const OPTIONS: &[OptionInfo] = &[
    OptionInfo {
        name: "image",
        meaning: "the raw image file behind the disk",
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
        meaning: "write-protects the disk and opens the image for reading only",
        accepted: "on or off",
        default: "off",
    },
    OptionInfo {
        name: "serial",
        meaning: "the ID string of the disk",
        accepted: "1 to 20 printable ASCII characters",
        default: "made from the identity of the image file",
    },
    OptionInfo {
        name: "queues",
        meaning: "the number of request queues",
        accepted: "a number from 1 to 64",
        default: "4",
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

const QUEUES_MAX: u16 = 64;
const QUEUES: u16 = 4;
/// Bytes of the ID string, 5.2.6.
const ID_BYTES: usize = 20;

/// Block devices are number 2; mass storage, SCSI (PCI Code and ID Assignment 1.11, 1.2), as QEMU's
/// is.
const IDENTITY: Identity = Identity { id: 2, class: 0x01_00_00 };

// Feature bits, 5.2.3.
const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const RO: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
const MQ: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;

/// Offset of `writeback` in the configuration, and bytes of all of it up to what write zeroes need
/// (5.2.4).
const WRITEBACK: usize = 32;
const CONFIGURATION_BYTES: usize = 60;

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    let path = Path::new(options.required("image")?);
    let block = image::block(options)?;
    let size = image::size(options, block)?;
    let queues = options.parsed("queues", QUEUES, |text| {
        text.parse().ok().filter(|queues| (1..=QUEUES_MAX).contains(queues))
    })?;
    let serial = image::serial(options, ID_BYTES)?;
    let protection = image::protection(options)?;
    let image = Image::open(&Wanted {
        model: "virtio-blk",
        path,
        size,
        protection,
        possession: image::possession(options)?,
        block,
    })?;
    let serial = serial.unwrap_or_else(|| serial_of(&image));
    let mut id = [0; ID_BYTES];
    id[..serial.len()].copy_from_slice(serial.as_bytes());
    let executor = Executor::new(image, id);
    let disk = Disk { executor, queues, block, accepted: 0, writeback: true };
    Ok(Box::new(Transport::new(Box::new(disk), Interface::Modern)))
}

/// An ID string that stays the same as long as the image is the same file.
fn serial_of(image: &Image) -> String {
    let (device, inode) = image.identity();
    format!("{:08x}{:012x}", device & 0xffff_ffff, inode & 0xffff_ffff_ffff)
}

/// The disk.
#[derive(Debug)]
struct Disk {
    executor: Executor,
    queues: u16,
    /// Bytes of a block.
    block: u64,
    /// Feature bits that the driver accepted.
    accepted: u64,
    /// Written data may stay in the page cache when a request completes.
    writeback: bool,
}

impl Disk {
    /// When a write that completed is stable without a flush (5.2.6.2).
    fn writes_through(&self) -> bool {
        if self.accepted & CONFIG_WCE != 0 { !self.writeback } else { self.accepted & FLUSH == 0 }
    }
}

impl Device for Disk {
    fn flush(&mut self) -> std::io::Result<()> {
        self.executor.flush()
    }

    fn identity(&self) -> Identity {
        IDENTITY
    }

    fn model(&self) -> &'static str {
        INFO.name
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn features(&self) -> u64 {
        let mut features =
            SIZE_MAX | SEG_MAX | BLK_SIZE | FLUSH | CONFIG_WCE | DISCARD | WRITE_ZEROES;
        if self.queues > 1 {
            features |= MQ;
        }
        if self.executor.is_read_only() {
            features |= RO;
            features &= !(DISCARD | WRITE_ZEROES);
        }
        features
    }

    fn start(&mut self, features: u64) {
        self.accepted = features;
        // 5.2.5.2: without flushes there is no cache to speak of.
        self.writeback = features & FLUSH != 0;
    }

    fn configuration(&self) -> Vec<u8> {
        let block = u32::try_from(self.block).expect("4096 at most");
        let sectors = u32::try_from(self.block / SECTOR).expect("8 at most");
        let fields: [(usize, u64, usize); 13] = [
            (0, self.executor.bytes() / SECTOR, 8),
            (8, request::SEGMENT_MAX, 4),
            (12, request::SEGMENTS_MAX.into(), 4),
            (20, block.into(), 4),
            (WRITEBACK, self.writeback.into(), 1),
            (34, self.queues.into(), 2),
            (36, request::RANGE_MAX.into(), 4),
            (40, request::RANGES_MAX.into(), 4),
            (44, sectors.into(), 4),
            (48, request::RANGE_MAX.into(), 4),
            (52, request::RANGES_MAX.into(), 4),
            // Write zeroes may deallocate.
            (56, 1, 1),
            (57, 0, 3),
        ];
        let mut bytes = vec![0; CONFIGURATION_BYTES];
        for (offset, value, length) in fields {
            bytes[offset..offset + length].copy_from_slice(&value.to_le_bytes()[..length]);
        }
        bytes
    }

    fn store(&mut self, offset: usize, value: u8) {
        if offset == WRITEBACK && self.accepted & CONFIG_WCE != 0 {
            self.writeback = value != 0;
        }
    }

    fn reset(&mut self) {
        self.accepted = 0;
        self.writeback = true;
    }

    fn portable(&mut self) -> Option<&mut dyn Portable> {
        Some(self)
    }

    fn serve(&mut self, bus: &Bus<'_>, queues: &mut [Queue]) -> Stopped<Progress> {
        let through = self.writes_through();
        let mut progress = Progress::Idle;
        for queue in queues.iter_mut().filter(|queue| queue.enabled && queue.kicked) {
            let index = queue.index;
            self.executor.turn(bus, queue, through).map_err(|stop| (index, stop))?;
            progress = Progress::Worked;
        }
        Ok(progress)
    }
}

impl Portable for Disk {
    fn shape(&self) -> Vec<(u64, &'static str)> {
        let (id, _) = self.executor.id().split_at(16);
        vec![
            (self.block, "the disk that was saved has another lba="),
            (self.executor.bytes(), "the image that was saved is of another size"),
            (quadword(id, 0), "the disk that was saved has another serial="),
            (quadword(id, 8), "the disk that was saved has another serial="),
        ]
    }

    fn save(&self, state: &mut Writer) {
        state.flag(self.writeback);
    }

    fn check(&self, state: &mut Reader<'_>) -> ioasis_uapi::Result<()> {
        state.flag().map(drop)
    }

    fn load(&mut self, state: &mut Reader<'_>) -> ioasis_uapi::Result<()> {
        self.writeback = state.flag()?;
        Ok(())
    }

    fn hand_over(&mut self) -> std::io::Result<()> {
        self.executor.image().let_go()
    }

    fn take_over(&mut self) -> std::io::Result<()> {
        self.executor.image().hold()
    }
}
