//! `vfio-user`: a device that another process is, by messages over a Unix socket.
//!
//! The server's registers are reached by messages, from trapped pages and from system calls alike;
//! pages that it lets be mapped are mirrored ([`mirror`]). Its DMA goes through this side's IOMMU:
//! the server is told that all of memory may be asked for, and each DMA_READ and DMA_WRITE is a
//! transfer of this device. Configuration space is the function's own, made from the server's;
//! COMMAND and the kind of interrupt are told to the server.
//!
//! A server that does not answer in time, or breaks the protocol, has taken its device away: the
//! connection is finished, whoever waits is told at once from then on, and the function is removed.

mod bell;
mod describe;
mod mirror;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use ioasis_uapi::Result;
use ioasis_vfio_user::message::{DmaAccess, IRQ_TRIGGER, IRQ_UNMASK, pci};
use ioasis_vfio_user::{Client, Errno, Error, Memory};

use self::bell::{Bell, Signals};
use self::describe::Found;
use self::mirror::Lost;
use super::options::{ModelError, OptionInfo, Options};
use super::{Model, ModelInfo, Progress};
use crate::bus::{Bus, Line, Segment};
use crate::config::IrqMode;
use crate::description::Description;

/// How `ioasis models` lists it.
pub(super) const INFO: ModelInfo = ModelInfo {
    name: "vfio-user",
    summary: "a device of another process that serves the vfio-user protocol",
    options: &[
        OptionInfo {
            name: "socket",
            meaning: "where the server listens",
            accepted: "the path of a Unix socket",
            default: "it must be given",
        },
        OptionInfo {
            name: "timeout",
            meaning: "how long the server is waited for before its device counts as removed",
            accepted: "a number of seconds from 0.01 to 3600, with s or ms after it or without",
            default: "5s",
        },
    ],
    create,
};

/// What the server may ask for: all addresses of 48 bits, in ranges that libvfio-user takes
/// (`MAX_DMA_SIZE`, 8 TiB).
const RANGE: u64 = 8 << 40;
const RANGES: u64 = 32;

/// COMMAND, PCI Local Bus 3.0, 6.2.2.
const COMMAND: u64 = 0x04;

fn create(options: &Options<'_>) -> std::result::Result<Box<dyn Model>, ModelError> {
    let socket = options.required("socket")?;
    let limit = options.parsed("timeout", Duration::from_secs(5), seconds)?;
    let wrong = |why: &str| ModelError::new(format!("vfio-user: socket={socket}: {why}"));
    let client = Client::connect(Path::new(socket), limit).map_err(|error| {
        let busy = matches!(error, Error::Refused { errno: Errno::BUSY, .. });
        wrong(&if busy { "the server has another client".to_owned() } else { error.to_string() })
    })?;
    let found = describe::find(&client).map_err(|why| wrong(&why))?;
    for range in 0..RANGES {
        let mapped = client.dma_map((range * RANGE, RANGE), DmaAccess::all(), None, &mut ());
        match mapped {
            Ok(()) => {}
            // A server with a bound of its own goes without the highest addresses.
            Err(Error::Refused { .. }) if range > 0 => break,
            Err(error) => return Err(wrong(&error.to_string())),
        }
    }
    let signals = Signals::new().map_err(|errno| wrong(&format!("epoll: {errno}")))?;
    Ok(Box::new(VfioUser {
        socket: socket.to_owned(),
        client,
        found,
        signals,
        bell: None,
        mode: IrqMode::Off,
    }))
}

