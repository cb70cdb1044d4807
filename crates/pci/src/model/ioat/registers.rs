//! The registers as a program sees them: where each lies, what a load gives, what a store of some
//! of its bytes means.
//!
//! | offset | bits | register |
//! |---|---|---|
//! | 0x00 | 8 | CHANCNT: 1 channel |
//! | 0x01 | 8 | XFERCAP: log2 of the most bytes of a descriptor |
//! | 0x03 | 8 | INTRCTRL: bit 0 lets interrupts out, bit 3 those of MSI-X; bits 1 and 2 tell of one |
//! | 0x04 | 32 | ATTNSTATUS: bit 0 while the channel's interrupt waits to be armed again |
//! | 0x08 | 8 | CBVER |
//! | 0x10 | 32 | DMACAPABILITY: bit 6, FILL |
//! | 0x80 | 16 | CHANCTRL: bit 0 reads 1 after an interrupt, and storing 1 allows the next one |
//! | 0x82 | 16 | DMA_COMP: as version 2 |
//! | 0x84 | 8 | CHANCMD: bit 2 suspends, bit 5 resets; reads 0 |
//! | 0x86 | 16 | DMACOUNT: descriptors to be done since CHAINADDR was stored, modulo 2^16 |
//! | 0x88 | 64 | CHANSTS: the descriptor done last, and the state in bits 2:0 |
//! | 0x90 | 64 | CHAINADDR: the first descriptor |
//! | 0x98 | 64 | CHANCMP: where CHANSTS is written to for descriptors that ask for it |
//! | 0xa0 | 64 | CDAR: the descriptor that is worked on |
//! | 0xa8 | 32 | CHANERR: storing 1 clears a bit |
//! | 0xac | 32 | CHANERRMSK: errors that raise no interrupt |
//! | 0xb0 | 32 | DCACTRL: kept, means nothing |

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

use super::channel::Channel;

// Registers of the function.
const CHANCNT: usize = 0x00;
const XFERCAP: usize = 0x01;
pub(super) const INTRCTRL: usize = 0x03;
const ATTNSTATUS: usize = 0x04;
const CBVER: usize = 0x08;
const DMACAPABILITY: usize = 0x10;

// Registers of channel 0, which begin at 80h.
pub(super) const CHANCTRL: usize = 0x80;
const DMA_COMP: usize = 0x82;
pub(super) const CHANCMD: usize = 0x84;
pub(super) const DMACOUNT: usize = 0x86;
pub(super) const CHANSTS: usize = 0x88;
pub(super) const CHAINADDR: usize = 0x90;
pub(super) const CHANCMP: usize = 0x98;
const CDAR: usize = 0xa0;
pub(super) const CHANERR: usize = 0xa8;
pub(super) const CHANERRMSK: usize = 0xac;
pub(super) const DCACTRL: usize = 0xb0;

/// Bytes that hold every register; behind them the page reads 0.
const BYTES: usize = 0x100;

/// Bits of INTRCTRL: those that are kept, those that let an interrupt out, those that tell.
const INTRCTRL_MASTER: u8 = 1 << 0;
const INTRCTRL_STATUS: u8 = 1 << 1;
const INTRCTRL_INT: u8 = 1 << 2;
const INTRCTRL_MSIX: u8 = 1 << 3;
/// The only capability that a program asks for: FILL.
const CAPABILITY_FILL: u32 = 1 << 6;
/// DMA_COMP: programs of version 2 find what they know.
const COMPATIBLE_V2: u16 = 1 << 1;

/// A register whose store does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    InterruptControl,
    ChannelControl,
    ChannelCommand,
    Count,
    ChainAddress,
    CompletionAddress,
    Error,
    ErrorMask,
    CacheControl,
}

/// In the order in which a store of several acts.
pub(super) const WRITABLE: [Register; 9] = [
    Register::InterruptControl,
    Register::ChannelControl,
    Register::ChannelCommand,
    Register::ChainAddress,
    Register::Count,
    Register::CompletionAddress,
    Register::Error,
    Register::ErrorMask,
    Register::CacheControl,
];

impl Register {
    /// Where it lies, and how many bytes it has.
    const fn place(self) -> (usize, usize) {
        match self {
            Self::InterruptControl => (INTRCTRL, 1),
            Self::ChannelControl => (CHANCTRL, 2),
            Self::ChannelCommand => (CHANCMD, 1),
            Self::Count => (DMACOUNT, 2),
            Self::ChainAddress => (CHAINADDR, 8),
            Self::CompletionAddress => (CHANCMP, 8),
            Self::Error => (CHANERR, 4),
            Self::ErrorMask => (CHANERRMSK, 4),
            Self::CacheControl => (DCACTRL, 4),
        }
    }

    /// Bits whose store as 1 does something by itself: where they are not stored they count as 0,
    /// whatever a load gives.
    const fn events(self) -> u64 {
        match self {
            Self::ChannelControl => 1,
            Self::ChannelCommand | Self::Error => u64::MAX,
            _ => 0,
        }
    }
}

