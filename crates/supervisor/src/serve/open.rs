//! Opens of our nodes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use ioasis_iommufd::account;
use ioasis_iommufd::{Client as _, ClientFile, inject};
use ioasis_sys::because;
use ioasis_sys::notify::{Answer, Notification, OnExec};
use ioasis_sys::process;
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use super::client::Caller;
use super::ioctl::open_device;
use super::judge::{Asked, judge};
use super::{Decision, File, Gift, Line, fdinfo, limits};
use crate::files::Look;
use crate::filter::{O_ACCMODE, O_CLOEXEC, O_DIRECT};
use crate::injection::{self, FailNth};
use crate::parameters;
use crate::resolve::{self, Last, Seen};
use crate::rules::Injected;
use crate::sysfs::Seen as ConfigSeen;
use crate::task::OpenCall;
use crate::view::status::Charges;
use crate::view::{self, CONTAINER, ContainerNode, FaultInjection, Node, ProcFile};

/// An access mode that allows neither reading nor writing, and asks for leave to do both.
const NO_ACCESS: u32 = 3;

/// What a file keeps of the flags it was opened with, as F_GETFL shows them (`do_dentry_open`, fs/open.c).
const KEPT: OFlags = OFlags::from_bits_retain(O_ACCMODE)
    .union(OFlags::NONBLOCK)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME)
    .union(OFlags::LARGEFILE);

pub(super) fn open(caller: &Caller<'_>, call: &Notification) -> Decision {
    let Some(Ok(open)) = OpenCall::of(caller.task, call) else { return Decision::CONTINUE };
    if !open.may_be_ours() {
        return Decision::CONTINUE;
    }
    if let Some(decision) = fail_nth(caller, &open) {
        return decision;
    }
    let last = if open.follows() { Last::Follow } else { Last::Keep };
    let resolve = |wait| resolve::resolve(open.from, &open.path, last, wait);
    let (found, seen) = match caller.find(resolve) {
        Ok(Some(found)) => found,
        Ok(None) => return caller.goes_on(),
        Err(error) => return Decision::error(error.errno),
    };
    let Some(target) = node(caller, seen) else {
        let answer = process_text(caller, &open, (&found, seen))
            .or_else(|| machine_text(caller, &open, (&found, seen)))
            .or_else(|| fdinfo::answer(caller, &open, (&found, seen)));
        return answer.unwrap_or_else(|| kernels(caller, seen.kind));
    };
    if !caller.is_there() || is_the_kernels(caller, &target, open.flags) {
        return Decision::CONTINUE;
    }
    let asked = match target {
        Target::Node(Node::Parameter(_) | Node::Attribute(_) | Node::Config(_))
            if open.flags & O_ACCMODE != 0 =>
        {
            Asked::way()
        }
        Target::Anonymous => Asked::way(),
        _ => Asked::of(open.flags),
    };
    let found = Arc::new(found);
    let place = caller.place_of(&target, &found, seen);
    let line =
        Line::Open { pid: caller.task.process.pid(), path: open.path.clone(), flags: open.flags };
    if let Err(error) = judge(caller, &open, (seen, place.as_fd()), asked) {
        return refuse(caller, line, error);
    }
    drop(place);
    if let Err(error) = caller.injected(|| Some("openat")) {
        return refuse(caller, line, error);
    }
    let opened = match target {
        Target::Node(Node::Config(number)) if open.flags & O_ACCMODE == 0 => {
            match caller.server.config_bytes(number, config_seen(caller)) {
                Some(bytes) => bytes.and_then(|bytes| text_file(caller, &bytes)),
                None => header(caller, &found),
            }
        }
        Target::Node(Node::Config(number)) => return configuration(caller, &open, number),
        Target::Node(Node::Parameter(number)) => return parameter(caller, &open, number),
        Target::Node(Node::Attribute(number)) => return attribute(caller, &open, number),
        Target::Node(node) => {
            caller.see_closes();
            open_node(caller, node, OFlags::from_bits_retain(open.flags) & KEPT)
        }
        Target::ReadOnly => {
            Err(Error::new(Errno::EACCES, "Linux lets nobody write this attribute"))
        }
        Target::Anonymous => {
            Err(Error::new(Errno::ENXIO, "an anonymous file cannot be opened by a path"))
        }
    };
    match opened {
        // After the driver's open, and closed again (do_dentry_open, fs/open.c).
        Ok(file) if open.flags & O_DIRECT != 0 => {
            drop(file);
            refuse(caller, line, Error::new(Errno::EINVAL, "a device has no direct I/O"))
        }
        Ok(file) => Decision::Give(Gift { file, on_exec: on_exec(open.flags), line }),
        Err(error) => refuse(caller, line, error),
    }
}

