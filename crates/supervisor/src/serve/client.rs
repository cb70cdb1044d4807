//! The task that made a call, as `iommufd` and `vfio` ask for it.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ioasis_iommufd::{
    self as iommufd, Account, AddressSpace, Backing, ClientFile, Extents, FileAccess, Kind,
    MappableMemory, Piece, Prot,
};
use ioasis_pci::{BARS, Bar, PageKind, Pages};
use ioasis_sys::because;
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::notify::OnExec;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{Device, DeviceMemory, IommuFile, REGION_SHIFT, VfioFile};
use rustix::fs::{FallocateFlags, OFlags};

use super::pool::Hand;
use super::{Decision, File, Server, holders};
use crate::descriptors;
use crate::doorbell::Doorbells;
use crate::files::{Blank, END, Look, Opened};
use crate::memlock::{INFINITY, Limit};
use crate::queues::{Queue, Sockets};
use crate::resolve::{Found, Seen, Wait};
use crate::task::{Standing, Task};
use crate::view::Stores;

/// `CAP_DAC_OVERRIDE`, `CAP_IPC_LOCK`, `CAP_SYS_RAWIO`, `CAP_SYS_ADMIN` and `CAP_SYS_RESOURCE` (linux/capability.h).
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RAWIO: u32 = 17;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;

/// Bytes of shared pages that are protected while their device is idle. Of more that would take long, and page tables of the
/// program's for pages it never touches.
const DOORBELLS: u64 = 4 << 20;

/// One task, for one call.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    pub(crate) server: &'a Server,
    pub(crate) task: &'a Task,
    /// Of the notification.
    id: u64,
    /// Where the pool notes who receives meanwhile.
    hand: &'a Hand,
    /// The file the call is made on, for an ioctl.
    called: RefCell<Option<Arc<Opened<File>>>>,
    /// Device files made for this call and not published yet.
    blanks: RefCell<Vec<Blank>>,
    /// What goes with them, by inode.
    doorbells: RefCell<Vec<(u64, Arc<Doorbells>)>>,
    /// What was read last, and some bytes more: a struct is read by its size first.
    ahead: RefCell<Ahead>,
    /// The kernel goes on with the call, and may wait in it.
    waits: Cell<bool>,
}

fn seccomp_flag(on_exec: iommufd::OnExec) -> OnExec {
    match on_exec {
        iommufd::OnExec::Close => OnExec::Close,
        iommufd::OnExec::Keep => OnExec::Keep,
    }
}

/// Bytes of the caller's, as they were at one moment.
#[derive(Debug)]
struct Ahead {
    address: u64,
    length: usize,
    bytes: [u8; AHEAD],
}

/// Most structs are shorter; reading this much takes no longer than reading one byte.
const AHEAD: usize = 128;

impl Default for Ahead {
    fn default() -> Self {
        Self { address: 0, length: 0, bytes: [0; AHEAD] }
    }
}

impl Ahead {
    fn get(&self, address: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(address.checked_sub(self.address)?).ok()?;
        self.bytes[..self.length].get(start..start.checked_add(length)?)
    }
}

