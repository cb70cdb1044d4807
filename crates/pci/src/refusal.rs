//! What a device could not do for another reason than a translation: in words, for people, with what to do about it.
//!
//! A program learns of it as of a real device, which is to say hardly: a register that reports an error, an interrupt that does
//! not come.

use std::borrow::Cow;
use std::fmt::{self, Debug};
use std::io;

use ioasis_uapi::Errno;

/// The direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of memory, or out of the image.
    Read,
    /// Into it.
    Write,
}

/// Why a function sends nothing, or does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// COMMAND does not let it be a bus master.
    Master,
    /// COMMAND does not let its memory BARs answer.
    Memory,
    /// It sleeps.
    D3hot,
    /// It is stopped for migration.
    Stopped,
}

impl Closed {
    /// The reason in words.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Master => "bus mastering is off",
            Self::Memory => "memory decoding is off",
            Self::D3hot => "the function is in D3hot",
            Self::Stopped => "the device is stopped for migration",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Master => "set bit 2 of COMMAND",
            Self::Memory => "set bit 1 of COMMAND",
            Self::D3hot => "write power state D0 to its power management capability, or reset it",
            Self::Stopped => "leave the device alone until its migration state is RUNNING",
        }
    }

    /// Reason and remedy of a call that a BAR does not answer.
    pub(crate) const fn unanswered(self) -> &'static str {
        match self {
            Self::D3hot => {
                "the function is in D3hot: write power state D0 to its power management capability, or reset it"
            }
            Self::Master | Self::Memory | Self::Stopped => {
                "memory decoding is off: set bit 1 of COMMAND"
            }
        }
    }
}

/// What was to be done with an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageAccess {
    /// Bytes read.
    Read,
    /// Bytes written, or made zero.
    Write,
    /// Bytes given back to the file system.
    Deallocate,
    /// All that was written brought to the disk.
    Sync,
}

/// What a device could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A transfer.
    Dma {
        /// Its direction.
        way: Way,
        /// Its first address.
        iova: u64,
        /// Why.
        closed: Closed,
    },
    /// A message that interrupts.
    Message {
        /// Its vector.
        vector: u16,
        /// Why.
        closed: Closed,
    },
    /// A write that an ioeventfd was to do.
    Doorbell {
        /// The BAR.
        bar: usize,
        /// Offset in it.
        offset: u64,
        /// Why.
        closed: Closed,
    },
    /// What a driver asked for against the rules of the device, which stops until it is reset.
    Driver {
        /// The queue; `None` when it is about the whole device.
        queue: Option<u16>,
        /// What was wrong.
        why: &'static str,
        /// The value that was.
        value: u64,
    },
    /// An access of the file behind the device.
    Image {
        /// What was to be done.
        access: ImageAccess,
        /// Where, in bytes; 0 for all of it.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// What the system answered; `None` when the file ended before.
        errno: Option<Errno>,
    },
}

impl Refusal {
    /// An access of the image that failed with `error`.
    #[must_use]
    pub fn image(access: ImageAccess, (offset, length): (u64, u64), error: &io::Error) -> Self {
        let errno = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::WriteZero => None,
            _ => Some(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)),
        };
        Self::Image { access, offset, length, errno }
    }

    /// The reason in words.
    #[must_use]
    pub fn why(&self) -> Cow<'static, str> {
        match self {
            Self::Dma { closed, .. }
            | Self::Message { closed, .. }
            | Self::Doorbell { closed, .. } => closed.why().into(),
            Self::Driver { why, value, .. } => format!("{why}: {value:#x}").into(),
            Self::Image { errno: None, .. } => "the image ends before".into(),
            Self::Image { errno: Some(errno), .. } => format!("the image answers {errno}").into(),
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Dma { closed, .. }
            | Self::Message { closed, .. }
            | Self::Doorbell { closed, .. } => closed.remedy(),
            Self::Driver { .. } => "its driver is wrong: the device works again after a reset",
            Self::Image { errno, .. } => match errno {
                None => "it was cut while the device ran: make it as long as it was",
                Some(Errno::ENOSPC) => "make room where it lies",
                Some(Errno::EIO) => "look at the disk it lies on: the kernel's log says more",
                Some(_) => "look at the file and at what it lies on",
            },
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Read { "read" } else { "write" })
    }
}

/// What was refused, without the reason.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dma { way, iova, .. } => write!(f, "DMA {way} at iova {iova:#x}"),
            Self::Message { vector, .. } => write!(f, "interrupt message {vector}"),
            Self::Doorbell { bar, offset, .. } => {
                write!(f, "ioeventfd write at BAR{bar}+{offset:#x}")
            }
            Self::Driver { queue: Some(queue), .. } => write!(f, "requests of queue {queue}"),
            Self::Driver { queue: None, .. } => f.write_str("start of the device"),
            Self::Image { access: ImageAccess::Sync, .. } => f.write_str("sync of the image"),
            Self::Image { access, offset, length, .. } => {
                let access = match access {
                    ImageAccess::Read => "read",
                    ImageAccess::Write => "write",
                    ImageAccess::Deallocate | ImageAccess::Sync => "deallocation",
                };
                write!(f, "{access} of {length} bytes of the image at {offset:#x}")
            }
        }
    }
}

/// Is told what a device could not do, by the device's own thread.
pub trait Witness: Debug + Send + Sync {
    /// It happened just now.
    fn refused(&self, refusal: &Refusal);

    /// The device is no more, for the reason in words: it is to be removed, by another thread than this. A device may say so more
    /// than once.
    fn vanished(&self, why: &str) {
        let _ = why;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(refusal: &Refusal) -> String {
        format!("{refusal}: {}; {}", refusal.why(), refusal.remedy())
    }

    #[test]
    fn what_was_refused_is_said_with_a_reason_and_a_remedy() {
        let dma = Refusal::Dma { way: Way::Read, iova: 0x1000, closed: Closed::Master };
        assert_eq!(
            told(&dma),
            "DMA read at iova 0x1000: bus mastering is off; set bit 2 of COMMAND"
        );
        let message = Refusal::Message { vector: 3, closed: Closed::D3hot };
        assert_eq!(
            told(&message),
            "interrupt message 3: the function is in D3hot; write power state D0 to its power management capability, or reset it"
        );
        let doorbell = Refusal::Doorbell { bar: 0, offset: 0x1004, closed: Closed::Memory };
        assert_eq!(
            told(&doorbell),
            "ioeventfd write at BAR0+0x1004: memory decoding is off; set bit 1 of COMMAND"
        );
    }

    #[test]
    fn an_error_of_the_image_says_where_and_what_the_system_answered() {
        let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
        let refusal = Refusal::image(ImageAccess::Read, (0x2000, 512), &cut);
        assert_eq!(
            told(&refusal),
            "read of 512 bytes of the image at 0x2000: the image ends before; it was cut while the device ran: make it as long as it was"
        );
        let full = io::Error::from_raw_os_error(28);
        let refusal = Refusal::image(ImageAccess::Write, (0, 4096), &full);
        assert_eq!(
            told(&refusal),
            "write of 4096 bytes of the image at 0x0: the image answers ENOSPC; make room where it lies"
        );
        let broken = io::Error::from_raw_os_error(5);
        let refusal = Refusal::image(ImageAccess::Sync, (0, 0), &broken);
        assert_eq!(
            told(&refusal),
            "sync of the image: the image answers EIO; look at the disk it lies on: the kernel's log says more"
        );
    }
}
