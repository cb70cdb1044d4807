//! The PCI transport (4.1): registers, notifications, interrupts.
//!
//! Fields of [`Transport`] are the truth; the trapped pages show what a load of them would give. A
//! register acts in [`Transport::store`], when the program is trapped, or at the next poll, which
//! finds what was stored to the page by somebody who is not. That poll sees the last of several
//! stores to one register, so a driver that is not trapped must use system calls.
//!
//! A page of notifications is shared memory: the driver stores a queue's number to the queue's
//! dword, and the next poll puts a number back that no queue has.

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

use super::legacy;
use super::queue::{ENTRIES_MAX, Queue, Rules, Wrong};
use super::registers::{self as registers, BAR, COMMON_BYTES, NO_VECTOR};
use super::{Change, Device, Identity, Stop, feature};
use crate::bus::{Bus, DmaFault, Line};
use crate::description::{Bar, BarKind, Description, Ids, MsixTable, Pages, Vectors};
use crate::migration::Migration;
use crate::model::{After, Model, Progress};
use crate::refusal::Refusal;

/// Vendor of virtio devices, and what is added to a device's number (4.1.2).
const VENDOR: u16 = 0x1af4;
const MODERN: u16 = 0x1040;
const SUBSYSTEM: u16 = 0x1100;

/// BAR of the MSI-X structures, and where in it the pending bits lie.
const MSIX_BAR: usize = 1;
const MSIX_BAR_BYTES: u64 = 4096;
const MSIX_PENDING: u32 = 0x800;

/// What a queue's notification is while there is none.
const QUIET: u32 = 0xffff_ffff;

/// Which interfaces a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// That of Virtio 1.0 and later.
    Modern,
    /// The legacy one beside it.
    Transitional,
    /// The legacy one alone.
    Legacy,
}

/// A device behind PCI.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) device: Box<dyn Device>,
    pub(super) interface: Interface,
    /// The driver uses the legacy interface since the last reset.
    pub(super) legacy: bool,
    /// Vectors of MSI-X: one for each queue and one for changes of the configuration.
    vectors: u16,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) configuration_vector: u16,
    pub(super) status: u8,
    pub(super) generation: u8,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<Queue>,
    pub(super) isr: u8,
    /// The page of the configuration shows an older one.
    configuration_is_new: bool,
    /// What the page of the common configuration was last seen to hold.
    shown: [u8; COMMON_BYTES],
}

impl Transport {
    pub(super) fn new(device: Box<dyn Device>, interface: Interface) -> Self {
        let mut transport = Self {
            vectors: device.queues() + 1,
            device,
            interface,
            legacy: false,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            configuration_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
            queues: Vec::new(),
            isr: 0,
            configuration_is_new: false,
            shown: [0; COMMON_BYTES],
        };
        transport.drop_state();
        transport
    }

    /// What a reset takes away (2.4).
    pub(super) fn drop_state(&mut self) {
        self.device.reset();
        self.legacy = false;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.configuration_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.queues = (0..self.device.queues()).map(Queue::new).collect();
        self.isr = 0;
    }

    pub(super) fn offered(&self) -> u64 {
        feature::TRANSPORT | self.device.features()
    }

