//! One IOMMU of the machine, as `[iommu]` in a machine file or `--iommu` describes it: keys and values, checked.
//!
//! The keys with their values stand in docs/machine.md.

use anyhow::{Context, Result, bail, ensure};
use ioasis_iommufd::{
    Cmdqv, Iommu as Hardware, IommuKind, Iova, IovaRange, ReservedKind, ReservedRegion, Spapr,
};

/// An IOMMU, and what devices behind it cannot use.
#[derive(Clone, Debug)]
pub(crate) struct Iommu {
    pub(crate) hardware: Hardware,
    pub(crate) reserved: Vec<ReservedRegion>,
}

impl Default for Iommu {
    fn default() -> Self {
        Self::of(IommuKind::Vtd)
    }
}

/// What a key takes, for messages.
const KEYS: &[(&str, &str)] = &[
    ("kind", "vtd, amd, smmuv3, riscv or spapr"),
    ("dirty", "on or off"),
    ("coherence", "enforced, cached or none"),
    ("nesting", "on or off"),
    ("ats", "on or off"),
    ("pri", "on or off"),
    ("isolated_msi", "on or off"),
    ("cmdqv", "on or off, on with kind=smmuv3 alone"),
    ("repeat_invalidations", "on or off, on with kind=smmuv3 alone"),
    ("pasid_bits", "a number from 0 to 20"),
    ("page_sizes", "4K and other leaf sizes of the kind, joined by +, as in 4K+2M"),
    ("aperture", "FIRST-LAST in whole pages, as in 0x0-0xffffffff"),
    (
        "reserved",
        "FIRST-LAST:KIND, joined by +, or none; KIND is msi, sw-msi, reserved, direct or direct-relaxable",
    ),
    ("window", "0 or a power of two from 4K to 2G, with kind=spapr alone"),
    ("ddw", "on or off, with kind=spapr alone"),
    ("levels", "a number from 1 to 5, with kind=spapr alone"),
    ("eeh", "on or off, with kind=spapr alone"),
];

/// The keys that a host bridge of POWER has beside those of its own: its driver knows nothing of the others.
const SPAPR: [&str; 7] = ["kind", "page_sizes", "reserved", "window", "ddw", "levels", "eeh"];

use crate::entry::{Entry, meant};

const PAGE: u64 = 4096;

impl Iommu {
    fn of(kind: IommuKind) -> Self {
        let hardware = Hardware::new(kind);
        Self { reserved: hardware.reserved(), hardware }
    }

