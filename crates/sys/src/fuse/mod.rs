//! A FUSE file system whose files are answered by this process (linux/fuse.h, Documentation/filesystems/fuse).
//!
//! The reader is one of our own, since a release must be seen before the next system call of whoever closed the file is
//! answered: [`Connection::next`] never waits, so that any thread can take what has arrived. A library's session has a
//! loop that cannot be asked whether it is done.
//!
//! The bytes of a read and a write go through the connection: no request is answered by way of the process id it carries.
//! Its caller waits, whatever signals it gets, until it is answered or the last descriptor of the connection is closed;
//! then it fails with `ENOTCONN`. A signal is told ([`Operation::Interrupt`]), so that a request that waits for something can
//! be answered when its caller is killed.

mod abi;
mod apart;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::StatVfsMountFlags;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use apart::Apart;

use crate::because;

/// Most bytes of one request: 256 pages, the limit of an unchanged kernel (`fs.fuse.max_pages_limit`).
pub const MAX_BYTES: u32 = PAGES as u32 * 4096;
const PAGES: u16 = 256;

/// A file system that is mounted nowhere yet: it lives as long as its root, or a file opened in it, does.
#[derive(Debug)]
pub struct Mounted {
    /// Where its requests arrive.
    pub device: OwnedFd,
    /// Its root, below which files are opened.
    pub root: OwnedFd,
    /// Who made it, in the ids of the file system's user namespace.
    pub owner: Owner,
}

/// Who may use a file system by path; an open file is for whoever has it (`fuse_allow_current_process`, fs/fuse/dir.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// The user who makes it, in whatever namespace.
    Own,
    /// Everybody in the caller's user namespace and those below it.
    Namespace,
}

/// Makes a file system whose modes, owners and access control lists the kernel judges. The device is opened here, since the
/// kernel wants it opened in the user namespace of the mount (`fuse_get_tree`, fs/fuse/inode.c).
///
/// # Errors
///
/// `ENOENT` or `EACCES` where /dev/fuse cannot be opened; `EPERM` without `CAP_SYS_ADMIN` in this user namespace, or what else
/// fsopen(2), fsconfig(2) or fsmount(2) say.
pub fn mount(users: Users) -> Result<Mounted> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let device = openat(CWD, "/dev/fuse", flags, Mode::empty())
        .map_err(because("/dev/fuse cannot be opened"))?;
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let make = || {
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "ioasis")?;
        fsconfig_set_string(&context, "fd", device.as_raw_fd().to_string())?;
        fsconfig_set_string(&context, "rootmode", "40000")?;
        fsconfig_set_string(&context, "user_id", uid.as_raw().to_string())?;
        fsconfig_set_string(&context, "group_id", gid.as_raw().to_string())?;
        fsconfig_set_flag(&context, "default_permissions")?;
        if users == Users::Namespace {
            fsconfig_set_flag(&context, "allow_other")?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::from_bits_retain(NOSYMFOLLOW);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let root = make().map_err(because("a FUSE file system cannot be made"))?;
    Ok(Mounted { device, root, owner: Owner { uid: uid.as_raw(), gid: gid.as_raw() } })
}

/// `MOUNT_ATTR_NOSYMFOLLOW` of linux/mount.h.
const NOSYMFOLLOW: u32 = 0x0020_0000;

/// Flags by which statvfs(3) tells a mount of such a file system, as [`mount`] made it, from one that somebody mounted again
/// with flags of his own.
#[must_use]
pub const fn mount_flags() -> StatVfsMountFlags {
    /// `ST_NOSYMFOLLOW` of linux/statfs.h.
    const NOSYMFOLLOW: StatVfsMountFlags = StatVfsMountFlags::from_bits_retain(0x2000);
    StatVfsMountFlags::NOSUID
        .union(StatVfsMountFlags::NODEV)
        .union(StatVfsMountFlags::NOEXEC)
        .union(NOSYMFOLLOW)
}

/// The root directory's number.
pub const ROOT: u64 = 1;

