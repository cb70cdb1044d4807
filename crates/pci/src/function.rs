//! One PCI function: its configuration space, its BARs, and the model behind them.
//!
//! `migration` is how it stops, and moves to another run.
//!
//! Lock order: `Function::closing` -> `Function::open` -> `Device::model`; `Function::config` is a leaf. A reset called by
//! a write to configuration space happens after its lock is released.

mod migration;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ioasis_sys::mapping::Mapping;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};

use self::migration::Migrates;
use crate::address::Bdf;
use crate::bus::{Bus, Session};
use crate::config::{CONFIG_SIZE, ConfigSpace, IrqMode, Window};
use crate::description::{
    BARS, Bar, BarKind, Description, Ids, MsixTable, PageKind, Vectors, pba_bytes, table_bytes,
};
use crate::model::{After, Model, VirtualFunctions};
use crate::msix::Handler;
use crate::refusal::Refusal;
use crate::sriov::{Role, Sriov};
use crate::windows::Windows;
use crate::worker::{Device, Worker};

/// A PCI function with a device model behind it.
#[derive(Debug)]
pub struct Function {
    address: Bdf,
    description: Description,
    /// Bus addresses of the BARs.
    addresses: [u64; BARS],
    /// Bus address of the expansion ROM, 0 for none.
    rom_address: u64,
    config: Mutex<ConfigSpace>,
    device: Arc<Device>,
    /// What it can do on its way to another run; `None` when it stays.
    migrates: Option<Migrates>,
    open: Mutex<Option<Open>>,
    /// Held until a session has ended, so that all who end it find it ended.
    closing: Mutex<()>,
    resets: AtomicU64,
    /// The model is told of COMMAND and interrupts.
    elsewhere: bool,
    role: Role,
}

#[derive(Debug)]
struct Open {
    session: Arc<Session>,
    worker: Worker,
}

impl Function {
    /// A function at `address`, its BARs placed in `windows`. It has no virtual functions, whatever
    /// its model could have.
    ///
    /// # Panics
    ///
    /// If the model describes a function that cannot exist.
    #[must_use]
    pub fn new(address: Bdf, model: Box<dyn Model>, windows: &mut Windows) -> Self {
        let description = model.description();
        let addresses = windows.assign(address, &description);
        let rom = windows.assign_rom(description.rom_size());
        Self::made(address, model, description, (addresses, rom), Role::Plain)
    }

    /// The same, with the virtual functions that its model can have, which are not there yet.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when their addresses pass the end of the bus.
    ///
    /// # Panics
    ///
    /// If a model describes a function that cannot exist.
    pub fn with_virtual_functions(
        address: Bdf,
        mut model: Box<dyn Model>,
        windows: &mut Windows,
    ) -> Result<(Self, Vec<Self>)> {
        let Some(virtual_functions) = model.virtual_functions() else {
            return Ok((Self::new(address, model, windows), Vec::new()));
        };
        let VirtualFunctions { offset, stride, models } = virtual_functions;
        let description = model.description();
        let first = models.first().expect("a model has some or none").description();
        let total = u16::try_from(models.len()).expect("TotalVFs has 16 bits");
        let addresses = windows.assign(address, &description);
        let rom = windows.assign_rom(description.rom_size());
        let below = windows.assign_virtual(&first, total);
        let made = (0..total).zip(models).map(|(index, model)| {
            let full = Error::at(
                Errno::ENOSPC,
                "a virtual function would lie past the end of the bus",
                index.into(),
            );
            let distance = index.checked_mul(stride).and_then(|all| all.checked_add(offset));
            let place = distance.and_then(|distance| address.beyond(distance)).ok_or(full)?;
            let described = model.description();
            assert_eq!(described, first, "virtual functions are alike");
            let bar = |bar: usize| match &first.bars[bar] {
                Some(found) if below[bar] != 0 => below[bar] + u64::from(index) * found.size,
                _ => 0,
            };
            let bars = std::array::from_fn(bar);
            Ok(Self::made(place, model, described, (bars, 0), Role::Virtual))
        });
        let made = made.collect::<Result<Vec<_>>>()?;
        let sriov = Arc::new(Sriov::new(address, (total, offset, stride), &first, below));
        let role = Role::Physical(sriov);
        Ok((Self::made(address, model, description, (addresses, rom), role), made))
    }