/// The registers that are not the channel's, and what loads give.
#[derive(Debug)]
pub(super) struct Registers {
    version: u8,
    transfer_lg2: u8,
    interrupt_control: u8,
    image: [u8; BYTES],
    /// What the page held when it was brought to `image` the last time.
    shown: [u8; BYTES],
}

impl Registers {
    pub(super) fn new(version: u8, transfer: u64) -> Self {
        let transfer_lg2 = u8::try_from(transfer.ilog2()).expect("below 64");
        let (image, shown) = ([0; BYTES], [0; BYTES]);
        Self { version, transfer_lg2, interrupt_control: 0, image, shown }
    }

    pub(super) fn version(&self) -> u8 {
        self.version
    }

    /// The page is all zeroes.
    pub(super) fn reset(&mut self) {
        self.interrupt_control = 0;
        self.shown = [0; BYTES];
    }

    pub(super) fn set_interrupt_control(&mut self, value: u64) {
        self.interrupt_control = value.to_le_bytes()[0] & (INTRCTRL_MASTER | INTRCTRL_MSIX);
    }

    /// Drivers that use MSI-X set bit 3, with bit 0 (Linux) or without (its selftests).
    pub(super) fn interrupts_enabled(&self) -> bool {
        self.interrupt_control != 0
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        self.image[offset..offset + value.len()].copy_from_slice(value);
    }

    /// Takes over what the channel is in.
    pub(super) fn refresh(&mut self, channel: &Channel) {
        let attention = channel.wants_attention();
        let mut control = self.interrupt_control;
        if attention {
            control |= INTRCTRL_STATUS;
            if control & INTRCTRL_MASTER != 0 {
                control |= INTRCTRL_INT;
            }
        }
        self.put(CHANCNT, &[1]);
        self.put(XFERCAP, &[self.transfer_lg2]);
        self.put(INTRCTRL, &[control]);
        self.put(ATTNSTATUS, &u32::from(attention).to_le_bytes());
        self.put(CBVER, &[self.version]);
        self.put(DMACAPABILITY, &CAPABILITY_FILL.to_le_bytes());
        self.put(CHANCTRL, &channel.control().to_le_bytes());
        self.put(DMA_COMP, &COMPATIBLE_V2.to_le_bytes());
        self.put(DMACOUNT, &channel.count().to_le_bytes());
        self.put(CHANSTS, &channel.status().to_le_bytes());
        self.put(CHAINADDR, &channel.chain().to_le_bytes());
        self.put(CHANCMP, &channel.completion().to_le_bytes());
        self.put(CDAR, &channel.current().to_le_bytes());
        self.put(CHANERR, &channel.errors().to_le_bytes());
        self.put(CHANERRMSK, &channel.error_mask().to_le_bytes());
        self.put(DCACTRL, &channel.cache_control().to_le_bytes());
    }

    /// A load of `bytes.len()` bytes.
    pub(super) fn load(&self, offset: u64, bytes: &mut [u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let at = usize::try_from(at).ok();
            *byte = at.and_then(|at| self.image.get(at)).copied().unwrap_or(0);
        }
    }

    /// The page as it is now.
    pub(super) fn read_page(&self, page: &Mapping) -> Result<[u8; BYTES]> {
        let mut found = [0; BYTES];
        page.read(0, &mut found)?;
        Ok(found)
    }

    /// What a program stored to `register` of the page since it was shown; `None` when it shows
    /// what it did.
    pub(super) fn stored(&self, register: Register, page: &[u8; BYTES]) -> Option<u64> {
        let (start, width) = register.place();
        let part = start..start + width;
        (page[part.clone()] != self.shown[part.clone()]).then(|| number(&page[part]))
    }

    /// Brings the page to the image: words of it that did not change are left alone, because who is
    /// not trapped may be storing there.
    pub(super) fn show(&mut self, page: &Mapping) -> Result<()> {
        let now = self.read_page(page)?;
        for at in (0..BYTES).step_by(8) {
            let word = at..at + 8;
            if self.image[word.clone()] != now[word.clone()] {
                page.store_u64(at as u64, number(&self.image[word.clone()]))?;
            }
            self.shown[word.clone()].copy_from_slice(&self.image[word]);
        }
        Ok(())
    }

    /// What a store of `bytes` at `offset` makes of `register`; `None` when it does not touch it.
    pub(super) fn merged(&self, register: Register, offset: u64, bytes: &[u8]) -> Option<u64> {
        let (start, width) = register.place();
        let offset = usize::try_from(offset).ok().filter(|&offset| offset < BYTES)?;
        if offset >= start + width || start >= offset + bytes.len() {
            return None;
        }
        let old = number(&self.image[start..start + width]) & !register.events();
        let mut merged = old.to_le_bytes();
        for (at, &byte) in (offset..).zip(bytes) {
            if (start..start + width).contains(&at) {
                merged[at - start] = byte;
            }
        }
        Some(u64::from_le_bytes(merged))
    }
}

fn number(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}
