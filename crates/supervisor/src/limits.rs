//! Limits that a run inherits and that are meant for the program it runs.

use ioasis_uapi::{Errno, Error, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What would end or hinder those who answer a program.
const LIFTED: [Resource; 6] = [
    Resource::Fsize,
    Resource::Nproc,
    Resource::Cpu,
    Resource::As,
    Resource::Data,
    Resource::Sigpending,
];

/// A file is too large.
const EFBIG: i32 = 27;

/// Limits as the parent of the run set them, for the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits([Rlimit; LIFTED.len()]);

impl Limits {
    /// Lifts them for this process and those it forks: up to the hard limit by all means, and altogether where the system
    /// permits that.
    ///
    /// # Errors
    ///
    /// `EFBIG` if files cannot be as long as device files are.
    pub(crate) fn lift() -> Result<Self> {
        let limits = Self(LIFTED.map(|resource| {
            let before = getrlimit(resource);
            let none = Rlimit { current: None, maximum: None };
            if setrlimit(resource, none).is_err() {
                let _ = setrlimit(resource, Rlimit { current: before.maximum, ..before });
            }
            before
        }));
        match getrlimit(Resource::Fsize).current {
            Some(limit) if limit < crate::files::END => {
                let why = "the hard limit of file sizes (ulimit -Hf) is below what a device file has: raising it \
                           takes CAP_SYS_RESOURCE";
                Err(Error::at(Errno::from_raw(EFBIG), why, limit))
            }
            _ => Ok(limits),
        }
    }

    /// Sets them again: lower ones are always permitted.
    pub(crate) fn restore(self) {
        for (resource, limit) in LIFTED.into_iter().zip(self.0) {
            let _ = setrlimit(resource, limit);
        }
    }
}
