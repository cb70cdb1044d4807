//! The device nodes of the view as files of the run's own file system, so that stat(2) says their numbers.
//!
//! Nobody without privileges makes a node with a number (`vfs_mknod`, fs/namei.c), but whoever answers for a file system
//! says which number a file of it has. `/dev/vfio` is a directory of that file system, so that nodes come and go in it while
//! programs run, in whatever mount namespace they see it; a node that lies elsewhere is bound over its place.
//! It is a nodev mount: an open is
//! answered by the supervisor, and one that it does not see is refused. The kernel keeps what it was told for good and judges
//! by it, so that stat and access ask nobody, but for access that is denied and for access control lists, which it wants to
//! know anew. Owner, mode, times and list are kept here.
//!
//! Whoever may write such a directory makes symbolic links there, as an administrator does who has `/dev/vfio/vfio` lead to
//! `/dev/iommu`, and removes them; nodes are the run's own to make and remove.
//!
//! An inode's number is never used again.
//!
//! Lock order: `DeviceNodes::inodes` is a leaf.

use std::collections::BTreeMap;

use ioasis_sys::fuse::{
    Answer, Attributes, Changes, Connection, DirectoryEntry, Operation, Owner, Positions, ROOT,
    Request, Stamp, Time,
};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use super::Node;

/// A node as the view plans it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// Where it lies.
    pub(super) path: String,
    pub(super) node: Node,
    /// Permissions.
    pub(super) mode: u32,
    /// Major and minor.
    pub(super) number: (u32, u32),
}

/// Every node that has a number, and the directories that only such nodes are in.
#[derive(Debug, Default)]
pub(crate) struct DeviceNodes {
    inodes: Mutex<Inodes>,
}

#[derive(Debug, Default)]
struct Inodes {
    by_number: BTreeMap<u64, Inode>,
    /// The number of the next one.
    next: u64,
    /// Whose the next one is.
    owner: Owner,
}

#[derive(Clone, Debug)]
struct Inode {
    path: String,
    /// None for a directory and a link.
    node: Option<Node>,
    /// Where a symbolic link leads.
    target: Option<Vec<u8>>,
    attributes: Attributes,
    /// Its access control list, as extended attributes have it, if that says more than the mode.
    list: Option<Vec<u8>>,
}

/// The directories of nodes, the one that is mounted first.
const DIRECTORIES: [&str; 2] = ["/dev/vfio", "/dev/vfio/devices"];
/// The number of the first one's inode.
const FIRST: u64 = ROOT + 1;
/// Below it are the numbers of nodes, from it on those of files that are opened once.
pub(crate) const END: u64 = 1 << 32;
const CHARACTER_DEVICE: u32 = 0o020_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
/// Symbolic links at once: each is memory of the supervisor's.
const LINKS: usize = 64;
/// From here on no link is made, so that nodes have numbers left.
const LAST_LINK: u64 = END / 2;
const TYPE: u32 = 0o170_000;
/// The extended attribute that holds an access control list.
const LIST: &[u8] = b"system.posix_acl_access";

