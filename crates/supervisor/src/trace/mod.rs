//! `--trace`: every VFIO and IOMMUFD call on a line of its own, decoded, with its result and, where it failed, the
//! reason in words.
//!
//! ```text
//! [pid 123] openat("/dev/vfio/vfio", O_RDWR|O_CLOEXEC) = 5
//! [pid 123] ioctl(5</dev/vfio/vfio>, VFIO_IOMMU_MAP_DMA, {argsz=32, flags=READ|WRITE, vaddr=0x7f1200000800,
//!           iova=0x0, size=0x1000}) = -1 EINVAL (vaddr is not page aligned: 0x7f1200000800)
//! [0000:01:00.0] interrupt MSI-X 1
//! ```
//!
//! Tables say which ioctl has which fields; nothing here knows what a call does. The argument is read once before
//! the call and once after it, for the line only: a client that changes it meanwhile confuses its own trace.

mod choice;
mod findings;
mod iommufd;
mod layout;
mod line;
mod row;
pub(crate) mod sink;
mod tail;
#[cfg(test)]
mod tests;
mod value;
mod vfio;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use ioasis_iommufd::faultlog::{FaultWatcher, RefusedDma};
use ioasis_iommufd::{IovaRange, Prot};
use ioasis_pci::Refusal;
use ioasis_uapi::{Error, Result};
use ioasis_vfio::{DeviceWatcher, InterruptKind};

use choice::{Clock, Counts, Seen};
use findings::Findings;
use layout::Argument;
use row::{Row, Shape};
use sink::Sink;
use value::Value;

pub use choice::{CLASSES, Filter, Stamp};
pub use line::{Access, Event, Interrupt, Map, Way};

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As strace writes them.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Which table of ioctls a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// /dev/iommu; answers the container ioctls too.
    Iommufd,
    /// /dev/vfio/vfio.
    Container,
    /// The same on a machine of POWER's, where two numbers mean something else.
    SpaprContainer,
    /// /dev/vfio/N.
    Group,
    /// A device, from a group or a cdev.
    Device,
    /// A virtual machine or its VFIO device.
    Kvm,
    /// A fault queue; answers no ioctl.
    FaultQueue,
    /// A queue of virtual events; answers no ioctl.
    EventQueue,
}

/// A file of the client's.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// The descriptor the call was made on.
    pub fd: i32,
    /// What was opened.
    pub path: &'a str,
    /// Which table of ioctls it has.
    pub kind: Kind,
}

/// Reads the client's memory: fills the buffer from the address, or answers `false`.
pub type Memory<'a> = &'a dyn Fn(u64, &mut [u8]) -> bool;

/// An ioctl that has been begun.
#[derive(Debug)]
#[must_use = "the line is written when the call ends"]
pub struct Begun {
    row: Option<&'static Row>,
    request: u32,
    argument: u64,
    before: Vec<u8>,
}

/// Where lines go. Any number of threads may write; each line is whole.
#[derive(Debug)]
pub struct Trace {
    /// Where lines go; nowhere, where only what went wrong is wanted.
    sink: Option<Sink>,
    format: Format,
    findings: Option<Findings>,
    shown: Filter,
    stamp: Stamp,
    clock: Clock,
    /// Calls are counted in place of being shown.
    counts: Option<Counts>,
}

/// Most bytes of an argument that are looked at.
const LONGEST: usize = 4096;

impl Trace {
    /// Lines go to standard error.
    ///
    /// # Errors
    ///
    /// `EBADF` if that is closed.
    pub fn stderr(format: Format) -> Result<Self> {
        Ok(Self::to(Some(Sink::stderr(missing(format))?), format))
    }

    /// Lines go to the file `path`, which is emptied or made.
    ///
    /// # Errors
    ///
    /// The errno of opening it.
    pub fn file(path: &Path, format: Format) -> Result<Self> {
        Ok(Self::to(Some(Sink::file(path, missing(format))?), format))
    }

    /// Nothing is written.
    #[must_use]
    pub fn quiet() -> Self {
        Self::to(None, Format::Text)
    }

    fn to(sink: Option<Sink>, format: Format) -> Self {
        Self {
            sink,
            format,
            findings: None,
            shown: Filter::default(),
            stamp: Stamp::None,
            clock: Clock::default(),
            counts: None,
        }
    }

    /// Shows only what `shown` lets through, with `stamp` before each line.
    #[must_use]
    pub fn with_lines(self, shown: Filter, stamp: Stamp) -> Self {
        Self { shown, stamp, ..self }
    }

    /// Counts calls, for a table at the end, in place of showing them.
    #[must_use]
    pub fn with_counts(self) -> Self {
        Self { counts: Some(Counts::default()), ..self }
    }

