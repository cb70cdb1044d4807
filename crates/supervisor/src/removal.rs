//! Surprise removal: what a client sees of its devices when the process that simulated them is gone.
//!
//! The supervisor tells its watchdog beforehand what that takes, in messages: the listener, by what our files and
//! nodes are recognised, each device file with the ranges of its BAR pages, and the eventfds for the error and the
//! request interrupt. Both keep the same list; a supervisor that lost its watchdog hands the list to the next.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasis_sys::message;
use ioasis_sys::notify::Listener;
use ioasis_uapi::{Errno, Error, Result};

use crate::view::{Identity, Node};

/// By what a client's files and paths are recognised as ours.
#[derive(Clone, Debug, Default)]
pub(crate) struct Marks {
    /// `st_dev` of every file given to the client.
    pub(crate) files: u64,
    /// Inodes of the device nodes.
    pub(crate) nodes: Vec<(u64, u64)>,
}

/// Everything that is left to do once the supervisor is gone.
#[derive(Debug, Default)]
pub(crate) struct Removal {
    pub(crate) listener: Option<Listener>,
    pub(crate) marks: Marks,
    devices: Vec<DeviceFile>,
    events: Vec<Event>,
}

/// A device file that a client has open.
#[derive(Debug)]
struct DeviceFile {
    inode: u64,
    file: OwnedFd,
    ranges: Vec<(u64, u64)>,
}

/// An eventfd that says that a device is gone.
#[derive(Debug)]
struct Event {
    inode: u64,
    index: u32,
    file: OwnedFd,
}

/// What the supervisor tells the watchdog.
#[derive(Debug)]
pub(crate) enum Note {
    /// The client is about to start.
    Launched {
        /// Where its system calls arrive.
        listener: Listener,
        /// By what its files are recognised.
        marks: Marks,
    },
    /// It could not be started.
    Failed(Failure),
    /// A device file was opened.
    Opened {
        /// Inode of the file.
        inode: u64,
        /// Another open of the same inode, so that the client's last close stays its last.
        file: OwnedFd,
        /// Offset and length of its BAR pages.
        ranges: Vec<(u64, u64)>,
    },
    /// The last descriptor of a device file was closed.
    Closed {
        /// Inode of the file.
        inode: u64,
    },
    /// The eventfd of an interrupt that fires on removal was set, or taken away.
    Event {
        /// Inode of the device file.
        inode: u64,
        /// `VFIO_PCI_ERR_IRQ_INDEX` or `VFIO_PCI_REQ_IRQ_INDEX`.
        index: u32,
        /// The eventfd.
        file: Option<OwnedFd>,
    },
}

/// Why no client was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What a shell would return: 127 for a program that does not exist, 126 for one that cannot be executed, 125 for
    /// everything before that.
    pub status: u8,
    /// In words.
    pub why: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// A failure before the program was even looked for.
    pub(crate) fn before_start(why: impl Into<String>) -> Self {
        Self { status: 125, why: why.into() }
    }
}

impl Removal {
    /// Keeps what `note` says.
    pub(crate) fn keep(&mut self, note: Note) {
        match note {
            Note::Launched { listener, marks } => {
                self.listener = Some(listener);
                self.marks = marks;
            }
            Note::Failed(_) => {}
            Note::Opened { inode, file, ranges } => {
                self.devices.push(DeviceFile { inode, file, ranges });
            }
            Note::Closed { inode } => {
                self.devices.retain(|device| device.inode != inode);
                self.events.retain(|event| event.inode != inode);
            }
            Note::Event { inode, index, file } => {
                self.events.retain(|event| (event.inode, event.index) != (inode, index));
                self.events.extend(file.map(|file| Event { inode, index, file }));
            }
        }
    }

    /// Every descriptor of the list.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let devices = self.devices.iter().map(|device| device.file.as_fd());
        let events = self.events.iter().map(|event| event.file.as_fd());
        devices.chain(events).chain(self.listener.iter().map(AsFd::as_fd))
    }

    /// Makes the devices look removed: every register reads all ones, and whoever waits is told.
    pub(crate) fn perform(&self) {
        const ONES: [u8; 4096] = [0xff; 4096];
        for device in &self.devices {
            for &(offset, length) in &device.ranges {
                let mut at = 0;
                while at < length {
                    let part = usize::try_from((length - at).min(4096)).expect("a page");
                    // A client that shrank the file has lost its pages anyway.
                    let _ = rustix::io::pwrite(&device.file, &ONES[..part], offset + at);
                    at += 4096;
                }
            }
        }
        for event in &self.events {
            let _ = rustix::io::write(&event.file, &1_u64.to_ne_bytes());
        }
    }
}

/// More than any note takes.
const LIMIT: usize = 1 << 20;

