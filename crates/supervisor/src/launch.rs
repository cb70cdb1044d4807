//! Starts the client: its view of the machine, its filter, its program.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use ioasis_sys::fuse::{Mounted, Owner};
use ioasis_sys::notify::Listener;
use ioasis_sys::seccomp;
use ioasis_sys::spawn::{self, Child, Fork};
use ioasis_sys::{message, signal};
use ioasis_uapi::{Errno, Error};

use crate::filter::{self, QueueFds};
use crate::fuse;
use crate::limits::Limits;
use crate::removal::Failure;
use crate::view::{self, Cover, DeviceNodes, Identity, View};

/// Descriptors whose read and write are stopped, at most: one for every queue.
const QUEUES: u32 = 64;

/// A client that waits to be told to execute its program.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) listener: Listener,
    /// Root of the memory file system for the files it is given.
    pub(crate) files: OwnedFd,
    /// The file system for those that are read and written, and for device nodes, where /dev/fuse opens; taken when it is
    /// served.
    fuse: Option<(Mounted, DeviceNodes)>,
    /// The numbers at which read and write are stopped, where there is none.
    pub(crate) queues: Option<QueueFds>,
    pub(crate) nodes: Vec<Identity>,
    /// What covers directories of the host; taken when the view is looked after.
    pub(crate) covers: Vec<Cover>,
    /// Below /sys, the directory of each device, by its address.
    pub(crate) directories: BTreeMap<String, String>,
    /// Entries of /dev and /sys it does not see.
    pub(crate) lost: Vec<String>,
    start: OwnedFd,
}

/// What the program is to find as its parent set it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    pub(crate) signals: signal::Inherited,
    pub(crate) limits: Limits,
}

/// More than any message of a launch takes.
const LIMIT: usize = 1 << 20;

/// The numbers kept for queues: the highest below the limit that the client starts with, where its other descriptors rarely
/// get.
fn queue_fds() -> Option<QueueFds> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let end = u32::try_from(limit.unwrap_or(1024).min(1 << 20)).ok()?;
    let first = end.checked_sub(QUEUES).filter(|&first| first >= 256)?;
    Some(QueueFds { first, end })
}

/// Forks the client, which enters its view and its filter and then waits.
///
/// # Errors
///
/// What the view or the filter lacks on this host.
pub(crate) fn launch(
    view: &View,
    command: &[OsString],
    inherited: Inherited,
) -> Result<Launched, Failure> {
    let failed = |error: Error| Failure::before_start(error.why);
    let (ours, theirs) = message::pair().map_err(failed)?;
    let queues = queue_fds();
    match spawn::fork().map_err(failed)? {
        Fork::Child => {
            drop(ours);
            let failure = match prepare(view, queues, &theirs) {
                Ok(()) => execute(command, inherited),
                Err(failure) => failure,
            };
            let text = [&[failure.status], failure.why.as_bytes()].concat();
            let _ = message::send(&theirs, &text, &[]);
            spawn::exit(failure.status.into())
        }
        Fork::Parent(child) => {
            drop(theirs);
            let (bytes, fds) = message::receive(&ours, LIMIT).map_err(failed)?;
            let mut fds = fds.into_iter();
            let (Some(files), Some(listener)) = (fds.next(), fds.next()) else {
                let _ = child.wait();
                return Err(Failure::from_message(&bytes));
            };
            let (owner, nodes, lost) = read_identities(&bytes);
            let mounted = fds.next().zip(fds.next());
            let (paths, roots) = message::receive(&ours, LIMIT).map_err(failed)?;
            let paths = String::from_utf8_lossy(&paths).into_owned();
            let covers = paths.lines().skip(1).zip(roots);
            let covers = covers.map(|(path, root)| Cover { path: path.to_owned(), root }).collect();
            let mounted = mounted.map(|(device, root)| Mounted { device, root, owner });
            let fuse = mounted.map(|mounted| {
                let dev = fuse::dev_of(&mounted).ok();
                let bound = nodes.iter().any(|known| Some(known.dev) == dev);
                let devices = if bound { view.device_nodes(owner) } else { DeviceNodes::default() };
                (mounted, devices)
            });
            Ok(Launched {
                child,
                listener: Listener::new(listener),
                files,
                queues: queues.filter(|_| fuse.is_none()),
                fuse,
                nodes,
                covers,
                directories: view.directories().clone(),
                lost,
                start: ours,
            })
        }
    }
}

impl Launched {
    /// The file system to be served.
    pub(crate) fn take_fuse(&mut self) -> Option<(Mounted, DeviceNodes)> {
        self.fuse.take()
    }

    /// Lets the client execute its program.
    pub(crate) fn start(&self) {
        let _ = message::send(&self.start, b"x", &[]);
    }

    /// Readable once [`Launched::started`] has something to say.
    pub(crate) fn socket(&self) -> impl AsFd + '_ {
        self.start.as_fd()
    }

    /// Whether the program was executed, or why not.
    ///
    /// # Errors
    ///
    /// The reason.
    pub(crate) fn started(&self) -> Result<(), Failure> {
        match message::receive(&self.start, LIMIT) {
            Ok((bytes, _)) if !bytes.is_empty() => Err(Failure::from_message(&bytes)),
            _ => Ok(()),
        }
    }
}

