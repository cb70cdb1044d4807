//! Namespaces for one program: a mount table of its own, with the caller's own user and group ids.
//!
//! A process with `CAP_SYS_ADMIN` needs a mount namespace only. Anybody else gets a user namespace around it, in
//! which just the own uid and gid are mapped, to themselves: files keep their owners and `id` says what it said.
//! The capabilities that come with a user namespace are for the mounts and are given up again with
//! [`Namespace::drop_capabilities`].
//!
//! Whoever is to be root there ([`User::Root`]) keeps them. A process that has every capability already needs no user
//! namespace for that; for one that has not, the kernel's own `capable()` goes on saying no, so that what it protects on
//! the host stays protected.
#![expect(
    unsafe_code,
    reason = "rustix marks unshare(2) unsafe because of CLONE_FILES, which is not used here"
)]

use std::fs;
use std::path::{Path, PathBuf};

use ioasis_uapi::{Errno, Error, Result};
use rustix::io::Errno as Raw;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, unshare_unsafe,
};

use crate::spawn::{self, Fork};
use crate::{because, message};

/// Who the program is in its namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum User {
    /// Who it is outside, with the capabilities it has there.
    #[default]
    Own,
    /// Root, with every capability.
    Root,
}

/// A mount namespace this process has entered.
#[derive(Debug)]
#[must_use = "the capabilities of a user namespace stay until `drop_capabilities`"]
pub struct Namespace {
    /// Whether there is a user namespace around it.
    user: bool,
    /// Whether that has one user and one group.
    single: bool,
    /// What to go back to; `None` where nothing was gained, or what was gained is kept.
    before: Option<Before>,
}

/// The capabilities of the process before it entered a user namespace.
#[derive(Debug)]
struct Before {
    sets: CapabilitySets,
    bounding: CapabilitySet,
}

/// Gives up every capability of this thread that is not among `kept`, for good.
///
/// # Errors
///
/// `EPERM` if the kernel refuses, which it has no reason to.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<()> {
    let mut sets =
        capabilities(None).map_err(because("the own capabilities are not to be learnt"))?;
    for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
        *set &= kept;
    }
    set_capabilities(None, sets).map_err(because("capabilities cannot be given up"))
}

impl Namespace {
    /// Whether the mount namespace came with a user namespace.
    #[must_use]
    pub const fn is_user(&self) -> bool {
        self.user
    }

    /// Whether nobody in it can be another user than who entered it.
    #[must_use]
    pub const fn has_one_user(&self) -> bool {
        self.single
    }

    /// Gives up every capability that entering a user namespace brought. Whatever is executed afterwards does not
    /// get them back.
    ///
    /// # Errors
    ///
    /// `EPERM` if the kernel refuses, which it has no reason to.
    pub fn drop_capabilities(self) -> Result<()> {
        let Some(before) = self.before else { return Ok(()) };
        for capability in CapabilitySet::all().iter() {
            // A number this kernel does not know is neither held nor missed.
            if !before.bounding.contains(capability)
                && capability_is_in_bounding_set(capability) == Ok(true)
            {
                remove_capability_from_bounding_set(capability)
                    .map_err(because("the bounding set cannot be reduced"))?;
            }
        }
        set_capabilities(None, before.sets)
            .map_err(because("the capabilities of the user namespace cannot be given up"))
    }
}

/// Gives the calling process a mount namespace of its own, inside a user namespace unless it may mount already and is
/// who it is to be. What is mounted or unmounted outside later is still seen inside, never the other way round.
///
/// # Errors
///
/// The errno of the system call that failed; the reason says which setting of the host forbids user namespaces and
/// how to change it. `EINVAL` if the process has more than one thread.
pub fn enter(user: User) -> Result<Namespace> {
    let sets = capabilities(None).map_err(because("capabilities cannot be read"))?;
    let suffices = match user {
        User::Own => sets.effective.contains(CapabilitySet::SYS_ADMIN),
        User::Root => geteuid().is_root() && known().all(|known| sets.effective.contains(known)),
    };
    let namespace = if suffices && unshare(UnshareFlags::NEWNS).is_ok() {
        Namespace { user: false, single: false, before: None }
    } else {
        match user {
            User::Own => enter_user(sets)?,
            User::Root => become_root(sets)?,
        }
    };
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).map_err(
        |raw| match raw {
            // A mount's propagation is set at its root (`path_mounted`, fs/namespace.c).
            rustix::io::Errno::INVAL => Error::new(Errno::EINVAL, CHANGED_ROOT),
            _ => because("mounts cannot be kept from the host")(raw),
        },
    )?;
    Ok(namespace)
}

