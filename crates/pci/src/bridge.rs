//! Functions without a model: the host bridge, and the root ports above endpoints. They are there to be looked at: what they are is
//! their configuration space, which nobody writes.

use std::ops::RangeInclusive;

use crate::CONFIG_SIZE;
use crate::address::Bdf;
use crate::capability::{EXP_LINK, EXP_LINK_SPEEDS, EXP_LINK_TARGET};
use crate::description::Ids;

/// Red Hat, whose QEMU has bridges of these kinds.
const VENDOR: u16 = 0x1b36;
/// "QEMU PCIe Host bridge" and "QEMU PCIe Root port".
const HOST_BRIDGE: u16 = 0x0008;
const ROOT_PORT: u16 = 0x000c;
/// Bridges: host, and PCI to PCI (PCI Code and ID Assignment 1.11, 1.7).
const CLASS_HOST: u32 = 0x06_00_00;
const CLASS_PORT: u32 = 0x06_04_00;

// Type 1 header, PCI-to-PCI Bridge Architecture 1.2, 3.2.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const SECONDARY_BUS: usize = 0x19;
const SUBORDINATE_BUS: usize = 0x1a;
const IO_BASE: usize = 0x1c;
const MEMORY_BASE: usize = 0x20;
const PREFETCHABLE_BASE: usize = 0x24;
const PREFETCHABLE_BASE_UPPER: usize = 0x28;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_PIN: usize = 0x3d;
const TYPE_BRIDGE: u8 = 1;
const MULTI_FUNCTION: u8 = 1 << 7;
/// I/O, memory and bus mastering: the firmware turned them on.
const COMMAND_ON: u16 = 7;
const COMMAND_MEMORY_MASTER: u16 = 6;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Windows of 32-bit I/O and 64-bit prefetchable addresses.
const WINDOW_IO_32: u8 = 1;
const WINDOW_64: u16 = 1;

// PCI Express 6.0, 7.5.3 and 7.7.8.
const EXPRESS: usize = 0x40;
/// Capability 10h, at the end of the list; version 2, root port of a root complex.
const EXPRESS_HEADER: u32 = 0x10 | 2 << 16 | 4 << 20;
/// Role-based error reporting, payloads of 256 bytes.
const EXPRESS_CAPABILITIES: u32 = 1 << 15 | 1;
const LINK_PORT_SHIFT: u32 = 24;
const ACS: usize = 0x100;
/// Extended capability Dh, version 1, the only one.
const ACS_HEADER: u32 = 0x0d | 1 << 16;
/// Source validation, translation blocking, redirection of requests and completions, upstream forwarding.
const ACS_CAPABILITIES: u16 = 0b1_1111;
/// What Linux turns on (`pci_std_enable_acs`): all but translation blocking, which it leaves to devices that are not trusted.
const ACS_ON: u16 = 0b1_1101;

/// What a root port lets through to the bus below it; `None` is a closed window.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// I/O ports, in units of 4 KiB.
    pub io: Option<RangeInclusive<u64>>,
    /// Memory below 4 GiB, in units of 1 MiB.
    pub memory: Option<RangeInclusive<u64>>,
    /// Prefetchable memory, in units of 1 MiB.
    pub prefetchable: Option<RangeInclusive<u64>>,
}

/// A bridge.
#[derive(Clone, Debug)]
pub struct Bridge {
    /// Who it is.
    pub ids: Ids,
    /// Its configuration space.
    pub config: Vec<u8>,
}

fn put(config: &mut [u8], offset: usize, value: &[u8]) {
    config[offset..offset + value.len()].copy_from_slice(value);
}

impl Bridge {
    fn new(device: u16, class: u32) -> Self {
        let ids = Ids {
            vendor: VENDOR,
            device,
            subsystem_vendor: 0,
            subsystem_device: 0,
            class,
            revision: 0,
        };
        let mut config = vec![0; CONFIG_SIZE];
        put(&mut config, 0, &VENDOR.to_le_bytes());
        put(&mut config, 2, &device.to_le_bytes());
        put(&mut config, 9, &class.to_le_bytes()[..3]);
        Self { ids, config }
    }

    /// The host bridge.
    #[must_use]
    pub fn host() -> Self {
        let mut bridge = Self::new(HOST_BRIDGE, CLASS_HOST);
        put(&mut bridge.config, COMMAND, &COMMAND_MEMORY_MASTER.to_le_bytes());
        bridge
    }

