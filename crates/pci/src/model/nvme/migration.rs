//! How a controller moves to another run.
//!
//! What is saved is what the controller knows and what its registers hold. Commands in the program's memory move with
//! that memory; none is under way while the device stands still. The image is locked by one run at a time: the lock is
//! given up on the way to STOP and taken on the way out of it.

use std::io;

use ioasis_uapi::{Errno, Error, Result};

use super::super::image::Protection;
use super::controller::{Controller, Failed};
use super::events::Events;
use super::features::{Features, IoQueues};
use super::identify::hash;
use super::io::Counters;
use super::log::{ErrorLog, countable};
use super::queue::{CompletionQueue, SubmissionQueue};
use super::registers::{self, BAR, Configuration, doorbells};
use super::{INFO, Nvme};
use crate::bus::Bus;
use crate::migration::{Migration, Reader, Writer, bad};

/// Bytes of 65 pairs of queues, an error log and all else, rounded up.
const MOST_BYTES: usize = 16 << 10;

/// CSTS: bits that the controller sets.
const STATUS_BITS: u32 =
    registers::CSTS_READY | registers::CSTS_FATAL | registers::CSTS_SHUTDOWN_COMPLETE;

impl Migration for Nvme {
    fn name(&self) -> &'static str {
        INFO.name
    }

    fn version(&self) -> u32 {
        1
    }

    fn most_bytes(&self) -> usize {
        MOST_BYTES
    }

    fn save(&mut self, bus: &Bus<'_>, state: &mut Writer) -> Result<()> {
        self.0.save(bus, state)
    }

    fn load(&mut self, bus: &Bus<'_>, _: u32, state: &mut Reader<'_>) -> Result<()> {
        let shape = self.0.shape();
        for (value, why) in shape {
            state.same(value, why)?;
        }
        let loaded = Loaded::read(self.0.queues, state)?;
        state.end()?;
        self.0.take(bus, loaded)
    }

    fn hand_over(&mut self) -> io::Result<()> {
        self.0.image.let_go()
    }

    fn take_over(&mut self) -> Result<()> {
        self.0.image.hold().map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Error::new(errno, "another run has the image")
        })
    }

    fn remind(&mut self, bus: &Bus<'_>) -> Result<()> {
        for queue in self.0.completions.iter().flatten().filter(|queue| queue.has_entries()) {
            if let Some(vector) = queue.vector
                && !self.0.is_masked(vector)
            {
                bus.raise(vector);
            }
        }
        bus.set_line(self.0.line());
        Ok(())
    }
}

/// A state that such a controller can be in.
struct Loaded {
    configuration: Configuration,
    status: u32,
    has_failed: bool,
    masked: u32,
    io_queues: IoQueues,
    features: Features,
    events: Events,
    errors: ErrorLog,
    counters: Counters,
    admin: (u32, u64, u64),
    submissions: Vec<Option<SubmissionQueue>>,
    completions: Vec<Option<CompletionQueue>>,
    doorbells: Vec<u64>,
}

