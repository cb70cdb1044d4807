//! Get Features and Set Features (NVMe 1.4, 5.14 and 5.21).

use super::command::Command;
use super::io::WriteCache;
use super::status::Status;
use crate::migration::{Reader, Writer};

// Feature identifiers, figure 271.
const ARBITRATION: u8 = 0x01;
const POWER_MANAGEMENT: u8 = 0x02;
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
pub(super) const VOLATILE_WRITE_CACHE: u8 = 0x06;
const NUMBER_OF_QUEUES: u8 = 0x07;
const INTERRUPT_COALESCING: u8 = 0x08;
const INTERRUPT_VECTOR: u8 = 0x09;
const WRITE_ATOMICITY: u8 = 0x0a;
const ASYNC_EVENTS: u8 = 0x0b;

/// Composite temperatures of Identify Controller, in kelvins.
pub(super) const WARNING_TEMPERATURE_K: u16 = 343;
pub(super) const CRITICAL_TEMPERATURE_K: u16 = 373;
/// What the controller measures, always.
pub(super) const TEMPERATURE_K: u16 = 300;

/// Set Features dword 10: save across resets.
const SAVE: u32 = 1 << 31;
/// Capability bit: the feature can be changed.
const CHANGEABLE: u32 = 1 << 2;
const VECTOR_COALESCING_DISABLE: u32 = 1 << 16;
const TEMPERATURE_UNDER: u32 = 1 << 20;
const ERROR_RECOVERY_DULBE: u32 = 1 << 16;

/// The features as they are now; a reset brings the defaults back.
#[derive(Clone, Debug)]
pub(super) struct Features {
    /// I/O queues of each kind.
    queues: u16,
    arbitration: u32,
    over_temperature: u16,
    under_temperature: u16,
    error_recovery: u32,
    write_cache: u32,
    coalescing: u32,
    /// Vectors for which coalescing is disabled, by bit.
    uncoalesced: u128,
    write_atomicity: u32,
    /// Which asynchronous events are sent.
    pub(super) async_events: u32,
}

impl Features {
    /// The defaults of a controller with so many I/O queue pairs.
    pub(super) fn new(queues: u16) -> Self {
        Self {
            queues,
            arbitration: 0,
            over_temperature: WARNING_TEMPERATURE_K,
            under_temperature: 0,
            error_recovery: 0,
            write_cache: 1,
            coalescing: 0,
            uncoalesced: 0,
            write_atomicity: 0,
            async_events: 0,
        }
    }

    pub(super) fn save(&self, state: &mut Writer) {
        for number in [self.arbitration, self.error_recovery, self.write_cache, self.coalescing] {
            state.u32(number);
        }
        state.u16(self.over_temperature);
        state.u16(self.under_temperature);
        state.u128(self.uncoalesced);
        state.u32(self.write_atomicity);
        state.u32(self.async_events);
    }

    /// Those of a controller with so many I/O queue pairs.
    pub(super) fn load(queues: u16, state: &mut Reader<'_>) -> ioasis_uapi::Result<Self> {
        let (arbitration, error_recovery) = (state.u32()?, state.u32()?);
        let (write_cache, coalescing) = (state.u32()?, state.u32()?);
        Ok(Self {
            queues,
            arbitration,
            error_recovery,
            write_cache: write_cache & 1,
            coalescing,
            over_temperature: state.u16()?,
            under_temperature: state.u16()?,
            uncoalesced: state.u128()?,
            write_atomicity: state.u32()?,
            async_events: state.u32()?,
        })
    }

    pub(super) fn write_cache(&self) -> WriteCache {
        if self.write_cache == 1 { WriteCache::Enabled } else { WriteCache::Disabled }
    }

    /// Whether the temperature is past a threshold.
    pub(super) fn too_hot_or_cold(&self) -> bool {
        TEMPERATURE_K >= self.over_temperature || TEMPERATURE_K <= self.under_temperature
    }

    fn queue_counts(&self) -> u32 {
        let count = u32::from(self.queues) - 1;
        count << 16 | count
    }

