//! The machine a client sees: what `--device` and the machine file say, checked and placed.
//!
//! docs/machine.md says what a machine file can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ioasis_iommufd::{IommuKind, Linux};
use ioasis_pci::{Bdf, ModelInfo};

use crate::entry::{self, Entry, File, Section, meant, split_at_commas};
use crate::iommu::{self, Iommu};

/// Options that are paths; in a machine file they are relative to it.
const PATHS: [&str; 2] = ["image", "socket"];

/// The machine as described, every device placed.
#[derive(Debug, Default)]
pub(crate) struct Description {
    /// At least one after [`Description::place`].
    pub(crate) iommus: Vec<Iommu>,
    /// In the order given: machine file first, then the command line.
    pub(crate) devices: Vec<Device>,
    /// Names of modules, with a parameter given for each.
    pub(crate) parameters: Vec<(String, Entry)>,
    /// Whose rules hold where those of two kernels differ.
    pub(crate) linux: Linux,
}

/// One device, as far as the user described it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Name of the model.
    pub(crate) model: String,
    /// Where it sits; the lowest free bus from 1, device 0, function 0 unless given.
    pub(crate) address: Option<Bdf>,
    /// Its IOMMU group; the lowest free number from 1 unless given.
    pub(crate) group: Option<u32>,
    /// Index of its IOMMU; where it has none, of the one it would be behind.
    pub(crate) iommu: usize,
    /// Width of the PASIDs it sends, 0 for none.
    pub(crate) pasid_bits: u32,
    /// Translates ahead (ATS); what it takes to ask for pages.
    pub(crate) ats: bool,
    /// Asks for pages that are not there (PRI).
    pub(crate) pri: bool,
    /// The driver it starts with, if that is not vfio-pci; "none" for none.
    pub(crate) driver: Option<String>,
    /// How it reaches memory.
    pub(crate) translation: Translation,
    /// How many of its virtual functions are there from the start.
    pub(crate) numvfs: u16,
    /// The model's own options, in the order given.
    pub(crate) options: Vec<(String, String)>,
    /// Where the device was described.
    pub(crate) place: String,
    /// Where its model and each of its options was.
    places: Vec<(String, String)>,
}

/// How a device reaches memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Translation {
    /// Through its IOMMU.
    #[default]
    Iommu,
    /// Not at all: its group is a no-iommu group.
    None,
    /// By its driver, which pins pages or copies: it does no DMA.
    Emulated,
}

/// Keys that every device has beside its model's options, with what each sets.
pub(crate) const KEYS: [(&str, &str); 8] = [
    ("address", "where it sits: 0000:01:00.0 (default: the lowest free bus from 1)"),
    ("group", "its IOMMU group: a number (default: the lowest free from 1)"),
    ("iommu", "the IOMMU it is behind: a number from 0, none, or emulated (default: 0)"),
    ("pasid_bits", "width of the PASIDs it sends: 0 to 20 (default: 0)"),
    ("ats", "translates ahead: on or off (default: off)"),
    (
        "driver",
        "the driver it starts with: vfio-pci, none, or another's name, which does nothing (default: vfio-pci)",
    ),
    ("pri", "asks for pages that are not there: on or off, needs ats (default: off)"),
    ("numvfs", "virtual functions that are there from the start: a number (default: 0)"),
];

impl Device {
    /// The device of kind `model` that `entries` describe.
    fn new(model: &str, place: &str, entries: &[Entry]) -> Result<Self> {
        let mut device =
            Self { model: model.to_owned(), place: place.to_owned(), ..Self::default() };
        for (index, entry) in entries.iter().enumerate() {
            let Entry { key, place, .. } = entry;
            let earlier = entries[..index].iter().find(|earlier| earlier.key == *key);
            ensure!(earlier.is_none(), "{place}: {key} is given twice");
            device.set(entry)?;
        }
        Ok(device)
    }

