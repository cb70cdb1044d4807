//! The PHY behind MDIC (82576 data sheet, 8.2.4 and 3.5), and the EEPROM behind EECD and EERD (3.3,
//! 6).

/// The PHY's address on its bus.
const ADDRESS: u32 = 1;
const READY: u32 = 1 << 28;
const ERROR: u32 = 1 << 30;
const OPERATION_WRITE: u32 = 1;
const OPERATION_READ: u32 = 2;

// IEEE 802.3, clause 22, and the registers of this PHY.
const CONTROL: usize = 0;
const STATUS: usize = 1;
const PAGE_SELECT: usize = 31;
const CONTROL_RESET: u16 = 1 << 15;
const CONTROL_LOOPBACK: u16 = 1 << 14;
const CONTROL_RESTART: u16 = 1 << 9;
/// Auto-negotiation, full duplex, 1000 Mb/s.
const CONTROL_VALUE: u16 = 1 << 12 | 1 << 8 | 1 << 6;
/// Every speed, auto-negotiation possible and done.
const STATUS_VALUE: u16 = 0x7969;
const STATUS_LINK: u16 = 1 << 2;

/// Values after a reset: identity, abilities of both ends, 1000 Mb/s with a good partner, and the
/// port's own status.
const VALUES: [(usize, u16); 11] = [
    (CONTROL, CONTROL_VALUE),
    (2, 0x02a8),
    (3, 0x0391),
    (4, 0x0de1),
    (5, 0xcde1),
    (6, 0x000f),
    (9, 0x0f00),
    (10, 0x7c00),
    (15, 0x3000),
    (17, 0xc400),
    (18, 0x0046),
];
/// What registers of other pages give: a short cable, to those that measure its length.
const OTHER_PAGE: u16 = 0x0a00;

/// The PHY.
#[derive(Debug)]
pub(super) struct Phy {
    registers: [u16; 32],
    link: bool,
}

impl Phy {
    pub(super) fn new(link: bool) -> Self {
        let mut phy = Self { registers: [0; 32], link };
        phy.reset();
        phy
    }

    pub(super) fn reset(&mut self) {
        self.registers = [0; 32];
        for (register, value) in VALUES {
            self.registers[register] = value;
        }
    }

    /// Whether what is sent comes back.
    pub(super) fn loops_back(&self) -> bool {
        self.registers[CONTROL] & CONTROL_LOOPBACK != 0
    }

    /// What MDIC holds after a store of `command`.
    pub(super) fn command(&mut self, command: u32) -> u32 {
        let register = (command >> 16 & 0x1f) as usize;
        let kept = command & !(READY | ERROR);
        if command >> 21 & 0x1f != ADDRESS {
            return kept | READY | ERROR;
        }
        match command >> 26 & 3 {
            OPERATION_WRITE => {
                self.write(register, u16::try_from(command & 0xffff).expect("16 bits"));
                kept | READY
            }
            OPERATION_READ => kept & !0xffff | u32::from(self.read(register)) | READY,
            _ => kept | READY | ERROR,
        }
    }

    fn read(&self, register: usize) -> u16 {
        let other = self.registers[PAGE_SELECT] >> 5 != 0;
        match register {
            PAGE_SELECT => self.registers[PAGE_SELECT],
            _ if other => OTHER_PAGE,
            STATUS => STATUS_VALUE | if self.link { STATUS_LINK } else { 0 },
            _ => self.registers[register],
        }
    }

    fn write(&mut self, register: usize, value: u16) {
        let other = self.registers[PAGE_SELECT] >> 5 != 0;
        match register {
            PAGE_SELECT => self.registers[PAGE_SELECT] = value,
            _ if other => {}
            CONTROL if value & CONTROL_RESET != 0 => self.reset(),
            CONTROL => self.registers[CONTROL] = value & !CONTROL_RESTART,
            STATUS | 2 | 3 | 5 | 6 | 10 | 15 | 17 => {}
            _ => self.registers[register] = value,
        }
    }
}

/// EECD, 8.4.1: there is an EEPROM, of 1024 words, and it was read; who asks for it has it.
const EECD_VALUE: u32 = 1 << 8 | 1 << 9 | 4 << 11;
const EECD_REQUEST: u32 = 1 << 6;
const EECD_GRANT: u32 = 1 << 7;
/// EERD, 8.4.2.
const READ_START: u32 = 1 << 0;
const READ_DONE: u32 = 1 << 1;

/// Words that have a meaning, the last of which makes the sum of all.
const WORDS: usize = 0x40;
const SUM: u16 = 0xbaba;
/// What a word that nobody wrote holds.
const BLANK: u16 = 0xffff;

/// The EEPROM.
#[derive(Debug)]
pub(super) struct Eeprom {
    words: [u16; WORDS],
}

impl Eeprom {
    pub(super) fn new(mac: [u8; 6]) -> Self {
        let mut words = [BLANK; WORDS];
        for (word, pair) in words.iter_mut().zip(mac.chunks_exact(2)) {
            *word = u16::from_le_bytes([pair[0], pair[1]]);
        }
        // Compatibility, LEDs and flow control as they come.
        for plain in [3, 4, 0x0f] {
            words[plain] = 0;
        }
        let sum = words[..WORDS - 1].iter().fold(0_u16, |sum, &word| sum.wrapping_add(word));
        words[WORDS - 1] = SUM.wrapping_sub(sum);
        Self { words }
    }

    /// What EECD holds after a store of `value`.
    pub(super) fn control(value: u32) -> u32 {
        let granted = if value & EECD_REQUEST != 0 { EECD_REQUEST | EECD_GRANT } else { 0 };
        EECD_VALUE | granted
    }

    /// What EERD holds after a store of `value`.
    pub(super) fn read(&self, value: u32) -> u32 {
        if value & READ_START == 0 {
            return value;
        }
        let address = (value >> 2 & 0x3fff) as usize;
        let word = self.words.get(address).copied().unwrap_or(BLANK);
        value & 0xfffc | READ_DONE | u32::from(word) << 16
    }
}