/// Seconds or milliseconds.
fn seconds(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 0.001),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = digits.parse::<f64>().ok().filter(|_| plain)? * unit;
    (0.01..=3600.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// The device.
#[derive(Debug)]
struct VfioUser {
    socket: String,
    client: Client,
    found: Found,
    /// What the server signals.
    signals: Signals,
    /// While the device is open and was polled.
    bell: Option<Bell>,
    /// The kind of interrupt that the server was told.
    mode: IrqMode,
}

/// The memory of the program, as the server asks for it.
struct Through<'a, 'b>(&'a Bus<'b>);

impl Memory for Through<'_, '_> {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> std::result::Result<(), Errno> {
        let segments = [Segment { iova: address, length: bytes.len() }];
        self.0.read(&segments, bytes).map_err(|_| Errno::FAULT)
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> std::result::Result<(), Errno> {
        let segments = [Segment { iova: address, length: bytes.len() }];
        self.0.write(&segments, bytes).map_err(|_| Errno::FAULT)
    }
}

impl VfioUser {
    fn is_gone(&self) -> bool {
        self.client.connection().broken().is_some()
    }

    /// What a message gave; `None` when the server refused it, or is gone, which whoever watches
    /// the device is told.
    fn took<T>(&self, bus: &Bus<'_>, answer: ioasis_vfio_user::Result<T>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(error) => {
                if error.is_final() {
                    bus.vanish(&format!("vfio-user socket {}: {error}", self.socket));
                }
                None
            }
        }
    }

    /// Whether an access lies in what the server has of a BAR; the BAR here may be larger, as its
    /// size is a power of two.
    fn has(&self, bar: usize, offset: u64, length: usize) -> bool {
        let end = offset.checked_add(length as u64);
        !self.is_gone() && end.is_some_and(|end| end <= self.found.sizes[bar])
    }

    fn region(bar: usize) -> u32 {
        u32::try_from(bar).expect("below 6")
    }

    /// What came of a mirror; a server that cuts its file short is gone.
    fn mirrored<T>(&self, bus: &Bus<'_>, done: std::result::Result<T, Lost>) -> Result<Option<T>> {
        match done {
            Ok(value) => Ok(Some(value)),
            Err(Lost::Ours(error)) => Err(error),
            Err(Lost::Theirs) => {
                self.client.connection().shutdown();
                bus.vanish(&format!(
                    "vfio-user socket {}: it cut its BAR's file short",
                    self.socket
                ));
                Ok(None)
            }
        }
    }

    /// Shows the program what the server's pages hold.
    fn show_pages(&mut self, bus: &Bus<'_>) -> Result<()> {
        let mut mirrors = std::mem::take(&mut self.found.mirrors);
        let done = mirrors.iter_mut().try_for_each(|mirror| {
            let begun = mirror.begin(bus.pages(mirror.bar));
            self.mirrored(bus, begun).map(|_| ())
        });
        self.found.mirrors = mirrors;
        done
    }

    fn carry_pages(&mut self, bus: &Bus<'_>) -> Result<bool> {
        let mut mirrors = std::mem::take(&mut self.found.mirrors);
        let mut worked = false;
        let done = mirrors.iter_mut().try_for_each(|mirror| {
            let carried = mirror.carry(bus.pages(mirror.bar));
            worked |= self.mirrored(bus, carried)?.unwrap_or(false);
            Ok(())
        });
        self.found.mirrors = mirrors;
        done.map(|()| worked)
    }

    /// Sends on what the server signalled. Its pin is asserted until the program unmasks it, as
    /// VFIO's is.
    fn interrupt(&self, bus: &Bus<'_>) -> bool {
        let vectors = self.signals.take();
        for &vector in &vectors {
            if self.mode == IrqMode::Intx {
                bus.set_line(Line::Asserted);
            } else {
                bus.raise(vector);
            }
        }
        !vectors.is_empty()
    }

    /// The index and number of the interrupts of a kind.
    fn irqs(&self, mode: IrqMode) -> Option<(u32, u32)> {
        let vectors = self.found.description.vectors;
        match mode {
            IrqMode::Off => None,
            IrqMode::Intx => Some((pci::INTX, 1)),
            IrqMode::Msi { messages } => Some((pci::MSI, u32::from(messages.min(vectors.msi)))),
            IrqMode::Msix => Some((pci::MSIX, vectors.msix.into())),
        }
    }

    fn tell_irqs(
        &mut self,
        memory: &mut dyn Memory,
        mode: IrqMode,
    ) -> ioasis_vfio_user::Result<()> {
        if let Some((index, _)) = self.irqs(self.mode) {
            self.client.set_irq(index, IRQ_TRIGGER, (0, 0), memory)?;
        }
        self.mode = IrqMode::Off;
        let Some((index, count)) = self.irqs(mode).filter(|&(_, count)| count > 0) else {
            return Ok(());
        };
        if let Err(errno) = self.signals.renew(count as usize) {
            return Err(Error::System { what: "eventfds", errno });
        }
        self.client.set_eventfds(index, IRQ_TRIGGER, 0, &self.signals.fds(), memory)?;
        self.mode = mode;
        Ok(())
    }
}

