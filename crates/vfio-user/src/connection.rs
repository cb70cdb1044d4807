//! One connection: commands and replies both ways, by any number of threads.
//!
//! Whoever waits for a message and finds nobody receiving receives itself, and hands on what is not
//! its own: a reply to who asked, a command to who takes commands. So a thread that waits for an
//! answer needs no other thread to get it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ioasis_sys::sync::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::net::Shutdown;
use zerocopy::IntoBytes;

use crate::error::{Error, Result};
use crate::message::{Command, ERROR, HEADER, Header, NO_REPLY, TYPE_MASK, TYPE_REPLY};
use crate::wire::{self, Message};

/// Commands that may wait to be taken, and their bytes.
const BACKLOG: usize = 1024;
const BACKLOG_BYTES: usize = 16 << 20;

/// A connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    limit: Duration,
    /// One message at a time; the id of the next command.
    sending: Mutex<u16>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Some thread receives.
    receiving: bool,
    /// Commands that wait for their reply.
    asked: Vec<(u16, Command)>,
    replies: Vec<Message>,
    commands: VecDeque<Message>,
    command_bytes: usize,
    broken: Option<Error>,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The reply to this command.
    pub(crate) reply: Option<u16>,
    /// A command of the peer's.
    pub(crate) command: bool,
    /// The thread waits for another message at once when it has this one, and sends nothing before: whoever waits beside it
    /// need not wake for a message that is not theirs, to receive in its place.
    pub(crate) stays: bool,
}

/// What a thread does when it has a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It waits for another at once: of several commands that it has sent this is not the last.
    Waits,
    /// Something else.
    Leaves,
}

impl State {
    /// Keeps a message for who wants it.
    fn keep(&mut self, message: Message) -> Result<()> {
        let (id, command) = (message.header.id.get(), message.command());
        match message.header.flags.get() & TYPE_MASK {
            0 => {
                self.command_bytes += message.body.len();
                if self.commands.len() >= BACKLOG || self.command_bytes > BACKLOG_BYTES {
                    let why = "more commands than may wait";
                    return Err(Error::malformed(command, why, self.commands.len() as u64));
                }
                self.commands.push_back(message);
            }
            TYPE_REPLY => {
                let asked = self.asked.iter().position(|&asked| asked == (id, command));
                let Some(asked) = asked else {
                    let why = "a reply to what was not asked";
                    return Err(Error::malformed(command, why, id.into()));
                };
                self.asked.swap_remove(asked);
                self.replies.push(message);
            }
            other => {
                let why = "neither a command nor a reply";
                return Err(Error::malformed(command, why, other.into()));
            }
        }
        Ok(())
    }

    fn take(&mut self, wanted: Wanted) -> Option<Message> {
        if let Some(id) = wanted.reply {
            let found = self.replies.iter().position(|message| message.header.id.get() == id);
            if let Some(found) = found {
                return Some(self.replies.swap_remove(found));
            }
        }
        if wanted.command
            && let Some(message) = self.commands.pop_front()
        {
            self.command_bytes -= message.body.len();
            return Some(message);
        }
        None
    }
}

