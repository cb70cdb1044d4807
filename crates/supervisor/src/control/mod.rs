//! The control socket of a run: by it `ioasis ps`, `inspect`, `top` and `ctl` look into a run that goes on, and change it.
//!
//! A run listens in a folder of its user's (`socket`). Who connects sends one request, a JSON object in a line, and gets one
//! answer, the same way (`serve`); docs/looking-in.md has both. Each has a version.
//!
//! Invariants: the socket is opened before the supervisor is confined, and removed by the watchdog, which is not; only the
//! run's user and root are answered, and no process of the run itself, which finds an empty folder in its view and is known
//! by its ancestors besides; a request is answered by a thread of its own, which holds no receiver up: it waits for no lock
//! that a call may hold while it waits for a client, and keeps no file and no object from going.

mod answer;
mod change;
mod inspect;
mod serve;
mod socket;

pub use socket::{Asked, Socket, ask, folders, runs};

pub(crate) use serve::Control;
pub(crate) use socket::hidden;

/// The version of requests and answers.
pub const VERSION: u64 = 1;

/// Bytes of a request.
pub(crate) const REQUEST_MAX: usize = 64 << 10;

/// Bytes of an answer.
pub(crate) const ANSWER_MAX: usize = 16 << 20;

/// Descriptors that come with a request.
pub(crate) const FDS_MAX: usize = 8;