impl Controller {
    /// What the device was made with, which a state must be of.
    fn shape(&self) -> [(u64, &'static str); 5] {
        let read_only = self.image.protection() == Protection::ReadOnly;
        [
            (self.queues.into(), "the controller that was saved has another queues="),
            (self.lba_lg2.into(), "the controller that was saved has another lba="),
            (self.image.bytes(), "the image that was saved is of another size"),
            (read_only.into(), "the controller that was saved has another ro"),
            (
                hash(self.identity.serial.as_bytes(), 0),
                "the disk that was saved has another serial=",
            ),
        ]
    }

    fn save(&self, bus: &Bus<'_>, state: &mut Writer) -> Result<()> {
        self.shape().into_iter().for_each(|(value, _)| state.u64(value));
        state.u32(self.configuration.0);
        state.u32(self.status);
        state.flag(self.failed.is_some());
        state.u32(self.masked);
        state.flag(self.io_queues == IoQueues::Made);
        self.features.save(state);
        self.events.save(state);
        self.errors.save(state);
        let Counters { bytes_read, bytes_written, reads, writes, media_errors } =
            self.executor.counters;
        [bytes_read, bytes_written, reads, writes, media_errors]
            .into_iter()
            .for_each(|count| state.u64(count));
        let pages = bus.pages(BAR);
        state.u32(pages.load_u32(registers::AQA)?);
        state.u64(pages.load_u64(registers::ASQ)?);
        state.u64(pages.load_u64(registers::ACQ)?);
        for (id, (submission, completion)) in
            (0..).zip(self.submissions.iter().zip(&self.completions))
        {
            state.flag(submission.is_some());
            submission.iter().for_each(|queue| queue.save(state));
            state.flag(completion.is_some());
            completion.iter().for_each(|queue| queue.save(state));
            state.u64(pages.load_u64(doorbells(id))?);
        }
        Ok(())
    }

    /// Is as `loaded` says.
    fn take(&mut self, bus: &Bus<'_>, loaded: Loaded) -> Result<()> {
        self.reset(bus)?;
        let pages = bus.pages(BAR);
        let (attributes, submission, completion) = loaded.admin;
        pages.store_u32(registers::AQA, attributes)?;
        pages.store_u64(registers::ASQ, submission)?;
        pages.store_u64(registers::ACQ, completion)?;
        for (id, doorbell) in (0..).zip(loaded.doorbells) {
            pages.store_u64(doorbells(id), doorbell)?;
        }
        pages.store_u32(registers::INTMS, loaded.masked)?;
        pages.store_u32(registers::CSTS, loaded.status)?;
        pages.store_u32(registers::CC, loaded.configuration.0)?;
        self.configuration = loaded.configuration;
        self.status = loaded.status;
        self.failed =
            if loaded.has_failed { Some(Failed::again(bus, loaded.configuration)?) } else { None };
        self.masked = loaded.masked;
        self.io_queues = loaded.io_queues;
        self.features = loaded.features;
        self.events = loaded.events;
        self.errors = loaded.errors;
        self.executor.counters = loaded.counters;
        self.submissions = loaded.submissions;
        self.completions = loaded.completions;
        self.count_slots();
        Ok(())
    }
}

impl Loaded {
    fn read(queues: u16, state: &mut Reader<'_>) -> Result<Self> {
        let configuration = Configuration(state.u32()?);
        let status = state.u32()?;
        if status & !STATUS_BITS != 0 {
            return bad("no controller has such a status", status);
        }
        let (has_failed, masked) = (state.flag()?, state.u32()?);
        let io_queues = if state.flag()? { IoQueues::Made } else { IoQueues::None };
        let features = Features::load(queues, state)?;
        let (events, errors) = (Events::load(state)?, ErrorLog::load(state)?);
        let mut count = || countable(state.u64()?);
        let counters = Counters {
            bytes_read: count()?,
            bytes_written: count()?,
            reads: count()?,
            writes: count()?,
            media_errors: count()?,
        };
        let admin = (state.u32()?, state.u64()?, state.u64()?);
        let slots = usize::from(queues) + 1;
        let (mut submissions, mut completions) = (Vec::new(), Vec::new());
        let mut doorbells = Vec::with_capacity(slots);
        for _ in 0..slots {
            let has_queue = state.flag()?;
            submissions.push(has_queue.then(|| SubmissionQueue::load(state)).transpose()?);
            let has_queue = state.flag()?;
            completions.push(has_queue.then(|| CompletionQueue::load(state)).transpose()?);
            doorbells.push(state.u64()?);
        }
        let mut loaded = Self {
            configuration,
            status,
            has_failed,
            masked,
            io_queues,
            features,
            events,
            errors,
            counters,
            admin,
            submissions,
            completions,
            doorbells,
        };
        loaded.check(queues)?;
        Ok(loaded)
    }

    /// Whether the queues could have been made by commands; counts who uses which.
    fn check(&mut self, queues: u16) -> Result<()> {
        if self.submissions[0].is_some() != self.completions[0].is_some() {
            return bad("half of the admin queues is missing", 0_u8);
        }
        let runs = self.status == registers::CSTS_READY;
        if runs && (self.submissions[0].is_none() || !self.configuration.enabled()) {
            return bad("a controller that is ready has admin queues", self.status);
        }
        let has_queues = self.completions.iter().any(Option::is_some);
        let configuration = self.configuration;
        let can_run = configuration.enabled() && configuration.acceptable();
        if has_queues && (self.submissions[0].is_none() || !can_run) {
            return bad("a controller that cannot run has queues", configuration.0);
        }
        for queue in self.completions.iter().flatten() {
            if let Some(vector) = queue.vector.filter(|vector| *vector > queues) {
                return bad("there is no such vector", vector);
            }
        }
        for (slot, queue) in self.submissions.iter().enumerate() {
            let Some(queue) = queue else { continue };
            let target = usize::from(queue.completion);
            let found = self.completions.get_mut(target).and_then(Option::as_mut);
            match found {
                Some(_) if slot == 0 && target == 0 => {}
                Some(completion) if slot != 0 && target != 0 => completion.users += 1,
                _ => return bad("a submission queue has no completion queue", queue.completion),
            }
        }
        Ok(())
    }
}