    /// Writes what is to be said at the end: the table of counts, and how many lines are missing.
    pub fn finish(&self) {
        let Some(sink) = &self.sink else { return };
        if let Some(counts) = &self.counts {
            sink.write(&counts.table());
        }
        sink.finish();
    }

    /// Keeps what goes wrong, too, for [`Trace::summary`].
    #[must_use]
    pub fn with_findings(self) -> Self {
        Self { findings: Some(Findings::default()), ..self }
    }

    /// What went wrong, at most ten lines, worst first, each with what to do about it; empty when nothing did.
    #[must_use]
    pub fn summary(&self) -> String {
        self.findings.as_ref().map_or_else(String::new, Findings::summary)
    }

    /// How many times a device could not reach memory or send a message, if that is kept.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.findings.as_ref().map_or(0, Findings::faults)
    }

    /// Nothing would come of what ends so.
    const fn passes_over<T>(&self, result: &Result<T>) -> bool {
        self.sink.is_none() && result.is_ok()
    }

    fn write(&self, line: &str) {
        let Some(sink) = &self.sink else { return };
        match (self.stamp, self.format) {
            (Stamp::None, _) => sink.write(line),
            (stamp, Format::Text) => sink.write(&format!("{}{line}", self.clock.text(stamp))),
            (stamp, Format::Json) => {
                let rest = line.strip_prefix('{').unwrap_or(line);
                sink.write(&format!("{{{}{rest}", Clock::json(stamp)));
            }
        }
    }

    /// Looks at the argument of an ioctl before it is executed.
    pub fn begin(&self, file: File<'_>, request: u32, argument: u64, memory: Memory<'_>) -> Begun {
        let row = find(file.kind, request);
        let read = |row| read(row, argument, memory);
        let before = row.filter(|_| self.sink.is_some()).map_or_else(Vec::new, read);
        Begun { row, request, argument, before }
    }

    /// Writes the line of an ioctl.
    pub fn end(
        &self,
        pid: u32,
        file: File<'_>,
        begun: &Begun,
        result: Result<i64>,
        memory: Memory<'_>,
    ) {
        if self.passes_over(&result) {
            return;
        }
        let after = begun.row.map_or_else(Vec::new, |row| read(row, begun.argument, memory));
        let name = match begun.row {
            Some(row) => Value::Name(row.name),
            None => Value::Plain(format!("_IO(';', {:#x})", begun.request & 0xff)),
        };
        let argument = Argument { before: &begun.before, after: &after, good: result.is_ok() };
        let shown = begun.row.map_or(Some(Value::Hex(begun.argument)), |row| {
            show(row, begun.argument, argument, memory)
        });
        let arguments = [("fd", opened(file.fd, file.path)), ("request", name)];
        let arguments: Vec<_> =
            arguments.into_iter().chain(shown.map(|shown| ("arg", shown))).collect();
        self.call(pid, "ioctl", &arguments, result, Returned::Number);
    }

    /// Writes the line of an open of one of our files.
    pub fn open(&self, pid: u32, path: &str, flags: u64, result: Result<i64>) {
        if self.passes_over(&result) {
            return;
        }
        let arguments =
            [("path", Value::Quoted(path.to_owned())), ("flags", line::open_flags(flags))];
        self.call(pid, "openat", &arguments, result, Returned::Number);
    }

    /// Writes the line of a pread or pwrite on a device.
    pub fn access(&self, pid: u32, file: File<'_>, access: &Access<'_>, result: Result<i64>) {
        if self.passes_over(&result) {
            return;
        }
        let arguments = [
            ("fd", opened(file.fd, file.path)),
            ("at", line::place(access.region, access.offset)),
            ("data", line::data(access, result.is_ok())),
            ("length", Value::Dec(access.length)),
        ];
        let name = if access.way == Way::Read { "pread" } else { "pwrite" };
        self.call(pid, name, &arguments, result, Returned::Number);
    }

    /// Writes the line of a read or write on a fault or event queue; `bytes` are what was moved.
    pub fn queue(&self, pid: u32, file: File<'_>, way: Way, bytes: &[u8], result: Result<i64>) {
        let arguments = [
            ("fd", opened(file.fd, file.path)),
            ("records", line::records(file.kind, way, bytes)),
            ("length", Value::Dec(bytes.len() as u64)),
        ];
        let name = if way == Way::Read { "read" } else { "write" };
        self.call(pid, name, &arguments, result, Returned::Number);
    }

    /// Writes the line of a mmap of a device: refused here, or left to the kernel, whose answer is not seen.
    pub fn mmap(&self, pid: u32, file: File<'_>, map: Map, result: Result<()>) {
        let arguments = [
            ("fd", opened(file.fd, file.path)),
            ("at", line::place(map.region, map.offset)),
            ("length", Value::Hex(map.length)),
            ("prot", line::protection(map.protection)),
            ("flags", line::map_flags(map.flags)),
        ];
        self.call(pid, "mmap", &arguments, result.map(|()| 0), Returned::Unseen);
    }

    /// Writes the line of any other call of the client that was answered here, such as a write to a sysfs file.
    pub fn other(&self, pid: u32, call: &str, path: &str, result: Result<i64>) {
        self.call(pid, call, &[("path", Value::Quoted(path.to_owned()))], result, Returned::Number);
    }

    /// Writes the line of a file of ours that was changed by a call nobody was asked about, and no longer is.
    pub fn undone(&self, path: &str) {
        let line = match self.format {
            Format::Text => format!("{path}: changed by a call that nobody answers, and undone\n"),
            Format::Json => line::undone_json(path),
        };
        self.write(&line);
    }

    /// Writes what a user may want to know of how the run goes.
    pub fn note(&self, text: &str) {
        let line = match self.format {
            Format::Text => format!("{text}\n"),
            Format::Json => line::note_json(text),
        };
        self.write(&line);
    }

    /// Writes the line of a step that failed because the client asked for it: the `nth` from then on.
    pub fn injected(&self, pid: u32, nth: u32, step: &str) {
        let line = match self.format {
            Format::Text => format!("[pid {pid}] fail-nth {nth}: {step} could not be had\n"),
            Format::Json => line::injected_json(pid, nth, step),
        };
        self.write(&line);
    }

    /// Writes the line of a call that was made to wait.
    pub(crate) fn delayed(&self, pid: u32, call: &str, delay: Duration) {
        let milliseconds = delay.as_millis();
        self.write(&match self.format {
            Format::Text => {
                format!("[pid {pid}] {call} waits {milliseconds} ms: injected by --inject\n")
            }
            Format::Json => {
                format!("{{\"pid\":{pid},\"injected\":\"{call}\",\"delay_ms\":{milliseconds}}}\n")
            }
        });
    }

    /// Writes the line of something a device did; `device` is its BDF.
    pub fn event(&self, device: &str, event: &Event) {
        if let Some(findings) = &self.findings {
            findings.event(device, event);
        }
        if self.sink.is_none() || self.counts.is_some() || !self.shown.shows_event(event) {
            return;
        }
        let mut line = String::new();
        match self.format {
            Format::Text => {
                let _ = writeln!(line, "[{device}] {event}");
            }
            Format::Json => line::event_json(device, event, &mut line),
        }
        self.write(&line);
    }

    fn call(
        &self,
        pid: u32,
        call: &str,
        arguments: &[(&'static str, Value)],
        result: Result<i64>,
        returned: Returned,
    ) {
        let plain = |index: usize| {
            let mut text = String::new();
            if let Some((_, value)) = arguments.get(index) {
                value.text(&mut text);
            }
            text
        };
        let is_ioctl = call == "ioctl";
        let name = if is_ioctl { plain(1) } else { call.to_owned() };
        if let (Some(findings), Err(error)) = (&self.findings, result) {
            findings.call(pid, (&name, &plain(0)), error);
        }
        if let Some(counts) = &self.counts {
            counts.add(&name, result.is_err());
        }
        let is_config = matches!(call, "pread" | "pwrite") && plain(1).starts_with("CONFIG");
        let seen = Seen { call: &name, is_ioctl, is_config, failed: result.is_err() };
        if self.sink.is_none() || self.counts.is_some() || !self.shown.shows_call(seen) {
            return;
        }
        let mut line = String::with_capacity(256);
        match self.format {
            Format::Text => line::call_text(pid, call, arguments, result, returned, &mut line),
            Format::Json => line::call_json(pid, call, arguments, result, &mut line),
        }
        self.write(&line);
    }
}

impl FaultWatcher for Trace {
    fn refused(&self, refused: &RefusedDma) {
        let ends = |range: IovaRange| (range.start().0, range.last().0);
        let fault = Event::DmaFault {
            way: if refused.need.contains(Prot::WRITE) { Way::Write } else { Way::Read },
            pasid: refused.pasid,
            iova: refused.iova.0,
            why: refused.reason.why(),
            nearest: refused.nearest.map(ends),
            unmapped: refused.unmapped.map(|(range, pid)| (range.start().0, range.last().0, pid)),
        };
        self.event(&refused.device, &fault);
    }
}

impl DeviceWatcher for Trace {
    fn interrupt(&self, device: &str, kind: InterruptKind, vector: u16) {
        let kind = match kind {
            InterruptKind::Intx => Interrupt::Intx,
            InterruptKind::Msi => Interrupt::Msi,
            InterruptKind::Msix => Interrupt::Msix,
            InterruptKind::Error => Interrupt::Error,
            InterruptKind::Request => Interrupt::Request,
        };
        self.event(device, &Event::Interrupt { kind, vector });
    }

    fn reset(&self, device: &str) {
        self.event(device, &Event::Reset);
    }

    fn refused(&self, device: &str, refusal: &Refusal) {
        self.event(device, &Event::Refused(*refusal));
    }
}

/// What stands in for lines that a slow reader did not take.
const fn missing(format: Format) -> fn(u64) -> String {
    match format {
        Format::Text => {
            |lost| format!("... {lost} lines are missing here: the reader was too slow\n")
        }
        Format::Json => |lost| format!("{{\"missing\":{lost}}}\n"),
    }
}

/// How a result is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returned {
    Number,
    /// The kernel went on with the call.
    Unseen,
}

