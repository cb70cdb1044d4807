//! One logical VCMDQ: its registers in the page, its commands in the guest's memory.
//!
//! Indices, CONS.ERR and the GERROR handshake are those of an SMMUv3's command queue (manual 3.5,
//! 6.3.28, 7.1): the queue stops at the command in error until GERRORN says that the guest has seen
//! it.
//!
//! DIFFERS: what a guest stores to a register of the hardware's (STATUS, GERROR, CONS of a queue
//! that is on) stands in the page until the hardware stores there next; the hardware does not look
//! at it.

use ioasis_iommupt::Pa;
use ioasis_uapi::Result;

use super::super::smmuv3::{command, field};
use crate::client::{MappableMemory, Piece};
use crate::hw::ops::ViommuCore;
use crate::hw::phys::Phys;

/// lg2 of the bytes of a command.
pub(super) const COMMAND_LG2: u32 = 4;
const COMMAND: usize = 1 << COMMAND_LG2;

/// Commands in a turn.
const BATCH: u32 = 64;

/// From one queue's registers to the next one's.
const STRIDE: u64 = 0x80;
const CONS: u64 = 0x00;
const PROD: u64 = 0x04;
const CONFIG: u64 = 0x08;
const STATUS: u64 = 0x0c;
const GERROR: u64 = 0x10;
const GERRORN: u64 = 0x14;

/// CONFIG and STATUS.
const ENABLED: u32 = 1;
/// GERROR and GERRORN: the queue is in error while the two differ.
const CMDQ_ERR: u32 = 1;

/// Where CONS has the reason.
const ERR: u32 = 24;

/// CONS.ERR (7.1): why a queue stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// CERROR_ILL: a command that is none, or not a guest's.
    Illegal = 1,
    /// CERROR_ABT: the command could not be fetched.
    Abort = 2,
}

/// The registers of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers<'a> {
    page: &'a dyn MappableMemory,
    first: u64,
}

impl<'a> Registers<'a> {
    pub(super) fn new(page: &'a dyn MappableMemory, index: usize) -> Self {
        Self { page, first: STRIDE * index as u64 }
    }

    fn load(&self, register: u64) -> Result<u32> {
        self.page.load(self.first + register)
    }

    fn store(&self, register: u64, value: u32) -> Result<()> {
        self.page.store(self.first + register, value)
    }
}

/// VCMDQ_BASE: where the commands are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) base: Pa,
    /// lg2 of the commands that fit.
    pub(super) lg2: u32,
}

impl Memory {
    /// The bits of an index with its wrap bit.
    fn mask(self) -> u32 {
        (2 << self.lg2) - 1
    }

    /// Reads the command at `index` and those behind it, as far as the buffer goes; the queue does
    /// not wrap in between.
    fn fetch(self, phys: &Phys, index: u32, buf: &mut [u8]) -> Result<(), Cause> {
        let at = Pa(self.base.0 + (u64::from(index) << COMMAND_LG2));
        let window = phys.window(at).ok_or(Cause::Abort)?;
        let piece = Piece { offset: Phys::offset(&window, at), length: buf.len() };
        window.backing.read(&[piece], buf).map_err(|_| Cause::Abort)
    }
}

/// What a look at a queue came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Idle,
    Worked,
    /// The queue went into error.
    Failed,
}

/// A queue's state that the guest does not write.
#[derive(Debug, Default)]
pub(super) struct Lvcmdq {
    /// None while it is not in use.
    memory: Option<Memory>,
    enabled: bool,
    /// Index of the next command, with the wrap bit.
    cons: u32,
    gerror: u32,
    /// The guest has not been seen to acknowledge the last error.
    in_error: bool,
}

impl Lvcmdq {
    /// Takes the queue into use: disabled, empty, without errors.
    pub(super) fn begin(&mut self, memory: Memory, registers: Registers<'_>) {
        self.end(registers);
        self.memory = Some(memory);
    }