    /// Answers Get Features: dword 0 of the completion.
    pub(super) fn get(&self, command: &Command) -> Result<u32, Status> {
        let defaults = Self::new(self.queues);
        let identifier = identifier(command);
        match command.dword(10) >> 8 & 7 {
            0 => self.value(identifier, command.dword(11)),
            // Nothing is saveable, so what is saved is the default.
            1 | 2 => defaults.value(identifier, command.dword(11)),
            3 => self.value(identifier, command.dword(11)).map(|_| CHANGEABLE),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn value(&self, identifier: u8, selector: u32) -> Result<u32, Status> {
        Ok(match identifier {
            ARBITRATION => self.arbitration,
            POWER_MANAGEMENT => 0,
            TEMPERATURE_THRESHOLD => match temperature_sensor(selector)? {
                Threshold::Over => u32::from(self.over_temperature),
                Threshold::Under => u32::from(self.under_temperature),
            },
            ERROR_RECOVERY => self.error_recovery,
            VOLATILE_WRITE_CACHE => self.write_cache,
            NUMBER_OF_QUEUES => self.queue_counts(),
            INTERRUPT_COALESCING => self.coalescing,
            INTERRUPT_VECTOR => {
                let vector = self.vector(selector)?;
                let disabled = self.uncoalesced >> vector & 1 != 0;
                vector | if disabled { VECTOR_COALESCING_DISABLE } else { 0 }
            }
            WRITE_ATOMICITY => self.write_atomicity,
            ASYNC_EVENTS => self.async_events,
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    fn vector(&self, selector: u32) -> Result<u32, Status> {
        let vector = selector & 0xffff;
        if vector > u32::from(self.queues) { Err(Status::INVALID_FIELD) } else { Ok(vector) }
    }

    /// Does Set Features; answers dword 0 of the completion. `queues_exist` says whether an I/O queue was made since
    /// the controller was enabled.
    pub(super) fn set(&mut self, command: &Command, queues: IoQueues) -> Result<u32, Status> {
        let value = command.dword(11);
        let identifier = identifier(command);
        self.value(identifier, if identifier == INTERRUPT_VECTOR { value } else { 0 })?;
        if command.dword(10) & SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        match identifier {
            ARBITRATION => self.arbitration = value,
            // There is power state 0 alone.
            POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            POWER_MANAGEMENT => {}
            TEMPERATURE_THRESHOLD => self.set_threshold(command.low(11), value)?,
            ERROR_RECOVERY if value & ERROR_RECOVERY_DULBE != 0 => {
                return Err(Status::INVALID_FIELD);
            }
            ERROR_RECOVERY => self.error_recovery = value & 0xffff,
            VOLATILE_WRITE_CACHE => self.write_cache = value & 1,
            NUMBER_OF_QUEUES => return self.set_queue_counts(command, queues),
            INTERRUPT_COALESCING => self.coalescing = value & 0xffff,
            INTERRUPT_VECTOR => {
                let bit = 1 << self.vector(value)?;
                let disable = value & VECTOR_COALESCING_DISABLE != 0;
                self.uncoalesced = self.uncoalesced & !bit | if disable { bit } else { 0 };
            }
            WRITE_ATOMICITY => self.write_atomicity = value & 1,
            ASYNC_EVENTS => self.async_events = value,
            _ => return Err(Status::NOT_CHANGEABLE),
        }
        Ok(0)
    }

    fn set_threshold(&mut self, kelvins: u16, selector: u32) -> Result<(), Status> {
        match temperature_sensor(selector)? {
            Threshold::Over => self.over_temperature = kelvins,
            Threshold::Under => self.under_temperature = kelvins,
        }
        Ok(())
    }

    /// All queues there are, whatever is asked for: 5.21.1.7 lets a controller allocate more than that.
    fn set_queue_counts(&self, command: &Command, queues: IoQueues) -> Result<u32, Status> {
        if queues == IoQueues::Made {
            return Err(Status::SEQUENCE_ERROR);
        }
        if command.low(11) == 0xffff || command.high(11) == 0xffff {
            return Err(Status::INVALID_FIELD);
        }
        Ok(self.queue_counts())
    }
}

/// Whether an I/O queue was made since the controller was enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IoQueues {
    None,
    Made,
}

#[derive(Clone, Copy)]
enum Threshold {
    Over,
    Under,
}

/// Which threshold of the composite temperature, the only sensor; all sensors (1111b) are that one.
fn temperature_sensor(selector: u32) -> Result<Threshold, Status> {
    if !matches!(selector >> 16 & 0xf, 0 | 0xf) || selector >> 20 & 3 > 1 {
        return Err(Status::INVALID_FIELD);
    }
    Ok(if selector & TEMPERATURE_UNDER == 0 { Threshold::Over } else { Threshold::Under })
}

pub(super) fn identifier(command: &Command) -> u8 {
    command.dword(10).to_le_bytes()[0]
}
