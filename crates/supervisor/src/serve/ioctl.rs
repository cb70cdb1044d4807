//! ioctls on our files.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ioasis_iommufd::{Backing, Client as _};
use ioasis_pci::BARS;
use ioasis_sys::notify::{Answer, Notification, OnExec};
use ioasis_uapi::{Errno, Error, Result, vfio};
use ioasis_vfio::{DeviceFile, KVM_CREATE_DEVICE, REGION_SHIFT, Reply};
use rustix::fs::OFlags;

use super::behind::Config;
use super::client::{BarPages, Caller, mappable};
use super::{Decision, File, Gift, Line, kvm, unknown};
use crate::files::{Blank, Look, Opened};
use crate::removal::Note;
use crate::task::{low, signed};
use crate::trace;

/// What can change a device's configuration space.
const CHANGES_CONFIG: [u32; 5] = [
    vfio::DEVICE_SET_IRQS,
    vfio::DEVICE_RESET,
    vfio::DEVICE_PCI_HOT_RESET,
    vfio::DEVICE_FEATURE,
    vfio::DEVICE_BIND_IOMMUFD,
];

/// Whether the call may take longer than other callers should wait. Commands of different files
/// have the same numbers: DEVICE_PCI_HOT_RESET is MAP_DMA to a container.
const fn is_slow(kind: trace::Kind, command: u32) -> bool {
    match kind {
        trace::Kind::Device => matches!(command, vfio::DEVICE_RESET | vfio::DEVICE_PCI_HOT_RESET),
        trace::Kind::Group => command == vfio::GROUP_GET_DEVICE_FD,
        trace::Kind::SpaprContainer => command == vfio::EEH_PE_OP,
        _ => false,
    }
}

/// Whether no close changes what the call answers.
const fn is_stateless(kind: trace::Kind, command: u32) -> bool {
    match command {
        vfio::GET_API_VERSION => true,
        vfio::DEVICE_GET_INFO | vfio::DEVICE_GET_REGION_INFO | vfio::DEVICE_GET_IRQ_INFO => {
            matches!(kind, trace::Kind::Device)
        }
        _ => false,
    }
}

pub(super) fn ioctl(caller: &Caller<'_>, call: &Notification) -> Decision {
    let (fd, command, argument) = (signed(call.args[0]), low(call.args[1]), call.args[2]);
    let opened = match caller.opened(fd) {
        Ok(Some(opened)) => opened,
        Ok(None) if command == KVM_CREATE_DEVICE => return kvm::create(caller, fd, argument),
        Ok(None) => return queue(caller, (fd, command, argument)),
        Err(error) => return Decision::Answer(unknown(error)),
    };
    if is_slow(kind(&opened.file), command)
        && let Err(error) = caller.may_wait()
    {
        return Decision::error(error.errno);
    }
    if !is_stateless(kind(&opened.file), command) {
        caller.see_closes();
    }
    caller.begin(&opened);
    let line = Line::begin(caller, &opened, (fd, command, argument));
    let named = || trace::request_name(kind(&opened.file), command);
    if let Err(error) = caller.injected(named) {
        return refuse(caller, line, error);
    }
    match answer(caller, &opened, command, argument) {
        Ok(Reply::Value(value)) => {
            caller.server.write_line(line, Ok(value));
            Decision::Answer(Answer::Value(value))
        }
        Ok(Reply::Open(device)) => match open_device(caller, &device, OFlags::RDWR, group_look()) {
            Ok(file) => Decision::Give(Gift { file, on_exec: OnExec::Close, line }),
            Err(error) => refuse(caller, line, error),
        },
        Err(error) => refuse(caller, line, error),
    }
}

/// An ioctl on a file that is read and written, as the data of a migration.
fn queue(caller: &Caller<'_>, (fd, command, argument): (i32, u32, u64)) -> Decision {
    let Ok((_, identity)) = caller.identified(fd) else { return Decision::CONTINUE };
    let Some(file) = caller.server.queues.get(identity) else { return Decision::CONTINUE };
    let kind = trace::Kind::Device;
    let line = Line::of(caller, file.name(), kind, (fd, command, argument));
    if let Err(error) = caller.injected(|| trace::request_name(kind, command)) {
        return refuse(caller, line, error);
    }
    match file.ioctl(caller, command, argument) {
        Ok(value) => {
            caller.server.write_line(line, Ok(value));
            Decision::Answer(Answer::Value(value))
        }
        Err(error) => refuse(caller, line, error),
    }
}

fn refuse(caller: &Caller<'_>, line: Line, error: Error) -> Decision {
    caller.server.write_line(line, Err(error));
    Decision::error(error.errno)
}

impl Line {
    fn begin(caller: &Caller<'_>, opened: &Opened<File>, call: (i32, u32, u64)) -> Self {
        Self::of(caller, &opened.look.path, kind(&opened.file), call)
    }

    /// An ioctl on a file of `kind`: descriptor, command and argument.
    pub(super) fn of(
        caller: &Caller<'_>,
        path: &str,
        kind: trace::Kind,
        (fd, command, argument): (i32, u32, u64),
    ) -> Self {
        let Some(trace) = &caller.server.trace else { return Self::None };
        let path = path.to_owned();
        let file = trace::File { fd, path: &path, kind };
        let memory = |address, buf: &mut [u8]| caller.read(address, buf).is_ok();
        let begun = trace.begin(file, command, argument, &memory);
        Self::Ioctl { task: caller.task.clone(), fd, path, kind, begun }
    }
}