impl<'a> Caller<'a> {
    pub(crate) fn new(server: &'a Server, task: &'a Task, (id, hand): (u64, &'a Hand)) -> Self {
        Self {
            server,
            task,
            id,
            hand,
            called: RefCell::default(),
            blanks: RefCell::default(),
            doorbells: RefCell::default(),
            ahead: RefCell::default(),
            waits: Cell::default(),
        }
    }

    /// The kernel goes on with the call, which may wait and be interrupted as it would on Linux.
    pub(super) fn goes_on(&self) -> Decision {
        self.waits.set(true);
        Decision::CONTINUE
    }

    /// Whether that was said.
    pub(super) fn waits(&self) -> bool {
        self.waits.get()
    }

    /// Whether the task still waits for its answer. What was found by its number before this says yes is its own.
    pub(crate) fn is_there(&self) -> bool {
        self.server.listener.is_waiting(self.id)
    }

    /// Whether capabilities of the task are capabilities on the machine: capable() wants them in the first user namespace, which
    /// here is the program's own (kernel/capability.c). Those that a nested one brings are not.
    fn is_of_the_machine(&self, standing: &Standing) -> bool {
        standing.credentials.capabilities != 0
            && standing.user_namespace.is_some()
            && standing.user_namespace == self.server.user_namespace
    }

    /// Whether files of root's are the task's to write.
    pub(crate) fn writes_as_root(&self) -> bool {
        self.task.standing().is_ok_and(|found| {
            // The user for file access, which is the effective one unless a task says otherwise.
            found.rights.user == 0
                || found.credentials.has(CAP_DAC_OVERRIDE) && self.is_of_the_machine(found)
        })
    }

    /// Whether the task has CAP_SYS_ADMIN on the machine.
    pub(crate) fn administers(&self) -> bool {
        self.task.standing().is_ok_and(|found| {
            found.credentials.has(CAP_SYS_ADMIN) && self.is_of_the_machine(found)
        })
    }

    /// The answer depends on what was closed before the call.
    pub(crate) fn see_closes(&self) {
        self.server.see_closes(self.hand);
    }

    /// What a path leads to; nothing where the kernel finds the right errno. File systems are waited for once others are
    /// received meanwhile.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is nobody to receive them; `EMFILE`, `ENFILE` or `ENOMEM` where it cannot be said.
    pub(crate) fn find(&self, resolve: impl Fn(Wait) -> Found) -> Result<Option<(OwnedFd, Seen)>> {
        let mut found = resolve(Wait::Forbidden);
        if matches!(found, Found::WouldWait) {
            self.may_wait()?;
            found = resolve(Wait::Allowed);
        }
        match found {
            Found::File(file, seen) => Ok(Some((file, seen))),
            Found::Nothing | Found::WouldWait => Ok(None),
            Found::Lacks(errno) => Err(Error::new(errno, "a path cannot be followed here")),
        }
    }

    /// The call may wait from here on, for a device, a file system or the caller: others are received meanwhile.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is nobody to receive them.
    pub(crate) fn may_wait(&self) -> Result<()> {
        self.server.pool.may_wait(self.hand)
    }

    /// What was made for this call with the file `inode`.
    pub(crate) fn take_doorbells(&self, inode: u64) -> Option<Arc<Doorbells>> {
        let mut doorbells = self.doorbells.borrow_mut();
        let at = doorbells.iter().position(|(of, _)| *of == inode)?;
        Some(doorbells.swap_remove(at).1)
    }

    /// The file that was made for this call with number `inode`.
    pub(crate) fn take_blank(&self, inode: u64) -> Option<Blank> {
        let mut blanks = self.blanks.borrow_mut();
        let at = blanks.iter().position(|blank| blank.inode == inode)?;
        Some(blanks.swap_remove(at))
    }

    /// Gives the caller a file without a node, which /proc shows as `name`.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENOSPC`.
    pub(crate) fn install_file(&self, file: File, name: &str, on_exec: OnExec) -> Result<i32> {
        let (opened, open) = self.publish(file, name)?;
        let given = self.server.listener.add_file(self.id, open.as_fd(), on_exec);
        given.inspect_err(|_| self.server.files.forget(&opened))
    }

    /// A file of ours that is `file`, open and not yet among the caller's descriptors.
    fn publish(&self, file: File, name: &str) -> Result<(Arc<Opened<File>>, OwnedFd)> {
        let files = &self.server.files;
        let look = Look { path: name.to_owned(), rdev: (0, 0) };
        let opened = files.publish((files.blank()?, self.task.process.pid()), file, look)?;
        let open = files.open(&opened, OFlags::RDWR).inspect_err(|_| files.forget(&opened))?;
        Ok((opened, open))
    }

    /// The call is made on `file`.
    pub(crate) fn begin(&self, file: &Arc<Opened<File>>) {
        *self.called.borrow_mut() = Some(Arc::clone(file));
    }

    /// The queue that is a socket behind the caller's `fd`, and a copy of that.
    ///
    /// # Errors
    ///
    /// `EBADF` if it has no such descriptor.
    pub(crate) fn queue(&self, fd: i32) -> Result<Option<(Arc<Queue>, OwnedFd)>> {
        let Some(sockets) = self.server.queues.sockets() else { return Ok(None) };
        let (file, identity) = self.identified(fd)?;
        Ok(sockets.get(identity).map(|queue| (queue, file)))
    }

    /// The caller's `fd`, and by what it is known: device and inode.
    ///
    /// # Errors
    ///
    /// `EBADF` if it has no such descriptor.
    pub(super) fn identified(&self, fd: i32) -> Result<(OwnedFd, (u64, u64))> {
        let file = self.task.file(fd)?;
        let seen = Seen::of(&file).map_err(because("a descriptor cannot be looked at"))?;
        Ok((file, (seen.dev, seen.ino)))
    }

    /// Gives the caller a file that is read, written and polled.
    ///
    /// # Errors
    ///
    /// As [`install`](iommufd::Client::install).
    pub(crate) fn install_queue(
        &self,
        file: &Arc<dyn ClientFile>,
        access: OFlags,
        on_exec: OnExec,
    ) -> Result<i32> {
        if let Some(sockets) = self.server.queues.sockets() {
            return self.install_socket(sockets, file, on_exec);
        }
        let queues = &self.server.queues;
        let theirs = queues.publish(file, access)?;
        let given = self.server.listener.add_file(self.id, theirs.as_fd(), on_exec);
        drop(theirs);
        // It was the last descriptor then.
        given.inspect_err(|_| queues.drain())
    }

    /// Gives the caller a queue at a number where its reads are stopped: the highest free one.
    fn install_socket(
        &self,
        sockets: &Sockets,
        file: &Arc<dyn ClientFile>,
        on_exec: OnExec,
    ) -> Result<i32> {
        let full = Error::new(Errno::EMFILE, "no descriptor number for a queue is free");
        let is_free = |fd: &u32| {
            self.task.file(fd.cast_signed()).is_err_and(|error| error.errno == Errno::EBADF)
        };
        let fd = sockets.fds.and_then(|fds| (fds.first..fds.end).rev().find(is_free));
        let Some(fd) = fd else {
            file.close();
            return Err(full);
        };
        let queues = &self.server.queues;
        let theirs = queues.publish(file, OFlags::RDWR)?;
        let given = self.server.listener.add_file_at(self.id, theirs.as_fd(), on_exec, fd);
        drop(theirs);
        given.map_err(|error| {
            // Its other end hung up with ours.
            queues.drain();
            if error.errno == Errno::EBADF { full } else { error }
        })
    }

    /// RLIMIT_MEMLOCK of the task in bytes, `None` when unlimited.
    fn memlock(&self) -> Option<u64> {
        let kernels = self.task.thread.memlock_limit().unwrap_or(Some(0));
        let (Some(current), Some(memlock)) = (kernels, &self.server.memlock) else {
            return kernels;
        };
        let shown = memlock.shown(Limit { current, maximum: INFINITY }).current;
        (shown != INFINITY).then_some(shown)
    }

    /// Does what takes memory of the run's file system, which somebody may have filled: there is room enough for every
    /// use that is ours.
    fn with_room<T>(&self, act: impl Fn() -> Result<T>) -> Result<T> {
        act().or_else(|_| {
            self.server.sweep();
            act()
        })
    }

    /// Copies `bytes` to `address`, as a system call of the caller would.
    ///
    /// # Errors
    ///
    /// `EFAULT`, with the first address that cannot be written.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let memory = &self.server.memory;
        self.task.thread.write_to(address, bytes, |vma| memory.may_wait(vma))
    }

