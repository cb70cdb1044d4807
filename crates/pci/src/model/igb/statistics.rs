//! The statistics registers (82576 data sheet, 8.19), each of which a load clears.

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

/// The page they lie in.
pub(super) const FIRST: u64 = 0x4000;
pub(super) const END: u64 = 0x5000;
const WORDS: usize = 0x60;

const RECEIVED: Direction = Direction {
    sizes: 0x405c,
    good: 0x4074,
    broadcast: 0x4078,
    multicast: 0x407c,
    good_octets: 0x4088,
    octets: 0x40c0,
    packets: 0x40d0,
    host: 0x4104,
    host_octets: 0x4128,
};
const SENT: Direction = Direction {
    sizes: 0x40d8,
    good: 0x4080,
    broadcast: 0x40f4,
    multicast: 0x40f0,
    good_octets: 0x4090,
    octets: 0x40c8,
    packets: 0x40d4,
    host: 0x4118,
    host_octets: 0x4130,
};
const MISSED: u64 = 0x4010;
const NO_BUFFER: u64 = 0x40a0;
const OVERSIZE: u64 = 0x40ac;
/// Bytes of the frame check sequence, which count.
const CHECK: u64 = 4;

/// Where the counters of a direction lie.
struct Direction {
    /// Frames of 64, up to 127, 255, 511, 1023 bytes, and longer ones.
    sizes: u64,
    good: u64,
    broadcast: u64,
    multicast: u64,
    good_octets: u64,
    octets: u64,
    packets: u64,
    host: u64,
    host_octets: u64,
}

/// The counters since the last load of each.
#[derive(Debug)]
pub(super) struct Statistics {
    words: [u32; WORDS],
    dirty: bool,
}

impl Default for Statistics {
    fn default() -> Self {
        Self { words: [0; WORDS], dirty: false }
    }
}

fn index(offset: u64) -> Option<usize> {
    usize::try_from(offset.checked_sub(FIRST)? / 4).ok().filter(|&index| index < WORDS)
}

impl Statistics {
    fn add(&mut self, offset: u64, more: u64) {
        if let Some(index) = index(offset) {
            // 8.19: most stick at their largest value.
            let sum = u64::from(self.words[index]) + more;
            self.words[index] = u32::try_from(sum).unwrap_or(u32::MAX);
            self.dirty = true;
        }
    }

    fn add_wide(&mut self, offset: u64, more: u64) {
        let Some(index) = index(offset) else { return };
        let old = u64::from(self.words[index]) | u64::from(self.words[index + 1]) << 32;
        let sum = old.wrapping_add(more);
        self.words[index] = u32::try_from(sum & 0xffff_ffff).expect("32 bits");
        self.words[index + 1] = u32::try_from(sum >> 32).expect("32 bits");
        self.dirty = true;
    }

    fn count(&mut self, direction: &Direction, frame: &[u8]) {
        let length = frame.len() as u64 + CHECK;
        let class = match length {
            0..=64 => 0,
            65..=127 => 1,
            128..=255 => 2,
            256..=511 => 3,
            512..=1023 => 4,
            _ => 5,
        };
        self.add(direction.sizes + 4 * class, 1);
        for once in [direction.good, direction.packets, direction.host] {
            self.add(once, 1);
        }
        match frame.get(..6) {
            Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => self.add(direction.broadcast, 1),
            Some([first, ..]) if first & 1 != 0 => self.add(direction.multicast, 1),
            _ => {}
        }
        for octets in [direction.good_octets, direction.octets, direction.host_octets] {
            self.add_wide(octets, length);
        }
    }

    pub(super) fn received(&mut self, frame: &[u8]) {
        self.count(&RECEIVED, frame);
    }

    pub(super) fn sent(&mut self, frame: &[u8]) {
        self.count(&SENT, frame);
    }

    pub(super) fn missed(&mut self) {
        self.add(MISSED, 1);
    }

    pub(super) fn no_buffer(&mut self) {
        self.add(NO_BUFFER, 1);
    }

    pub(super) fn oversize(&mut self) {
        self.add(OVERSIZE, 1);
    }

    /// What a load of the dword at `offset` gives.
    pub(super) fn peek(&self, offset: u64) -> u32 {
        index(offset).map_or(0, |index| self.words[index])
    }

    /// Clears the dword at `offset`, which was loaded.
    pub(super) fn take(&mut self, offset: u64) {
        if let Some(index) = index(offset) {
            self.words[index] = 0;
            self.dirty = true;
        }
    }

    /// Shows them to those whose loads are of memory.
    pub(super) fn show(&mut self, page: &Mapping) -> Result<()> {
        if std::mem::take(&mut self.dirty) {
            let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
            page.write(FIRST, &bytes)?;
        }
        Ok(())
    }
}
