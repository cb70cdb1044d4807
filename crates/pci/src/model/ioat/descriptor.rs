//! A descriptor: 64 bytes at an address that is a multiple of 64.
//!
//! | offset | bits | field |
//! |---|---|---|
//! | 0x00 | 32 | bytes of the transfer |
//! | 0x04 | 32 | control: bit 0 interrupt, bit 3 completion, bit 5 NULL, bits 31:24 operation |
//! | 0x08 | 64 | source address, or the pattern of a FILL |
//! | 0x10 | 64 | destination address |
//! | 0x18 | 64 | the next descriptor |
//!
//! Bit 4 of the control word, the fence, is always kept.

/// Bytes of a descriptor.
pub(super) const BYTES: usize = 64;

pub(super) const INTERRUPT: u32 = 1 << 0;
pub(super) const COMPLETION: u32 = 1 << 3;
pub(super) const NULL: u32 = 1 << 5;
pub(super) const OPERATION_SHIFT: u32 = 24;
pub(super) const COPY: u32 = 0x00;
pub(super) const FILL: u32 = 0x01;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Copy,
    Fill,
    Null,
}

/// A descriptor as it was fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) length: u32,
    pub(super) control: u32,
    /// The pattern, for a FILL.
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) next: u64,
}

impl Descriptor {
    pub(super) fn decode(bytes: &[u8; BYTES]) -> Self {
        let dword = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let qword = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        Self {
            length: dword(0),
            control: dword(4),
            source: qword(8),
            destination: qword(16),
            next: qword(24),
        }
    }

    #[cfg(test)]
    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.control.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.source.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.destination.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// What it asks for; `None` for what this engine cannot do.
    pub(super) fn operation(&self) -> Option<Operation> {
        match (self.control >> OPERATION_SHIFT, self.control & NULL != 0) {
            (COPY, true) => Some(Operation::Null),
            (COPY, false) => Some(Operation::Copy),
            (FILL, _) => Some(Operation::Fill),
            _ => None,
        }
    }

    pub(super) fn wants_interrupt(&self) -> bool {
        self.control & INTERRUPT != 0
    }

    pub(super) fn wants_completion(&self) -> bool {
        self.control & COMPLETION != 0
    }
}
