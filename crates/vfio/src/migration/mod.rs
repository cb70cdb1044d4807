//! Migration of a device: its state machine, and the files its state goes through. Linux:
//! `vfio_ioctl_device_feature_mig_*` of drivers/vfio/vfio_main.c, drivers/vfio/pci/qat.
//!
//! Invariant: the function stands still exactly in the states other than RUNNING and PRE_COPY, but
//! for the moment in which another thread resets it.
//!
//! A model without a notion of other devices stops all its DMA where P2P asks for that to devices.
//!
//! Lock order: `Migrating::held` -> the locks of the function, and those of a data file.

mod arcs;
mod stream;

use std::sync::{Arc, Weak};

use ioasis_iommufd::inject::step;
use ioasis_iommufd::{Client, ClientFile, OnExec};
use ioasis_pci::Function;
use ioasis_sys::sync::Mutex;
use ioasis_sys::sync::atomic::{AtomicBool, Ordering};
use ioasis_uapi::vfio::{
    self, DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration,
};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromZeros, IntoBytes};

use self::arcs::State;
use self::stream::{ResumeFile, SaveFile};

/// The migration of one device.
#[derive(Debug)]
pub(crate) struct Migrating {
    function: Arc<Function>,
    /// `MIGRATION_*` bits; 0 when it cannot migrate.
    flags: u64,
    held: Mutex<Held>,
    /// PRECOPY_INFO tells flags; until the last close.
    wants_flags: AtomicBool,
    this: Weak<Self>,
}

#[derive(Debug)]
struct Held {
    state: State,
    saving: Option<Arc<SaveFile>>,
    resuming: Option<Arc<ResumeFile>>,
}

impl Held {
    /// Whoever still has a data file learns that it is of no use.
    fn drop_files(&mut self) {
        self.saving.take().inspect(|file| file.disable());
        self.resuming.take().inspect(|file| drop(file.take()));
    }
}

type Opened = Option<Arc<dyn ClientFile>>;

impl Migrating {
    pub(crate) fn new(function: &Arc<Function>) -> Arc<Self> {
        let flags = function.abilities().map_or(0, |abilities| {
            let more = [
                (abilities.p2p, vfio::MIGRATION_P2P),
                (abilities.pre_copy, vfio::MIGRATION_PRE_COPY),
            ];
            let more = more.into_iter().filter(|(has, _)| *has).map(|(_, flag)| flag);
            more.fold(vfio::MIGRATION_STOP_COPY, |flags, flag| flags | flag)
        });
        let held = Held { state: State::Running, saving: None, resuming: None };
        Arc::new_cyclic(|this| Self {
            function: Arc::clone(function),
            flags,
            held: Mutex::new(held),
            wants_flags: AtomicBool::new(false),
            this: Weak::clone(this),
        })
    }

    /// # Errors
    ///
    /// `ENOTTY` when the device cannot migrate.
    pub(crate) fn check(&self) -> Result<()> {
        if self.flags == 0 {
            return Err(Error::new(Errno::ENOTTY, "the device cannot migrate"));
        }
        Ok(())
    }

    /// # Errors
    ///
    /// `EINVAL` when the device has no PRE_COPY state, whether or not it migrates at all.
    pub(crate) fn check_flags(&self) -> Result<()> {
        if self.flags & vfio::MIGRATION_PRE_COPY == 0 {
            return Err(Error::new(Errno::EINVAL, "the device has no PRE_COPY state"));
        }
        Ok(())
    }

    /// PRECOPY_INFO tells flags from now on.
    pub(crate) fn want_flags(&self) {
        self.wants_flags.store(true, Ordering::Release);
    }

    fn wants_flags(&self) -> bool {
        self.wants_flags.load(Ordering::Acquire)
    }

    /// # Errors
    ///
    /// `EINVAL` unless the device is in one of the PRE_COPY states.
    fn check_pre_copy(&self) -> Result<()> {
        let state = self.held.lock().state;
        if state.is_pre_copy() {
            return Ok(());
        }
        let number = state.number();
        Err(Error::at(Errno::EINVAL, "the device is in no PRE_COPY state", number.into()))
    }

    /// The last close, or a reset: the device runs, and has no stream.
    pub(crate) fn reset(&self) {
        if self.flags == 0 {
            return;
        }
        let mut held = self.held.lock();
        held.drop_files();
        held.state = State::Running;
        // A change of state on another thread may have come after the function's own reset.
        self.function.run();
    }

    /// The device is closed.
    pub(crate) fn end(&self) {
        self.reset();
        self.wants_flags.store(false, Ordering::Release);
    }

    /// Brings the device to state number `goal`, step by step; returns the file of a new stream.
    ///
    /// # Errors
    ///
    /// `EINVAL` when no way leads there, and for a state that was written and is none; what a step
    /// answers. The device stays in the last state that it reached, or is in ERROR.
    fn change(&self, goal: u32) -> Result<Opened> {
        let mut held = self.held.lock();
        let mut opened = None;
        while held.state.number() != goal {
            let next = arcs::next(self.flags, held.state, goal)?;
            opened = self.step(&mut held, next)?;
            held.state = next;
        }
        Ok(opened)
    }

