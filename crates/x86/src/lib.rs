//! Does one x86 instruction that touches a trapped page, as the processor would have done it.
//!
//! A load or store of a device's register stops the thread that makes it. Whoever holds the thread
//! decodes the instruction at its instruction pointer ([`Instruction::decode`]) and does it
//! ([`Instruction::execute`]) on a copy of the thread's registers: what lies in trapped pages goes
//! through a [`Bus`], everything else through [`Memory`]. An access that crosses from one into the
//! other is split at the end of the page.
//!
//! Registers change only when an instruction is done. Of a repeated string instruction that is each
//! of its iterations: a call does [`BATCH`] of them at most, and the thread may take a signal
//! between two calls.
//!
//! Done are moves of every kind and width between general or vector registers and memory,
//! arithmetic and logic on general registers and memory, bit and string instructions, pushes, pops,
//! and jumps through memory, in 64-bit and 32-bit code. Not done are arithmetic on vectors, x87,
//! MMX, masked moves, and what only an operating system may do: such an instruction is an error.
//!
//! DIFFERS: a locked instruction loads and then stores, and something else may reach the device in
//! between.

mod alu;
mod execute;
mod operand;
mod space;
mod state;
mod strings;
#[cfg(test)]
mod tests;
mod vector;

pub use state::{State, VECTOR};

/// How many iterations of a string instruction one call does.
pub const BATCH: u32 = 128;

/// Bytes of the longest instruction (Intel SDM 2, 2.3.11).
pub const LONGEST: usize = 15;

/// Bytes of a page, at whose ends accesses are split.
pub const PAGE: u64 = 4096;

/// How code is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit code.
    Bits64,
    /// 32-bit code.
    Bits32,
}

/// Memory that cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first byte of it.
    pub address: u64,
}

/// The trapped pages.
pub trait Bus {
    /// Whether the page that `address` lies in is trapped.
    fn is_trapped(&self, address: u64) -> bool;

    /// Loads from a trapped page; `bytes` ends in it.
    ///
    /// # Errors
    ///
    /// The page is one no longer.
    fn load(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Stores to a trapped page; `bytes` ends in it.
    ///
    /// # Errors
    ///
    /// The page is one no longer.
    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault>;
}

/// The rest of the thread's memory.
pub trait Memory {
    /// Reads as the thread would.
    ///
    /// # Errors
    ///
    /// The thread may not read there.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Writes as the thread would.
    ///
    /// # Errors
    ///
    /// The thread may not write there.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault>;
}

/// What came of doing an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done.
    Whole,
    /// Iterations of it are: the instruction pointer still stands on it.
    Partly,
}

/// Why an instruction was not done. The registers are as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is no instruction, or none that is done here.
    Unknown,
    /// It cannot reach its memory.
    Fault(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    decoded: iced_x86::Instruction,
    mode: Mode,
}

impl Instruction {
    /// Decodes the instruction that `code`, read from `ip`, begins with.
    ///
    /// # Errors
    ///
    /// [`Failure::Unknown`]
    pub fn decode(code: &[u8], ip: u64, mode: Mode) -> Result<Self, Failure> {
        let bits = match mode {
            Mode::Bits64 => 64,
            Mode::Bits32 => 32,
        };
        let options = iced_x86::DecoderOptions::NONE;
        let decoded = iced_x86::Decoder::with_ip(bits, code, ip, options).decode();
        if decoded.is_invalid() { Err(Failure::Unknown) } else { Ok(Self { decoded, mode }) }
    }

    /// How many bytes it has.
    #[must_use]
    pub fn length(&self) -> usize {
        self.decoded.len()
    }

    /// Whether it needs the vector registers in the [`State`].
    #[must_use]
    pub fn uses_vectors(&self) -> bool {
        vector::uses(&self.decoded)
    }
}
