//! Controller registers (NVMe 1.4, chapter 3), at BAR 0.
//!
//! Each store of a trapped program is an event. The page is memory all the same, and may be written by one who is not
//! trapped, so a value there is a wish, never the truth: what the controller is in is kept privately, and read-only
//! registers are written again when they differ.

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

/// BAR of the registers.
pub(super) const BAR: usize = 0;

// Offsets, 3.1.
pub(super) const CAP: u64 = 0x00;
pub(super) const VS: u64 = 0x08;
pub(super) const INTMS: u64 = 0x0c;
pub(super) const INTMC: u64 = 0x10;
pub(super) const CC: u64 = 0x14;
pub(super) const CSTS: u64 = 0x1c;
pub(super) const AQA: u64 = 0x24;
pub(super) const ASQ: u64 = 0x28;
pub(super) const ACQ: u64 = 0x30;
/// Where the doorbells begin: 1000h, 3.1.24.
pub(super) const DOORBELLS: u64 = 0x1000;

/// Entries of the largest queue.
pub(super) const QUEUE_ENTRIES: u32 = 1024;
/// The smallest page is 4 KiB, the largest 64 KiB.
const MPSMAX: u32 = 4;

/// CAP, 3.1.1: queues of 1024 entries, physically contiguous; ready within 10 s; doorbells 4 bytes apart; the NVM
/// command set; pages of 4 to 64 KiB.
pub(super) const CAP_VALUE: u64 =
    (QUEUE_ENTRIES as u64 - 1) | 1 << 16 | 20 << 24 | 1 << 37 | (MPSMAX as u64) << 52;
/// VS, 3.1.2: 1.4.0.
pub(super) const VERSION: u32 = 0x0001_0400;

// CSTS, 3.1.6.
pub(super) const CSTS_READY: u32 = 1 << 0;
pub(super) const CSTS_FATAL: u32 = 1 << 1;
pub(super) const CSTS_SHUTDOWN_COMPLETE: u32 = 2 << 2;

/// log2 of the sizes of queue entries: 64 bytes submitted, 16 bytes completed.
pub(super) const SUBMISSION_LG2: u32 = 6;
pub(super) const COMPLETION_LG2: u32 = 4;

/// CC, controller configuration (3.1.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration(pub(super) u32);

impl Configuration {
    const fn field(self, shift: u32, width: u32) -> u32 {
        self.0 >> shift & ((1 << width) - 1)
    }

    pub(super) const fn enabled(self) -> bool {
        self.field(0, 1) == 1
    }

    /// Whether the program asked for a shutdown, normal or abrupt.
    pub(super) const fn shutdown(self) -> bool {
        matches!(self.field(14, 2), 1 | 2)
    }

    /// Bytes of a page: CC.MPS counts from 4 KiB.
    pub(super) const fn page_size(self) -> u64 {
        4096 << self.field(7, 4)
    }

    /// Whether the controller can run like that: the NVM command set, round robin, a page size it has.
    pub(super) const fn acceptable(self) -> bool {
        self.field(4, 3) == 0 && self.field(11, 3) == 0 && self.field(7, 4) <= MPSMAX
    }

    pub(super) const fn submission_lg2(self) -> u32 {
        self.field(16, 4)
    }

    pub(super) const fn completion_lg2(self) -> u32 {
        self.field(20, 4)
    }
}

/// The offset of the doorbell pair of queue `id`: submission tail, then completion head (3.1.24, 3.1.25).
pub(super) const fn doorbells(id: u16) -> u64 {
    DOORBELLS + 8 * id as u64
}

/// Whether a store to the dword at `offset` changes it and nothing else: those of AQA, ASQ and ACQ.
pub(super) const fn is_plain(offset: u64) -> bool {
    AQA <= offset && offset < ACQ + 8
}

/// What enabling the controller asks for: CC, AQA, ASQ and ACQ (3.1.5, 3.1.8 to 3.1.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    configuration: Configuration,
    admin_attributes: u32,
    submission: u64,
    completion: u64,
}

impl Wish {
    pub(super) fn load(registers: &Mapping, configuration: Configuration) -> Result<Self> {
        Ok(Self {
            configuration,
            admin_attributes: registers.load_u32(AQA)?,
            submission: registers.load_u64(ASQ)?,
            completion: registers.load_u64(ACQ)?,
        })
    }

    /// The admin queues; `None` when the controller cannot run like that.
    pub(super) fn queues(&self) -> Option<AdminQueues> {
        AdminQueues::new(self).filter(|_| self.configuration.acceptable())
    }
}

/// The admin queues as AQA, ASQ and ACQ describe them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AdminQueues {
    pub(super) submission: u64,
    pub(super) submission_entries: u32,
    pub(super) completion: u64,
    pub(super) completion_entries: u32,
}

impl AdminQueues {
    fn new(wish: &Wish) -> Option<Self> {
        let (attributes, page_size) = (wish.admin_attributes, wish.configuration.page_size());
        let queues = Self {
            submission: wish.submission,
            submission_entries: (attributes & 0xfff) + 1,
            completion: wish.completion,
            completion_entries: (attributes >> 16 & 0xfff) + 1,
        };
        let aligned = queues.submission.is_multiple_of(page_size)
            && queues.completion.is_multiple_of(page_size);
        let sized = queues.submission_entries >= 2 && queues.completion_entries >= 2;
        (aligned && sized).then_some(queues)
    }
}
