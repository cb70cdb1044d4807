//! The memory of a tracee: instructions, the operands that no device has, and what is mapped where.

use std::sync::Arc;

use ioasis_sys::process::{Mm, Thread, Vma};
use ioasis_uapi::Result;
use ioasis_x86::{Fault, LONGEST, Memory};

/// The memory that one process had when one of its threads stood still. It never becomes that of a program which it
/// executes.
#[derive(Debug)]
pub(super) struct Space {
    mm: Arc<Mm>,
}

impl Space {
    /// That of the thread `tid`, which stands still.
    pub(super) fn of(tid: u32) -> Result<Self> {
        Ok(Self { mm: Thread::open(tid)?.mm()? })
    }

    /// What is mapped at `address`.
    pub(super) fn vma(&self, address: u64) -> Option<Vma> {
        self.mm.vma(address).ok()?.filter(|vma| vma.start <= address)
    }

    /// The bytes of the instruction at `address`, and what follows it.
    pub(super) fn code(&self, address: u64) -> Vec<u8> {
        let mut bytes = vec![0; LONGEST];
        let length = self.mm.read_prefix(address, &mut bytes).unwrap_or(0);
        bytes.truncate(length);
        bytes
    }

    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.mm.read(address, bytes)
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.mm.write(address, bytes)
    }
}

/// As an instruction reaches it.
pub(super) struct Plain<'a>(pub(super) &'a Space);

impl Memory for Plain<'_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.0.permits(address, |vma| vma.prot.read)?;
        self.0.read(address, bytes).map_err(|error| Fault { address: error.at.unwrap_or(address) })
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        // What is behind an open `mem` may be written whatever the program may.
        self.0.permits(address, |vma| vma.prot.write)?;
        self.0.write(address, bytes).map_err(|error| Fault { address: error.at.unwrap_or(address) })
    }
}

impl Space {
    /// Whether the program itself may reach the page of `address` so. An access lies in one page.
    fn permits(&self, address: u64, allows: fn(&Vma) -> bool) -> Result<(), Fault> {
        match self.vma(address) {
            Some(vma) if allows(&vma) => Ok(()),
            _ => Err(Fault { address }),
        }
    }
}
