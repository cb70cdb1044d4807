//! Files of the run's own file system: each read, write and poll of them arrives here, from whatever descriptor.
//!
//! A file is opened once, by this process, and given away; its inode is never used again. The device nodes of the view, which
//! nobody opens, are files of it too ([`DeviceNodes`]). Requests are taken in a thread of
//! its own, and by whoever calls [`FileSystem::serve`]: once that returns, everything that was asked before has been
//! answered, so that a program that closed a file and makes another call finds it closed. Threads of this process open
//! and look at the files too, so the connection is in a thread apart ([`Connection::apart`]).
//!
//! A request carries a thread's id, by which it is found out whether that was killed; the kernel itself moves the bytes. Nothing
//! here waits for a client: a write to a text has a thread of its own ([`writes`]).
//! Where this process is gone, the kernel answers: `ENOTCONN`, and poll says `POLLERR`.
//!
//! Lock order: `FileSystem::serving` -> the locks of what stands behind a file that a read or a write takes, and the closer's.
//! `FileSystem::state` is a leaf.

mod writes;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ioasis_iommufd::{ClientFile, QueueFile, QueueWatcher};
use ioasis_sys::because;
use ioasis_sys::fuse::{
    Answer, Attributes, Buffer, Changes, Connection, MAX_BYTES, Mounted, Operation, Owner,
    Positions, ROOT, Request,
};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::closer::Closer;
use crate::text;
use crate::view::{self, DeviceNodes};
use writes::Writes;

/// The file system of a run.
#[derive(Debug)]
pub(crate) struct FileSystem {
    /// Immutable.
    connection: Arc<Connection>,
    /// Held while requests are taken and answered.
    serving: Mutex<Buffer>,
    /// The directory that files are opened in. Immutable.
    root: OwnedFd,
    /// `st_dev` of every file. Immutable.
    dev: u64,
    /// Files that are never opened: device nodes of the view.
    devices: DeviceNodes,
    /// Files that have not been released yet.
    count: AtomicUsize,
    closer: Closer,
    /// Of texts.
    writes: Arc<Writes>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the newest file.
    last: u64,
    nodes: BTreeMap<u64, Node>,
}

#[derive(Clone, Debug)]
struct Node {
    file: Arc<dyn ClientFile>,
    bell: Arc<Bell>,
    stage: Stage,
    owner: Owner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody has it open yet.
    New,
    /// It has been opened, which is possible once.
    Open,
}

/// Wakes who polls a file.
#[derive(Debug)]
struct Bell {
    connection: Arc<Connection>,
    /// Who waits for the answer to change, or 0.
    waiter: AtomicU64,
}

impl QueueWatcher for Bell {
    fn readable(&self) {
        match self.waiter.swap(0, Ordering::AcqRel) {
            0 => {}
            waiter => self.connection.wake(waiter),
        }
    }
}

/// Type and permissions of a queue: what is not regular, the kernel would open itself.
const MODE: u32 = 0o100_600;
/// The same of a text in /sys that root may write.
const TEXT_MODE: u32 = 0o100_644;
/// Size of a file as the kernel knows it, so that io_uring and AIO do not take it for empty.
const SIZE: u64 = 4096;
/// How often more is fetched, where there is more at once than fits: who floods a file is answered by the thread that does
/// nothing else.
const ROUNDS: u32 = 8;
/// A multiple of the size of every record. A call that moves more than one request may is cut somewhere, which its count must
/// not be judged by.
const RECORDS: u32 = 40;