    fn made(
        address: Bdf,
        mut model: Box<dyn Model>,
        description: Description,
        (addresses, rom_address): ([u64; BARS], u64),
        role: Role,
    ) -> Self {
        description.check();
        let config = config_space(&description, &addresses, rom_address, &role);
        Self {
            address,
            rom_address,
            elsewhere: model.is_elsewhere(),
            migrates: model.migration().map(Migrates::new),
            device: Arc::new(Device::new(model, &description)),
            description,
            addresses,
            config: Mutex::new(config),
            open: Mutex::new(None),
            closing: Mutex::new(()),
            resets: AtomicU64::new(0),
            role,
        }
    }

    /// Its SR-IOV capability, if it is a physical function.
    #[must_use]
    pub fn sriov(&self) -> Option<&Arc<Sriov>> {
        match &self.role {
            Role::Physical(sriov) => Some(sriov),
            Role::Plain | Role::Virtual => None,
        }
    }

    /// Whether it is a virtual function.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        matches!(self.role, Role::Virtual)
    }

    /// Brings it to D0, as the host does before virtual functions come.
    pub fn enter_d0(&self) {
        let mut config = self.config.lock();
        config.reset();
        self.device.wires.gate.set(config.permissions());
    }

    /// Its configuration space before any program had it, as the host reads it.
    ///
    /// # Panics
    ///
    /// Never: it is read whole.
    #[must_use]
    pub fn config_of_host(&self) -> Vec<u8> {
        let (description, addresses) = (&self.description, &self.addresses);
        let config = config_space(description, addresses, self.rom_address, &self.role);
        let mut bytes = vec![0; CONFIG_SIZE];
        config.without_vfio().read(0, &mut bytes, false).expect("it is as long");
        bytes
    }

    /// Where the function sits.
    #[must_use]
    pub fn address(&self) -> Bdf {
        self.address
    }

    /// Who it is.
    #[must_use]
    pub fn ids(&self) -> Ids {
        self.description.ids
    }

    /// BAR `index`, 0 to 5; `None` where there is none and for the upper half of a 64-bit BAR.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<&Bar> {
        self.description.bars.get(index)?.as_ref()
    }

    /// The bus address of BAR `index`, as sysfs `resource` lists it; 0 when there is none.
    #[must_use]
    pub fn bar_address(&self, index: usize) -> u64 {
        self.addresses.get(index).copied().unwrap_or(0)
    }

    /// Bytes of its expansion ROM as the bus has it, a power of two; 0 where there is none.
    #[must_use]
    pub fn rom_size(&self) -> u64 {
        if self.rom_address == 0 { 0 } else { self.description.rom_size() }
    }

    /// Reads the expansion ROM. Behind what it holds it reads all ones (`vfio_pci_bar_rw`).
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is none or the access passes its end; `EIO` while memory decoding is off.
    pub fn rom_read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > self.rom_size()) {
            return Err(Error::at(Errno::EINVAL, "access past the end of the ROM", offset));
        }
        if !self.memory_enabled() {
            let why = self.device.wires.gate.deafness().unanswered();
            return Err(Error::at(Errno::EIO, why, offset));
        }
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let held = self.description.rom.get(start..).unwrap_or_default();
        let (from, behind) = bytes.split_at_mut(held.len().min(bytes.len()));
        from.copy_from_slice(&held[..from.len()]);
        behind.fill(0xff);
        Ok(())
    }

    /// How many interrupts it has.
    #[must_use]
    pub fn vectors(&self) -> Vectors {
        self.description.vectors
    }

    /// Where its MSI-X table lies.
    #[must_use]
    pub fn msix_table(&self) -> Option<MsixTable> {
        self.description.msix
    }

    /// Begins a session: configuration space and model are as after power-on, and the worker runs.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached; `EAGAIN` when no thread can be started. The
    /// function is then closed.
    ///
    /// # Panics
    ///
    /// If a session is open, or pages are missing for a BAR with mappable ranges.
    pub fn open(&self, session: Session) -> Result<()> {
        let mut open = self.open.lock();
        assert!(open.is_none(), "a function has one session");
        for (bar, pages) in self.description.bars.iter().zip(&session.pages) {
            let mappable = bar.as_ref().is_some_and(|bar| !bar.mappable.is_empty());
            assert!(!mappable || pages.is_some(), "a BAR with mappable ranges has pages");
        }
        {
            let mut config = self.config.lock();
            *config =
                config_space(&self.description, &self.addresses, self.rom_address, &self.role);
            self.device.wires.gate.set(config.permissions());
        }
        self.device.wires.line.store(false, Ordering::Release);
        self.device.reset(&session)?;
        self.tell_command(&session);
        let session = Arc::new(session);
        let name = self.address.to_string();
        let worker = Worker::start(name, Arc::clone(&self.device), Arc::clone(&session))?;
        *open = Some(Open { session, worker });
        Ok(())
    }

    /// Ends the session: when this returns the worker has ended and the device does no DMA. Nothing
    /// happens when none is open.
    pub fn close(&self) {
        let _closing = self.closing.lock();
        let Some(Open { session, worker }) = self.open.lock().take() else { return };
        let mut worker = Some(worker);
        session.dma.without_waiting(&mut || {
            if let Some(worker) = worker.take() {
                worker.stop();
            }
        });
        // Pages that are gone do not matter any more.
        let _ = self.device.reset(&session);
        self.device.model().close(&self.device.bus(&session));
    }

    /// Tells a model that is elsewhere what COMMAND holds.
    fn tell_command(&self, session: &Session) {
        let command = self.config.lock().command();
        self.tell(session, |model, bus| model.set_command(bus, command));
    }

    /// Tells a model that is elsewhere something. One that is here needs no telling, and nobody
    /// waits for it.
    fn tell(&self, session: &Session, word: impl Fn(&mut dyn Model, &Bus<'_>)) {
        if self.elsewhere {
            session.dma.without_waiting(&mut || {
                word(self.device.model().as_mut(), &self.device.bus(session));
            });
        }
    }

    fn session(&self) -> Option<Arc<Session>> {
        self.open.lock().as_ref().map(|open| Arc::clone(&open.session))
    }

    /// A function-level reset: the model as after power-on, power state D0, the rest of
    /// configuration space as it was. Waits for the worker to finish what it does. Nothing happens
    /// when no session is open.
    ///
    /// # Errors
    ///
    /// `EFAULT` when a BAR page cannot be reached.
    pub fn reset(&self) -> Result<()> {
        let Some(session) = self.session() else { return Ok(()) };
        {
            let mut config = self.config.lock();
            config.reset();
            self.device.wires.gate.set(config.permissions());
        }
        self.resets.fetch_add(1, Ordering::AcqRel);
        let mut done = Ok(());
        session.dma.without_waiting(&mut || done = self.device.reset(&session));
        self.tell_command(&session);
        self.wake();
        done
    }

    /// It sends nothing from now on, but for what is on its way. Waits for nobody.
    pub fn stop_mastering(&self) {
        let mut config = self.config.lock();
        config.stop_mastering();
        self.device.wires.gate.set(config.permissions());
    }

    /// What a reset of its physical function does to a virtual one: the same as its own, and nobody
    /// puts back what its COMMAND held. Waits for nothing that the function does: it sends nothing
    /// any more, and is reset before it does anything else.
    // DIFFERS: MSI and MSI-X stay enabled, where the registers of a real one are cleared. It sends
    // no message all the same before bus mastering is on again.
    pub fn reset_with_physical(&self) {
        {
            let mut config = self.config.lock();
            config.stop_mastering();
            config.reset();
            self.device.wires.gate.set(config.permissions());
        }
        let Some(session) = self.session() else { return };
        self.resets.fetch_add(1, Ordering::AcqRel);
        session.dma.without_waiting(&mut || self.device.reset_soon(&session));
    }

    /// Brings what the device keeps to where it is kept.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub fn flush(&self) -> std::io::Result<()> {
        self.device.model().flush()
    }

    /// Of each vector of MSI-X, whether it is masked and whether it is pending; `None` while no
    /// session is open, or somebody opens or ends it.
    #[must_use]
    pub fn vector_states(&self) -> Option<Vec<(bool, bool)>> {
        let session = Arc::clone(&self.open.try_lock()?.as_ref()?.session);
        Some(self.device.wires.msix.look(&session))
    }

    /// How many resets there were.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    /// Makes the worker look at once. To be called for every trapped call on the device: a program
    /// that makes calls is about to want something.
    ///
    /// Another device's worker calls it, for what it wrote to a BAR, and has its own model then. So no
    /// lock is taken that whoever resets this function has while it waits for the model: two devices
    /// that write to each other while both are reset would wait for ever.
    pub fn wake(&self) {
        self.device.wires.alarm.ring();
    }

    /// Brings the interrupt pin to the level its cause has by now, where the worker may not have
    /// looked yet: to be called before a masked pin is unmasked.
    pub fn update_line(&self) {
        if let Some(session) = self.session() {
            self.device.update_line(&session);
        }
    }

    /// Reads configuration space.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the access passes its end; nothing is read then.
    pub fn config_read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let window = self.config.lock().window(offset, bytes.len());
        if let Some(Window { bar, offset, length, .. }) = window {
            let mut data = [0; 4];
            // A BAR that does not answer leaves what the window showed.
            if self.bar_read(bar, offset, &mut data[..length]).is_ok() {
                self.config.lock().set_window_data(&data[..length]);
            }
        }
        self.config.lock().read(offset, bytes, self.device.wires.line.load(Ordering::Acquire))
    }

    /// Writes configuration space; bits that may not be written keep their values. What it changes
    /// is asked for with [`Function::memory_enabled`] and its siblings.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the access passes its end; nothing is written then.
    pub fn config_write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (asked, changed) = {
            let mut config = self.config.lock();
            let before = config.command();
            let asked = config.write(offset, bytes)?;
            self.device.wires.gate.set(config.permissions());
            (asked, config.command() != before)
        };
        if changed && let Some(session) = self.session() {
            self.tell_command(&session);
        }
        if asked.reset {
            // Linux drops the outcome of this reset too: the bit reads 0 whatever happened.
            let _ = self.reset();
        }
        if let Some(Window { bar, offset, length, data }) = asked.window {
            // As on the bus, nobody learns of a write that no BAR takes.
            let _ = self.bar_write(bar, offset, &data[..length]);
        }
        self.wake();
        Ok(())
    }

    /// Whether memory BARs answer: decoding is on and the function is not in D3hot.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.device.wires.gate.memory_enabled()
    }

    /// Whether I/O BARs answer.
    #[must_use]
    pub fn io_enabled(&self) -> bool {
        self.device.wires.gate.io_enabled()
    }

    /// Whether COMMAND lets the function do DMA and send messages.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.device.wires.gate.master_enabled()
    }

    /// Whether COMMAND disables the interrupt pin.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.device.wires.gate.intx_disabled()
    }

    /// Whether the function is in D3hot.
    #[must_use]
    pub fn in_d3hot(&self) -> bool {
        self.device.wires.gate.in_d3hot()
    }

    /// Which kind of interrupt is enabled, as last noted.
    #[must_use]
    pub fn irq_mode(&self) -> IrqMode {
        self.config.lock().irq_mode()
    }

    /// Notes which kind of interrupt `VFIO_DEVICE_SET_IRQS` enabled: it decides which enable bits
    /// configuration space shows and lets stick. No vector of MSI-X has a handler then.
    pub fn set_irq_mode(&self, mode: IrqMode) {
        self.config.lock().set_irq_mode(mode);
        let session = self.session();
        self.device.wires.msix.set_enabled(session.as_deref(), mode == IrqMode::Msix);
        if let Some(session) = session {
            self.tell(&session, |model, bus| model.set_irq_mode(bus, mode));
        }
    }

    /// Notes whether MSI-X vector `vector` has a handler on the host, which masks its entry as long
    /// as there is none. A message that is pending is sent to a new handler before this returns.
    pub fn set_handler(&self, vector: u16, handler: Handler) {
        let Some(session) = self.session() else { return };
        let wires = &self.device.wires;
        wires.msix.set_handler(&session, vector, handler, wires.may_send());
    }

    /// Reads a BAR in aligned pieces of 8, 4, 2 or 1 bytes, as a system call does. The MSI-X table
    /// reads all-ones.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such BAR or the access passes its end; `EIO` while memory decoding
    /// is off; `EFAULT` when its page cannot be reached; `ENODEV` when no session is open.
    pub fn bar_read(&self, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let (found, session) = self.admit(bar, offset, bytes.len())?;
        let (mut position, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at_mut(width(position, rest.len()));
            let owner = self.owner(found, bar, position);
            self.load_piece(&session, owner, bar, position, piece)?;
            position += piece.len() as u64;
            rest = after;
        }
        self.wake();
        Ok(())
    }

    /// Writes a BAR in aligned pieces of 8, 4, 2 or 1 bytes, as a system call does. Writes to the
    /// MSI-X structures are dropped.
    ///
    /// # Errors
    ///
    /// As [`Function::bar_read`].
    pub fn bar_write(&self, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (found, session) = self.admit(bar, offset, bytes.len())?;
        let (mut position, mut rest) = (offset, bytes);
        let mut all = After::Settled;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(width(position, rest.len()));
            let owner = self.owner(found, bar, position);
            if self.store_piece(&session, owner, bar, position, piece)? == After::Work {
                all = After::Work;
            }
            position += piece.len() as u64;
            rest = after;
        }
        match (all, self.open.lock().as_ref()) {
            (After::Work, Some(open)) => open.worker.wake(),
            (After::Settled, Some(open)) => open.worker.expect_work(),
            (_, None) => {}
        }
        Ok(())
    }

    /// A load of a trapped page, as an instruction does it: of 1 to 64 bytes at any offset, in
    /// aligned pieces as [`Function::bar_read`]. What it gives is the device's answer at this
    /// moment.
    ///
    /// # Errors
    ///
    /// As [`Function::bar_read`]; also `EINVAL` for a page that is not trapped.
    pub fn load(&self, bar: usize, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check_trapped(bar, offset, bytes.len())?;
        self.bar_read(bar, offset, bytes)
    }

    /// A store to a trapped page, as an instruction does it. When this returns the device has acted
    /// on it.
    ///
    /// # Errors
    ///
    /// As [`Function::load`].
    pub fn store(&self, bar: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check_trapped(bar, offset, bytes.len())?;
        self.bar_write(bar, offset, bytes)
    }

    /// A write that nobody waits for. It is lost while the BAR does not answer, as on the bus, and
    /// people are told.
    pub fn ring(&self, bar: usize, offset: u64, bytes: &[u8]) {
        if self.bar_write(bar, offset, bytes).is_ok() || self.memory_enabled() {
            return;
        }
        if let Some(session) = self.session() {
            let closed = self.device.wires.gate.deafness();
            session.witness.refused(&Refusal::Doorbell { bar, offset, closed });
        }
    }

    fn check_trapped(&self, bar: usize, offset: u64, length: usize) -> Result<()> {
        let last = offset.saturating_add((length as u64).saturating_sub(1));
        let is_trapped = |found: &Bar, at| {
            matches!(found.page_kind(at), Some(PageKind::Trapped | PageKind::TrappedLoads))
        };
        match self.bar(bar) {
            // It lies in two pages at most.
            Some(found) if is_trapped(found, offset) && is_trapped(found, last) => Ok(()),
            _ => Err(Error::at(Errno::EINVAL, "that page of the BAR is not trapped", offset)),
        }
    }

    fn load_piece(
        &self,
        session: &Session,
        owner: Owner,
        bar: usize,
        offset: u64,
        piece: &mut [u8],
    ) -> Result<()> {
        match owner {
            Owner::Table => piece.fill(0xff),
            Owner::Pending(start) => self.device.wires.msix.read_pending(offset - start, piece),
            Owner::Shared => load(pages(session, bar), offset, piece)?,
            Owner::Model => self.device.load(session, bar, offset, piece)?,
        }
        Ok(())
    }

    fn store_piece(
        &self,
        session: &Session,
        owner: Owner,
        bar: usize,
        offset: u64,
        piece: &[u8],
    ) -> Result<After> {
        match owner {
            Owner::Table | Owner::Pending(_) => Ok(After::Work),
            Owner::Shared => store(pages(session, bar), offset, piece).map(|()| After::Work),
            Owner::Model => self.device.store(session, bar, offset, piece),
        }
    }

    fn admit(&self, bar: usize, offset: u64, length: usize) -> Result<(&Bar, Arc<Session>)> {
        let found = self.bar(bar).ok_or(Error::new(Errno::EINVAL, "no such BAR"))?;
        if offset.checked_add(length as u64).is_none_or(|end| end > found.size) {
            return Err(Error::at(Errno::EINVAL, "access past the end of the BAR", offset));
        }
        let session = self.session().ok_or(Error::new(Errno::ENODEV, "the device is not open"))?;
        if found.kind != BarKind::Io && !self.memory_enabled() {
            let why = self.device.wires.gate.deafness().unanswered();
            return Err(Error::at(Errno::EIO, why, offset));
        }
        Ok((found, session))
    }

    fn owner(&self, found: &Bar, bar: usize, offset: u64) -> Owner {
        if let Some(table) = self.msix_table() {
            let inside =
                |at: u32, bytes: u64| (u64::from(at)..u64::from(at) + bytes).contains(&offset);
            let vectors = self.vectors().msix;
            if bar == table.table_bar && inside(table.table_offset, table_bytes(vectors)) {
                return Owner::Table;
            }
            if bar == table.pba_bar && inside(table.pba_offset, pba_bytes(vectors)) {
                return Owner::Pending(table.pba_offset.into());
            }
        }
        match found.page_kind(offset) {
            Some(PageKind::Shared) => Owner::Shared,
            Some(PageKind::Trapped | PageKind::TrappedLoads) | None => Owner::Model,
        }
    }
}

