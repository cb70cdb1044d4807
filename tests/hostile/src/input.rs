//! Decisions taken from bytes. When they run out every decision is the first choice, and the run
//! ends.

/// The rest of an input.
#[derive(Debug)]
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl Input<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    /// A number below `count`.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    pub(crate) fn pick<'s, T>(&mut self, choices: &'s [T]) -> &'s T {
        &choices[self.below(choices.len())]
    }

    pub(crate) fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        bytes.fill_with(|| self.byte());
        u64::from_le_bytes(bytes)
    }

    /// A value that a handler may care about: small, an address of the client's or the device's, an
    /// edge, or anything.
    pub(crate) fn value(&mut self) -> u64 {
        let small = u64::from(self.byte());
        match self.below(10) {
            0..=2 => small % 16,
            3 => small << 12,
            4 => crate::client::BASE + (small << 12),
            5 => crate::client::BASE + small,
            6 => crate::calls::IOVA + (small << 12),
            7 => u64::MAX - small,
            8 => 1 << (small % 64),
            _ => self.word(),
        }
    }
}
