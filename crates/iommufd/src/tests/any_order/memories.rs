//! The memory of the clients and of the file: what is in it at the beginning, and the model's
//! arrays of its bytes.
//!
//! Fresh memory costs more than a sequence of calls, so a thread uses the same again for its next
//! sequence.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::model::{CONTEXTS, GUEST_PAGES, LENGTH, PAGE, TABLE_PAGES, TABLES};
use super::step::Space;
use super::system::{ARG, BASE, base_of};
use crate::Memory;

const PAGE_SIZE: usize = 4096;

/// A byte array; copies share the pages that neither of them writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bytes(Rc<Vec<Rc<[u8; PAGE_SIZE]>>>);

impl Bytes {
    pub(super) fn byte(&self, at: usize) -> u8 {
        self.0[at / PAGE_SIZE][at % PAGE_SIZE]
    }

    /// Bytes that lie in one page.
    pub(super) fn part(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at / PAGE_SIZE][at % PAGE_SIZE..][..length]
    }

    /// Bytes that lie in one page.
    pub(super) fn part_mut(&mut self, at: usize, length: usize) -> &mut [u8] {
        let page = &mut Rc::make_mut(&mut self.0)[at / PAGE_SIZE];
        &mut Rc::make_mut(page)[at % PAGE_SIZE..][..length]
    }
}

pub(super) type AllBytes = BTreeMap<Space, Bytes>;

const SPACES: [Space; 3] = [Space::User(0), Space::User(1), Space::File];
const ARGUMENT_LENGTH: usize = 4 * PAGE_SIZE;

#[derive(Clone, Debug)]
pub(super) struct Memories {
    pub(super) users: [Memory; CONTEXTS],
    pub(super) arguments: [Memory; CONTEXTS],
    pub(super) file: Memory,
}

thread_local! {
    static BEGINNING: AllBytes = Memories::filled().bytes();
    /// Memory that holds what it holds at the beginning.
    static STOCK: RefCell<Vec<Memories>> = RefCell::default();
}

/// What is in memory at the beginning.
pub(super) fn beginning() -> AllBytes {
    BEGINNING.with(Clone::clone)
}

impl Memories {
    pub(super) fn empty() -> Self {
        let length = usize::try_from(LENGTH).unwrap();
        Self {
            users: std::array::from_fn(|_| Memory::new(BASE, length).unwrap()),
            arguments: std::array::from_fn(|_| Memory::new(ARG, ARGUMENT_LENGTH).unwrap()),
            file: Memory::new(0, length).unwrap(),
        }
    }

    /// With every page marked, and the client's own tables.
    fn filled() -> Self {
        let memories = Self::empty();
        for (space, mark) in SPACES.into_iter().zip(1..) {
            let memory = memories.of(space);
            for page in 0..LENGTH / PAGE {
                let bytes = [page.to_le_bytes()[0], mark, 0x5a, 0xa5];
                memory.write(base_of(space) + page * PAGE, &bytes).unwrap();
                memory.write(base_of(space) + page * PAGE + 2048, &bytes).unwrap();
            }
            if let Space::User(_) = space {
                write_tables(memory);
            }
        }
        memories
    }

    /// As at the beginning.
    pub(super) fn take() -> Self {
        STOCK.with_borrow_mut(Vec::pop).unwrap_or_else(Self::filled)
    }

    /// Keeps memory in which there is what `bytes` say for another sequence.
    pub(super) fn keep(self, bytes: &AllBytes) {
        for (space, first) in &beginning() {
            let pages = first.0.iter().zip(bytes[space].0.iter());
            for (at, (page, _)) in pages.enumerate().filter(|(_, (page, now))| page != now) {
                let address = base_of(*space) + (at * PAGE_SIZE) as u64;
                self.of(*space).write(address, &page[..]).unwrap();
            }
        }
        let zeroes = [0; ARGUMENT_LENGTH];
        self.arguments.iter().for_each(|argument| argument.write(ARG, &zeroes).unwrap());
        STOCK.with_borrow_mut(|stock| stock.push(self));
    }

    pub(super) fn of(&self, space: Space) -> &Memory {
        match space {
            Space::User(client) => &self.users[client],
            Space::File => &self.file,
        }
    }

    fn read_page(&self, space: Space, at: usize, page: &mut [u8; PAGE_SIZE]) {
        self.of(space).read(base_of(space) + (at * PAGE_SIZE) as u64, page).unwrap();
    }

    pub(super) fn bytes(&self) -> AllBytes {
        let read = |space| {
            let pages = (0..usize::try_from(LENGTH / PAGE).unwrap())
                .map(|at| {
                    let mut page = [0; PAGE_SIZE];
                    self.read_page(space, at, &mut page);
                    Rc::new(page)
                })
                .collect();
            (space, Bytes(Rc::new(pages)))
        };
        SPACES.map(read).into_iter().collect()
    }

    /// Whether there is in it what `bytes` say.
    pub(super) fn check(&self, bytes: &AllBytes) -> Result<(), TestCaseError> {
        let mut now = [0; PAGE_SIZE];
        for (space, bytes) in bytes {
            for (at, page) in bytes.0.iter().enumerate() {
                self.read_page(*space, at, &mut now);
                prop_assert!(now == **page, "memory {:?} page {}", space, at);
            }
        }
        Ok(())
    }
}

/// Tables of each architecture that show guest page n at `GUEST` + n pages, in pages from `TABLES`
/// on.
fn write_tables(memory: &Memory) {
    let zeroes = [0; 4096];
    for page in TABLES..TABLES + TABLE_PAGES {
        memory.write(BASE + page * PAGE, &zeroes).unwrap();
    }
    let word = |page: u64, index: u64, word: u64| {
        memory.write(BASE + (TABLES + page) * PAGE + index * 8, &word.to_le_bytes()).unwrap();
    };
    let table = |page: u64| (TABLES + page) * PAGE;
    // x86-64: present, writable, user.
    word(0, 0, table(1) | 7);
    word(1, 0, table(2) | 7);
    word(2, 2, table(3) | 7);
    // AMD's GCR3 table, and an SMMU's context descriptor.
    word(4, 0, table(0) | 1);
    word(5, 0, 1 << 31 | 1 << 41 | 16);
    word(5, 1, table(6));
    word(6, 0, table(7) | 3);
    word(7, 0, table(8) | 3);
    word(8, 2, table(9) | 3);
    for page in 0..GUEST_PAGES {
        word(3, page, (page * PAGE) | 7);
        // Arm: accessed, accessible without privilege, valid page.
        word(9, page, (page * PAGE) | (1 << 10) | (1 << 6) | 3);
    }
}
