//! The channel: its state, and the work on its chain.
//!
//! ```text
//!            CHAINADDR           DMACOUNT is not the count of the done
//! HALTED -----------------> ARMED ---------------------------------> ACTIVE <---> DONE
//!    ^      SUSPENDED ------^                                          |   DMACOUNT
//!    |          ^------------- CHANCMD suspends (ACTIVE, DONE) --------+
//!    +---- reset, from every state; an error, from ACTIVE
//! ```
//!
//! A channel with an error in CHANERR is not armed. Descriptors that are done are counted from the
//! store of CHAINADDR on, which sets DMACOUNT to 0 too; the channel works while the two differ. A
//! suspended one waits for CHAINADDR.

use crate::bus::{Bus, Segment};

use super::descriptor::{BYTES, Descriptor, Operation};

/// CHANCMD.
pub(super) const COMMAND_SUSPEND: u64 = 1 << 2;
pub(super) const COMMAND_RESET: u64 = 1 << 5;

/// CHANCTRL: an interrupt was sent and none is until this is stored as 1; completion write and
/// interrupt on an error.
pub(super) const CONTROL_INTERRUPT_DISABLE: u16 = 1 << 0;
pub(super) const CONTROL_ERROR_COMPLETION: u16 = 1 << 2;
pub(super) const CONTROL_ERROR_INTERRUPT: u16 = 1 << 4;
/// The bits that are kept: priority, DCA, in use, snoop control and what an error does.
const CONTROL_KEPT: u16 = 0xf33c;

// CHANERR.
pub(super) const ERROR_NEXT_ADDRESS: u32 = 1 << 2;
pub(super) const ERROR_NEXT_ALIGNMENT: u32 = 1 << 3;
pub(super) const ERROR_CHAIN_ADDRESS: u32 = 1 << 4;
pub(super) const ERROR_COMMAND: u32 = 1 << 5;
pub(super) const ERROR_READ: u32 = 1 << 8;
pub(super) const ERROR_WRITE: u32 = 1 << 9;
pub(super) const ERROR_CONTROL: u32 = 1 << 10;
pub(super) const ERROR_LENGTH: u32 = 1 << 11;
pub(super) const ERROR_COMPLETION: u32 = 1 << 12;

/// The descriptor in CHANSTS and CHANCMP is a multiple of 64, the completion address of 8.
const DESCRIPTOR_MASK: u64 = !0x3f;
const COMPLETION_MASK: u64 = !0x7;

/// Bytes that are copied at once.
const CHUNK: usize = 64 << 10;

/// CHANSTS, bits 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Active = 0,
    Done = 1,
    Suspended = 2,
    Halted = 3,
    Armed = 4,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// Bytes it moved at most.
    pub(super) length: usize,
    /// CHANSTS is to be written to memory.
    pub(super) report: bool,
}

/// The one channel.
#[derive(Debug)]
pub(super) struct Channel {
    /// The most bytes of a descriptor.
    transfer: u64,
    state: State,
    control: u16,
    chain: u64,
    /// The descriptor that is fetched next, and whether CHAINADDR named it.
    next: u64,
    first: bool,
    count: u16,
    done: u16,
    /// The descriptor done last.
    completed: u64,
    completion: u64,
    errors: u32,
    error_mask: u32,
    cache_control: u32,
    /// An interrupt is due whose message was not sent.
    unsent: bool,
    buffer: Box<[u8; CHUNK]>,
}

impl Channel {
    pub(super) fn new(transfer: u64) -> Self {
        Self {
            transfer,
            state: State::Halted,
            control: 0,
            chain: 0,
            next: 0,
            first: true,
            count: 0,
            done: 0,
            completed: 0,
            completion: 0,
            errors: 0,
            error_mask: 0,
            cache_control: 0,
            unsent: false,
            buffer: Box::new([0; CHUNK]),
        }
    }

    /// The state after power-on.
    pub(super) fn power_on(&mut self) {
        *self = Self::new(self.transfer);
    }

    pub(super) fn is_active(&self) -> bool {
        self.state == State::Active
    }

    pub(super) fn status(&self) -> u64 {
        self.completed & DESCRIPTOR_MASK | self.state as u64
    }

    pub(super) fn control(&self) -> u16 {
        self.control
    }

    pub(super) fn count(&self) -> u16 {
        self.count
    }

    pub(super) fn chain(&self) -> u64 {
        self.chain
    }

    pub(super) fn completion(&self) -> u64 {
        self.completion
    }

    pub(super) fn errors(&self) -> u32 {
        self.errors
    }

    pub(super) fn error_mask(&self) -> u32 {
        self.error_mask
    }

    pub(super) fn cache_control(&self) -> u32 {
        self.cache_control
    }

    /// The descriptor that is worked on, or would be.
    pub(super) fn current(&self) -> u64 {
        self.next & DESCRIPTOR_MASK
    }

    /// An interrupt was due and is not armed again.
    pub(super) fn wants_attention(&self) -> bool {
        self.control & CONTROL_INTERRUPT_DISABLE != 0
    }

