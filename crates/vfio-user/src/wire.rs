//! Bytes and descriptors through a stream socket, each wait bounded.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};
use crate::message::{Command, HEADER, Header, MAX_FDS, MAX_MESSAGE, TYPE_MASK, TYPE_REPLY};

/// A message as it came: its header is checked, its body is not.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Message {
    pub(crate) fn command(&self) -> Command {
        Command(self.header.command.get())
    }

    /// Whether it is the reply to the command that has `id`.
    pub(crate) fn is_reply_to(&self, id: Option<u16>) -> bool {
        self.header.flags.get() & TYPE_MASK == TYPE_REPLY && id == Some(self.header.id.get())
    }
}

/// Waits until `socket` is ready for `wanted`; `false` when `deadline` came first.
fn ready(socket: BorrowedFd<'_>, wanted: PollFlags, deadline: Option<Instant>) -> Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec::try_from(left).unwrap_or(Timespec::default()));
        match rustix::event::poll(&mut [PollFd::new(&socket, wanted)], timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::System { what: "poll", errno }),
        }
    }
}

/// Sends `parts` one after another as one message, the descriptors with its first byte. `false`
/// when the peer took not all of it before `deadline`: the connection is then of no use.
///
/// # Errors
///
/// [`Error::Closed`], or what the system answers.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    deadline: Instant,
) -> Result<bool> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut sent = 0;
    while sent < total {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !fds.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "a message carries {MAX_FDS} descriptors");
        }
        let mut skip = sent;
        let mut slices = Vec::with_capacity(parts.len());
        for part in parts {
            let gone = skip.min(part.len());
            skip -= gone;
            slices.push(IoSlice::new(&part[gone..]));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match rustix::net::sendmsg(socket, &slices, &mut ancillary, flags) {
            Ok(bytes) => sent += bytes,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if !ready(socket, PollFlags::OUT, Some(deadline))? {
                    return Ok(false);
                }
            }
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(Error::Closed),
            Err(errno) => return Err(Error::System { what: "sendmsg", errno }),
        }
    }
    Ok(true)
}

/// One `recvmsg` into `bytes`, which has room; what came along is added to `fds`. `None` when there
/// is nothing now.
fn receive_some(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> Result<Option<usize>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match rustix::net::recvmsg(socket, &mut slices, &mut ancillary, flags) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(Error::Closed),
            Err(errno) => return Err(Error::System { what: "recvmsg", errno }),
        }
    };
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let many = received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS;
    if many {
        let why = "more descriptors than a message may carry";
        return Err(Error::malformed(Command(0), why, MAX_FDS as u64));
    }
    if received.bytes == 0 {
        return Err(Error::Closed);
    }
    Ok(Some(received.bytes))
}

/// Fills `bytes`, of which the first must have come by `first` and the rest `limit` after it.
/// `false` when the first did not come.
fn fill(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    first: Option<Instant>,
    limit: Duration,
) -> Result<bool> {
    let mut filled = 0;
    let mut deadline = first;
    while filled < bytes.len() {
        if let Some(count) = receive_some(socket, &mut bytes[filled..], fds)? {
            if filled == 0 {
                deadline = Some(Instant::now() + limit);
            }
            filled += count;
        } else if !ready(socket, PollFlags::IN, deadline)? {
            return if filled == 0 { Ok(false) } else { Err(Error::Half(limit)) };
        }
    }
    Ok(true)
}

/// Receives a message, whose first byte must come before `first` (or whenever it comes) and the
/// rest `limit` after it. `None` when nothing came.
///
/// # Errors
///
/// [`Error::Closed`], [`Error::Half`], [`Error::Malformed`] for a header that cannot be.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    first: Option<Instant>,
    limit: Duration,
) -> Result<Option<Message>> {
    let (mut header, mut fds) = ([0; HEADER], Vec::new());
    if !fill(socket, &mut header, &mut fds, first, limit)? {
        return Ok(None);
    }
    let header = Header::read_from_bytes(header.as_bytes()).expect("as many bytes");
    let command = Command(header.command.get());
    let size = usize::try_from(header.size.get()).unwrap_or(usize::MAX);
    if !(HEADER..=MAX_MESSAGE).contains(&size) {
        return Err(Error::malformed(command, "a message of that size", size as u64));
    }
    let mut body = vec![0; size - HEADER];
    let deadline = Some(Instant::now() + limit);
    if !body.is_empty() && !fill(socket, &mut body, &mut fds, deadline, limit)? {
        return Err(Error::Half(limit));
    }
    Ok(Some(Message { header, body, fds }))
}

/// Whether something, an end included, is there to be received.
pub(crate) fn has_input(socket: impl AsFd) -> bool {
    ready(socket.as_fd(), PollFlags::IN, Some(Instant::now())).unwrap_or(true)
}