impl Note {
    /// Sends it.
    ///
    /// # Errors
    ///
    /// `EPIPE` if nobody is there to read it.
    pub(crate) fn send(&self, socket: impl AsFd) -> Result<()> {
        let (mut bytes, mut fds) = (Vec::new(), Vec::new());
        let mut number = |value: u64| bytes.extend(value.to_ne_bytes());
        match self {
            Self::Launched { listener, marks } => {
                number(0);
                number(marks.files);
                for &(dev, ino) in &marks.nodes {
                    number(dev);
                    number(ino);
                }
                fds.push(listener.as_fd());
            }
            Self::Failed(failure) => {
                number(1);
                number(failure.status.into());
                bytes.extend(failure.why.as_bytes());
            }
            Self::Opened { inode, file, ranges } => {
                number(2);
                number(*inode);
                for &(offset, length) in ranges {
                    number(offset);
                    number(length);
                }
                fds.push(file.as_fd());
            }
            Self::Closed { inode } => {
                number(3);
                number(*inode);
            }
            Self::Event { inode, index, file } => {
                number(4);
                number(*inode);
                number((*index).into());
                fds.extend(file.iter().map(AsFd::as_fd));
            }
        }
        message::send(socket, &bytes, &fds)
    }

    /// Waits for the next one; `None` once the sender is gone.
    ///
    /// # Errors
    ///
    /// `EBADE` for a message that is none of ours.
    pub(crate) fn receive(socket: impl AsFd) -> Result<Option<Self>> {
        let (bytes, mut fds) = message::receive(socket, LIMIT)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let file = fds.pop();
        let numbers: Vec<u64> =
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes"))).collect();
        let note = match (numbers.as_slice(), file) {
            (&[0, files, ref nodes @ ..], Some(file)) => {
                let marks = Marks { files, nodes: pairs(nodes) };
                Self::Launched { listener: Listener::new(file), marks }
            }
            (&[1, status, ..], None) => Self::Failed(Failure {
                status: u8::try_from(status).unwrap_or(125),
                why: String::from_utf8_lossy(&bytes[16..]).into_owned(),
            }),
            (&[2, inode, ref ranges @ ..], Some(file)) => {
                Self::Opened { inode, file, ranges: pairs(ranges) }
            }
            (&[3, inode], None) => Self::Closed { inode },
            (&[4, inode, index], file) => {
                Self::Event { inode, index: u32::try_from(index).unwrap_or(u32::MAX), file }
            }
            _ => return Err(Error::new(Errno::EBADE, "a note that cannot be read")),
        };
        Ok(Some(note))
    }
}

fn pairs(numbers: &[u64]) -> Vec<(u64, u64)> {
    numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

impl Marks {
    /// The marks of a view's nodes and files.
    pub(crate) fn new(files: u64, nodes: &[Identity]) -> Self {
        let opened = nodes.iter().filter(|identity| !matches!(identity.node, Node::Attribute(_)));
        Self { files, nodes: opened.map(|identity| (identity.dev, identity.ino)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek};

    fn memory(length: u64) -> File {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        rustix::fs::ftruncate(&file, length).expect("room");
        File::from(file)
    }

    #[test]
    fn a_note_arrives_as_it_was_sent() {
        let (one, other) = message::pair().expect("sockets");
        let failure = Failure { status: 127, why: "no such program: xyz".to_owned() };
        Note::Failed(failure.clone()).send(&one).expect("sent");
        let file = OwnedFd::from(memory(0));
        Note::Opened { inode: 7, file, ranges: vec![(1 << 40, 8192)] }.send(&one).expect("sent");
        Note::Event { inode: 7, index: 4, file: None }.send(&one).expect("sent");
        drop(one);
        assert!(matches!(Note::receive(&other), Ok(Some(Note::Failed(found))) if found == failure));
        let Ok(Some(Note::Opened { inode: 7, ranges, .. })) = Note::receive(&other) else { panic!() };
        assert_eq!(ranges, [(1 << 40, 8192)]);
        let event = Note::receive(&other);
        assert!(matches!(event, Ok(Some(Note::Event { inode: 7, index: 4, file: None }))));
        assert!(matches!(Note::receive(&other), Ok(None)));
    }

    #[test]
    fn a_removed_device_reads_all_ones_and_says_so() {
        let mut bar = memory(16384);
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("an eventfd");
        let (gone, kept) = (event.try_clone().expect("a copy"), event.try_clone().expect("a copy"));
        let mut removal = Removal::default();
        let copy = OwnedFd::from(bar.try_clone().expect("a copy"));
        removal.keep(Note::Opened { inode: 1, file: copy, ranges: vec![(4096, 8192)] });
        removal.keep(Note::Event { inode: 1, index: 3, file: Some(gone) });
        removal.keep(Note::Event { inode: 2, index: 4, file: Some(kept) });
        removal.keep(Note::Closed { inode: 2 });
        removal.perform();
        let mut bytes = Vec::new();
        bar.rewind().and_then(|()| bar.read_to_end(&mut bytes)).expect("read");
        assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|&byte| byte == 0));
        assert!(bytes[4096..12288].iter().all(|&byte| byte == 0xff));
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).expect("it fired");
        assert_eq!(u64::from_ne_bytes(count), 1);
    }
}