/// The kernel opens what is not ours; whatever is no plain file may have it wait.
fn kernels(caller: &Caller<'_>, kind: FileType) -> Decision {
    match kind {
        FileType::RegularFile | FileType::Directory => Decision::CONTINUE,
        _ => caller.goes_on(),
    }
}

fn refuse(caller: &Caller<'_>, line: Line, error: Error) -> Decision {
    caller.server.write_line(line, Err(error));
    Decision::error(error.errno)
}

/// Whether the kernel opens such a file itself: one of the view that holds what is to be read.
fn is_the_kernels(caller: &Caller<'_>, target: &Target, flags: u32) -> bool {
    match target {
        Target::Node(Node::Attribute(_)) | Target::ReadOnly => flags & O_ACCMODE == 0,
        Target::Node(Node::Parameter(_) | Node::FaultSetting) => flags & O_ACCMODE == NO_ACCESS,
        Target::Node(Node::Config(number)) => {
            let is_device = || caller.server.config_bytes(*number, ConfigSeen::Header).is_some();
            flags & O_ACCMODE == 0 && caller.administers() && !is_device()
        }
        Target::Node(_) | Target::Anonymous => false,
    }
}

/// The file that a program without CAP_SYS_ADMIN gets for the configuration space `file`: the header that every function
/// has (`pci_read_config`, drivers/pci/pci-sysfs.c).
fn header(caller: &Caller<'_>, file: &OwnedFd) -> Result<OwnedFd> {
    /// Bytes of a header, and of one of a CardBus bridge, which is of type 2.
    const HEADER: usize = 64;
    const CARDBUS: usize = 128;
    const TYPE: usize = 0x0e;
    let unreadable = because("the configuration space cannot be read");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let config = rustix::fs::open(path, flags, Mode::empty()).map_err(&unreadable)?;
    let mut bytes = [0; CARDBUS];
    let length = rustix::io::pread(&config, &mut bytes, 0).map_err(&unreadable)?;
    let shown = if bytes[TYPE] & 0x7f == 2 { CARDBUS } else { HEADER };
    text_file(caller, &bytes[..shown.min(length)])
}

impl Caller<'_> {
    /// Fails or waits, if a rule says so for a call of this name.
    pub(super) fn injected<'a>(&self, name: impl FnOnce() -> Option<&'a str>) -> Result<()> {
        let mut called = "";
        let named = || name().inspect(|name| called = name);
        let Some(Injected { error, delay }) = self.server.rules.of(named) else { return Ok(()) };
        if !delay.is_zero() && self.may_wait().is_ok() {
            if let Some(trace) = &self.server.trace {
                trace.delayed(self.task.process.pid(), called, delay);
            }
            std::thread::sleep(delay);
        }
        error.map_or(Ok(()), Err)
    }

    /// The file whose mode says who may open `target`, which was found as `found`. Through /proc/PID/fd that is the file
    /// behind a descriptor, which has nobody's mode: there it is the node that was opened.
    fn place_of(&self, target: &Target, found: &Arc<OwnedFd>, seen: Seen) -> Arc<OwnedFd> {
        let Target::Node(node) = target else { return Arc::clone(found) };
        if let Some(files) = self.server.queues.file_system() {
            // Not kept open: who looks for those that hold a node must not find the supervisor.
            if seen.dev == self.server.files.dev()
                && let Some(place) = files.device(*node)
            {
                return Arc::new(place);
            }
            if seen.dev == files.dev() {
                return Arc::clone(found);
            }
        }
        let mut places = self.server.places.lock();
        if seen.dev == self.server.files.dev() {
            return places.get(node).map_or_else(|| Arc::clone(found), Arc::clone);
        }
        if self.server.live.node((seen.dev, seen.ino)).is_some() {
            places.entry(*node).or_insert_with(|| Arc::clone(found));
        }
        Arc::clone(found)
    }
}

