//! The device nodes of the view as files of the run's own file system, so that stat(2) says their numbers.
//!
//! Nobody without privileges makes a node with a number (`vfs_mknod`, fs/namei.c), but whoever answers for a file system
//! says which number a file of it has. Such a file is bound over each node of the view. It lies on a nodev mount: an open is
//! answered by the supervisor, and one that it does not see is refused. The kernel keeps what it was told for good and judges
//! by it, so that stat and access ask nobody, but for access that is denied and for access control lists, which it wants to
//! know anew. Owner, mode, times and list are kept here.
//!
//! Lock order: `DeviceNodes::nodes` is a leaf.

use ioasis_sys::fuse::{
    Answer, Attributes, Changes, Connection, Operation, Owner, ROOT, Request, Stamp, Time,
};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use super::Node;

/// A node as the view plans it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) node: Node,
    /// Permissions.
    pub(super) mode: u32,
    /// Major and minor.
    pub(super) number: (u32, u32),
}

/// Every node that has a number.
#[derive(Debug, Default)]
pub(crate) struct DeviceNodes {
    nodes: Mutex<Vec<DeviceNode>>,
}

#[derive(Clone, Debug)]
struct DeviceNode {
    node: Node,
    attributes: Attributes,
    /// Its access control list, as extended attributes have it, if that says more than the mode.
    list: Option<Vec<u8>>,
}

/// The number of the first one's inode.
const FIRST: u64 = ROOT + 1;
const CHARACTER_DEVICE: u32 = 0o020_000;
const TYPE: u32 = 0o170_000;
/// The extended attribute that holds an access control list.
const LIST: &[u8] = b"system.posix_acl_access";

