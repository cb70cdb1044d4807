//! An error is an errno for the client and a reason for the trace.

use core::fmt;

/// A Linux error number, positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// Names and numbers of `asm-generic/errno-base.h` and `errno.h`, as far as IOMMUFD and VFIO answer
/// them or a system call made on a client's behalf can return them.
macro_rules! errnos {
    ($($name:ident = $number:literal, $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Self = Self($number);)*

            /// The C name, or `None` for a number not listed here.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such file, object or mapping.";
    ESRCH = 3, "No such process.";
    EINTR = 4, "Interrupted by a signal.";
    EIO = 5, "Input/output error.";
    ENXIO = 6, "No such device or address.";
    E2BIG = 7, "Argument too large: a field this version does not know is set.";
    EBADF = 9, "Not an open file descriptor.";
    EAGAIN = 11, "Try again.";
    ENOMEM = 12, "Out of memory, or over the locked-memory limit.";
    EACCES = 13, "Permission denied.";
    EFAULT = 14, "Bad address.";
    EBUSY = 16, "In use.";
    EEXIST = 17, "Already there.";
    ENODEV = 19, "No such device.";
    ENOTDIR = 20, "Not a directory.";
    EISDIR = 21, "A directory.";
    EINVAL = 22, "Invalid argument.";
    ENFILE = 23, "Too many open files in the whole system.";
    EMFILE = 24, "Too many open files.";
    ENOTTY = 25, "No such ioctl on this file.";
    EFBIG = 27, "File too large: a position beyond the last byte there can be.";
    ENOSPC = 28, "No space left.";
    ESPIPE = 29, "Not seekable.";
    EROFS = 30, "Read-only.";
    ERANGE = 34, "Out of range.";
    EDEADLOCK = 35, "Would wait for itself.";
    ENAMETOOLONG = 36, "Name too long.";
    ENOSYS = 38, "No such system call.";
    ELOOP = 40, "Too many symbolic links.";
    ENOMSG = 42, "No message of the desired kind.";
    EBADE = 52, "Invalid exchange.";
    ENODATA = 61, "There is nothing of that name.";
    EOVERFLOW = 75, "A range wraps or a value does not fit.";
    EBADFD = 77, "A file of another kind.";
    EMSGSIZE = 90, "The array is too small.";
    EOPNOTSUPP = 95, "Not supported.";
    EADDRINUSE = 98, "The address range is in use.";
    ETIMEDOUT = 110, "Timed out.";
    ESTALE = 116, "The object behind the handle is gone.";
}

impl Errno {
    /// The errno of a raw positive number, as a system call returned it.
    ///
    /// # Panics
    ///
    /// If `number` is not between 1 and 4095, the range Linux keeps for errors.
    #[must_use]
    pub const fn from_raw(number: i32) -> Self {
        assert!(number >= 1 && number <= 4095, "an errno is between 1 and 4095");
        Self(number)
    }

    /// The positive number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a call failed: the errno is interface and reaches the client, the reason is for the trace.
///
/// `at` is the value the reason speaks of (an address, a length, an id), when there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{errno}: {why}")]
pub struct Error {
    /// What the client sees.
    pub errno: Errno,
    /// What a person sees.
    pub why: &'static str,
    /// The value `why` is about.
    pub at: Option<u64>,
}

const _: () = assert!(size_of::<Error>() <= 40);

impl Error {
    /// An error without a value.
    #[must_use]
    pub const fn new(errno: Errno, why: &'static str) -> Self {
        Self { errno, why, at: None }
    }

    /// An error about the value `at`.
    #[must_use]
    pub const fn at(errno: Errno, why: &'static str, at: u64) -> Self {
        Self { errno, why, at: Some(at) }
    }
}

/// The result of everything below the binary.
pub type Result<T, E = Error> = core::result::Result<T, E>;

#[cfg(test)]
mod tests {
    extern crate alloc;
    use super::*;
    use alloc::format;

    #[test]
    fn an_error_prints_its_name_and_reason() {
        let error = Error::at(Errno::EINVAL, "vaddr is not page aligned", 0x7f00_0800);
        assert_eq!(format!("{error}"), "EINVAL: vaddr is not page aligned");
        assert_eq!(format!("{}", Errno::from_raw(4000)), "errno 4000");
    }
}
