//! VERSION: what the two sides agree on before anything else.

use serde_json::{Map, Value, json};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use crate::message::{Command, MAJOR, MAX_DATA, MAX_FDS, MINOR, Version};

/// What a side says it can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Descriptors it takes in one message.
    pub max_msg_fds: u64,
    /// Bytes of data it takes in one message.
    pub max_data_xfer_size: u64,
    /// Ranges of memory it keeps at a time.
    pub max_dma_maps: u64,
    /// Page sizes of those ranges, one bit each.
    pub pgsizes: u64,
    /// Whether it takes REGION_WRITE_MULTI.
    pub write_multiple: bool,
}

impl Default for Capabilities {
    /// What a side has that says nothing.
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
            max_dma_maps: 0xffff,
            pgsizes: 4096,
            write_multiple: false,
        }
    }
}

impl Capabilities {
    /// What this crate can take.
    #[must_use]
    pub fn own() -> Self {
        Self {
            max_msg_fds: MAX_FDS as u64,
            max_data_xfer_size: MAX_DATA as u64,
            write_multiple: true,
            ..Self::default()
        }
    }

    /// The JSON of it, with its NUL.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut capabilities = Map::new();
        let mut number = |name: &str, value: u64| {
            capabilities.insert(name.to_owned(), value.into());
        };
        number("max_msg_fds", self.max_msg_fds);
        number("max_data_xfer_size", self.max_data_xfer_size);
        number("max_dma_maps", self.max_dma_maps);
        number("pgsizes", self.pgsizes);
        if self.write_multiple {
            capabilities.insert("write_multiple".to_owned(), true.into());
        }
        let mut text = json!({ "capabilities": capabilities }).to_string().into_bytes();
        text.push(0);
        text
    }

    /// Reads the JSON of the peer; what it does not say has its default, and what nobody knows is
    /// passed over.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self> {
        let mut found = Self::default();
        let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        if text.is_empty() {
            return Ok(found);
        }
        let wrong = |why| Error::malformed(Command::VERSION, why, bytes.len() as u64);
        let value: Value =
            serde_json::from_slice(text).map_err(|_| wrong("capabilities that are no JSON"))?;
        let Some(capabilities) = value.get("capabilities") else { return Ok(found) };
        let Some(capabilities) = capabilities.as_object() else {
            return Err(wrong("capabilities that are no object"));
        };
        let number = |name: &str, into: &mut u64| -> Result<()> {
            if let Some(value) = capabilities.get(name) {
                *into = value.as_u64().ok_or_else(|| wrong("a capability that is no number"))?;
            }
            Ok(())
        };
        number("max_msg_fds", &mut found.max_msg_fds)?;
        number("max_data_xfer_size", &mut found.max_data_xfer_size)?;
        number("max_dma_maps", &mut found.max_dma_maps)?;
        number("pgsizes", &mut found.pgsizes)?;
        if let Some(value) = capabilities.get("write_multiple") {
            found.write_multiple =
                value.as_bool().ok_or_else(|| wrong("a capability that is no truth value"))?;
        }
        Ok(found)
    }

    /// Descriptors that may be sent to this side at once.
    pub(crate) fn fds(&self) -> usize {
        usize::try_from(self.max_msg_fds).unwrap_or(MAX_FDS).min(MAX_FDS)
    }

    /// Bytes that may be moved at once with this side, at least 1.
    pub(crate) fn data(&self) -> usize {
        usize::try_from(self.max_data_xfer_size).unwrap_or(MAX_DATA).clamp(1, MAX_DATA)
    }
}

/// The body of a VERSION.
pub(crate) fn encode(minor: u16, capabilities: &Capabilities) -> Vec<u8> {
    let version = Version { major: MAJOR.into(), minor: minor.into() };
    [version.as_bytes(), &capabilities.to_json()].concat()
}

/// Minor version and capabilities of a VERSION of our major version.
pub(crate) fn decode(body: &[u8]) -> Result<(u16, Capabilities)> {
    let Ok((version, json)) = Version::read_from_prefix(body) else {
        let why = "too short for a version";
        return Err(Error::malformed(Command::VERSION, why, body.len() as u64));
    };
    let (major, minor) = (version.major.get(), version.minor.get());
    if major != MAJOR {
        return Err(Error::Version(format!(
            "the peer speaks version {major}.{minor} of the protocol, this side {MAJOR}.{MINOR}"
        )));
    }
    Ok((minor, Capabilities::from_json(json)?))
}
