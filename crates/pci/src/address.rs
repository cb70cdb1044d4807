//! Where a function sits: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function, printed as Linux prints it: `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    domain: u16,
    bus: u8,
    /// Device in bits 7:3, function in bits 2:0 (PCI Express 6.0, 2.2.6.2).
    devfn: u8,
}

impl Bdf {
    /// The address, or `None` when `device` is over 31 or `function` over 7.
    #[must_use]
    pub const fn new(domain: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self { domain, bus, devfn: device << 3 | function })
    }

    /// The PCI domain (segment).
    #[must_use]
    pub const fn domain(self) -> u16 {
        self.domain
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// The function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function in one byte, as VFIO's hot-reset structures carry them.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// The address `distance` routing IDs further on the same bus; `None` past its end.
    #[must_use]
    pub const fn beyond(self, distance: u16) -> Option<Self> {
        let devfn = self.devfn as u32 + distance as u32;
        if devfn > u8::MAX as u32 {
            return None;
        }
        Some(Self { devfn: (devfn & 0xff) as u8, ..self })
    }

    /// The requester ID that the function's DMA carries: bus in the high byte, device and function in the low.
    #[must_use]
    pub const fn requester_id(self) -> u16 {
        (self.bus as u16) << 8 | self.devfn as u16
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, .. } = self;
        write!(f, "{domain:04x}:{bus:02x}:{:02x}.{}", self.device(), self.function())
    }
}

/// A text that is no PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address is written DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, like 0000:01:00.0")]
pub struct NotAnAddress;

impl FromStr for Bdf {
    type Err = NotAnAddress;

    /// Accepts `0000:01:00.0` and, for domain 0, `01:00.0`.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        fn hex(digits: &str, width: usize) -> Result<u16, NotAnAddress> {
            if digits.len() != width || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(NotAnAddress);
            }
            u16::from_str_radix(digits, 16).map_err(|_| NotAnAddress)
        }
        let (rest, function) = text.rsplit_once('.').ok_or(NotAnAddress)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(NotAnAddress)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let byte = |value: u16| u8::try_from(value).map_err(|_| NotAnAddress);
        let (bus, device) = (byte(hex(bus, 2)?)?, byte(hex(device, 2)?)?);
        Self::new(hex(domain, 4)?, bus, device, byte(hex(function, 1)?)?).ok_or(NotAnAddress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_is_printed() {
        let address = Bdf::new(0x12, 0xfe, 31, 7).expect("in range");
        assert_eq!(address.to_string(), "0012:fe:1f.7");
        assert_eq!("0012:fe:1f.7".parse(), Ok(address));
        assert_eq!("fe:1f.7".parse::<Bdf>().map(Bdf::domain), Ok(0));
        assert_eq!(address.requester_id(), 0xfeff);
    }

    #[test]
    fn a_malformed_address_is_refused() {
        for text in [
            "",
            "01:00",
            "0000:01:20.0",
            "0000:01:00.8",
            "0:1:0.0",
            "0000:01:+1.0",
            "00000:01:00.0",
        ] {
            assert_eq!(text.parse::<Bdf>(), Err(NotAnAddress), "{text:?}");
        }
    }
}
