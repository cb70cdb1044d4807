//! Submission and completion queue entries (NVMe 1.4, 4.2 and 4.6).

use super::status::Status;

/// Bytes of a submission queue entry.
pub(super) const COMMAND_BYTES: usize = 64;
/// Bytes of a completion queue entry.
pub(super) const COMPLETION_BYTES: usize = 16;

/// A command, copied out of its queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub(super) flags: u8,
    pub(super) id: u16,
    pub(super) namespace: u32,
    pub(super) prp1: u64,
    pub(super) prp2: u64,
    /// Command dwords 10 to 15.
    pub(super) words: [u32; 6],
}

impl Command {
    pub(super) fn decode(bytes: &[u8; COMMAND_BYTES]) -> Self {
        let word = |index: usize| {
            let at = 4 * index;
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let pair = |index: usize| u64::from(word(index)) | u64::from(word(index + 1)) << 32;
        Self {
            opcode: bytes[0],
            flags: bytes[1],
            id: u16::from_le_bytes([bytes[2], bytes[3]]),
            namespace: word(1),
            prp1: pair(6),
            prp2: pair(8),
            words: std::array::from_fn(|index| word(10 + index)),
        }
    }

    /// Command dword 10 to 15 by its number in the specification.
    pub(super) const fn dword(&self, number: usize) -> u32 {
        self.words[number - 10]
    }

    /// Bits 15:0 of a dword.
    pub(super) const fn low(&self, number: usize) -> u16 {
        let [a, b, ..] = self.dword(number).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// Bits 31:16 of a dword.
    pub(super) const fn high(&self, number: usize) -> u16 {
        let [.., a, b] = self.dword(number).to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// Dwords `number` and `number + 1` as one number.
    pub(super) const fn qword(&self, number: usize) -> u64 {
        self.dword(number) as u64 | (self.dword(number + 1) as u64) << 32
    }

    /// Fused commands and scatter-gather lists are not there (`SGLS` and `FUSES` of Identify Controller are 0).
    pub(super) const fn plain(&self) -> bool {
        self.flags & 0b1100_0011 == 0
    }

    #[cfg(test)]
    pub(super) fn encode(&self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        bytes[0] = self.opcode;
        bytes[1] = self.flags;
        bytes[2..4].copy_from_slice(&self.id.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.namespace.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.prp1.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.prp2.to_le_bytes());
        for (index, word) in self.words.iter().enumerate() {
            bytes[40 + 4 * index..][..4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// A completion before its queue stamps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Completion {
    /// Dword 0: what the command returns.
    pub(super) result: u32,
    pub(super) queue: u16,
    /// The submission queue's head after this command was fetched.
    pub(super) head: u16,
    pub(super) id: u16,
    pub(super) status: Status,
}

impl Completion {
    pub(super) fn encode(&self, phase: bool) -> [u8; COMPLETION_BYTES] {
        let mut bytes = [0; COMPLETION_BYTES];
        bytes[0..4].copy_from_slice(&self.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.head.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.queue.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.id.to_le_bytes());
        bytes[14..16].copy_from_slice(&(self.status.field() | u16::from(phase)).to_le_bytes());
        bytes
    }
}
