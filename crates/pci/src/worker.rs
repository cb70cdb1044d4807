//! The one thread of an open device: it polls the model while there is work, and soon after the last of it waits until a
//! program stores to a page ([`Doorbells`]). Where some store would not be told it sleeps longer and longer
//! ([`Pace`]) and looks. A trapped call on the device wakes it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ioasis_sys::pace::Pace;
use ioasis_sys::sync::{Mutex, MutexGuard};
use ioasis_uapi::{Errno, Error, Result};

use crate::alarm::{Alarm, Sleeper};
use crate::bus::{Bus, Doorbells, Line, Session, Wires};
use crate::description::Description;
use crate::migration::{Reader, Writer, bad};
use crate::model::{After, Model, Progress};

/// Words of pending bits of the 2048 vectors that MSI-X can have.
const WORDS_MAX: usize = 32;

/// What the worker and the callers of a function share.
#[derive(Debug)]
pub(crate) struct Device {
    model: Mutex<Box<dyn Model>>,
    /// Callers that wait for `model`; the worker lets them in first.
    waiting: AtomicUsize,
    pub(crate) wires: Wires,
    /// A BAR page could not be reached; nothing is polled until the next reset.
    dead: AtomicBool,
    /// It was loaded and has not run since.
    loaded: AtomicBool,
}

impl Device {
    pub(crate) fn new(model: Box<dyn Model>, description: &Description) -> Self {
        Self {
            model: Mutex::new(model),
            waiting: AtomicUsize::new(0),
            wires: Wires::new(description),
            dead: AtomicBool::new(false),
            loaded: AtomicBool::new(false),
        }
    }

    pub(crate) fn bus<'a>(&'a self, session: &'a Session) -> Bus<'a> {
        Bus::new(session, &self.wires)
    }