    /// The IOMMU that `entries` describe, which stands at `place`.
    pub(crate) fn parse(place: &str, entries: &[Entry]) -> Result<Self> {
        let known = KEYS.iter().map(|&(name, _)| name);
        for (index, Entry { key, place, .. }) in entries.iter().enumerate() {
            ensure!(
                known.clone().any(|name| name == key),
                "{place}: an IOMMU has no key {key:?}{}; its keys are {}",
                meant(key, known.clone()),
                known.collect::<Vec<_>>().join(", ")
            );
            ensure!(
                entries[..index].iter().all(|earlier| earlier.key != *key),
                "{place}: {key} is given twice"
            );
        }
        let kind = match entries.iter().find(|entry| entry.key == "kind") {
            Some(entry) => kind(&entry.value).with_context(|| wrong(entry))?,
            None => IommuKind::Vtd,
        };
        let mut iommu = Self::of(kind);
        for entry in entries {
            iommu.set(&entry.key, &entry.value).with_context(|| wrong(entry))?;
        }
        let overlap = iommu.reserved.iter().enumerate().find_map(|(index, region)| {
            let overlaps = |other: &&ReservedRegion| {
                other.range.start() <= region.range.last()
                    && region.range.start() <= other.range.last()
            };
            Some((iommu.reserved[..index].iter().find(overlaps)?.range, region.range))
        });
        if let Some((one, other)) = overlap {
            let entry = entries.iter().find(|entry| entry.key == "reserved");
            let place = entry.map_or(place, |entry| &entry.place);
            bail!(
                "{place}: the reserved ranges {:#x}-{:#x} and {:#x}-{:#x} overlap",
                one.start().0,
                one.last().0,
                other.start().0,
                other.last().0
            );
        }
        Ok(iommu)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let hardware = &mut self.hardware;
        match key {
            "kind" => {}
            _ if hardware.kind == IommuKind::Spapr && !SPAPR.contains(&key) => {
                bail!("kind=spapr has no {key}");
            }
            "window" => of_spapr(hardware)?.window = window(value)?,
            "ddw" => of_spapr(hardware)?.dynamic_windows = switch(value)?,
            "levels" => of_spapr(hardware)?.levels = levels(value)?,
            "eeh" => of_spapr(hardware)?.eeh = switch(value)?,
            "dirty" => hardware.dirty_tracking = switch(value)?,
            "nesting" => hardware.nesting = switch(value)?,
            "ats" => hardware.ats = switch(value)?,
            "pri" => hardware.pri = switch(value)?,
            "isolated_msi" => hardware.isolated_msi = switch(value)?,
            "cmdqv" => {
                let on = switch(value)?;
                ensure!(!on || hardware.kind == IommuKind::Smmuv3, "the kind has no such queues");
                hardware.cmdqv = on.then(Cmdqv::default);
            }
            "repeat_invalidations" => {
                let on = switch(value)?;
                ensure!(!on || hardware.kind == IommuKind::Smmuv3, "the kind loses none");
                hardware.repeat_invalidations = on;
            }
            "coherence" => {
                (hardware.cache_coherent, hardware.enforce_coherency) = match value {
                    "enforced" => (true, true),
                    "cached" => (true, false),
                    "none" => (false, false),
                    _ => bail!("it is none of them"),
                }
            }
            "pasid_bits" => hardware.pasid_bits = pasid_bits(value)?,
            "page_sizes" => hardware.page_sizes = page_sizes(value, hardware.kind)?,
            "aperture" => hardware.aperture = aperture(value, hardware.kind)?,
            "reserved" => self.reserved = regions(value)?,
            _ => unreachable!("keys were checked"),
        }
        Ok(())
    }
}

fn wrong(Entry { key, value, place }: &Entry) -> String {
    let accepted =
        KEYS.iter().find(|&&(name, _)| name == key).map_or("", |&(_, accepted)| accepted);
    format!("{place}: {key}={value:?} is not {accepted}")
}

fn kind(value: &str) -> Result<IommuKind> {
    Ok(match value {
        "vtd" => IommuKind::Vtd,
        "amd" => IommuKind::Amd,
        "smmuv3" => IommuKind::Smmuv3,
        "riscv" => IommuKind::Riscv,
        "spapr" => IommuKind::Spapr,
        _ => bail!("no such kind"),
    })
}

/// A value that is on or off.
pub(crate) fn switch(value: &str) -> Result<bool> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => bail!("it is neither"),
    }
}

/// The width of a PASID.
pub(crate) fn pasid_bits(value: &str) -> Result<u32> {
    let bits = value.parse().context("no number")?;
    ensure!(bits <= 20, "a PASID has at most 20 bits");
    Ok(bits)
}

fn of_spapr(hardware: &mut Hardware) -> Result<&mut Spapr> {
    hardware.spapr.as_mut().context("the kind has no windows")
}

/// The window that is there without being asked for: Linux counts its bytes in 32 bits.
fn window(value: &str) -> Result<u32> {
    if value == "0" {
        return Ok(0);
    }
    let size = u32::try_from(size(value)?).ok().filter(|size| u64::from(*size) >= PAGE);
    size.context("it is less than 4K or more than 2G")
}

fn levels(value: &str) -> Result<u32> {
    let levels = value.parse().context("no number")?;
    ensure!((1..=5).contains(&levels), "tables have at most 5 levels");
    Ok(levels)
}

/// A power of two, with its unit.
fn size(word: &str) -> Result<u64> {
    let (digits, unit) = word.split_at(word.len().saturating_sub(1));
    let lg2 = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => bail!("{word:?} has no unit: K, M, G or T"),
    };
    let count: u64 = digits.parse().with_context(|| format!("{word:?} is no size"))?;
    let size = count.checked_mul(1 << lg2).filter(|size| size.is_power_of_two());
    size.with_context(|| format!("{word:?} is no power of two"))
}