    /// Whether a message is to be sent; it is the caller's then.
    pub(super) fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.unsent)
    }

    pub(super) fn set_control(&mut self, value: u64) {
        let value = low16(value);
        let mut control = self.control & CONTROL_INTERRUPT_DISABLE | value & CONTROL_KEPT;
        if value & CONTROL_INTERRUPT_DISABLE != 0 {
            control &= !CONTROL_INTERRUPT_DISABLE;
            self.unsent = false;
        }
        self.control = control;
    }

    pub(super) fn set_completion(&mut self, value: u64) {
        self.completion = value & COMPLETION_MASK;
    }

    pub(super) fn clear_errors(&mut self, value: u64) {
        self.errors &= !low32(value);
    }

    pub(super) fn set_error_mask(&mut self, value: u64) {
        self.error_mask = low32(value);
    }

    pub(super) fn set_cache_control(&mut self, value: u64) {
        self.cache_control = low32(value);
    }

    /// CHANCMD. A reset is no error's business: CHANERR stays, the completion address goes.
    pub(super) fn command(&mut self, value: u64) {
        match value {
            0 => {}
            COMMAND_RESET => {
                self.state = State::Halted;
                self.completed = 0;
                self.completion = 0;
                self.count = 0;
                self.done = 0;
                self.unsent = false;
            }
            COMMAND_SUSPEND => {
                if matches!(self.state, State::Active | State::Done) {
                    self.state = State::Suspended;
                }
            }
            _ => self.fail(ERROR_COMMAND),
        }
    }

    /// CHAINADDR.
    pub(super) fn arm(&mut self, chain: u64) {
        self.chain = chain;
        self.next = chain;
        self.first = true;
        self.count = 0;
        self.done = 0;
        self.completed = 0;
        if self.errors == 0 {
            self.state = State::Armed;
        }
    }

    /// DMACOUNT.
    pub(super) fn set_count(&mut self, value: u64) {
        self.count = low16(value);
        let works = matches!(self.state, State::Armed | State::Active | State::Done);
        if works && self.count != self.done {
            self.state = State::Active;
        }
    }

    fn interrupt(&mut self) {
        if self.control & CONTROL_INTERRUPT_DISABLE == 0 {
            self.control |= CONTROL_INTERRUPT_DISABLE;
            self.unsent = true;
        }
    }

    fn fail(&mut self, error: u32) {
        self.errors |= error;
        self.state = State::Halted;
        if self.control & CONTROL_ERROR_INTERRUPT != 0 && error & !self.error_mask != 0 {
            self.interrupt();
        }
    }

    /// Does the next descriptor of an active channel, or halts it.
    pub(super) fn step(&mut self, bus: &Bus<'_>) -> Done {
        let descriptor = match self.fetch(bus) {
            Ok(descriptor) => descriptor,
            Err(error) => return self.halt(error, 0),
        };
        let length = descriptor.length as usize;
        if let Err(error) = self.transfer(bus, &descriptor) {
            return self.halt(error, length);
        }
        self.completed = self.next;
        self.next = descriptor.next;
        self.first = false;
        self.done = self.done.wrapping_add(1);
        if self.done == self.count {
            self.state = State::Done;
        }
        if descriptor.wants_interrupt() {
            self.interrupt();
        }
        Done { length, report: descriptor.wants_completion() }
    }

    fn halt(&mut self, error: u32, length: usize) -> Done {
        self.fail(error);
        Done { length, report: self.control & CONTROL_ERROR_COMPLETION != 0 }
    }

    /// Writes CHANSTS to memory; false when that halted the channel.
    pub(super) fn report(&mut self, bus: &Bus<'_>) -> bool {
        let status = self.status().to_le_bytes();
        let to = [Segment { iova: self.completion, length: status.len() }];
        let written = bus.write(&to, &status).is_ok();
        if !written {
            self.fail(ERROR_COMPLETION);
        }
        written
    }

    fn fetch(&self, bus: &Bus<'_>) -> Result<Descriptor, u32> {
        let (alignment, address) = match self.first {
            true => (ERROR_CHAIN_ADDRESS, ERROR_CHAIN_ADDRESS),
            false => (ERROR_NEXT_ALIGNMENT, ERROR_NEXT_ADDRESS),
        };
        if self.next & !DESCRIPTOR_MASK != 0 {
            return Err(alignment);
        }
        let mut bytes = [0; BYTES];
        let from = [Segment { iova: self.next, length: BYTES }];
        bus.read(&from, &mut bytes).map_err(|_| address)?;
        Ok(Descriptor::decode(&bytes))
    }

    fn transfer(&mut self, bus: &Bus<'_>, descriptor: &Descriptor) -> Result<(), u32> {
        let operation = descriptor.operation().ok_or(ERROR_CONTROL)?;
        let length = u64::from(descriptor.length);
        if length == 0 || length > self.transfer {
            return Err(ERROR_LENGTH);
        }
        if operation == Operation::Null {
            return Ok(());
        }
        if operation == Operation::Fill {
            let pattern = descriptor.source.to_le_bytes();
            let most = usize::try_from(length).map_or(CHUNK, |length| length.min(CHUNK));
            for word in self.buffer.chunks_exact_mut(pattern.len()).take(most.div_ceil(8)) {
                word.copy_from_slice(&pattern);
            }
        }
        for start in (0..length).step_by(CHUNK) {
            let chunk = usize::try_from(length - start).map_or(CHUNK, |rest| rest.min(CHUNK));
            let bytes = &mut self.buffer[..chunk];
            let at = |iova: u64| [Segment { iova: iova.wrapping_add(start), length: chunk }];
            if operation == Operation::Copy {
                bus.read(&at(descriptor.source), bytes).map_err(|_| ERROR_READ)?;
            }
            bus.write(&at(descriptor.destination), bytes).map_err(|_| ERROR_WRITE)?;
        }
        Ok(())
    }
}

fn low16(value: u64) -> u16 {
    u16::try_from(value & 0xffff).expect("16 bits")
}

fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("32 bits")
}