/// A device number as stat(2) gives it (`new_encode_dev`, linux/kdev_t.h).
pub(crate) const fn encoded((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

/// A name that a directory has no more, or has anew, for [`Connection::forget_name`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) parent: u64,
    pub(crate) name: String,
}

impl DeviceNodes {
    /// Nodes made at `time`, which whoever answers for them in turn must agree on.
    pub(super) fn new(planned: &[Planned], owner: Owner, time: Time) -> Self {
        let mut inodes = Inodes { next: FIRST, owner, ..Inodes::default() };
        for directory in DIRECTORIES {
            inodes.add(directory, None, (DIRECTORY | 0o755, 0), time);
        }
        for planned in planned {
            inodes.add_node(planned, time);
        }
        Self { inodes: Mutex::new(inodes) }
    }

    /// Whether there is none, as the run has no such file system.
    pub(super) fn is_empty(&self) -> bool {
        self.inodes.lock().by_number.is_empty()
    }

    /// The number of the inode of `node`, which is its name too.
    pub(crate) fn inode(&self, node: Node) -> Option<u64> {
        let inodes = self.inodes.lock();
        let found = inodes.by_number.iter().find(|(_, known)| known.node == Some(node));
        found.map(|(&number, _)| number)
    }

    /// The same for what lies at `path`.
    pub(super) fn inode_at(&self, path: &str) -> Option<u64> {
        self.inodes.lock().at(path)
    }

    /// The node with this number of an inode.
    pub(crate) fn node(&self, inode: u64) -> Option<Node> {
        self.inodes.lock().by_number.get(&inode)?.node
    }

    /// What lies below the directory `path`, directories without a node.
    pub(super) fn below(&self, path: &str) -> Vec<(String, Option<Node>)> {
        let inodes = self.inodes.lock();
        let prefix = format!("{path}/");
        let below = inodes.by_number.values().filter(|inode| inode.path.starts_with(&prefix));
        let below = below.filter(|inode| inode.target.is_none());
        below.map(|inode| (inode.path.clone(), inode.node)).collect()
    }

    /// What stat(2) says of the node with this number.
    pub(crate) fn with_number(&self, number: (u32, u32)) -> Option<Attributes> {
        let (inodes, rdev) = (self.inodes.lock(), encoded(number));
        let nodes = inodes.by_number.values().filter(|inode| inode.node.is_some());
        nodes.map(|inode| inode.attributes).find(|of| of.rdev == rdev)
    }

    /// A node that was not there. The kernel asks for it, as it keeps no name that led nowhere.
    pub(super) fn add(&self, planned: &Planned) {
        let mut inodes = self.inodes.lock();
        if inodes.at(&planned.path).is_none() {
            inodes.add_node(planned, Time::now());
        }
    }

    /// Takes away what lies at `path`. Who has it open keeps it; the kernel must be told that the name is gone.
    pub(super) fn remove(&self, path: &str) -> Option<Changed> {
        let mut inodes = self.inodes.lock();
        let number = inodes.at(path)?;
        inodes.by_number.remove(&number);
        let (parent, name) = path.rsplit_once('/')?;
        Some(Changed { parent: inodes.at(parent)?, name: name.to_owned() })
    }

    /// Whether a request is about one of these.
    pub(crate) fn has(&self, request: &Request<'_>) -> bool {
        let inodes = self.inodes.lock();
        match request.operation {
            Operation::Lookup { .. } if request.node == ROOT => inodes.subject(request).is_some(),
            _ => request.node != ROOT && request.node < END,
        }
    }

    /// The answer to a request that is about one of these.
    ///
    /// # Errors
    ///
    /// Why it is refused.
    pub(crate) fn decide<'a>(
        &self,
        request: &Request<'_>,
        bytes: &'a mut Vec<u8>,
    ) -> Result<Answer<'a>> {
        let mut inodes = self.inodes.lock();
        let gone = Error::new(Errno::ENOENT, "no such node");
        let number = inodes.subject(request).ok_or(gone)?;
        if let Operation::ReadDirectory { offset, size } = request.operation {
            inodes.read(number, offset, size, bytes)?;
            return Ok(Answer::Bytes(bytes));
        }
        match request.operation {
            Operation::MakeLink { name, target } => {
                return inodes.link(number, (name, target), request.owner).map(Answer::Named);
            }
            Operation::Unlink { name } => {
                return inodes.unlink(number, name).map(|()| Answer::Done);
            }
            _ => {}
        }
        let inode = inodes.by_number.get_mut(&number).ok_or(gone)?;
        match request.operation {
            Operation::ReadLink => {
                let no_link = Error::new(Errno::EINVAL, "the file is no symbolic link");
                bytes.extend_from_slice(inode.target.as_deref().ok_or(no_link)?);
                Ok(Answer::Bytes(bytes))
            }
            Operation::Lookup { .. } if request.node == ROOT => Ok(Answer::Entry(inode.attributes)),
            Operation::Lookup { .. } => Ok(Answer::Named(inode.attributes)),
            Operation::OpenDirectory => Ok(Answer::Opened(Positions::Kept)),
            Operation::ReleaseDirectory => Ok(Answer::Done),
            Operation::Attributes => Ok(Answer::Attributes(inode.attributes)),
            Operation::SetAttributes(changes) => {
                inode.change(changes);
                Ok(Answer::Attributes(inode.attributes))
            }
            Operation::GetExtended { name, size } => match &inode.list {
                Some(list) if name == LIST => within(list, size, bytes),
                _ => Err(Error::new(Errno::ENODATA, "no such extended attribute")),
            },
            Operation::SetExtended { name: LIST, value, .. } => {
                inode.set_list(value).map(|()| Answer::Done)
            }
            Operation::SetExtended { .. } => {
                Err(Error::new(Errno::EOPNOTSUPP, "a node keeps no such extended attribute"))
            }
            Operation::ListExtended { size } => {
                let names = inode.list.as_ref().map_or_else(Vec::new, |_| [LIST, b"\0"].concat());
                within(&names, size, bytes)
            }
            Operation::RemoveExtended { name: LIST } => {
                inode.list = None;
                inode.attributes.times[2] = Time::now();
                Ok(Answer::Done)
            }
            Operation::RemoveExtended { .. } => {
                Err(Error::new(Errno::ENODATA, "no such extended attribute"))
            }
            // ENOSYS would be the last answer for all files.
            _ if inode.node.is_none() => {
                Err(Error::new(Errno::EPERM, "only the run makes and removes nodes there"))
            }
            _ => Err(Error::new(Errno::ENOSYS, "a node has no such operation")),
        }
    }

    /// Answers what arrives until `is_over` says so, each time that something may have arrived.
    ///
    /// # Errors
    ///
    /// What [`Connection::next`] says.
    pub(super) fn serve(
        &self,
        connection: &Connection,
        mut is_over: impl FnMut() -> bool,
    ) -> Result<()> {
        let mut buffer = Default::default();
        while !is_over() {
            while let Some(request) = connection.next(&mut buffer)? {
                let mut bytes = Vec::new();
                let answer = match request.operation {
                    Operation::Interrupt { .. } => continue,
                    _ if self.has(&request) => self.decide(&request, &mut bytes),
                    Operation::Attributes => Ok(Answer::Attributes(root(request.owner))),
                    _ => Err(Error::new(Errno::EOPNOTSUPP, "there are only nodes yet")),
                };
                connection.answer(request.unique, answer);
            }
        }
        Ok(())
    }
}

