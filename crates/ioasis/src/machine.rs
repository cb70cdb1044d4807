//! The machine a client sees: what `--device` and the machine file say, checked and placed.
//!
//! docs/machine.md says what a machine file can hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ioasis_pci::Bdf;
use serde::Deserialize;

use crate::iommu::{self, Iommu};

/// The machine as described, every device placed.
#[derive(Debug, Default)]
pub(crate) struct Description {
    /// At least one after [`Description::place`].
    pub(crate) iommus: Vec<Iommu>,
    /// In the order given: machine file first, then the command line.
    pub(crate) devices: Vec<Device>,
    /// Module, name and text of the module parameters given.
    pub(crate) parameters: Vec<(String, String, String)>,
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
    /// How it reaches memory.
    pub(crate) translation: Translation,
    /// The model's own options, in the order given.
    pub(crate) options: Vec<(String, String)>,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    iommu: Option<toml::Value>,
    #[serde(default)]
    device: Vec<FileDevice>,
    #[serde(default)]
    module: BTreeMap<String, BTreeMap<String, toml::Value>>,
}

#[derive(Deserialize)]
struct FileDevice {
    model: String,
    #[serde(flatten)]
    options: toml::Table,
}

impl Device {
    fn new(model: String) -> Self {
        Self { model, ..Self::default() }
    }

    /// Takes one `key=value`: the machine's own keys, and the model's options.
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let wrong =
            |accepted: &str| format!("device {:?}: {key}={value:?} is not {accepted}", self.model);
        let number = || wrong("a number");
        match key {
            "address" => {
                self.address =
                    Some(value.parse().with_context(|| wrong("an address as 0000:01:00.0"))?);
            }
            "group" => self.group = Some(value.parse().with_context(number)?),
            "iommu" => {
                let place = || wrong("a number, none or emulated");
                (self.iommu, self.translation) = behind(value).with_context(place)?;
            }
            "pasid_bits" => {
                let width = || wrong("a number from 0 to 20");
                self.pasid_bits = iommu::pasid_bits(value).with_context(width)?;
            }
            "ats" => self.ats = iommu::switch(value).with_context(|| wrong("on or off"))?,
            "pri" => self.pri = iommu::switch(value).with_context(|| wrong("on or off"))?,
            _ => self.options.push((key.to_owned(), value.to_owned())),
        }
        Ok(())
    }
}

impl Description {
    /// Adds what the machine file at `path` says. Relative image paths in it are relative to the file.
    pub(crate) fn read(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the machine file {}", path.display()))?;
        self.parse(&text, path.parent().unwrap_or(Path::new("")))
            .with_context(|| format!("machine file {}", path.display()))
    }

    fn parse(&mut self, text: &str, folder: &Path) -> Result<()> {
        let file: File = toml::from_str(text)?;
        match file.iommu {
            Some(toml::Value::Table(iommu)) => self.push_iommu(iommu)?,
            Some(toml::Value::Array(iommus)) => {
                for iommu in iommus {
                    self.push_iommu(iommu.try_into().context("[[iommu]] is a list of tables")?)?;
                }
            }
            Some(other) => bail!("iommu is a table: expected [iommu] or [[iommu]], found {other}"),
            None => {}
        }
        for FileDevice { model, options } in file.device {
            let mut device = Device::new(model);
            for (key, value) in options {
                let value = option_text(&key, value)?;
                let value = if key == "image" { in_folder(folder, &value) } else { value };
                device.set(&key, &value)?;
            }
            self.devices.push(device);
        }
        for (module, parameters) in file.module {
            for (name, value) in parameters {
                let value = option_text(&name, value)?;
                self.parameters.push((module.clone(), name, value));
            }
        }
        Ok(())
    }

    fn push_iommu(&mut self, table: toml::Table) -> Result<()> {
        let entries = table.into_iter().map(|(key, value)| {
            let value = option_text(&key, value)?;
            Ok((key, value))
        });
        let place = format!("iommu {}", self.iommus.len());
        self.iommus.push(Iommu::parse(&place, &entries.collect::<Result<Vec<_>>>()?)?);
        Ok(())
    }

    /// Adds the IOMMU that `key=value,...` describes.
    pub(crate) fn add_iommu(&mut self, text: &str) -> Result<()> {
        let entries = split_at_commas(text).into_iter().map(|word| {
            let (key, value) = word.split_once('=').unwrap_or((&word, "on"));
            (key.to_owned(), value.to_owned())
        });
        let place = format!("--iommu {text:?}");
        self.iommus.push(Iommu::parse(&place, &entries.collect::<Vec<_>>())?);
        Ok(())
    }