    /// Takes the queue out of use. Linux: `tegra241_vcmdq_hw_deinit`.
    pub(super) fn end(&mut self, registers: Registers<'_>) {
        *self = Self { gerror: self.gerror, ..Self::default() };
        let gerror = self.gerror;
        let values =
            [(CONFIG, 0), (STATUS, 0), (PROD, 0), (CONS, 0), (GERROR, gerror), (GERRORN, gerror)];
        for (register, value) in values {
            // Whoever looks at the page next finds out that it is gone.
            let _gone = registers.store(register, value);
        }
    }

    /// Whether an error of it waits for the guest.
    pub(super) fn is_in_error(&self) -> bool {
        self.in_error
    }

    /// Looks at the registers once and carries out what is there, a batch at most.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the page is gone.
    pub(super) fn turn(
        &mut self,
        registers: Registers<'_>,
        viommu: &dyn ViommuCore,
    ) -> Result<Turn> {
        let Some(memory) = self.memory else { return Ok(Turn::Idle) };
        let enabled = registers.load(CONFIG)? & ENABLED != 0;
        let switched = enabled != self.enabled;
        if switched {
            self.enabled = enabled;
            // The guest's to choose while the queue is off, and nobody's but ours while it is on.
            self.cons = registers.load(CONS)? & memory.mask();
            registers.store(STATUS, if enabled { ENABLED } else { 0 })?;
        }
        let looked = if switched { Turn::Worked } else { Turn::Idle };
        self.in_error = (self.gerror ^ registers.load(GERRORN)?) & CMDQ_ERR != 0;
        if !self.enabled || self.in_error {
            return Ok(looked);
        }
        let pending = registers.load(PROD)?.wrapping_sub(self.cons) & memory.mask();
        if pending == 0 {
            return Ok(looked);
        }
        self.carry_out(memory, pending, registers, viommu)
    }

    fn carry_out(
        &mut self,
        memory: Memory,
        pending: u32,
        registers: Registers<'_>,
        viommu: &dyn ViommuCore,
    ) -> Result<Turn> {
        let commands = 1 << memory.lg2;
        let index = self.cons & (commands - 1);
        let count = pending.min(BATCH).min(commands - index);
        let mut bytes = [0; BATCH as usize * COMMAND];
        let bytes = &mut bytes[..count as usize * COMMAND];
        let phys = viommu.phys();
        let mut done = 0;
        let mut stopped = memory.fetch(phys, index, bytes);
        if stopped.is_ok() {
            for command in bytes.chunks_exact(COMMAND) {
                stopped = execute(viommu, command);
                if stopped.is_err() {
                    break;
                }
                done += 1;
            }
            // Before CONS says so: no DMA uses what the commands took away.
            viommu.wait_for_dma();
        }
        self.cons = (self.cons + done) & memory.mask();
        let Err(cause) = stopped else {
            registers.store(CONS, self.cons)?;
            return Ok(Turn::Worked);
        };
        registers.store(CONS, self.cons | (cause as u32) << ERR)?;
        self.gerror ^= CMDQ_ERR;
        self.in_error = true;
        registers.store(GERROR, self.gerror)?;
        Ok(Turn::Failed)
    }
}

/// Carries out one command. Without HYP_OWN the hardware takes those that Linux's guest driver
/// sends to a VCMDQ, and CMD_SYNC (`tegra241_guest_vcmdq_supports_cmd`); the VMID is the
/// interface's, whatever the command says.
fn execute(viommu: &dyn ViommuCore, bytes: &[u8]) -> Result<(), Cause> {
    let (words, _) = bytes.as_chunks::<8>();
    let words = [words[0], words[1]].map(u64::from_le_bytes);
    match words[0] & 0xff {
        command::TLBI_NH_ASID | command::TLBI_NH_VA | command::ATC_INV => {
            command::invalidate(viommu, words).map_err(|_| Cause::Illegal)
        }
        // 4.7.3: CS 3 is reserved. The others differ in the signal, for which a VCMDQ has no wire:
        // its guest polls CONS.
        command::SYNC if field(words[0], 13, 12) < 3 => Ok(()),
        _ => Err(Cause::Illegal),
    }
}
