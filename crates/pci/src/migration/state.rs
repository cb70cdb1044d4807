//! The fields of a state: little-endian numbers and bytes, one after another.

use ioasis_uapi::{Errno, Error, Result};

/// Writes fields.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

macro_rules! numbers {
    ($($kind:ident)+) => {
        impl Writer {
            $(
                #[doc = concat!("A `", stringify!($kind), "`.")]
                pub fn $kind(&mut self, value: $kind) {
                    self.0.extend_from_slice(&value.to_le_bytes());
                }
            )+
        }

        impl Reader<'_> {
            $(
                #[doc = concat!("A `", stringify!($kind), "`.")]
                ///
                /// # Errors
                ///
                /// `EINVAL` when the state ends before.
                pub fn $kind(&mut self) -> Result<$kind> {
                    let mut value = [0; size_of::<$kind>()];
                    value.copy_from_slice(self.bytes(size_of::<$kind>())?);
                    Ok($kind::from_le_bytes(value))
                }
            )+
        }
    };
}

numbers!(u8 u16 u32 u64 u128);

impl Writer {
    /// One byte, 1 or 0.
    pub fn flag(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Bytes whose number the reader knows.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A list: how many, then each.
    ///
    /// # Panics
    ///
    /// If there are more than 65535.
    pub fn list<T>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        self.u16(u16::try_from(items.len()).expect("lists of a state are short"));
        items.for_each(|item| each(self, item));
    }

    /// All of it.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Reads fields, none of which can be trusted.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// A field with a value that it cannot have.
///
/// # Errors
///
/// Always `EINVAL`.
pub(crate) fn bad<T>(why: &'static str, value: impl Into<u64>) -> Result<T> {
    Err(Error::at(Errno::EINVAL, why, value.into()))
}

impl<'a> Reader<'a> {
    /// Of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the state ends before.
    pub fn bytes(&mut self, length: usize) -> Result<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return bad("the state ends before its fields do", self.rest.len() as u64);
        };
        self.rest = rest;
        Ok(bytes)
    }

    /// A flag.
    ///
    /// # Errors
    ///
    /// `EINVAL` when the state ends before, or for what is neither 1 nor 0.
    pub fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => bad("a flag is neither 1 nor 0", other),
        }
    }

    /// A list of at most `most`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a longer one; what `each` answers.
    pub fn list<T>(
        &mut self,
        most: usize,
        mut each: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let length = self.u16()?;
        if usize::from(length) > most {
            return bad("a list of the state is too long", length);
        }
        (0..length).map(|_| each(self)).collect()
    }

    /// A number that must be `value`: what the device was made with.
    ///
    /// # Errors
    ///
    /// `EINVAL`, because of `why`, for another.
    pub fn same(&mut self, value: u64, why: &'static str) -> Result<()> {
        let found = self.u64()?;
        if found == value { Ok(()) } else { bad(why, found) }
    }

    /// There is nothing more.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is.
    pub fn end(&self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            more => bad("the state goes on behind its last field", more as u64),
        }
    }
}