/// A descriptor and what it leads to.
fn opened(fd: i32, path: &str) -> Value {
    Value::Plain(format!("{fd}<{path}>"))
}

/// The reason of a failure, with the value it speaks of.
fn reason(error: Error) -> String {
    match error.at {
        Some(at) if at < 4096 => format!("{}: {at}", error.why),
        Some(at) => format!("{}: {at:#x}", error.why),
        None => error.why.to_owned(),
    }
}

/// Whether there is a request of that name.
pub(crate) fn is_request(name: &str) -> bool {
    let tables: [&[Row]; 6] =
        [iommufd::TABLE, vfio::CONTAINER, vfio::SPAPR, vfio::GROUP, vfio::DEVICE, vfio::KVM];
    tables.iter().flat_map(|table| table.iter()).any(|row| row.name == name)
}

/// What an ioctl's request is called on a file of some kind.
pub(crate) fn request_name(kind: Kind, request: u32) -> Option<&'static str> {
    find(kind, request).map(|row| row.name)
}

/// The row of an ioctl on a file of some kind.
fn find(kind: Kind, request: u32) -> Option<&'static Row> {
    let tables: &[&[Row]] = match kind {
        Kind::Iommufd => &[iommufd::TABLE, vfio::CONTAINER],
        Kind::Container => &[vfio::CONTAINER],
        Kind::SpaprContainer => &[vfio::SPAPR, vfio::CONTAINER],
        Kind::Group => &[vfio::GROUP],
        Kind::Device => &[vfio::DEVICE],
        Kind::Kvm => &[vfio::KVM],
        Kind::FaultQueue | Kind::EventQueue => &[],
    };
    tables.iter().flat_map(|table| table.iter()).find(|row| row.request == request)
}