/// What somebody wants of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// The file of this name, in the directory.
    Lookup {
        /// Without its NUL.
        name: &'a [u8],
    },
    /// What stat(2) says.
    Attributes,
    /// Other attributes.
    SetAttributes(Changes),
    /// The value of an extended attribute.
    GetExtended {
        /// Without its NUL.
        name: &'a [u8],
        /// At most so many bytes of it; none to be told how many there are.
        size: u32,
    },
    /// Another value of an extended attribute.
    SetExtended {
        /// Without its NUL.
        name: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// `XATTR_*` of setxattr(2).
        flags: u32,
    },
    /// The names of the extended attributes, each with a NUL.
    ListExtended {
        /// At most so many bytes of them; none to be told how many there are.
        size: u32,
    },
    /// No such extended attribute any more.
    RemoveExtended {
        /// Without its NUL.
        name: &'a [u8],
    },
    /// Where a symbolic link leads.
    ReadLink,
    /// A symbolic link, in the directory.
    MakeLink {
        /// Its name, without its NUL.
        name: &'a [u8],
        /// Where it leads, without its NUL.
        target: &'a [u8],
    },
    /// The file of this name no more, in the directory.
    Unlink {
        /// Without its NUL.
        name: &'a [u8],
    },
    /// An open file.
    Open {
        /// `O_*`.
        flags: u32,
    },
    /// Bytes for read(2) and its like.
    Read {
        /// From here on.
        offset: u64,
        /// At most so many.
        size: u32,
    },
    /// Bytes for the page cache: somebody has mapped the file, or splices from it.
    Fill,
    /// Bytes of write(2) and its like.
    Write {
        /// For here.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// What poll(2) says.
    Poll {
        /// By what [`Connection::wake`] wakes who waits; none if nobody does.
        waiter: Option<u64>,
    },
    /// The last descriptor and the last mapping of an open file are gone.
    Release,
    /// An open directory.
    OpenDirectory,
    /// Entries of a directory.
    ReadDirectory {
        /// From where the last one ended.
        offset: u64,
        /// At most so many bytes.
        size: u32,
    },
    /// The last descriptor of an open directory is gone.
    ReleaseDirectory,
    /// Whoever made an earlier request, which has not been answered, got a signal. It has no answer.
    Interrupt {
        /// The earlier request.
        unique: u64,
    },
    /// Its writes on a disk.
    Sync,
    /// Anything else.
    Other,
}

/// Attributes to be set; the others stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Whether the size is one of them.
    pub size: bool,
    /// Type and permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub user: Option<u32>,
    /// Group.
    pub group: Option<u32>,
    /// Of the last access.
    pub accessed: Option<Stamp>,
    /// Of the last change of its content.
    pub modified: Option<Stamp>,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// The present one.
    Now,
    /// This one.
    At(Time),
}

/// Seconds since 1970, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Time {
    /// Before 1970 negative.
    pub seconds: i64,
    /// Less than a second.
    pub nanoseconds: u32,
}

impl Time {
    /// The present one.
    #[must_use]
    pub fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let nanoseconds = u32::try_from(now.tv_nsec).expect("less than a second");
        Self { seconds: now.tv_sec, nanoseconds }
    }
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// By what it is answered.
    pub unique: u64,
    /// On which file.
    pub node: u64,
    /// Whose it is, in the ids of the file system's user namespace.
    pub owner: Owner,
    /// The thread that waits for the answer.
    pub tid: u32,
    /// What.
    pub operation: Operation<'a>,
}

/// User and group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// File system user id.
    pub uid: u32,
    /// File system group id.
    pub gid: u32,
}

/// What the kernel knows of a file, until somebody changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number; never that of an earlier file.
    pub node: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Bytes. A read that did not come from read(2), but from io_uring or AIO, ends there (`fuse_direct_IO`, fs/fuse/file.c).
    pub size: u64,
    /// Whose it is.
    pub owner: Owner,
    /// Device number of a device node, as stat(2) encodes it (`new_encode_dev`, linux/kdev_t.h).
    pub rdev: u32,
    /// Of the last access, of the last change of its content, of the last change of anything.
    pub times: [Time; 3],
}

