//! The options of a model: `key=value`, checked against what the model says it accepts.

/// One option of a model.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// The key.
    pub name: &'static str,
    /// What it sets, in a few words.
    pub meaning: &'static str,
    /// What values it takes.
    pub accepted: &'static str,
    /// What holds when it is not given.
    pub default: &'static str,
}

/// Why a device could not be made: a sentence for the person who asked for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ModelError(String);

impl ModelError {
    /// `sentence`, which says what is wrong and what to write.
    #[must_use]
    pub fn new(sentence: String) -> Self {
        Self(sentence)
    }
}

/// The options given for one device, each known to its model and given once.
#[derive(Debug)]
pub struct Options<'a> {
    model: &'static str,
    known: &'static [OptionInfo],
    given: &'a [(String, String)],
}

impl<'a> Options<'a> {
    pub(crate) fn new(
        model: &'static str,
        known: &'static [OptionInfo],
        given: &'a [(String, String)],
    ) -> Result<Self, ModelError> {
        for (index, (name, _)) in given.iter().enumerate() {
            if !known.iter().any(|option| option.name == name) {
                let names: Vec<_> = known.iter().map(|option| option.name).collect();
                let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                return Err(ModelError::new(format!(
                    "{model} has no option {name:?}; its options are: {has}"
                )));
            }
            if given[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(ModelError::new(format!("{model}: option {name} is given twice")));
            }
        }
        Ok(Self { model, known, given })
    }

    /// What the model is called.
    #[must_use]
    pub fn model(&self) -> &'static str {
        self.model
    }

    /// The text of an option, or `None` when it is not given.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.given.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The text of an option that must be there.
    ///
    /// # Errors
    ///
    /// A sentence that asks for it.
    ///
    /// # Panics
    ///
    /// If it is not an option that the model lists.
    pub fn required(&self, name: &str) -> Result<&'a str, ModelError> {
        match self.text(name) {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(ModelError::new(format!(
                "{} needs {name}=, {}: {}",
                self.model,
                self.info(name).meaning,
                self.info(name).accepted
            ))),
        }
    }

    /// The value of an option as `parse` understands it, or `default`.
    ///
    /// # Errors
    ///
    /// A sentence that quotes what the model says the option accepts, where `parse` gives `None`.
    ///
    /// # Panics
    ///
    /// If it is not an option that the model lists.
    pub fn parsed<T>(
        &self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ModelError> {
        self.text(name).map_or(Ok(default), |value| parse(value).ok_or_else(|| self.refuse(name)))
    }

    /// A switch, as every switch of a machine is written; the bare name of an option has been given as on.
    ///
    /// # Errors
    ///
    /// A sentence, as [`Options::parsed`].
    ///
    /// # Panics
    ///
    /// If it is not an option that the model lists.
    pub fn switch(&self, name: &str) -> Result<bool, ModelError> {
        self.parsed(name, false, |value| match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        })
    }

    /// The error for a value that the option does not take.
    ///
    /// # Panics
    ///
    /// If it is not an option that the model lists.
    #[must_use]
    pub fn refuse(&self, name: &str) -> ModelError {
        let value = self.text(name).unwrap_or_default();
        ModelError::new(format!(
            "{}: {name}={value} is not accepted; {name} is {}",
            self.model,
            self.info(name).accepted
        ))
    }

    fn info(&self, name: &str) -> &'static OptionInfo {
        let found = self.known.iter().find(|option| option.name == name);
        found.expect("a model asks for the options it lists")
    }
}

/// The option of a model that can have virtual functions.
pub(crate) const VFS: OptionInfo = OptionInfo {
    name: "vfs",
    meaning: "how many virtual functions it can have (SR-IOV)",
    accepted: "0 to 64",
    default: "0",
};

/// The value of [`VFS`].
pub(crate) fn virtual_functions(options: &Options<'_>) -> Result<u16, ModelError> {
    options.parsed(VFS.name, 0, |text| text.parse().ok().filter(|vfs| *vfs <= 64))
}

/// A number of bytes: decimal, with K, M, G or T for powers of 1024.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[OptionInfo] = &[
        OptionInfo { name: "image", meaning: "the image", accepted: "a path", default: "none" },
        OptionInfo { name: "ro", meaning: "read-only", accepted: "on or off", default: "off" },
    ];

    fn given(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn an_unknown_option_is_answered_with_the_known_ones() {
        let error =
            Options::new("nvme", KNOWN, &given(&[("imgae", "x")])).expect_err("a typing error");
        assert_eq!(error.to_string(), "nvme has no option \"imgae\"; its options are: image, ro");
    }

    #[test]
    fn an_option_given_twice_is_refused() {
        let error =
            Options::new("nvme", KNOWN, &given(&[("ro", "on"), ("ro", "off")])).expect_err("twice");
        assert_eq!(error.to_string(), "nvme: option ro is given twice");
    }

    #[test]
    fn a_bad_value_is_answered_with_the_accepted_ones() {
        let pairs = given(&[("ro", "maybe")]);
        let options = Options::new("nvme", KNOWN, &pairs).expect("known");
        let error = options.switch("ro").expect_err("no switch");
        assert_eq!(error.to_string(), "nvme: ro=maybe is not accepted; ro is on or off");
    }

    #[test]
    fn a_missing_option_is_asked_for() {
        let options = Options::new("nvme", KNOWN, &[]).expect("none given");
        assert_eq!(
            options.required("image").expect_err("missing").to_string(),
            "nvme needs image=, the image: a path"
        );
    }

    #[test]
    fn byte_counts_have_binary_suffixes() {
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("3k"), Some(3072));
        assert_eq!(bytes("1T"), Some(1 << 40));
        for text in ["", "G", "-1", "1.5G", "1GB", "99999999999T", "\u{e9}"] {
            assert_eq!(bytes(text), None, "{text:?}");
        }
    }
}
