//! Which driver a device has, and who uses it through VFIO. Linux: `drivers/vfio/vfio_main.c`,
//! `vfio_register_group_dev` and `vfio_unregister_group_dev`.
//!
//! A file of the device holds it as long as it is open. Taking the driver away lets nobody in any
//! more, asks whoever is in to leave, and is over when the last has left.
//!
//! `Registration::state` is a leaf.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_iommufd::Group;
use ioasis_sys::sync::{Condvar, Mutex};
use ioasis_uapi::{Errno, Error, Result};

/// The driver of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// vfio-pci: its nodes can be opened.
    #[default]
    Vfio,
    /// vfio-pci still, which waits for the last user: its group's node is left.
    Leaving,
    /// None: nobody opens it.
    None,
    /// One that is not VFIO's, which does DMA of its own: nobody else owns the group meanwhile.
    Other,
}

/// The driver and the users of a device.
#[derive(Debug, Default)]
pub(crate) struct Registration {
    state: Mutex<State>,
    /// The last user has left.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    driver: Driver,
    users: usize,
}

/// A file of a device that is open.
#[derive(Debug)]
pub(crate) struct User(Arc<Registration>);

impl Drop for User {
    fn drop(&mut self) {
        self.0.state.lock().users -= 1;
        self.0.left.notify_all();
    }
}

impl Registration {
    /// Another file is opened.
    ///
    /// # Errors
    ///
    /// `ENODEV` unless the driver is VFIO's (`vfio_device_try_get_registration`).
    pub(crate) fn enter(self: &Arc<Self>) -> Result<User> {
        let mut state = self.state.lock();
        if state.driver != Driver::Vfio {
            return Err(Error::new(Errno::ENODEV, "the device has no VFIO driver"));
        }
        state.users += 1;
        Ok(User(Arc::clone(self)))
    }

    pub(crate) fn driver(&self) -> Driver {
        self.state.lock().driver
    }

    /// Gives a device of `group` that has no driver one.
    ///
    /// # Errors
    ///
    /// `EBUSY` if it has one, and for one that is not VFIO's while a user owns the group
    /// (`iommu_device_use_default_domain`).
    pub(crate) fn bind(&self, driver: Driver, group: &Group) -> Result<()> {
        let mut state = self.state.lock();
        if state.driver != Driver::None {
            return Err(Error::new(Errno::EBUSY, "the device has a driver"));
        }
        if driver == Driver::Other {
            group.kernel_driver_attached()?;
        }
        state.driver = driver;
        Ok(())
    }

    /// Takes the driver of a device of `group` away, or begins to.
    pub(crate) fn unbind(&self, group: &Group) {
        let mut state = self.state.lock();
        state.driver = match state.driver {
            Driver::Vfio | Driver::Leaving => Driver::Leaving,
            Driver::Other => {
                group.kernel_driver_detached();
                Driver::None
            }
            Driver::None => Driver::None,
        };
    }

    /// Whether there is no user, for which it waits until `deadline`.
    pub(crate) fn await_users(&self, deadline: Instant) -> bool {
        let mut state = self.state.lock();
        while state.users > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            state = self.left.wait_timeout(state, left).0;
        }
        true
    }

    /// The driver has left.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        assert_eq!((state.driver, state.users), (Driver::Leaving, 0), "the last user has left");
        state.driver = Driver::None;
    }
}
