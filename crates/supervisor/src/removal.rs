//! Surprise removal: what a client sees of its devices when the process that simulated them is gone.
//!
//! The supervisor tells its watchdog beforehand what that takes, in messages: the listener, by what our files and
//! nodes are recognised, each device file with the ranges of its BAR pages, and the eventfds for the error and the
//! request interrupt. Both keep the same list; a supervisor that lost its watchdog hands the list to the next.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ioasis_sys::eventfd::EventFd;
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
    /// The client, to pass signals on to.
    pub(crate) client: Option<OwnedFd>,
    pub(crate) marks: Marks,
    devices: Vec<DeviceFile>,
    triggers: Vec<Trigger>,
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
struct Trigger {
    inode: u64,
    eventfd: EventFd,
}

/// What the supervisor tells the watchdog.
#[derive(Debug)]
pub(crate) enum Note {
    /// The client is about to start.
    Launched {
        /// Where its system calls arrive.
        listener: Listener,
        /// A pidfd of the client.
        client: OwnedFd,
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
    /// The eventfds that fire on removal were set, or taken away.
    Triggers {
        /// Inode of the device file.
        inode: u64,
        /// All there are now.
        eventfds: Vec<OwnedFd>,
    },
    /// The run is over, and the supervisor is about to end.
    Ended,
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
            Note::Launched { listener, client, marks } => {
                self.listener = Some(listener);
                self.client = Some(client);
                self.marks = marks;
            }
            Note::Failed(_) | Note::Ended => {}
            Note::Opened { inode, file, ranges } => {
                self.devices.push(DeviceFile { inode, file, ranges });
            }
            Note::Closed { inode } => {
                self.devices.retain(|device| device.inode != inode);
                self.triggers.retain(|trigger| trigger.inode != inode);
            }
            Note::Triggers { inode, eventfds } => {
                self.triggers.retain(|trigger| trigger.inode != inode);
                let eventfds = eventfds.into_iter().filter_map(|file| EventFd::from_fd(file).ok());
                self.triggers.extend(eventfds.map(|eventfd| Trigger { inode, eventfd }));
            }
        }
    }

    /// Every descriptor of the list.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let devices = self.devices.iter().map(|device| device.file.as_fd());
        let triggers = self.triggers.iter().map(|trigger| trigger.eventfd.as_fd());
        let client = self.client.iter().map(AsFd::as_fd);
        devices.chain(triggers).chain(self.listener.iter().map(AsFd::as_fd)).chain(client)
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
        for trigger in &self.triggers {
            trigger.eventfd.signal();
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
            Self::Launched { listener, client, marks } => {
                number(0);
                number(marks.files);
                for &(dev, ino) in &marks.nodes {
                    number(dev);
                    number(ino);
                }
                fds.extend([listener.as_fd(), client.as_fd()]);
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
            Self::Triggers { inode, eventfds } => {
                number(4);
                number(*inode);
                fds.extend(eventfds.iter().map(AsFd::as_fd));
            }
            Self::Ended => number(5),
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
        let pair = if fds.len() == 2 && bytes.starts_with(&0_u64.to_ne_bytes()) {
            fds.pop().zip(fds.pop())
        } else {
            None
        };
        let file = if fds.len() == 1 { fds.pop() } else { None };
        let numbers: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes")))
            .collect();
        let note = match (numbers.as_slice(), file) {
            (&[0, files, ref nodes @ ..], None) => {
                let Some((client, listener)) = pair else {
                    return Err(Error::new(Errno::EBADE, "a launch without its descriptors"));
                };
                let marks = Marks { files, nodes: pairs(nodes) };
                Self::Launched { listener: Listener::new(listener), client, marks }
            }
            (&[1, status, ..], None) => Self::Failed(Failure {
                status: u8::try_from(status).unwrap_or(125),
                why: String::from_utf8_lossy(&bytes[16..]).into_owned(),
            }),
            (&[2, inode, ref ranges @ ..], Some(file)) => {
                Self::Opened { inode, file, ranges: pairs(ranges) }
            }
            (&[3, inode], None) => Self::Closed { inode },
            (&[4, inode], file) => {
                fds.extend(file);
                Self::Triggers { inode, eventfds: fds }
            }
            (&[5], None) => Self::Ended,
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
        let is_text = |node| {
            matches!(
                node,
                Node::Attribute(_)
                    | Node::FaultSetting
                    | Node::Parameter(_)
                    | Node::Resource(_)
                    | Node::Config(_)
            )
        };
        let opened = nodes.iter().filter(|identity| !is_text(identity.node));
        Self { files, nodes: opened.map(|identity| (identity.dev, identity.ino)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek};

    fn memory(length: u64) -> File {
        let file =
            rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
        rustix::fs::ftruncate(&file, length).expect("room");
        File::from(file)
    }

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("an eventfd")
    }

    #[test]
    fn a_note_arrives_as_it_was_sent() {
        let (one, other) = message::pair().expect("sockets");
        let failure = Failure { status: 127, why: "no such program: xyz".to_owned() };
        Note::Failed(failure.clone()).send(&one).expect("sent");
        let file = OwnedFd::from(memory(0));
        Note::Opened { inode: 7, file, ranges: vec![(1 << 40, 8192)] }.send(&one).expect("sent");
        let eventfds = [eventfd(), eventfd()].into();
        Note::Triggers { inode: 7, eventfds }.send(&one).expect("sent");
        drop(one);
        assert!(matches!(Note::receive(&other), Ok(Some(Note::Failed(found))) if found == failure));
        let Ok(Some(Note::Opened { inode: 7, ranges, .. })) = Note::receive(&other) else {
            panic!()
        };
        assert_eq!(ranges, [(1 << 40, 8192)]);
        let triggers = Note::receive(&other);
        assert!(
            matches!(triggers, Ok(Some(Note::Triggers { inode: 7, eventfds })) if eventfds.len() == 2)
        );
        assert!(matches!(Note::receive(&other), Ok(None)));
    }

    #[test]
    fn a_removed_device_reads_all_ones_and_says_so() {
        let mut bar = memory(16384);
        let (gone, kept) = (eventfd(), eventfd());
        let copy = |fd: &OwnedFd| fd.try_clone().expect("a copy");
        let mut removal = Removal::default();
        removal.keep(Note::Opened {
            inode: 1,
            file: copy(&bar.as_fd().try_clone_to_owned().expect("a copy")),
            ranges: vec![(4096, 8192)],
        });
        removal.keep(Note::Triggers { inode: 1, eventfds: vec![copy(&gone)] });
        removal.keep(Note::Triggers { inode: 2, eventfds: vec![copy(&kept)] });
        removal.keep(Note::Closed { inode: 2 });
        removal.perform();
        let mut bytes = Vec::new();
        bar.rewind().and_then(|()| bar.read_to_end(&mut bytes)).expect("read");
        assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|&byte| byte == 0));
        assert!(bytes[4096..12288].iter().all(|&byte| byte == 0xff));
        let count = |fd| EventFd::from_fd(fd).expect("an eventfd").take();
        assert_eq!((count(gone), count(kept)), (Some(1), None));
    }
}
