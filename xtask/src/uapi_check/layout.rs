//! What `uapi` says: sizes and offsets as the compiler laid them, and the value of every constant.

/// A struct of `uapi`.
pub(super) struct Struct {
    /// Module path within the crate.
    pub(super) module: &'static str,
    /// Rust name.
    pub(super) name: &'static str,
    /// C name where the naming rule does not give it: `outer.member` for an anonymous struct.
    pub(super) alias: Option<&'static str>,
    /// Size in bytes.
    pub(super) size: usize,
    /// The fields in order.
    pub(super) fields: Vec<Field>,
}

/// A field of a [`Struct`].
pub(super) struct Field {
    /// Rust name.
    pub(super) name: &'static str,
    /// C names where the naming rule does not give them: the members of a union.
    pub(super) aliases: &'static [&'static str],
    /// Whether an integer is signed; `None` for arrays and structs.
    pub(super) signed: Option<bool>,
    /// Offset in bytes.
    pub(super) offset: usize,
    /// Size in bytes.
    pub(super) size: usize,
}

/// A constant of `uapi`.
pub(super) struct Constant {
    /// Module path within the crate.
    pub(super) module: &'static str,
    /// Rust name.
    pub(super) name: &'static str,
    /// Its value.
    pub(super) value: Value,
}

/// What a C expression must yield.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// An integer and its width with us; C may extend it with zeros or with its sign.
    Number { value: u64, bits: u32 },
    /// A string.
    Text(&'static str),
}

impl Value {
    /// A size or an offset.
    pub(super) fn count(bytes: usize) -> Self {
        Self::Number { value: bytes as u64, bits: u64::BITS }
    }
}

impl From<u16> for Value {
    fn from(value: u16) -> Self {
        Self::Number { value: value.into(), bits: u16::BITS }
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Number { value: value.into(), bits: u32::BITS }
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Number { value, bits: u64::BITS }
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text)
    }
}

/// Size of the field that `_field` picks.
const fn size_of_field<S, F>(_field: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

include!(concat!(env!("OUT_DIR"), "/layout.rs"));
