//! Why a connection, or one request on it, came to nothing.

use std::io;
use std::time::Duration;

use rustix::io::Errno;

use crate::message::Command;

/// The result of what a connection does.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. All but [`Error::Refused`] finish the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The peer did not answer, or did not take what was sent.
    #[error("{command}: no answer within {} s", .limit.as_secs_f32())]
    Silent {
        /// What was asked.
        command: Command,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A message began and did not end.
    #[error("a message of which the rest did not come within {} s", .0.as_secs_f32())]
    Half(Duration),
    /// The peer closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// The peer broke the protocol.
    #[error("{command}: {why} ({value:#x})")]
    Malformed {
        /// The message.
        command: Command,
        /// What is wrong with it.
        why: &'static str,
        /// The value that is wrong.
        value: u64,
    },
    /// The two sides have no version in common.
    #[error("{0}")]
    Version(String),
    /// The peer answered with an error; the connection goes on.
    #[error("{command} was refused with {errno}")]
    Refused {
        /// What was asked.
        command: Command,
        /// The answer; 0 when the peer did not say.
        errno: Errno,
    },
    /// The system refused.
    #[error("{what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it answered.
        errno: Errno,
    },
}

impl Error {
    pub(crate) const fn malformed(command: Command, why: &'static str, value: u64) -> Self {
        Self::Malformed { command, why, value }
    }

    /// Whether the connection can still be used.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    pub(crate) fn system(what: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { what, errno }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System {
            what,
            errno: error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
        }
    }
}