/// How an open file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// At positions, which a descriptor keeps.
    Kept,
    /// From one end: lseek and pread fail with `ESPIPE`.
    None,
}

/// What a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// To [`Operation::Lookup`]: a file, whose name is asked for anew each time.
    Entry(Attributes),
    /// To [`Operation::Lookup`]: a file that has this name until [`Connection::forget_name`].
    Named(Attributes),
    /// To [`Operation::Attributes`] and [`Operation::SetAttributes`].
    Attributes(Attributes),
    /// To [`Operation::Open`]. Every read and write of the open file arrives here, and its descriptors are closed without a
    /// word until the last.
    Opened(Positions),
    /// To [`Operation::Read`], [`Operation::ReadLink`], [`Operation::ReadDirectory`], [`Operation::GetExtended`] and
    /// [`Operation::ListExtended`].
    Bytes(&'a [u8]),
    /// To [`Operation::Write`].
    Written(u32),
    /// To [`Operation::GetExtended`] and [`Operation::ListExtended`]: how many bytes there are.
    Size(u32),
    /// To [`Operation::Poll`]: `POLL*`.
    Events(u32),
    /// To what has no other answer.
    Done,
}

/// Room for one request.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; MAX_BYTES as usize + 4096])
    }
}

/// Where the requests of a file system arrive and are answered.
#[derive(Debug)]
pub struct Connection(Way);

#[derive(Debug)]
enum Way {
    /// Whoever asks for the next request reads it.
    Here(OwnedFd),
    /// A thread of its own does.
    Apart(Apart),
}

impl Connection {
    /// From the device of a [`Mounted`]. The threads of this process must not use the file system: see
    /// [`Connection::apart`].
    #[must_use]
    pub const fn new(device: OwnedFd) -> Self {
        Self(Way::Here(device))
    }

    /// The same with a thread that has the device for itself, so that a process that is killed while a thread of it waits for
    /// an answer can end.
    ///
    /// # Errors
    ///
    /// `EMFILE`; `EAGAIN` if the system has no thread left.
    pub fn apart(device: OwnedFd) -> Result<Self> {
        Apart::start(device).map(|apart| Self(Way::Apart(apart)))
    }

    /// Sees to it that [`Connection::next`] has all that was asked up to now, and says whether it has: there may be more
    /// than is fetched at once.
    ///
    /// # Errors
    ///
    /// `ENODEV` once the file system is gone.
    pub fn fetch(&self) -> Result<bool> {
        match &self.0 {
            Way::Here(_) => Ok(true),
            Way::Apart(apart) => apart.fetch(),
        }
    }

