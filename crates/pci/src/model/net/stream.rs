//! A stream socket, as QEMU's `-netdev stream` and passt have it: before each packet its length in
//! four bytes, the highest first (QEMU, net/stream.c, net_stream_receive).
//!
//! The socket never makes the card wait: what cannot be written at once is kept, and the card has
//! no room until it could.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::{Backend, PACKET_MAX, WAITING_MAX};
use crate::model::options::ModelError;

/// Bytes read at once.
const READ: usize = 128 << 10;

/// A connected socket.
#[derive(Debug)]
pub(super) struct Stream {
    /// `None` once the other side is gone.
    socket: Option<UnixStream>,
    running: bool,
    /// Bytes that came, from `taken` on not yet taken.
    came: Vec<u8>,
    taken: usize,
    /// Bytes that are still to be written.
    leaves: Vec<u8>,
}

impl Stream {
    pub(super) fn connect(model: &str, path: &str) -> Result<Self, ModelError> {
        let refused =
            |error| ModelError::new(format!("{model}: stream={path} cannot be connected: {error}"));
        let socket = UnixStream::connect(path).map_err(refused)?;
        socket.set_nonblocking(true).map_err(refused)?;
        Ok(Self::over(socket))
    }

    fn over(socket: UnixStream) -> Self {
        Self {
            socket: Some(socket),
            running: false,
            came: Vec::new(),
            taken: 0,
            leaves: Vec::new(),
        }
    }

    /// Writes as much as goes without waiting.
    fn flush(&mut self) {
        while !self.leaves.is_empty()
            && let Some(socket) = &mut self.socket
        {
            match socket.write(&self.leaves) {
                Ok(0) => self.socket = None,
                Ok(written) => drop(self.leaves.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.socket = None,
            }
        }
        if self.socket.is_none() {
            self.leaves.clear();
        }
    }

    /// Reads what there is.
    fn fill(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        self.came.drain(..self.taken);
        self.taken = 0;
        let held = self.came.len();
        self.came.resize(held + READ, 0);
        let read = socket.read(&mut self.came[held..]);
        self.came.truncate(held + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.socket = None,
            Err(error)
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                self.socket = None;
            }
            _ => {}
        }
    }

    /// Puts the next packet that came whole into `packet`, if there is one.
    fn next(&mut self, packet: &mut Vec<u8>) -> bool {
        let Some((length, rest)) = self.came[self.taken..].split_first_chunk::<4>() else {
            return false;
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > PACKET_MAX {
            // Whoever says so does not speak this protocol.
            self.socket = None;
            self.came.clear();
            self.taken = 0;
            return false;
        }
        let Some(bytes) = rest.get(..length) else { return false };
        packet.clear();
        packet.extend_from_slice(bytes);
        self.taken += 4 + length;
        true
    }
}

impl Backend for Stream {
    fn room(&self) -> usize {
        if self.leaves.len() < PACKET_MAX { WAITING_MAX } else { 0 }
    }

    fn send(&mut self, packet: &[u8]) {
        if self.socket.is_none() {
            return;
        }
        let length = u32::try_from(packet.len()).expect("64 KiB at most");
        self.leaves.extend_from_slice(&length.to_be_bytes());
        self.leaves.extend_from_slice(packet);
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> bool {
        if self.next(packet) {
            return true;
        }
        self.fill();
        self.next(packet)
    }

    fn is_up(&self) -> bool {
        self.socket.is_some()
    }

    fn is_silent(&self) -> bool {
        self.is_up()
    }

    fn set_running(&mut self, running: bool) {
        self.running = running;
    }

    fn settle(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        ours.set_nonblocking(true).expect("set");
        (Stream::over(ours), theirs)
    }

    #[test]
    fn a_packet_that_comes_in_pieces_is_taken_when_it_is_whole() {
        let (mut stream, mut theirs) = connected();
        let mut packet = Vec::new();
        let sent = [0, 0, 0, 3, 7, 8, 9, 0, 0, 0, 1, 5];
        for byte in &sent[..6] {
            theirs.write_all(&[*byte]).unwrap();
            assert!(!stream.receive(&mut packet));
        }
        theirs.write_all(&sent[6..]).unwrap();
        assert!(stream.receive(&mut packet) && packet == [7, 8, 9]);
        assert!(stream.receive(&mut packet) && packet == [5]);
        assert!(!stream.receive(&mut packet) && stream.is_up());
    }

    #[test]
    fn a_peer_that_goes_or_says_nonsense_is_a_cable_that_leads_nowhere() {
        let (mut stream, theirs) = connected();
        drop(theirs);
        assert!(!stream.receive(&mut Vec::new()) && !stream.is_up());
        stream.send(&[1; 60]);
        stream.settle();
        let (mut stream, mut theirs) = connected();
        theirs.write_all(&[0xff; 4]).unwrap();
        assert!(!stream.receive(&mut Vec::new()) && !stream.is_up());
    }

    #[test]
    fn a_peer_that_does_not_read_has_the_card_wait_and_loses_nothing() {
        let (mut stream, mut theirs) = connected();
        let mut sent = 0_u32;
        while stream.room() > 0 {
            stream.send(&vec![sent.to_le_bytes()[0]; 1000]);
            stream.settle();
            sent += 1;
            assert!(sent < 100_000, "a socket has an end");
        }
        let mut seen = vec![0; sent as usize * 1004];
        let reader = std::thread::spawn(move || {
            theirs.read_exact(&mut seen).unwrap();
            seen
        });
        while stream.room() == 0 || !stream.leaves.is_empty() {
            stream.settle();
            std::thread::yield_now();
        }
        let seen = reader.join().unwrap();
        for (at, packet) in seen.chunks_exact(1004).enumerate() {
            assert_eq!(packet[..4], 1000_u32.to_be_bytes());
            assert_eq!(packet[4..], [at.to_le_bytes()[0]; 1000]);
        }
    }
}