    /// The common configuration as a driver reads it now.
    fn common(&self) -> [u8; COMMON_BYTES] {
        let half = |features: u64, select: u32| {
            let shift = select.checked_mul(32).filter(|&shift| shift < 64);
            shift.map_or(0, |shift| features >> shift) & 0xffff_ffff
        };
        let mut bytes = [0; COMMON_BYTES];
        let mut put = |offset: u64, value: u64, length: usize| {
            let at = usize::try_from(offset).expect("inside the structure");
            bytes[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
        };
        put(registers::DEVICE_FEATURE_SELECT, self.device_feature_select.into(), 4);
        put(registers::DEVICE_FEATURE, half(self.offered(), self.device_feature_select), 4);
        put(registers::DRIVER_FEATURE_SELECT, self.driver_feature_select.into(), 4);
        put(registers::DRIVER_FEATURE, half(self.driver_features, self.driver_feature_select), 4);
        put(registers::CONFIG_MSIX_VECTOR, self.configuration_vector.into(), 2);
        put(registers::NUM_QUEUES, self.queues.len() as u64, 2);
        put(registers::DEVICE_STATUS, self.status.into(), 1);
        put(registers::CONFIG_GENERATION, self.generation.into(), 1);
        put(registers::QUEUE_SELECT, self.queue_select.into(), 2);
        // A queue that is not there has size 0.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(registers::QUEUE_SIZE, queue.size.into(), 2);
            put(registers::QUEUE_MSIX_VECTOR, queue.vector.into(), 2);
            put(registers::QUEUE_ENABLE, queue.enabled.into(), 2);
            put(registers::QUEUE_NOTIFY_OFF, queue.index.into(), 2);
            put(registers::QUEUE_DESC, queue.areas.descriptors, 8);
            put(registers::QUEUE_DRIVER, queue.areas.driver, 8);
            put(registers::QUEUE_DEVICE, queue.areas.device, 8);
        }
        bytes
    }

    /// The pages of the modern interface, if the device has it.
    fn pages<'a>(&self, bus: &'a Bus<'_>) -> Option<&'a Mapping> {
        (self.interface != Interface::Legacy).then(|| bus.pages(BAR))
    }

    /// Brings the pages to what loads of them give.
    pub(super) fn show(&mut self, bus: &Bus<'_>) -> Result<()> {
        let Some(pages) = self.pages(bus) else { return Ok(()) };
        let common = self.common();
        if common != self.shown {
            pages.write(registers::COMMON, &common)?;
            self.shown = common;
        }
        if std::mem::take(&mut self.configuration_is_new) {
            self.show_configuration(bus)?;
        }
        let mut isr = [0];
        pages.read(registers::ISR, &mut isr)?;
        if isr[0] != self.isr {
            pages.write(registers::ISR, &[self.isr])?;
        }
        Ok(())
    }

    pub(super) fn show_configuration(&self, bus: &Bus<'_>) -> Result<()> {
        let Some(pages) = self.pages(bus) else { return Ok(()) };
        pages.write(registers::DEVICE, &self.device.configuration())
    }

    /// Acts on what was stored to the page itself; answers whether there was anything.
    fn take_stores(&mut self, bus: &Bus<'_>) -> Result<bool> {
        let Some(pages) = self.pages(bus) else { return Ok(false) };
        let mut now = [0; COMMON_BYTES];
        pages.read(registers::COMMON, &mut now)?;
        if now == self.shown {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.shown, now);
        for (offset, length) in registers::WRITABLE {
            let at = usize::try_from(offset).expect("inside the structure");
            let range = at..at + length;
            if now[range.clone()] != before[range.clone()] {
                let mut value = [0; 4];
                value[..length].copy_from_slice(&now[range]);
                self.store_register(bus, offset, u32::from_le_bytes(value))?;
            }
        }
        self.show(bus)?;
        Ok(true)
    }

    /// A store to the common configuration of `bytes` from `offset`, register by register.
    fn store_common(&mut self, bus: &Bus<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
        for (register, value) in overlay(&registers::WRITABLE, &self.common(), offset, bytes) {
            self.store_register(bus, register, value)?;
        }
        Ok(())
    }

    fn store_register(&mut self, bus: &Bus<'_>, register: u64, value: u32) -> Result<()> {
        let word = u16::try_from(value & 0xffff).expect("16 bits");
        match register {
            registers::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            registers::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            registers::DRIVER_FEATURE => self.accept(value),
            registers::CONFIG_MSIX_VECTOR => self.configuration_vector = self.vector(word),
            registers::DEVICE_STATUS => {
                return self.set_status(bus, value.to_le_bytes()[0]);
            }
            registers::QUEUE_SELECT => self.queue_select = word,
            _ => self.store_queue(bus, register, value),
        }
        Ok(())
    }

