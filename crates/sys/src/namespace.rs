//! Namespaces for one program: a mount table of its own, with the caller's own user and group ids.
//!
//! A process with `CAP_SYS_ADMIN` needs a mount namespace only. Anybody else gets a user namespace around it, in
//! which just the own uid and gid are mapped, to themselves: files keep their owners and `id` says what it said.
//! The capabilities that come with a user namespace are for the mounts and are given up again with
//! [`Namespace::drop_capabilities`].
#![expect(
    unsafe_code,
    reason = "rustix marks unshare(2) unsafe because of CLONE_FILES, which is not used here"
)]

use std::fs;
use std::path::Path;

use ioasis_uapi::{Errno, Error, Result};
use rustix::io::Errno as Raw;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, UnshareFlags, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, unshare_unsafe,
};

use crate::because;

/// A mount namespace this process has entered.
#[derive(Debug)]
#[must_use = "the capabilities of a user namespace stay until `drop_capabilities`"]
pub struct Namespace {
    /// What to go back to; `None` where nothing was gained.
    before: Option<Before>,
}

/// The capabilities of the process before it entered a user namespace.
#[derive(Debug)]
struct Before {
    sets: CapabilitySets,
    bounding: CapabilitySet,
}

impl Namespace {
    /// Whether the mount namespace came with a user namespace.
    #[must_use]
    pub const fn is_user(&self) -> bool {
        self.before.is_some()
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

/// Gives the calling process a mount namespace of its own, inside a user namespace unless it may mount already.
/// What is mounted or unmounted outside later is still seen inside, never the other way round.
///
/// # Errors
///
/// The errno of the system call that failed; the reason says which setting of the host forbids user namespaces and
/// how to change it. `EINVAL` if the process has more than one thread.
pub fn enter() -> Result<Namespace> {
    let sets = capabilities(None).map_err(because("capabilities cannot be read"))?;
    let namespace = if sets.effective.contains(CapabilitySet::SYS_ADMIN)
        && unshare(UnshareFlags::NEWNS).is_ok()
    {
        Namespace { before: None }
    } else {
        enter_user(sets)?
    };
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(because("mounts cannot be kept from the host"))?;
    Ok(namespace)
}

fn enter_user(sets: CapabilitySets) -> Result<Namespace> {
    let bounding = CapabilitySet::all()
        .iter()
        .filter(|&capability| capability_is_in_bounding_set(capability) == Ok(true))
        .collect();
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(|raw| because(forbidden(raw))(raw))?;
    // The kernel takes a gid map from an unprivileged process only once setgroups(2) is off (user_namespaces(7)).
    write_proc("setgroups", "deny")?;
    write_proc("uid_map", &format!("{uid} {uid} 1"))?;
    write_proc("gid_map", &format!("{gid} {gid} 1"))?;
    Ok(Namespace { before: Some(Before { sets, bounding }) })
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

fn write_proc(name: &str, text: &str) -> Result<()> {
    fs::write(Path::new("/proc/self").join(name), text).map_err(|failure| {
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
            let namespace = enter().unwrap();
            assert!(namespace.is_user());
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

    #[test]
    fn a_refusal_names_the_setting_to_change() {
        as_plain_user(|| {
            let namespace = enter().unwrap();
            // Inside a user namespace its own root may set the limit for what is nested in it.
            fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
            namespace.drop_capabilities().unwrap();
            let error = enter().unwrap_err();
            assert_eq!(error.errno, Errno::ENOSPC);
            assert!(error.why.contains("sysctl user.max_user_namespaces=10000"), "{error}");
            assert_eq!(restriction(), Some(error.why));
        });
    }

    #[test]
    fn a_read_only_mount_refuses_even_its_owner() {
        as_plain_user(|| {
            let namespace = enter().unwrap();
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
            let namespace = enter().unwrap();
            mount::tmpfs(Path::new("/sys"), PAGE).unwrap();
            mount::placeholder(fs::File::open("/sys").unwrap(), "node", 0o600).unwrap();
            assert!(fs::metadata("/sys/node").unwrap().file_type().is_char_device());
            let errno =
                fs::File::open("/sys/node").unwrap_err().raw_os_error().map(Errno::from_raw);
            assert!([Some(Errno::EACCES), Some(Errno::ENXIO)].contains(&errno), "{errno:?}");
            namespace.drop_capabilities().unwrap();
        });
    }
}