fn page_sizes(value: &str, kind: IommuKind) -> Result<u64> {
    let mut sizes = 0;
    for word in value.split('+') {
        let size = size(word)?;
        ensure!(Hardware::page_sizes_of(kind) & size != 0, "the kind has no leaves of {word}");
        sizes |= size;
    }
    ensure!(sizes & PAGE != 0, "pages of 4K are needed");
    Ok(sizes)
}

fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("{text:?} is no number"))
}

fn range(value: &str) -> Result<IovaRange> {
    let (first, last) = value.split_once('-').context("there is no - in it")?;
    let range = IovaRange::closed(Iova(number(first)?), Iova(number(last)?));
    range.context("it ends before it begins")
}

fn aperture(value: &str, kind: IommuKind) -> Result<IovaRange> {
    let aperture = range(value)?;
    let whole = aperture.start().0.is_multiple_of(PAGE) && aperture.last().0 % PAGE == PAGE - 1;
    ensure!(whole, "it does not begin and end with a page");
    let bits = match kind {
        IommuKind::Amd | IommuKind::Spapr | IommuKind::NoIommu => 64,
        IommuKind::Vtd | IommuKind::Smmuv3 => 48,
        IommuKind::Riscv => 47,
    };
    ensure!(
        bits == 64 || aperture.last().0 >> bits == 0,
        "the kind translates addresses of {bits} bits"
    );
    Ok(aperture)
}

