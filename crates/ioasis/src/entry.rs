//! What was written about the machine, on the command line or in a machine file: keys with their values, each with the place
//! where it stands, which every message about it begins with.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// One `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: String,
    /// `--device "nvme,ro=x"`, or `machine.toml:9`.
    pub(crate) place: String,
}

/// The entries of one IOMMU or device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) place: String,
    pub(crate) entries: Vec<Entry>,
}

/// What a machine file holds.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) iommus: Vec<Section>,
    pub(crate) devices: Vec<Section>,
    /// Names of modules, with one of their parameters each.
    pub(crate) parameters: Vec<(String, Entry)>,
    /// Whose rules hold.
    pub(crate) linux: Option<Entry>,
}

/// Splits `word[,key=value]...` at its commas; one inside a value is written twice.
pub(crate) fn split_at_commas(text: &str) -> Vec<String> {
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

/// The entry that a word of an option is; a key alone is on.
pub(crate) fn of_option(place: &str, word: &str) -> Result<Entry> {
    let (key, value) = word.split_once('=').unwrap_or((word, "on"));
    ensure!(!key.is_empty(), "{place}: there is an entry without a key between its commas");
    Ok(Entry { key: key.to_owned(), value: value.to_owned(), place: place.to_owned() })
}

/// The known word that is most like `word`, if one is like it at all.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// As much alike as "imgae" and "image"; "foo" is like nothing.
    const ALIKE: f64 = 0.8;
    let near = known.into_iter().map(|known| (strsim::jaro_winkler(word, known), known));
    let best = near.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (best.0 > ALIKE).then_some(best.1)
}

/// " (did you mean X?)", or nothing.
pub(crate) fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |near| format!(" (did you mean {near}?)"))
}

impl File {
    /// What stands in `text`, which is the machine file called `name`.
    ///
    /// # Errors
    ///
    /// What is wrong, and on which line.
    pub(crate) fn parse(name: &Path, text: &str) -> Result<Self> {
        let places = Places { name, text };
        let table = DeTable::parse(text).map_err(|error| {
            let place = places.of(error.span().unwrap_or_default().start);
            anyhow!("{place}: {}", error.message())
        })?;
        let mut file = Self::default();
        for (key, value) in table.get_ref() {
            let place = places.of(key.span().start);
            match key.get_ref().as_ref() {
                "iommu" => file.iommus = places.sections("iommu", value, true)?,
                "device" => file.devices = places.sections("device", value, false)?,
                "module" => file.parameters = places.parameters(value)?,
                "linux" => file.linux = Some(places.entry(key, value)?),
                other => bail!(
                    "{place}: a machine file has no {other:?}{}; it has iommu, device, module and linux",
                    meant(other, ["iommu", "device", "module", "linux"])
                ),
            }
        }
        Ok(file)
    }
}

/// Turns places in the text of a machine file into lines.
struct Places<'a> {
    name: &'a Path,
    text: &'a str,
}

impl Places<'_> {
    fn of(&self, byte: usize) -> String {
        let before = self.text.as_bytes().iter().take(byte);
        let line = 1 + before.filter(|&&byte| byte == b'\n').count();
        format!("{}:{line}", self.name.display())
    }

    /// The tables `[[name]]`, or `[name]` where one alone may be written so.
    fn sections(
        &self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        alone: bool,
    ) -> Result<Vec<Section>> {
        let form = if alone { format!("[{name}] or [[{name}]]") } else { format!("[[{name}]]") };
        let section = |value: &Spanned<DeValue<'_>>| match value.get_ref() {
            DeValue::Table(table) => {
                let place = self.of(value.span().start);
                Ok(Section { entries: self.entries(table)?, place })
            }
            _ => bail!("{}: expected a table, {form}", self.of(value.span().start)),
        };
        match value.get_ref() {
            DeValue::Array(tables) => tables.iter().map(section).collect(),
            DeValue::Table(_) if alone => Ok(vec![section(value)?]),
            other => bail!(
                "{}: {name} is written {form}, found {}",
                self.of(value.span().start),
                other.type_str()
            ),
        }
    }

    fn parameters(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<(String, Entry)>> {
        let expected = || format!("{}: expected [module.NAME]", self.of(value.span().start));
        let modules = value.get_ref().as_table().with_context(expected)?;
        let mut parameters = Vec::new();
        for (module, table) in modules {
            let entries = self.entries(table.get_ref().as_table().with_context(expected)?)?;
            let module = module.get_ref();
            parameters.extend(entries.into_iter().map(|entry| (module.to_string(), entry)));
        }
        Ok(parameters)
    }

    fn entries(&self, table: &DeTable<'_>) -> Result<Vec<Entry>> {
        table.iter().map(|(key, value)| self.entry(key, value)).collect()
    }

    fn entry(&self, key: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>) -> Result<Entry> {
        let (place, key) = (self.of(key.span().start), key.get_ref().to_string());
        let value = value_text(value.get_ref()).with_context(|| format!("{place}: {key}"))?;
        Ok(Entry { key, value, place })
    }
}

/// The text that the command line would have for `value`.
fn value_text(value: &DeValue<'_>) -> Result<String> {
    Ok(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => match number.radix() {
            10 => number.as_str().to_owned(),
            16 => format!("0x{}", number.as_str()),
            _ => bail!("a number is decimal or begins with 0x, found {number}"),
        },
        DeValue::Boolean(true) => "on".to_owned(),
        DeValue::Boolean(false) => "off".to_owned(),
        DeValue::Array(values) if values.is_empty() => "none".to_owned(),
        DeValue::Array(values) => {
            let texts = values.iter().map(|value| value_text(value.get_ref()));
            texts.collect::<Result<Vec<_>>>()?.join("+")
        }
        other => bail!("expected text, a number, a boolean or a list, found {}", other.type_str()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_knows_its_line() {
        let text = "# a machine\n[iommu]\nkind = \"amd\"\n\n[[device]]\nmodel = \"nvme\"\nro = true\nn = 0x10\nl = [\"a\", 2]\n\
                    [module.vfio]\nx = []\n";
        let file = File::parse(Path::new("m.toml"), text).expect("a machine");
        let entry = |key: &str, value: &str, line: u32| Entry {
            key: key.to_owned(),
            value: value.to_owned(),
            place: format!("m.toml:{line}"),
        };
        assert_eq!(file.iommus[0].entries, [entry("kind", "amd", 3)]);
        let expected = [
            entry("l", "a+2", 9),
            entry("model", "nvme", 6),
            entry("n", "0x10", 8),
            entry("ro", "on", 7),
        ];
        let mut entries = file.devices[0].entries.clone();
        entries.sort_by(|one, other| one.key.cmp(&other.key));
        assert_eq!(entries, expected);
        assert_eq!(file.devices[0].place, "m.toml:5");
        assert_eq!(file.parameters, [("vfio".to_owned(), entry("x", "none", 11))]);
    }

    #[test]
    fn a_typing_error_finds_its_word_and_nonsense_none() {
        let known = ["image", "queues", "serial", "ro"];
        for (typed, meant) in
            [("imgae", Some("image")), ("queue", Some("queues")), ("foo", None), ("", None)]
        {
            assert_eq!(nearest(typed, known), meant, "{typed}");
        }
    }
}