    /// The next request, unless none waits. What needs no decision is answered here.
    ///
    /// # Errors
    ///
    /// `ENODEV` once the file system is gone; `EIO` for a request of another protocol.
    pub fn next<'a>(&self, buffer: &'a mut Buffer) -> Result<Option<Request<'a>>> {
        let length = match &self.0 {
            Way::Here(device) => read(device.as_fd(), &mut buffer.0)?,
            Way::Apart(apart) => apart.next(&mut buffer.0)?,
        };
        let Some(length) = length else { return Ok(None) };
        let header = take::<abi::InHeader>(&buffer.0[..length])?.0;
        let operation = operation(header.opcode, &buffer.0[HEADER..length])?;
        let owner = Owner { uid: header.uid, gid: header.gid };
        let (unique, node, tid) = (header.unique, header.node, header.pid);
        Ok(Some(Request { unique, node, owner, tid, operation }))
    }

    /// Answers a request. Its caller may have been killed meanwhile.
    pub fn answer(&self, unique: u64, answer: Result<Answer<'_>>) {
        let _ = match answer {
            Ok(Answer::Entry(of)) => self.send(unique, 0, entry(of).as_bytes()),
            Ok(Answer::Named(of)) => {
                let named = abi::EntryOut { entry_valid: FOREVER, ..entry(of) };
                self.send(unique, 0, named.as_bytes())
            }
            Ok(Answer::Attributes(of)) => {
                let attributes =
                    abi::AttrOut { attr_valid: FOREVER, attr: attr(of), ..Default::default() };
                self.send(unique, 0, attributes.as_bytes())
            }
            Ok(Answer::Opened(positions)) => {
                let open_flags = match positions {
                    Positions::Kept => DIRECT_IO | NO_FLUSH,
                    Positions::None => DIRECT_IO | NO_FLUSH | NOT_SEEKABLE | STREAM,
                };
                let opened = abi::OpenOut { open_flags, ..Default::default() };
                self.send(unique, 0, opened.as_bytes())
            }
            Ok(Answer::Bytes(bytes)) => self.send(unique, 0, bytes),
            Ok(Answer::Written(size)) => {
                self.send(unique, 0, abi::WriteOut { size, padding: 0 }.as_bytes())
            }
            Ok(Answer::Size(size)) => {
                self.send(unique, 0, abi::SizeOut { size, padding: 0 }.as_bytes())
            }
            Ok(Answer::Events(revents)) => {
                self.send(unique, 0, abi::PollOut { revents, padding: 0 }.as_bytes())
            }
            Ok(Answer::Done) => self.send(unique, 0, &[]),
            Err(error) => self.send(unique, -error.errno.raw(), &[]),
        };
    }

    /// Lets `waiter` ask again what poll(2) says. Does not wait.
    pub fn wake(&self, waiter: u64) {
        let _ = self.send(0, abi::NOTIFY_POLL, waiter.as_bytes());
    }

    /// Lets `name` in the directory `parent` be asked for anew. May wait for an answer to what was asked of that directory
    /// before, so it is not for the thread that answers.
    pub fn forget_name(&self, parent: u64, name: &str) {
        let name_length = u32::try_from(name.len()).expect("a file name is short");
        let gone = abi::InvalEntryOut { parent, name_length, flags: 0 };
        let body = [gone.as_bytes(), name.as_bytes(), b"\0"].concat();
        self.forget(abi::NOTIFY_INVAL_ENTRY, &body);
    }

    /// Lets the attributes of `node` be asked for anew. As [`Connection::forget_name`].
    pub fn forget_attributes(&self, node: u64) {
        // A negative offset: not its bytes.
        let gone = abi::InvalInodeOut { node, offset: -1, length: 0 };
        self.forget(abi::NOTIFY_INVAL_INODE, gone.as_bytes());
    }

    fn forget(&self, what: i32, body: &[u8]) {
        match &self.0 {
            // ENOENT: nobody knows it.
            Way::Here(device) => drop(send(device.as_fd(), 0, what, body)),
            Way::Apart(apart) => {
                let head = out_header(0, what, body);
                apart.forget([head.as_bytes(), body].concat());
            }
        }
    }

    fn send(&self, unique: u64, error: i32, body: &[u8]) -> Result<()> {
        match &self.0 {
            Way::Here(device) => send(device.as_fd(), unique, error, body),
            Way::Apart(apart) => {
                let head = out_header(unique, error, body);
                apart.send([head.as_bytes(), body].concat());
                Ok(())
            }
        }
    }
}