const CHANGED_ROOT: &str = "/ is no mount point here, as in a folder entered by chroot: mounts cannot be kept from the \
                            host. `mount --bind FOLDER FOLDER` before the chroot makes it one";

fn enter_user(sets: CapabilitySets) -> Result<Namespace> {
    let bounding = CapabilitySet::all()
        .iter()
        .filter(|&capability| capability_is_in_bounding_set(capability) == Ok(true))
        .collect();
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare_user()?;
    map_single(&format!("{uid} {uid} 1"), &format!("{gid} {gid} 1"))?;
    Ok(Namespace { user: true, single: true, before: Some(Before { sets, bounding }) })
}

/// Enters a user namespace as its root. Root of the namespace outside keeps all the ids that it has there; anybody else is
/// root and nobody else.
fn become_root(sets: CapabilitySets) -> Result<Namespace> {
    let (uid, gid) = (geteuid(), getegid());
    if !uid.is_root() || !sets.effective.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
        unshare_user()?;
        map_single(&format!("0 {} 1", uid.as_raw()), &format!("0 {} 1", gid.as_raw()))?;
        return Ok(Namespace { user: true, single: true, before: None });
    }
    let maps = ["uid_map", "gid_map"].map(|name| (name, fs::read_to_string(proc_self(name))));
    // Only a process that stayed outside has the right to map more ids than its own (user_namespaces(7)).
    let (ours, theirs) = message::pair()?;
    let target = std::process::id();
    let writer = match spawn::fork()? {
        Fork::Child => {
            drop(ours);
            let told = message::receive(&theirs, 1).is_ok_and(|(word, _)| !word.is_empty());
            let written = maps.iter().all(|(name, map)| {
                let text = map.as_deref().map(to_themselves).unwrap_or_default();
                fs::write(format!("/proc/{target}/{name}"), text).is_ok()
            });
            spawn::exit(i32::from(!told || !written))
        }
        Fork::Parent(writer) => writer,
    };
    drop(theirs);
    let entered = unshare_user().and_then(|()| message::send(&ours, b"x", &[]));
    drop(ours);
    let written = writer.wait()?.success();
    entered?;
    if !written {
        return Err(Error::new(Errno::EPERM, "the ids of the user namespace cannot be mapped"));
    }
    Ok(Namespace { user: true, single: false, before: None })
}

/// The lines of a /proc/PID/uid_map or gid_map, with every id of the inner namespace mapped to itself.
fn to_themselves(map: &str) -> String {
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (first, count) = (fields.next()?, fields.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    };
    map.lines().filter_map(line).collect()
}

fn unshare_user() -> Result<()> {
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|raw| because(forbidden(raw))(raw))
}

fn map_single(uids: &str, gids: &str) -> Result<()> {
    // The kernel takes a gid map from an unprivileged process only once setgroups(2) is off (user_namespaces(7)).
    write_proc("setgroups", "deny")?;
    write_proc("uid_map", uids)?;
    write_proc("gid_map", gids)
}

/// Every capability this kernel has.
fn known() -> impl Iterator<Item = CapabilitySet> {
    let all = CapabilitySet::all().iter();
    all.filter(|&capability| capability_is_in_bounding_set(capability).is_ok())
}

/// Why user namespaces are refused on this host, and what to do; `None` where no setting known here forbids them.
#[must_use]
pub fn restriction() -> Option<&'static str> {
    let setting = |path: &str| fs::read_to_string(Path::new("/proc/sys").join(path));
    let is = |path: &str, value: &str| setting(path).is_ok_and(|text| text.trim() == value);
    if !Path::new("/proc/self/ns/user").exists() {
        Some(
            "this kernel has no user namespaces (CONFIG_USER_NS), or /proc is not mounted: run as root",
        )
    } else if is("kernel/unprivileged_userns_clone", "0") {
        Some(
            "user namespaces are for root only here: `sysctl kernel.unprivileged_userns_clone=1`, or run as root",
        )
    } else if is("user/max_user_namespaces", "0") {
        Some(
            "user namespaces are switched off here: `sysctl user.max_user_namespaces=10000`, or run as root",
        )
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        Some(
            "AppArmor restricts user namespaces: `sysctl kernel.apparmor_restrict_unprivileged_userns=0`, an \
             AppArmor profile with `userns,` for this program, or run as root",
        )
    } else {
        None
    }
}