/// The bytes an argument leads to, as many as can be read and are looked at.
fn read(row: &Row, argument: u64, memory: Memory<'_>) -> Vec<u8> {
    match row.shape {
        Shape::Nothing | Shape::Choice(_) => Vec::new(),
        Shape::Fd => exactly(argument, 4, memory),
        Shape::Text => string(argument, memory),
        Shape::Struct(..) => {
            let size = layout::word(&exactly(argument, 4, memory), 0).unwrap_or(0);
            let size = usize::try_from(size).unwrap_or(LONGEST).min(LONGEST);
            let all = exactly(argument, size, memory);
            // A size that lies beyond what can be read: the size alone is worth showing.
            if all.is_empty() { exactly(argument, 4, memory) } else { all }
        }
    }
}

fn exactly(address: u64, length: usize, memory: Memory<'_>) -> Vec<u8> {
    let mut bytes = vec![0; length];
    if memory(address, &mut bytes) { bytes } else { Vec::new() }
}

/// A string, up to its NUL or to where memory ends.
fn string(address: u64, memory: Memory<'_>) -> Vec<u8> {
    const STEP: usize = 16;
    let mut all = Vec::new();
    while all.len() < 256 {
        let step = exactly(address.wrapping_add(all.len() as u64), STEP, memory);
        let end = step.iter().position(|&byte| byte == 0);
        all.extend_from_slice(&step[..end.unwrap_or(step.len())]);
        if end.is_some() || step.is_empty() {
            break;
        }
    }
    all
}

/// The argument as it is shown; `None` where there is none.
fn show(row: &Row, raw: u64, argument: Argument<'_>, memory: Memory<'_>) -> Option<Value> {
    let unreadable = || Some(Value::Hex(raw));
    match &row.shape {
        Shape::Nothing => None,
        Shape::Choice(names) => Some(layout::choice(raw, names)),
        Shape::Fd => match layout::word(argument.before, 0) {
            Some(fd) => Some(Value::List(vec![Value::Int(i64::from(fd.cast_signed()))], false)),
            None => unreadable(),
        },
        Shape::Text if argument.before.is_empty() => unreadable(),
        Shape::Text => Some(Value::Quoted(String::from_utf8_lossy(argument.before).into_owned())),
        Shape::Struct(..) if argument.before.is_empty() => unreadable(),
        Shape::Struct(fields, tail) => {
            let mut shown = layout::show(fields, argument);
            tail.show(argument, memory, &mut shown);
            Some(Value::Struct(shown))
        }
    }
}