/// Configuration space after power-on.
fn config_space(
    description: &Description,
    addresses: &[u64; BARS],
    rom_address: u64,
    role: &Role,
) -> ConfigSpace {
    let mut config = ConfigSpace::new(description, addresses, role);
    if rom_address != 0 {
        config.place_rom(rom_address, description.rom_size());
    }
    config
}

impl Drop for Function {
    fn drop(&mut self) {
        self.close();
    }
}

/// Who answers an access to a BAR.
#[derive(Clone, Copy)]
enum Owner {
    Table,
    /// The pending bits, which begin at this offset.
    Pending(u64),
    Shared,
    Model,
}

fn pages(session: &Session, bar: usize) -> &Mapping {
    session.pages[bar].as_deref().expect("a BAR with mappable ranges has pages")
}

/// Bytes of the next aligned piece of an access.
fn width(offset: u64, length: usize) -> usize {
    let fits = |width: &usize| length >= *width && offset.is_multiple_of(*width as u64);
    [8, 4, 2].into_iter().find(fits).unwrap_or(1)
}

/// A register is loaded in one piece, as the program's own load of the mapped page would be.
fn load(pages: &Mapping, offset: u64, piece: &mut [u8]) -> Result<()> {
    let at = offset;
    match piece.len() {
        8 => piece.copy_from_slice(&pages.load_u64(at)?.to_le_bytes()),
        4 => piece.copy_from_slice(&pages.load_u32(at)?.to_le_bytes()),
        _ => pages.read(at, piece)?,
    }
    Ok(())
}

fn store(pages: &Mapping, offset: u64, piece: &[u8]) -> Result<()> {
    let at = offset;
    match piece.len() {
        8 => pages.store_u64(at, u64::from_le_bytes(piece.try_into().expect("eight bytes"))),
        4 => pages.store_u32(at, u32::from_le_bytes(piece.try_into().expect("four bytes"))),
        _ => pages.write(at, piece),
    }
}

#[cfg(test)]
mod tests;
