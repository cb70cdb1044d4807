//! The controller: what its registers ask for, and its queues.
//!
//! A register acts in [`Controller::store`], when the program is trapped, or at the next poll. Commands are done in
//! [`Controller::poll`], by one thread and one command after another, so a queue that is deleted has nothing under way and
//! an Abort finds at most an Asynchronous Event Request to abort.

use std::io;

use ioasis_uapi::Result;

use super::super::Progress;
use super::super::image::Image;
use super::command::{Command, Completion};
use super::events::{Event, Events};
use super::features::{Features, IoQueues};
use super::identify::Identity;
use super::io::{Context, Executor, TURN_MAX, first_block};
use super::log::{ErrorLog, Failure};
use super::queue::{CompletionQueue, FETCH_MAX, SubmissionQueue};
use super::registers::{self, AdminQueues, BAR, Configuration, Wish, doorbells};
use super::status::Status;
use crate::bus::{Bus, DmaFault, Line};
use crate::refusal::{ImageAccess, Refusal};

/// Identifier of the admin queues.
const ADMIN: u16 = 0;

/// An enable that failed, until CC.EN is seen to be 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed {
    wish: Wish,
    /// Another wish, seen by the last look.
    next: Option<Wish>,
}

/// Bits of the interrupt mask that a store sets, or clears.
#[derive(Clone, Copy, Debug, Default)]
struct Masks {
    set: u32,
    clear: u32,
}

/// An NVMe controller with one namespace.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) image: Image,
    pub(super) identity: Identity,
    /// I/O queue pairs there can be.
    pub(super) queues: u16,
    pub(super) lba_lg2: u32,
    pub(super) configuration: Configuration,
    /// CSTS as it is.
    pub(super) status: u32,
    pub(super) failed: Option<Failed>,
    /// What the admin queues were made of, until the first command.
    unused: Option<Wish>,
    /// INTMS: vectors 0 to 31 that are masked.
    pub(super) masked: u32,
    pub(super) submissions: Vec<Option<SubmissionQueue>>,
    pub(super) completions: Vec<Option<CompletionQueue>>,
    /// Slots up to the last that has a queue.
    used: usize,
    pub(super) io_queues: IoQueues,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) errors: ErrorLog,
    pub(super) executor: Executor,
    commands: Vec<Command>,
    statuses: Vec<Status>,
}

impl Failed {
    /// What the registers ask for has failed already.
    pub(super) fn again(bus: &Bus<'_>, configuration: Configuration) -> Result<Self> {
        Ok(Self { wish: Wish::load(bus.pages(BAR), configuration)?, next: None })
    }
}

/// What becomes of an admin command.
pub(super) enum Outcome {
    /// It completes, with dword 0.
    Done(Result<u32, Status>),
    /// It stays with the controller.
    Held,
}

impl Controller {
    pub(super) fn new(image: Image, identity: Identity, queues: u16, lba_lg2: u32) -> Self {
        let mut controller = Self {
            image,
            identity,
            queues,
            lba_lg2,
            configuration: Configuration::default(),
            status: 0,
            failed: None,
            unused: None,
            masked: 0,
            submissions: Vec::new(),
            completions: Vec::new(),
            used: 0,
            io_queues: IoQueues::None,
            features: Features::new(queues),
            events: Events::default(),
            errors: ErrorLog::default(),
            executor: Executor::default(),
            commands: Vec::new(),
            statuses: Vec::new(),
        };
        controller.drop_state();
        controller
    }

    /// What a controller reset takes away (7.3.2): everything but the admin queue registers.
    fn drop_state(&mut self) {
        let slots = usize::from(self.queues) + 1;
        self.submissions = std::iter::repeat_with(|| None).take(slots).collect();
        self.completions = std::iter::repeat_with(|| None).take(slots).collect();
        self.used = 0;
        self.io_queues = IoQueues::None;
        self.features = Features::new(self.queues);
        self.events = Events::default();
        self.status = 0;
        self.failed = None;
        self.unused = None;
        self.masked = 0;
    }

    /// The state after power-on.
    pub(super) fn reset(&mut self, bus: &Bus<'_>) -> Result<()> {
        self.drop_state();
        self.configuration = Configuration::default();
        let pages = bus.pages(BAR);
        pages.fill(0, usize::try_from(super::BAR_BYTES).expect("four pages"), 0)?;
        self.write_read_only(bus)
    }

