//! Physical and virtual functions: which there are, and who may open them.
//! Linux: `drivers/vfio/pci/vfio_pci_core.c`.
//!
//! Every virtual function that can be is a device of the machine from the start. It is on the bus
//! from [`Device::create_virtual_functions`] to [`Device::end_virtual_functions`], and answers
//! `ENODEV` before and after.
//! No locks of its own.

use std::sync::{Arc, Weak};

use ioasis_iommufd::inject::step;
use ioasis_sys::sync::atomic::Ordering;
use ioasis_sys::sync::thread;
use ioasis_uapi::{Errno, Error, Result};

use crate::device::{Device, Relation};
use crate::token::{Uuid, VfToken};

/// The virtual function of `physical` that is at the address of `function`.
fn number(physical: &Device, function: &Device) -> Option<usize> {
    let sriov = physical.function().sriov()?;
    (0..sriov.total())
        .find(|&index| sriov.address(physical.bdf(), index) == Some(function.bdf()))
        .map(usize::from)
}

/// Makes physical and virtual functions known to each other.
///
/// # Panics
///
/// If a virtual function is not one of a physical function's.
pub(crate) fn relate(devices: &[Arc<Device>]) {
    let mut virtuals = 0;
    for device in devices {
        let Relation::Physical { functions, .. } = device.relation() else { continue };
        let mut found: Vec<_> = devices
            .iter()
            .filter(|other| matches!(other.relation(), Relation::Virtual { .. }))
            .filter_map(|other| Some((number(device, other)?, other)))
            .collect();
        found.sort_by_key(|(number, _)| *number);
        virtuals += found.len();
        for (_, function) in &found {
            let Relation::Virtual { physical, .. } = function.relation() else { continue };
            let first = physical.set(Arc::downgrade(device)).is_ok();
            assert!(first, "{} has one physical function", function.name());
        }
        let all = found.into_iter().map(|(_, function)| Arc::downgrade(function)).collect();
        assert!(functions.set(all).is_ok(), "a machine is made once");
    }
    let all = devices.iter().filter(|device| device.function().is_virtual());
    assert_eq!(all.count(), virtuals, "a virtual function is a physical one's");
}

impl Device {
    /// Whether it is on the bus: a virtual function comes and goes.
    #[must_use]
    pub fn exists(&self) -> bool {
        match self.relation() {
            Relation::Virtual { exists, .. } => exists.load(Ordering::Acquire),
            Relation::None | Relation::Physical { .. } => true,
        }
    }

    /// Its physical function, if it is a virtual one.
    #[must_use]
    pub fn physical_function(&self) -> Option<Arc<Self>> {
        match self.relation() {
            Relation::Virtual { physical, .. } => physical.get()?.upgrade(),
            Relation::None | Relation::Physical { .. } => None,
        }
    }

    /// Its virtual functions that are on the bus, in the order of their numbers.
    #[must_use]
    pub fn virtual_functions(&self) -> Vec<Arc<Self>> {
        let all = self.possible_functions().into_iter();
        all.filter(|function| function.exists()).collect()
    }

    /// The virtual functions that it can have, in the order of their numbers.
    #[must_use]
    pub fn possible_functions(&self) -> Vec<Arc<Self>> {
        match self.relation() {
            Relation::Physical { functions, .. } => {
                functions.get().into_iter().flatten().filter_map(Weak::upgrade).collect()
            }
            Relation::None | Relation::Virtual { .. } => Vec::new(),
        }
    }

    /// Its first `count` virtual functions appear on the bus.
    ///
    /// # Errors
    ///
    /// `ENOTTY` for a device without SR-IOV; what [`ioasis_pci::Sriov::enable`] says.
    pub fn create_virtual_functions(&self, count: u16) -> Result<()> {
        let Some(sriov) = self.function().sriov() else {
            return Err(Error::new(Errno::ENOTTY, "the device has no SR-IOV"));
        };
        step("virtual functions")?;
        // `vfio_pci_core_sriov_configure`: it is never in a lower power state than they are.
        self.function().enter_d0();
        sriov.enable(count)?;
        for function in self.possible_functions().into_iter().take(count.into()) {
            let Relation::Virtual { exists, .. } = function.relation() else { continue };
            function.come_anew();
            exists.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// A virtual function is on the bus no more. Nobody has it open, and nobody opens it meanwhile.
    pub fn leave_bus(&self) {
        if let Relation::Virtual { exists, .. } = self.relation() {
            exists.store(false, Ordering::Release);
        }
    }

    /// Its virtual functions leave the bus. None of them is open, and nobody opens one meanwhile.
    pub fn end_virtual_functions(&self) {
        for function in self.possible_functions() {
            function.leave_bus();
        }
        if let Some(sriov) = self.function().sriov() {
            sriov.disable();
        }
    }

    /// Whether a caller with this token may open the device; on an idle physical function, it is
    /// the token from now on. Linux: `vfio_pci_core_match_token_uuid`.
    ///
    /// # Errors
    ///
    /// `EACCES` when the token is missing or another; `EINVAL` when there is one that nothing asks
    /// for.
    pub(crate) fn check_token(&self, uuid: Option<&Uuid>) -> Result<()> {
        match self.relation() {
            Relation::None if uuid.is_some() => Err(Error::new(
                Errno::EINVAL,
                "there is a token, and the device is no physical or virtual function",
            )),
            Relation::None => Ok(()),
            Relation::Physical { token, .. } => token.check_physical(uuid),
            Relation::Virtual { .. } => {
                let physical = self.physical_function();
                let gone = Error::new(Errno::ENODEV, "the physical function is gone");
                match physical.as_deref().map(Self::relation) {
                    Some(Relation::Physical { token, .. }) => token.check_virtual(uuid),
                    _ => Err(gone),
                }
            }
        }
    }

    /// Notes that a virtual function is open.
    pub(crate) fn count_user(&self) {
        self.with_token_of_physical(VfToken::add_user);
    }

    /// Notes that it is not any more.
    pub(crate) fn discount_user(&self) {
        self.with_token_of_physical(VfToken::drop_user);
    }

    fn with_token_of_physical(&self, change: impl FnOnce(&VfToken)) {
        let Some(physical) = self.physical_function() else { return };
        if let Relation::Physical { token, .. } = physical.relation() {
            change(token);
        }
    }

    /// A physical function was reset, and with it its virtual ones. Each is somebody else's: nobody
    /// waits for what it does, nor for a call on it.
    pub(crate) fn reset_virtual_functions(&self) {
        for function in self.virtual_functions() {
            function.function().reset_with_physical();
            function.interrupts().told_reset();
            let Relation::Virtual { aftermath, .. } = function.relation() else { continue };
            if !aftermath.begin() {
                continue;
            }
            let device = Arc::clone(&function);
            let rest = move || device.end_resets();
            if thread::Builder::new().name("vf-reset".into()).spawn(rest).is_err() {
                function.end_resets();
            }
        }
    }

    /// What follows a reset, until it has followed the last of them.
    fn end_resets(&self) {
        let Relation::Virtual { aftermath, .. } = self.relation() else { return };
        loop {
            self.after_reset();
            if aftermath.end() {
                return;
            }
        }
    }
}
