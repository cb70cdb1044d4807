//! A thread's addresses: trapped pages and the rest.

use crate::{Bus, Failure, Memory, PAGE};

/// Both halves of what a thread can reach.
pub(crate) struct Space<'a> {
    pub(crate) bus: &'a mut dyn Bus,
    pub(crate) memory: &'a mut dyn Memory,
}

/// Bytes of an access that lie in one page: where they are, and which of the access's they are.
struct Part {
    address: u64,
    from: usize,
    end: usize,
    trapped: bool,
}

impl Space<'_> {
    /// What is not trapped comes first: if it faults, no device has seen anything, as the processor
    /// looks at both pages before it touches one.
    fn parts(&self, address: u64, length: usize) -> Vec<Part> {
        let mut parts = Vec::with_capacity(2);
        let mut from = 0;
        while from < length {
            let at = address.wrapping_add(from as u64);
            let left = usize::try_from(PAGE - at % PAGE).expect("a page is small");
            let end = length.min(from + left);
            parts.push(Part { address: at, from, end, trapped: self.bus.is_trapped(at) });
            from = end;
        }
        parts.sort_by_key(|part| part.trapped);
        parts
    }

    pub(crate) fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Failure> {
        for Part { address, from, end, trapped } in self.parts(address, bytes.len()) {
            let part = &mut bytes[from..end];
            if trapped {
                self.bus.load(address, part)?;
            } else {
                self.memory.read(address, part)?;
            }
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Failure> {
        for Part { address, from, end, trapped } in self.parts(address, bytes.len()) {
            let part = &bytes[from..end];
            if trapped {
                self.bus.store(address, part)?;
            } else {
                self.memory.write(address, part)?;
            }
        }
        Ok(())
    }

    /// A number of `width` bytes, at most 8.
    pub(crate) fn load(&mut self, address: u64, width: usize) -> Result<u64, Failure> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes[..width])?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn store(&mut self, address: u64, width: usize, value: u64) -> Result<(), Failure> {
        self.write(address, &value.to_le_bytes()[..width])
    }
}