    /// The file of ours behind the caller's `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if it has no such descriptor.
    pub(crate) fn opened(&self, fd: i32) -> Result<Option<Arc<Opened<File>>>> {
        Ok(self.opened_as(fd)?.map(|(opened, _)| opened))
    }

    /// The same, and a copy of the descriptor, by which it can be asked how it was opened.
    ///
    /// # Errors
    ///
    /// `EBADF` if the caller has no such descriptor.
    pub(crate) fn opened_as(&self, fd: i32) -> Result<Option<(Arc<Opened<File>>, OwnedFd)>> {
        let (file, (dev, inode)) = self.identified(fd)?;
        Ok(self.server.files.get(dev, inode).map(|opened| (opened, file)))
    }
}

impl ioasis_iommufd::Client for Caller<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        if buf.len() > AHEAD {
            return self.task.read(address, buf);
        }
        let mut ahead = self.ahead.borrow_mut();
        if ahead.get(address, buf.len()).is_none() {
            ahead.length = 0;
            let length = self.task.thread.read_prefix(address, &mut ahead.bytes)?;
            (ahead.address, ahead.length) = (address, length);
        }
        match ahead.get(address, buf.len()) {
            Some(bytes) => buf.copy_from_slice(bytes),
            // Not all of it can be read: the error says from where on.
            None => self.task.read(address, buf)?,
        }
        Ok(())
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.ahead.borrow_mut().length = 0;
        self.put(address, buf)
    }

    fn write_back(&self, address: u64, buf: &[u8]) -> Result<()> {
        let is_there = self.ahead.borrow().get(address, buf.len()) == Some(buf);
        if is_there {
            return self.task.thread.may_write(address, buf.len());
        }
        self.write(address, buf)
    }

    fn takes_long(&self) -> Result<()> {
        self.may_wait()
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        match self.server.memory.of(&self.task.thread) {
            Ok(memory) => memory,
            Err(error) => Arc::new(Unreachable(error)),
        }
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
        if let Some(File::Made(made)) = self.opened(fd)?.as_deref().map(|opened| &opened.file)
            && let Some(memory) = made.memory()
        {
            return Ok(memory);
        }
        Ok(self.server.memory.file(descriptors::keep(self.task.file(fd)?)?)?)
    }

    fn install(&self, file: Arc<dyn ClientFile>, on_exec: iommufd::OnExec) -> Result<i32> {
        if file.queue().is_some() {
            let access = match file.access() {
                FileAccess::Read => OFlags::RDONLY,
                FileAccess::Write => OFlags::WRONLY,
                FileAccess::Both => OFlags::RDWR,
            };
            return self.install_queue(&file, access, seccomp_flag(on_exec));
        }
        let (opened, open) = match self.publish(File::Made(Arc::clone(&file)), file.name()) {
            Ok(published) => published,
            Err(error) => {
                file.close();
                return Err(error);
            }
        };
        let (server, on_exec) = (self.server, seccomp_flag(on_exec));
        let given = server.listener.add_file(self.id, open.as_fd(), on_exec);
        given.inspect_err(|_| server.files.forget(&opened))
    }

    fn mappable(&self, length: u64) -> Result<Arc<dyn MappableMemory>> {
        let called = self.called.borrow().clone();
        match called.as_deref() {
            Some(opened) => match &opened.file {
                File::Iommufd { regions, .. } => {
                    self.with_room(|| regions.make(opened.own()?, length))
                }
                _ => Err(Error::new(Errno::ENOMEM, "the file cannot be mapped")),
            },
            None => Err(Error::new(Errno::ENOMEM, "the call is made on no file")),
        }
    }

    fn installed(&self, fd: i32) -> Result<Arc<dyn ClientFile>> {
        let (_, identity) = self.identified(fd)?;
        if let Some(file) = self.server.queues.get(identity) {
            return Ok(file);
        }
        match self.opened(fd)?.as_deref().map(|opened| &opened.file) {
            Some(File::Made(made)) => Ok(Arc::clone(made)),
            _ => Err(Error::new(Errno::EBADFD, "no file that a command made")),
        }
    }

    fn pid(&self) -> u32 {
        self.task.process.pid()
    }

    fn account(&self) -> Account {
        let standing = self.task.standing().ok();
        let capable = standing.filter(|found| self.is_of_the_machine(found));
        let has = |capability| capable.is_some_and(|found| found.credentials.has(capability));
        Account {
            pid: self.task.process.pid(),
            uid: standing.map_or(u32::MAX, |found| found.credentials.uid),
            memlock_pages: self.memlock().map(|bytes| bytes / 4096),
            ipc_lock: has(CAP_IPC_LOCK),
            sys_resource: has(CAP_SYS_RESOURCE),
            sys_rawio: has(CAP_SYS_RAWIO),
        }
    }
}

