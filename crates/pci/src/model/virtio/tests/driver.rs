//! A driver's side: registers by trapped accesses, and a virtqueue in the fake memory.

use std::ops::{Deref, DerefMut};

use crate::fake::Rig;
use crate::model::create;
use crate::model::virtio::feature;
use crate::model::virtio::registers;

/// Where the fake memory begins, and how much there is.
pub(in crate::model::virtio) const MEMORY: u64 = 0x10_0000;
pub(in crate::model::virtio) const MEMORY_BYTES: usize = 16 << 20;
/// Queues lie from here on, 64 KiB each; data after them.
const QUEUES: u64 = MEMORY;
pub(in crate::model::virtio) const DATA: u64 = MEMORY + (8 << 20);

/// A buffer of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::model::virtio) enum Piece {
    /// The device may read it.
    Out(u64, u32),
    /// The device may write it.
    In(u64, u32),
}

/// A queue as the driver has it.
#[derive(Clone, Debug)]
pub(in crate::model::virtio) struct Ring {
    pub(in crate::model::virtio) index: u16,
    pub(in crate::model::virtio) size: u16,
    pub(in crate::model::virtio) descriptors: u64,
    pub(in crate::model::virtio) driver: u64,
    pub(in crate::model::virtio) device: u64,
    available: u16,
    used: u16,
    next: u16,
}

/// A device with a driver that has negotiated.
#[derive(Debug)]
pub(in crate::model::virtio) struct Driver {
    rig: Rig,
    pub(in crate::model::virtio) rings: Vec<Ring>,
}

impl Deref for Driver {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.rig
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut Rig {
        &mut self.rig
    }
}

pub(in crate::model::virtio) const ALL: u64 = u64::MAX;

impl Driver {
    /// The device of a model, reset.
    pub(in crate::model::virtio) fn new(model: &str, options: &[(&str, &str)]) -> Self {
        let owned: Vec<_> =
            options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let model = create(model, &owned).expect("good options");
        Self { rig: Rig::new(model, MEMORY, MEMORY_BYTES), rings: Vec::new() }
    }