    /// The root port at `address`, above bus `secondary`.
    #[must_use]
    pub fn root_port(address: Bdf, secondary: u8, opening: &Opening) -> Self {
        let mut bridge = Self::new(ROOT_PORT, CLASS_PORT);
        let config = &mut bridge.config;
        put(config, COMMAND, &COMMAND_ON.to_le_bytes());
        put(config, STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        // Any slot may have several; whoever looks finds no function where there is none.
        config[HEADER_TYPE] = TYPE_BRIDGE | MULTI_FUNCTION;
        config[SECONDARY_BUS] = secondary;
        config[SUBORDINATE_BUS] = secondary;
        open_windows(config, opening);
        config[CAPABILITIES_POINTER] = u8::try_from(EXPRESS).expect("in the first 256 bytes");
        config[INTERRUPT_PIN] = 1;
        let port = u32::from(address.devfn());
        for (offset, value) in [
            (0, EXPRESS_HEADER),
            (4, EXPRESS_CAPABILITIES),
            (12, EXP_LINK | port << LINK_PORT_SHIFT),
            (16, EXP_LINK << 16),
            (44, EXP_LINK_SPEEDS),
            (48, EXP_LINK_TARGET),
        ] {
            put(config, EXPRESS + offset, &u32::to_le_bytes(value));
        }
        put(config, ACS, &ACS_HEADER.to_le_bytes());
        put(config, ACS + 4, &ACS_CAPABILITIES.to_le_bytes());
        put(config, ACS + 6, &ACS_ON.to_le_bytes());
        bridge
    }
}

/// Base and limit of each window; a base above its limit closes it.
fn open_windows(config: &mut [u8], opening: &Opening) {
    let ends = |window: &Option<RangeInclusive<u64>>, unit: u32| {
        let (start, last) = window.as_ref().map_or((u64::MAX, 0), |w| (*w.start(), *w.end()));
        (start >> unit, last >> unit)
    };
    let (start, last) = ends(&opening.io, 12);
    let io = |page: u64| u8::try_from(page & 0xf).expect("4 bits") << 4 | WINDOW_IO_32;
    put(config, IO_BASE, &[io(start), io(last)]);
    let page = |page: u64| u16::try_from(page & 0xfff).expect("12 bits") << 4;
    let (start, last) = ends(&opening.memory, 20);
    put(config, MEMORY_BASE, &page(start).to_le_bytes());
    put(config, MEMORY_BASE + 2, &page(last).to_le_bytes());
    let (start, last) = ends(&opening.prefetchable, 20);
    put(config, PREFETCHABLE_BASE, &(page(start) | WINDOW_64).to_le_bytes());
    put(config, PREFETCHABLE_BASE + 2, &(page(last) | WINDOW_64).to_le_bytes());
    let upper = |page: u64| u32::try_from(page >> 12 & 0xffff_ffff).expect("32 bits");
    let closed = opening.prefetchable.is_none();
    let upper_start = if closed { 0 } else { upper(start) };
    put(config, PREFETCHABLE_BASE_UPPER, &upper_start.to_le_bytes());
    put(config, PREFETCHABLE_BASE_UPPER + 4, &upper(last).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(config: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([config[at], config[at + 1]])
    }

    fn port(opening: &Opening) -> Vec<u8> {
        Bridge::root_port(Bdf::new(0, 0, 2, 0).expect("an address"), 7, opening).config
    }

    #[test]
    fn a_root_port_says_which_bus_is_below_it_and_that_it_isolates() {
        let config = port(&Opening::default());
        assert_eq!(config.len(), 4096);
        assert_eq!(config[..4], [0x36, 0x1b, 0x0c, 0x00]);
        assert_eq!(config[0x0a..0x0c], [0x04, 0x06]);
        assert_eq!(config[0x0e] & 0x7f, 1, "a type 1 header");
        assert_eq!(config[0x18..0x1b], [0, 7, 7]);
        assert_eq!(config[0x34], 0x40);
        assert_eq!(word(&config, 0x42), 0x42, "a root port, version 2");
        assert_eq!(word(&config, 0x52), 0x43, "8 GT/s on four lanes");
        assert_eq!(word(&config, 0x70), 3, "the target is the speed there is");
        assert_eq!(word(&config, 0x100), 0x000d);
        assert_eq!((word(&config, 0x104), word(&config, 0x106)), (0x1f, 0x1d));
    }

    #[test]
    fn windows_are_open_where_something_is_below_and_closed_elsewhere() {
        let config = port(&Opening {
            io: Some(0xc000..=0xcfff),
            memory: Some(0xc010_0000..=0xc02f_ffff),
            prefetchable: Some(0x38_0000_0000..=0x38_000f_ffff),
        });
        assert_eq!(config[0x1c..0x1e], [0xc1, 0xc1]);
        assert_eq!((word(&config, 0x20), word(&config, 0x22)), (0xc010, 0xc020));
        assert_eq!((word(&config, 0x24), word(&config, 0x26)), (0x0001, 0x0001));
        assert_eq!((config[0x28], config[0x2c]), (0x38, 0x38));
        let closed = port(&Opening::default());
        assert!(closed[0x1c] > closed[0x1d]);
        assert!(word(&closed, 0x20) > word(&closed, 0x22));
        assert!(word(&closed, 0x24) > word(&closed, 0x26));
        assert_eq!((closed[0x28..0x30]), [0; 8]);
    }

    #[test]
    fn the_host_bridge_is_no_pci_express_function() {
        let bridge = Bridge::host();
        assert_eq!(bridge.ids.class, 0x06_0000);
        assert_eq!(bridge.config[0x0e], 0);
        assert_eq!((bridge.config[0x34], word(&bridge.config, 6) & 0x10), (0, 0));
    }
}
