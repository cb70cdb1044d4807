//! KVM_CREATE_DEVICE for the VFIO device of a virtual machine. It is ours, since KVM's own would not know our groups and
//! devices; the rest of KVM is the kernel's. Linux: `kvm_ioctl_create_device` in `virt/kvm/kvm_main.c`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ioasis_iommufd::Client as _;
use ioasis_sys::notify::{Answer, OnExec};
use ioasis_sys::process::is_same_file;
use ioasis_uapi::{Errno, Error, Result};
use ioasis_vfio::{KVM_CREATE_DEVICE, KVM_DEV_TYPE_VFIO, KvmCreateDevice, KvmDevice};

use super::client::Caller;
use super::{Decision, File, Line};
use crate::trace;

/// What /proc shows of a virtual machine's descriptor, and of its VFIO device's.
const VM: &str = "anon_inode:kvm-vm";
const DEVICE: &str = "anon_inode:kvm-vfio";

/// A virtual machine. Its VFIO device keeps it, as on Linux.
#[derive(Debug)]
pub(crate) struct Vm(OwnedFd);

impl Vm {
    /// The virtual machine behind the caller's `fd`, if it is one.
    fn of(caller: &Caller<'_>, fd: i32) -> Option<Self> {
        let file = caller.task.file(fd).ok()?;
        let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        (link.as_os_str() == VM).then_some(Self(file))
    }
}

/// The answer to KVM_CREATE_DEVICE on what is no file of ours.
pub(super) fn create(caller: &Caller<'_>, fd: i32, address: u64) -> Decision {
    let Ok(asked) = KvmCreateDevice::read(caller, address) else { return Decision::CONTINUE };
    if asked.kind != KVM_DEV_TYPE_VFIO {
        return Decision::CONTINUE;
    }
    let Some(vm) = Vm::of(caller, fd) else { return Decision::CONTINUE };
    let line = Line::of(caller, VM, trace::Kind::Kvm, (fd, KVM_CREATE_DEVICE, address));
    let done = if asked.is_test { Ok(()) } else { make(caller, vm, address) };
    caller.server.write_line(line, done.map(|()| 0));
    match done {
        Ok(()) => Decision::Answer(Answer::Value(0)),
        Err(error) => Decision::error(error.errno),
    }
}

/// Makes the device and tells the caller the number of its descriptor.
fn make(caller: &Caller<'_>, vm: Vm, address: u64) -> Result<()> {
    caller.see_closes();
    let has_one = caller.server.files.any(|file| match file {
        File::Kvm { vm: other, .. } => is_same_file(other.0.as_fd(), vm.0.as_fd()),
        _ => false,
    });
    if has_one {
        return Err(Error::new(Errno::EBUSY, "the virtual machine has a VFIO device"));
    }
    let file = File::Kvm { device: KvmDevice::default(), vm };
    let fd = caller.install_file(file, DEVICE, OnExec::Close)?;
    caller.write(address.wrapping_add(KvmCreateDevice::FD), &fd.to_ne_bytes())
}
