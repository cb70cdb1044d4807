//! Commands of the admin command set (NVMe 1.4, chapter 5).

use super::super::image::Protection;
use super::command::Command;
use super::controller::{Controller, Outcome};
use super::events::Event;
use super::features::IoQueues;
use super::identify;
use super::io::{ALL_NAMESPACES, NAMESPACE, TRANSFER_MAX, WriteCache};
use super::log::{self, Health};
use super::prp;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::registers::{BAR, COMPLETION_LG2, QUEUE_ENTRIES, SUBMISSION_LG2, doorbells};
use super::status::Status;
use crate::bus::Bus;

// Opcodes, figure 139.
pub(super) const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
pub(super) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
pub(super) const GET_LOG_PAGE: u8 = 0x02;
pub(super) const DELETE_COMPLETION_QUEUE: u8 = 0x04;
pub(super) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
pub(super) const IDENTIFY: u8 = 0x06;
pub(super) const ABORT: u8 = 0x08;
pub(super) const SET_FEATURES: u8 = 0x09;
pub(super) const GET_FEATURES: u8 = 0x0a;
pub(super) const ASYNC_EVENT_REQUEST: u8 = 0x0c;

/// Dword 11 of the commands that make queues: physically contiguous, interrupts enabled.
const CONTIGUOUS: u32 = 1 << 0;
const INTERRUPTS: u32 = 1 << 1;
/// Dword 10 of Get Log Page: the event stays unread.
const RETAIN_EVENT: u32 = 1 << 15;
/// Dword 0 of Abort's completion: nothing was aborted.
const NOT_ABORTED: u32 = 1;

impl Controller {
    /// Does one admin command.
    pub(super) fn admin(&mut self, bus: &Bus<'_>, command: &Command) -> Outcome {
        if !command.plain() {
            return Outcome::Done(Err(Status::INVALID_FIELD));
        }
        if self.events.holds(command.id) {
            return Outcome::Done(Err(Status::ID_CONFLICT));
        }
        Outcome::Done(match command.opcode {
            DELETE_SUBMISSION_QUEUE => self.delete_submission_queue(command),
            CREATE_SUBMISSION_QUEUE => self.create_submission_queue(bus, command),
            GET_LOG_PAGE => self.get_log_page(bus, command),
            DELETE_COMPLETION_QUEUE => self.delete_completion_queue(command),
            CREATE_COMPLETION_QUEUE => self.create_completion_queue(bus, command),
            IDENTIFY => self.identify(bus, command),
            ABORT => self.abort(command),
            SET_FEATURES => self.set_features(bus, command),
            GET_FEATURES => self.features.get(command),
            ASYNC_EVENT_REQUEST => match self.events.request(command.id) {
                Ok(()) => return Outcome::Held,
                Err(status) => Err(status),
            },
            _ => Err(Status::INVALID_OPCODE),
        })
    }

