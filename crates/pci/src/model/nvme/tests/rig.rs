//! A driver's side of the controller: memory, queues, and a controller that is polled by hand.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

use crate::bus::{Bus, Dma, Irq, Session, Wires};
use crate::fake::{Interrupts, Memory, Told};
use crate::gate::Permissions;
use crate::migration::{Reader, Writer};
use crate::model::nvme::admin;
use crate::model::nvme::command::{COMMAND_BYTES, COMPLETION_BYTES, Command};
use crate::model::nvme::registers::{ACQ, AQA, ASQ, CC, CSTS, doorbells};
use crate::model::{Model, Progress, create};
use crate::refusal::Witness;

/// Where the fake memory begins, and how much there is.
pub(super) const MEMORY: u64 = 0x10_0000;
pub(super) const MEMORY_BYTES: usize = 16 << 20;
/// Reads work here and writes fault.
pub(super) const READ_ONLY: u64 = MEMORY + 15 * (1 << 20);

pub(super) const PAGE: u64 = 4096;
const ADMIN_SUBMISSION: u64 = MEMORY;
const ADMIN_COMPLETION: u64 = MEMORY + 4 * PAGE;
const IO_QUEUES: u64 = MEMORY + 16 * PAGE;
/// Memory that no queue uses.
pub(super) const DATA: u64 = MEMORY + (1 << 20);

/// CC: enabled, entries of 64 and 16 bytes, pages of 4 KiB.
pub(super) const CC_ENABLE: u32 = 0x0046_0001;

/// A completion as the driver reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) result: u32,
    pub(super) head: u16,
    pub(super) queue: u16,
    pub(super) id: u16,
    /// Code type and code.
    pub(super) status: u16,
}

#[derive(Debug)]
struct Pair {
    submission: u64,
    completion: u64,
    submission_entries: u32,
    completion_entries: u32,
    tail: u32,
    head: u32,
    phase: bool,
    completion_id: u16,
}

/// A controller, and a driver for it.
#[derive(Debug)]
pub(super) struct Rig {
    model: Box<dyn Model>,
    pub(super) memory: Arc<Memory>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) told: Arc<Told>,
    pub(super) pages: Arc<Mapping>,
    session: Session,
    wires: Wires,
    pairs: Vec<Option<Pair>>,
    next_id: u16,
    image: PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The image is of no use after the test; it may be gone already.
        let _ = std::fs::remove_file(&self.image);
    }
}