impl Connection {
    /// A connection on a stream socket, on which each wait for the peer ends after `limit`.
    #[must_use]
    pub fn new(socket: OwnedFd, limit: Duration) -> Self {
        Self {
            socket,
            limit,
            sending: Mutex::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// How long the peer is waited for.
    #[must_use]
    pub const fn limit(&self) -> Duration {
        self.limit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether a wait for a message would end at once.
    #[must_use]
    pub fn has_input(&self) -> bool {
        let state = self.state();
        !state.commands.is_empty()
            || state.broken.is_some()
            || !state.receiving && wire::has_input(&self.socket)
    }

    /// Why it cannot be used any more.
    #[must_use]
    pub fn broken(&self) -> Option<Error> {
        self.state().broken.clone()
    }

    /// Finishes the connection: whoever waits gets [`Error::Closed`].
    pub fn shutdown(&self) {
        self.finish(Error::Closed);
    }

    /// Nothing more comes of it, for the reason of the first who says so.
    pub(crate) fn finish(&self, error: Error) -> Error {
        let error = self.state().broken.get_or_insert(error).clone();
        // Whoever waits in the kernel wakes.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        self.changed.notify_all();
        error
    }

    fn send(
        &self,
        mut header: Header,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        id: Option<u16>,
    ) -> Result<u16> {
        let bytes: usize = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        header.size = u32::try_from(bytes).unwrap_or(u32::MAX).into();
        let command = Command(header.command.get());
        let mut next = self.sending.lock();
        let id = id.unwrap_or_else(|| {
            *next = next.wrapping_add(1);
            *next
        });
        header.id = id.into();
        if header.flags.get() & (TYPE_MASK | NO_REPLY) == 0 {
            let mut state = self.state();
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            state.asked.push((id, command));
        }
        let parts: Vec<_> =
            std::iter::once(header.as_bytes()).chain(parts.iter().copied()).collect();
        let sent = wire::send(self.socket.as_fd(), &parts, fds, Instant::now() + self.limit);
        drop(next);
        match sent {
            Ok(true) => Ok(id),
            Ok(false) => Err(self.finish(Error::Silent { command, limit: self.limit })),
            Err(error) => Err(self.finish(error)),
        }
    }

    /// Waits for what is wanted; `None` when `deadline` came first.
    pub(crate) fn wait(
        &self,
        wanted: Wanted,
        deadline: Option<Instant>,
    ) -> Result<Option<Message>> {
        let mut state = self.state();
        loop {
            if let Some(message) = state.take(wanted) {
                // Of those that wait one is to receive from now on.
                if !wanted.stays && !state.receiving {
                    self.changed.notify_all();
                }
                return Ok(Some(message));
            }
            if let Some(error) = &state.broken {
                return Err(error.clone());
            }
            if state.receiving {
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                state = match left {
                    None => self.changed.wait(state),
                    Some(Duration::ZERO) => return Ok(None),
                    Some(left) => self.changed.wait_timeout(state, left).0,
                };
                continue;
            }
            state.receiving = true;
            drop(state);
            let received = wire::receive(self.socket.as_fd(), deadline, self.limit);
            state = self.state();
            state.receiving = false;
            let mut others = true;
            let kept = match received {
                Ok(Some(message)) => {
                    others = !message.is_reply_to(wanted.reply);
                    state.keep(message).map(|()| true)
                }
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            if others || kept.is_err() {
                self.changed.notify_all();
            }
            match kept {
                Ok(true) => {}
                Ok(false) => return Ok(state.take(wanted)),
                Err(error) => {
                    drop(state);
                    self.finish(error);
                    state = self.state();
                }
            }
        }
    }

    /// Sends a command and waits for its reply. Commands of the peer's that come meanwhile are
    /// given to `serve`, if any.
    pub(crate) fn ask(
        &self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
        serve: Option<&mut dyn FnMut(Message) -> Result<()>>,
    ) -> Result<Message> {
        let id = self.begin(command, parts, fds)?;
        self.answer(command, id, serve, Then::Leaves)
    }

    /// Sends a command, whose reply is to be waited for with [`Connection::answer`]: one that is not stays here.
    pub(crate) fn begin(
        &self,
        command: Command,
        parts: &[&[u8]],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u16> {
        let header = Header { command: command.0.into(), ..Header::default() };
        self.send(header, parts, fds, None)
    }

    /// Waits for the reply to the command that has `id`, as [`Connection::ask`].
    pub(crate) fn answer(
        &self,
        command: Command,
        id: u16,
        mut serve: Option<&mut dyn FnMut(Message) -> Result<()>>,
        then: Then,
    ) -> Result<Message> {
        let stays = then == Then::Waits;
        let deadline = Instant::now() + self.limit;
        loop {
            let wanted = Wanted { reply: Some(id), command: serve.is_some(), stays };
            // A peer that asks all the time and never answers is silent too.
            let late = Instant::now() >= deadline;
            let Some(message) = self.wait(wanted, Some(deadline))?.filter(|_| !late) else {
                return Err(self.finish(Error::Silent { command, limit: self.limit }));
            };
            if message.header.flags.get() & TYPE_MASK == TYPE_REPLY {
                return answered(command, message);
            }
            if let Some(serve) = &mut serve {
                serve(message)?;
            }
        }
    }

    /// Answers a command, unless it wants no answer.
    pub(crate) fn reply(&self, to: &Header, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if to.flags.get() & NO_REPLY != 0 {
            return Ok(());
        }
        let header = Header { command: to.command, flags: TYPE_REPLY.into(), ..Header::default() };
        self.send(header, parts, fds, Some(to.id.get())).map(|_| ())
    }

    /// Answers a command with an error, unless it wants no answer.
    pub(crate) fn refuse(&self, to: &Header, errno: Errno) -> Result<()> {
        if to.flags.get() & NO_REPLY != 0 {
            return Ok(());
        }
        let header = Header {
            command: to.command,
            flags: (TYPE_REPLY | ERROR).into(),
            error: errno.raw_os_error().unsigned_abs().into(),
            ..Header::default()
        };
        self.send(header, &[], &[], Some(to.id.get())).map(|_| ())
    }
}

impl AsFd for Connection {
    /// To be polled for input, never to be read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A reply, or the error that it is.
fn answered(command: Command, message: Message) -> Result<Message> {
    if message.header.flags.get() & ERROR == 0 {
        return Ok(message);
    }
    let error = i32::try_from(message.header.error.get()).unwrap_or(0);
    // Linux's errors end at 4095; a peer may say nothing, or anything.
    let errno = if (1..=4095).contains(&error) { error } else { Errno::IO.raw_os_error() };
    Err(Error::Refused { command, errno: Errno::from_raw_os_error(errno) })
}
