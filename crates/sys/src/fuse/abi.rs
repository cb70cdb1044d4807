//! Layouts and numbers of the kernel's FUSE protocol (linux/fuse.h), as far as they are used.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub(super) const MAJOR: u32 = 7;
/// The minor version whose layouts these are: Linux 5.4 and newer know it.
pub(super) const MINOR: u32 = 31;

pub(super) const LOOKUP: u32 = 1;
pub(super) const FORGET: u32 = 2;
pub(super) const GETATTR: u32 = 3;
pub(super) const SETATTR: u32 = 4;
pub(super) const READLINK: u32 = 5;
pub(super) const SYMLINK: u32 = 6;
pub(super) const UNLINK: u32 = 10;
pub(super) const OPEN: u32 = 14;
pub(super) const READ: u32 = 15;
pub(super) const WRITE: u32 = 16;
pub(super) const STATFS: u32 = 17;
pub(super) const RELEASE: u32 = 18;
pub(super) const FSYNC: u32 = 20;
pub(super) const SETXATTR: u32 = 21;
pub(super) const GETXATTR: u32 = 22;
pub(super) const LISTXATTR: u32 = 23;
pub(super) const REMOVEXATTR: u32 = 24;
pub(super) const INIT: u32 = 26;
pub(super) const OPENDIR: u32 = 27;
pub(super) const READDIR: u32 = 28;
pub(super) const RELEASEDIR: u32 = 29;
pub(super) const FSYNCDIR: u32 = 30;
pub(super) const INTERRUPT: u32 = 36;
pub(super) const POLL: u32 = 40;
pub(super) const NOTIFY_REPLY: u32 = 41;
pub(super) const BATCH_FORGET: u32 = 42;

// Flags of an INIT.
pub(super) const ATOMIC_O_TRUNC: u32 = 1 << 3;
pub(super) const BIG_WRITES: u32 = 1 << 5;
pub(super) const POSIX_ACL: u32 = 1 << 20;
pub(super) const MAX_PAGES: u32 = 1 << 22;

/// A READ that says who reads: one of read(2) and its like. One without fills the page cache.
pub(super) const READ_LOCKOWNER: u32 = 1 << 1;
/// Somebody waits for the answer to change.
pub(super) const POLL_SCHEDULE_NOTIFY: u32 = 1;
/// Code of the message that wakes who polls.
pub(super) const NOTIFY_POLL: i32 = 1;
/// Code of the message that what is known of a file is not true any more.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
/// Code of the message that a name in a directory leads elsewhere.
pub(super) const NOTIFY_INVAL_ENTRY: i32 = 3;

/// What a request begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) extensions: u16,
    pub(super) padding: u16,
}

/// What an answer begins with.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    pub(super) error: i32,
    pub(super) unique: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InitOut {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) max_background: u16,
    pub(super) congestion_threshold: u16,
    pub(super) max_write: u32,
    pub(super) time_gran: u32,
    pub(super) max_pages: u16,
    pub(super) map_alignment: u16,
    pub(super) flags2: u32,
    pub(super) unused: [u32; 7],
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Attr {
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) times: [u64; 3],
    pub(super) times_nsec: [u32; 3],
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) blksize: u32,
    pub(super) flags: u32,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct EntryOut {
    pub(super) node: u64,
    pub(super) generation: u64,
    pub(super) entry_valid: u64,
    pub(super) attr_valid: u64,
    pub(super) entry_valid_nsec: u32,
    pub(super) attr_valid_nsec: u32,
    pub(super) attr: Attr,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) unused: u32,
    pub(super) attr: Attr,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SetattrIn {
    pub(super) valid: u32,
    pub(super) padding: u32,
    pub(super) fh: u64,
    pub(super) size: u64,
    pub(super) lock_owner: u64,
    pub(super) times: [u64; 3],
    pub(super) times_nsec: [u32; 3],
    pub(super) mode: u32,
    pub(super) unused4: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) unused5: u32,
}

/// Of a GETXATTR, LISTXATTR (where the second word is padding) and SETXATTR.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct ExtendedIn {
    pub(super) size: u32,
    pub(super) flags: u32,
}

/// Of a GETXATTR and LISTXATTR that ask how many bytes there are.
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct SizeOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OpenIn {
    pub(super) flags: u32,
    pub(super) open_flags: u32,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct OpenOut {
    pub(super) fh: u64,
    pub(super) open_flags: u32,
    pub(super) padding: u32,
}

/// Of a READ and a WRITE.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct TransferIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) transfer_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct WriteOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PollIn {
    pub(super) fh: u64,
    pub(super) kh: u64,
    pub(super) flags: u32,
    pub(super) events: u32,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct PollOut {
    pub(super) revents: u32,
    pub(super) padding: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InterruptIn {
    pub(super) unique: u64,
}

#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InvalInodeOut {
    pub(super) node: u64,
    pub(super) offset: i64,
    pub(super) length: i64,
}

/// Followed by the name and a NUL.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InvalEntryOut {
    pub(super) parent: u64,
    pub(super) name_length: u32,
    pub(super) flags: u32,
}

/// Followed by the name, and zeros up to a multiple of eight bytes.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) node: u64,
    pub(super) offset: u64,
    pub(super) name_length: u32,
    pub(super) kind: u32,
}

#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub(super) counts: [u64; 5],
    pub(super) bsize: u32,
    pub(super) namelen: u32,
    pub(super) frsize: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

const _: () = assert!(size_of::<InHeader>() == 40 && size_of::<OutHeader>() == 16);
const _: () = assert!(size_of::<InitOut>() == 64 && size_of::<StatfsOut>() == 80);
const _: () = assert!(size_of::<SetattrIn>() == 88 && size_of::<ExtendedIn>() == 8);
const _: () = assert!(size_of::<Attr>() == 88 && size_of::<EntryOut>() == 128);
const _: () = assert!(size_of::<AttrOut>() == 104 && size_of::<TransferIn>() == 40);
const _: () = assert!(size_of::<PollIn>() == 24 && size_of::<OpenOut>() == 16);
const _: () = assert!(size_of::<Dirent>() == 24 && size_of::<InvalEntryOut>() == 16);
