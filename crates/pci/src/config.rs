//! Configuration space as VFIO shows it: 4 KiB, where a write changes only the bits it may change.
//!
//! Linux keeps two copies, the device's and a shadow, with masks that say which bit comes from where
//! (`drivers/vfio/pci/vfio_pci_config.c`). Here the device is our own, so one copy with one write mask answers the
//! same; what differs between the two, BAR sizing and the enable bits that only an ioctl may set, is done after
//! each write. An access is cut into aligned pieces of 4, 2 or 1 bytes inside one capability, as there.

use ioasis_uapi::{Errno, Error, Result};

use crate::capability::{self, Capability, Kind};
use crate::description::{BARS, Bar, BarKind, Description, ExtendedCapability, halves};
use crate::gate::Permissions;
use crate::sriov::{self, Role};

/// Bytes of configuration space of a PCI Express function.
pub const CONFIG_SIZE: usize = 4096;

// Type 0 header, PCI Local Bus 3.0, 6.1.
const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_ID: usize = 0x08;
const CLASS_CODE: usize = 0x09;
const CACHE_LINE_SIZE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
const BASE_ADDRESS_0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const SUBSYSTEM_ID: usize = 0x2e;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const ROM_ADDRESS: usize = 0x30;
const ROM_ENABLE: u32 = 1 << 0;

/// Where the list of extended capabilities begins, and where those of a model lie if something is there (PCI Express 6.0, 7.6).
const EXTENDED: usize = 0x100;
const EXTENDED_OF_MODEL: usize = 0x200;
const EXTENDED_HEADER: usize = 4;
const EXTENDED_NEXT_SHIFT: u32 = 20;

// Extended capabilities that are there for SR-IOV: PCI Express 6.0, 7.8.8 and 9.3.3.
const ARI: usize = EXTENDED;
/// Extended capability Eh, version 1: each function of a device with SR-IOV has it (9.3.7). The
/// root ports here forward none of it, so it says nothing but that it is there.
const ARI_HEADER: u32 = 0x0e | 1 << 16;
const SRIOV: usize = 0x140;

/// Which kind of interrupt the program enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IrqMode {
    /// None.
    #[default]
    Off,
    /// The pin.
    Intx,
    /// MSI with so many messages.
    Msi {
        /// Messages enabled, at least 1.
        messages: u16,
    },
    /// MSI-X.
    Msix,
}

/// What a write asked for beyond the bits it changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The function-level reset bit was written.
    pub(crate) reset: bool,
    /// The data of a window to the BARs was written.
    pub(crate) window: Option<Window>,
}

/// What a window to the BARs is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) bar: usize,
    pub(crate) offset: u64,
    /// 1, 2 or 4.
    pub(crate) length: usize,
    pub(crate) data: [u8; 4],
}

/// The configuration space of one function.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
    capabilities: Vec<Capability>,
    /// What each BAR register keeps of a written address, and its type bits.
    bars: [(u32, u32); BARS],
    /// What the ROM's register keeps of a written address.
    rom: u32,
    irq_mode: IrqMode,
    role: Role,
}

impl ConfigSpace {
    /// The space as the first open finds it: memory and I/O decoding on, bus mastering off.
    pub(crate) fn new(description: &Description, addresses: &[u64; BARS], role: &Role) -> Self {
        let mut space = Self {
            bytes: Box::new([0; CONFIG_SIZE]),
            writable: Box::new([0; CONFIG_SIZE]),
            capabilities: Vec::new(),
            bars: [(0, 0); BARS],
            rom: 0,
            irq_mode: IrqMode::Off,
            role: role.clone(),
        };
        space.fill_header(description);
        for (index, bar) in description.bars.iter().enumerate() {
            if let Some(bar) = bar {
                space.fill_bar(index, bar, addresses[index]);
            }
        }
        space.add_capabilities(description);
        space.add_extended();
        for capability in &description.extended {
            space.add_extended_of_model(capability);
        }
        space
    }

    /// The space as the function itself answers, for whoever is the host: vfio-pci shows a virtual
    /// function what its own registers do not hold (`vfio_config_init`, `vfio_bar_fixup`).
    pub(crate) fn without_vfio(mut self) -> Self {
        if self.is_virtual() {
            self.put(VENDOR_ID, &[0xff; 4]);
            self.put(COMMAND, &[0; 2]);
            self.put(BASE_ADDRESS_0, &[0; 4 * BARS]);
        }
        self
    }

