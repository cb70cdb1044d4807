//! Module parameters: what /sys/module/MODULE/parameters/NAME shows and takes. Linux:
//! `kernel/params.c`. And which Linux it is whose rules hold.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ioasis_uapi::Result;

/// A Linux whose rules a machine can follow. docs/uapi.md lists where they differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Linux {
    /// 7.2.
    V7_2,
    /// 7.3, the newest.
    #[default]
    V7_3,
}

/// Module parameters that the core reads, each at the moment Linux reads it.
#[derive(Debug)]
pub struct Params {
    /// `vfio_iommu_type1.allow_unsafe_interrupts`: whether groups whose interrupts are not isolated
    /// may be attached.
    pub allow_unsafe_interrupts: AtomicBool,
    /// `vfio_iommu_type1.dma_entry_limit`: mappings a container may have, read at SET_IOMMU.
    pub dma_entry_limit: AtomicU32,
    /// `vfio_iommu_type1.disable_hugepages`: MAP_DMA uses no leaf larger than a page.
    pub disable_hugepages: AtomicBool,
    /// `vfio.enable_unsafe_noiommu_mode`.
    pub enable_unsafe_noiommu_mode: AtomicBool,
    /// `iommufd.allow_unsafe_interrupts`: the same for devices that are bound to an iommufd.
    pub iommufd_allow_unsafe_interrupts: AtomicBool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            allow_unsafe_interrupts: AtomicBool::new(false),
            dma_entry_limit: AtomicU32::new(u32::from(u16::MAX)),
            disable_hugepages: AtomicBool::new(false),
            enable_unsafe_noiommu_mode: AtomicBool::new(false),
            iommufd_allow_unsafe_interrupts: AtomicBool::new(false),
        }
    }
}

/// One parameter.
#[derive(Clone, Copy, Debug)]
pub enum Param<'a> {
    /// Y or N.
    Bool(&'a AtomicBool),
    /// A number.
    Uint(&'a AtomicU32),
}

impl Params {
    /// Module and name of every parameter.
    pub const NAMES: [(&'static str, &'static str); 5] = [
        ("vfio_iommu_type1", "allow_unsafe_interrupts"),
        ("vfio_iommu_type1", "dma_entry_limit"),
        ("vfio_iommu_type1", "disable_hugepages"),
        ("vfio", "enable_unsafe_noiommu_mode"),
        ("iommufd", "allow_unsafe_interrupts"),
    ];

    /// The parameter `name` of `module`.
    #[must_use]
    pub fn named(&self, module: &str, name: &str) -> Option<Param<'_>> {
        Some(match (module, name) {
            ("vfio_iommu_type1", "allow_unsafe_interrupts") => {
                Param::Bool(&self.allow_unsafe_interrupts)
            }
            ("vfio_iommu_type1", "dma_entry_limit") => Param::Uint(&self.dma_entry_limit),
            ("vfio_iommu_type1", "disable_hugepages") => Param::Bool(&self.disable_hugepages),
            ("vfio", "enable_unsafe_noiommu_mode") => Param::Bool(&self.enable_unsafe_noiommu_mode),
            ("iommufd", "allow_unsafe_interrupts") => {
                Param::Bool(&self.iommufd_allow_unsafe_interrupts)
            }
            _ => return None,
        })
    }
}

impl Param<'_> {
    /// What a read gives.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Bool(flag) => if flag.load(Ordering::Relaxed) { "Y\n" } else { "N\n" }.to_owned(),
            Self::Uint(number) => format!("{}\n", number.load(Ordering::Relaxed)),
        }
    }

    /// What a write of `text` does.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what is no value of the parameter, `ERANGE` for a number that is too large.
    pub fn set(self, text: &[u8]) -> Result<()> {
        match self {
            Self::Bool(flag) => flag.store(parse_bool(text)?, Ordering::Relaxed),
            Self::Uint(number) => number.store(parse_uint(text)?, Ordering::Relaxed),
        }
        Ok(())
    }
}

