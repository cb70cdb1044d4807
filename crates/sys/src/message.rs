//! Messages between processes of one program that carry descriptors (unix(7), `SCM_RIGHTS`).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Descriptors one message may carry.
pub const MAX_FDS: usize = 16;

/// Two ends of a connection that keeps the bounds of messages; both are closed on exec.
///
/// # Errors
///
/// `EMFILE`.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(crate::because("a socket pair cannot be made"))
}

/// Sends `bytes`, at least one, and `fds`.
///
/// # Errors
///
/// `EPIPE` if the other end is closed.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(
        fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)),
        "a message carries {MAX_FDS} descriptors"
    );
    let bytes = [IoSlice::new(bytes)];
    loop {
        match rustix::net::sendmsg(&socket, &bytes, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(raw) => return Err(crate::because("a message cannot be sent")(raw)),
        }
    }
}

/// Waits for a message of at most `limit` bytes. No bytes: the other end is closed.
///
/// # Errors
///
/// `EAGAIN` on a socket that does not block, `EMSGSIZE` for a longer message.
pub fn receive(socket: impl AsFd, limit: usize) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok((Vec::new(), Vec::new())),
            Err(raw) => return Err(crate::because("a message cannot be received")(raw)),
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(Error::new(Errno::EMSGSIZE, "a message is longer than its limit"));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    #[test]
    fn a_message_keeps_its_bounds_and_carries_descriptors() {
        let (one, other) = pair().expect("sockets");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        send(&one, b"first", &[writer.as_fd()]).expect("sent");
        send(&one, b"second", &[]).expect("sent");
        drop(writer);
        let (bytes, mut fds) = receive(&other, 64).expect("received");
        assert_eq!((bytes.as_slice(), fds.len()), (b"first".as_slice(), 1));
        File::from(fds.remove(0)).write_all(b"through").expect("written");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read to the end");
        assert_eq!(text, "through");
        assert!(receive(&other, 3).is_err_and(|error| error.errno == Errno::EMSGSIZE));
        drop(one);
        assert!(receive(&other, 64).expect("an end").0.is_empty());
    }
}