    fn is_virtual(&self) -> bool {
        matches!(self.role, Role::Virtual)
    }

    fn fill_header(&mut self, description: &Description) {
        let ids = description.ids;
        self.put(VENDOR_ID, &ids.vendor.to_le_bytes());
        self.put(DEVICE_ID, &ids.device.to_le_bytes());
        self.put(REVISION_ID, &[ids.revision]);
        self.put(CLASS_CODE, &ids.class.to_le_bytes()[..3]);
        self.put(SUBSYSTEM_VENDOR_ID, &ids.subsystem_vendor.to_le_bytes());
        self.put(SUBSYSTEM_ID, &ids.subsystem_device.to_le_bytes());
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.put(INTERRUPT_PIN, &[u8::from(description.vectors.intx)]);
        if self.is_virtual() {
            self.fill_virtual();
            return;
        }
        let mut decoded = 0;
        let mut writable = COMMAND_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
        for bar in description.bars.iter().flatten() {
            decoded |= if bar.kind == BarKind::Io { COMMAND_IO } else { COMMAND_MEMORY };
        }
        writable |= decoded;
        self.put(COMMAND, &decoded.to_le_bytes());
        self.allow(COMMAND, &writable.to_le_bytes());
        self.allow(CACHE_LINE_SIZE, &[0xff]);
        self.allow(LATENCY_TIMER, &[0xff]);
        self.allow(INTERRUPT_LINE, &[0xff]);
    }

    /// A virtual function has bus mastering alone in COMMAND; memory and INTx disable are kept by
    /// vfio-pci, and the latency timer is the physical function's (PCI Express 6.0, 9.3.4.1).
    fn fill_virtual(&mut self) {
        let writable = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;
        self.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        self.allow(COMMAND, &writable.to_le_bytes());
        self.allow(INTERRUPT_LINE, &[0xff]);
    }

    fn fill_bar(&mut self, index: usize, bar: &Bar, address: u64) {
        let mask = !(bar.size - 1);
        let flags = bar.type_bits();
        let (mask_low, mask_high) = halves(mask);
        let (low, high) = halves(address);
        self.bars[index] = (mask_low, flags);
        self.put(BASE_ADDRESS_0 + 4 * index, &(low | flags).to_le_bytes());
        self.allow(BASE_ADDRESS_0 + 4 * index, &[0xff; 4]);
        if bar.kind == BarKind::Memory64 {
            self.bars[index + 1] = (mask_high, 0);
            self.put(BASE_ADDRESS_0 + 4 * (index + 1), &high.to_le_bytes());
            self.allow(BASE_ADDRESS_0 + 4 * (index + 1), &[0xff; 4]);
        }
    }

    fn add_capabilities(&mut self, description: &Description) {
        self.capabilities = capability::chain(description);
        let mut link = CAPABILITIES_POINTER;
        for capability in self.capabilities.clone() {
            let Capability { kind, start, .. } = capability;
            self.bytes[link] = u8::try_from(start).expect("the chain lies in the first 256 bytes");
            self.bytes[start] = kind.id();
            link = start + 1;
            for field in kind.fields(description) {
                self.put(start + field.offset, &field.value.to_le_bytes()[..field.width]);
                self.allow(start + field.offset, &field.writable.to_le_bytes()[..field.width]);
            }
        }
    }

    /// What SR-IOV adds. The registers of its own capability are not here; their place is.
    fn add_extended(&mut self) {
        let next = match &self.role {
            Role::Plain => return,
            Role::Physical(_) => SRIOV,
            Role::Virtual => 0,
        };
        let link = u32::try_from(next).expect("below 4096") << EXTENDED_NEXT_SHIFT;
        self.put(ARI, &(ARI_HEADER | link).to_le_bytes());
        if next != 0 {
            self.put(next, &sriov::HEADER.to_le_bytes());
        }
    }