    /// Puts read-only registers back where the program overwrote them.
    fn write_read_only(&self, bus: &Bus<'_>) -> Result<()> {
        let pages = bus.pages(BAR);
        if pages.load_u64(registers::CAP)? != registers::CAP_VALUE {
            pages.store_u64(registers::CAP, registers::CAP_VALUE)?;
        }
        let words = [(registers::VS, registers::VERSION), (registers::CSTS, self.status)];
        for (offset, value) in words {
            if pages.load_u32(offset)? != value {
                pages.store_u32(offset, value)?;
            }
        }
        Ok(())
    }

    /// Looks at registers and doorbells, and does what they ask for.
    pub(super) fn poll(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let mut progress = self.take_registers(bus)?;
        if self.runs() && self.serve(bus)? == Progress::Worked {
            progress = Progress::Worked;
        }
        match progress {
            Progress::Worked => bus.set_line(self.line()),
            Progress::Idle | Progress::Waits => self.write_read_only(bus)?,
        }
        Ok(progress)
    }

    /// A load of registers: what they are now. INTMC reads as INTMS does (3.1.4).
    pub(super) fn load(&mut self, bus: &Bus<'_>, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.take_registers(bus)?;
        self.write_read_only(bus)?;
        for (at, byte) in (offset..).zip(bytes) {
            let word = match at & !3 {
                registers::INTMC => self.masked,
                other => bus.pages(BAR).load_u32(other)?,
            };
            *byte = word.to_le_bytes()[usize::try_from(at & 3).expect("below 4")];
        }
        Ok(())
    }

