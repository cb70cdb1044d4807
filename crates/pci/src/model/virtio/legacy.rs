//! The legacy interface (4.1.4.10, 4.1.5.1.3.1): I/O ports in BAR 0, feature bits 0 to 31, queues
//! whose parts follow each other in memory and whose size the device chooses.
//!
//! Fields are in the byte order of the driver, which is that of this machine.

use ioasis_uapi::Result;

use super::queue::{Areas, ENTRIES_MAX, Queue, Rules};
use super::registers::{self as registers, NO_VECTOR};
use super::transport::{Transport, overlay};
use super::{Stop, feature};
use crate::bus::{Bus, Line};

pub(super) const BAR: usize = 0;
/// Room for the header and a configuration of 40 bytes.
pub(super) const BAR_BYTES: u64 = 64;

const DEVICE_FEATURES: u64 = 0;
const DRIVER_FEATURES: u64 = 4;
const QUEUE_ADDRESS: u64 = 8;
const QUEUE_SIZE: u64 = 12;
const QUEUE_SELECT: u64 = 14;
const QUEUE_NOTIFY: u64 = 16;
const DEVICE_STATUS: u64 = 18;
const ISR: u64 = 19;
/// These are there while MSI-X is enabled, and the configuration follows behind them.
const CONFIGURATION_VECTOR: u64 = 20;
const QUEUE_VECTOR: u64 = 22;

const HEADER: usize = 20;
const HEADER_WITH_MSIX: usize = 24;

/// Registers that a driver stores to, without and with the last two.
const WRITABLE: [(u64, usize); 7] = [
    (DRIVER_FEATURES, 4),
    (QUEUE_ADDRESS, 4),
    (QUEUE_SELECT, 2),
    (QUEUE_NOTIFY, 2),
    (DEVICE_STATUS, 1),
    (CONFIGURATION_VECTOR, 2),
    (QUEUE_VECTOR, 2),
];
const WITHOUT_MSIX: usize = 5;

/// A queue's address is a number of pages of this size, and its used ring begins at one
/// (4.1.5.1.3.1, 2.7.2).
const ALIGNMENT: u64 = 4096;

/// Feature bits that the legacy interface knows.
const LOW: u64 = 0xffff_ffff;

/// The transitional ID of device `id` (4.1.2.1).
pub(super) fn device_id(id: u16) -> u16 {
    0x1000 + id - 1
}

/// Where the parts of a queue lie whose first is at page `page`.
fn areas(page: u32) -> Areas {
    let entries = u64::from(ENTRIES_MAX);
    let descriptors = u64::from(page) * ALIGNMENT;
    let driver = descriptors + 16 * entries;
    let device = (driver + 6 + 2 * entries).next_multiple_of(ALIGNMENT);
    Areas { descriptors, driver, device }
}