fn regions(value: &str) -> Result<Vec<ReservedRegion>> {
    if value == "none" {
        return Ok(Vec::new());
    }
    let region = |word: &str| {
        let (ends, kind) =
            word.split_once(':').with_context(|| format!("{word:?} has no :KIND"))?;
        let kind = match kind {
            "msi" => ReservedKind::Msi,
            "sw-msi" => ReservedKind::SwMsi,
            "reserved" => ReservedKind::Reserved,
            "direct" => ReservedKind::Direct,
            "direct-relaxable" => ReservedKind::DirectRelaxable,
            _ => bail!("{kind:?} is no kind of region"),
        };
        Ok(ReservedRegion { range: range(ends)?, kind })
    };
    value.split('+').map(region).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry;

    fn parse(text: &str) -> Result<Iommu> {
        let entries = text.split(',').map(|word| entry::of_option("iommu 0", word).expect("a key"));
        Iommu::parse("iommu 0", &entries.collect::<Vec<_>>())
    }

    #[test]
    fn every_key_sets_what_it_names() {
        let iommu = parse(
            "dirty=off,coherence=none,nesting=off,ats=off,pri=off,isolated_msi=off,pasid_bits=8,\
             page_sizes=4K+64K+1G,aperture=0x1000-0xffffffff,reserved=0x8000000-0x80fffff:msi+0-0xfff:direct,kind=smmuv3",
        );
        let Iommu { hardware, reserved } = iommu.unwrap();
        assert_eq!(hardware.kind, IommuKind::Smmuv3);
        let off = [
            hardware.dirty_tracking,
            hardware.cache_coherent,
            hardware.enforce_coherency,
            hardware.nesting,
            hardware.ats,
            hardware.pri,
            hardware.isolated_msi,
        ];
        assert_eq!(off, [false; 7]);
        assert_eq!((hardware.pasid_bits, hardware.page_sizes), (8, 1 << 12 | 1 << 16 | 1 << 30));
        assert_eq!(hardware.aperture, IovaRange::closed(Iova(0x1000), Iova(0xffff_ffff)).unwrap());
        let kinds: Vec<_> =
            reserved.iter().map(|region| (region.range.start().0, region.kind)).collect();
        assert_eq!(kinds, [(0x800_0000, ReservedKind::Msi), (0, ReservedKind::Direct)]);
    }

    #[test]
    fn an_smmu_has_command_queues_for_guests_where_it_is_told_to() {
        let has = |text| parse(text).unwrap().hardware.cmdqv.is_some();
        assert!(has("kind=smmuv3,cmdqv=on") && has("cmdqv=on,kind=smmuv3"));
        assert!(!has("kind=smmuv3") && !has("kind=smmuv3,cmdqv=off") && !has("kind=amd,cmdqv=off"));
    }

    #[test]
    fn a_host_bridge_of_power_has_windows_and_little_else() {
        let text = "kind=spapr,window=1G,ddw=off,levels=3,eeh=off,page_sizes=4K+64K+16M";
        let hardware = parse(text).unwrap().hardware;
        let expected = Spapr { window: 1 << 30, dynamic_windows: false, levels: 3, eeh: false };
        assert_eq!(hardware.spapr, Some(expected));
        assert_eq!(hardware.page_sizes, 1 << 12 | 1 << 16 | 1 << 24);
        let default = parse("kind=spapr").unwrap().hardware;
        assert_eq!((default.spapr, default.pasid_bits), (Some(Spapr::default()), 0));
        for bad in [
            "window=1G",
            "kind=spapr,window=4G",
            "kind=spapr,window=3M",
            "kind=spapr,window=2K",
            "kind=spapr,levels=6",
            "kind=spapr,levels=0",
            "kind=spapr,dirty=on",
            "kind=spapr,aperture=0-0xfff",
            "kind=spapr,page_sizes=4K+8K",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_kind_brings_its_own_regions_along() {
        let starts = |kind| {
            let iommu = parse(kind).unwrap();
            iommu.reserved.iter().map(|region| region.range.start().0).collect::<Vec<_>>()
        };
        assert_eq!(starts("kind=vtd"), [0xfee0_0000]);
        assert_eq!(starts("kind=amd"), [0xfee0_0000, 0xfd_0000_0000]);
        assert_eq!(starts("kind=smmuv3"), [0x800_0000]);
        assert!(starts("kind=riscv").is_empty());
        assert!(starts("kind=amd,reserved=none").is_empty());
    }

    #[test]
    fn an_error_names_key_value_and_what_is_accepted() {
        for (text, message) in [
            ("kind=x", "iommu 0: kind=\"x\" is not vtd, amd, smmuv3, riscv or spapr: no such kind"),
            ("dirty=yes", "iommu 0: dirty=\"yes\" is not on or off: it is neither"),
            (
                "pasid_bits=21",
                "iommu 0: pasid_bits=\"21\" is not a number from 0 to 20: a PASID has at most 20 bits",
            ),
            (
                "page_sizes=2M",
                "iommu 0: page_sizes=\"2M\" is not 4K and other leaf sizes of the kind, joined by +, as in 4K+2M: pages of 4K are needed",
            ),
            (
                "page_sizes=4K+8K",
                "iommu 0: page_sizes=\"4K+8K\" is not 4K and other leaf sizes of the kind, joined by +, as in 4K+2M: the kind has no leaves of 8K",
            ),
            (
                "aperture=0x1000-0x1fffe",
                "iommu 0: aperture=\"0x1000-0x1fffe\" is not FIRST-LAST in whole pages, as in 0x0-0xffffffff: it does not begin and end with a page",
            ),
            (
                "aperture=0-0xffffffffffffffff",
                "iommu 0: aperture=\"0-0xffffffffffffffff\" is not FIRST-LAST in whole pages, as in 0x0-0xffffffff: the kind translates addresses of 48 bits",
            ),
            (
                "cmdqv=on",
                "iommu 0: cmdqv=\"on\" is not on or off, on with kind=smmuv3 alone: the kind has no such queues",
            ),
            ("dirty=on,dirty=off", "iommu 0: dirty is given twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(format!("{error:#}"), message, "{text}");
        }
        assert!(parse("kind=riscv,aperture=0-0xffffffffffff").is_err(), "Sv48 has two halves");
        let unknown = parse("size=3").unwrap_err().to_string();
        assert!(
            unknown.starts_with("iommu 0: an IOMMU has no key \"size\"; its keys are kind, dirty,"),
            "{unknown}"
        );
        for bad in
            ["reserved=1", "reserved=5-1:msi", "reserved=0-1:x", "aperture=x", "page_sizes=K"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
