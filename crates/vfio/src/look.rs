//! What a person sees of devices and groups: as they are at this moment, and without waiting for a
//! call that waits for its client.

use std::time::Duration;

use crate::device::Open;
use crate::irq::IrqLook;
use crate::{Device, Group, IommuFile};

/// How long a look waits for a lock.
const PATIENCE: Duration = Duration::from_millis(200);

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLook {
    /// How it is open: closed, group, cdev, closing, or busy while somebody opens or closes it.
    pub open: &'static str,
    /// It was removed.
    pub is_removed: bool,
    /// The program put it into low power.
    pub low_power: bool,
    /// Resets so far.
    pub resets: u64,
    /// COMMAND lets memory BARs answer, and it is not in D3hot.
    pub memory: bool,
    /// COMMAND lets it do DMA.
    pub bus_master: bool,
    /// It is in D3hot.
    pub d3hot: bool,
    /// Its interrupts; `None` while a call changes them.
    pub irq: Option<IrqLook>,
    /// Transfers from memory, and their bytes.
    pub reads: (u64, u64),
    /// Transfers to memory, and their bytes.
    pub writes: (u64, u64),
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLook {
    /// Its file is open.
    pub is_open: bool,
    /// Devices open by their own nodes.
    pub cdevs: u32,
    /// What SET_CONTAINER set: container or iommufd.
    pub container: Option<&'static str>,
    /// Open devices that hold the container.
    pub users: u32,
    /// Somebody owns its DMA.
    pub is_owned: bool,
}

impl Device {
    /// What there is.
    #[must_use]
    pub fn look(&self) -> DeviceLook {
        let function = self.function();
        let open = match self.set().opens().try_lock_for(PATIENCE) {
            None => "busy",
            Some(opens) => match &opens[self.slot()] {
                Open::Closed => "closed",
                Open::Group { .. } => "group",
                Open::Cdev(_) => "cdev",
                Open::Opening => "busy",
                Open::Closing => "closing",
            },
        };
        let (reads, writes) = self.traffic().counts();
        DeviceLook {
            open,
            is_removed: self.present().is_err(),
            low_power: self.is_in_low_power(),
            resets: function.resets(),
            memory: function.memory_enabled(),
            bus_master: function.bus_master(),
            d3hot: function.in_d3hot(),
            irq: self.interrupts().look(function),
            reads,
            writes,
        }
    }
}

impl Group {
    /// What there is; `None` while a call has it.
    #[must_use]
    pub fn look(&self) -> Option<GroupLook> {
        let state = self.state().try_lock_for(PATIENCE)?;
        Some(GroupLook {
            is_open: state.opened,
            cdevs: state.cdevs,
            container: state.iommu.as_ref().map(|file| match file {
                IommuFile::Container(_) => "container",
                IommuFile::Iommufd(_) => "iommufd",
            }),
            users: state.users,
            is_owned: self.is_owned(),
        })
    }
}