    /// Takes one entry: the machine's own keys, and the model's options.
    fn set(&mut self, Entry { key, value, place }: &Entry) -> Result<()> {
        let wrong = |accepted: &str| format!("{place}: {key}={value:?} is not {accepted}");
        let number = || wrong("a number");
        match key.as_str() {
            "address" => {
                self.address =
                    Some(value.parse().with_context(|| wrong("an address as 0000:01:00.0"))?);
            }
            "group" => self.group = Some(value.parse().with_context(number)?),
            "iommu" => {
                let kinds = || wrong("a number, none or emulated");
                (self.iommu, self.translation) = behind(value).with_context(kinds)?;
            }
            "pasid_bits" => {
                let width = || wrong("a number from 0 to 20");
                self.pasid_bits = iommu::pasid_bits(value).with_context(width)?;
            }
            "numvfs" => {
                self.numvfs = value.parse().with_context(number)?;
                self.places.push((key.clone(), place.clone()));
            }
            "ats" => self.ats = iommu::switch(value).with_context(|| wrong("on or off"))?,
            "driver" => {
                let is_name = !value.is_empty()
                    && value
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
                ensure!(is_name, wrong("the name of a driver, or none"));
                self.driver = Some(value.clone()).filter(|name| name != "vfio-pci");
            }
            "pri" => self.pri = iommu::switch(value).with_context(|| wrong("on or off"))?,
            _ => {
                self.options.push((key.clone(), value.clone()));
                self.places.push((key.clone(), place.clone()));
            }
        }
        Ok(())
    }

    /// Where `key` was written, or the device.
    pub(crate) fn place_of(&self, key: &str) -> &str {
        let found = self.places.iter().find(|(written, _)| written == key);
        found.map_or(&self.place, |(_, place)| place)
    }

    /// Whether there is such a model, and it has the options given.
    ///
    /// # Errors
    ///
    /// The names that there are.
    pub(crate) fn check(&self, models: &[ModelInfo]) -> Result<()> {
        let names = models.iter().map(|model| model.name);
        let Some(info) = models.iter().find(|info| info.name == self.model) else {
            bail!(
                "{}: no device model is called {:?}{}; there are {}",
                self.place_of("model"),
                self.model,
                meant(&self.model, names.clone()),
                names.collect::<Vec<_>>().join(", ")
            );
        };
        let every = KEYS.map(|(key, _)| key);
        let known = info.options.iter().map(|option| option.name);
        let own = if info.options.is_empty() {
            "it has none of its own".to_owned()
        } else {
            format!("its options are {}", known.clone().collect::<Vec<_>>().join(", "))
        };
        for (key, _) in &self.options {
            ensure!(
                known.clone().any(|name| name == key),
                "{}: {} has no option {key:?}{}; {own}, and every device has {}",
                self.place_of(key),
                self.model,
                meant(key, known.clone().chain(every)),
                every.join(", ")
            );
        }
        Ok(())
    }
}

impl Description {
    /// Adds what the machine file at `path` says. Relative image paths in it are relative to the file.
    pub(crate) fn read(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the machine file {}", path.display()))?;
        self.parse(path, &text)
    }

