//! VFIO_DEVICE_SET_IRQS, in the order of Linux's checks.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasis_iommufd::inject::step;
use ioasis_pci::{Function, Handler, IrqMode};
use ioasis_sys::eventfd::EventFd;
use ioasis_uapi::vfio::{self, IrqSet};
use ioasis_uapi::{Errno, Error, Result};

use super::pin::Pin;
use super::{Gate, Interrupts, Messages, Mode};
use crate::watch::Watch;
use crate::{Client, arg};

/// What a call carries after its header.
#[derive(Debug)]
enum Data {
    None,
    Bool(Vec<bool>),
    Eventfd(Vec<i32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Mask,
    Unmask,
    Trigger,
}

/// A call after its checks: `start + count` is in range.
#[derive(Debug)]
struct Call {
    index: u32,
    start: u32,
    count: u32,
    action: Option<Action>,
    data: Data,
}

impl Call {
    /// The eventfd number of a call that sets one.
    fn is_single(&self) -> bool {
        self.start == 0 && self.count == 1
    }

    /// Whether it is the form that disables an index.
    fn disables(&self) -> bool {
        self.count == 0 && matches!(self.data, Data::None)
    }
}

/// Reads and checks a call. Linux: `vfio_set_irqs_validate_and_prepare`.
fn read(client: &dyn Client, function: &Function, address: u64) -> Result<Call> {
    const MIN: usize = size_of::<IrqSet>();
    let header: IrqSet = arg::first(client, address, MIN)?;
    let IrqSet { argsz, flags, index, start, count } = header;
    let known = vfio::IRQ_SET_DATA_TYPE_MASK | vfio::IRQ_SET_ACTION_TYPE_MASK;
    if index >= vfio::PCI_NUM_IRQS {
        return Err(Error::at(Errno::EINVAL, "no such interrupt index", index.into()));
    }
    if count >= u32::MAX - start {
        return Err(Error::at(Errno::EINVAL, "start + count wraps", count.into()));
    }
    if flags & !known != 0 {
        return Err(Error::at(Errno::EINVAL, "unknown flags", flags.into()));
    }
    let available = Interrupts::count(function, index);
    if start >= available || start + count > available {
        return Err(Error::at(Errno::EINVAL, "more interrupts than there are", available.into()));
    }
    let room = usize::try_from(argsz).unwrap_or(usize::MAX) - MIN;
    let address = address.wrapping_add(MIN as u64);
    let data = read_data(client, address, flags, count as usize, room)?;
    let action = match flags & vfio::IRQ_SET_ACTION_TYPE_MASK {
        vfio::IRQ_SET_ACTION_MASK => Some(Action::Mask),
        vfio::IRQ_SET_ACTION_UNMASK => Some(Action::Unmask),
        vfio::IRQ_SET_ACTION_TRIGGER => Some(Action::Trigger),
        _ => None,
    };
    Ok(Call { index, start, count, action, data })
}

/// The data of `count` interrupts; `count` is bounded by what the function has.
fn read_data(
    client: &dyn Client,
    address: u64,
    flags: u32,
    count: usize,
    room: usize,
) -> Result<Data> {
    let size = match flags & vfio::IRQ_SET_DATA_TYPE_MASK {
        vfio::IRQ_SET_DATA_NONE => return Ok(Data::None),
        vfio::IRQ_SET_DATA_BOOL => 1,
        vfio::IRQ_SET_DATA_EVENTFD => size_of::<i32>(),
        _ => return Err(Error::at(Errno::EINVAL, "not exactly one data type", flags.into())),
    };
    if room < count * size {
        return Err(Error::at(Errno::EINVAL, "argsz does not cover the data", room as u64));
    }
    step("the data of interrupts")?;
    let mut bytes = vec![0; count * size];
    if !bytes.is_empty() {
        client.read(address, &mut bytes)?;
    }
    if size == 1 {
        return Ok(Data::Bool(bytes.iter().map(|&byte| byte != 0).collect()));
    }
    let fds = bytes.chunks_exact(4).map(|fd| i32::from_ne_bytes([fd[0], fd[1], fd[2], fd[3]]));
    Ok(Data::Eventfd(fds.collect()))
}

/// The eventfd behind `fd`; none for a negative one.
fn trigger(client: &dyn Client, fd: i32) -> Result<Option<Arc<EventFd>>> {
    if fd < 0 {
        return Ok(None);
    }
    arg::eventfd(client, fd).map(Some)
}

fn inactive() -> Error {
    Error::new(Errno::EINVAL, "that kind of interrupt is not enabled")
}

impl Interrupts {
    /// Answers SET_IRQS.
    ///
    /// # Errors
    ///
    /// `EFAULT`; `EINVAL` for every malformed or contradictory call; `ENOTTY` for an action the
    /// index does not have; `ERANGE` when MSI or MSI-X is enabled with no vector; `EBADF` or
    /// `EINVAL` for what is no eventfd; `EBUSY` when INTx has an unmask eventfd.
    pub(crate) fn set(
        &self,
        client: &dyn Client,
        function: &Arc<Function>,
        address: u64,
    ) -> Result<()> {
        let call = read(client, function, address)?;
        let mut gate = self.gate.lock();
        let absent = Error::at(Errno::ENOTTY, "that index has no such action", call.index.into());
        let action = call.action.ok_or(absent)?;
        match (call.index, action) {
            (vfio::PCI_INTX_IRQ_INDEX, Action::Mask) => self.mask(&gate, &call),
            (vfio::PCI_INTX_IRQ_INDEX, Action::Unmask) => {
                self.unmask(&mut gate, client, function, &call)
            }
            (vfio::PCI_INTX_IRQ_INDEX, Action::Trigger) => {
                self.set_pin(&mut gate, client, function, &call)
            }
            (vfio::PCI_MSI_IRQ_INDEX | vfio::PCI_MSIX_IRQ_INDEX, Action::Trigger) => {
                self.set_messages(&mut gate, client, function, &call)
            }
            (vfio::PCI_ERR_IRQ_INDEX, Action::Trigger) => single(&mut gate.error, client, &call),
            (vfio::PCI_REQ_IRQ_INDEX, Action::Trigger) => single(&mut gate.request, client, &call),
            _ => Err(absent),
        }
    }