/// Reads the next request, unless none waits: its length. What needs no decision is answered.
fn read(device: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>> {
    loop {
        let length = match rustix::io::read(device, &mut *buffer) {
            Ok(length) => length,
            // ENOENT: the request was taken back while it was read.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT) => continue,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(raw) => return Err(because("the file system is gone")(raw)),
        };
        let header = take::<abi::InHeader>(&buffer[..length])?.0;
        // Whoever asked may have been killed meanwhile, which is nothing to us.
        let _ = match header.opcode {
            abi::INIT => agree(device, header.unique, &buffer[HEADER..length]),
            abi::FORGET | abi::BATCH_FORGET | abi::NOTIFY_REPLY => Ok(()),
            abi::STATFS => send(device, header.unique, 0, abi::StatfsOut::default().as_bytes()),
            _ => return Ok(Some(length)),
        };
    }
}

fn agree(device: BorrowedFd<'_>, unique: u64, body: &[u8]) -> Result<()> {
    let (asked, _) = take::<abi::InitIn>(body)?;
    if asked.major != abi::MAJOR {
        return send(device, unique, -Errno::EIO.raw(), &[]);
    }
    let reply = abi::InitOut {
        major: abi::MAJOR,
        minor: abi::MINOR,
        max_readahead: asked.max_readahead,
        flags: asked.flags & FEATURES,
        // Releases are such requests, and must not wait for each other.
        max_background: 4096,
        congestion_threshold: 3072,
        max_write: MAX_BYTES,
        time_gran: 1,
        max_pages: PAGES,
        ..Default::default()
    };
    send(device, unique, 0, reply.as_bytes())
}

fn send(device: BorrowedFd<'_>, unique: u64, error: i32, body: &[u8]) -> Result<()> {
    let head = out_header(unique, error, body);
    let parts = [IoSlice::new(head.as_bytes()), IoSlice::new(body)];
    rustix::io::writev(device, &parts).map(drop).map_err(because("the request is gone"))
}

fn out_header(unique: u64, error: i32, body: &[u8]) -> abi::OutHeader {
    let length = size_of::<abi::OutHeader>() + body.len();
    let len = u32::try_from(length).expect("less than a request's limit");
    abi::OutHeader { len, error, unique }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Way::Here(device) => device.as_fd(),
            Way::Apart(apart) => apart.arrived().as_fd(),
        }
    }
}

const HEADER: usize = size_of::<abi::InHeader>();
/// What an INIT agrees to.
const FEATURES: u32 = abi::ATOMIC_O_TRUNC | abi::BIG_WRITES | abi::POSIX_ACL | abi::MAX_PAGES;
// `FOPEN_*`.
const DIRECT_IO: u32 = 1 << 0;
const NOT_SEEKABLE: u32 = 1 << 2;
const STREAM: u32 = 1 << 4;
const NO_FLUSH: u32 = 1 << 5;
/// Seconds that nothing is asked again, which the kernel can still count in jiffies.
const FOREVER: u64 = u32::MAX as u64;
// Attributes to be set: `FATTR_*`.
const OF_MODE: u32 = 1 << 0;
const OF_USER: u32 = 1 << 1;
const OF_GROUP: u32 = 1 << 2;
const OF_SIZE: u32 = 1 << 3;
const OF_ACCESS: u32 = 1 << 4;
const OF_CONTENT: u32 = 1 << 5;
const OF_ACCESS_NOW: u32 = 1 << 7;
const OF_CONTENT_NOW: u32 = 1 << 8;

fn take<T: FromBytes + KnownLayout + Immutable>(bytes: &[u8]) -> Result<(T, &[u8])> {
    T::read_from_prefix(bytes)
        .map_err(|_| Error::at(Errno::EIO, "a request is too short", bytes.len() as u64))
}

