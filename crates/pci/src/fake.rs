//! A program's memory and interrupts, for tests.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ioasis_sys::sync::Mutex;

use crate::bus::{Dma, DmaFault, Heard, Irq, Line, Segment};
use crate::refusal::{Refusal, Witness};

/// Memory that begins somewhere and ends somewhere; its tail may be read-only.
#[derive(Debug)]
pub(crate) struct Memory {
    start: u64,
    read_only: AtomicU64,
    bytes: Mutex<Vec<u8>>,
}

impl Memory {
    pub(crate) fn new(start: u64, length: usize) -> Self {
        let bytes = Mutex::new(vec![0; length]);
        Self { start, read_only: AtomicU64::new(u64::MAX), bytes }
    }

    /// From here on writes fault.
    pub(crate) fn set_read_only_from(&self, iova: u64) {
        self.read_only.store(iova, Ordering::SeqCst);
    }

    fn range(&self, segment: Segment) -> Result<Range<usize>, DmaFault> {
        let fault = DmaFault { iova: segment.iova };
        let start = segment.iova.checked_sub(self.start).ok_or(fault)?;
        let start = usize::try_from(start).map_err(|_| fault)?;
        let all = self.bytes.lock().len();
        let end = start.checked_add(segment.length).filter(|&end| end <= all).ok_or(fault)?;
        Ok(start..end)
    }

    pub(crate) fn put(&self, iova: u64, bytes: &[u8]) {
        let range = self.range(Segment { iova, length: bytes.len() }).expect("in memory");
        self.bytes.lock()[range].copy_from_slice(bytes);
    }

    pub(crate) fn get(&self, iova: u64, length: usize) -> Vec<u8> {
        let range = self.range(Segment { iova, length }).expect("in memory");
        self.bytes.lock()[range].to_vec()
    }
}

impl Dma for Memory {
    fn read(&self, segments: &[Segment], buf: &mut [u8]) -> Result<(), DmaFault> {
        let mut rest = buf;
        for &segment in segments {
            let range = self.range(segment)?;
            let (piece, after) = rest.split_at_mut(segment.length);
            piece.copy_from_slice(&self.bytes.lock()[range]);
            rest = after;
        }
        assert!(rest.is_empty(), "lengths add up");
        Ok(())
    }

    fn write(&self, segments: &[Segment], buf: &[u8]) -> Result<(), DmaFault> {
        let mut rest = buf;
        let read_only = self.read_only.load(Ordering::SeqCst);
        for &segment in segments {
            let range = self.range(segment)?;
            if segment.iova + segment.length as u64 > read_only {
                return Err(DmaFault { iova: segment.iova.max(read_only) });
            }
            let (piece, after) = rest.split_at(segment.length);
            self.bytes.lock()[range].copy_from_slice(piece);
            rest = after;
        }
        assert!(rest.is_empty(), "lengths add up");
        Ok(())
    }
}

/// What was raised, and the level of the pin.
#[derive(Debug, Default)]
pub(crate) struct Interrupts {
    pub(crate) raised: Mutex<Vec<u16>>,
    pub(crate) asserted: AtomicBool,
    /// Nobody hears a message.
    pub(crate) deaf: AtomicBool,
}

/// What it was told, as the trace says it.
#[derive(Debug, Default)]
pub(crate) struct Told(pub(crate) Mutex<Vec<Refusal>>);

impl Told {
    pub(crate) fn take(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Witness for Told {
    fn refused(&self, refusal: &Refusal) {
        self.0.lock().push(*refusal);
    }
}

impl Irq for Interrupts {
    fn raise(&self, vector: u16) -> Heard {
        if self.deaf.load(Ordering::SeqCst) {
            return Heard::No;
        }
        self.raised.lock().push(vector);
        Heard::Yes
    }

    fn set_line(&self, line: Line) {
        self.asserted.store(line == Line::Asserted, Ordering::SeqCst);
    }
}
