//! What a device has written, by pages of I/O virtual addresses. Linux:
//! `vfio_ioctl_device_feature_logging_*`, drivers/vfio/vfio_main.c; drivers/vfio/pci/{mlx5,pds}.
//!
//! Invariant: a page that was written while it was logged is in the log once the write has ended,
//! so that who reads it after a report, and then takes another report, misses nothing.
//!
//! The log is a leaf of the lock order. Its memory is bounded: one that would grow larger answers
//! every report with an error from then on, which tells a client that all may have been written.

use std::collections::BTreeMap;

use ioasis_iommufd::inject::step;
use ioasis_iommufd::{Bitmap, Client, Iova, IovaRange};
use ioasis_pci::Segment;
use ioasis_sys::sync::Mutex;
use ioasis_sys::sync::atomic::{AtomicBool, Ordering};
use ioasis_uapi::vfio::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromZeros, IntoBytes};

/// `LOG_MAX_RANGES`: what fits into a page.
const RANGES_MAX: u32 = 256;

/// log2 of the bytes that a bit of the log stands for, whatever the client hints at.
const PAGE_LG2: u32 = 12;
/// log2 of the pages of a word of bits.
const WORD_LG2: u32 = 6;
/// Words kept: those of 256 GiB, if all their pages are written.
const WORDS_MAX: usize = 1 << 20;
/// Ranges of pages that a report gathers at once, while writes wait for the log.
const BATCH: usize = 4096;

/// The log of one device.
#[derive(Debug, Default)]
pub(crate) struct DmaLog {
    /// Whether there is one, for writes. Changed under `log`.
    active: AtomicBool,
    log: Mutex<Option<Log>>,
}

#[derive(Debug)]
struct Log {
    /// What is logged, in ascending order; none overlaps another.
    ranges: Vec<IovaRange>,
    /// Which pages were written, by word.
    words: BTreeMap<u64, u64>,
    /// There were more than are kept.
    overflown: bool,
}

impl DmaLog {
    fn start(&self, mut ranges: Vec<IovaRange>) -> Result<()> {
        ranges.sort_by_key(|range| range.start());
        let mut log = self.log.lock();
        if log.is_some() {
            return Err(Error::new(Errno::EINVAL, "the device logs already"));
        }
        *log = Some(Log { ranges, words: BTreeMap::new(), overflown: false });
        self.active.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends the log, if there is one.
    pub(crate) fn stop(&self) {
        let mut held = self.log.lock();
        self.active.store(false, Ordering::Release);
        drop(held.take());
    }

    /// # Errors
    ///
    /// `EINVAL` while there is no log; `ENOMEM` when more was written than it can hold.
    fn check(&self) -> Result<()> {
        whole(&mut self.log.lock()).map(drop)
    }

    /// The device has written `segments`, or a part of them.
    pub(crate) fn record(&self, segments: &[Segment]) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        if let Some(log) = &mut *self.log.lock() {
            for segment in segments {
                let written = IovaRange::new(Iova(segment.iova), segment.length as u64);
                written.into_iter().for_each(|written| log.add(written));
            }
        }
    }

    /// Takes some of what was written inside `range`, in ascending order; the part of it that was
    /// not looked at comes back.
    fn take(&self, range: IovaRange) -> Result<(Vec<IovaRange>, Option<IovaRange>)> {
        let mut held = self.log.lock();
        Ok(whole(&mut held)?.take(range))
    }
}

/// The log, if there is one and it has all that was written.
fn whole(held: &mut Option<Log>) -> Result<&mut Log> {
    match held {
        None => Err(Error::new(Errno::EINVAL, "the device does not log")),
        Some(Log { overflown: true, .. }) => {
            Err(Error::new(Errno::ENOMEM, "more was written than the log can hold"))
        }
        Some(log) => Ok(log),
    }
}

impl Log {
    fn add(&mut self, written: IovaRange) {
        for index in 0..self.ranges.len() {
            let Some(part) = self.ranges[index].intersect(written) else { continue };
            let (mut page, last) = (part.start().0 >> PAGE_LG2, part.last().0 >> PAGE_LG2);
            while page <= last {
                let word = page >> WORD_LG2;
                let end = last.min(((word + 1) << WORD_LG2) - 1);
                self.set(word, bits(page, end));
                page = end + 1;
            }
        }
    }

    fn set(&mut self, word: u64, bits: u64) {
        if self.words.len() >= WORDS_MAX && !self.words.contains_key(&word) {
            self.overflown = true;
        } else {
            *self.words.entry(word).or_default() |= bits;
        }
    }

    fn take(&mut self, range: IovaRange) -> (Vec<IovaRange>, Option<IovaRange>) {
        let (mut taken, mut rest) = (Vec::new(), None);
        let mut empty = Vec::new();
        let logged = self.ranges.iter().filter_map(|logged| logged.intersect(range));
        'parts: for part in logged {
            let (first, last) = (part.start().0 >> PAGE_LG2, part.last().0 >> PAGE_LG2);
            for (&word, held) in self.words.range_mut(first >> WORD_LG2..=last >> WORD_LG2) {
                let base = word << WORD_LG2;
                if taken.len() >= BATCH {
                    let next = Iova((base << PAGE_LG2).max(part.start().0));
                    rest = IovaRange::closed(next, range.last()).ok();
                    break 'parts;
                }
                let wanted = bits(first.max(base), last.min(base + 63));
                push_pages(&mut taken, base, *held & wanted);
                *held &= !wanted;
                if *held == 0 {
                    empty.push(word);
                }
            }
        }
        for word in empty {
            self.words.remove(&word);
        }
        (taken, rest)
    }
}

