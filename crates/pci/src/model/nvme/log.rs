//! Get Log Page (NVMe 1.4, 5.14): errors, health, firmware.

use std::collections::VecDeque;

use super::features::TEMPERATURE_K;
use super::io::Counters;
use super::status::Status;
use crate::migration::{Reader, Writer, bad};

// Log page identifiers, figure 191.
pub(super) const ERROR_INFORMATION: u8 = 0x01;
pub(super) const HEALTH: u8 = 0x02;
const FIRMWARE_SLOT: u8 = 0x03;

/// Entries of the error log.
pub(super) const ERROR_ENTRIES: usize = 64;
/// The firmware revision, in Identify and in the firmware slot log.
pub(super) const FIRMWARE: [u8; 8] = *b"1.0     ";
const ERROR_BYTES: usize = 64;
const HEALTH_BYTES: usize = 512;
const FIRMWARE_BYTES: usize = 512;
/// A data unit of the health log: a thousand sectors of 512 bytes.
const DATA_UNIT: u64 = 512_000;
/// Critical warning: the temperature is past a threshold.
const WARNING_TEMPERATURE: u8 = 1 << 1;

/// A command that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) queue: u16,
    pub(super) command: u16,
    pub(super) status: Status,
    pub(super) lba: u64,
    pub(super) namespace: u32,
}

/// The failed commands, newest first.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    count: u64,
    entries: VecDeque<(u64, Failure)>,
}

impl ErrorLog {
    pub(super) fn add(&mut self, failure: Failure) {
        self.count += 1;
        self.entries.truncate(ERROR_ENTRIES - 1);
        self.entries.push_front((self.count, failure));
    }

    pub(super) fn save(&self, state: &mut Writer) {
        state.u64(self.count);
        state.list(self.entries.iter(), |state, (count, failure)| {
            state.u64(*count);
            for number in [failure.queue, failure.command, failure.status.raw()] {
                state.u16(number);
            }
            state.u64(failure.lba);
            state.u32(failure.namespace);
        });
    }

    pub(super) fn load(state: &mut Reader<'_>) -> ioasis_uapi::Result<Self> {
        let count = countable(state.u64()?)?;
        let entries = state.list(ERROR_ENTRIES, |state| {
            let (count, queue, command) = (state.u64()?, state.u16()?, state.u16()?);
            let status = Status::from_raw(state.u16()?);
            let (lba, namespace) = (state.u64()?, state.u32()?);
            Ok((count, Failure { queue, command, status, lba, namespace }))
        })?;
        Ok(Self { count, entries: entries.into() })
    }

    /// Error Information, figure 193.
    fn page(&self) -> Vec<u8> {
        let mut page = vec![0; ERROR_ENTRIES * ERROR_BYTES];
        let (slots, _) = page.as_chunks_mut::<ERROR_BYTES>();
        for ((count, failure), slot) in self.entries.iter().zip(slots) {
            slot[0..8].copy_from_slice(&count.to_le_bytes());
            slot[8..10].copy_from_slice(&failure.queue.to_le_bytes());
            slot[10..12].copy_from_slice(&failure.command.to_le_bytes());
            slot[12..14].copy_from_slice(&failure.status.field().to_le_bytes());
            slot[14..16].copy_from_slice(&[0xff; 2]); // no parameter is singled out
            slot[16..24].copy_from_slice(&failure.lba.to_le_bytes());
            slot[24..28].copy_from_slice(&failure.namespace.to_le_bytes());
        }
        page
    }
}

/// A count that can go on for ever.
pub(super) fn countable(count: u64) -> ioasis_uapi::Result<u64> {
    if count <= u64::MAX / 2 { Ok(count) } else { bad("nothing can be counted as often", count) }
}

/// What the health log tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Health {
    pub(super) counters: Counters,
    pub(super) too_hot_or_cold: bool,
}

/// SMART / Health Information, figure 194.
fn health(errors: &ErrorLog, health: &Health) -> Vec<u8> {
    let mut page = vec![0; HEALTH_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| {
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let Counters { bytes_read, bytes_written, reads, writes, media_errors } = health.counters;
    put(0, &[if health.too_hot_or_cold { WARNING_TEMPERATURE } else { 0 }]);
    put(1, &TEMPERATURE_K.to_le_bytes());
    put(3, &[100, 10]); // available spare and its threshold, in per cent
    let numbers = [
        (32, bytes_read.div_ceil(DATA_UNIT)),
        (48, bytes_written.div_ceil(DATA_UNIT)),
        (64, reads),
        (80, writes),
        (112, 1), // power cycles
        (160, media_errors),
        (176, errors.count),
    ];
    for (offset, number) in numbers {
        put(offset, &u128::from(number).to_le_bytes());
    }
    page
}

/// Firmware Slot Information, figure 195: slot 1 is active.
fn firmware() -> Vec<u8> {
    let mut page = vec![0; FIRMWARE_BYTES];
    page[0] = 1;
    page[8..16].copy_from_slice(&FIRMWARE);
    page
}

/// `length` bytes of a log page from `offset`; zeroes past its end.
pub(super) fn read(
    identifier: u8,
    [offset, length]: [u64; 2],
    errors: &ErrorLog,
    state: &Health,
) -> Result<Vec<u8>, Status> {
    let mut page = match identifier {
        ERROR_INFORMATION => errors.page(),
        HEALTH => health(errors, state),
        FIRMWARE_SLOT => firmware(),
        _ => return Err(Status::INVALID_LOG_PAGE),
    };
    let start = usize::try_from(offset).ok().filter(|&start| start <= page.len());
    page.drain(..start.ok_or(Status::INVALID_FIELD)?);
    page.resize(usize::try_from(length).map_err(|_| Status::INVALID_FIELD)?, 0);
    Ok(page)
}