fn forbidden(raw: Raw) -> &'static str {
    restriction().unwrap_or(match raw {
        Raw::NOSPC => "too many user namespaces: raise user.max_user_namespaces, or nest them less deeply",
        Raw::INVAL => "a process with several threads cannot enter a user namespace",
        _ => {
            "user namespaces are refused, by a container's seccomp profile or in a chroot: start the container \
             with `--security-opt seccomp=unconfined`, or run as root with CAP_SYS_ADMIN"
        }
    })
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: 1. the only hazard unshare(2) has for memory or descriptors is CLONE_FILES, and `flags`, built in
    // this module, never has it.
    unsafe { unshare_unsafe(flags) }
}

fn proc_self(name: &str) -> PathBuf {
    Path::new("/proc/self").join(name)
}

fn write_proc(name: &str, text: &str) -> Result<()> {
    fs::write(proc_self(name), text).map_err(|failure| {
        let errno = failure.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let why = restriction().unwrap_or("the user namespace cannot be set up through /proc/self");
        Error::new(errno, why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{self, Tmpfs};
    use crate::spawn::fork_with;
    use rustix::process::{DumpableBehavior, Uid, set_dumpable_behavior};
    use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const PAGE: Tmpfs = Tmpfs { size: 4096, inodes: 16, mode: 0o755 };

    /// Runs `check` in a process of its own, as a user without capabilities.
    fn as_plain_user(check: impl FnOnce()) {
        let child = fork_with(|| {
            let run = || {
                if geteuid().is_root() {
                    let (uid, gid) =
                        (Uid::from_raw(65_534), rustix::process::Gid::from_raw(65_534));
                    set_thread_res_gid(gid, gid, gid).unwrap();
                    set_thread_res_uid(uid, uid, uid).unwrap();
                    // A change of ids takes /proc/self away from its owner.
                    set_dumpable_behavior(DumpableBehavior::Dumpable).unwrap();
                }
                check();
            };
            catch_unwind(AssertUnwindSafe(run)).map_or(1, |()| 0)
        });
        assert!(
            child.unwrap().wait().unwrap().success(),
            "the check fails in the child, see above"
        );
    }

    #[test]
    fn a_plain_user_mounts_keeps_its_ids_and_gives_the_capabilities_back() {
        as_plain_user(|| {
            let before = (geteuid(), getegid());
            let namespace = enter(User::Own).unwrap();
            assert!(namespace.is_user() && namespace.has_one_user());
            mount::tmpfs(Path::new("/proc"), PAGE).unwrap();
            namespace.drop_capabilities().unwrap();
            assert_eq!((geteuid(), getegid()), before);
            let sets = capabilities(None).unwrap();
            assert!(
                sets.effective.is_empty()
                    && sets.permitted.is_empty()
                    && sets.inheritable.is_empty()
            );
            assert_eq!(mount::tmpfs(Path::new("/sys"), PAGE).unwrap_err().errno, Errno::EPERM);
        });
        assert!(Path::new("/proc/self/status").exists(), "nothing is mounted outside");
    }

    /// As whom `check` runs, in a process of its own.
    fn in_a_process(check: impl FnOnce()) {
        let child = fork_with(|| catch_unwind(AssertUnwindSafe(check)).map_or(1, |()| 0));
        assert!(
            child.unwrap().wait().unwrap().success(),
            "the check fails in the child, see above"
        );
    }

    /// Whether `enter` made this process root with everything, by what an executed program has.
    fn assert_root_with_everything() {
        assert!(geteuid().is_root() && getegid().is_root());
        let show = "cat /proc/self/status";
        let output = std::process::Command::new("sh").args(["-c", show]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        let effective = u64::from_str_radix(effective, 16).unwrap();
        assert_eq!(effective.count_ones() as usize, known().count(), "{effective:x}");
    }

    #[test]
    fn a_plain_user_is_root_where_it_asks_to_be() {
        as_plain_user(|| {
            let namespace = enter(User::Root).unwrap();
            assert!(namespace.is_user());
            mount::tmpfs(Path::new("/sys"), PAGE).unwrap();
            namespace.drop_capabilities().unwrap();
            assert_root_with_everything();
        });
    }

    #[test]
    fn root_is_root_with_all_ids_even_where_the_host_withholds_a_capability() {
        in_a_process(|| {
            if !geteuid().is_root() {
                return assert!(enter(User::Root).unwrap().is_user());
            }
            if capability_is_in_bounding_set(CapabilitySet::SYS_RESOURCE) == Ok(true) {
                remove_capability_from_bounding_set(CapabilitySet::SYS_RESOURCE).unwrap();
            }
            let mut sets = capabilities(None).unwrap();
            for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
                set.remove(CapabilitySet::SYS_RESOURCE);
            }
            set_capabilities(None, sets).unwrap();
            let ids = fs::read_to_string("/proc/self/uid_map").map(|map| to_themselves(&map));
            let namespace = enter(User::Root).unwrap();
            assert!(namespace.is_user() && !namespace.has_one_user());
            namespace.drop_capabilities().unwrap();
            assert_root_with_everything();
            let now = fs::read_to_string("/proc/self/uid_map").map(|map| to_themselves(&map));
            assert_eq!(now.unwrap(), ids.unwrap());
            let other = Uid::from_raw(65_534);
            set_thread_res_uid(other, other, other).expect("another id exists in it");
        });
    }

    #[test]
    fn ids_are_mapped_to_themselves_however_they_are_mapped_outside() {
        assert_eq!(to_themselves("         0          0 4294967295\n"), "0 0 4294967295\n");
        assert_eq!(to_themselves("0 1000 1\n1 100000 65536\n"), "0 0 1\n1 1 65536\n");
        assert_eq!(to_themselves("garbage\n"), "");
    }

    #[test]
    fn a_refusal_names_the_setting_to_change() {
        as_plain_user(|| {
            let namespace = enter(User::Own).unwrap();
            // Inside a user namespace its own root may set the limit for what is nested in it.
            fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
            namespace.drop_capabilities().unwrap();
            let error = enter(User::Own).unwrap_err();
            assert_eq!(error.errno, Errno::ENOSPC);
            assert!(error.why.contains("sysctl user.max_user_namespaces=10000"), "{error}");
            assert_eq!(restriction(), Some(error.why));
        });
    }

    #[test]
    fn a_read_only_mount_refuses_even_its_owner() {
        as_plain_user(|| {
            let namespace = enter(User::Own).unwrap();
            mount::tmpfs(Path::new("/sys"), PAGE).unwrap();
            fs::create_dir("/sys/made").unwrap();
            mount::read_only(Path::new("/sys")).unwrap();
            let error = fs::create_dir("/sys/late").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EROFS.raw()));
            namespace.drop_capabilities().unwrap();
        });
    }

    #[test]
    fn a_placeholder_is_a_device_that_nobody_can_open() {
        use std::os::unix::fs::FileTypeExt as _;
        as_plain_user(|| {
            let namespace = enter(User::Own).unwrap();
            mount::tmpfs(Path::new("/sys"), PAGE).unwrap();
            mount::placeholder(fs::File::open("/sys").unwrap(), "node", 0o600).unwrap();
            assert!(fs::metadata("/sys/node").unwrap().file_type().is_char_device());
            let errno =
                fs::File::open("/sys/node").unwrap_err().raw_os_error().map(Errno::from_raw);
            assert!([Some(Errno::EACCES), Some(Errno::ENXIO)].contains(&errno), "{errno:?}");
            namespace.drop_capabilities().unwrap();
        });
    }

    #[test]
    fn where_the_root_is_no_mount_point_is_told_and_what_to_do() {
        let child = fork_with(|| {
            let _namespace = enter(User::Own).expect("a namespace");
            rustix::process::chroot("/tmp").expect("a capability for it");
            std::env::set_current_dir("/").expect("a folder");
            let error = enter(User::Own).expect_err("mounts would reach others");
            i32::from(error.errno != Errno::EINVAL || !error.why.contains("mount --bind"))
        });
        assert!(child.expect("fork").wait().expect("a child").success());
    }
}