    /// Adds the device that `MODEL[,key=value]...` describes. A comma inside a value is written twice.
    pub(crate) fn add(&mut self, text: &str) -> Result<()> {
        let mut words = split_at_commas(text).into_iter();
        let model = words.next().unwrap_or_default();
        ensure!(!model.is_empty(), "--device {text:?} names no model; `ioasis models` lists them");
        let mut device = Device::new(model);
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((&word, "on"));
            ensure!(!key.is_empty(), "--device {text:?} has an empty option");
            device.set(key, value)?;
        }
        self.devices.push(device);
        Ok(())
    }

    /// Gives every device an address and a group, and the machine an IOMMU.
    pub(crate) fn place(&mut self) -> Result<()> {
        if self.iommus.is_empty() {
            self.iommus.push(Iommu::default());
        }
        let mut addresses = BTreeSet::new();
        for device in &self.devices {
            let count = self.iommus.len();
            ensure!(
                device.iommu < count,
                "device {:?}: iommu {} does not exist, the machine has {count}, counted from 0",
                device.model,
                device.iommu
            );
            let hardware = &self.iommus[device.iommu].hardware;
            let name = &device.model;
            let translated = device.translation == Translation::Iommu;
            ensure!(!device.pri || device.ats, "device {name:?}: pri=on needs ats=on");
            for (wanted, key, there) in [
                (device.ats, "ats", hardware.ats),
                (device.pri, "pri", hardware.pri),
                (device.pasid_bits > 0, "pasid_bits", hardware.pasid_bits > 0),
            ] {
                ensure!(
                    !wanted || there && translated,
                    "device {name:?} has {key} and iommu {} has none",
                    device.iommu
                );
            }
            if let Some(address) = device.address {
                ensure!(addresses.insert(address), "two devices at {address}");
            }
        }
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

/// What `iommu=` says: the index of an IOMMU, or that there is none.
fn behind(value: &str) -> Result<(usize, Translation)> {
    match value {
        "none" => Ok((0, Translation::None)),
        "emulated" => Ok((0, Translation::Emulated)),
        number => Ok((number.parse()?, Translation::Iommu)),
    }
}

fn option_text(key: &str, value: toml::Value) -> Result<String> {
    Ok(match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(true) => "on".to_owned(),
        toml::Value::Boolean(false) => "off".to_owned(),
        toml::Value::Array(values) => {
            let values = values.into_iter().map(|value| option_text(key, value));
            let values = values.collect::<Result<Vec<_>>>()?;
            if values.is_empty() { "none".to_owned() } else { values.join("+") }
        }
        other => bail!("option {key}: expected text, a number, a boolean or a list, found {other}"),
    })
}

fn in_folder(folder: &Path, path: &str) -> String {
    folder.join(path).to_string_lossy().into_owned()
}

fn split_at_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let word = words.last_mut().expect("there is always a word");
        match character {
            ',' if characters.peek() == Some(&',') => {
                characters.next();
                word.push(',');
            }
            ',' => words.push(String::new()),
            other => word.push(other),
        }
    }
    words
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
        assert_eq!(error.unwrap_err().to_string(), "two devices at 0000:01:00.0");
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
                "device \"testdev\": address=\"1.2\" is not an address as 0000:01:00.0",
            ),
            (
                "testdev,address=00:20.0",
                "device \"testdev\": address=\"00:20.0\" is not an address as 0000:01:00.0",
            ),
            ("testdev,pri", "device \"testdev\": pri=on needs ats=on"),
            ("testdev,ats=yes", "device \"testdev\": ats=\"yes\" is not on or off"),
            (
                "testdev,pasid_bits=32",
                "device \"testdev\": pasid_bits=\"32\" is not a number from 0 to 20",
            ),
            (
                "testdev,iommu=1",
                "device \"testdev\": iommu 1 does not exist, the machine has 1, counted from 0",
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
        machine.parse(text, Path::new("")).unwrap();
        machine.add("testdev,iommu=none").unwrap();
        assert_eq!(machine.devices[0], machine.devices[1]);
        assert_eq!(machine.devices[0].translation, Translation::None);
        let parameter = ["vfio_iommu_type1", "dma_entry_limit", "7"].map(str::to_owned);
        assert_eq!(machine.parameters, [parameter.into()]);
        assert!(described(&["testdev,iommu=no"]).is_err());
    }

    #[test]
    fn a_machine_file_describes_the_same_as_options() {
        let mut machine = Description::default();
        let text = "[iommu]\nkind = \"vtd\"\n[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\nqueues = 4\nro = true\n";
        machine.parse(text, Path::new("/there")).unwrap();
        assert_eq!(machine.iommus.len(), 1);
        let mut options = machine.devices[0].options.clone();
        options.sort();
        let expected = [("image", "/there/d.img"), ("queues", "4"), ("ro", "on")];
        assert_eq!(options, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        let wrong =
            |text| format!("{:#}", Description::default().parse(text, Path::new("")).unwrap_err());
        assert_eq!(
            wrong("[iommu]\nkind = \"x\"\n"),
            "iommu 0: kind=\"x\" is not vtd, amd, smmuv3 or riscv: no such kind"
        );
        assert!(
            wrong("[[iommu]]\n[[iommu]]\nsize = 1\n").starts_with("iommu 1 has no key \"size\"")
        );
        assert!(wrong("iommu = 3\n").starts_with("iommu is a table"));
    }

    #[test]
    fn a_device_cannot_have_what_its_iommu_lacks() {
        let mut description = Description::default();
        description.add_iommu("kind=vtd").unwrap();
        description.add_iommu("kind=amd,pri=off").unwrap();
        description.add("testdev,iommu=1,ats,pri").unwrap();
        let error = description.place().unwrap_err().to_string();
        assert_eq!(error, "device \"testdev\" has pri and iommu 1 has none");
    }

    #[test]
    fn the_machine_file_of_the_documentation_loads() {
        let text = include_str!("../../../docs/machine.md");
        let start = text.find("```toml\n").expect("an example") + "```toml\n".len();
        let example = &text[start..start + text[start..].find("```").expect("its end")];
        let mut machine = Description::default();
        machine.parse(example, Path::new("")).unwrap();
        machine.place().unwrap();
        assert_eq!((machine.iommus.len(), machine.devices.len()), (2, 4));
        let together = machine.devices.iter().filter(|device| device.group == Some(7)).count();
        assert_eq!(together, 2, "a group of two devices");
    }
}