    /// The vector itself if there is one of that number.
    pub(super) fn vector(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    /// The driver accepts the bits of one half; once it has said that these are all, none changes.
    fn accept(&mut self, bits: u32) {
        let select = self.driver_feature_select;
        if self.status & registers::FEATURES_OK != 0 || select > 1 {
            return;
        }
        let shift = select * 32;
        let half = 0xffff_ffff_u64 << shift;
        self.driver_features = self.driver_features & !half | u64::from(bits) << shift;
    }

    fn store_queue(&mut self, bus: &Bus<'_>, register: u64, value: u32) {
        let vector = self.vector(u16::try_from(value & 0xffff).expect("16 bits"));
        let resets = self.driver_features & feature::RING_RESET != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        let half = |address: &mut u64, shift: u32| {
            *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
        };
        match register {
            registers::QUEUE_MSIX_VECTOR => queue.vector = vector,
            registers::QUEUE_RESET if resets && value & 1 != 0 => {
                *queue = Queue::new(queue.index);
                self.device.reset_queue(self.queue_select);
            }
            // The rest is written before the queue is enabled (4.1.4.3.2), and means nothing later.
            _ if queue.enabled => {}
            registers::QUEUE_SIZE => {
                let size = value & 0xffff;
                if size.is_power_of_two() && size <= ENTRIES_MAX.into() {
                    queue.size = u16::try_from(size).expect("at most 256");
                }
            }
            registers::QUEUE_DESC => half(&mut queue.areas.descriptors, 0),
            0x24 => half(&mut queue.areas.descriptors, 32),
            registers::QUEUE_DRIVER => half(&mut queue.areas.driver, 0),
            0x2c => half(&mut queue.areas.driver, 32),
            registers::QUEUE_DEVICE => half(&mut queue.areas.device, 0),
            0x34 => half(&mut queue.areas.device, 32),
            registers::QUEUE_ENABLE if value & 1 != 0 => {
                queue.rules = Rules {
                    indirect: self.driver_features & feature::RING_INDIRECT_DESC != 0,
                    event_index: self.driver_features & feature::RING_EVENT_IDX != 0,
                };
                if let Err(broken) = queue.enable() {
                    let index = self.queue_select;
                    self.stop(bus, index, Stop::Wrong(broken));
                }
            }
            _ => {}
        }
    }

    /// The driver stored to the device status: 0 resets, other bits are added.
    fn set_status(&mut self, bus: &Bus<'_>, value: u8) -> Result<()> {
        if value == 0 {
            self.drop_state();
            bus.set_line(Line::Deasserted);
            return self.show_configuration(bus);
        }
        let new = value & !self.status & !registers::NEEDS_RESET;
        if new & registers::FEATURES_OK != 0 && self.negotiated(bus) {
            self.status |= registers::FEATURES_OK;
            self.device.start(self.driver_features);
            self.show_configuration(bus)?;
        }
        self.status |= new & !registers::FEATURES_OK;
        Ok(())
    }

    /// Whether the device can work with what the driver accepted (2.2, 6).
    fn negotiated(&self, bus: &Bus<'_>) -> bool {
        let Some((why, value)) = self.refuses(self.driver_features) else { return true };
        bus.tell(&Refusal::Driver { queue: None, why, value });
        false
    }

    /// Why the device cannot work with these bits, and which ones.
    pub(super) fn refuses(&self, features: u64) -> Option<(&'static str, u64)> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            Some(("the driver accepts feature bits that are not offered", unknown))
        } else if features & feature::VERSION_1 == 0 {
            Some(("the driver accepts no VIRTIO_F_VERSION_1, only", features))
        } else {
            self.device.refuses(features).map(|why| (why, features))
        }
    }

    fn runs(&self) -> bool {
        // A legacy driver knows no FEATURES_OK (3.1.2).
        let features = if self.legacy { 0 } else { registers::FEATURES_OK };
        let needed = features | registers::DRIVER_OK;
        self.status & (needed | registers::NEEDS_RESET) == needed
    }

