//! The data files of a migration: one that gives the state of a device, one that takes it. Linux:
//! drivers/vfio/pci/{qat,virtio,pds,mlx5}.
//!
//! What there is to read was saved when the device changed its state, so that a read waits for
//! nothing. No lock is held while bytes move from or to the client, which may never give a page:
//! the device changes its state meanwhile. A file that its device has no use for any more answers
//! `ENODEV`.

use std::sync::{Arc, Weak};

use ioasis_iommufd::{
    Client, ClientFile, Destination, FileAccess, QueueFile, QueueWatcher, Source,
};
use ioasis_pci::Function;
use ioasis_pci::migration::{HEADER_BYTES, STREAM_MAX};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::vfio::{self, PrecopyInfo};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromZeros, IntoBytes};

use super::Migrating;

const NAME: &str = "anon_inode:vfio_mig";

fn unused<T>() -> Result<T> {
    Err(Error::new(Errno::ENODEV, "the device has no use for the file any more"))
}

fn not_open<T>() -> Result<T> {
    Err(Error::new(Errno::EBADF, "the descriptor is not open for that"))
}

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The device runs: there may be more to read.
    PreCopy,
    /// All is there.
    Complete,
    /// Nobody needs it.
    Unused,
}

/// The file that a state is read from.
#[derive(Debug)]
pub(super) struct SaveFile {
    /// A leaf.
    saved: Mutex<Saved>,
    owner: Weak<Migrating>,
}

#[derive(Debug)]
struct Saved {
    bytes: Vec<u8>,
    position: usize,
    stage: Stage,
    watcher: Option<Arc<dyn QueueWatcher>>,
}

impl SaveFile {
    /// A stream that begins with `bytes` while the device runs.
    pub(super) fn begun(owner: Weak<Migrating>, bytes: Vec<u8>) -> Arc<Self> {
        Self::new(owner, bytes, Stage::PreCopy)
    }

    /// A stream that is all there.
    pub(super) fn complete(owner: Weak<Migrating>, bytes: Vec<u8>) -> Arc<Self> {
        Self::new(owner, bytes, Stage::Complete)
    }

    fn new(owner: Weak<Migrating>, bytes: Vec<u8>, stage: Stage) -> Arc<Self> {
        let saved = Saved { bytes, position: 0, stage, watcher: None };
        Arc::new(Self { saved: Mutex::new(saved), owner })
    }

    /// The rest of a stream that has begun.
    pub(super) fn finish(&self, rest: &[u8]) {
        self.change(|saved| {
            saved.bytes.extend_from_slice(rest);
            saved.stage = Stage::Complete;
        });
    }

    pub(super) fn disable(&self) {
        self.change(|saved| {
            (saved.bytes, saved.position) = (Vec::new(), 0);
            saved.stage = Stage::Unused;
        });
    }

    /// A read of these bytes failed: the next one gets them, unless another has read on.
    fn unread(&self, start: usize, end: usize) {
        self.change(|saved| {
            if saved.position == end && saved.stage != Stage::Unused {
                saved.position = start;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Saved)) {
        let mut saved = self.saved.lock();
        change(&mut saved);
        if let Some(watcher) = &saved.watcher {
            watcher.readable();
        }
    }

    /// Answers MIG_GET_PRECOPY_INFO. Linux: `vfio_check_precopy_ioctl`, `qat_vf_precopy_ioctl`.
    fn precopy_info(&self, client: &dyn Client, address: u64) -> Result<()> {
        let mut info = PrecopyInfo::new_zeroed();
        client.read(address, info.as_mut_bytes())?;
        if (info.argsz as usize) < size_of::<PrecopyInfo>() {
            return Err(Error::at(Errno::EINVAL, "argsz is too small", info.argsz.into()));
        }
        let unused = || unused::<()>().expect_err("it is always one");
        let owner = self.owner.upgrade().ok_or_else(unused)?;
        // A client that did not opt in finds the flags as it left them.
        if owner.wants_flags() {
            info.flags = 0;
        }
        owner.check_pre_copy()?;
        let saved = self.saved.lock();
        if saved.stage == Stage::Unused {
            return Err(unused());
        }
        info.initial_bytes = (saved.bytes.len() - saved.position) as u64;
        // What a device announces does not change while it runs.
        info.dirty_bytes = 0;
        drop(saved);
        client.write(address, info.as_bytes())
    }
}

impl ClientFile for SaveFile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn access(&self) -> FileAccess {
        FileAccess::Read
    }

    fn ioctl(&self, client: &dyn Client, command: u32, address: u64) -> Result<i64> {
        if command != vfio::MIG_GET_PRECOPY_INFO {
            return Err(Error::at(Errno::ENOTTY, "the file has no such ioctl", command.into()));
        }
        self.precopy_info(client, address).map(|()| 0)
    }

    /// The device still has it, and drops it when its state changes.
    fn close(&self) {}
}

impl QueueFile for SaveFile {
    fn read_to(&self, _: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        let mut saved = self.saved.lock();
        let left = saved.bytes.len() - saved.position;
        match saved.stage {
            Stage::Unused => return unused(),
            Stage::PreCopy if left == 0 && length != 0 => {
                return Err(Error::new(Errno::ENOMSG, "nothing more while the device runs"));
            }
            Stage::PreCopy | Stage::Complete => {}
        }
        let count = usize::try_from(length).unwrap_or(usize::MAX).min(left);
        let (start, end) = (saved.position, saved.position + count);
        // Not more than `STREAM_MAX`, which bounds what is saved.
        let bytes = saved.bytes[start..end].to_vec();
        // Nobody else reads the same.
        saved.position = end;
        drop(saved);
        to.put(0, &bytes).inspect_err(|_| self.unread(start, end))?;
        Ok(count as u64)
    }