/// The answer to an open of a task's fail-nth file, where there is one. It is for whoever may open another file of the
/// task's that has its owner and mode (0644, `tid_base_stuff` of fs/proc/base.c).
fn fail_nth(caller: &Caller<'_>, open: &OpenCall<'_>) -> Option<Decision> {
    let (server, own) = (caller.server, caller.task.process.pid());
    if server.machine.view.fault_injection == FaultInjection::Absent {
        return None;
    }
    let (process, tid) = injection::fail_nth_of(&open.path, own, caller.task.tid)?;
    let path = format!("/proc/{process}/task/{tid}/comm").into_bytes();
    let alike = OpenCall { from: open.from, path, flags: open.flags };
    let resolve = |wait| resolve::resolve(open.from, &alike.path, Last::Follow, wait);
    let judged = match caller.find(resolve) {
        Ok(Some((file, seen))) if seen.is_in_own_procfs() && process != own => {
            judge(caller, &alike, (seen, file.as_fd()), Asked::of(open.flags))
        }
        Ok(Some((_, seen))) if seen.is_in_own_procfs() => Ok(()),
        // Of no thread, the kernel says that there is no such file.
        Ok(_) => return None,
        Err(error) => Err(error),
    };
    if let Err(error) = judged {
        return Some(Decision::error(error.errno));
    }
    let file = Arc::new(FailNth::new(tid, &server.injection));
    Some(match caller.install(file, client_flag(open.flags)) {
        Ok(fd) => Decision::Answer(Answer::Value(fd.into())),
        Err(error) => Decision::error(error.errno),
    })
}

