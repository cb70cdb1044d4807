//! The raw image file behind a disk.
//!
//! Invariant: it is read and written only by who has its lock. A device that moves to another run gives the lock up before
//! the other takes it; one that has none takes it before it does anything with the file.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ioasis_sys::locks::{Holder, Lock, lock, try_lock, unlock};
use ioasis_uapi::Errno;
use rustix::fs::{FallocateFlags, fallocate};

use super::options::{self, ModelError, Options};

/// Zeroes written at once where the file system cannot make them itself.
const ZEROES: usize = 64 << 10;

/// How an image is to be opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// The model, for what people are told.
    pub(super) model: &'static str,
    pub(super) path: &'a Path,
    /// Bytes of an image to be made when there is none.
    pub(super) size: Option<u64>,
    pub(super) protection: Protection,
    pub(super) possession: Possession,
    /// Bytes of a block.
    pub(super) block: u64,
}

/// When the image is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Possession {
    /// As soon as it is opened.
    Now,
    /// When it is used: another run may have it until then.
    Later,
}

/// Whether the program may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protection {
    /// It may.
    Writable,
    /// It may not, and the file is opened for reading only.
    ReadOnly,
}

impl Protection {
    fn lock(self) -> Lock {
        match self {
            Self::Writable => Lock::Exclusive,
            Self::ReadOnly => Lock::Shared,
        }
    }
}

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    bytes: u64,
    protection: Protection,
    /// It is locked.
    held: AtomicBool,
    /// Device and inode, which tell one image from another.
    identity: (u64, u64),
}

/// Bytes of a block of a disk: the option `lba`.
pub(super) fn block(options: &Options<'_>) -> Result<u64, ModelError> {
    options.parsed("lba", 512, |text| match text {
        "512" => Some(512),
        "4096" => Some(4096),
        _ => None,
    })
}

/// Bytes of an image that is to be made, in whole blocks: the option `size`.
pub(super) fn size(options: &Options<'_>, block: u64) -> Result<Option<u64>, ModelError> {
    options.parsed("size", None, |text| {
        let size = options::bytes(text)?;
        (size > 0 && size.is_multiple_of(block)).then_some(Some(size))
    })
}

/// Printable text of at most `longest` bytes: the option `serial`.
pub(super) fn serial(options: &Options<'_>, longest: usize) -> Result<Option<String>, ModelError> {
    options.parsed("serial", None, |text| {
        let printable = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        (printable && (1..=longest).contains(&text.len())).then(|| Some(text.to_owned()))
    })
}

/// The option `incoming`.
pub(super) fn possession(options: &Options<'_>) -> Result<Possession, ModelError> {
    Ok(if options.switch("incoming")? { Possession::Later } else { Possession::Now })
}

/// The option `ro`.
pub(super) fn protection(options: &Options<'_>) -> Result<Protection, ModelError> {
    Ok(if options.switch("ro")? { Protection::ReadOnly } else { Protection::Writable })
}

impl Image {
    /// Opens and locks it, and makes it first if that is wanted and it is not there.
    pub(super) fn open(wanted: &Wanted<'_>) -> Result<Self, ModelError> {
        let file = wanted.open_file()?;
        let failed = |error: &io::Error| wanted.error(&format!(": {error}"));
        let metadata = file.metadata().map_err(|error| failed(&error))?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(wanted.error(" is neither a file nor a block device"));
        }
        let held = wanted.possession == Possession::Now;
        if held {
            lock_image(&file, wanted)?;
        }
        let bytes = (&file).seek(SeekFrom::End(0)).map_err(|error| failed(&error))?;
        wanted.check_size(bytes)?;
        let identity = (metadata.dev(), metadata.ino());
        let held = AtomicBool::new(held);
        Ok(Self { file, bytes, protection: wanted.protection, held, identity })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn protection(&self) -> Protection {
        self.protection
    }

    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Takes the lock, unless it is there.
    ///
    /// # Errors
    ///
    /// `EBUSY` when another run has it.
    pub(super) fn hold(&self) -> io::Result<()> {
        if self.held.load(Ordering::Acquire) {
            return Ok(());
        }
        match try_lock(&self.file, self.protection.lock()) {
            Ok(true) => {
                self.held.store(true, Ordering::Release);
                Ok(())
            }
            Ok(false) => Err(io::Error::from_raw_os_error(Errno::EBUSY.raw())),
            Err(error) => Err(io::Error::from_raw_os_error(error.errno.raw())),
        }
    }