    fn mask(&self, gate: &Gate, call: &Call) -> Result<()> {
        if gate.mode != Mode::Intx || !call.is_single() {
            return Err(inactive());
        }
        match &call.data {
            Data::None => self.pin.mask(),
            Data::Bool(flags) if flags[0] => self.pin.mask(),
            Data::Bool(_) => {}
            Data::Eventfd(_) => {
                return Err(Error::new(Errno::ENOTTY, "INTx is not masked by an eventfd"));
            }
        }
        Ok(())
    }

    fn unmask(
        &self,
        gate: &mut Gate,
        client: &dyn Client,
        function: &Arc<Function>,
        call: &Call,
    ) -> Result<()> {
        if gate.mode != Mode::Intx || !call.is_single() {
            return Err(inactive());
        }
        let unmask = |pin: &Pin, function: &Function| {
            function.update_line();
            pin.unmask();
        };
        match &call.data {
            Data::None => unmask(&self.pin, function),
            Data::Bool(flags) if flags[0] => unmask(&self.pin, function),
            Data::Bool(_) => {}
            Data::Eventfd(fds) => match trigger(client, fds[0])? {
                // One that its program has closed was let go by the kernel then; here, when the
                // next comes.
                Some(_)
                    if gate.unmask.as_ref().is_some_and(|old| client.has_open(old.eventfd())) =>
                {
                    return Err(Error::new(Errno::EBUSY, "INTx has an unmask eventfd"));
                }
                Some(eventfd) => {
                    let (pin, function) = (Arc::clone(&self.pin), Arc::clone(function));
                    let action = Box::new(move || unmask(&pin, &function));
                    gate.unmask = None;
                    gate.unmask = Some(Watch::start(eventfd, action)?);
                }
                None => gate.unmask = None,
            },
        }
        Ok(())
    }

    fn set_pin(
        &self,
        gate: &mut Gate,
        client: &dyn Client,
        function: &Function,
        call: &Call,
    ) -> Result<()> {
        if gate.mode == Mode::Intx && call.disables() {
            gate.unmask = None;
            gate.mode = Mode::Off;
            self.pin.disable();
            function.set_irq_mode(IrqMode::Off);
            return Ok(());
        }
        if !matches!(gate.mode, Mode::Intx | Mode::Off) || !call.is_single() {
            return Err(Error::new(Errno::EINVAL, "INTx is one interrupt, enabled alone"));
        }
        if let Data::Eventfd(fds) = &call.data {
            let trigger = trigger(client, fds[0])?;
            if gate.mode == Mode::Intx {
                self.pin.set_trigger(trigger);
            } else {
                gate.mode = Mode::Intx;
                function.set_irq_mode(IrqMode::Intx);
                self.pin.enable(trigger);
            }
            return Ok(());
        }
        if gate.mode != Mode::Intx {
            return Err(inactive());
        }
        match &call.data {
            Data::Bool(flags) if !flags[0] => {}
            _ => self.pin.loop_back(),
        }
        Ok(())
    }

