//! How a device moves to another run: registers and queues of the transport, and what the device
//! itself adds.

use std::io;

use ioasis_uapi::{Errno, Error, Result};

use super::Portable;
use super::queue::Queue;
use super::registers::{self, NO_VECTOR};
use super::transport::{Interface, Transport};
use crate::bus::{Bus, Line};
use crate::migration::{Migration, Reader, Writer, bad};

/// Bytes of a queue, and of all else, rounded up.
const QUEUE_BYTES: usize = 48;
const MOST_BYTES: usize = 4096;

/// The registers of a state that was checked.
struct Loaded {
    legacy: bool,
    selects: (u32, u32),
    features: u64,
    configuration_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
    isr: u8,
    queues: Vec<Queue>,
}

impl Transport {
    fn portable(&mut self) -> &mut dyn Portable {
        self.device.portable().expect("a device that migrates")
    }

    /// What the device was made with.
    fn shape(&mut self) -> Vec<(u64, &'static str)> {
        let interface = match self.interface {
            Interface::Modern => 0,
            Interface::Transitional => 1,
            Interface::Legacy => 2,
        };
        let mut shape = vec![
            (interface, "the device that was saved has another interface="),
            (self.device.queues().into(), "the device that was saved has another queues="),
            (self.offered(), "the device that was saved offers other feature bits"),
        ];
        shape.extend(self.portable().shape());
        shape
    }

    fn read(&self, state: &mut Reader<'_>) -> Result<Loaded> {
        let loaded = Loaded {
            legacy: state.flag()?,
            selects: (state.u32()?, state.u32()?),
            features: state.u64()?,
            configuration_vector: state.u16()?,
            status: state.u8()?,
            generation: state.u8()?,
            queue_select: state.u16()?,
            isr: state.u8()?,
            queues: (0..self.device.queues())
                .map(|index| Queue::load(index, state))
                .collect::<Result<_>>()?,
        };
        self.check(&loaded)?;
        Ok(loaded)
    }

    /// Whether a driver could have brought the device there.
    fn check(&self, loaded: &Loaded) -> Result<()> {
        if loaded.legacy && self.interface == Interface::Modern {
            return bad("the device has no legacy interface", 1_u8);
        }
        if loaded.legacy && loaded.features & !self.offered() != 0 {
            return bad("feature bits that are not offered", loaded.features);
        }
        let is_agreed = !loaded.legacy && loaded.status & registers::FEATURES_OK != 0;
        if is_agreed && let Some((why, bits)) = self.refuses(loaded.features) {
            return bad(why, bits);
        }
        if loaded.isr & !(registers::ISR_QUEUE | registers::ISR_CONFIGURATION) != 0 {
            return bad("no interrupt has such a cause", loaded.isr);
        }
        let vectors = loaded.queues.iter().map(|queue| queue.vector);
        for vector in vectors.chain([loaded.configuration_vector]) {
            if vector != NO_VECTOR && self.vector(vector) != vector {
                return bad("there is no such vector", vector);
            }
        }
        Ok(())
    }
}

impl Migration for Transport {
    fn name(&self) -> &'static str {
        self.device.model()
    }

    fn version(&self) -> u32 {
        1
    }

    fn most_bytes(&self) -> usize {
        MOST_BYTES + QUEUE_BYTES * usize::from(self.device.queues())
    }

    fn save(&mut self, _: &Bus<'_>, state: &mut Writer) -> Result<()> {
        self.shape().into_iter().for_each(|(value, _)| state.u64(value));
        state.flag(self.legacy);
        state.u32(self.device_feature_select);
        state.u32(self.driver_feature_select);
        state.u64(self.driver_features);
        state.u16(self.configuration_vector);
        state.u8(self.status);
        state.u8(self.generation);
        state.u16(self.queue_select);
        state.u8(self.isr);
        self.queues.iter().for_each(|queue| queue.save(state));
        self.portable().save(state);
        Ok(())
    }

    fn load(&mut self, bus: &Bus<'_>, _: u32, state: &mut Reader<'_>) -> Result<()> {
        for (value, why) in self.shape() {
            state.same(value, why)?;
        }
        let loaded = self.read(state)?;
        let mut rest = state.clone();
        self.portable().check(&mut rest)?;
        rest.end()?;
        crate::model::Model::reset(self, bus)?;
        self.legacy = loaded.legacy;
        (self.device_feature_select, self.driver_feature_select) = loaded.selects;
        self.driver_features = loaded.features;
        self.configuration_vector = loaded.configuration_vector;
        self.status = loaded.status;
        self.generation = loaded.generation;
        self.queue_select = loaded.queue_select;
        self.isr = loaded.isr;
        self.queues = loaded.queues;
        let agreed = if self.legacy { registers::DRIVER_OK } else { registers::FEATURES_OK };
        if self.status & agreed != 0 {
            self.device.start(self.driver_features);
        }
        self.portable().load(state)?;
        self.show(bus)?;
        self.show_configuration(bus)
    }

    fn hand_over(&mut self) -> io::Result<()> {
        self.portable().hand_over()
    }

    fn take_over(&mut self) -> Result<()> {
        self.portable().take_over().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Error::new(errno, "another run has the image")
        })
    }

    fn remind(&mut self, bus: &Bus<'_>) -> Result<()> {
        if bus.has_msix() {
            let used = self.queues.iter().filter(|queue| queue.was_used());
            for queue in used.filter(|queue| queue.vector != NO_VECTOR) {
                bus.raise(queue.vector);
            }
        } else if self.queues.iter().any(Queue::was_used) {
            self.isr |= registers::ISR_QUEUE;
            bus.set_line(Line::Asserted);
            self.show(bus)?;
        }
        Ok(())
    }
}