    /// A store to registers, which has acted when this returns.
    pub(super) fn store(&mut self, bus: &Bus<'_>, offset: u64, bytes: &[u8]) -> Result<()> {
        // What was stored past this came before.
        self.take_registers(bus)?;
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = usize::try_from(at & 3).expect("below 4");
            let (part, after) = rest.split_at(rest.len().min(4 - start));
            let mut value = match at & !3 {
                // Bits that are written as 0 change nothing.
                registers::INTMS | registers::INTMC => 0,
                other => bus.pages(BAR).load_u32(other)?,
            }
            .to_le_bytes();
            value[start..start + part.len()].copy_from_slice(part);
            self.store_register(bus, at & !3, u32::from_le_bytes(value))?;
            at += part.len() as u64;
            rest = after;
        }
        bus.set_line(self.line());
        Ok(())
    }

    fn store_register(&mut self, bus: &Bus<'_>, register: u64, value: u32) -> Result<()> {
        match register {
            registers::CC => {
                bus.pages(BAR).store_u32(registers::CC, value)?;
                self.configure(bus).map(|_| ())
            }
            registers::INTMS => self.take_masks(bus, Masks { set: value, clear: 0 }),
            registers::INTMC => self.take_masks(bus, Masks { set: 0, clear: value }),
            plain if registers::is_plain(plain) => bus.pages(BAR).store_u32(plain, value),
            _ => Ok(()),
        }
    }

    /// Acts on what was stored to the page itself.
    fn take_registers(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let progress = self.configure(bus)?;
        self.take_masks(bus, Masks::default())?;
        Ok(progress)
    }

    /// Takes the heads the program has stored by now, and the masks, and sets the pin.
    pub(super) fn update_line(&mut self, bus: &Bus<'_>) -> Result<()> {
        if !self.runs() {
            return Ok(());
        }
        for slot in 0..self.used {
            let (_, head) = self.doorbells(bus, slot)?;
            self.take_head(bus, slot, head);
        }
        self.take_masks(bus, Masks::default())?;
        bus.set_line(self.line());
        Ok(())
    }

    /// The doorbells of queue `slot`: submission tail and completion head.
    fn doorbells(&self, bus: &Bus<'_>, slot: usize) -> Result<(u32, u32)> {
        let id = u16::try_from(slot).expect("at most 64 queues");
        let pair = bus.pages(BAR).load_u64(doorbells(id))?.to_le_bytes();
        let [tail, head] = [&pair[..4], &pair[4..]]
            .map(|half| u32::from_le_bytes(half.try_into().expect("four bytes")));
        Ok((tail, head))
    }

    /// Brings all that was written to the disk.
    pub(super) fn sync(&self, bus: &Bus<'_>) -> io::Result<()> {
        self.image.sync().inspect_err(|error| {
            bus.tell(&Refusal::image(ImageAccess::Sync, (0, 0), error));
        })
    }

    fn runs(&self) -> bool {
        self.status == registers::CSTS_READY
    }

    fn set_status(&mut self, bus: &Bus<'_>, status: u32) -> Result<()> {
        self.status = status;
        bus.pages(BAR).store_u32(registers::CSTS, status)
    }

    /// Acts on a change of CC.
    fn configure(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let asked = Configuration(bus.pages(BAR).load_u32(registers::CC)?);
        let before = std::mem::replace(&mut self.configuration, asked);
        match (before.enabled(), asked.enabled()) {
            (true, true) if self.failed.is_some() => return self.enable_again(bus),
            _ if asked == before => return Ok(Progress::Idle),
            (false, true) => self.enable(bus)?,
            (true, false) => {
                self.drop_state();
                bus.pages(BAR).store_u32(registers::INTMS, 0)?;
                self.set_status(bus, 0)?;
            }
            _ => {}
        }
        if asked.shutdown() && !before.shutdown() {
            // A shutdown completes whether or not the disk took everything: a Flush would have told.
            let _ = self.sync(bus);
            self.set_status(bus, self.status | registers::CSTS_SHUTDOWN_COMPLETE)?;
        }
        Ok(Progress::Worked)
    }

    /// Makes the admin queues, or reports that the controller cannot run as configured.
    fn enable(&mut self, bus: &Bus<'_>) -> Result<()> {
        let wish = Wish::load(bus.pages(BAR), self.configuration)?;
        let Some(queues) = wish.queues() else {
            self.failed = Some(Failed { wish, next: None });
            return self.set_status(bus, registers::CSTS_FATAL);
        };
        bus.pages(BAR).store_u64(doorbells(ADMIN), 0)?;
        self.make_admin_queues(queues);
        self.unused = Some(wish);
        self.set_status(bus, registers::CSTS_READY)
    }

    fn make_admin_queues(&mut self, queues: AdminQueues) {
        let AdminQueues { submission, submission_entries, completion, completion_entries } = queues;
        let completion = CompletionQueue::new(completion, completion_entries, Some(0));
        self.submissions[0] = Some(SubmissionQueue::new(ADMIN, submission, submission_entries));
        self.completions[0] = Some(completion);
        self.count_slots();
    }

    /// Takes AQA, ASQ and ACQ as they are before the first command. A driver sets them before CC.EN (3.1.5), and a compiler
    /// may order stores to memory that it takes for plain otherwise: QEMU 11.1's, as Debian builds it, stores ACQ a few
    /// instructions after CC. A controller of hardware does not look before it is through with its start.
    fn settle_admin_queues(&mut self, bus: &Bus<'_>) -> Result<()> {
        let Some(made_of) = self.unused else { return Ok(()) };
        let wish = Wish::load(bus.pages(BAR), self.configuration)?;
        if wish != made_of {
            self.unused = Some(wish);
            match wish.queues() {
                Some(queues) => self.make_admin_queues(queues),
                None => {
                    self.drop_state();
                    self.failed = Some(Failed { wish, next: None });
                    return self.set_status(bus, registers::CSTS_FATAL);
                }
            }
        }
        let (tail, _) = self.doorbells(bus, 0)?;
        if tail != 0 {
            self.unused = None;
        }
        Ok(())
    }

    /// CC.EN is 1 as it was when enabling failed. A program that is not trapped may have stored 0 and 1 between two looks:
    /// other values in the registers, which nobody may change while EN is 1 (3.1.5), say so. They count once two looks have
    /// found the same ones.
    fn enable_again(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let now = Wish::load(bus.pages(BAR), self.configuration)?;
        let Some(failed) = &mut self.failed else { return Ok(Progress::Idle) };
        if now == failed.wish {
            return Ok(Progress::Idle);
        }
        if failed.next.replace(now) == Some(now) {
            self.drop_state();
            self.enable(bus)?;
        }
        Ok(Progress::Worked)
    }

    /// Queues were made or deleted.
    pub(super) fn count_slots(&mut self) {
        let has_queue =
            |slot: &usize| self.submissions[*slot].is_some() || self.completions[*slot].is_some();
        self.used = (0..self.completions.len()).rev().find(has_queue).map_or(0, |slot| slot + 1);
    }

    /// INTMS sets bits of the mask and shows it; INTMC clears them. In the page INTMC is 0, so that every store to it is
    /// seen as a change. Both are exchanged in one step, so that nothing stored meanwhile is lost; of two stores to the page
    /// between two looks, though, only the last is seen, and a bit cleared and set again counts as cleared. What was
    /// `stored` by a program that is trapped comes after those.
    fn take_masks(&mut self, bus: &Bus<'_>, stored: Masks) -> Result<()> {
        let pages = bus.pages(BAR);
        if stored.set | stored.clear == 0
            && pages.load_u32(registers::INTMS)? == self.masked
            && pages.load_u32(registers::INTMC)? == 0
        {
            return Ok(());
        }
        let clear = pages.swap_u32(registers::INTMC, 0)? | stored.clear;
        let unmasked = self.masked & clear;
        let mut shown = self.masked;
        let mut before_clear = clear;
        self.masked = self.masked & !clear | stored.set;
        loop {
            let seen = pages.swap_u32(registers::INTMS, self.masked)?;
            let set = if seen == shown { 0 } else { seen & !self.masked & !before_clear };
            // Each turn but the last adds a bit: a program that never stops storing cannot keep this going.
            if set == 0 {
                break;
            }
            shown = self.masked;
            before_clear = 0;
            self.masked |= set;
        }
        for queue in self.completions.iter().flatten().filter(|queue| queue.has_entries()) {
            if let Some(vector) = queue.vector
                && vector < 32
                && unmasked >> vector & 1 != 0
            {
                bus.raise(vector);
            }
        }
        bus.set_line(self.line());
        Ok(())
    }

    pub(super) fn is_masked(&self, vector: u16) -> bool {
        vector < 32 && self.masked >> vector & 1 != 0
    }

    /// The pin is asserted while an unmasked completion queue has entries (7.5.1).
    pub(super) fn line(&self) -> Line {
        let asks = |queue: &CompletionQueue| {
            queue.has_entries() && queue.vector.is_some_and(|vector| !self.is_masked(vector))
        };
        if self.completions.iter().flatten().any(asks) { Line::Asserted } else { Line::Deasserted }
    }

    /// Gives every queue its turn, in the order of their identifiers.
    fn serve(&mut self, bus: &Bus<'_>) -> Result<Progress> {
        let mut progress = Progress::Idle;
        self.settle_admin_queues(bus)?;
        let mut slot = 0;
        while slot < self.used && self.runs() {
            let (tail, head) = self.doorbells(bus, slot)?;
            if self.take_head(bus, slot, head) | self.turn(bus, slot, tail)? {
                progress = Progress::Worked;
            }
            slot += 1;
        }
        self.tell_events(bus)?;
        Ok(progress)
    }

    fn take_head(&mut self, bus: &Bus<'_>, slot: usize, doorbell: u32) -> bool {
        let Some(queue) = &mut self.completions[slot] else { return false };
        let moved = queue.take_head(doorbell).unwrap_or_else(|_| {
            self.events.happened(Event::BadDoorbell, &self.features);
            true
        });
        let (vector, drained) = (queue.vector, !queue.has_entries());
        if moved
            && drained
            && bus.has_pending()
            && let Some(vector) = vector
            && !self.has_entries(vector)
        {
            bus.withdraw(vector);
        }
        moved
    }

    /// Whether a queue that interrupts on `vector` has completions to take.
    fn has_entries(&self, vector: u16) -> bool {
        let mut queues = self.completions.iter().flatten();
        queues.any(|queue| queue.vector == Some(vector) && queue.has_entries())
    }

    /// One submission queue's turn; answers whether there was something to do.
    fn turn(&mut self, bus: &Bus<'_>, slot: usize, doorbell: u32) -> Result<bool> {
        let Some(queue) = &mut self.submissions[slot] else { return Ok(false) };
        let Ok(waiting) = queue.take_tail(doorbell) else {
            self.events.happened(Event::BadDoorbell, &self.features);
            return Ok(true);
        };
        let room = self.completions[usize::from(queue.completion)].as_ref();
        let room = room.expect("a submission queue has its completion queue").free();
        let count = waiting.min(room).min(FETCH_MAX);
        if count == 0 {
            return Ok(false);
        }
        let mut commands = std::mem::take(&mut self.commands);
        let done = match queue.fetch(bus, count, &mut commands) {
            Ok(()) if slot == usize::from(ADMIN) => self.admin_turn(bus, &commands),
            Ok(()) => self.io_turn(bus, slot, &commands),
            Err(fault) => Err(fault),
        };
        self.commands = commands;
        match done {
            Ok(()) => {}
            // Queues that cannot be reached are fatal (9.5); a reset mends it.
            Err(DmaFault { .. }) => self.set_status(bus, self.status | registers::CSTS_FATAL)?,
        }
        Ok(true)
    }

    fn admin_turn(&mut self, bus: &Bus<'_>, commands: &[Command]) -> Result<(), DmaFault> {
        for command in commands {
            // An Abort may have used the room of two.
            if !self.has_admin_room() {
                break;
            }
            self.submission(ADMIN).consume(1);
            match self.admin(bus, command) {
                Outcome::Done(done) => self.complete(ADMIN, command, done),
                Outcome::Held => {}
            }
        }
        self.deliver(bus, ADMIN)
    }

    fn io_turn(
        &mut self,
        bus: &Bus<'_>,
        slot: usize,
        commands: &[Command],
    ) -> Result<(), DmaFault> {
        let id = u16::try_from(slot).expect("at most 64 queues");
        let mut statuses = std::mem::take(&mut self.statuses);
        let (mut rest, mut moved) = (commands, 0);
        let mut delivered = Ok(());
        while !rest.is_empty() && moved < TURN_MAX && delivered.is_ok() {
            let context = Context {
                bus,
                image: &self.image,
                page_size: self.configuration.page_size(),
                lba_lg2: self.lba_lg2,
                write_cache: self.features.write_cache(),
            };
            moved += self.executor.run(&context, rest, &mut statuses);
            let (done, after) = rest.split_at(statuses.len());
            self.submission(id).consume(u32::try_from(done.len()).expect("at most FETCH_MAX"));
            for (command, status) in done.iter().zip(&statuses) {
                let result = if status.is_error() { Err(*status) } else { Ok(0) };
                self.complete(id, command, result);
            }
            delivered = self.deliver(bus, id);
            rest = after;
        }
        self.statuses = statuses;
        delivered
    }

    fn has_admin_room(&self) -> bool {
        self.completions[0].as_ref().is_some_and(|queue| queue.free() > 0)
    }

    fn submission(&mut self, id: u16) -> &mut SubmissionQueue {
        self.submissions[usize::from(id)].as_mut().expect("the queue whose turn it is")
    }

    /// Adds the completion of a command of submission queue `id`, and a failure to the error log.
    fn complete(&mut self, id: u16, command: &Command, done: Result<u32, Status>) {
        let status = match done {
            Ok(_) => Status::SUCCESS,
            Err(status) => {
                let lba = if id == ADMIN { 0 } else { first_block(command) };
                let namespace = command.namespace;
                let failure = Failure { queue: id, command: command.id, status, lba, namespace };
                self.errors.add(failure);
                status.logged()
            }
        };
        self.add(id, command.id, done.unwrap_or(0), status);
    }

    pub(super) fn add(&mut self, id: u16, command: u16, result: u32, status: Status) {
        let queue = self.submission(id);
        let completion = Completion { result, queue: id, head: queue.head(), id: command, status };
        let target = usize::from(queue.completion);
        let target = self.completions[target].as_mut();
        target.expect("a submission queue has its completion queue").add(&completion);
    }

    /// Writes what was added for submission queue `id`, and interrupts.
    fn deliver(&mut self, bus: &Bus<'_>, id: u16) -> Result<(), DmaFault> {
        let target = usize::from(self.submission(id).completion);
        let queue = self.completions[target].as_mut();
        let queue = queue.expect("a submission queue has its completion queue");
        if queue.write(bus)?
            && let Some(vector) = queue.vector
            && !self.is_masked(vector)
        {
            bus.raise(vector);
        }
        Ok(())
    }

    /// Completes requests for which events wait.
    fn tell_events(&mut self, bus: &Bus<'_>) -> Result<()> {
        let mut told = false;
        while self.runs()
            && self.has_admin_room()
            && let Some((command, result)) = self.events.next()
        {
            self.add(ADMIN, command, result, Status::SUCCESS);
            told = true;
        }
        if told && self.deliver(bus, ADMIN).is_err() {
            self.set_status(bus, self.status | registers::CSTS_FATAL)?;
        }
        Ok(())
    }
}