impl FileSystem {
    /// Takes a file system over, and starts the thread that serves it.
    ///
    /// # Errors
    ///
    /// `EMFILE`; `EAGAIN` if the system has no thread left.
    pub(crate) fn start(
        mounted: Mounted,
        devices: DeviceNodes,
        closer: &Closer,
    ) -> Result<Arc<Self>> {
        let dev = dev_of(&mounted)?;
        let state = State { last: view::END, nodes: BTreeMap::new() };
        let connection = Arc::new(Connection::apart(mounted.device)?);
        let served = Arc::new(Self {
            writes: Writes::new(&connection),
            connection,
            serving: Mutex::default(),
            root: mounted.root,
            dev,
            devices,
            count: AtomicUsize::new(0),
            closer: closer.clone(),
            state: Mutex::new(state),
        });
        let server = Arc::clone(&served);
        let builder = std::thread::Builder::new().name("files".to_owned());
        let thread = builder.spawn(move || server.run());
        thread.map_err(|_| Error::new(Errno::EAGAIN, "no thread to serve files with"))?;
        Ok(served)
    }

    fn run(&self) {
        loop {
            let mut polled = [PollFd::new(&*self.connection, PollFlags::IN)];
            let _ = rustix::event::poll(&mut polled, None);
            match self.take(&mut self.serving.lock()) {
                Ok(()) => {}
                // Aborted by who may: the kernel answers from now on.
                Err(Error { errno: Errno::ENODEV, .. }) => return,
                // Nobody would answer: better without a supervisor.
                Err(error) => panic!("the file system cannot be served: {error}"),
            }
        }
    }

    /// `st_dev` of its files.
    pub(crate) const fn dev(&self) -> u64 {
        self.dev
    }

    /// The device nodes of the view, where they are files of this file system.
    pub(crate) const fn devices(&self) -> &DeviceNodes {
        &self.devices
    }

    /// What the file with this identity stands for, if it is a node of the view.
    pub(crate) fn node(&self, (dev, inode): (u64, u64)) -> Option<view::Node> {
        if dev == self.dev { self.devices.node(inode) } else { None }
    }

    /// Lets the kernel forget names that nodes of the view had. Not for the thread that serves.
    pub(crate) fn forget(&self, names: &[view::Changed]) {
        for changed in names {
            self.connection.forget_name(changed.parent, &changed.name);
        }
    }