    fn parse(&mut self, path: &Path, text: &str) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let file = File::parse(path, text)?;
        for Section { place, entries } in file.iommus {
            self.iommus.push(Iommu::parse(&place, &entries)?);
        }
        for Section { place, mut entries } in file.devices {
            let models = entries.extract_if(.., |entry| entry.key == "model");
            let model = models.last();
            let model = model.with_context(|| {
                format!("{place}: a device has no model; `ioasis models` lists them")
            })?;
            for entry in entries.iter_mut().filter(|entry| PATHS.contains(&entry.key.as_str())) {
                entry.value = in_folder(folder, &entry.value);
            }
            let mut device = Device::new(&model.value, &place, &entries)?;
            device.places.push((model.key, model.place));
            self.devices.push(device);
        }
        self.parameters.extend(file.parameters);
        if let Some(Entry { value, place, .. }) = file.linux {
            self.linux = linux(&value).with_context(|| place)?;
        }
        Ok(())
    }

    /// Adds the IOMMU that `key=value,...` describes.
    pub(crate) fn add_iommu(&mut self, text: &str) -> Result<()> {
        let place = format!("--iommu {text:?}");
        let words = split_at_commas(text);
        let entries = words.iter().map(|word| entry::of_option(&place, word));
        self.iommus.push(Iommu::parse(&place, &entries.collect::<Result<Vec<_>>>()?)?);
        Ok(())
    }

    /// Adds the device that `MODEL[,key=value]...` describes. A comma inside a value is written twice.
    pub(crate) fn add(&mut self, text: &str) -> Result<()> {
        let place = format!("--device {text:?}");
        let words = split_at_commas(text);
        let (model, words) = words.split_first().expect("there is always a word");
        ensure!(!model.is_empty(), "{place} names no model; `ioasis models` lists them");
        ensure!(
            !model.contains('='),
            "{place} begins with a model, as in nvme,{model}; `ioasis models` lists them"
        );
        let entries = words.iter().map(|word| entry::of_option(&place, word));
        self.devices.push(Device::new(model, &place, &entries.collect::<Result<Vec<_>>>()?)?);
        Ok(())
    }

    /// Gives every device an address and a group, and the machine an IOMMU.
    pub(crate) fn place(&mut self) -> Result<()> {
        if self.iommus.is_empty() {
            self.iommus.push(Iommu::default());
        }
        let is_spapr = |iommu: &&Iommu| iommu.hardware.kind == IommuKind::Spapr;
        let powers = self.iommus.iter().filter(is_spapr).count();
        ensure!(
            powers == 0 || powers == self.iommus.len(),
            "IOMMUs of kind spapr and of other kinds are in no machine together: one kernel has the drivers of one"
        );
        let says_so = |iommu: &Iommu| iommu.hardware.repeat_invalidations;
        ensure!(
            self.linux >= Linux::V7_3 || !self.iommus.iter().any(says_so),
            "repeat_invalidations=on needs Linux 7.3, whose GET_HW_INFO says so"
        );
        let mut addresses = BTreeMap::new();
        for device in &self.devices {
            let count = self.iommus.len();
            ensure!(
                device.iommu < count,
                "{}: iommu {} does not exist, the machine has {count}, counted from 0",
                device.place,
                device.iommu
            );
            let hardware = &self.iommus[device.iommu].hardware;
            let place = &device.place;
            let translated = device.translation == Translation::Iommu;
            ensure!(!device.pri || device.ats, "{place}: pri=on needs ats=on");
            for (wanted, key, there) in [
                (device.ats, "ats", hardware.ats),
                (device.pri, "pri", hardware.pri),
                (device.pasid_bits > 0, "pasid_bits", hardware.pasid_bits > 0),
            ] {
                ensure!(
                    !wanted || there && translated,
                    "{place}: the device has {key} and iommu {} has none",
                    device.iommu
                );
            }
            if let Some(address) = device.address
                && let Some(other) = addresses.insert(address, place)
            {
                bail!("{place}: {address} is the address of another device already, {other}");
            }
        }
        let mut addresses: BTreeSet<_> = addresses.into_keys().collect();
        let mut groups: BTreeSet<u32> = self.devices.iter().filter_map(|d| d.group).collect();
        for device in &mut self.devices {
            if device.address.is_none() {
                let free = (1..=u8::MAX)
                    .filter_map(|bus| Bdf::new(0, bus, 0, 0))
                    .find(|address| !addresses.contains(address))
                    .context("no free bus number is left; give devices an address=")?;
                addresses.insert(free);
                device.address = Some(free);
            }
            if device.group.is_none() {
                let free = (1..).find(|group| !groups.contains(group)).context("no free group")?;
                groups.insert(free);
                device.group = Some(free);
            }
        }
        Ok(())
    }
}

/// The kernel that is called `value`.
pub(crate) fn linux(value: &str) -> Result<Linux> {
    match value {
        "7.2" => Ok(Linux::V7_2),
        "7.3" => Ok(Linux::V7_3),
        other => bail!("linux={other:?} is not 7.2 or 7.3"),
    }
}

/// What `linux` is called.
pub(crate) fn name(linux: Linux) -> &'static str {
    match linux {
        Linux::V7_2 => "7.2",
        Linux::V7_3 => "7.3",
    }
}

/// What `iommu=` says: the index of an IOMMU, or that there is none.
fn behind(value: &str) -> Result<(usize, Translation)> {
    match value {
        "none" => Ok((0, Translation::None)),
        "emulated" => Ok((0, Translation::Emulated)),
        number => Ok((number.parse()?, Translation::Iommu)),
    }
}