    pub(in crate::model::virtio) fn common(&mut self, offset: u64, length: usize) -> u64 {
        let mut bytes = [0; 8];
        self.rig.load(registers::BAR, registers::COMMON + offset, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    }

    pub(in crate::model::virtio) fn set_common(&mut self, offset: u64, value: u64, length: usize) {
        let bytes = value.to_le_bytes();
        self.rig.store(registers::BAR, registers::COMMON + offset, &bytes[..length]);
    }

    pub(in crate::model::virtio) fn status(&mut self) -> u8 {
        self.common(registers::DEVICE_STATUS, 1).to_le_bytes()[0]
    }

    pub(in crate::model::virtio) fn offered(&mut self) -> u64 {
        let mut half = |select| {
            self.set_common(registers::DEVICE_FEATURE_SELECT, select, 4);
            self.common(registers::DEVICE_FEATURE, 4)
        };
        half(0) | half(1) << 32
    }

    /// Accepts the bits offered that are among `wanted`, up to FEATURES_OK; answers the status
    /// then.
    pub(in crate::model::virtio) fn negotiate(&mut self, wanted: u64) -> u8 {
        let features = self.offered() & wanted;
        self.accept(features)
    }

    pub(in crate::model::virtio) fn accept(&mut self, features: u64) -> u8 {
        for status in [0, 1, 3] {
            self.set_common(registers::DEVICE_STATUS, status, 1);
        }
        for (select, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set_common(registers::DRIVER_FEATURE_SELECT, select, 4);
            self.set_common(registers::DRIVER_FEATURE, half, 4);
        }
        self.set_common(registers::DEVICE_STATUS, 11, 1);
        self.status()
    }

    /// Makes queue `index` with `size` entries and vector `index`, and lets it run.
    pub(in crate::model::virtio) fn make(&mut self, index: u16, size: u16) {
        let base = QUEUES + u64::from(index) * 0x1_0000;
        let (descriptors, driver, device) = (base, base + 0x2000, base + 0x4000);
        self.rig.memory.put(base, &[0; 0x8000]);
        self.set_common(registers::QUEUE_SELECT, index.into(), 2);
        self.set_common(registers::QUEUE_SIZE, size.into(), 2);
        self.set_common(registers::QUEUE_MSIX_VECTOR, index.into(), 2);
        let areas = [
            (registers::QUEUE_DESC, descriptors),
            (registers::QUEUE_DRIVER, driver),
            (registers::QUEUE_DEVICE, device),
        ];
        for (register, address) in areas {
            self.set_common(register, address, 8);
        }
        self.set_common(registers::QUEUE_ENABLE, 1, 2);
        self.adopt(index, size, [descriptors, driver, device]);
    }

    /// Works with a queue that was set up.
    pub(in crate::model::virtio) fn adopt(&mut self, index: u16, size: u16, areas: [u64; 3]) {
        let [descriptors, driver, device] = areas;
        let (available, used, next) = (0, 0, 0);
        self.rings.retain(|ring| ring.index != index);
        self.rings.push(Ring { index, size, descriptors, driver, device, available, used, next });
        self.rings.sort_by_key(|ring| ring.index);
    }

    pub(in crate::model::virtio) fn run(&mut self) {
        self.set_common(registers::DEVICE_STATUS, 15, 1);
    }

    /// A device with MSI-X that runs, with queue 0 of 16 entries.
    pub(in crate::model::virtio) fn running(
        model: &str,
        options: &[(&str, &str)],
        wanted: u64,
    ) -> Self {
        let mut driver = Self::new(model, options);
        driver.enable_msix();
        assert_eq!(driver.negotiate(wanted | feature::VERSION_1) & 8, 8, "it accepts");
        driver.make(0, 16);
        driver.run();
        driver
    }

    fn ring(&mut self, index: u16) -> &mut Ring {
        self.rings.iter_mut().find(|ring| ring.index == index).expect("a queue that was made")
    }

    /// Writes a chain into the table, without making it available; answers its head.
    pub(in crate::model::virtio) fn chain(&mut self, queue: u16, pieces: &[Piece]) -> u16 {
        let ring = self.ring(queue).clone();
        let count = u16::try_from(pieces.len()).expect("a short chain");
        assert!(count <= ring.size, "it fits");
        let place = |step: u16| (ring.next + step) % ring.size;
        for (step, piece) in (0..).zip(pieces) {
            let more = step + 1 < count;
            let bytes = descriptor(*piece, more.then(|| place(step + 1)));
            self.memory.put(ring.descriptors + 16 * u64::from(place(step)), &bytes);
        }
        self.ring(queue).next = place(count);
        ring.next
    }

    /// Makes a chain available.
    pub(in crate::model::virtio) fn offer(&mut self, queue: u16, head: u16) {
        let ring = self.ring(queue).clone();
        let at = ring.driver + 4 + 2 * u64::from(ring.available % ring.size);
        self.memory.put(at, &head.to_le_bytes());
        let next = ring.available.wrapping_add(1);
        self.memory.put(ring.driver + 2, &next.to_le_bytes());
        self.ring(queue).available = next;
    }

    /// Notifies the device of a queue, as a mapped store does.
    pub(in crate::model::virtio) fn kick(&mut self, queue: u16) {
        let at = registers::NOTIFY + registers::NOTIFY_STRIDE * u64::from(queue);
        self.pages(registers::BAR).write(at, &queue.to_le_bytes()).expect("mapped");
    }

    /// Makes chains available, notifies, and polls.
    pub(in crate::model::virtio) fn submit(&mut self, queue: u16, chains: &[&[Piece]]) {
        for pieces in chains {
            let head = self.chain(queue, pieces);
            self.offer(queue, head);
        }
        self.kick(queue);
        self.poll();
    }

    /// What the device gave back since this was last asked: heads and lengths.
    pub(in crate::model::virtio) fn used(&mut self, queue: u16) -> Vec<(u32, u32)> {
        let ring = self.ring(queue).clone();
        let word = self.memory.get(ring.device + 2, 2);
        let index = u16::from_le_bytes([word[0], word[1]]);
        let mut found = Vec::new();
        let mut at = ring.used;
        while at != index {
            let entry = self.memory.get(ring.device + 4 + 8 * u64::from(at % ring.size), 8);
            let half = |from: usize| {
                u32::from_le_bytes(entry[from..from + 4].try_into().expect("four bytes"))
            };
            found.push((half(0), half(4)));
            at = at.wrapping_add(1);
        }
        self.ring(queue).used = at;
        found
    }
}

/// A descriptor, with the next one of its chain.
pub(in crate::model::virtio) fn descriptor(piece: Piece, next: Option<u16>) -> [u8; 16] {
    let (address, length, write) = match piece {
        Piece::Out(address, length) => (address, length, 0),
        Piece::In(address, length) => (address, length, 2),
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12] = write | u8::from(next.is_some());
    bytes[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
    bytes
}