    /// Appends an extended capability to their list.
    ///
    /// # Panics
    ///
    /// If it does not fit: a model has more than there is room for. If the function has virtual ones.
    fn add_extended_of_model(&mut self, capability: &ExtendedCapability) {
        let is_physical = matches!(self.role, Role::Physical(_));
        assert!(!is_physical, "a function with virtual functions has no other extended capability");
        let (mut last, mut start) = (None, EXTENDED);
        while self.dword(start) != 0 {
            last = Some(start);
            let next = self.dword(start) >> EXTENDED_NEXT_SHIFT;
            if next == 0 {
                break;
            }
            start = next as usize;
        }
        if let Some(link) = last {
            start = self.free_for_extended();
            let place = u32::try_from(start).expect("below 4096") << EXTENDED_NEXT_SHIFT;
            self.put(link, &(self.dword(link) | place).to_le_bytes());
        }
        let ExtendedCapability { id, version, bytes, writable } = capability;
        let end = start + EXTENDED_HEADER + bytes.len();
        assert!(end <= CONFIG_SIZE, "extended capabilities fit into configuration space");
        self.put(start, &(u32::from(*id) | u32::from(*version) << 16).to_le_bytes());
        self.put(start + EXTENDED_HEADER, bytes);
        self.allow(start + EXTENDED_HEADER, writable);
    }

    /// The first dword behind everything of extended configuration space.
    fn free_for_extended(&self) -> usize {
        let used =
            self.bytes.iter().zip(&self.writable[..]).rposition(|(&byte, &mask)| byte | mask != 0);
        let end = used.map_or(0, |last| (last + 1).next_multiple_of(4));
        end.max(EXTENDED_OF_MODEL)
    }