    /// The model, for a caller that is not the worker.
    pub(crate) fn model(&self) -> MutexGuard<'_, Box<dyn Model>> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let model = self.model.lock();
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        model
    }

    /// The model as a caller finds it during a session: after the reset that is due, if one is.
    fn model_in(&self, session: &Session) -> MutexGuard<'_, Box<dyn Model>> {
        let mut model = self.model();
        self.reset_if_due(model.as_mut(), session);
        model
    }

    /// Resets the model and takes its interrupt back.
    pub(crate) fn reset(&self, session: &Session) -> Result<()> {
        self.reset_held(self.model().as_mut(), session)
    }

    /// Has the model reset without waiting for what it does now: at once where nobody has it, else
    /// by whoever has it next. It sends nothing meanwhile.
    pub(crate) fn reset_soon(&self, session: &Session) {
        self.wires.reset_due.store(true, Ordering::Release);
        if let Some(mut model) = self.model.try_lock() {
            self.reset_if_due(model.as_mut(), session);
        }
        self.wires.alarm.ring();
    }

    fn reset_if_due(&self, model: &mut dyn Model, session: &Session) {
        if self.wires.reset_due.load(Ordering::Acquire) {
            // A failure leaves it dead, as every reset that nobody waits for.
            let _ = self.reset_held(model, session);
        }
    }

    fn reset_held(&self, model: &mut dyn Model, session: &Session) -> Result<()> {
        // One that comes meanwhile is done again.
        self.wires.reset_due.store(false, Ordering::Release);
        let bus = self.bus(session);
        let done = model.reset(&bus).and_then(|()| self.wires.msix.reset(session));
        bus.set_line(Line::Deasserted);
        self.dead.store(done.is_err(), Ordering::Release);
        self.loaded.store(false, Ordering::Release);
        self.wires.stopped.store(false, Ordering::Release);
        done
    }

    /// A load that the model answers.
    pub(crate) fn load(
        &self,
        session: &Session,
        bar: usize,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<()> {
        self.live_or_die(session, |model| model.load(&self.bus(session), bar, offset, bytes))
    }

    /// A store that the model acts on.
    pub(crate) fn store(
        &self,
        session: &Session,
        bar: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<After> {
        self.live_or_die(session, |model| {
            model.store(&self.bus(session), bar, offset, bytes)?;
            Ok(model.after_store(bar, offset))
        })
    }

    /// Calls the model; a failure means that its BAR pages are gone.
    fn live_or_die<T>(
        &self,
        session: &Session,
        call: impl FnOnce(&mut dyn Model) -> Result<T>,
    ) -> Result<T> {
        let done = call(self.model_in(session).as_mut());
        if done.is_err() {
            self.dead.store(true, Ordering::Release);
        }
        done
    }

    /// The pin as the BAR pages have it by now.
    pub(crate) fn update_line(&self, session: &Session) {
        if self.dead.load(Ordering::Acquire) || !self.wires.gate.memory_enabled() {
            return;
        }
        // Who asks wants the level alone: a pin without its pages is down.
        let _ = self.live_or_die(session, |model| model.update_line(&self.bus(session)));
    }

    /// Stops the device: when this returns nothing moves until [`Device::run`], or a reset.
    pub(crate) fn stop(&self, session: &Session) {
        let _model = self.model_in(session);
        self.wires.stopped.store(true, Ordering::Release);
    }

    /// Lets a device go on that was stopped.
    pub(crate) fn run(&self, session: &Session) {
        // One that runs may be in a transfer that waits for the program, which must not be waited for.
        if !self.wires.is_stopped() {
            return;
        }
        let mut model = self.model_in(session);
        self.wires.stopped.store(false, Ordering::Release);
        let bus = self.bus(session);
        if self.dead.load(Ordering::Acquire) {
            return;
        }
        let was_loaded = self.loaded.swap(false, Ordering::AcqRel);
        let reminded = match model.migration() {
            Some(migration) if was_loaded => migration.remind(&bus),
            _ => Ok(()),
        };
        if reminded.and_then(|()| model.update_line(&bus)).is_err() {
            self.dead.store(true, Ordering::Release);
        }
    }

    /// The state of a device that is stopped, and the messages that wait to be sent.
    ///
    /// # Panics
    ///
    /// If the model cannot migrate.
    pub(crate) fn save(&self, session: &Session) -> Result<Vec<u8>> {
        let mut model = self.model_in(session);
        let mut state = Writer::default();
        state.list(self.wires.msix.pending().into_iter(), Writer::u64);
        let migration = model.migration().expect("a model that migrates");
        migration.save(&self.bus(session), &mut state)?;
        Ok(state.into_bytes())
    }

    /// Takes over what [`Device::save`] gave, of version `version`.
    ///
    /// # Panics
    ///
    /// If the model cannot migrate.
    pub(crate) fn load_state(&self, session: &Session, version: u32, state: &[u8]) -> Result<()> {
        let mut model = self.model_in(session);
        let mut state = Reader::new(state);
        let pending = state.list(WORDS_MAX, Reader::u64)?;
        if !self.wires.msix.could_be_pending(&pending) {
            return bad("other messages wait than this device has", pending.len() as u64);
        }
        let migration = model.migration().expect("a model that migrates");
        migration.load(&self.bus(session), version, &mut state)?;
        self.wires.msix.set_pending(session, pending)?;
        self.dead.store(false, Ordering::Release);
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    /// One poll, or `None` when the model is not to be polled before something is called.
    fn poll(&self, session: &Session, bus: &Bus<'_>) -> Option<Progress> {
        while self.waiting.load(Ordering::Acquire) != 0 {
            thread::yield_now();
        }
        if self.wires.reset_due.load(Ordering::Acquire) {
            self.reset_if_due(self.model.lock().as_mut(), session);
        }
        if self.dead.load(Ordering::Acquire) || !self.wires.gate.memory_enabled() {
            return None;
        }
        let mut model = self.model.lock();
        self.reset_if_due(model.as_mut(), session);
        // Under the lock: who stops the device has waited for the poll before.
        if self.wires.is_stopped() {
            return None;
        }
        let polled = model.poll(bus);
        self.dead.store(polled.is_err(), Ordering::Release);
        polled.ok()
    }
}

#[derive(Debug, Default)]
struct Signals {
    stop: AtomicBool,
    /// There may be work soon.
    expected: AtomicBool,
    /// The worker sleeps for longer than it should when there may be work soon.
    sleeps_long: AtomicBool,
}

/// The longest sleep that [`Worker::expect_work`] leaves alone: a wake costs as much as ten trapped stores.
const SHORT: Duration = Duration::from_millis(1);

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    signals: Arc<Signals>,
    alarm: Alarm,
    sleeper: Sleeper,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread, named `name`.
    ///
    /// # Errors
    ///
    /// What starting a thread answers: `EAGAIN` when there are too many.
    pub(crate) fn start(name: String, device: Arc<Device>, session: Arc<Session>) -> Result<Self> {
        let signals = Arc::new(Signals::default());
        let (watched, alarm) = (Arc::clone(&signals), device.wires.alarm.clone());
        let doorbells = session.doorbells.clone();
        let run = move || work(&device, &session, &watched);
        let thread = thread::Builder::new().name(name).spawn(run).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw);
            Error::new(errno, "no thread for the device")
        })?;
        let sleeper = Sleeper::new(thread.thread().clone(), doorbells);
        Ok(Self { signals, alarm, sleeper, thread })
    }

    /// Makes the worker look at once, as after a trapped call.
    pub(crate) fn wake(&self) {
        self.alarm.ring();
    }

    /// Makes the worker look again soon, and more often than before, at no cost if it does so anyway.
    pub(crate) fn expect_work(&self) {
        self.signals.expected.store(true, Ordering::SeqCst);
        if self.signals.sleeps_long.swap(false, Ordering::SeqCst) {
            self.sleeper.wake();
        }
    }

    /// Ends the worker after the poll it is in.
    pub(crate) fn stop(self) {
        self.signals.stop.store(true, Ordering::SeqCst);
        self.sleeper.wake();
        self.thread.join().expect("a device model does not panic");
    }
}

