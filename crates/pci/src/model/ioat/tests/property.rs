//! Random chains and random stores, against an engine that has no registers page, no polls and no
//! buffer.

use proptest::prelude::*;

use super::rig::{COMPLETION, MEMORY, MEMORY_BYTES, RING, Rig, slot};
use crate::model::ioat::descriptor::{self, Descriptor};

/// Descriptors in the ring.
const SLOTS: usize = 6;
/// The most bytes of a descriptor here.
const TRANSFER: u32 = 4096;
/// Data that the naive engine knows of: the end of memory, so that what is behind it cannot be
/// reached.
const BYTES: usize = 0x4000;
const DATA: u64 = MEMORY + (MEMORY_BYTES - BYTES) as u64;

/// What a driver does.
#[derive(Clone, Debug)]
enum Act {
    Write(usize, Descriptor),
    Arm(usize),
    /// So many more than before.
    Count(u16),
    Suspend,
    Reset,
    ClearErrors,
    Rearm,
}

/// The engine, from its description alone.
#[derive(Debug)]
struct Naive {
    ring: [Descriptor; SLOTS],
    data: Vec<u8>,
    state: u64,
    next: u64,
    last: u64,
    count: u16,
    done: u16,
    error: bool,
    completion: u64,
    completion_set: bool,
    disabled: bool,
    interrupts: usize,
}

impl Naive {
    fn new() -> Self {
        Self {
            ring: [Descriptor::default(); SLOTS],
            data: vec![0; BYTES],
            state: 3,
            next: 0,
            last: 0,
            count: 0,
            done: 0,
            error: false,
            completion: 0,
            completion_set: true,
            disabled: false,
            interrupts: 0,
        }
    }

    fn inside(&self, address: u64, length: u32) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(address.checked_sub(DATA)?).ok()?;
        let end = start.checked_add(length as usize)?;
        (end <= BYTES).then_some(start..end)
    }

    /// Whether the descriptor could be done.
    fn transfer(&mut self, descriptor: &Descriptor) -> bool {
        let length = descriptor.length;
        let null = descriptor.control & descriptor::NULL != 0;
        let operation = descriptor.control >> 24;
        if operation > 1 || length == 0 || length > TRANSFER {
            return false;
        }
        if operation == 0 && null {
            return true;
        }
        let source = self.inside(descriptor.source, length).filter(|_| operation == 0);
        if operation == 0 && source.is_none() {
            return false;
        }
        let Some(destination) = self.inside(descriptor.destination, length) else { return false };
        let bytes: Vec<u8> = match source {
            Some(source) => self.data[source].to_vec(),
            None => {
                let pattern = descriptor.source.to_le_bytes();
                (0..length as usize).map(|at| pattern[at % 8]).collect()
            }
        };
        self.data[destination].copy_from_slice(&bytes);
        true
    }

    fn run(&mut self) {
        while self.state == 0 {
            let index = (0..SLOTS).find(|&index| slot(index) == self.next);
            let Some(descriptor) = index.map(|index| self.ring[index]) else {
                return self.halt();
            };
            if !self.transfer(&descriptor) {
                return self.halt();
            }
            (self.last, self.next) = (self.next, descriptor.next);
            self.done = self.done.wrapping_add(1);
            self.state = u64::from(self.done == self.count);
            if descriptor.control & descriptor::COMPLETION != 0 {
                if !self.completion_set {
                    (self.state, self.error) = (3, true);
                } else {
                    self.completion = self.last | self.state;
                }
            }
            if descriptor.control & descriptor::INTERRUPT != 0 && !self.disabled {
                self.disabled = true;
                self.interrupts += 1;
            }
        }
    }

    fn halt(&mut self) {
        (self.state, self.error) = (3, true);
        if self.completion_set {
            self.completion = self.last | 3;
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Write(index, descriptor) => self.ring[index] = descriptor,
            Act::Arm(index) => {
                self.next = slot(index);
                (self.last, self.count, self.done) = (0, 0, 0);
                if !self.error {
                    self.state = 4;
                }
            }
            Act::Count(more) => {
                self.count = self.count.wrapping_add(more);
                if [0, 1, 4].contains(&self.state) && self.count != self.done {
                    self.state = 0;
                }
                self.run();
            }
            Act::Suspend if self.state <= 1 => self.state = 2,
            Act::Suspend => {}
            Act::Reset => {
                self.state = 3;
                (self.last, self.count, self.done) = (0, 0, 0);
                self.completion_set = false;
            }
            Act::ClearErrors => {
                self.error = false;
                self.completion_set = true;
            }
            Act::Rearm => self.disabled = false,
        }
    }
}

fn address() -> impl Strategy<Value = u64> {
    let limit = BYTES as u64;
    prop_oneof![
        8 => (0..limit).prop_map(|at| DATA + at),
        1 => Just(0),
        1 => Just(u64::MAX - 100),
        1 => Just(DATA + limit - 8),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let length = prop_oneof![8 => 1..=TRANSFER, 1 => Just(0), 1 => Just(TRANSFER + 1)];
    let operation = prop_oneof![6 => 0..2_u32, 1 => Just(0x87), 1 => Just(2)];
    let next = prop_oneof![9 => (0..SLOTS).prop_map(slot), 1 => Just(RING + 32), 1 => Just(0)];
    (length, operation, any::<u8>(), address(), address(), next).prop_map(
        |(length, operation, flags, source, destination, next)| Descriptor {
            length,
            // NULL rarely, or little is copied.
            control: operation << 24 | u32::from(flags & if flags > 0xe0 { 0x3f } else { 0x1f }),
            source,
            destination,
            next,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (0..SLOTS, descriptor()).prop_map(|(index, descriptor)| Act::Write(index, descriptor)),
        4 => (0..SLOTS).prop_map(Act::Arm),
        8 => (0..40_u16).prop_map(Act::Count),
        1 => Just(Act::Suspend),
        1 => Just(Act::Reset),
        2 => Just(Act::ClearErrors),
        2 => Just(Act::Rearm),
    ]
}

fn play(rig: &mut Rig, act: &Act, count: u16) {
    match *act {
        Act::Write(index, descriptor) => rig.memory.put(slot(index), &descriptor.encode()),
        Act::Arm(index) => rig.arm(slot(index)),
        Act::Count(more) => rig.count(count.wrapping_add(more)),
        Act::Suspend => rig.suspend(),
        Act::Reset => rig.reset(),
        Act::ClearErrors => {
            rig.store(0xa8, &[0xff; 4]);
            rig.store(0x98, &COMPLETION.to_le_bytes());
        }
        Act::Rearm => rig.control(0x0d),
    }
    rig.poll();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_chain_ends_as_the_description_says(acts in prop::collection::vec(act(), 1..60)) {
        let mut rig = Rig::ready(&[("transfer", "4K")]);
        let mut naive = Naive::new();
        rig.memory.set_read_only_from(u64::MAX);
        rig.control(0x0c);
        for act in &acts {
            play(&mut rig, act, naive.count);
            naive.act(act);
            prop_assert_eq!(rig.status(), naive.last | naive.state, "after {:x?}", act);
            prop_assert_eq!(rig.errors() != 0, naive.error);
            prop_assert_eq!(rig.completion(), naive.completion);
        }
        prop_assert_eq!(rig.raised(), naive.interrupts);
        prop_assert!(rig.memory.get(DATA, BYTES) == naive.data, "the same bytes");
    }
}