impl Transport {
    /// The ports as a driver reads them, but for the ISR status, whose read takes it away.
    fn ports(&self, bus: &Bus<'_>) -> Vec<u8> {
        let header = if bus.has_msix() { HEADER_WITH_MSIX } else { HEADER };
        let mut bytes = vec![0; HEADER_WITH_MSIX];
        let mut put = |offset: u64, value: &[u8]| {
            let at = usize::try_from(offset).expect("inside the header");
            bytes[at..at + value.len()].copy_from_slice(value);
        };
        put(DEVICE_FEATURES, &(self.offered() & LOW).to_le_bytes()[..4]);
        put(DRIVER_FEATURES, &(self.driver_features & LOW).to_le_bytes()[..4]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(DEVICE_STATUS, &[self.status]);
        put(CONFIGURATION_VECTOR, &self.configuration_vector.to_le_bytes());
        let queue = self.queues.get(usize::from(self.queue_select));
        put(QUEUE_VECTOR, &queue.map_or(NO_VECTOR, |queue| queue.vector).to_le_bytes());
        if let Some(queue) = queue {
            put(QUEUE_SIZE, &queue.size.to_le_bytes());
            let page = if queue.enabled { queue.areas.descriptors / ALIGNMENT } else { 0 };
            put(QUEUE_ADDRESS, &page.to_le_bytes()[..4]);
        }
        bytes.truncate(header);
        bytes.extend(self.device.configuration());
        bytes
    }

    pub(super) fn load_legacy(&mut self, bus: &Bus<'_>, offset: u64, bytes: &mut [u8]) {
        let ports = self.ports(bus);
        let at = usize::try_from(offset).expect("inside the BAR");
        for (byte, value) in bytes.iter_mut().zip(ports.iter().skip(at)) {
            *byte = *value;
        }
        if let Some(byte) = ISR.checked_sub(offset).and_then(|at| usize::try_from(at).ok())
            && byte < bytes.len()
        {
            bytes[byte] = self.take_isr(bus);
        }
    }

    pub(super) fn store_legacy(&mut self, bus: &Bus<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
        let (registers, header) = match bus.has_msix() {
            true => (&WRITABLE[..], HEADER_WITH_MSIX),
            false => (&WRITABLE[..WITHOUT_MSIX], HEADER),
        };
        for (register, value) in overlay(registers, &self.ports(bus), offset, bytes) {
            self.store_port(bus, register, value)?;
        }
        let mut stored = false;
        for (at, byte) in (offset..).zip(bytes) {
            if let Some(place) = at.checked_sub(header as u64) {
                self.device.store(usize::try_from(place).expect("inside the BAR"), *byte);
                stored = true;
            }
        }
        if stored { self.show_configuration(bus) } else { Ok(()) }
    }

    fn store_port(&mut self, bus: &Bus<'_>, register: u64, value: u32) -> Result<()> {
        let word = u16::try_from(value & 0xffff).expect("16 bits");
        let vector = self.vector(word);
        match register {
            DRIVER_FEATURES => {
                self.driver_features = u64::from(value) & self.offered();
                self.legacy = true;
            }
            QUEUE_ADDRESS => self.place_queue(bus, value),
            QUEUE_SELECT => self.queue_select = word,
            QUEUE_NOTIFY => {
                let found = self.queues.get_mut(usize::from(word)).filter(|queue| queue.enabled);
                if let Some(queue) = found {
                    queue.kicked = true;
                }
            }
            DEVICE_STATUS => return self.set_legacy_status(bus, value.to_le_bytes()[0]),
            CONFIGURATION_VECTOR => self.configuration_vector = vector,
            _ => {
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = vector;
                }
            }
        }
        Ok(())
    }

    /// The driver says where the selected queue lies; 0 takes it away.
    fn place_queue(&mut self, bus: &Bus<'_>, page: u32) {
        self.legacy = true;
        let rules = Rules {
            indirect: self.driver_features & feature::RING_INDIRECT_DESC != 0,
            event_index: self.driver_features & feature::RING_EVENT_IDX != 0,
        };
        let index = self.queue_select;
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return };
        if page == 0 {
            let vector = queue.vector;
            *queue = Queue::new(index);
            queue.vector = vector;
            self.device.reset_queue(index);
            return;
        }
        if queue.enabled {
            return;
        }
        queue.areas = areas(page);
        queue.rules = rules;
        if let Err(wrong) = queue.enable() {
            self.stop(bus, index, Stop::Wrong(wrong));
        }
    }

    fn set_legacy_status(&mut self, bus: &Bus<'_>, value: u8) -> Result<()> {
        if value == 0 {
            self.drop_state();
            bus.set_line(Line::Deasserted);
            return self.show_configuration(bus);
        }
        self.legacy = true;
        let new = value & !self.status & !(registers::NEEDS_RESET | registers::FEATURES_OK);
        if new & registers::DRIVER_OK != 0 {
            self.device.start(self.driver_features);
        }
        self.status |= new;
        self.show_configuration(bus)
    }
}