impl Inodes {
    fn add_node(&mut self, planned: &Planned, time: Time) {
        let look = (CHARACTER_DEVICE | planned.mode, encoded(planned.number));
        self.add(&planned.path, Some(planned.node), look, time);
    }

    fn add(&mut self, path: &str, node: Option<Node>, (mode, rdev): (u32, u32), time: Time) {
        let number = self.next;
        assert!(number < END, "nodes come and go less often");
        self.next += 1;
        let (owner, times) = (self.owner, [time; 3]);
        let attributes = Attributes { node: number, mode, size: 0, owner, rdev, times };
        let inode = Inode { path: path.to_owned(), node, target: None, attributes, list: None };
        self.by_number.insert(number, inode);
    }

    /// A symbolic link in the directory `parent`.
    fn link(
        &mut self,
        parent: u64,
        (name, target): (&[u8], &[u8]),
        owner: Owner,
    ) -> Result<Attributes> {
        let path = self.path_in(parent, name)?;
        if self.at(&path).is_some() {
            return Err(Error::new(Errno::EEXIST, "there is a file of this name"));
        }
        let links = self.by_number.values().filter(|inode| inode.target.is_some()).count();
        if links >= LINKS || self.next >= LAST_LINK {
            return Err(Error::at(Errno::ENOSPC, "too many symbolic links", LINKS as u64));
        }
        let number = self.next;
        self.add(&path, None, (LINK | 0o777, 0), Time::now());
        let inode = self.by_number.get_mut(&number).expect("it was added");
        inode.target = Some(target.to_vec());
        inode.attributes.owner = owner;
        inode.attributes.size = target.len() as u64;
        Ok(inode.attributes)
    }

