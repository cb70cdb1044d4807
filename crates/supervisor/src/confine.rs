//! What the supervisor gives up once the client is about to start.
//!
//! A client sends it requests, and one that found a way to make it do something else should gain as little as possible.
//! So it executes nothing with more rights than it has (no_new_privs), keeps of the capabilities those that it uses, and
//! does not let itself be looked at: its memory and descriptors are out of reach of every process of its user
//! (PR_SET_DUMPABLE; kernel/ptrace.c, `__ptrace_may_access`). A process with CAP_SYS_PTRACE on the host reaches it all the
//! same, a root client of a root run among them.

use ioasis_sys::seccomp::no_new_privileges;
use ioasis_sys::{because, namespace};
use ioasis_uapi::Result;
use rustix::process::DumpableBehavior;
use rustix::thread::CapabilitySet;

/// Who needs what:
///
/// - `SYS_PTRACE`: pidfd_getfd, process_vm_readv and /proc/PID of clients that are other users';
/// - `CHECKPOINT_RESTORE`: the files behind shared mappings, by /proc/PID/map_files;
/// - `DAC_OVERRIDE`, `DAC_READ_SEARCH`, `FOWNER`, `SETUID`, `SETGID`, `SETPCAP`: an open is judged by a child that takes on
///   the rights of the task, and those can be more than none;
/// - `KILL`: signals to clients that are other users', at the end of a run;
/// - `MKNOD`, `CHOWN`: nodes that a client makes are made in its place;
/// - `SYS_RESOURCE`: limits of clients that are other users', and a socket's buffers;
/// - `IPC_LOCK`: huge pages of System V memory are mapped here as well;
/// - `SYS_ADMIN`: memory file systems that grow with the devices, user namespaces of clients.
const KEPT: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_ADMIN);

/// Gives up what is not needed any more. For a process of one thread: capabilities are a thread's.
///
/// # Errors
///
/// None that Linux documents; passed on all the same.
pub(crate) fn confine() -> Result<()> {
    no_new_privileges()?;
    namespace::keep_capabilities(KEPT)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(because("PR_SET_DUMPABLE is refused"))
}