impl ioasis_vfio::Client for Caller<'_> {
    fn iommu_file(&self, fd: i32) -> Result<IommuFile> {
        match self.opened(fd)?.as_deref().map(|opened| &opened.file) {
            Some(File::Iommufd { context, .. }) => Ok(IommuFile::Iommufd(Arc::clone(context))),
            Some(File::Container(container)) => Ok(IommuFile::Container(Arc::clone(container))),
            _ => Err(Error::new(Errno::EBADFD, "neither an iommufd nor a container")),
        }
    }

    fn eventfd(&self, fd: i32) -> Result<EventFd> {
        EventFd::from_fd(descriptors::keep(self.task.file(fd)?)?)
    }

    fn has_open(&self, eventfd: &EventFd) -> bool {
        // Without another who receives, what is not known counts as open.
        self.may_wait().is_err() || holders::have_open(eventfd.as_fd())
    }

    fn vfio_file(&self, fd: i32) -> Result<VfioFile> {
        match self.opened(fd)?.as_deref().map(|opened| &opened.file) {
            Some(File::Group(group)) => Ok(VfioFile::Group(Arc::clone(group))),
            Some(File::Device { device, .. }) => Ok(VfioFile::Device(Arc::clone(device))),
            _ => Err(Error::new(Errno::EINVAL, "neither a group nor a device")),
        }
    }

    fn device_memory(&self, device: &Device) -> Result<DeviceMemory> {
        let blank = self.server.files.blank()?;
        rustix::fs::ftruncate(&blank.file, END)
            .map_err(because("a device file cannot be made large enough"))?;
        let mut pages: [Option<Arc<Mapping>>; BARS] = Default::default();
        for (bar, mapping) in pages.iter_mut().enumerate() {
            *mapping = self.with_room(|| bar_pages(&blank.file, device, bar))?.map(Arc::new);
        }
        let inode = blank.inode;
        let mut doorbells: Option<Arc<dyn ioasis_pci::Doorbells>> = None;
        let shared = shared(device);
        let total: u64 = shared.iter().map(|range| range.end - range.start).sum();
        let is_trapped = self.server.machine.view.stores == Stores::Trapped;
        if is_trapped && total <= DOORBELLS && descriptors::are_many() {
            let file = (self.server.files.dev(), inode);
            let made = Doorbells::new(file, shared);
            self.doorbells.borrow_mut().push((inode, Arc::clone(&made)));
            doorbells = Some(made);
        }
        self.blanks.borrow_mut().push(blank);
        Ok(DeviceMemory { inode, pages, doorbells })
    }
}