pub(super) fn kind(file: &File) -> trace::Kind {
    match file {
        File::Iommufd { .. } => trace::Kind::Iommufd,
        File::Container(container) if container.is_spapr() => trace::Kind::SpaprContainer,
        File::Container(_) => trace::Kind::Container,
        File::Group(_) => trace::Kind::Group,
        File::Device { .. } => trace::Kind::Device,
        File::Kvm { .. } => trace::Kind::Kvm,
        File::Made(_) => trace::Kind::FaultQueue,
    }
}

fn answer(
    caller: &Caller<'_>,
    opened: &Opened<File>,
    command: u32,
    argument: u64,
) -> Result<Reply> {
    match &opened.file {
        File::Iommufd { context, .. } => context.ioctl(caller, command, argument).map(Reply::Value),
        File::Container(container) => {
            let reply = container.ioctl(caller, command, argument).map(Reply::Value);
            // A reset of a group, which is of another file.
            if command == vfio::EEH_PE_OP && container.is_spapr() {
                for opened in caller.server.files.all() {
                    if let File::Device { device, config, .. } = &opened.file {
                        config.update(device);
                    }
                }
            }
            reply
        }
        File::Group(group) => group.ioctl(caller, command, argument),
        File::Device { device, config, .. } => {
            let reply = device.ioctl(caller, command, argument);
            if CHANGES_CONFIG.contains(&command) {
                config.update(device);
            }
            if command == vfio::DEVICE_SET_IRQS {
                tell_triggers(caller, opened.inode, device);
            }
            reply
        }
        File::Kvm { device, .. } => {
            device.ioctl(caller, command, argument).map(|()| Reply::Value(0))
        }
        File::Made(_) => Err(Error::at(Errno::ENOTTY, "the file has no ioctls", command.into())),
    }
}

/// A device opened through its group is an anonymous inode (drivers/vfio/group.c).
fn group_look() -> Look {
    Look { path: "anon_inode:[vfio-device]".to_owned(), rdev: (0, 0) }
}

/// Another open of `device`'s file, which is published with the first.
///
/// # Errors
///
/// `EMFILE`, `ENOSPC`; `EBUSY` while the file that has the device is being closed.
pub(super) fn open_device(
    caller: &Caller<'_>,
    device: &Arc<DeviceFile>,
    access: OFlags,
    look: Look,
) -> Result<OwnedFd> {
    let server = caller.server;
    let inode = device.memory().inode;
    if let Some(opened) = server.files.get(server.files.dev(), inode) {
        return server.files.open(&opened, access);
    }
    // A device opened twice through its group is one file. That file may be on its way out, while a call on it goes on.
    // DIFFERS: Linux makes another file then.
    let Some(blank) = caller.take_blank(inode) else {
        return Err(Error::new(Errno::EBUSY, "the device is being closed"));
    };
    let opened = publish_device(caller, device, blank, look).inspect_err(|_| device.close())?;
    server.files.open(&opened, access).inspect_err(|_| server.files.forget(&opened))
}

/// Makes `blank` the file of `device`.
fn publish_device(
    caller: &Caller<'_>,
    device: &Arc<DeviceFile>,
    blank: Blank,
    look: Look,
) -> Result<Arc<Opened<File>>> {
    let (server, inode) = (caller.server, blank.inode);
    let bars: Arc<dyn Backing> = Arc::new(BarPages { inode, device: Arc::clone(device.device()) });
    let trapped =
        (0..BARS).flat_map(|bar| device.trapped((bar as u64 + 1) << REGION_SHIFT, u64::MAX));
    server.memory.add_device(&blank.file, &bars, trapped.collect())?;
    let copy = blank.file.try_clone();
    let copy = copy.map_err(|_| Error::new(Errno::EMFILE, "too many open files"))?;
    let config = Config::new(&blank.file)?;
    config.update(device);
    let (device, notes) = (Arc::clone(device), Arc::clone(&server.notes));
    let ranges = mappable(device.device());
    let doorbells = caller.take_doorbells(inode);
    let file = File::Device { device, bars, notes, doorbells, config };
    let opened = server.files.publish((blank, caller.task.process.pid()), file, look)?;
    server.notes.tell(Note::Opened { inode, file: copy, ranges });
    Ok(opened)
}

/// Keeps the watchdog informed of the eventfds that fire on removal.
fn tell_triggers(caller: &Caller<'_>, inode: u64, device: &DeviceFile) {
    let triggers = device.device().removal_triggers();
    let eventfds = triggers.iter().filter_map(|eventfd| eventfd.as_fd().try_clone_to_owned().ok());
    caller.server.notes.tell(Note::Triggers { inode, eventfds: eventfds.collect() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_hands_nothing_over_though_a_reset_has_its_number() {
        let map_dma = vfio::DEVICE_PCI_HOT_RESET;
        assert_eq!(map_dma, vfio::IOMMU_MAP_DMA);
        assert!(is_slow(trace::Kind::Device, map_dma));
        assert!(!is_slow(trace::Kind::Container, map_dma));
        assert!(!is_slow(trace::Kind::Iommufd, map_dma));
        assert!(is_slow(trace::Kind::Group, vfio::GROUP_GET_DEVICE_FD));
    }

    #[test]
    fn only_what_a_device_says_of_itself_is_said_without_a_look_at_what_was_closed() {
        for command in [vfio::DEVICE_GET_REGION_INFO, vfio::DEVICE_GET_INFO] {
            assert!(is_stateless(trace::Kind::Device, command));
            assert!(!is_stateless(trace::Kind::Container, command));
        }
        assert!(!is_stateless(trace::Kind::Container, vfio::IOMMU_MAP_DMA));
    }
}
