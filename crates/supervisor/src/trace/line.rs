//! From values to a line, and what a line shows besides ioctls.

use std::fmt::{self, Write as _};

use ioasis_pci::Refusal;
use ioasis_uapi::Result;
use ioasis_uapi::iommufd::{HwptPageResponse, HwptPgfault};
use ioasis_uapi::vfio::PCI_CONFIG_REGION_INDEX;

use super::layout::{Argument, Names, choice, flags, number, show};
use super::value::{Value, quote};
use super::{Kind, Returned, iommufd, reason, vfio};

/// The direction of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// pread.
    Read,
    /// pwrite.
    Write,
}

/// A pread or pwrite on a device.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Read or written.
    pub way: Way,
    /// `VFIO_PCI_*_REGION_INDEX`.
    pub region: u32,
    /// Offset within the region.
    pub offset: u64,
    /// The bytes moved; may be fewer than asked for.
    pub bytes: &'a [u8],
    /// Bytes asked for.
    pub length: u64,
}

/// A mmap of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// `VFIO_PCI_*_REGION_INDEX`.
    pub region: u32,
    /// Offset within the region.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `PROT_*`.
    pub protection: u64,
    /// `MAP_*`.
    pub flags: u64,
}

/// The kind of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// The line interrupt.
    Intx,
    /// A message.
    Msi,
    /// A message of the MSI-X table.
    Msix,
    /// The error eventfd.
    Error,
    /// The request eventfd: the device is wanted back.
    Request,
}

/// Something a device did by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An eventfd of the client's was written.
    Interrupt {
        /// Its kind.
        kind: Interrupt,
        /// Its number within the kind.
        vector: u16,
    },
    /// An access to memory that the I/O page table, or the memory behind it, refused.
    DmaFault {
        /// Read or write.
        way: Way,
        /// The PASID it used; 0 is none.
        pasid: u32,
        /// The first address that faulted.
        iova: u64,
        /// Why.
        why: &'static str,
        /// First and last address of the nearest mapping.
        nearest: Option<(u64, u64)>,
        /// First and last address of what was mapped there before, and the process that unmapped it.
        unmapped: Option<(u64, u64, u32)>,
    },
    /// Something it could not do, for another reason than a translation.
    Refused(Refusal),
    /// The device was reset.
    Reset,
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Intx => "INTx",
            Self::Msi => "MSI",
            Self::Msix => "MSI-X",
            Self::Error => "ERR",
            Self::Request => "REQ",
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Read { "read" } else { "write" })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt { kind: Interrupt::Intx, .. } => f.write_str("interrupt INTx"),
            Self::Interrupt { kind, vector } => write!(f, "interrupt {kind} {vector}"),
            Self::DmaFault { way, pasid, iova, why, nearest, unmapped } => {
                write!(f, "DMA {way} fault at iova {iova:#x}")?;
                if *pasid != 0 {
                    write!(f, " of PASID {pasid}")?;
                }
                write!(f, ": {why}")?;
                if let Some((start, last, pid)) = unmapped {
                    write!(f, "; {start:#x}-{last:#x} was unmapped by pid {pid}")?;
                }
                match nearest {
                    Some((start, last)) => {
                        write!(f, "; the nearest mapping is {start:#x}-{last:#x}")
                    }
                    None => Ok(()),
                }
            }
            Self::Refused(refusal) => {
                write!(f, "{refusal} refused: {}; {}", refusal.why(), refusal.remedy())
            }
            Self::Reset => f.write_str("reset"),
        }
    }
}

