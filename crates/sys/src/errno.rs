//! System-call failures as the errors of this workspace.

use std::io;

use ioasis_uapi::{Errno, Error};

/// The errno of a failed `rustix` call.
#[must_use]
pub fn errno(number: rustix::io::Errno) -> Errno {
    Errno::from_raw(number.raw_os_error())
}

/// Turns the failure of a `rustix` call into an error with a reason: `call().map_err(because("why"))`.
pub fn because(why: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |number| Error::new(errno(number), why)
}

/// The errno a raw `libc` call has just left; `EIO` should it have left none.
pub(crate) fn last_errno() -> Errno {
    io::Error::last_os_error()
        .raw_os_error()
        .filter(|number| (1..4096).contains(number))
        .map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_keeps_its_number_and_gains_a_reason() {
        let error = because("no such file")(rustix::io::Errno::NOENT);
        assert_eq!((error.errno, error.why), (Errno::ENOENT, "no such file"));
    }
}