    /// Writes what a command returns to its data buffer.
    fn answer(&self, bus: &Bus<'_>, command: &Command, bytes: &[u8]) -> Result<u32, Status> {
        let mut segments = Vec::new();
        let entries = [command.prp1, command.prp2];
        let page_size = self.configuration.page_size();
        prp::segments(bus, page_size, entries, bytes.len() as u64, &mut segments)?;
        bus.write(&segments, bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        Ok(0)
    }

    /// The slot of an I/O queue identifier.
    fn slot(&self, id: u16) -> Result<usize, Status> {
        if (1..=self.queues).contains(&id) {
            Ok(usize::from(id))
        } else {
            Err(Status::INVALID_QUEUE_ID)
        }
    }

    /// Checks what both kinds of queues have in common; answers the slot and the number of entries.
    fn check_queue(&self, command: &Command) -> Result<(usize, u32), Status> {
        let slot = self.slot(command.low(10))?;
        let entries = u32::from(command.high(10)) + 1;
        if !(2..=QUEUE_ENTRIES).contains(&entries) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if command.dword(11) & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        if !command.prp1.is_multiple_of(self.configuration.page_size()) {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        Ok((slot, entries))
    }

    /// Create I/O Completion Queue, 5.3.
    fn create_completion_queue(&mut self, bus: &Bus<'_>, command: &Command) -> Result<u32, Status> {
        let (slot, entries) = self.check_queue(command)?;
        if self.completions[slot].is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if self.configuration.completion_lg2() != COMPLETION_LG2 {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let vector = command.high(11);
        if vector > self.queues {
            return Err(Status::INVALID_VECTOR);
        }
        let vector = (command.dword(11) & INTERRUPTS != 0).then_some(vector);
        let doorbell = doorbells(command.low(10)) + 4;
        let zeroed = bus.pages(BAR).store_u32(doorbell, 0);
        zeroed.map_err(|_| Status::INTERNAL_ERROR)?;
        self.completions[slot] = Some(CompletionQueue::new(command.prp1, entries, vector));
        self.count_slots();
        self.io_queues = IoQueues::Made;
        Ok(0)
    }

    /// Create I/O Submission Queue, 5.4.
    fn create_submission_queue(&mut self, bus: &Bus<'_>, command: &Command) -> Result<u32, Status> {
        let id = command.low(10);
        let completion = command.high(11);
        let target = self.slot(completion).map_err(|_| Status::COMPLETION_QUEUE_INVALID)?;
        if self.completions[target].is_none() {
            return Err(Status::COMPLETION_QUEUE_INVALID);
        }
        let (slot, entries) = self.check_queue(command)?;
        if self.submissions[slot].is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if self.configuration.submission_lg2() != SUBMISSION_LG2 {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        let zeroed = bus.pages(BAR).store_u32(doorbells(id), 0);
        zeroed.map_err(|_| Status::INTERNAL_ERROR)?;
        self.submissions[slot] = Some(SubmissionQueue::new(completion, command.prp1, entries));
        self.count_slots();
        if let Some(queue) = &mut self.completions[target] {
            queue.users += 1;
        }
        Ok(0)
    }

    /// Delete I/O Submission Queue, 5.6. Commands still in it are dropped.
    fn delete_submission_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let slot = self.slot(command.low(10))?;
        let queue = self.submissions[slot].take().ok_or(Status::INVALID_QUEUE_ID)?;
        let target = self.completions[usize::from(queue.completion)].as_mut();
        target.expect("a submission queue has its completion queue").users -= 1;
        self.count_slots();
        Ok(0)
    }

    /// Delete I/O Completion Queue, 5.5: after all that complete to it.
    fn delete_completion_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let slot = self.slot(command.low(10))?;
        match &self.completions[slot] {
            None => Err(Status::INVALID_QUEUE_ID),
            Some(queue) if queue.users > 0 => Err(Status::INVALID_QUEUE_DELETION),
            Some(_) => {
                self.completions[slot] = None;
                self.count_slots();
                Ok(0)
            }
        }
    }

    /// Identify, 5.15.
    fn identify(&self, bus: &Bus<'_>, command: &Command) -> Result<u32, Status> {
        let namespace = command.namespace;
        let data = match command.dword(10).to_le_bytes()[0] {
            0x00 if namespace != NAMESPACE => return Err(Status::INVALID_NAMESPACE),
            0x00 => {
                let read_only = self.image.protection() == Protection::ReadOnly;
                identify::namespace(self.image.bytes(), self.lba_lg2, read_only)
            }
            0x01 => identify::controller(&self.identity, self.image.bytes()),
            0x02 if namespace >= ALL_NAMESPACES - 1 => return Err(Status::INVALID_NAMESPACE),
            0x02 => identify::active_namespaces(namespace),
            0x03 if namespace != NAMESPACE => return Err(Status::INVALID_NAMESPACE),
            0x03 => identify::descriptors(&self.identity),
            _ => return Err(Status::INVALID_FIELD),
        };
        self.answer(bus, command, &*data)
    }

    /// Get Log Page, 5.14.
    fn get_log_page(&mut self, bus: &Bus<'_>, command: &Command) -> Result<u32, Status> {
        let page = command.dword(10).to_le_bytes()[0];
        let dwords = u64::from(command.low(11)) << 16 | u64::from(command.high(10));
        let length = (dwords + 1) * 4;
        let offset = command.qword(12);
        if length > TRANSFER_MAX || !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        if page == log::HEALTH && !matches!(command.namespace, 0 | ALL_NAMESPACES) {
            return Err(Status::INVALID_FIELD);
        }
        let health = Health {
            counters: self.executor.counters,
            too_hot_or_cold: self.features.too_hot_or_cold(),
        };
        let bytes = log::read(page, [offset, length], &self.errors, &health)?;
        self.answer(bus, command, &bytes)?;
        if command.dword(10) & RETAIN_EVENT == 0 {
            self.events.page_read(page);
        }
        Ok(0)
    }

    /// Abort, 5.1. Only a request for an event can be under way; it completes as aborted before the Abort does.
    fn abort(&mut self, command: &Command) -> Result<u32, Status> {
        let (queue, target) = (command.low(10), command.high(10));
        let room = self.completions[0].as_ref().is_some_and(|queue| queue.free() > 1);
        if queue != 0 || !room || !self.events.abort(target) {
            return Ok(NOT_ABORTED);
        }
        self.add(0, target, 0, Status::ABORT_REQUESTED);
        Ok(0)
    }

    /// Set Features, 5.21.
    fn set_features(&mut self, bus: &Bus<'_>, command: &Command) -> Result<u32, Status> {
        let cached = self.features.write_cache();
        let result = self.features.set(command, self.io_queues)?;
        if self.features.too_hot_or_cold() {
            self.events.happened(Event::Temperature, &self.features);
        }
        if cached == WriteCache::Enabled && self.features.write_cache() == WriteCache::Disabled {
            self.sync(bus).map_err(|_| Status::INTERNAL_ERROR)?;
        }
        Ok(result)
    }
}
