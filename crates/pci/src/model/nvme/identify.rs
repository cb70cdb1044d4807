//! What Identify answers (NVMe 1.4, 5.15).

use super::features::{CRITICAL_TEMPERATURE_K, WARNING_TEMPERATURE_K};
use super::io::{MDTS, NAMESPACE};
use super::log::{ERROR_ENTRIES, FIRMWARE};
use super::registers::VERSION;

/// Bytes of every Identify data structure.
pub(super) const IDENTIFY_BYTES: usize = 4096;

/// PCI vendor and device: the ones under which QEMU's controller is known.
pub(super) const VENDOR: u16 = 0x1b36;
pub(super) const DEVICE: u16 = 0x0010;
pub(super) const SUBSYSTEM_VENDOR: u16 = 0x1af4;
pub(super) const SUBSYSTEM_DEVICE: u16 = 0x1100;

const MODEL_NUMBER: &str = "ioasis NVMe Controller";

/// The most Asynchronous Event Requests outstanding.
pub(super) const EVENT_REQUESTS: usize = 4;

/// Who the controller says it is.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// 1 to 20 printable ASCII characters.
    pub(super) serial: String,
    pub(super) uuid: [u8; 16],
}

impl Identity {
    /// The identity of a serial number: the same number gives the same UUID.
    pub(super) fn new(serial: String) -> Self {
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&hash(serial.as_bytes(), 1).to_be_bytes());
        uuid[8..].copy_from_slice(&hash(serial.as_bytes(), 2).to_be_bytes());
        // Version 8 (made by a rule of one's own) and the variant, RFC 9562, 5.8.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        Self { serial, uuid }
    }

    fn subsystem_name(&self) -> String {
        let hex: String = self.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let groups = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", groups.join("-"))
    }
}

/// FNV-1a with 64 bits: enough to tell images apart, and the same in every run.
pub(super) fn hash(bytes: &[u8], seed: u8) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(step(0xcbf2_9ce4_8422_2325, seed), |hash, &byte| step(hash, byte))
}

/// A 4 KiB structure that is filled field by field.
struct Fields(Box<[u8; IDENTIFY_BYTES]>);

impl Fields {
    fn new() -> Self {
        Self(Box::new([0; IDENTIFY_BYTES]))
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// ASCII padded with spaces (1.5).
    fn text(&mut self, offset: usize, width: usize, text: &str) {
        self.0[offset..offset + width].fill(b' ');
        self.put(offset, text.as_bytes());
    }
}

/// Identify Controller, figure 251.
pub(super) fn controller(identity: &Identity, bytes: u64) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut fields = Fields::new();
    fields.put(0, &VENDOR.to_le_bytes());
    fields.put(2, &SUBSYSTEM_VENDOR.to_le_bytes());
    fields.text(4, 20, &identity.serial);
    fields.text(24, 40, MODEL_NUMBER);
    fields.put(64, &FIRMWARE);
    fields.put(72, &[6]); // RAB: bursts of 64 commands
    fields.put(77, &[MDTS]);
    fields.put(80, &VERSION.to_le_bytes());
    fields.put(111, &[1]); // CNTRLTYPE: an I/O controller
    fields.put(258, &[3]); // ACL: four Abort commands, 0's based
    fields.put(259, &[u8::try_from(EVENT_REQUESTS - 1).expect("a small number")]); // AERL
    fields.put(260, &[0b0000_0011]); // FRMW: one slot, read-only
    fields.put(261, &[0b0000_0100]); // LPA: log pages can be read from an offset
    fields.put(262, &[u8::try_from(ERROR_ENTRIES - 1).expect("at most 256")]); // ELPE
    fields.put(266, &WARNING_TEMPERATURE_K.to_le_bytes());
    fields.put(268, &CRITICAL_TEMPERATURE_K.to_le_bytes());
    fields.put(280, &u128::from(bytes).to_le_bytes()); // TNVMCAP
    fields.put(512, &[0x66, 0x44]); // SQES, CQES: 64 and 16 bytes
    fields.put(516, &NAMESPACE.to_le_bytes()); // NN
    fields.put(520, &0b0001_1101_u16.to_le_bytes()); // ONCS: Compare, Dataset Management, Write Zeroes, Select
    fields.put(525, &[0b111]); // VWC: there is a cache; Flush takes FFFFFFFFh
    fields.put(768, identity.subsystem_name().as_bytes());
    fields.put(2048, &2500_u16.to_le_bytes()); // power state 0: 25 W
    fields.0
}

/// Identify Namespace, figure 249.
pub(super) fn namespace(bytes: u64, lba_lg2: u32, read_only: bool) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut fields = Fields::new();
    let blocks = (bytes >> lba_lg2).to_le_bytes();
    fields.put(0, &blocks); // NSZE
    fields.put(8, &blocks); // NCAP
    fields.put(16, &blocks); // NUSE
    fields.put(33, &[0b0000_1001]); // DLFEAT: deallocated blocks read 0, Write Zeroes can deallocate
    fields.put(99, &[u8::from(read_only)]); // NSATTR: write-protected
    fields.put(130, &[u8::try_from(lba_lg2).expect("9 or 12")]); // LBAF0: LBADS
    fields.0
}

/// The active namespaces above `after`, figure 252.
pub(super) fn active_namespaces(after: u32) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut fields = Fields::new();
    if after < NAMESPACE {
        fields.put(0, &NAMESPACE.to_le_bytes());
    }
    fields.0
}

/// The identification descriptors of the namespace, figure 253: its UUID.
pub(super) fn descriptors(identity: &Identity) -> Box<[u8; IDENTIFY_BYTES]> {
    let mut fields = Fields::new();
    fields.put(0, &[3, 16]); // NIDT: UUID; NIDL
    fields.put(4, &identity.uuid);
    fields.0
}