    fn set_messages(
        &self,
        gate: &mut Gate,
        client: &dyn Client,
        function: &Function,
        call: &Call,
    ) -> Result<()> {
        let active = gate.mode.index() == Some(call.index);
        if active && call.disables() {
            self.disable_messages(gate, function);
            return Ok(());
        }
        if !active && gate.mode != Mode::Off {
            return Err(Error::new(Errno::EINVAL, "another kind of interrupt is enabled"));
        }
        if let Data::Eventfd(fds) = &call.data {
            if active {
                return self.set_block(gate, client, function, call, fds);
            }
            self.enable_messages(gate, function, call)?;
            let done = self.set_block(gate, client, function, call, fds);
            if done.is_err() {
                self.disable_messages(gate, function);
            }
            return done;
        }
        if !active {
            return Err(inactive());
        }
        let messages = self.messages.load();
        for i in 0..call.count as usize {
            let wanted = match &call.data {
                Data::Bool(flags) => flags[i],
                _ => true,
            };
            if let Some(Some(trigger)) = messages.get(call.start as usize + i)
                && wanted
            {
                trigger.signal();
            }
        }
        Ok(())
    }

    /// Allocates the vectors up to the last one of the call.
    fn enable_messages(&self, gate: &mut Gate, function: &Function, call: &Call) -> Result<()> {
        let vectors = u16::try_from(call.start + call.count).unwrap_or(u16::MAX);
        if vectors == 0 {
            return Err(Error::new(Errno::ERANGE, "no vector is asked for"));
        }
        step("vectors")?;
        self.msix.store(call.index == vfio::PCI_MSIX_IRQ_INDEX, Ordering::Relaxed);
        self.messages.store(Arc::new(vec![None; vectors.into()]));
        gate.mode = if call.index == vfio::PCI_MSI_IRQ_INDEX {
            function.set_irq_mode(IrqMode::Msi { messages: vectors });
            Mode::Msi
        } else {
            function.set_irq_mode(IrqMode::Msix);
            Mode::Msix
        };
        Ok(())
    }

    fn disable_messages(&self, gate: &mut Gate, function: &Function) {
        gate.mode = Mode::Off;
        self.messages.store(Arc::default());
        function.set_irq_mode(IrqMode::Off);
    }

    /// Sets or detaches the eventfds of a call. After a failure those it had reached are detached.
    fn set_block(
        &self,
        gate: &Gate,
        client: &dyn Client,
        function: &Function,
        call: &Call,
        fds: &[i32],
    ) -> Result<()> {
        let mut messages = Messages::clone(&self.messages.load());
        if gate.mode == Mode::Msix {
            // Only MSI-X grows: a vector is allocated when it is first used.
            messages.resize(function.vectors().msix.into(), None);
        }
        let start = call.start as usize;
        let mut done = Ok(());
        for (i, &fd) in fds.iter().enumerate() {
            let at = start + i;
            let set = match messages.get_mut(at) {
                Some(message) => trigger(client, fd).map(|trigger| *message = trigger),
                None if fd < 0 => Ok(()),
                None => Err(Error::at(Errno::EINVAL, "that vector is not enabled", at as u64)),
            };
            if set.is_err() {
                let end = messages.len().min(at + 1);
                messages[start.min(end)..end].fill(None);
                done = set;
                break;
            }
        }
        let touched = start..messages.len().min(start + fds.len());
        if gate.mode == Mode::Msix {
            self.change_handlers(function, messages, touched);
        } else {
            self.messages.store(Arc::new(messages));
        }
        done
    }

    /// Puts `messages` in place where those of `touched` vectors are new. As `free_irq` and
    /// `request_irq` do, an entry of the table is masked before its eventfd goes, and unmasked when
    /// there is another: what comes between is pending.
    fn change_handlers(&self, function: &Function, messages: Messages, touched: Range<usize>) {
        let vector = |at: usize| u16::try_from(at).expect("a table has at most 2048 entries");
        for at in touched.clone() {
            function.set_handler(vector(at), Handler::Absent);
        }
        let messages = Arc::new(messages);
        self.messages.store(Arc::clone(&messages));
        for at in touched.filter(|&at| messages[at].is_some()) {
            function.set_handler(vector(at), Handler::Present);
        }
    }
}

/// ERR and REQ: one eventfd, which the program may also fire itself. Linux:
/// `vfio_pci_set_ctx_trigger_single`.
fn single(slot: &mut Option<Arc<EventFd>>, client: &dyn Client, call: &Call) -> Result<()> {
    let empty = Error::new(Errno::EINVAL, "no interrupt is named");
    match &call.data {
        Data::None => {
            let trigger = slot.as_ref().ok_or_else(inactive)?;
            if call.count == 0 {
                *slot = None;
            } else {
                trigger.signal();
            }
        }
        Data::Bool(flags) => {
            if *flags.first().ok_or(empty)?
                && let Some(trigger) = slot
            {
                trigger.signal();
            }
        }
        Data::Eventfd(fds) => match *fds.first().ok_or(empty)? {
            -1 => *slot = None,
            fd if fd < 0 => return Err(Error::new(Errno::EINVAL, "a negative fd other than -1")),
            fd => *slot = trigger(client, fd)?,
        },
    }
    Ok(())
}