    /// The node of the view, by which it is judged who may open it.
    pub(crate) fn device(&self, node: view::Node) -> Option<OwnedFd> {
        let name = self.devices.inode(node)?.to_string();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, name, flags, Mode::empty()).ok()
    }

    /// Answers all that has been asked up to now.
    ///
    /// # Errors
    ///
    /// `ENODEV` once the file system is gone.
    pub(crate) fn serve(&self) -> Result<()> {
        let mut buffer = self.serving.lock();
        for _ in 0..ROUNDS {
            let is_all = self.connection.fetch()?;
            self.take(&mut buffer)?;
            if is_all {
                break;
            }
        }
        Ok(())
    }

    fn take(&self, buffer: &mut Buffer) -> Result<()> {
        while let Some(request) = self.connection.next(buffer)? {
            self.answer(&request);
        }
        Ok(())
    }

    /// A new file with `file` behind it, open, to be given to a client: closed with its last descriptor.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENOMEM`; `file` is closed then.
    pub(crate) fn open(&self, file: &Arc<dyn ClientFile>, access: OFlags) -> Result<OwnedFd> {
        let connection = Arc::clone(&self.connection);
        let bell = Arc::new(Bell { connection, waiter: AtomicU64::new(0) });
        if let Some(queue) = file.queue() {
            queue.watch(Arc::clone(&bell) as Arc<dyn QueueWatcher>);
        }
        let node =
            Node { file: Arc::clone(file), bell, stage: Stage::New, owner: Owner::default() };
        self.count.fetch_add(1, Ordering::AcqRel);
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        state.nodes.insert(number, node);
        drop(state);
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.root, number.to_string(), flags, Mode::empty())
            .map_err(because("a file for the program cannot be opened"))
            .inspect_err(|_| self.release(number))
    }

    /// What stands behind the file with this identity, if it is one of ours.
    pub(crate) fn get(&self, (dev, inode): (u64, u64)) -> Option<Arc<dyn ClientFile>> {
        let ours = dev == self.dev;
        ours.then(|| self.state.lock().nodes.get(&inode).map(|node| Arc::clone(&node.file)))?
    }

    /// Begins to close the files that have lost their last descriptor by now.
    pub(crate) fn drain(&self) {
        if self.count.load(Ordering::Acquire) != 0 {
            // Without the file system there is nothing left to be told.
            let _ = self.serve();
        }
    }

    /// Begins to close all files, whoever has them open.
    pub(crate) fn close_all(&self) {
        let nodes = std::mem::take(&mut self.state.lock().nodes);
        nodes.into_values().for_each(|node| self.close(node));
    }

    fn close(&self, node: Node) {
        self.closer.begin(Box::new(move || node.file.close()));
        // After it: who finds no file left asks nobody, and must find the close begun.
        self.count.fetch_sub(1, Ordering::AcqRel);
    }

    fn answer(&self, request: &Request<'_>) {
        match request.operation {
            Operation::Interrupt { unique } => return self.writes.signalled(unique),
            Operation::Write { offset, bytes } if self.begin_write(request, offset, bytes) => {
                return;
            }
            _ => {}
        }
        let mut bytes = Vec::new();
        let answer = self.decide(request, &mut bytes);
        self.connection.answer(request.unique, answer);
    }

    /// Begins to write to a text, which may wait; false for another file.
    fn begin_write(&self, request: &Request<'_>, offset: u64, bytes: &[u8]) -> bool {
        let node = self.state.lock().nodes.get(&request.node).cloned();
        let Some(node) = node.filter(|node| is_seekable(&*node.file)) else { return false };
        // No text is longer (kernfs_fop_write_iter, fs/kernfs/file.c): who waits keeps no more of ours.
        let bytes = bytes[..bytes.len().min(text::WRITTEN_MAX)].to_vec();
        self.writes.begin(request.unique, request.tid, move || {
            let queue = node.file.queue().expect("a text can be written");
            let taken = queue.write_at(offset, bytes.len() as u64, &mut bytes.as_slice())?;
            Ok(u32::try_from(taken).expect("no more than there were"))
        });
        true
    }

    fn decide<'a>(&self, request: &Request<'_>, bytes: &'a mut Vec<u8>) -> Result<Answer<'a>> {
        let number = request.node;
        if self.devices.has(request) {
            return self.devices.decide(request, bytes);
        }
        // ENOSYS would be the last answer for all files.
        if let Operation::GetExtended { .. }
        | Operation::SetExtended { .. }
        | Operation::ListExtended { .. }
        | Operation::RemoveExtended { .. } = request.operation
        {
            return Err(Error::new(Errno::EOPNOTSUPP, "the file has no extended attributes"));
        }
        if number == ROOT {
            return self.decide_root(request);
        }
        if request.operation == Operation::Release {
            self.release(number);
            return Ok(Answer::Done);
        }
        if let Operation::Open { .. } = request.operation {
            return self.admit(number);
        }
        let node = self.state.lock().nodes.get(&number).cloned();
        let node = node.ok_or(Error::at(Errno::ENOENT, "the file was closed", number))?;
        let no_queue = Error::new(Errno::EINVAL, "the file is neither read nor written");
        let queue = node.file.queue().ok_or(no_queue)?;
        match request.operation {
            Operation::Attributes => Ok(Answer::Attributes(node.attributes(number))),
            // As of an attribute of sysfs, whose shell redirection truncates it.
            Operation::SetAttributes(Changes { size: true, .. }) if queue.is_seekable() => {
                Ok(Answer::Attributes(node.attributes(number)))
            }
            Operation::SetAttributes(Changes { size: false, .. }) => {
                Err(Error::new(Errno::EOPNOTSUPP, "the file has no attributes of its own"))
            }
            Operation::Read { offset, size } => {
                queue.read_to(offset, whole(queue, size).into(), bytes)?;
                Ok(Answer::Bytes(bytes))
            }
            Operation::Write { bytes, .. } => {
                let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let mut from = &bytes[..whole(queue, size) as usize];
                let taken = queue.write_from(from.len() as u64, &mut from)?;
                Ok(Answer::Written(u32::try_from(taken).expect("no more than there were")))
            }
            Operation::Poll { waiter } => {
                // First, so that what comes after the look is told.
                if let Some(waiter) = waiter {
                    node.bell.waiter.store(waiter, Ordering::Release);
                }
                Ok(Answer::Events(events(queue)))
            }
            Operation::Sync | Operation::Fill | Operation::SetAttributes(_) => {
                Err(Error::new(Errno::EINVAL, "the file holds no bytes"))
            }
            _ => Err(Error::new(Errno::ENOSYS, "the file has no such operation")),
        }
    }

    fn decide_root(&self, request: &Request<'_>) -> Result<Answer<'static>> {
        match request.operation {
            Operation::Lookup { name } => {
                let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                let absent = Error::new(Errno::ENOENT, "no such file");
                let number: u64 = number.ok_or(absent)?;
                let mut state = self.state.lock();
                let node = state.nodes.get_mut(&number).ok_or(absent)?;
                node.owner = request.owner;
                Ok(Answer::Entry(node.attributes(number)))
            }
            Operation::Attributes => Ok(Answer::Attributes(view::root(request.owner))),
            _ => Err(Error::new(Errno::ENOSYS, "the directory has no such operation")),
        }
    }

    /// The one open of a file. Another one comes by its link in /proc, past the filter.
    fn admit(&self, number: u64) -> Result<Answer<'static>> {
        let anonymous = Error::at(Errno::ENXIO, "an anonymous file cannot be opened", number);
        let mut state = self.state.lock();
        let node = state.nodes.get_mut(&number).ok_or(anonymous)?;
        if node.stage == Stage::Open {
            return Err(anonymous);
        }
        node.stage = Stage::Open;
        let seekable = is_seekable(&*node.file);
        Ok(Answer::Opened(if seekable { Positions::Kept } else { Positions::None }))
    }

    fn release(&self, number: u64) {
        let node = self.state.lock().nodes.remove(&number);
        node.into_iter().for_each(|node| self.close(node));
    }
}

