//! The list of models. It stands apart from their trait, so that no model imports its neighbours.

use super::options::{ModelError, Options};
use super::{Model, ModelInfo, igb, ioat, nvme, testdev, vfio_user, virtio};

/// Every kind of device of this crate, in the order of the list.
const MODELS: &[ModelInfo] =
    &[igb::INFO, ioat::INFO, nvme::INFO, testdev::INFO, vfio_user::INFO, virtio::BLK, virtio::NET];

/// The kinds of devices there are in this crate.
#[must_use]
pub fn models() -> &'static [ModelInfo] {
    MODELS
}

/// Makes a device of kind `name`, one of this crate's.
///
/// # Errors
///
/// A sentence for the person who wrote the options; it names the option and what it accepts.
pub fn create(name: &str, options: &[(String, String)]) -> Result<Box<dyn Model>, ModelError> {
    create_from(MODELS, name, options)
}

/// The kinds of devices a program knows: those of this crate, and what was added.
#[derive(Clone, Debug)]
pub struct Models(Vec<ModelInfo>);

impl Default for Models {
    fn default() -> Self {
        Self(MODELS.to_vec())
    }
}

impl Models {
    /// Adds a kind.
    ///
    /// # Panics
    ///
    /// If the name is another kind's already, or cannot be written after `--device`.
    pub fn add(&mut self, info: ModelInfo) {
        let name = info.name;
        let writable = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        assert!(!name.is_empty() && name.chars().all(writable), "{name:?} is no name of a model");
        assert!(self.0.iter().all(|known| known.name != name), "there is a model {name} already");
        self.0.push(info);
    }

    /// All of them, in the order of the list.
    #[must_use]
    pub fn list(&self) -> &[ModelInfo] {
        &self.0
    }

    /// Makes a device of kind `name`.
    ///
    /// # Errors
    ///
    /// A sentence for the person who wrote the options; it names the option and what it accepts.
    pub fn create(
        &self,
        name: &str,
        options: &[(String, String)],
    ) -> Result<Box<dyn Model>, ModelError> {
        create_from(&self.0, name, options)
    }
}

impl ModelInfo {
    /// Makes a device of this kind.
    ///
    /// # Errors
    ///
    /// A sentence for the person who wrote the options; it names the option and what it accepts.
    pub fn create(&self, options: &[(String, String)]) -> Result<Box<dyn Model>, ModelError> {
        (self.create)(&Options::new(self.name, self.options, options)?)
    }
}

fn create_from(
    models: &[ModelInfo],
    name: &str,
    options: &[(String, String)],
) -> Result<Box<dyn Model>, ModelError> {
    let Some(info) = models.iter().find(|info| info.name == name) else {
        let names: Vec<_> = models.iter().map(|info| info.name).collect();
        return Err(ModelError::new(format!(
            "no device model is called {name:?}; there are {}",
            names.join(", ")
        )));
    };
    info.create(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &'static str) -> ModelInfo {
        ModelInfo { name, ..testdev::INFO }
    }

    #[test]
    fn an_added_model_is_made_like_ours_and_named_among_them() {
        let mut models = Models::default();
        models.add(named("mine"));
        assert!(models.create("mine", &[]).is_ok());
        let error = models.create("mien", &[]).expect_err("a typing error").to_string();
        assert!(error.ends_with("virtio-net, mine"), "{error}");
        assert_eq!(models.list().len(), MODELS.len() + 1);
        assert!(create("mine", &[]).is_err(), "no other program has it");
    }

    #[test]
    #[should_panic(expected = "already")]
    fn a_name_is_one_models_alone() {
        Models::default().add(named("nvme"));
    }

    #[test]
    #[should_panic(expected = "no name")]
    fn a_name_with_a_comma_could_not_be_written() {
        Models::default().add(named("a,b"));
    }
}
