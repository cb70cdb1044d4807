//! What the control socket sees of the server: what is open, by whom, and how much was asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasis_iommufd::Context;
use ioasis_iommufd::type1::Container;

use super::{File, Server};
use crate::Machine;

/// An open file of a program's.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// Its inode, which no other open file has.
    pub(crate) number: u64,
    /// The process that it was opened for.
    pub(crate) pid: u32,
    /// What /proc/PID/fd/N is a link to.
    pub(crate) path: String,
    pub(crate) kind: OpenKind,
}

/// What is behind it. Nothing here keeps the file open.
#[derive(Debug)]
pub(crate) enum OpenKind {
    Iommufd(Arc<Context>),
    Container(Arc<Container>),
    /// The group of this number.
    Group(u32),
    /// The device at this address.
    Device(String),
    Other,
}

impl Server {
    /// Every open file.
    pub(crate) fn open_files(&self) -> Vec<OpenFile> {
        self.files.look(|opened| OpenFile {
            number: opened.inode,
            pid: opened.owner(),
            path: opened.look.path.clone(),
            kind: match &opened.file {
                File::Iommufd { context, .. } => OpenKind::Iommufd(Arc::clone(context)),
                File::Container(container) => OpenKind::Container(Arc::clone(container)),
                File::Group(group) => OpenKind::Group(group.group().number()),
                File::Device { device, .. } => OpenKind::Device(device.device().name().to_owned()),
                File::Kvm { .. } | File::Made(_) => OpenKind::Other,
            },
        })
    }

    /// The machine of the run.
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// System calls that were received so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}