fn operation(opcode: u32, body: &[u8]) -> Result<Operation<'_>> {
    Ok(match opcode {
        abi::LOOKUP => Operation::Lookup { name: text(body).0 },
        abi::GETATTR => Operation::Attributes,
        abi::SETATTR => Operation::SetAttributes(changes(take::<abi::SetattrIn>(body)?.0)),
        abi::GETXATTR => {
            let (asked, rest) = take::<abi::ExtendedIn>(body)?;
            Operation::GetExtended { name: text(rest).0, size: asked.size }
        }
        abi::SETXATTR => {
            let (asked, rest) = take::<abi::ExtendedIn>(body)?;
            let (name, value) = text(rest);
            Operation::SetExtended { name, value, flags: asked.flags }
        }
        abi::LISTXATTR => Operation::ListExtended { size: take::<abi::ExtendedIn>(body)?.0.size },
        abi::REMOVEXATTR => Operation::RemoveExtended { name: text(body).0 },
        abi::READLINK => Operation::ReadLink,
        abi::SYMLINK => {
            let (name, rest) = text(body);
            Operation::MakeLink { name, target: text(rest).0 }
        }
        abi::UNLINK => Operation::Unlink { name: text(body).0 },
        abi::OPEN => Operation::Open { flags: take::<abi::OpenIn>(body)?.0.flags },
        abi::READ => {
            let (asked, _) = take::<abi::TransferIn>(body)?;
            match asked.transfer_flags & abi::READ_LOCKOWNER {
                0 => Operation::Fill,
                _ => Operation::Read { offset: asked.offset, size: asked.size },
            }
        }
        abi::WRITE => {
            let (asked, bytes) = take::<abi::TransferIn>(body)?;
            Operation::Write { offset: asked.offset, bytes }
        }
        abi::POLL => {
            let (asked, _) = take::<abi::PollIn>(body)?;
            let waits = asked.flags & abi::POLL_SCHEDULE_NOTIFY != 0;
            Operation::Poll { waiter: waits.then_some(asked.kh) }
        }
        abi::RELEASE => Operation::Release,
        abi::OPENDIR => Operation::OpenDirectory,
        abi::READDIR => {
            let (asked, _) = take::<abi::TransferIn>(body)?;
            Operation::ReadDirectory { offset: asked.offset, size: asked.size }
        }
        abi::RELEASEDIR => Operation::ReleaseDirectory,
        abi::INTERRUPT => Operation::Interrupt { unique: take::<abi::InterruptIn>(body)?.0.unique },
        abi::FSYNC | abi::FSYNCDIR => Operation::Sync,
        _ => Operation::Other,
    })
}

/// A text up to its NUL, and what follows.
fn text(body: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = body.splitn(2, |&byte| byte == 0);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

fn changes(asked: abi::SetattrIn) -> Changes {
    let has = |bit: u32| asked.valid & bit != 0;
    let stamp = |bit, now, (seconds, nanoseconds): (u64, u32)| match has(bit) {
        true if has(now) => Some(Stamp::Now),
        true => Some(Stamp::At(Time { seconds: seconds.cast_signed(), nanoseconds })),
        false => None,
    };
    Changes {
        size: has(OF_SIZE),
        mode: has(OF_MODE).then_some(asked.mode),
        user: has(OF_USER).then_some(asked.uid),
        group: has(OF_GROUP).then_some(asked.gid),
        accessed: stamp(OF_ACCESS, OF_ACCESS_NOW, (asked.times[0], asked.times_nsec[0])),
        modified: stamp(OF_CONTENT, OF_CONTENT_NOW, (asked.times[1], asked.times_nsec[1])),
    }
}

fn attr(of: Attributes) -> abi::Attr {
    abi::Attr {
        times: of.times.map(|time| time.seconds.cast_unsigned()),
        times_nsec: of.times.map(|time| time.nanoseconds),
        ino: of.node,
        size: of.size,
        mode: of.mode,
        nlink: 1,
        uid: of.owner.uid,
        gid: of.owner.gid,
        rdev: of.rdev,
        blksize: 4096,
        ..Default::default()
    }
}

/// An entry of a directory, as [`Operation::ReadDirectory`] is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// The number of its file.
    pub node: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Its name.
    pub name: &'a str,
    /// The offset at which the next entry is asked for.
    pub next: u64,
}

impl DirectoryEntry<'_> {
    /// Appends it to `bytes`, unless that is more than `size` together; whether it did.
    pub fn append_to(self, bytes: &mut Vec<u8>, size: u32) -> bool {
        let length = (size_of::<abi::Dirent>() + self.name.len()).next_multiple_of(8);
        if bytes.len() + length > size as usize {
            return false;
        }
        let end = bytes.len() + length;
        let entry = abi::Dirent {
            node: self.node,
            offset: self.next,
            name_length: u32::try_from(self.name.len()).expect("a file name is short"),
            kind: self.mode >> 12,
        };
        bytes.extend_from_slice(entry.as_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.resize(end, 0);
        true
    }
}

/// A name is asked for anew each time: it leads to one open, and to nothing afterwards.
fn entry(of: Attributes) -> abi::EntryOut {
    abi::EntryOut { node: of.node, attr_valid: FOREVER, attr: attr(of), ..Default::default() }
}

#[cfg(test)]
mod tests;