fn in_folder(folder: &Path, path: &str) -> String {
    folder.join(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(devices: &[&str]) -> Result<Description> {
        let mut description = Description::default();
        for device in devices {
            description.add(device)?;
        }
        description.place()?;
        Ok(description)
    }

    #[test]
    fn the_first_device_sits_on_bus_one_in_group_one() {
        let machine = described(&["nvme,image=a.img", "testdev"]).unwrap();
        let places: Vec<_> = machine
            .devices
            .iter()
            .map(|d| (d.address.unwrap().to_string(), d.group.unwrap()))
            .collect();
        assert_eq!(places, [("0000:01:00.0".to_owned(), 1), ("0000:02:00.0".to_owned(), 2)]);
    }

    #[test]
    fn a_given_place_is_kept_and_never_given_twice() {
        let machine = described(&["testdev", "testdev,address=01:00.0,group=1"]).unwrap();
        assert_eq!(machine.devices[0].address.unwrap().to_string(), "0000:02:00.0");
        assert_eq!(machine.devices[0].group, Some(2));
        let error = described(&["testdev,address=01:00.0", "testdev,address=0000:01:00.0"]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "--device \"testdev,address=0000:01:00.0\": 0000:01:00.0 is the address of another device already, --device \"testdev,address=01:00.0\""
        );
    }

    #[test]
    fn a_comma_in_a_value_is_written_twice() {
        let machine = described(&["nvme,image=a,,b.img,ro"]).unwrap();
        let options: Vec<_> =
            machine.devices[0].options.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(options, [("image", "a,b.img"), ("ro", "on")]);
    }

    #[test]
    fn a_bad_place_names_the_value() {
        for (device, message) in [
            (
                "testdev,address=1.2",
                "--device \"testdev,address=1.2\": address=\"1.2\" is not an address as 0000:01:00.0",
            ),
            (
                "testdev,address=00:20.0",
                "--device \"testdev,address=00:20.0\": address=\"00:20.0\" is not an address as 0000:01:00.0",
            ),
            ("testdev,pri", "--device \"testdev,pri\": pri=on needs ats=on"),
            ("testdev,ats=yes", "--device \"testdev,ats=yes\": ats=\"yes\" is not on or off"),
            (
                "testdev,pasid_bits=32",
                "--device \"testdev,pasid_bits=32\": pasid_bits=\"32\" is not a number from 0 to 20",
            ),
            (
                "testdev,iommu=1",
                "--device \"testdev,iommu=1\": iommu 1 does not exist, the machine has 1, counted from 0",
            ),
            (",image=a", "--device \",image=a\" names no model; `ioasis models` lists them"),
        ] {
            assert_eq!(described(&[device]).unwrap_err().to_string(), message, "{device}");
        }
    }

    #[test]
    fn module_parameters_and_missing_iommus_are_read() {
        let mut machine = Description::default();
        let text = "[[device]]\nmodel = \"testdev\"\niommu = \"none\"\n[module.vfio_iommu_type1]\ndma_entry_limit = 7\n";
        machine.parse(Path::new("m.toml"), text).unwrap();
        assert_eq!(machine.devices[0].translation, Translation::None);
        let [(module, Entry { key, value, .. })] = &machine.parameters[..] else {
            panic!("one parameter");
        };
        assert_eq!([module, key, value], ["vfio_iommu_type1", "dma_entry_limit", "7"]);
        assert!(described(&["testdev,iommu=no"]).is_err());
    }

    #[test]
    fn a_machine_file_describes_the_same_as_options() {
        let mut machine = Description::default();
        let text = "[iommu]\nkind = \"vtd\"\n[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\nqueues = 4\nro = true\n";
        machine.parse(Path::new("/there/m.toml"), text).unwrap();
        assert_eq!(machine.iommus.len(), 1);
        let mut options = machine.devices[0].options.clone();
        options.sort();
        let expected = [("image", "/there/d.img"), ("queues", "4"), ("ro", "on")];
        assert_eq!(options, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_device_cannot_have_what_its_iommu_lacks() {
        let mut description = Description::default();
        description.add_iommu("kind=vtd").unwrap();
        description.add_iommu("kind=amd,pri=off").unwrap();
        description.add("testdev,iommu=1,ats,pri").unwrap();
        let error = description.place().unwrap_err().to_string();
        assert_eq!(
            error,
            "--device \"testdev,iommu=1,ats,pri\": the device has pri and iommu 1 has none"
        );
    }

    #[test]
    fn the_machine_file_of_the_documentation_loads() {
        let text = include_str!("../../../docs/machine.md");
        let start = text.find("```toml\n").expect("an example") + "```toml\n".len();
        let example = &text[start..start + text[start..].find("```").expect("its end")];
        let mut machine = Description::default();
        machine.parse(Path::new("m.toml"), example).unwrap();
        machine.place().unwrap();
        assert_eq!((machine.iommus.len(), machine.devices.len()), (2, 4));
        let together = machine.devices.iter().filter(|device| device.group == Some(7)).count();
        assert_eq!(together, 2, "a group of two devices");
    }
}