/// The answer to an open of /proc/PID/status or limits, if the kernel's text lacks what is known here: pages that
/// process has pinned, and a limit that it has raised.
///
/// A program can bind any file over a path of that form. The file it opens is such a file when it is the very one
/// that this process finds in its own /proc, and its text is read from there.
///
/// DIFFERS: the text is that of the open; in Linux every read from its start makes it anew.
fn process_text(
    caller: &Caller<'_>,
    open: &OpenCall<'_>,
    (found, seen): (&OwnedFd, Seen),
) -> Option<Decision> {
    let server = caller.server;
    let name = if open.path.ends_with(b"status") && server.machine.iommu.ledger.pinned() != 0 {
        "status"
    } else if open.path.ends_with(b"limits") && server.memlock.is_some() {
        "limits"
    } else {
        return None;
    };
    if open.flags & O_ACCMODE != 0 || !seen.is_in_own_procfs() {
        return None;
    }
    let path = rustix::fs::readlink(format!("/proc/self/fd/{}", found.as_raw_fd()), Vec::new());
    let directory = view::status::directory(path.ok()?.as_bytes(), name)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(format!("/proc/{directory}"), flags, Mode::empty()).ok()?;
    let own = Seen::at(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if !own.is(&seen) {
        return None;
    }
    let kernels = process::text(&directory, name, view::status::TEXT_MAX).ok()?;
    let shown = match name {
        "status" => with_charges(caller, &kernels)?,
        _ => limits::text(caller, std::str::from_utf8(&kernels).ok()?)?.into_bytes(),
    };
    if !caller.is_there() {
        return None;
    }
    // Of a process that is hidden from the program, and of any other error, the kernel tells.
    judge(caller, open, (seen, found.as_fd()), Asked::of(open.flags)).ok()?;
    let file = text_file(caller, &shown).ok()?;
    Some(Decision::Give(Gift { file, on_exec: on_exec(open.flags), line: Line::None }))
}

/// The answer to an open of a file of /proc that tells of the machine.
fn machine_text(
    caller: &Caller<'_>,
    open: &OpenCall<'_>,
    (found, seen): (&OwnedFd, Seen),
) -> Option<Decision> {
    let files = ProcFile::named(&open.path);
    if files.is_empty() || open.flags & O_ACCMODE != 0 || !seen.is_in_own_procfs() {
        return None;
    }
    let is_it = |file: &&ProcFile| {
        let own = Seen::at(rustix::fs::CWD, file.path(), AtFlags::SYMLINK_NOFOLLOW);
        own.is_ok_and(|own| own.is(&seen))
    };
    let file = files.iter().find(is_it)?;
    // Of what keeps the program from it the kernel tells.
    judge(caller, open, (seen, found.as_fd()), Asked::of(open.flags)).ok()?;
    let machine = &caller.server.machine;
    let seen = machine.seen(&caller.server.bus).ok()?;
    let text = file.text(&seen, &machine.view).ok()??;
    let file = text_file(caller, text.as_bytes()).ok()?;
    Some(Decision::Give(Gift { file, on_exec: on_exec(open.flags), line: Line::None }))
}

/// The text of a status file, with the pages that its process has pinned.
fn with_charges(caller: &Caller<'_>, text: &[u8]) -> Option<Vec<u8>> {
    caller.see_closes();
    let charges = caller.server.machine.iommu.ledger.process(view::status::process(text)?);
    let charges = Charges { locked: charges.locked, pinned: charges.vm_pin() };
    (charges != Charges::default()).then(|| view::status::with_charges(text, charges))
}

/// How much of a configuration space is read by a program.
fn config_seen(caller: &Caller<'_>) -> ConfigSeen {
    if caller.administers() { ConfigSeen::All } else { ConfigSeen::Header }
}

/// The answer to an open of a configuration space for writing: mode 0644, and root's.
fn configuration(caller: &Caller<'_>, open: &OpenCall<'_>, number: u32) -> Decision {
    let denied = Error::new(Errno::EACCES, "only root may write configuration space");
    let file = match caller.writes_as_root() {
        true => caller.server.config(number, config_seen(caller)),
        false => Err(denied),
    };
    setting_file(caller, open, file, || Err(denied))
}

/// The answer to an open of an attribute for writing: a file of the run's own.
fn attribute(caller: &Caller<'_>, open: &OpenCall<'_>, number: u32) -> Decision {
    // Modes 0644, 0220 and 0200, and root's (drivers/pci/pci-sysfs.c, drivers/base/bus.c).
    let denied = Error::new(Errno::EACCES, "only root may write this attribute");
    let setting = match caller.writes_as_root() {
        true => caller.server.attribute(number),
        false => Err(denied),
    };
    setting_file(caller, open, setting, || Err(denied))
}

/// The answer to an open of a module parameter: a file of the run's own; without that its text of now, or a file that takes
/// another.
fn parameter(caller: &Caller<'_>, open: &OpenCall<'_>, number: u32) -> Decision {
    let machine = &caller.server.machine.iommu;
    // Mode 0644 and root's (kernel/params.c, module_param_named of each).
    let denied = Error::new(Errno::EACCES, "only root may write a module parameter");
    let setting: Arc<dyn ClientFile> =
        Arc::new(parameters::Setting { machine: Arc::clone(machine), number });
    let may = open.flags & O_ACCMODE == 0 || caller.writes_as_root();
    let text = || text_file(caller, parameters::text(machine, number).as_bytes());
    setting_file(caller, open, if may { Ok(setting) } else { Err(denied) }, text)
}

/// The answer to an open of a text that can be written; without the run's own file system, of one that is only read, `text`.
fn setting_file(
    caller: &Caller<'_>,
    open: &OpenCall<'_>,
    setting: Result<Arc<dyn ClientFile>>,
    text: impl FnOnce() -> Result<OwnedFd>,
) -> Decision {
    let server = caller.server;
    let line =
        Line::Open { pid: caller.task.process.pid(), path: open.path.clone(), flags: open.flags };
    let opened = setting.and_then(|setting| {
        if server.queues.sockets().is_none() {
            let access = OFlags::from_bits_retain(open.flags) & KEPT;
            server.queues.publish(&setting, access).map(Ok)
        } else if open.flags & O_ACCMODE == 0 {
            text().map(Ok)
        } else {
            caller.install(setting, client_flag(open.flags)).map(Err)
        }
    });
    match opened {
        Ok(Ok(file)) => Decision::Give(Gift { file, on_exec: on_exec(open.flags), line }),
        Ok(Err(fd)) => {
            server.write_line(line, Ok(fd.into()));
            Decision::Answer(Answer::Value(fd.into()))
        }
        Err(error) => {
            server.write_line(line, Err(error));
            Decision::error(error.errno)
        }
    }
}

/// A file of the kernel's own that holds `text`, open for reading.
pub(super) fn text_file(caller: &Caller<'_>, text: &[u8]) -> Result<OwnedFd> {
    let blank = caller.server.files.blank_for_text()?;
    rustix::io::pwrite(&blank.file, text, 0)
        .map_err(because("a file for the program cannot be filled"))?;
    caller.server.files.reopen(&blank, OFlags::RDONLY)
}

pub(super) const fn on_exec(flags: u32) -> OnExec {
    if flags & O_CLOEXEC != 0 { OnExec::Close } else { OnExec::Keep }
}

/// The same for what a command installs.
const fn client_flag(flags: u32) -> ioasis_iommufd::OnExec {
    if flags & O_CLOEXEC != 0 {
        ioasis_iommufd::OnExec::Close
    } else {
        ioasis_iommufd::OnExec::Keep
    }
}

/// What a path leads to.
enum Target {
    Node(Node),
    /// An attribute without a store function: sysfs refuses it to root too (`KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK`,
    /// fs/kernfs/file.c).
    ReadOnly,
    /// A file of ours that has no node.
    Anonymous,
}

fn node(caller: &Caller<'_>, file: Seen) -> Option<Target> {
    let server = caller.server;
    if let Some(node) = server.node_of_file((file.dev, file.ino)) {
        return Some(Target::Node(node));
    }
    if file.kind.is_char_device() {
        let node = match file.number {
            (0, 0) => server.made.lock().get(&(file.dev, file.ino)).copied(),
            number => server.node_of_number(number),
        };
        return node.map(Target::Node);
    }
    if file.kind == FileType::RegularFile && server.live.has_attributes(file.dev) {
        return Some(Target::ReadOnly);
    }
    // A link in /proc/PID/fd leads to the file itself; opening a device anew is opening its node.
    let opened = server.files.get(file.dev, file.ino)?;
    Some(match &opened.file {
        File::Iommufd { .. } if opened.look.rdev == CONTAINER => Target::Node(Node::VfioContainer),
        File::Iommufd { .. } => Target::Node(Node::Iommu),
        File::Container(_) => Target::Node(Node::VfioContainer),
        File::Group(group) => Target::Node(Node::Group(group.group().number())),
        File::Device { device, .. } if opened.look.rdev != (0, 0) => {
            Target::Node(Node::Cdev(device.device().index()))
        }
        File::Device { .. } | File::Kvm { .. } | File::Made(_) => Target::Anonymous,
    })
}

fn open_node(caller: &Caller<'_>, node: Node, access: OFlags) -> Result<OwnedFd> {
    let server = caller.server;
    let machine = &server.machine;
    let options = &machine.view;
    let (file, path, rdev) = match node {
        Node::Iommu => {
            inject::step("a context")?;
            let context = ioasis_iommufd::Context::new(&machine.iommu);
            let file = File::Iommufd { context, regions: Arc::default() };
            (file, "/dev/iommu".to_owned(), (10, options.iommu_minor))
        }
        Node::VfioContainer => (container(caller)?, "/dev/vfio/vfio".to_owned(), CONTAINER),
        Node::Group(number) | Node::NoIommuGroup(number) => {
            let group = machine.devices.groups().iter().find(|group| group.number() == number);
            let group = group.ok_or(Error::at(Errno::ENODEV, "no such group", number.into()))?;
            let path = format!("/dev/vfio/{}", group.node());
            (File::Group(group.open(caller)?), path, (options.group_major, number))
        }
        Node::Cdev(index) => return open_cdev(caller, index, access),
        Node::FaultSetting => return server.files.reopen(&server.files.blank()?, access),
        Node::Parameter(number) => {
            return Err(Error::at(Errno::EINVAL, "a parameter is opened as a text", number.into()));
        }
        Node::Resource(bar) => {
            let why = "a BAR is mapped through its VFIO device, not through sysfs";
            return Err(Error::at(Errno::EACCES, why, bar.into()));
        }
        Node::Config(number) => {
            return Err(Error::at(
                Errno::EINVAL,
                "a configuration space has no node",
                number.into(),
            ));
        }
        Node::Attribute(number) => {
            return Err(Error::at(
                Errno::EINVAL,
                "an attribute is opened as a text",
                number.into(),
            ));
        }
    };
    let group = match &file {
        File::Group(group) => Some(Arc::clone(group)),
        _ => None,
    };
    let (blank, owner) = (server.files.blank(), caller.task.process.pid());
    let opened =
        blank.and_then(|blank| server.files.publish((blank, owner), file, Look { path, rdev }));
    // Nobody else would: the file has no descriptor yet. Contexts and containers end when they are dropped.
    let opened = opened.inspect_err(|_| group.iter().for_each(|group| group.close()))?;
    server.files.open(&opened, access).inspect_err(|_| server.files.forget(&opened))
}

/// An open of /dev/vfio/vfio, by the rules of who provides it.
fn container(caller: &Caller<'_>) -> Result<File> {
    let machine = &caller.server.machine;
    if machine.view.container == ContainerNode::Iommufd {
        inject::step("a context")?;
        let context = ioasis_iommufd::Context::new(&machine.iommu);
        // drivers/iommu/iommufd/main.c, iommufd_fops_open: charged as the type1 driver charges.
        context.set_account_mode(account::Mode::Process)?;
        return Ok(File::Iommufd { context, regions: Arc::default() });
    }
    Ok(File::Container(ioasis_iommufd::type1::Container::new(&machine.iommu)))
}

fn open_cdev(caller: &Caller<'_>, index: u32, access: OFlags) -> Result<OwnedFd> {
    let devices = caller.server.machine.devices.devices();
    let device = devices.iter().find(|device| device.index() == index);
    let device = device.ok_or(Error::at(Errno::ENODEV, "no such device", index.into()))?;
    let rdev = device.cdev().ok_or(Error::at(Errno::ENODEV, "no node of its own", index.into()))?;
    let file = device.open_cdev(caller)?;
    let look = Look { path: format!("/dev/vfio/devices/{}", device.node()), rdev };
    open_device(caller, &file, access, look)
}
