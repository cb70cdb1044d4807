//! What happens to a frame on its way: padding, check sequence, checksums that the program left to
//! the device, and tags.

/// Bytes of the shortest frame without its check sequence (IEEE 802.3, 3.2.8).
const SHORTEST: usize = 60;
/// Where the type field of an untagged frame lies, and the type of a tag.
const TYPE: usize = 12;
pub(super) const TAG: u16 = 0x8100;

/// A word of a frame in network order.
fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

pub(super) fn pad(frame: &mut Vec<u8>) {
    if frame.len() < SHORTEST {
        frame.resize(SHORTEST, 0);
    }
}

/// The check sequence (IEEE 802.3, 3.2.9), as it lies behind a frame.
pub(super) fn check_sequence(frame: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for &byte in frame {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

/// The tag of a tagged frame, taken out of it.
pub(super) fn take_tag(frame: &mut Vec<u8>) -> Option<u16> {
    let tag = tag(frame)?;
    frame.drain(TYPE..TYPE + 4);
    Some(tag)
}

/// The tag of a tagged frame.
pub(super) fn tag(frame: &[u8]) -> Option<u16> {
    (word(frame, TYPE)? == TAG).then(|| word(frame, TYPE + 2)).flatten()
}

pub(super) fn put_tag(frame: &mut Vec<u8>, tag: u16) {
    if frame.len() >= TYPE {
        let bytes = [TAG.to_be_bytes(), tag.to_be_bytes()].concat();
        frame.splice(TYPE..TYPE, bytes);
    }
}

/// The ones' complement sum of `bytes` (RFC 1071), added to `sum`.
fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn folded(sum: u32) -> u16 {
    u16::try_from(((sum & 0xffff) + (sum >> 16)) & 0xffff).expect("16 bits")
}

/// What a context descriptor says of the headers (82576 data sheet, 7.2.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) ethernet: usize,
    pub(super) internet: usize,
    pub(super) is_version_4: bool,
    pub(super) transport: Transport,
    pub(super) tag: u16,
}

/// The protocol whose checksum is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Transport {
    #[default]
    Udp,
    Tcp,
    Other,
}

impl Context {
    pub(super) fn decode(bytes: &[u8; 16]) -> Self {
        let dword = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let (lengths, kinds) = (dword(0), dword(8));
        Self {
            internet: (lengths & 0x1ff) as usize,
            ethernet: (lengths >> 9 & 0x7f) as usize,
            tag: u16::try_from(lengths >> 16).expect("16 bits"),
            is_version_4: kinds & 1 << 10 != 0,
            transport: match kinds >> 11 & 3 {
                0 => Transport::Udp,
                1 => Transport::Tcp,
                _ => Transport::Other,
            },
        }
    }

    /// Puts the checksum of the IPv4 header in. A frame that has none is left as it is.
    pub(super) fn check_internet(&self, frame: &mut [u8]) {
        let Some(header) = frame.get_mut(self.ethernet..self.ethernet + self.internet) else {
            return;
        };
        if !self.is_version_4 || header.len() < 20 {
            return;
        }
        header[10..12].fill(0);
        let sum = !folded(add(0, header));
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    /// Puts the checksum of the transport header in. What lies in its place is the sum of the
    /// pseudo header, as the program has to leave it (7.2.5).
    pub(super) fn check_transport(&self, frame: &mut [u8]) {
        let place = match self.transport {
            Transport::Udp => 6,
            Transport::Tcp => 16,
            Transport::Other => return,
        };
        let Some(segment) = frame.get_mut(self.ethernet + self.internet..) else { return };
        let Some(_) = segment.get(place + 1) else { return };
        let mut sum = !folded(add(0, segment));
        if sum == 0 && self.transport == Transport::Udp {
            sum = 0xffff;
        }
        segment[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