    /// The device does nothing more before it is reset.
    pub(super) fn stop(&mut self, bus: &Bus<'_>, queue: u16, stop: Stop) {
        let (why, value) = match stop {
            Stop::Fault(DmaFault { iova }) => ("the queue cannot be reached", iova),
            Stop::Wrong(Wrong { why, value }) => (why, value),
        };
        bus.tell(&Refusal::Driver { queue: Some(queue), why, value });
        self.status |= registers::NEEDS_RESET;
        if self.status & registers::DRIVER_OK != 0 {
            self.interrupt(bus, self.configuration_vector, registers::ISR_CONFIGURATION);
        }
    }

    fn interrupt(&mut self, bus: &Bus<'_>, vector: u16, cause: u8) {
        if bus.has_msix() {
            if vector != NO_VECTOR {
                bus.raise(vector);
            }
        } else {
            self.isr |= cause;
            bus.set_line(Line::Asserted);
        }
    }

    /// Notes which queues were notified of.
    fn take_notifications(&mut self, bus: &Bus<'_>) -> Result<()> {
        let Some(pages) = self.pages(bus) else { return Ok(()) };
        for queue in self.queues.iter_mut().filter(|queue| queue.enabled) {
            let at = registers::NOTIFY + registers::NOTIFY_STRIDE * u64::from(queue.index);
            // The exchange is done before the ring is looked at: a driver that notifies meanwhile
            // is seen there.
            if pages.load_u32(at)? != QUIET {
                pages.swap_u32(at, QUIET)?;
                queue.kicked = true;
            }
        }
        Ok(())
    }

    fn serve(&mut self, bus: &Bus<'_>) -> Progress {
        let served = self.device.serve(bus, &mut self.queues);
        for index in 0..self.queues.len() {
            if std::mem::take(&mut self.queues[index].interrupt) {
                self.interrupt(bus, self.queues[index].vector, registers::ISR_QUEUE);
            }
        }
        let change = self.device.change();
        if change != Change::None {
            self.generation = self.generation.wrapping_add(1);
            self.configuration_is_new = true;
        }
        if change == Change::News {
            self.interrupt(bus, self.configuration_vector, registers::ISR_CONFIGURATION);
        }
        served.unwrap_or_else(|(queue, stop)| {
            self.stop(bus, queue, stop);
            Progress::Worked
        })
    }

    /// A load of the ISR status, which takes it away (4.1.4.5).
    pub(super) fn take_isr(&mut self, bus: &Bus<'_>) -> u8 {
        bus.set_line(Line::Deasserted);
        std::mem::take(&mut self.isr)
    }
}

/// What a store of `bytes` from `offset` makes of the registers it reaches, which now read as
/// `current` says.
pub(super) fn overlay(
    registers: &[(u64, usize)],
    current: &[u8],
    offset: u64,
    bytes: &[u8],
) -> Vec<(u64, u32)> {
    let end = offset + bytes.len() as u64;
    let reached = registers
        .iter()
        .filter(|(register, length)| *register < end && offset < register + *length as u64);
    let value = |&(register, length): &(u64, usize)| {
        let at = usize::try_from(register).expect("inside the structure");
        let mut value = [0; 4];
        value[..length].copy_from_slice(&current[at..at + length]);
        for (place, byte) in (register..).zip(&mut value[..length]) {
            let stored = place.checked_sub(offset).and_then(|from| usize::try_from(from).ok());
            *byte = stored.and_then(|from| bytes.get(from)).copied().unwrap_or(*byte);
        }
        (register, u32::from_le_bytes(value))
    };
    reached.map(value).collect()
}

impl Model for Transport {
    fn flush(&mut self) -> std::io::Result<()> {
        self.device.flush()
    }