fn work(device: &Device, session: &Session, signals: &Signals) {
    let bus = device.bus(session);
    let mut pace = Pace::default();
    // How often this thread sleeps before it waits for a store, and how often it has.
    let (mut wanted, mut sleeps) = (0_u32, 0_u32);
    device.wires.alarm.watch(session.doorbells.clone());
    while !signals.stop.load(Ordering::Acquire) {
        if device.wires.alarm.take() {
            pace.worked();
        }
        if signals.expected.swap(false, Ordering::SeqCst) {
            pace.expects();
            // Each of the stores that lets this thread expect work would wake it.
            (wanted, sleeps) = (wanted.max(SLEEPS), 0);
        }
        let polled = look(device, session, &bus);
        let sleep = match polled {
            Some(Progress::Worked) => {
                pace.worked();
                (wanted, sleeps) = (0, 0);
                continue;
            }
            Some(Progress::Idle | Progress::Waits) => pace.pause(),
            None => {
                thread::park();
                continue;
            }
        };
        match (sleep, &session.doorbells) {
            (None, _) => thread::yield_now(),
            (Some(_), Some(doorbells))
                if polled == Some(Progress::Idle) && sleeps >= wanted && doorbells.watch() =>
            {
                let why = rest(device, session, signals, &**doorbells);
                doorbells.release();
                sleeps = 0;
                match why {
                    Rested::Worked => wanted = 0,
                    // Whoever stores may not get a processor for some time, and must find the page as it is now then.
                    Rested::Stored => wanted = wanted.saturating_add(SLEEPS),
                    Rested::Called => continue,
                }
                pace.worked();
            }
            (Some(sleep), _) => {
                sleeps = sleeps.saturating_add(1);
                sleep_for(sleep, signals);
            }
        }
    }
    device.wires.alarm.forget();
}

/// One poll, and what a program lets go on with a store that nothing else tells of.
fn look(device: &Device, session: &Session, bus: &Bus<'_>) -> Option<Progress> {
    let polled = device.poll(session, bus);
    // A program unmasks a vector with a store to the mapped table.
    device.wires.msix.send_waiting(session, device.wires.may_send());
    polled
}

/// Waits for a store, which is told from here on, or for a call. A store that came before is found by one more look.
fn rest(
    device: &Device,
    session: &Session,
    signals: &Signals,
    doorbells: &dyn Doorbells,
) -> Rested {
    let bus = device.bus(session);
    // Whoever calls either finds that this thread sleeps long, or is seen here.
    let is_called = || {
        signals.stop.load(Ordering::SeqCst)
            || signals.expected.load(Ordering::SeqCst)
            || device.wires.alarm.is_rung()
    };
    signals.sleeps_long.store(true, Ordering::SeqCst);
    let why = loop {
        if is_called() {
            break Rested::Called;
        }
        match look(device, session, &bus) {
            Some(Progress::Idle) => {}
            Some(Progress::Worked) => break Rested::Worked,
            Some(Progress::Waits) | None => break Rested::Called,
        }
        if doorbells.wait(LOOK) {
            break if is_called() { Rested::Called } else { Rested::Stored };
        }
    };
    signals.sleeps_long.store(false, Ordering::SeqCst);
    why
}

/// Why a thread does not wait for stores any more.
enum Rested {
    /// There was something to do.
    Worked,
    /// A store waits.
    Stored,
    /// A caller wants it to look.
    Called,
}

/// Sleeps that last for more than a millisecond together: longer than a program takes from a store to the next, or to get a
/// processor, in most cases.
const SLEEPS: u32 = 5;

/// How long nobody looks at a page of which every store is told: a program that shares its memory with one outside the run, or
/// the kernel of a new version, might know a way past that.
const LOOK: Duration = Duration::from_secs(5);

fn sleep_for(sleep: Duration, signals: &Signals) {
    signals.sleeps_long.store(sleep > SHORT, Ordering::SeqCst);
    // Whoever expects work either sees the line above or is seen here.
    if !signals.expected.load(Ordering::SeqCst) {
        thread::park_timeout(sleep);
    }
    signals.sleeps_long.store(false, Ordering::SeqCst);
}

#[cfg(test)]
mod tests;