/// `kstrtobool` (lib/kstrtox.c): the first characters decide.
fn parse_bool(text: &[u8]) -> Result<bool> {
    match text.first().map(u8::to_ascii_lowercase) {
        Some(b'e' | b'y' | b't' | b'1') => return Ok(true),
        Some(b'd' | b'n' | b'f' | b'0') => return Ok(false),
        Some(b'o') => match text.get(1).map(u8::to_ascii_lowercase) {
            Some(b'n') => return Ok(true),
            Some(b'f') => return Ok(false),
            _ => {}
        },
        _ => {}
    }
    refuse!(EINVAL, "the parameter is Y or N")
}

/// `kstrtouint` with base 0 (lib/kstrtox.c): decimal, 0x or 0; one plus sign before and one newline
/// after.
fn parse_uint(text: &[u8]) -> Result<u32> {
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let text = text.strip_suffix(b"\n").unwrap_or(text).to_ascii_lowercase();
    let (digits, radix) = match text.as_slice() {
        [b'0', b'x', first, ..] if first.is_ascii_hexdigit() => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text.as_slice(), 10),
    };
    let is_number =
        !digits.is_empty() && digits.iter().all(|&digit| char::from(digit).is_digit(radix));
    let number = std::str::from_utf8(digits).ok().filter(|_| is_number);
    let Some(number) = number else { return refuse!(EINVAL, "the parameter is a number") };
    match u32::from_str_radix(number, radix) {
        Ok(number) => Ok(number),
        Err(_) => refuse!(ERANGE, "the number does not fit 32 bits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_uapi::Errno;

    #[test]
    fn every_name_leads_to_a_parameter_of_its_own() {
        let params = Params::default();
        for (module, name) in Params::NAMES {
            let all = || {
                Params::NAMES
                    .map(|(module, name)| params.named(module, name).expect("it has a name").text())
            };
            let before = all();
            params.named(module, name).expect("it has a name").set(b"1").expect("a value");
            let changed = before.iter().zip(all()).filter(|(old, new)| *old != new).count();
            assert_eq!(changed, 1, "{module}.{name}");
        }
        assert!(params.named("vfio", "allow_unsafe_interrupts").is_none());
    }

    #[test]
    fn a_flag_is_read_by_its_first_characters() {
        let flag = AtomicBool::new(false);
        for (text, value) in [
            ("Y\n", true),
            ("f", false),
            ("on", true),
            ("OFF\n", false),
            ("1x", true),
            ("dis", false),
            ("E", true),
        ] {
            Param::Bool(&flag).set(text.as_bytes()).expect(text);
            assert_eq!(flag.load(Ordering::Relaxed), value, "{text}");
        }
        for text in ["", "o", "2", " y"] {
            let refused = Param::Bool(&flag).set(text.as_bytes());
            assert_eq!(refused.map_err(|error| error.errno), Err(Errno::EINVAL), "{text:?}");
        }
        assert_eq!(Param::Bool(&flag).text(), "Y\n");
    }

    #[test]
    fn a_number_is_decimal_octal_or_hexadecimal() {
        let number = AtomicU32::new(0);
        for (text, value) in
            [("10\n", 10), ("0x1F", 31), ("010", 8), ("+7", 7), ("0", 0), ("4294967295", u32::MAX)]
        {
            Param::Uint(&number).set(text.as_bytes()).expect(text);
            assert_eq!(number.load(Ordering::Relaxed), value, "{text}");
        }
        for (text, errno) in [
            ("", Errno::EINVAL),
            ("-1", Errno::EINVAL),
            ("0x", Errno::EINVAL),
            ("08", Errno::EINVAL),
            ("1 ", Errno::EINVAL),
            ("+-1", Errno::EINVAL),
            ("4294967296", Errno::ERANGE),
        ] {
            let refused = Param::Uint(&number).set(text.as_bytes());
            assert_eq!(refused.map_err(|error| error.errno), Err(errno), "{text:?}");
        }
    }
}