    fn description(&self) -> Description {
        let Identity { id, class } = self.device.identity();
        let (has_ports, has_pages) =
            (self.interface != Interface::Modern, self.interface != Interface::Legacy);
        let ports = has_ports.then(|| Bar {
            size: legacy::BAR_BYTES,
            kind: BarKind::Io,
            prefetchable: false,
            mappable: Vec::new(),
        });
        let memory = |size, kind, mappable| Some(Bar { size, kind, prefetchable: false, mappable });
        let pages = vec![
            Pages::trapped(registers::COMMON..registers::ISR),
            // Only a load takes the status away.
            Pages::trapped_loads(registers::ISR..registers::DEVICE),
            Pages::trapped(registers::DEVICE..registers::NOTIFY),
            Pages::shared(registers::NOTIFY..registers::BAR_BYTES),
        ];
        let registers = memory(registers::BAR_BYTES, BarKind::Memory64, pages);
        let pages = vec![Pages::shared(0..MSIX_BAR_BYTES)];
        let msix = memory(MSIX_BAR_BYTES, BarKind::Memory32, pages);
        Description {
            ids: Ids {
                vendor: VENDOR,
                // 4.1.2.3: the number of a transitional device is its subsystem's, and its revision
                // is 0.
                device: if has_ports { legacy::device_id(id) } else { MODERN + id },
                subsystem_vendor: VENDOR,
                subsystem_device: if has_ports { id } else { SUBSYSTEM },
                class,
                revision: u8::from(!has_ports),
            },
            bars: [ports, msix, None, None, registers.filter(|_| has_pages), None],
            vectors: Vectors { intx: true, msi: 0, msix: self.vectors },
            msix: Some(MsixTable {
                table_bar: MSIX_BAR,
                table_offset: 0,
                pba_bar: MSIX_BAR,
                pba_offset: MSIX_PENDING,
            }),
            vendor: match has_pages {
                true => {
                    registers::capabilities(self.device.queues(), self.device.configuration().len())
                }
                false => Vec::new(),
            },
            ..Description::default()
        }
    }

    fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.device.attach(bus.alarm());
        self.drop_state();
        self.generation = 0;
        let Some(pages) = self.pages(bus) else { return Ok(()) };
        let bytes = usize::try_from(registers::BAR_BYTES).expect("four pages");
        pages.fill(0, bytes, 0)?;
        self.shown = [0; COMMON_BYTES];
        self.show(bus)?;
        self.show_configuration(bus)?;
        let length = usize::from(self.device.queues()) * 4;
        pages.fill(registers::NOTIFY, length, 0xff)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        self.device.portable()?;
        Some(self)
    }

    fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let mut progress = if self.take_stores(bus)? { Progress::Worked } else { Progress::Idle };
        if self.runs() {
            self.take_notifications(bus)?;
            let served = self.serve(bus);
            if progress == Progress::Idle {
                progress = served;
            }
            self.show(bus)?;
        }
        Ok(progress)
    }

    fn after_store(&self, bar: usize, offset: u64) -> After {
        // Work begins with a queue's notification, by a port or as soon as the driver lets device
        // and queue run.
        let begins = matches!(offset, registers::DEVICE_STATUS | registers::QUEUE_ENABLE);
        if bar != BAR || begins { After::Work } else { After::Settled }
    }

    fn load(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        if bar == legacy::BAR {
            self.load_legacy(bus, offset, bytes);
            return self.show(bus);
        }
        if bar != BAR || self.interface == Interface::Legacy {
            return Ok(());
        }
        self.take_stores(bus)?;
        let page = offset & !0xfff;
        let source = match page {
            registers::COMMON => self.common().to_vec(),
            registers::ISR if offset == registers::ISR => {
                vec![self.take_isr(bus)]
            }
            registers::DEVICE => self.device.configuration(),
            _ => Vec::new(),
        };
        let at = usize::try_from(offset & 0xfff).expect("inside a page");
        for (byte, value) in bytes.iter_mut().zip(source.iter().skip(at)) {
            *byte = *value;
        }
        self.show(bus)
    }

    fn store(&mut self, bus: &Bus<'_>, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if bar == legacy::BAR {
            self.store_legacy(bus, offset, bytes)?;
            return self.show(bus);
        }
        if bar != BAR {
            return Ok(());
        }
        self.take_stores(bus)?;
        if offset < registers::ISR {
            self.store_common(bus, offset, bytes)?;
        } else if offset >= registers::DEVICE {
            let at = usize::try_from(offset - registers::DEVICE).expect("inside a page");
            for (place, byte) in (at..).zip(bytes) {
                self.device.store(place, *byte);
            }
            self.show_configuration(bus)?;
        }
        self.show(bus)
    }
}