    /// Takes away a symbolic link.
    fn unlink(&mut self, parent: u64, name: &[u8]) -> Result<()> {
        let path = self.path_in(parent, name)?;
        let number = self.at(&path).ok_or(Error::new(Errno::ENOENT, "no such file"))?;
        if self.by_number.get(&number).is_none_or(|inode| inode.target.is_none()) {
            return Err(Error::new(Errno::EPERM, "only the run makes and removes nodes there"));
        }
        self.by_number.remove(&number);
        Ok(())
    }

    fn path_in(&self, directory: u64, name: &[u8]) -> Result<String> {
        let inode = self.by_number.get(&directory);
        let inode = inode.ok_or(Error::new(Errno::ENOENT, "no such directory"))?;
        let no_text = Error::new(Errno::EINVAL, "a name there is UTF-8");
        let name = std::str::from_utf8(name).map_err(|_| no_text)?;
        Ok(format!("{}/{name}", inode.path))
    }

    fn at(&self, path: &str) -> Option<u64> {
        let mut all = self.by_number.iter();
        all.find(|(_, inode)| inode.path == path).map(|(&number, _)| number)
    }

    /// Which one a request is about, if it is about one.
    fn subject(&self, request: &Request<'_>) -> Option<u64> {
        let Operation::Lookup { name } = request.operation else { return Some(request.node) };
        let name = std::str::from_utf8(name).ok()?;
        if request.node == ROOT {
            let number: u64 = name.parse().ok()?;
            return self.by_number.contains_key(&number).then_some(number);
        }
        let directory = self.by_number.get(&request.node)?;
        self.at(&format!("{}/{name}", directory.path))
    }

    /// Lists a directory. An entry's offset is the number of its inode, so that those that stay keep theirs.
    fn read(&self, directory: u64, offset: u64, size: u32, bytes: &mut Vec<u8>) -> Result<()> {
        let gone = Error::new(Errno::ENOENT, "no such directory");
        let inode = self.by_number.get(&directory).ok_or(gone)?;
        if inode.node.is_some() || inode.target.is_some() {
            return Err(Error::new(Errno::ENOTDIR, "a node is no directory"));
        }
        let dots = [(directory, ".", FIRST - 1), (ROOT, "..", FIRST)];
        let dots = dots.map(|(node, name, next)| (node, DIRECTORY, name, next));
        let prefix = format!("{}/", inode.path);
        let below = self.by_number.iter().filter_map(|(&number, inode)| {
            let name = inode.path.strip_prefix(&prefix).filter(|name| !name.contains('/'))?;
            Some((number, inode.attributes.mode, name, number + 1))
        });
        let all = dots.into_iter().chain(below);
        for (node, mode, name, next) in all.filter(|&(.., next)| next > offset) {
            if !(DirectoryEntry { node, mode, name, next }).append_to(bytes, size) {
                break;
            }
        }
        Ok(())
    }
}

/// The directory that holds every file.
pub(crate) const fn root(owner: Owner) -> Attributes {
    let times = [Time { seconds: 0, nanoseconds: 0 }; 3];
    Attributes { node: ROOT, mode: 0o040_700, size: 0, owner, rdev: 0, times }
}

/// `value` to somebody who has room for `size` bytes, or asks for its length.
fn within<'a>(value: &[u8], size: u32, bytes: &'a mut Vec<u8>) -> Result<Answer<'a>> {
    let length = u32::try_from(value.len()).expect("a request is shorter");
    if size == 0 {
        return Ok(Answer::Size(length));
    }
    if size < length {
        return Err(Error::at(Errno::ERANGE, "the value is longer", length.into()));
    }
    bytes.extend_from_slice(value);
    Ok(Answer::Bytes(bytes))
}