impl Model for VfioUser {
    fn description(&self) -> Description {
        self.found.description.clone()
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        if self.is_gone() {
            return Ok(());
        }
        if self.found.resets {
            self.took(bus, self.client.reset(&mut Through(bus)));
        }
        self.show_pages(bus)
    }

    fn close(&mut self, bus: &Bus<'_>) {
        self.bell = None;
        if !self.is_gone() {
            let told = self.tell_irqs(&mut Through(bus), IrqMode::Off);
            self.took(bus, told);
        }
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn set_command(&mut self, bus: &Bus<'_>, command: u16) {
        if !self.is_gone() {
            let bytes = command.to_le_bytes();
            let memory = &mut Through(bus);
            self.took(bus, self.client.region_write(pci::CONFIG, COMMAND, &bytes, memory));
        }
    }

    fn set_irq_mode(&mut self, bus: &Bus<'_>, mode: IrqMode) {
        if !self.is_gone() {
            let told = self.tell_irqs(&mut Through(bus), mode);
            self.took(bus, told);
        }
    }

    fn update_line(&mut self, bus: &Bus<'_>) -> Result<()> {
        if self.mode == IrqMode::Intx && !self.is_gone() {
            bus.set_line(Line::Deasserted);
            let memory = &mut Through(bus);
            self.took(bus, self.client.set_irq(pci::INTX, IRQ_UNMASK, (0, 1), memory));
            self.interrupt(bus);
        }
        Ok(())
    }

    fn load(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0xff);
        if self.has(bar, offset, bytes.len()) {
            let memory = &mut Through(bus);
            let answer = self.client.region_read(Self::region(bar), offset, bytes, memory);
            if self.took(bus, answer).is_none() {
                bytes.fill(0xff);
            }
        }
        Ok(())
    }

    fn store(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.has(bar, offset, bytes.len()) {
            let memory = &mut Through(bus);
            let answer = self.client.region_write(Self::region(bar), offset, bytes, memory);
            self.took(bus, answer);
        }
        Ok(())
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        if self.is_gone() {
            return Ok(Progress::Idle);
        }
        if self.bell.is_none() {
            let socket = rustix::io::fcntl_dupfd_cloexec(&self.client, 0);
            if let (Ok(socket), Ok(list)) = (socket, self.signals.list()) {
                self.bell = Bell::start(bus.alarm(), [socket, list]);
            }
        }
        let mut worked = self.carry_pages(bus)?;
        let served = self.client.serve_pending(&mut Through(bus));
        worked |= self.took(bus, served).unwrap_or(false);
        worked |= self.interrupt(bus);
        if !worked && let Some(bell) = &self.bell {
            // Who looks again at once need not be rung for. What came since is rung for now.
            bell.looked();
        }
        // What the server stores to pages that it shares with us nobody tells.
        let waits = self.bell.is_none() || !self.found.mirrors.is_empty();
        Ok(match worked {
            true => Progress::Worked,
            false if waits => Progress::Waits,
            false => Progress::Idle,
        })
    }
}