    fn write_from(&self, _: u64, _: &mut dyn Source) -> Result<u64> {
        not_open()
    }

    fn is_readable(&self) -> bool {
        let saved = self.saved.lock();
        saved.stage != Stage::PreCopy || saved.position < saved.bytes.len()
    }

    fn is_writable(&self) -> bool {
        false
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn watch(&self, watcher: Arc<dyn QueueWatcher>) {
        self.saved.lock().watcher = Some(watcher);
    }
}

/// The file that a state is written to.
#[derive(Debug)]
pub(super) struct ResumeFile {
    function: Weak<Function>,
    /// A leaf.
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    /// `None` when nobody needs it any more.
    bytes: Option<Vec<u8>>,
    /// How many bytes writes copy at this moment: together they are not more than there is room
    /// for.
    coming: usize,
}

impl ResumeFile {
    pub(super) fn new(function: &Arc<Function>) -> Arc<Self> {
        Arc::new(Self {
            function: Arc::downgrade(function),
            taken: Mutex::new(Taken { bytes: Some(Vec::new()), coming: 0 }),
        })
    }

    /// All that was written; nothing can be written after.
    pub(super) fn take(&self) -> Vec<u8> {
        self.taken.lock().bytes.take().unwrap_or_default()
    }

    /// Makes room for a write of `length` bytes.
    fn expect(&self, length: u64) -> Result<usize> {
        let mut held = self.taken.lock();
        let Some(taken) = &held.bytes else { return unused() };
        let room = STREAM_MAX.saturating_sub(taken.len() + held.coming);
        let full = Error::at(Errno::ENOMEM, "no state is that long", length);
        let count = usize::try_from(length).ok().filter(|count| *count <= room).ok_or(full)?;
        held.coming += count;
        Ok(count)
    }
}

impl ClientFile for ResumeFile {
    fn name(&self) -> &'static str {
        NAME
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn access(&self) -> FileAccess {
        FileAccess::Write
    }

    /// The device still has it, and drops it when its state changes.
    fn close(&self) {}
}

impl QueueFile for ResumeFile {
    fn read_to(&self, _: u64, _: u64, _: &mut dyn Destination) -> Result<u64> {
        not_open()
    }

    /// The first header is looked at as soon as it is there, so that a client learns early that its
    /// stream is another device's (`qat_vf_resume_write`).
    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64> {
        let count = self.expect(length)?;
        let mut bytes = vec![0; count];
        let got = from.get(0, &mut bytes);
        let mut held = self.taken.lock();
        held.coming -= count;
        got?;
        let Some(taken) = &mut held.bytes else { return unused() };
        let before = taken.len();
        taken.extend_from_slice(&bytes);
        if before < HEADER_BYTES
            && let Some(header) = taken.get(..HEADER_BYTES)
            && let Some(function) = self.function.upgrade()
        {
            function.check_stream(header)?;
        }
        Ok(length)
    }

    fn is_readable(&self) -> bool {
        true
    }

    fn is_always_ready(&self) -> bool {
        true
    }

    fn is_stream(&self) -> bool {
        true
    }

    fn watch(&self, _: Arc<dyn QueueWatcher>) {}
}

#[cfg(test)]
mod tests;