    fn dword(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes[offset..offset + 4].try_into().expect("four bytes"))
    }

    /// The register of an expansion ROM of `size` bytes at bus address `address`.
    pub(crate) fn place_rom(&mut self, address: u64, size: u64) {
        let (mask, _) = halves(!(size - 1));
        self.rom = mask | ROM_ENABLE;
        self.put(ROM_ADDRESS, &halves(address).0.to_le_bytes());
        self.allow(ROM_ADDRESS, &[0xff; 4]);
        // It is memory that COMMAND switches, whether or not a BAR is.
        let command = self.command() | COMMAND_MEMORY;
        self.put(COMMAND, &command.to_le_bytes());
        self.writable[COMMAND] |= COMMAND_MEMORY.to_le_bytes()[0];
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn find(&self, kind: Kind) -> Option<usize> {
        self.capabilities.iter().find(|found| found.kind == kind).map(|found| found.start)
    }

    /// COMMAND.
    pub(crate) fn command(&self) -> u16 {
        self.word(COMMAND)
    }

    /// What the registers allow now.
    pub(crate) fn permissions(&self) -> Permissions {
        let command = self.word(COMMAND);
        let state = self.find(Kind::PowerManagement);
        let state = state
            .map_or(0, |start| self.bytes[start + capability::PM_CONTROL] & capability::PM_STATE);
        Permissions {
            master: command & COMMAND_MASTER != 0,
            // VF Memory Space Enable of the physical function decides for a virtual one, and is set
            // as long as there is one (`__vfio_pci_memory_enabled`).
            memory: command & COMMAND_MEMORY != 0 || self.is_virtual(),
            io: command & COMMAND_IO != 0,
            intx_disable: command & COMMAND_INTX_DISABLE != 0,
            d3hot: state == capability::PM_STATE_D3HOT,
            // vfio-pci lets no program write it (vfio_config_do_rw: the capability has no writefn).
            vectors_masked: self.find(Kind::Msix).is_some_and(|start| {
                self.word(start + capability::MSIX_FLAGS) & capability::MSIX_FUNCTION_MASK != 0
            }),
        }
    }

    /// Fills `bytes` from `offset`; `line_asserted` is the level of the interrupt pin.
    ///
    /// # Errors
    ///
    /// `EFAULT` past the end of the space; nothing is read then.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8], line_asserted: bool) -> Result<()> {
        let start = checked_start(offset, bytes.len())?;
        bytes.copy_from_slice(&self.bytes[start..start + bytes.len()]);
        if let Role::Physical(sriov) = &self.role {
            let end = start + bytes.len();
            // The header is among the bytes here, with its link.
            let first = start.max(SRIOV + EXTENDED_HEADER);
            let last = end.min(SRIOV + sriov::LENGTH);
            if first < last {
                sriov.read(first - SRIOV, &mut bytes[first - start..last - start]);
            }
        }
        let position = STATUS.checked_sub(start);
        if let Some(status) = position.and_then(|position| bytes.get_mut(position))
            && line_asserted
        {
            *status |= STATUS_INTERRUPT.to_le_bytes()[0];
        }
        Ok(())
    }

    /// Writes `bytes` from `offset`, piece by piece.
    ///
    /// # Errors
    ///
    /// `EFAULT` past the end of the space; nothing is written then.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<Asked> {
        let mut position = checked_start(offset, bytes.len())?;
        let mut rest = bytes;
        let mut asked = Asked::default();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(self.piece(position, rest.len()));
            let piece_asked = self.write_piece(position, piece);
            asked.reset |= piece_asked.reset;
            asked.window = piece_asked.window.or(asked.window);
            position += piece.len();
            rest = after;
        }
        Ok(asked)
    }

    /// Bytes of the next aligned piece that stays inside one capability.
    fn piece(&self, position: usize, length: usize) -> usize {
        let owner =
            |at: usize| self.capabilities.iter().position(|capability| capability.contains(at));
        let here = owner(position);
        let fits = |width: usize| {
            length >= width
                && position.is_multiple_of(width)
                && (1..width).all(|byte| owner(position + byte) == here)
        };
        [4, 2].into_iter().find(|&width| fits(width)).unwrap_or(1)
    }

    fn write_piece(&mut self, position: usize, piece: &[u8]) -> Asked {
        for (byte, &value) in piece.iter().enumerate() {
            let (old, mask) = (self.bytes[position + byte], self.writable[position + byte]);
            self.bytes[position + byte] = old & !mask | value & mask;
        }
        let touches = |register: usize, width: usize| {
            position < register + width && register < position + piece.len()
        };
        if touches(BASE_ADDRESS_0, 4 * BARS) {
            self.settle_bars();
        }
        if touches(ROM_ADDRESS, 4) {
            // `vfio_bar_fixup`: the address as far as it is decoded, and the enable bit.
            self.put(ROM_ADDRESS, &(self.dword(ROM_ADDRESS) & self.rom).to_le_bytes());
        }
        let mut asked = Asked::default();
        for Capability { kind, start, .. } in self.capabilities.clone() {
            match kind {
                Kind::Msi if touches(start + capability::MSI_FLAGS, 2) => self.settle_msi(start),
                Kind::PowerManagement if touches(start + capability::PM_CONTROL, 1) => {
                    self.settle_power(start, piece[start + capability::PM_CONTROL - position]);
                }
                Kind::Express if touches(start + capability::EXP_CONTROL, 2) => {
                    asked.reset |= self.take_reset_bit(start);
                }
                Kind::Window(_) if touches(start + capability::WINDOW_DATA, 4) => {
                    asked.window = self.window_at(start);
                }
                _ => {}
            }
        }
        asked
    }

    /// What a window is set to, where its data is among `length` bytes from `offset`: a read of them is to be preceded by one
    /// there.
    pub(crate) fn window(&self, offset: u64, length: usize) -> Option<Window> {
        let start = self.window_start()?;
        let data = (start + capability::WINDOW_DATA) as u64;
        let end = offset.saturating_add(length as u64);
        if offset < data + 4 && data < end { self.window_at(start) } else { None }
    }

    fn window_start(&self) -> Option<usize> {
        let mut capabilities = self.capabilities.iter();
        let found = capabilities.find(|found| matches!(found.kind, Kind::Window(_)));
        found.map(|found| found.start)
    }

    /// `None` unless it is set to an aligned access.
    fn window_at(&self, start: usize) -> Option<Window> {
        let dword = |offset: usize| -> [u8; 4] {
            self.bytes[start + offset..start + offset + 4].try_into().expect("four bytes")
        };
        let offset = u32::from_le_bytes(dword(capability::WINDOW_OFFSET));
        let length = u32::from_le_bytes(dword(capability::WINDOW_LENGTH));
        let fits = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        fits.then(|| Window {
            bar: self.bytes[start + capability::WINDOW_BAR].into(),
            offset: offset.into(),
            length: length as usize,
            data: dword(capability::WINDOW_DATA),
        })
    }

    /// What the window shows from now on.
    pub(crate) fn set_window_data(&mut self, data: &[u8]) {
        if let Some(start) = self.window_start() {
            self.put(start + capability::WINDOW_DATA, data);
        }
    }

    /// Cuts the written addresses to what each BAR decodes, which is how a program learns its size.
    fn settle_bars(&mut self) {
        for (index, &(mask, flags)) in self.bars.clone().iter().enumerate() {
            let offset = BASE_ADDRESS_0 + 4 * index;
            let written =
                u32::from_le_bytes(self.bytes[offset..offset + 4].try_into().expect("four bytes"));
            self.put(offset, &(written & mask | flags).to_le_bytes());
        }
    }

    /// `vfio_msi_config_write`: the enable bit needs the ioctl, the queue size stops at what it enabled.
    fn settle_msi(&mut self, start: usize) {
        let mut flags = self.word(start + capability::MSI_FLAGS);
        let largest = match self.irq_mode {
            IrqMode::Msi { messages } => messages.next_power_of_two().ilog2(),
            _ => {
                flags &= !capability::MSI_ENABLE;
                0
            }
        };
        let largest = u16::try_from(largest).expect("the log of a u16");
        if (flags & capability::MSI_QUEUE_SIZE) >> capability::MSI_QUEUE_SHIFT > largest {
            flags &= !capability::MSI_QUEUE_SIZE;
            flags |= largest << capability::MSI_QUEUE_SHIFT;
        }
        self.put(start + capability::MSI_FLAGS, &flags.to_le_bytes());
    }

    /// D0 and D3hot are the states there are; asking for another leaves the state as it is.
    fn settle_power(&mut self, start: usize, written: u8) {
        let state = written & capability::PM_STATE;
        if state != 0 && matches!(&self.role, Role::Physical(sriov) if sriov.enabled() != 0) {
            // EBUSY, of which nobody learns (`vfio_pci_set_power_state`).
            return;
        }
        if state == 0 || state == capability::PM_STATE_D3HOT {
            let control = &mut self.bytes[start + capability::PM_CONTROL];
            *control = *control & !capability::PM_STATE | state;
        }
    }

    fn take_reset_bit(&mut self, start: usize) -> bool {
        let control = self.word(start + capability::EXP_CONTROL);
        let asked = control & capability::EXP_CONTROL_FLR != 0;
        self.put(
            start + capability::EXP_CONTROL,
            &(control & !capability::EXP_CONTROL_FLR).to_le_bytes(),
        );
        asked
    }

    /// A reset brings the function to D0; all else is saved and restored around it, as Linux does.
    pub(crate) fn reset(&mut self) {
        if let Some(start) = self.find(Kind::PowerManagement) {
            self.bytes[start + capability::PM_CONTROL] &= !capability::PM_STATE;
        }
    }

    /// The function lost what COMMAND let it do.
    pub(crate) fn stop_mastering(&mut self) {
        let command = self.command() & !COMMAND_MASTER;
        self.put(COMMAND, &command.to_le_bytes());
    }

    /// Notes which kind of interrupt `VFIO_DEVICE_SET_IRQS` enabled. MSI-X's enable bit follows it.
    pub(crate) fn set_irq_mode(&mut self, mode: IrqMode) {
        self.irq_mode = mode;
        if let Some(start) = self.find(Kind::Msix) {
            let mut flags = self.word(start + capability::MSIX_FLAGS) & !capability::MSIX_ENABLE;
            if mode == IrqMode::Msix {
                flags |= capability::MSIX_ENABLE;
            }
            self.put(start + capability::MSIX_FLAGS, &flags.to_le_bytes());
        }
    }

    pub(crate) fn irq_mode(&self) -> IrqMode {
        self.irq_mode
    }
}

fn checked_start(offset: u64, length: usize) -> Result<usize> {
    let outside = Error::at(Errno::EFAULT, "access past the end of configuration space", offset);
    let start = usize::try_from(offset).map_err(|_| outside)?;
    match start.checked_add(length) {
        Some(end) if end <= CONFIG_SIZE => Ok(start),
        _ => Err(outside),
    }
}

#[cfg(test)]
mod tests;