/// The bits of pages `first` to `last`, all of one word.
fn bits(first: u64, last: u64) -> u64 {
    u64::MAX << (first % 64) & u64::MAX >> (63 - last % 64)
}

/// Adds the pages of a word whose bits are set, as few ranges as there are runs.
fn push_pages(taken: &mut Vec<IovaRange>, base: u64, mut bits: u64) {
    while bits != 0 {
        let first = bits.trailing_zeros();
        let count = (bits >> first).trailing_ones();
        bits &= !u64::MAX.unbounded_shl(first) | u64::MAX.unbounded_shl(first + count);
        let iova = (base + u64::from(first)) << PAGE_LG2;
        taken.extend(IovaRange::new(Iova(iova), u64::from(count) << PAGE_LG2));
    }
}

/// Answers SET of DEVICE_FEATURE_DMA_LOGGING_START.
///
/// # Errors
///
/// `EFAULT`; `EINVAL` without ranges, for one that is not made of pages or overlaps one before it,
/// and while the device logs; `E2BIG`; `EOVERFLOW`.
pub(crate) fn start(client: &dyn Client, log: &DmaLog, address: u64) -> Result<()> {
    let mut control = DeviceFeatureDmaLoggingControl::new_zeroed();
    client.read(address, control.as_mut_bytes())?;
    if control.num_ranges == 0 {
        return Err(Error::new(Errno::EINVAL, "no ranges"));
    }
    if control.num_ranges > RANGES_MAX {
        return Err(Error::at(Errno::E2BIG, "too many ranges", control.num_ranges.into()));
    }
    step("the ranges of a log")?;
    let ranges = read_ranges(client, &control)?;
    log.start(ranges)?;
    control.page_size = 1 << PAGE_LG2;
    client.write(address, control.as_bytes()).inspect_err(|_| log.stop())
}

/// Reads the ranges one after another, each checked before the next is read.
fn read_ranges(
    client: &dyn Client,
    control: &DeviceFeatureDmaLoggingControl,
) -> Result<Vec<IovaRange>> {
    const SIZE: u64 = size_of::<DeviceFeatureDmaLoggingRange>() as u64;
    let mut nodes: Vec<(u64, u64)> = Vec::new();
    for index in 0..u64::from(control.num_ranges) {
        let mut range = DeviceFeatureDmaLoggingRange::new_zeroed();
        client.read(control.ranges.wrapping_add(index * SIZE), range.as_mut_bytes())?;
        let DeviceFeatureDmaLoggingRange { iova, length } = range;
        // As IS_ALIGNED has it, for a page size that may be no power of two, or 0.
        if (iova | length) & control.page_size.wrapping_sub(1) != 0 {
            return Err(Error::at(Errno::EINVAL, "a range is not made of pages", iova));
        }
        if iova.checked_add(length).is_none() {
            return Err(Error::at(Errno::EOVERFLOW, "a range wraps", iova));
        }
        // An empty range is a node that ends before it begins, and meets another all the same.
        let node = (iova, iova.wrapping_add(length).wrapping_sub(1));
        if nodes.iter().any(|other| other.0 <= node.1 && node.0 <= other.1) {
            return Err(Error::at(Errno::EINVAL, "a range overlaps one before it", iova));
        }
        nodes.push(node);
    }
    let range = |(start, last): (u64, u64)| IovaRange::closed(Iova(start), Iova(last)).ok();
    Ok(nodes.into_iter().filter_map(range).collect())
}

/// Answers GET of DEVICE_FEATURE_DMA_LOGGING_REPORT. A bitmap that cannot be written is no error,
/// as in Linux (`iova_bitmap_set`).
///
/// # Errors
///
/// `EFAULT`; `EINVAL` for a page size that is no power of two or below 4 KiB, and while the device
/// does not log; `EOVERFLOW`; `ENOMEM` when more was written than the log can hold.
pub(crate) fn report(client: &dyn Client, log: &DmaLog, address: u64) -> Result<()> {
    let mut asked = DeviceFeatureDmaLoggingReport::new_zeroed();
    client.read(address, asked.as_mut_bytes())?;
    if asked.page_size < 1 << PAGE_LG2 || !asked.page_size.is_power_of_two() {
        return Err(Error::at(Errno::EINVAL, "no such page size", asked.page_size));
    }
    if asked.iova.checked_add(asked.length).is_none() {
        return Err(Error::at(Errno::EOVERFLOW, "the range wraps", asked.iova));
    }
    step("a report of what was written")?;
    let Ok(range) = IovaRange::new(Iova(asked.iova), asked.length) else {
        return log.check();
    };
    let page_lg2 = asked.page_size.trailing_zeros();
    let bitmap = Bitmap { range, page_lg2, data: asked.bitmap };
    let mut left = Some(range);
    while let Some(part) = left {
        let (written, rest) = log.take(part)?;
        let _ = bitmap.set(&written, client);
        left = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
