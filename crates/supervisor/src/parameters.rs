//! Module parameters in /sys/module, as files that can be read and, by root, written.
//!
//! They are files of the run's own file system: a write is answered as the kernel's `param_attr_store` answers it.
//!
//! DIFFERS: without that a read gives the text of the moment it was opened, and through a duplicate with a low number, as a
//! shell's `>` makes it, any text is accepted; it takes effect when the descriptor is closed, and a value that is none
//! changes nothing and is reported on standard error.

use std::sync::Arc;

use ioasis_iommufd::{
    ClientFile, Destination, Machine, Param, Params, QueueFile, QueueWatcher, Source,
};
use ioasis_uapi::{Errno, Error, Result};

use crate::text::{part, written};
use crate::watchdog::say;

/// Module and name of parameter `number`, as [`Node::Parameter`](crate::view::Node) counts them.
pub(crate) fn name(number: u32) -> Option<(&'static str, &'static str)> {
    Params::NAMES.get(usize::try_from(number).ok()?).copied()
}

/// Parameter `number` of a machine.
fn param(machine: &Machine, number: u32) -> Option<Param<'_>> {
    let (module, name) = name(number)?;
    machine.params.named(module, name)
}

/// What a read of parameter `number` gives.
pub(crate) fn text(machine: &Machine, number: u32) -> String {
    param(machine, number).map(Param::text).unwrap_or_default()
}

/// A parameter that is open for writing.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) machine: Arc<Machine>,
    pub(crate) number: u32,
}

impl Setting {
    fn set(&self, text: &[u8]) -> Result<()> {
        let gone = Error::at(Errno::ENODEV, "no such parameter", self.number.into());
        param(&self.machine, self.number).ok_or(gone)?.set(text)
    }
}

impl ClientFile for Setting {
    fn name(&self) -> &'static str {
        "/sys/module"
    }

    fn queue(&self) -> Option<&dyn QueueFile> {
        Some(self)
    }

    fn close(&self) {}
}

impl QueueFile for Setting {
    fn read_to(&self, offset: u64, length: u64, to: &mut dyn Destination) -> Result<u64> {
        part(&text(&self.machine, self.number), offset, length, to)
    }

    fn write_from(&self, length: u64, from: &mut dyn Source) -> Result<u64> {
        if length == 0 {
            return Ok(0);
        }
        let text = written(length, from)?;
        self.set(&text).map(|()| text.len() as u64)
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn stray_write(&self, text: &[u8]) {
        if let (Err(error), Some((module, name))) = (self.set(text), name(self.number)) {
            let written = String::from_utf8_lossy(text);
            let written = written.trim_end();
            say(&format!(
                "ioasis: {written:?} is no value of {module}.{name}, which stays as it was ({})\n",
                error.why
            ));
        }
    }

    fn is_readable(&self) -> bool {
        false
    }

    fn watch(&self, _: Arc<dyn QueueWatcher>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_duplicate_was_told_counts_unless_it_is_no_value() {
        let machine = Machine::new();
        let number = Params::NAMES.iter().position(|&(_, name)| name == "dma_entry_limit");
        let number = u32::try_from(number.expect("it is there")).expect("few");
        let setting = Setting { machine: Arc::clone(&machine), number };
        setting.stray_write(b"12\n");
        assert_eq!(text(&machine, number), "12\n");
        setting.stray_write(b"many\n");
        assert_eq!(text(&machine, number), "12\n");
    }
}
