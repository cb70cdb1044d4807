//! Where the registers lie (82576 data sheet, chapter 8), and the two pages of them whose stores
//! act.

use ioasis_sys::mapping::Mapping;
use ioasis_uapi::Result;

/// BAR of the registers.
pub(super) const BAR: usize = 0;

// General registers, 8.2.
pub(super) const CTRL: u64 = 0x0000;
pub(super) const STATUS: u64 = 0x0008;
pub(super) const EECD: u64 = 0x0010;
pub(super) const EERD: u64 = 0x0014;
pub(super) const MDIC: u64 = 0x0020;
// Interrupts of one vector, 8.8.
pub(super) const ICR: u64 = 0x00c0;
pub(super) const ICS: u64 = 0x00c8;
pub(super) const IMS: u64 = 0x00d0;
pub(super) const IMC: u64 = 0x00d8;
pub(super) const RCTL: u64 = 0x0100;
pub(super) const TCTL: u64 = 0x0400;
pub(super) const EEMNGCTL: u64 = 0x1010;
pub(super) const EEWR: u64 = 0x102c;
// Interrupts of many vectors, 8.8.
pub(super) const GPIE: u64 = 0x1514;
pub(super) const EICS: u64 = 0x1520;
pub(super) const EIMS: u64 = 0x1524;
pub(super) const EIMC: u64 = 0x1528;
pub(super) const EIAC: u64 = 0x152c;
pub(super) const EIAM: u64 = 0x1530;
pub(super) const EICR: u64 = 0x1580;
pub(super) const EITR: u64 = 0x1680;
pub(super) const IVAR: u64 = 0x1700;
pub(super) const IVAR_MISC: u64 = 0x1740;

// Shared pages: what a program stores there is what they hold.
pub(super) const RXPBS: u64 = 0x2404;
pub(super) const TXPBS: u64 = 0x3404;
pub(super) const RLPML: u64 = 0x5004;
pub(super) const MTA: u64 = 0x5200;
pub(super) const VFTA: u64 = 0x5600;
pub(super) const GCR: u64 = 0x5b00;

/// CTRL, 8.2.1.
pub(super) const CTRL_FULL_DUPLEX: u32 = 1 << 0;
pub(super) const CTRL_MASTER_DISABLE: u32 = 1 << 2;
pub(super) const CTRL_LINK_UP: u32 = 1 << 6;
pub(super) const CTRL_RESET: u32 = 1 << 26;
pub(super) const CTRL_VLAN: u32 = 1 << 30;
pub(super) const CTRL_PHY_RESET: u32 = 1 << 31;

/// STATUS, 8.2.2: full duplex at 1000 Mb/s, and that a reset of the function is over.
pub(super) const STATUS_PLAIN: u32 = 1 << 0 | 1 << 7 | 1 << 21;
pub(super) const STATUS_LINK_UP: u32 = 1 << 1;
pub(super) const STATUS_MASTER: u32 = 1 << 19;

/// RCTL, 8.10.1.
pub(super) const RCTL_ENABLE: u32 = 1 << 1;
pub(super) const RCTL_UNICAST: u32 = 1 << 3;
pub(super) const RCTL_MULTICAST: u32 = 1 << 4;
pub(super) const RCTL_LONG: u32 = 1 << 5;
pub(super) const RCTL_LOOPBACK_SHIFT: u32 = 6;
pub(super) const RCTL_OFFSET_SHIFT: u32 = 12;
pub(super) const RCTL_BROADCAST: u32 = 1 << 15;
pub(super) const RCTL_BUFFER_SHIFT: u32 = 16;
pub(super) const RCTL_VLAN_FILTER: u32 = 1 << 18;
pub(super) const RCTL_STRIP_CRC: u32 = 1 << 26;

/// TCTL, 8.12.1.
pub(super) const TCTL_ENABLE: u32 = 1 << 1;
pub(super) const TCTL_PAD: u32 = 1 << 3;

/// EEMNGCTL, 8.4.4: the configuration of both ports is done.
const CONFIGURED: u32 = 1 << 18 | 1 << 19;
/// EEWR: a write of the EEPROM is over.
pub(super) const WRITTEN: u32 = 1 << 1;
/// GCR, 8.6.1: what a completion timeout does; kept.
const GCR_VALUE: u32 = 1 << 16;

/// The pages whose stores act.
pub(super) const ACTING: u64 = 0x2000;
const WORDS: usize = (ACTING / 4) as usize;

/// The registers of the acting pages as loads give them.
#[derive(Debug)]
pub(super) struct Registers {
    words: Box<[u32; WORDS]>,
}

impl Default for Registers {
    fn default() -> Self {
        Self { words: Box::new([0; WORDS]) }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset / 4).expect("inside the acting pages")
}

impl Registers {
    pub(super) fn get(&self, offset: u64) -> u32 {
        self.words[index(offset)]
    }

    /// Sets what a load gives, in the page too.
    pub(super) fn set(&mut self, page: &Mapping, offset: u64, value: u32) -> Result<()> {
        self.words[index(offset)] = value;
        page.store_u32(offset & !3, value)
    }

    /// Power-on values of those that are not zero and not somebody else's.
    pub(super) fn reset(&mut self, page: &Mapping) -> Result<()> {
        self.words.fill(0);
        for (offset, value) in [(CTRL, CTRL_FULL_DUPLEX), (EEMNGCTL, CONFIGURED), (EEWR, WRITTEN)] {
            self.set(page, offset, value)?;
        }
        for (offset, value) in [(RXPBS, 0x40), (TXPBS, 0x28), (GCR, GCR_VALUE)] {
            page.store_u32(offset, value)?;
        }
        Ok(())
    }

    /// What a store of `bytes` at `offset` makes of the dword there.
    pub(super) fn merged(&self, offset: u64, bytes: &[u8]) -> u32 {
        let start = usize::try_from(offset & 3).expect("below 4");
        let mut word = self.get(offset).to_le_bytes();
        if !adds(offset & !3) {
            word[start..start + bytes.len()].copy_from_slice(bytes);
            return u32::from_le_bytes(word);
        }
        // Bits that are not stored change nothing.
        word.fill(0);
        word[start..start + bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(word)
    }

    /// What was stored to the page past the calls: offsets and values that differ from what it
    /// showed.
    pub(super) fn stored_past(&self, page: &Mapping) -> Result<Vec<(u64, u32)>> {
        let mut bytes = vec![0; 4 * WORDS];
        page.read(0, &mut bytes)?;
        let words =
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("4")));
        let differ = words.enumerate().filter(|&(at, word)| self.words[at] != word);
        Ok(differ.map(|(at, word)| (4 * at as u64, word)).collect())
    }
}

/// Whether a store of ones does something by itself.
fn adds(offset: u64) -> bool {
    matches!(offset, ICR | ICS | IMS | IMC | EICS | EIMS | EIMC | EICR)
}