impl Failure {
    fn from_message(bytes: &[u8]) -> Self {
        match bytes.split_first() {
            Some((&status, why)) => Self { status, why: String::from_utf8_lossy(why).into_owned() },
            None => {
                Self::before_start("the program's process ended before its program was executed")
            }
        }
    }
}

fn prepare(view: &View, queues: Option<QueueFds>, socket: &OwnedFd) -> Result<(), Failure> {
    let failed = |error: Error| Failure::before_start(error.why);
    let entered = view.enter().map_err(failed)?;
    let filter = filter::of_run(queues.filter(|_| entered.fuse.is_none()), view.user());
    let listener = match filter.install() {
        Err(Error { errno: Errno::EACCES, .. }) => {
            seccomp::no_new_privileges().and_then(|()| filter.install())
        }
        installed => installed,
    }
    .map_err(failed)?;
    let owner = entered.fuse.as_ref().map_or_else(Owner::default, |fuse| fuse.owner);
    let identities = write_identities(owner, &entered.nodes, &entered.lost);
    let mut fds = vec![entered.files.as_fd(), listener.as_fd()];
    if let Some(fuse) = &entered.fuse {
        fds.extend([fuse.device.as_fd(), fuse.root.as_fd()]);
    }
    message::send(socket, &identities, &fds).map_err(failed)?;
    // Without one, what changes below it is not seen.
    let covers = &entered.covers[..entered.covers.len().min(message::MAX_FDS)];
    let paths = covers.iter().fold("\n".to_owned(), |text, cover| text + &cover.path + "\n");
    let roots: Vec<_> = covers.iter().map(|cover| cover.root.as_fd()).collect();
    message::send(socket, paths.as_bytes(), &roots).map_err(failed)?;
    drop(roots);
    // Whoever holds the device keeps the file system from ending with the supervisor.
    drop(fds);
    drop(entered);
    match message::receive(socket, 1) {
        Ok((go, _)) if !go.is_empty() => Ok(()),
        _ => spawn::exit(125),
    }
}

/// Executes `command`; returns only with the reason why not.
fn execute(command: &[OsString], inherited: Inherited) -> Failure {
    let (program, arguments) = command.split_first().expect("a command has a program");
    let mut command = Command::new(program);
    inherited.signals.restore_in(&mut command);
    inherited.limits.restore();
    let error = command.args(arguments).envs(view::ENVIRONMENT.iter().copied()).exec();
    Failure {
        status: if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 },
        why: format!("cannot execute {}: {error}", program.display()),
    }
}

fn write_identities(owner: Owner, nodes: &[Identity], lost: &[String]) -> Vec<u8> {
    let mut bytes = [owner.uid.to_ne_bytes(), owner.gid.to_ne_bytes()].concat();
    bytes.extend(u32::try_from(nodes.len()).expect("a few nodes").to_ne_bytes());
    for identity in nodes {
        bytes.extend(identity.to_bytes());
    }
    bytes.extend(lost.join("\n").as_bytes());
    bytes
}

fn read_identities(bytes: &[u8]) -> (Owner, Vec<Identity>, Vec<String>) {
    let word = |bytes: &'_ [u8]| bytes.first_chunk().copied().map(u32::from_ne_bytes);
    let owner = word(bytes).zip(bytes.get(4..).and_then(word)).expect("an owner leads");
    let owner = Owner { uid: owner.0, gid: owner.1 };
    let (count, rest) = bytes[8..].split_first_chunk::<4>().expect("a count leads the nodes");
    let count = usize::try_from(u32::from_ne_bytes(*count)).expect("64-bit usize");
    let (nodes, lost) = rest.split_at(count * 24);
    let identity = |bytes: &[u8; 24]| Identity::from_bytes(*bytes).expect("one that we wrote");
    let nodes = nodes.as_chunks().0.iter().map(identity);
    let lost = String::from_utf8_lossy(lost);
    (owner, nodes.collect(), lost.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Node;

    #[test]
    fn nodes_arrive_as_they_were_sent() {
        let node = |ino, node| Identity { dev: 77, ino, node };
        let nodes = [
            node(1, Node::Iommu),
            node(2, Node::VfioContainer),
            node(3, Node::Group(12)),
            node(4, Node::NoIommuGroup(13)),
            node(5, Node::Cdev(0)),
            node(6, Node::Attribute(99)),
            node(7, Node::FaultSetting),
            node(8, Node::Parameter(2)),
            node(9, Node::Config(7)),
        ];
        let owner = Owner { uid: 5, gid: 6 };
        let lost = ["/dev/a".to_owned(), "/dev/b".to_owned()];
        assert_eq!(
            read_identities(&write_identities(owner, &nodes, &lost)),
            (owner, nodes.to_vec(), lost.to_vec())
        );
    }
}
