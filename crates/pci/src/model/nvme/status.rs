//! Completion status (NVMe 1.4, 4.6.1): code type in bits 10:8, code in bits 7:0.

/// What a command is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status(u16);

/// Trying again will not help: bit 14 of the status field.
const DO_NOT_RETRY: u16 = 1 << 14;
/// The error log tells more: bit 13.
const MORE: u16 = 1 << 13;

macro_rules! statuses {
    ($($name:ident = $code:literal $(, $retry:ident)?; $doc:literal)*) => {
        impl Status {
            $(#[doc = $doc] pub(super) const $name: Self = Self($code $(| $retry)?);)*
        }
    };
}

statuses! {
    SUCCESS = 0x000; "Done."
    INVALID_OPCODE = 0x001, DO_NOT_RETRY; "There is no such command."
    INVALID_FIELD = 0x002, DO_NOT_RETRY; "A field has a value it must not have."
    ID_CONFLICT = 0x003, DO_NOT_RETRY; "The command identifier is in use."
    DATA_TRANSFER_ERROR = 0x004; "Memory of the program could not be reached."
    INTERNAL_ERROR = 0x006; "The controller failed."
    ABORT_REQUESTED = 0x007; "Aborted by an Abort command."
    INVALID_NAMESPACE = 0x00b, DO_NOT_RETRY; "There is no such namespace."
    SEQUENCE_ERROR = 0x00c, DO_NOT_RETRY; "Not at this time."
    PRP_OFFSET_INVALID = 0x013, DO_NOT_RETRY; "A PRP entry has an offset it must not have."
    WRITE_PROTECTED = 0x020, DO_NOT_RETRY; "The namespace is write-protected."
    LBA_OUT_OF_RANGE = 0x080, DO_NOT_RETRY; "Blocks past the end of the namespace."
    COMPLETION_QUEUE_INVALID = 0x100, DO_NOT_RETRY; "There is no such completion queue."
    INVALID_QUEUE_ID = 0x101, DO_NOT_RETRY; "The queue identifier is out of range or in use, or not in use."
    INVALID_QUEUE_SIZE = 0x102, DO_NOT_RETRY; "A queue has 2 entries at least and CAP.MQES at most."
    EVENT_LIMIT_EXCEEDED = 0x105, DO_NOT_RETRY; "Too many Asynchronous Event Requests."
    INVALID_VECTOR = 0x108, DO_NOT_RETRY; "There is no such interrupt vector."
    INVALID_LOG_PAGE = 0x109, DO_NOT_RETRY; "There is no such log page."
    INVALID_QUEUE_DELETION = 0x10c, DO_NOT_RETRY; "Submission queues still use the completion queue."
    NOT_SAVEABLE = 0x10d, DO_NOT_RETRY; "The feature cannot be saved."
    NOT_CHANGEABLE = 0x10e, DO_NOT_RETRY; "The feature cannot be changed."
    WRITE_FAULT = 0x280; "The image could not be written."
    UNRECOVERED_READ = 0x281; "The image could not be read."
    COMPARE_FAILURE = 0x285; "Memory and blocks differ."
}

impl Status {
    pub(super) fn is_error(self) -> bool {
        self != Self::SUCCESS
    }

    /// The same with the bit that sends the program to the error log.
    pub(super) const fn logged(self) -> Self {
        Self(self.0 | MORE)
    }

    /// As it is saved.
    pub(super) const fn raw(self) -> u16 {
        self.0
    }

    /// As it was saved.
    pub(super) const fn from_raw(raw: u16) -> Self {
        Self(raw & 0x7fff)
    }

    /// Bits 15:1 of a status field; the phase is bit 0.
    pub(super) const fn field(self) -> u16 {
        self.0 << 1
    }
}