pub(super) fn call_text(
    pid: u32,
    call: &str,
    arguments: &[(&'static str, Value)],
    result: Result<i64>,
    returned: Returned,
    line: &mut String,
) {
    // Writing to a String cannot fail.
    let _ = write!(line, "[pid {pid}] {call}(");
    for (index, (_, value)) in arguments.iter().enumerate() {
        line.push_str(if index == 0 { "" } else { ", " });
        value.text(line);
    }
    let _ = match (result, returned) {
        (Ok(value), Returned::Number) => writeln!(line, ") = {value}"),
        (Ok(_), Returned::Unseen) => writeln!(line, ") = ?"),
        (Err(error), _) => writeln!(line, ") = -1 {} ({})", error.errno, reason(error)),
    };
}

pub(super) fn call_json(
    pid: u32,
    call: &str,
    arguments: &[(&'static str, Value)],
    result: Result<i64>,
    line: &mut String,
) {
    let _ = write!(line, "{{\"pid\":{pid},\"call\":\"{call}\"");
    for (name, value) in arguments {
        let _ = write!(line, ",\"{name}\":");
        value.json(line);
    }
    match result {
        Ok(value) => {
            let _ = write!(line, ",\"result\":{value}");
        }
        Err(error) => {
            let _ = write!(line, ",\"errno\":\"{}\",\"why\":", error.errno);
            quote(&reason(error), line);
        }
    }
    line.push_str("}\n");
}

pub(super) fn event_json(device: &str, event: &Event, line: &mut String) {
    line.push_str("{\"device\":");
    quote(device, line);
    let _ = match event {
        Event::Interrupt { kind, vector } => {
            write!(line, ",\"interrupt\":\"{kind}\",\"vector\":{vector}")
        }
        Event::DmaFault { way, pasid, iova, why, nearest, unmapped } => {
            let _ = write!(line, ",\"fault\":\"{way}\",\"iova\":\"{iova:#x}\",\"why\":\"{why}\"");
            if *pasid != 0 {
                let _ = write!(line, ",\"pasid\":{pasid}");
            }
            if let Some((start, last)) = nearest {
                let _ = write!(line, ",\"nearest\":[\"{start:#x}\",\"{last:#x}\"]");
            }
            if let Some((start, last, pid)) = unmapped {
                let _ = write!(
                    line,
                    ",\"unmapped\":[\"{start:#x}\",\"{last:#x}\"],\"unmapped_by\":{pid}"
                );
            }
            Ok(())
        }
        Event::Refused(refusal) => {
            let texts = [
                ("refused", refusal.to_string().into()),
                ("why", refusal.why()),
                ("remedy", refusal.remedy().into()),
            ];
            for (name, text) in texts {
                let _ = write!(line, ",\"{name}\":");
                quote(&text, line);
            }
            Ok(())
        }
        Event::Reset => write!(line, ",\"reset\":true"),
    };
    line.push_str("}\n");
}

/// A step that failed because the client `pid` asked for it.
pub(super) fn injected_json(pid: u32, nth: u32, step: &str) -> String {
    let mut line = format!("{{\"pid\":{pid},\"fail_nth\":{nth},\"step\":");
    quote(step, &mut line);
    line.push_str("}\n");
    line
}

/// A file that was changed by a call nobody was asked about, and no longer is.
pub(super) fn undone_json(path: &str) -> String {
    let mut line = "{\"path\":".to_owned();
    quote(path, &mut line);
    line.push_str(",\"undone\":true}\n");
    line
}

pub(super) fn note_json(text: &str) -> String {
    let mut line = "{\"note\":".to_owned();
    quote(text, &mut line);
    line.push_str("}\n");
    line
}

/// `open(2)` flags, x86-64.
pub(super) fn open_flags(bits: u64) -> Value {
    const ACCESS: u64 = 3;
    const FLAGS: Names = &[
        (0o100, "O_CREAT"),
        (0o200, "O_EXCL"),
        (0o400, "O_NOCTTY"),
        (0o1000, "O_TRUNC"),
        (0o2000, "O_APPEND"),
        (0o4000, "O_NONBLOCK"),
        (0o4_010_000, "O_SYNC"),
        (0o10_000, "O_DSYNC"),
        (0o100_000, "O_LARGEFILE"),
        (0o200_000, "O_DIRECTORY"),
        (0o400_000, "O_NOFOLLOW"),
        (0o2_000_000, "O_CLOEXEC"),
        (0o10_000_000, "O_PATH"),
    ];
    let access =
        ["O_RDONLY", "O_WRONLY", "O_RDWR"].get(usize::try_from(bits & ACCESS).unwrap_or(3));
    let Value::Flags(mut names, mut rest) = flags(bits & !ACCESS, FLAGS) else {
        return Value::Hex(bits);
    };
    match access {
        Some(name) => names.insert(0, name),
        None => rest |= bits & ACCESS,
    }
    Value::Flags(names, rest)
}

pub(super) fn protection(bits: u64) -> Value {
    if bits == 0 {
        return Value::Name("PROT_NONE");
    }
    flags(bits, &[(1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC")])
}

pub(super) fn map_flags(bits: u64) -> Value {
    // MAP_SHARED_VALIDATE is both bits of the type.
    const FLAGS: Names = &[
        (0x03, "MAP_SHARED_VALIDATE"),
        (0x01, "MAP_SHARED"),
        (0x02, "MAP_PRIVATE"),
        (0x10, "MAP_FIXED"),
        (0x2000, "MAP_LOCKED"),
        (0x8000, "MAP_POPULATE"),
        (0x4000, "MAP_NORESERVE"),
        (0x10_0000, "MAP_FIXED_NOREPLACE"),
    ];
    let Value::Flags(mut names, rest) = flags(bits, FLAGS) else { return Value::Hex(bits) };
    if bits & 3 == 3 {
        names.retain(|&name| name != "MAP_SHARED" && name != "MAP_PRIVATE");
    }
    Value::Flags(names, rest)
}

/// Registers of a type 0 configuration header (PCI Local Bus 3.0, 6.1).
const HEADER: Names = &[
    (0x00, "VENDOR_ID"),
    (0x02, "DEVICE_ID"),
    (0x04, "COMMAND"),
    (0x06, "STATUS"),
    (0x08, "REVISION"),
    (0x09, "CLASS"),
    (0x0c, "CACHE_LINE_SIZE"),
    (0x0d, "LATENCY_TIMER"),
    (0x0e, "HEADER_TYPE"),
    (0x10, "BAR0"),
    (0x14, "BAR1"),
    (0x18, "BAR2"),
    (0x1c, "BAR3"),
    (0x20, "BAR4"),
    (0x24, "BAR5"),
    (0x2c, "SUBSYSTEM_VENDOR_ID"),
    (0x2e, "SUBSYSTEM_ID"),
    (0x30, "ROM"),
    (0x34, "CAPABILITIES"),
    (0x3c, "INTERRUPT_LINE"),
    (0x3d, "INTERRUPT_PIN"),
];

/// Region and offset, with the register's name in configuration space.
pub(super) fn place(region: u32, offset: u64) -> Value {
    let name = match choice(u64::from(region), vfio::REGIONS) {
        Value::Name(name) => name.to_owned(),
        _ => format!("region {region}"),
    };
    let register = match choice(offset, HEADER) {
        Value::Name(register) if region == PCI_CONFIG_REGION_INDEX => format!(" {register}"),
        _ => String::new(),
    };
    Value::Plain(format!("{name}+{offset:#x}{register}"))
}

/// What a pread or pwrite moved: a number where it is the size of a register.
pub(super) fn data(access: &Access<'_>, good: bool) -> Value {
    const SHOWN: usize = 32;
    if access.way == Way::Read && !good {
        return Value::Plain("...".to_owned());
    }
    let bytes = access.bytes;
    if matches!(bytes.len(), 1 | 2 | 4 | 8) {
        let width = 2 + 2 * bytes.len();
        return Value::Plain(format!(
            "{:#0width$x}",
            number(bytes, 0, bytes.len()).unwrap_or_default()
        ));
    }
    let mut text: String = bytes.iter().take(SHOWN).map(|byte| format!("{byte:02x} ")).collect();
    text.truncate(text.trim_end().len());
    if bytes.len() > SHOWN {
        text.push_str(" ...");
    }
    Value::Plain(format!("[{text}]"))
}

/// What a read or write on a queue moved. The events of an event queue differ by hardware: the first one's header is
/// shown, and how many bytes follow it.
pub(super) fn records(kind: Kind, way: Way, bytes: &[u8]) -> Value {
    let (fields, size) = match (kind, way) {
        (Kind::FaultQueue, Way::Read) => (iommufd::PAGE_FAULT, size_of::<HwptPgfault>()),
        (Kind::FaultQueue, Way::Write) => (iommufd::PAGE_RESPONSE, size_of::<HwptPageResponse>()),
        _ => (iommufd::EVENT, bytes.len().max(1)),
    };
    let record =
        |bytes| Value::Struct(show(fields, Argument { before: bytes, after: bytes, good: true }));
    Value::List(bytes.chunks_exact(size).map(record).collect(), false)
}