impl Inode {
    /// Sets what the kernel has found the caller may set (setattr_prepare, fs/attr.c).
    fn change(&mut self, changes: Changes) {
        let now = Time::now();
        let of = &mut self.attributes;
        let stamp = |stamp| match stamp {
            Stamp::Now => now,
            Stamp::At(time) => time,
        };
        of.owner.uid = changes.user.unwrap_or(of.owner.uid);
        of.owner.gid = changes.group.unwrap_or(of.owner.gid);
        of.times[0] = changes.accessed.map_or(of.times[0], stamp);
        of.times[1] = changes.modified.map_or(of.times[1], stamp);
        of.times[2] = now;
        if let Some(mode) = changes.mode {
            of.mode = of.mode & TYPE | mode & !TYPE;
            if let Some(list) = &mut self.list {
                follow_mode(list, mode);
            }
        }
    }

    /// Takes an access control list, whose mode becomes the file's; one that says no more than a mode is none
    /// (`posix_acl_update_mode`, fs/posix_acl.c).
    fn set_list(&mut self, list: &[u8]) -> Result<()> {
        let invalid = Error::new(Errno::EINVAL, "this is no access control list");
        let (permissions, extends) = mode_of(list).ok_or(invalid)?;
        self.attributes.mode = self.attributes.mode & !0o777 | permissions;
        self.attributes.times[2] = Time::now();
        self.list = extends.then(|| list.to_vec());
        Ok(())
    }
}

// Layout of a list: a version and entries of tag, permissions and id (linux/posix_acl_xattr.h), little-endian.
const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;
// Tags (linux/posix_acl.h).
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWN_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Tag and permissions of each entry.
fn entries(list: &[u8]) -> Option<impl Iterator<Item = (u16, u16)>> {
    let (version, entries) = list.split_first_chunk::<HEADER>()?;
    let (entries, rest) = entries.as_chunks::<ENTRY>();
    let of = |&[tag0, tag1, bits0, bits1, ..]: &[u8; ENTRY]| {
        (u16::from_le_bytes([tag0, tag1]), u16::from_le_bytes([bits0, bits1]))
    };
    let valid = u32::from_le_bytes(*version) == VERSION && rest.is_empty();
    valid.then(|| entries.iter().map(of))
}

/// The permissions of a mode that a list stands for, and whether it says more than them (`posix_acl_equiv_mode`).
fn mode_of(list: &[u8]) -> Option<(u32, bool)> {
    let (mut owner, mut group, mut other, mut mask, mut extends) = (0, 0, 0, None, false);
    for (tag, bits) in entries(list)? {
        let bits = u32::from(bits) & 7;
        match tag {
            OWNER => owner = bits,
            OWN_GROUP => group = bits,
            OTHER => other = bits,
            MASK => (mask, extends) = (Some(bits), true),
            USER | GROUP => extends = true,
            _ => return None,
        }
    }
    Some((owner << 6 | mask.unwrap_or(group) << 3 | other, extends))
}