/// A device number as stat(2) gives it (`new_encode_dev`, linux/kdev_t.h).
pub(crate) const fn encoded((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

impl DeviceNodes {
    /// Nodes made at `time`, which whoever answers for them in turn must agree on.
    pub(super) fn new(planned: &[Planned], owner: Owner, time: Time) -> Self {
        let times = [time; 3];
        let node = |(inode, planned): (u64, &Planned)| {
            let (mode, rdev) = (CHARACTER_DEVICE | planned.mode, encoded(planned.number));
            let attributes = Attributes { node: inode, mode, size: 0, owner, rdev, times };
            DeviceNode { node: planned.node, attributes, list: None }
        };
        Self { nodes: Mutex::new((FIRST..).zip(planned).map(node).collect()) }
    }

    /// The number of the last one's inode.
    pub(crate) fn last(&self) -> u64 {
        FIRST + self.nodes.lock().len() as u64 - 1
    }

    /// The number of the inode of `node`, which is its name too.
    pub(crate) fn inode(&self, node: Node) -> Option<u64> {
        let nodes = self.nodes.lock();
        nodes.iter().find(|known| known.node == node).map(|known| known.attributes.node)
    }

    /// What stat(2) says of the node with this number.
    pub(crate) fn with_number(&self, number: (u32, u32)) -> Option<Attributes> {
        let (nodes, rdev) = (self.nodes.lock(), encoded(number));
        nodes.iter().map(|known| known.attributes).find(|of| of.rdev == rdev)
    }

    /// Whether a request is about one of these.
    pub(crate) fn has(&self, request: &Request<'_>) -> bool {
        index(request).is_some_and(|index| index < self.nodes.lock().len())
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
        let mut nodes = self.nodes.lock();
        let node = index(request).and_then(|index| nodes.get_mut(index));
        let node = node.ok_or(Error::new(Errno::ENOENT, "no such node"))?;
        match request.operation {
            Operation::Lookup { .. } => Ok(Answer::Entry(node.attributes)),
            Operation::Attributes => Ok(Answer::Attributes(node.attributes)),
            Operation::SetAttributes(changes) => {
                node.change(changes);
                Ok(Answer::Attributes(node.attributes))
            }
            Operation::GetExtended { name, size } => match &node.list {
                Some(list) if name == LIST => within(list, size, bytes),
                _ => Err(Error::new(Errno::ENODATA, "no such extended attribute")),
            },
            Operation::SetExtended { name: LIST, value, .. } => {
                node.set_list(value).map(|()| Answer::Done)
            }
            Operation::SetExtended { .. } => {
                Err(Error::new(Errno::EOPNOTSUPP, "a node keeps no such extended attribute"))
            }
            Operation::ListExtended { size } => {
                let names = node.list.as_ref().map_or_else(Vec::new, |_| [LIST, b"\0"].concat());
                within(&names, size, bytes)
            }
            Operation::RemoveExtended { name: LIST } => {
                node.list = None;
                node.attributes.times[2] = Time::now();
                Ok(Answer::Done)
            }
            Operation::RemoveExtended { .. } => {
                Err(Error::new(Errno::ENODATA, "no such extended attribute"))
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

/// Which node a request is about, if it is about one.
fn index(request: &Request<'_>) -> Option<usize> {
    let inode = match request.operation {
        Operation::Lookup { name } if request.node == ROOT => {
            std::str::from_utf8(name).ok()?.parse().ok()?
        }
        _ => request.node,
    };
    usize::try_from(inode.checked_sub(FIRST)?).ok()
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

impl DeviceNode {
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

    fn nodes() -> DeviceNodes {
        let planned = [
            Planned { node: Node::Iommu, mode: 0o660, number: (10, 126) },
            Planned { node: Node::Group(3), mode: 0o600, number: (242, 3) },
        ];
        DeviceNodes::new(&planned, Owner { uid: 7, gid: 8 }, Time::now())
    }

    fn ask(nodes: &DeviceNodes, node: u64, operation: Operation<'_>) -> Result<String> {
        let request = Request { unique: 1, node, owner: Owner::default(), operation };
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
        assert_eq!((nodes.inode(Node::Group(3)), nodes.last()), (Some(3), 3));
        let changes = Changes { mode: Some(0o100_640), group: Some(9), ..Changes::default() };
        ask(&nodes, 3, Operation::SetAttributes(changes)).unwrap();
        let now = nodes.with_number((242, 3)).unwrap();
        assert_eq!((now.mode, now.rdev), (0o020_640, 242 << 8 | 3), "a type never changes");
        assert_eq!(now.owner, Owner { uid: 7, gid: 9 });
        let request =
            Request { unique: 1, node: 4, owner: now.owner, operation: Operation::Attributes };
        assert!(!nodes.has(&request), "a queue's");
    }

    #[test]
    fn a_list_sets_the_mode_and_follows_it() {
        let nodes = nodes();
        let more = list(&[(OWNER, 6), (USER, 4), (OWN_GROUP, 0), (MASK, 5), (OTHER, 0)]);
        let set = |value| Operation::SetExtended { name: LIST, value, flags: 0 };
        let get = |size| Operation::GetExtended { name: LIST, size };
        let mode = || nodes.with_number((10, 126)).unwrap().mode & 0o777;
        assert_eq!(ask(&nodes, 2, get(0)).unwrap_err().errno, Errno::ENODATA);
        ask(&nodes, 2, set(&more)).unwrap();
        assert_eq!(mode(), 0o650);
        assert_eq!(ask(&nodes, 2, get(0)).unwrap(), format!("Size({})", more.len()));
        assert_eq!(ask(&nodes, 2, get(8)).unwrap_err().errno, Errno::ERANGE);
        let changes = Changes { mode: Some(0o421), ..Changes::default() };
        ask(&nodes, 2, Operation::SetAttributes(changes)).unwrap();
        let follows = list(&[(OWNER, 4), (USER, 4), (OWN_GROUP, 0), (MASK, 2), (OTHER, 1)]);
        assert_eq!(ask(&nodes, 2, get(64)).unwrap(), format!("Bytes({follows:?})"));
        // One that a mode can say is none.
        ask(&nodes, 2, set(&list(&[(OWNER, 7), (OWN_GROUP, 1), (OTHER, 2)]))).unwrap();
        assert_eq!(mode(), 0o712);
        assert_eq!(ask(&nodes, 2, get(0)).unwrap_err().errno, Errno::ENODATA);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for wrong in [&b""[..], b"\x01\0\0\0", &list(&[(3, 1)]), &list(&[(OWNER, 6)])[..9]] {
            let set = Operation::SetExtended { name: LIST, value: wrong, flags: 0 };
            assert_eq!(ask(&nodes(), 2, set).unwrap_err().errno, Errno::EINVAL, "{wrong:?}");
        }
        let other = Operation::SetExtended { name: b"trusted.x", value: b"", flags: 0 };
        assert_eq!(ask(&nodes(), 2, other).unwrap_err().errno, Errno::EOPNOTSUPP);
    }
}
