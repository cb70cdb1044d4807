//! Mounts, as far as the view of a program needs them. Every function acts on the caller's mount namespace.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use ioasis_uapi::Result;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount,
    mount_bind_recursive, mount_remount, move_mount, open_tree, unmount,
};

use crate::because;

/// Limits of a memory file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Bytes its files may hold together.
    pub size: u64,
    /// Files, directories and links it may have.
    pub inodes: u64,
    /// Permissions of its root.
    pub mode: u32,
}

impl Tmpfs {
    /// The same as mount options.
    fn options(self) -> CString {
        let text = format!("size={},nr_inodes={},mode={:o}", self.size, self.inodes, self.mode);
        CString::new(text).expect("numbers hold no NUL")
    }
}

/// Mounts an empty memory file system over the directory `target`.
///
/// # Errors
///
/// The errno of mount(2).
pub fn tmpfs(target: &Path, limits: Tmpfs) -> Result<()> {
    mount(
        "ioasis",
        target,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        limits.options().as_c_str(),
    )
    .map_err(because("a tmpfs cannot be mounted"))
}

/// Makes a memory file system that is mounted nowhere: it lives as long as the returned descriptor of its root, or
/// a file opened in it, does.
///
/// # Errors
///
/// The errno of fsopen(2), fsconfig(2) or fsmount(2); `EPERM` without `CAP_SYS_ADMIN` in this user namespace.
pub fn detached_tmpfs(limits: Tmpfs) -> Result<OwnedFd> {
    let make = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", "ioasis")?;
        fsconfig_set_string(&context, "size", limits.size.to_string())?;
        fsconfig_set_string(&context, "nr_inodes", limits.inodes.to_string())?;
        fsconfig_set_string(&context, "mode", format!("{:o}", limits.mode))?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(because("a detached tmpfs cannot be made"))
}

/// Binds the file or directory `source` to `target`, with everything mounted below it.
///
/// # Errors
///
/// The errno of mount(2).
pub fn bind_recursive(source: &Path, target: &Path) -> Result<()> {
    mount_bind_recursive(source, target).map_err(because("a bind mount is refused"))
}

/// Copies the mount that holds the directory `dir`, from there on down, with everything mounted below. The copy is
/// mounted nowhere until [`attach`].
///
/// # Errors
///
/// The errno of open_tree(2).
pub fn clone_recursive(dir: impl AsFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(dir, "", flags).map_err(because("a mount cannot be copied"))
}

/// Copies the mount that holds the directory `dir`, from there on down, without what is mounted below. The copy is mounted
/// nowhere, and what becomes of the other mount's flags is nothing to it.
///
/// # Errors
///
/// The errno of open_tree(2).
pub fn clone_alone(dir: impl AsFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(dir, "", flags).map_err(because("a mount cannot be copied"))
}

/// Mounts the detached `tree`, which may have been made in another user namespace, on the directory `target`.
///
/// # Errors
///
/// The errno of move_mount(2).
pub fn attach(tree: impl AsFd, target: &Path) -> Result<()> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(because("a copied mount cannot be attached"))
}

/// Takes the mount at `target` away; descriptors that lead into it go on doing so.
///
/// # Errors
///
/// The errno of umount2(2).
pub fn detach(target: &Path) -> Result<()> {
    unmount(target, UnmountFlags::DETACH).map_err(because("a mount cannot be taken away"))
}

/// Makes the mount at `target` read-only; other mounts of the same file system stay as they are.
///
/// # Errors
///
/// The errno of mount(2).
pub fn read_only(target: &Path) -> Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_remount(target, flags, c"").map_err(because("a mount cannot be made read-only"))
}

/// Makes a character device 0:0 named `name` in `dir`: a node that can be found and stat'ed by anybody and opened by
/// nobody. Needs no privilege (the kernel keeps this number for overlayfs whiteouts).
///
/// # Errors
///
/// The errno of mknodat(2).
pub fn placeholder(dir: impl AsFd, name: &str, mode: u32) -> Result<()> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::from_raw_mode(mode), 0)
        .map_err(because("a device node cannot be made"))
}
