//! The list of models. It stands apart from their trait, so that no model imports its neighbours.

use super::options::{ModelError, Options};
use super::{Model, ModelInfo, igb, ioat, nvme, testdev, vfio_user, virtio};

/// Every kind of device, in the order of the list.
const MODELS: &[ModelInfo] =
    &[igb::INFO, ioat::INFO, nvme::INFO, testdev::INFO, vfio_user::INFO, virtio::BLK, virtio::NET];

/// The kinds of devices there are.
#[must_use]
pub fn models() -> &'static [ModelInfo] {
    MODELS
}

/// Makes a device of kind `name`.
///
/// # Errors
///
/// A sentence for the person who wrote the options; it names the option and what it accepts.
pub fn create(name: &str, options: &[(String, String)]) -> Result<Box<dyn Model>, ModelError> {
    let Some(info) = MODELS.iter().find(|info| info.name == name) else {
        let names: Vec<_> = MODELS.iter().map(|info| info.name).collect();
        return Err(ModelError::new(format!(
            "no device model is called {name:?}; there are {}",
            names.join(", ")
        )));
    };
    (info.create)(&Options::new(info.name, info.options, options)?)
}
