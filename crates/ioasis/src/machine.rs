//! The machine a client sees: what `--device` and the machine file say, checked and placed.
//!
//! A machine file:
//!
//! ```toml
//! [iommu]                 # or [[iommu]], several
//! kind = "vtd"
//!
//! [[device]]
//! model = "nvme"          # `ioasis models` lists models and their options
//! image = "disk.img"
//! address = "0000:01:00.0"  # optional, as are group and iommu
//! group = 1
//! ```

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use ioasis_pci::Bdf;
use serde::Deserialize;

/// The machine as described, every device placed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// At least one after [`Description::place`].
    pub(crate) iommus: Vec<Iommu>,
    /// In the order given: machine file first, then the command line.
    pub(crate) devices: Vec<Device>,
}

/// One simulated IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Iommu {
    /// Which hardware it behaves as.
    #[serde(default)]
    pub(crate) kind: IommuKind,
}

/// Hardware that an IOMMU can behave as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IommuKind {
    /// Intel VT-d.
    #[default]
    Vtd,
}

/// One device, as far as the user described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Name of the model.
    pub(crate) model: String,
    /// Where it sits; the lowest free bus from 1, device 0, function 0 unless given.
    pub(crate) address: Option<Bdf>,
    /// Its IOMMU group; the lowest free number from 1 unless given.
    pub(crate) group: Option<u32>,
    /// Index of its IOMMU.
    pub(crate) iommu: usize,
    /// The model's own options, in the order given.
    pub(crate) options: Vec<(String, String)>,
}

/// `[iommu]` once or `[[iommu]]` several times.
#[derive(Deserialize)]
#[serde(untagged)]
enum IommuEntries {
    One(Iommu),
    Several(Vec<Iommu>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    iommu: Option<IommuEntries>,
    #[serde(default)]
    device: Vec<FileDevice>,
}

#[derive(Deserialize)]
struct FileDevice {
    model: String,
    address: Option<String>,
    group: Option<u32>,
    #[serde(default)]
    iommu: usize,
    #[serde(flatten)]
    options: toml::Table,
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
            Some(IommuEntries::One(iommu)) => self.iommus.push(iommu),
            Some(IommuEntries::Several(iommus)) => self.iommus.extend(iommus),
            None => {}
        }
        for device in file.device {
            let address = device.address.as_deref().map(place).transpose()?;
            let options = device.options.into_iter().map(|(key, value)| {
                let value = option_text(&key, value)?;
                let value = if key == "image" { in_folder(folder, &value) } else { value };
                Ok((key, value))
            });
            self.devices.push(Device {
                options: options.collect::<Result<_>>()?,
                model: device.model,
                address,
                group: device.group,
                iommu: device.iommu,
            });
        }
        Ok(())
    }

    /// Adds the device that `MODEL[,key=value]...` describes. A comma inside a value is written twice.
    pub(crate) fn add(&mut self, text: &str) -> Result<()> {
        let mut words = split_at_commas(text).into_iter();
        let model = words.next().unwrap_or_default();
        ensure!(!model.is_empty(), "--device {text:?} names no model; `ioasis models` lists them");
        let mut device =
            Device { model, address: None, group: None, iommu: 0, options: Vec::new() };
        for word in words {
            let (key, value) = match word.split_once('=') {
                Some((key, value)) => (key, value),
                None => (word.as_str(), "on"),
            };
            let number = || format!("--device {text:?}: {key}={value:?} is not a number");
            match key {
                "" => bail!("--device {text:?} has an empty option"),
                "address" => device.address = Some(place(value)?),
                "group" => device.group = Some(value.parse().with_context(number)?),
                "iommu" => device.iommu = value.parse().with_context(number)?,
                _ => device.options.push((key.to_owned(), value.to_owned())),
            }
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

fn place(text: &str) -> Result<Bdf> {
    text.parse().with_context(|| format!("address={text:?}"))
}

fn option_text(key: &str, value: toml::Value) -> Result<String> {
    Ok(match value {
        toml::Value::String(text) => text,
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Boolean(true) => "on".to_owned(),
        toml::Value::Boolean(false) => "off".to_owned(),
        other => bail!("option {key}: expected text, a number or a boolean, found {other}"),
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
            ("testdev,address=1.2", "address=\"1.2\""),
            ("testdev,address=00:20.0", "address=\"00:20.0\""),
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
            Description::default().parse("[iommu]\nkind = \"x\"\n", Path::new("")).unwrap_err();
        assert!(
            wrong.to_string().contains("kind") || wrong.to_string().contains("iommu"),
            "{wrong}"
        );
    }
}
