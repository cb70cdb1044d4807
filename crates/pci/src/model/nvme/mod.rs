//! `nvme`: an NVM Express 1.4 controller whose one namespace is a raw image file.

use ioasis_uapi::Result;

use super::options::{ModelError, OptionInfo, Options};
use super::{Model, ModelInfo};

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
        default: "none: it must be given",
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
];

fn create(options: &Options<'_>) -> Result<Box<dyn Model>, ModelError> {
    options.required("image")?;
    Err(options.refuse("image"))
}