/// The memory of a process that is gone.
#[derive(Debug)]
struct Unreachable(Error);

impl AddressSpace for Unreachable {
    fn key(&self) -> u128 {
        u128::MAX
    }

    fn kind(&self) -> Kind {
        Kind::User
    }

    fn pin(&self, _: u64, _: u64, _: Prot) -> Result<Extents> {
        Err(Error { errno: Errno::EFAULT, ..self.0 })
    }
}

/// The BAR pages of a device file, as memory that an IOVA can stand for.
#[derive(Debug)]
pub(crate) struct BarPages {
    pub(crate) inode: u64,
    pub(crate) device: Arc<Device>,
}

impl Backing for BarPages {
    fn key(&self) -> u128 {
        // Private memory has the highest bit set, files their device number in the upper half.
        1 << 126 | u128::from(self.inode)
    }

    fn is_device(&self) -> bool {
        true
    }

    fn may_wait(&self) -> bool {
        false
    }

    fn read(&self, pieces: &[Piece], mut buf: &mut [u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at_mut(piece.length);
            self.device.peer_read(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, pieces: &[Piece], mut buf: &[u8]) -> Result<()> {
        for piece in pieces {
            let (part, rest) = buf.split_at(piece.length);
            self.device.peer_write(piece.offset, part)?;
            buf = rest;
        }
        Ok(())
    }
}

/// Offset and length, in a device's file, of what can be mapped of its BARs.
pub(crate) fn mappable(device: &Device) -> Vec<(u64, u64)> {
    let of_bar = |bar: usize| {
        let areas = device.function().bar(bar).map_or_else(Vec::new, Bar::areas);
        areas.into_iter().map(move |area| (region(bar) + area.start, area.end - area.start))
    };
    (0..BARS).flat_map(of_bar).collect()
}

/// What of it is shared memory, by offset in the file.
fn shared(device: &Device) -> Vec<Range<u64>> {
    let of_bar = |bar: usize| {
        let found = device.function().bar(bar);
        let pages = found.map_or_else(Vec::new, |found| found.mappable.clone());
        let are_shared = |pages: &Pages| pages.kind == PageKind::Shared;
        pages
            .into_iter()
            .filter(are_shared)
            .map(move |Pages { range, .. }| region(bar) + range.start..region(bar) + range.end)
    };
    (0..BARS).flat_map(of_bar).collect()
}

fn region(bar: usize) -> u64 {
    (bar as u64 + 1) << REGION_SHIFT
}

/// Maps the pages of one BAR, all of which exist from the start: a full file system cannot take them away later.
fn bar_pages(file: &OwnedFd, device: &Device, bar: usize) -> Result<Option<Mapping>> {
    let Some(described) = device.function().bar(bar) else { return Ok(None) };
    let Some(end) = described.mappable_end() else { return Ok(None) };
    for area in described.areas() {
        let length = area.end - area.start;
        rustix::fs::fallocate(file, FallocateFlags::empty(), region(bar) + area.start, length)
            .map_err(|_| Error::at(Errno::ENOMEM, "no memory for the pages of a BAR", length))?;
    }
    let length =
        usize::try_from(end).map_err(|_| Error::at(Errno::ENOMEM, "a BAR is too large", end))?;
    Mapping::file(file.as_fd(), region(bar), length, Access::ReadWrite).map(Some)
}