/// A path for an image of its own.
pub(in crate::model) fn image_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("ioasis-nvme-{}-{number}", std::process::id()))
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl Rig {
    /// A controller with a 1 MiB image and 8 queues, reset, not enabled.
    pub(super) fn new(options: &[(&str, &str)]) -> Self {
        let given = options.iter().find(|(name, _)| *name == "image");
        let image = given.map_or_else(image_path, |(_, path)| PathBuf::from(path));
        let mut all = owned(&[("image", image.to_str().expect("a plain path"))]);
        for default in [("size", "1M"), ("queues", "8")] {
            if !options.iter().any(|(name, _)| *name == default.0) {
                all.extend(owned(&[default]));
            }
        }
        all.extend(owned(options).into_iter().filter(|(name, _)| name != "image"));
        if options.iter().any(|(name, _)| *name == "ro") {
            std::fs::write(&image, vec![0x5a; 1 << 20]).expect("an image");
        }
        let model = create("nvme", &all).expect("good options");
        let pages = Arc::new(Mapping::anonymous(16 << 10).expect("memory"));
        let memory = Arc::new(Memory::new(MEMORY, MEMORY_BYTES));
        memory.set_read_only_from(READ_ONLY);
        let interrupts = Arc::new(Interrupts::default());
        let dma: Arc<dyn Dma> = Arc::<Memory>::clone(&memory);
        let irq: Arc<dyn Irq> = Arc::<Interrupts>::clone(&interrupts);
        let told = Arc::new(Told::default());
        let witness: Arc<dyn Witness> = Arc::<Told>::clone(&told);
        let shared = [Some(Arc::clone(&pages)), None, None, None, None, None];
        let session = Session { dma, irq, witness, pages: shared, doorbells: None };
        let wires = Wires::new(&model.description());
        wires.gate.set(Permissions { master: true, memory: true, ..Permissions::default() });
        let mut rig = Self {
            model,
            memory,
            interrupts,
            told,
            pages,
            session,
            wires,
            pairs: Vec::new(),
            next_id: 0x40,
            image,
        };
        rig.model.reset(&Bus::new(&rig.session, &rig.wires)).expect("pages are there");
        rig
    }

    /// The same, enabled.
    pub(super) fn enabled(options: &[(&str, &str)]) -> Self {
        let mut rig = Self::new(options);
        rig.enable();
        rig
    }

    /// The same, with I/O queue pair 1 of 16 entries and vector 1.
    pub(super) fn with_queue(options: &[(&str, &str)]) -> Self {
        let mut rig = Self::enabled(options);
        rig.make_pair(1, 16, 1);
        rig
    }

    pub(super) fn enable(&mut self) {
        self.pages.store_u32(AQA, 15 << 16 | 15).expect("mapped");
        self.pages.store_u64(ASQ, ADMIN_SUBMISSION).expect("mapped");
        self.pages.store_u64(ACQ, ADMIN_COMPLETION).expect("mapped");
        self.memory.put(ADMIN_COMPLETION, &[0; 16 * COMPLETION_BYTES]);
        self.pages.store_u32(CC, CC_ENABLE).expect("mapped");
        self.poll();
        assert_eq!(self.csts(), 1, "the controller is ready");
        self.pairs.clear();
        self.pairs.resize_with(9, || None);
        self.pairs[0] = Some(Pair::new(ADMIN_SUBMISSION, ADMIN_COMPLETION, [16, 16], 0));
    }

    pub(super) fn csts(&self) -> u32 {
        self.pages.load_u32(CSTS).expect("mapped")
    }

    pub(super) fn image(&self) -> Vec<u8> {
        std::fs::read(&self.image).expect("the image is readable")
    }

    pub(super) fn put_image(&self, offset: u64, bytes: &[u8]) {
        let file = std::fs::File::options().write(true).open(&self.image).expect("writable");
        file.write_all_at(bytes, offset).expect("written");
    }

    pub(super) fn cut_image(&self, length: u64) {
        let file = std::fs::File::options().write(true).open(&self.image).expect("writable");
        file.set_len(length).expect("cut");
    }

    pub(super) fn allow(&self, permissions: Permissions) {
        self.wires.gate.set(permissions);
    }

    /// Polls until there is nothing to do.
    pub(super) fn poll(&mut self) {
        let bus = Bus::new(&self.session, &self.wires);
        while self.model.poll(&bus).expect("pages are there") == Progress::Worked {}
    }

    /// A store of a program that is trapped.
    pub(super) fn store(&mut self, offset: u64, bytes: &[u8]) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.store(&bus, 0, offset, bytes).expect("pages are there");
    }

    /// A load of one dword of a program that is trapped.
    pub(super) fn load(&mut self, offset: u64) -> u32 {
        let bus = Bus::new(&self.session, &self.wires);
        let mut bytes = [0; 4];
        self.model.load(&bus, 0, offset, &mut bytes).expect("pages are there");
        u32::from_le_bytes(bytes)
    }

    /// What a program that unmasks the pin sets off.
    pub(super) fn update_line(&mut self) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.update_line(&bus).expect("pages are there");
    }

    /// Calls `f` with the bus the controller sees.
    pub(super) fn bus<T>(&self, f: impl FnOnce(&Bus<'_>) -> T) -> T {
        f(&Bus::new(&self.session, &self.wires))
    }

    /// The state of the controller.
    pub(super) fn save(&mut self) -> Vec<u8> {
        let bus = Bus::new(&self.session, &self.wires);
        let mut state = Writer::default();
        self.model.migration().expect("it migrates").save(&bus, &mut state).expect("pages");
        state.into_bytes()
    }

    /// Becomes a controller of such a state.
    pub(super) fn load_state(&mut self, state: &[u8]) -> Result<()> {
        let bus = Bus::new(&self.session, &self.wires);
        let migration = self.model.migration().expect("it migrates");
        migration.load(&bus, 1, &mut Reader::new(state))
    }

    /// What a controller does that was loaded and goes on.
    pub(super) fn remind(&mut self) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.migration().expect("it migrates").remind(&bus).expect("pages are there");
    }

    /// Gives the image to whoever takes it.
    pub(super) fn hand_over(&mut self) {
        self.model.migration().expect("it migrates").hand_over().expect("all is written");
    }

    pub(super) fn image_path(&self) -> &str {
        self.image.to_str().expect("a plain path")
    }

    pub(super) fn poll_once(&mut self) {
        let bus = Bus::new(&self.session, &self.wires);
        self.model.poll(&bus).expect("pages are there");
    }

    /// As another run that has the same memory and the same image sees it.
    pub(super) fn moved(&mut self) {
        let state = self.save();
        let bus = Bus::new(&self.session, &self.wires);
        self.model.reset(&bus).expect("pages are there");
        self.load_state(&state).expect("its own state");
        assert_eq!(self.save(), state, "the state is the same");
    }

    /// Puts commands into a queue and rings its doorbell, without polling.
    pub(super) fn submit(&mut self, queue: u16, commands: &[Command]) -> Vec<u16> {
        let mut ids = Vec::new();
        for command in commands {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            ids.push(id);
            let pair = self.pair(queue);
            let at = pair.submission + u64::from(pair.tail) * COMMAND_BYTES as u64;
            pair.tail = (pair.tail + 1) % pair.submission_entries;
            self.memory.put(at, &Command { id, ..*command }.encode());
        }
        let tail = self.pair(queue).tail;
        self.pages.store_u32(doorbells(queue), tail).expect("mapped");
        ids
    }

    /// The completions that arrived in a queue's completion queue, taken off it.
    pub(super) fn answers(&mut self, queue: u16) -> Vec<Answer> {
        let mut answers = Vec::new();
        let memory = Arc::clone(&self.memory);
        let pair = self.pair(queue);
        loop {
            let at = pair.completion + u64::from(pair.head) * COMPLETION_BYTES as u64;
            let entry = memory.get(at, COMPLETION_BYTES);
            let word = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
            if (word(14) & 1 != 0) != pair.phase {
                break;
            }
            pair.head = (pair.head + 1) % pair.completion_entries;
            pair.phase ^= pair.head == 0;
            answers.push(Answer {
                result: u32::from_le_bytes(entry[..4].try_into().expect("four bytes")),
                head: word(8),
                queue: word(10),
                id: word(12),
                status: word(14) >> 1 & 0x7ff,
            });
        }
        let (head, id) = (pair.head, pair.completion_id);
        self.pages.store_u32(doorbells(id) + 4, head).expect("mapped");
        answers
    }

    /// Does commands and answers with their completions in the order of submission.
    pub(super) fn run(&mut self, queue: u16, commands: &[Command]) -> Vec<Answer> {
        let ids = self.submit(queue, commands);
        self.poll();
        let answers = self.answers(queue);
        assert_eq!(answers.iter().map(|answer| answer.id).collect::<Vec<_>>(), ids);
        assert!(answers.iter().all(|answer| answer.queue == queue), "the queue is named");
        answers
    }

    /// Does one command.
    pub(super) fn one(&mut self, queue: u16, command: Command) -> Answer {
        self.run(queue, &[command])[0]
    }

    /// The status of one command.
    pub(super) fn status(&mut self, queue: u16, command: Command) -> u16 {
        self.one(queue, command).status
    }

    /// Makes completion and submission queue `id` through admin commands.
    pub(super) fn make_pair(&mut self, id: u16, entries: u32, vector: u16) {
        let base = IO_QUEUES + u64::from(id) * 20 * PAGE;
        let (completion, submission) = (base, base + 4 * PAGE);
        self.memory.put(completion, &vec![0; entries as usize * COMPLETION_BYTES]);
        let size = (entries - 1) << 16 | u32::from(id);
        let make = |opcode, prp1, word| Command {
            opcode,
            prp1,
            words: [size, word, 0, 0, 0, 0],
            ..Command::default()
        };
        let queue = make(admin::CREATE_COMPLETION_QUEUE, completion, u32::from(vector) << 16 | 3);
        assert_eq!(self.status(0, queue), 0);
        let queue = make(admin::CREATE_SUBMISSION_QUEUE, submission, u32::from(id) << 16 | 1);
        assert_eq!(self.status(0, queue), 0);
        self.pairs[usize::from(id)] =
            Some(Pair::new(submission, completion, [entries, entries], id));
    }

    fn pair(&mut self, queue: u16) -> &mut Pair {
        self.pairs[usize::from(queue)].as_mut().expect("a queue that was made")
    }

    pub(super) fn raised(&self) -> Vec<u16> {
        std::mem::take(&mut self.interrupts.raised.lock())
    }
}

impl Pair {
    fn new(submission: u64, completion: u64, entries: [u32; 2], completion_id: u16) -> Self {
        let [submission_entries, completion_entries] = entries;
        let (tail, head, phase) = (0, 0, true);
        Self {
            submission,
            completion,
            submission_entries,
            completion_entries,
            tail,
            head,
            phase,
            completion_id,
        }
    }
}

/// Read, Write or Compare of `blocks` blocks from `lba`, data from `prps`.
pub(super) fn transfer(opcode: u8, lba: u64, blocks: u32, prps: [u64; 2]) -> Command {
    let [low, high] = [lba & 0xffff_ffff, lba >> 32].map(|half| u32::try_from(half).expect("half"));
    Command {
        opcode,
        namespace: 1,
        prp1: prps[0],
        prp2: prps[1],
        words: [low, high, blocks - 1, 0, 0, 0],
        ..Command::default()
    }
}

/// An admin command with a data page at [`DATA`].
pub(super) fn with_data(opcode: u8, namespace: u32, words: [u32; 6]) -> Command {
    Command { opcode, namespace, prp1: DATA, words, ..Command::default() }
}