/// Lets a list say what chmod(2) has said (`posix_acl_chmod`).
fn follow_mode(list: &mut [u8], mode: u32) {
    let masked = entries(list).is_some_and(|mut all| all.any(|(tag, _)| tag == MASK));
    for entry in list[HEADER..].as_chunks_mut::<ENTRY>().0 {
        let shift = match u16::from_le_bytes([entry[0], entry[1]]) {
            OWNER => 6,
            MASK => 3,
            OWN_GROUP if !masked => 3,
            OTHER => 0,
            _ => continue,
        };
        entry[2] = u8::try_from(mode >> shift & 7).expect("three bits");
        entry[3] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for (tag, bits) in entries {
            bytes.extend([tag.to_le_bytes(), bits.to_le_bytes(), [0xff; 2], [0xff; 2]].concat());
        }
        bytes
    }

    fn planned(path: &str, node: Node, mode: u32, number: (u32, u32)) -> Planned {
        Planned { path: path.to_owned(), node, mode, number }
    }

    fn nodes() -> DeviceNodes {
        let planned = [
            planned("/dev/iommu", Node::Iommu, 0o660, (10, 126)),
            planned("/dev/vfio/3", Node::Group(3), 0o600, (242, 3)),
        ];
        DeviceNodes::new(&planned, Owner { uid: 7, gid: 8 }, Time::now())
    }

    const IOMMU: u64 = 4;
    const GROUP: u64 = 5;

    fn ask(nodes: &DeviceNodes, node: u64, operation: Operation<'_>) -> Result<String> {
        let request = Request { unique: 1, node, owner: Owner::default(), tid: 1, operation };
        let mut bytes = Vec::new();
        let answer = nodes.decide(&request, &mut bytes)?;
        Ok(format!("{answer:?}"))
    }

    #[test]
    fn a_device_number_is_encoded_as_the_kernel_does() {
        assert_eq!(encoded((10, 126)), 10 << 8 | 126);
        assert_eq!(encoded((511, 0x345)), 0x0031_ff45);
    }

    #[test]
    fn a_node_has_its_number_and_keeps_what_is_set() {
        let nodes = nodes();
        assert_eq!(nodes.inode(Node::Group(3)), Some(GROUP));
        let changes = Changes { mode: Some(0o100_640), group: Some(9), ..Changes::default() };
        ask(&nodes, GROUP, Operation::SetAttributes(changes)).unwrap();
        let now = nodes.with_number((242, 3)).unwrap();
        assert_eq!((now.mode, now.rdev), (0o020_640, 242 << 8 | 3), "a type never changes");
        assert_eq!(now.owner, Owner { uid: 7, gid: 9 });
        let operation = Operation::Attributes;
        let request = Request { unique: 1, node: END, owner: now.owner, tid: 1, operation };
        assert!(!nodes.has(&request), "a queue's");
    }

    #[test]
    fn nodes_come_and_go_in_their_directory_and_no_number_comes_back() {
        let nodes = nodes();
        let look = |name| ask(&nodes, FIRST, Operation::Lookup { name });
        let list = || {
            let request = Operation::ReadDirectory { offset: 0, size: 4096 };
            let request = Request {
                unique: 1,
                node: FIRST,
                owner: Owner::default(),
                tid: 1,
                operation: request,
            };
            let mut bytes = Vec::new();
            nodes.decide(&request, &mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        assert!(look(b"3").is_ok() && list().contains("devices"));
        let gone = Changed { parent: FIRST, name: "3".to_owned() };
        assert_eq!(nodes.remove("/dev/vfio/3"), Some(gone));
        assert_eq!(look(b"3").unwrap_err().errno, Errno::ENOENT);
        assert_eq!(ask(&nodes, GROUP, Operation::Attributes).unwrap_err().errno, Errno::ENOENT);
        nodes.add(&planned("/dev/vfio/3", Node::Group(3), 0o600, (242, 3)));
        assert_eq!(nodes.inode(Node::Group(3)), Some(GROUP + 1));
        assert!(list().contains('3'));
    }

    #[test]
    fn a_directory_is_read_in_pieces_and_only_the_run_changes_it() {
        let nodes = nodes();
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let operation = Operation::ReadDirectory { offset, size: 32 };
            let request =
                Request { unique: 1, node: FIRST, owner: Owner::default(), tid: 1, operation };
            let mut bytes = Vec::new();
            nodes.decide(&request, &mut bytes).unwrap();
            let Some(entry) = bytes.first_chunk::<32>() else { break };
            offset = u64::from_le_bytes(entry[8..16].try_into().unwrap());
            let name = entry[24..].split(|&byte| byte == 0).next().unwrap();
            names.push(String::from_utf8(name.to_vec()).unwrap());
        }
        assert_eq!(names, [".", "..", "devices", "3"]);
        assert_eq!(ask(&nodes, FIRST, Operation::Other).unwrap_err().errno, Errno::EPERM);
    }

    #[test]
    fn a_list_sets_the_mode_and_follows_it() {
        let nodes = nodes();
        let more = list(&[(OWNER, 6), (USER, 4), (OWN_GROUP, 0), (MASK, 5), (OTHER, 0)]);
        let set = |value| Operation::SetExtended { name: LIST, value, flags: 0 };
        let get = |size| Operation::GetExtended { name: LIST, size };
        let mode = || nodes.with_number((10, 126)).unwrap().mode & 0o777;
        assert_eq!(ask(&nodes, IOMMU, get(0)).unwrap_err().errno, Errno::ENODATA);
        ask(&nodes, IOMMU, set(&more)).unwrap();
        assert_eq!(mode(), 0o650);
        assert_eq!(ask(&nodes, IOMMU, get(0)).unwrap(), format!("Size({})", more.len()));
        assert_eq!(ask(&nodes, IOMMU, get(8)).unwrap_err().errno, Errno::ERANGE);
        let changes = Changes { mode: Some(0o421), ..Changes::default() };
        ask(&nodes, IOMMU, Operation::SetAttributes(changes)).unwrap();
        let follows = list(&[(OWNER, 4), (USER, 4), (OWN_GROUP, 0), (MASK, 2), (OTHER, 1)]);
        assert_eq!(ask(&nodes, IOMMU, get(64)).unwrap(), format!("Bytes({follows:?})"));
        // One that a mode can say is none.
        ask(&nodes, IOMMU, set(&list(&[(OWNER, 7), (OWN_GROUP, 1), (OTHER, 2)]))).unwrap();
        assert_eq!(mode(), 0o712);
        assert_eq!(ask(&nodes, IOMMU, get(0)).unwrap_err().errno, Errno::ENODATA);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for wrong in [&b""[..], b"\x01\0\0\0", &list(&[(3, 1)]), &list(&[(OWNER, 6)])[..9]] {
            let set = Operation::SetExtended { name: LIST, value: wrong, flags: 0 };
            assert_eq!(ask(&nodes(), IOMMU, set).unwrap_err().errno, Errno::EINVAL, "{wrong:?}");
        }
        let other = Operation::SetExtended { name: b"trusted.x", value: b"", flags: 0 };
        assert_eq!(ask(&nodes(), 2, other).unwrap_err().errno, Errno::EOPNOTSUPP);
    }

    #[test]
    fn links_are_made_followed_and_removed_and_nodes_are_not() {
        let nodes = nodes();
        let directory = nodes.inode_at("/dev/vfio").expect("it is there");
        let make = |name| Operation::MakeLink { name, target: b"/dev/iommu" };
        ask(&nodes, directory, make(b"link")).unwrap();
        let link = nodes.inode_at("/dev/vfio/link").expect("it was made");
        assert_eq!(
            ask(&nodes, link, Operation::ReadLink).unwrap(),
            format!("Bytes({:?})", b"/dev/iommu")
        );
        assert_eq!(ask(&nodes, directory, make(b"link")).unwrap_err().errno, Errno::EEXIST);
        let node = Operation::Unlink { name: b"3" };
        assert_eq!(ask(&nodes, directory, node).unwrap_err().errno, Errno::EPERM);
        ask(&nodes, directory, Operation::Unlink { name: b"link" }).unwrap();
        assert_eq!(nodes.inode_at("/dev/vfio/link"), None);
        let all: Vec<_> = (0..=LINKS).map(|number| number.to_string() + "-").collect();
        let made = all.iter().map(|name| ask(&nodes, directory, make(name.as_bytes())));
        let refused: Vec<_> = made.filter_map(Result::err).map(|error| error.errno).collect();
        assert_eq!(refused, [Errno::ENOSPC]);
    }
}