    /// One arc of the state machine.
    fn step(&self, held: &mut Held, next: State) -> Result<Opened> {
        use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
        let function = &self.function;
        match (held.state, next) {
            (Running, RunningP2p) | (PreCopy, PreCopyP2p) => function.stop(),
            (RunningP2p, Running) | (PreCopyP2p, PreCopy) => function.run(),
            (RunningP2p, Stop) => function.hand_over()?,
            (Stop, RunningP2p) => function.take_over()?,
            (Running, Stop) => self.stop_all()?,
            (Stop, Running) => {
                function.take_over()?;
                function.run();
            }
            (StopCopy, Stop) | (PreCopy, Running) | (PreCopyP2p, RunningP2p) => held.drop_files(),
            (Stop, StopCopy) => {
                step("a migration stream")?;
                let file = SaveFile::complete(Weak::clone(&self.this), function.save()?);
                held.saving = Some(Arc::clone(&file));
                return Ok(Some(file));
            }
            (Running, PreCopy) | (RunningP2p, PreCopyP2p) => {
                step("a migration stream")?;
                let file = SaveFile::begun(Weak::clone(&self.this), function.announce()?);
                held.saving = Some(Arc::clone(&file));
                return Ok(Some(file));
            }
            (PreCopyP2p, StopCopy) => {
                function.hand_over()?;
                self.finish(held)?;
            }
            (PreCopy, StopCopy) => {
                self.stop_all()?;
                self.finish(held).inspect_err(|_| function.run())?;
            }
            (Stop, Resuming) => {
                step("a migration stream")?;
                let file = ResumeFile::new(function);
                held.resuming = Some(Arc::clone(&file));
                return Ok(Some(file));
            }
            (Resuming, Stop) => self.load(held)?,
            (from, to) => unreachable!("no arc leads from {from:?} to {to:?}"),
        }
        Ok(None)
    }

    /// Running to stopped at once, for a device without P2P states.
    fn stop_all(&self) -> Result<()> {
        self.function.stop();
        self.function.hand_over().inspect_err(|_| self.function.run())
    }

    /// The state, behind what was announced.
    fn finish(&self, held: &Held) -> Result<()> {
        step("the end of a migration stream")?;
        let file = held.saving.as_ref().expect("a PRE_COPY state has its file");
        self.function.save().map(|state| file.finish(&state))
    }

    /// What was written becomes the device's state, or the device is in ERROR.
    fn load(&self, held: &mut Held) -> Result<()> {
        let stream = held.resuming.as_ref().map(|file| file.take()).unwrap_or_default();
        let done = self.function.load_state(&stream);
        held.drop_files();
        if done.is_err() {
            held.state = State::Error;
        }
        done
    }
}

/// Answers GET of DEVICE_FEATURE_MIGRATION.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn flags(client: &dyn Client, migrating: &Migrating, address: u64) -> Result<()> {
    let answer = DeviceFeatureMigration { flags: migrating.flags };
    client.write(address, answer.as_bytes())
}

/// Answers GET of DEVICE_FEATURE_MIG_DATA_SIZE: how long the rest of a stream is at most, in every
/// state.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn data_size(client: &dyn Client, migrating: &Migrating, address: u64) -> Result<()> {
    let stop_copy_length = migrating.function.state_bytes() as u64;
    let answer = DeviceFeatureMigDataSize { stop_copy_length };
    client.write(address, answer.as_bytes())
}

/// Answers GET of DEVICE_FEATURE_MIG_DEVICE_STATE.
///
/// # Errors
///
/// `EFAULT`.
pub(crate) fn get_state(client: &dyn Client, migrating: &Migrating, address: u64) -> Result<()> {
    let mut argument = DeviceFeatureMigState::new_zeroed();
    client.read(address, argument.as_mut_bytes())?;
    let device_state = migrating.held.lock().state.number();
    argument = DeviceFeatureMigState { device_state, data_fd: -1 };
    client.write(address, argument.as_bytes())
}

/// Answers SET of DEVICE_FEATURE_MIG_DEVICE_STATE.
///
/// # Errors
///
/// `EFAULT`, `EMFILE`, after the state has changed; as [`Migrating::change`]; `EAGAIN` when others
/// would have to wait.
pub(crate) fn set_state(client: &dyn Client, migrating: &Migrating, address: u64) -> Result<()> {
    let mut argument = DeviceFeatureMigState::new_zeroed();
    client.read(address, argument.as_mut_bytes())?;
    client.takes_long()?;
    let changed = migrating.change(argument.device_state);
    argument.data_fd = -1;
    client.write(address, argument.as_bytes())?;
    if let Some(file) = changed? {
        // It cannot be taken back, so that it was proved first that the answer can be written.
        argument.data_fd = client.install(file, OnExec::Close)?;
        client.write(address, argument.as_bytes())?;
    }
    Ok(())
}