/// `st_dev` of every file of a file system.
///
/// # Errors
///
/// The errno of statx(2).
pub(crate) fn dev_of(mounted: &Mounted) -> Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(&mounted.root, "", flags, StatxFlags::empty());
    let stat = stat.map_err(because("the file system cannot be looked at"))?;
    Ok(rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor))
}

impl Node {
    fn attributes(&self, node: u64) -> Attributes {
        let mode = if is_seekable(&*self.file) { TEXT_MODE } else { MODE };
        Attributes { node, mode, size: SIZE, owner: self.owner, rdev: 0, times: Default::default() }
    }
}

fn is_seekable(file: &dyn ClientFile) -> bool {
    file.queue().is_some_and(QueueFile::is_seekable)
}

/// The bytes of a request of `size` that its call's count is judged by.
fn whole(queue: &dyn QueueFile, size: u32) -> u32 {
    if size > MAX_BYTES - 4096 && !queue.is_stream() { size - size % RECORDS } else { size }
}

/// What poll says (`iommufd_eventq_fops_poll`, drivers/iommu/iommufd/eventq.c; `DEFAULT_POLLMASK` of a file without a say).
fn events(queue: &dyn QueueFile) -> u32 {
    const IN: u32 = 0x1;
    const OUT: u32 = 0x4;
    const READ_NORMAL: u32 = 0x40;
    const WRITE_NORMAL: u32 = 0x100;
    if queue.is_always_ready() {
        return IN | OUT | READ_NORMAL | WRITE_NORMAL;
    }
    let readable = if queue.is_readable() { IN | READ_NORMAL } else { 0 };
    readable | if queue.is_writable() { OUT } else { 0 }
}