    /// Brings all that was written to the disk, and gives the lock up.
    pub(super) fn let_go(&self) -> io::Result<()> {
        self.sync()?;
        unlock(&self.file).map_err(|error| io::Error::from_raw_os_error(error.errno.raw()))?;
        self.held.store(false, Ordering::Release);
        Ok(())
    }

    /// Fills `buf` from `offset`; a file cut short since it was opened is an error.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.hold()?;
        self.file.read_exact_at(buf, offset)
    }

    pub(super) fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.hold()?;
        self.file.write_all_at(buf, offset)
    }

    /// Returns when all that was written is on the disk. Who has no lock has written nothing since it was given up.
    pub(super) fn sync(&self) -> io::Result<()> {
        if self.held.load(Ordering::Acquire) { self.file.sync_data() } else { Ok(()) }
    }

    /// Gives the blocks back to the file system; they read as zeroes.
    pub(super) fn deallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.allocate(flags, offset, length)
    }

    /// Makes the blocks zero and keeps them allocated.
    pub(super) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.allocate(flags, offset, length)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.hold()?;
        match fallocate(&self.file, flags, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeroes(offset, length),
            done => done.map_err(io::Error::from),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeroes = [0; ZEROES];
        let mut done = 0;
        while done < length {
            let piece = usize::try_from(length - done).map_or(ZEROES, |rest| rest.min(ZEROES));
            self.write(offset + done, &zeroes[..piece])?;
            done += piece as u64;
        }
        Ok(())
    }
}

impl Wanted<'_> {
    /// What is wrong with the image, for people.
    fn error(&self, what: &str) -> ModelError {
        ModelError::new(format!("{}: image={}{what}", self.model, self.path.display()))
    }

    fn open_file(&self) -> Result<File, ModelError> {
        let mut options = OpenOptions::new();
        // A FIFO must not make the open wait.
        options.read(true).write(self.protection == Protection::Writable);
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        match (options.open(self.path), self.size) {
            (Ok(file), _) => Ok(file),
            (Err(error), Some(size)) if error.kind() == ErrorKind::NotFound => self.make_file(size),
            (Err(error), None) if error.kind() == ErrorKind::NotFound => {
                Err(self.error(" does not exist; size= makes it"))
            }
            (Err(error), _) => Err(self.error(&format!(": {error}"))),
        }
    }

    fn make_file(&self, size: u64) -> Result<File, ModelError> {
        self.check_size(size)?;
        if self.protection == Protection::ReadOnly {
            return Err(self.error(" does not exist; ro makes none"));
        }
        let made = OpenOptions::new().read(true).write(true).create_new(true).open(self.path);
        let sized = made.and_then(|file| file.set_len(size).map(|()| file));
        sized.map_err(|error| self.error(&format!(" cannot be made: {error}")))
    }

    fn check_size(&self, bytes: u64) -> Result<(), ModelError> {
        let block = self.block;
        if let Some(size) = self.size
            && size != bytes
        {
            return Err(self.error(&format!(" has {bytes} bytes, not the {size} of size=")));
        }
        if bytes == 0 {
            return Err(self.error(" is empty; size= makes an image that does not exist"));
        }
        if !bytes.is_multiple_of(block) {
            let multiple = "which is no multiple of its block size";
            return Err(self.error(&format!(" has {bytes} bytes, {multiple}, {block}")));
        }
        Ok(())
    }
}

fn lock_image(file: &File, wanted: &Wanted<'_>) -> Result<(), ModelError> {
    let holder = match lock(file, wanted.protection.lock()) {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(holder)) => holder,
        Err(error) => return Err(wanted.error(&format!(" cannot be locked: {}", error.errno))),
    };
    let who = match holder {
        Holder::Process(pid) => format!("process {pid}"),
        Holder::Unknown => "another program".to_owned(),
    };
    Err(wanted.error(&format!(" is in use by {who}")))
}

#[cfg(test)]
mod tests;
