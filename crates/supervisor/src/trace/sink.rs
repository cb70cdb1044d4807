//! Where lines go, without ever waiting long for whoever reads them.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use ioasis_sys::because;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long the first line waits for a pipe or terminal that takes none. The lines after it do not wait at all until
/// it takes one again.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// A file, pipe or terminal.
#[derive(Debug)]
pub(crate) struct Sink {
    file: Mutex<Output>,
    /// The line that says how many are missing.
    missing: fn(u64) -> String,
}

#[derive(Debug)]
struct Output {
    file: File,
    /// Lines that found no room since the last one that did.
    dropped: u64,
}

impl Output {
    /// How long the next line waits for room.
    fn patience(&self) -> Timespec {
        if self.dropped == 0 { PATIENCE } else { Timespec { tv_sec: 0, tv_nsec: 0 } }
    }
}

impl Sink {
    pub(crate) fn stderr(missing: fn(u64) -> String) -> Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)
            .map_err(because("standard error is closed"))?;
        Ok(Self::new(File::from(fd), missing))
    }

    pub(crate) fn file(path: &Path, missing: fn(u64) -> String) -> Result<Self> {
        let file = File::create(path).map_err(|failure| {
            let errno = failure.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            Error::new(errno, "the file cannot be written")
        })?;
        Ok(Self::new(file, missing))
    }

    pub(crate) const fn new(file: File, missing: fn(u64) -> String) -> Self {
        Self { file: Mutex::new(Output { file, dropped: 0 }), missing }
    }

    /// Writes one line, at once. A reader that has stopped costs lines, not the client's progress; how many is said
    /// when it goes on.
    pub(crate) fn write(&self, line: &str) {
        let mut output = self.file.lock();
        let patience = output.patience();
        // A pipe that polls writable has room for PIPE_BUF bytes, and a terminal for some.
        let ready =
            poll(&mut [PollFd::new(&output.file, PollFlags::OUT)], Some(&patience)) == Ok(1);
        if !ready {
            output.dropped += 1;
            return;
        }
        let lost = match std::mem::take(&mut output.dropped) {
            0 => String::new(),
            lost => (self.missing)(lost),
        };
        // A reader that is gone takes nothing: not an event for the client.
        let _ = output.file.write_all(format!("{lost}{line}").as_bytes());
    }

    /// Says how many of the last lines are missing, if some are, to a reader that takes it within [`PATIENCE`].
    pub(crate) fn finish(&self) {
        let mut output = self.file.lock();
        let lost = std::mem::take(&mut output.dropped);
        let mut polled = [PollFd::new(&output.file, PollFlags::OUT)];
        if lost != 0 && poll(&mut polled, Some(&PATIENCE)) == Ok(1) {
            let _ = output.file.write_all((self.missing)(lost).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_reader_that_stops_costs_lines_and_is_told_how_many() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let sink = Sink::new(File::from(write), |lost| format!("{lost} lost\n"));
        let line = "x".repeat(4095) + "\n";
        let patience = || sink.file.lock().patience();
        assert_eq!(patience(), PATIENCE);
        for _ in 0..17 {
            sink.write(&line);
        }
        assert_eq!(patience(), Timespec { tv_sec: 0, tv_nsec: 0 }, "one line has waited");
        for _ in 17..100 {
            sink.write(&line);
        }
        let mut reader = File::from(read);
        let mut taken = vec![0; 16 * 4096];
        reader.read_exact(&mut taken).unwrap();
        sink.write("the end\n");
        assert_eq!(sink.file.lock().patience(), PATIENCE, "the reader goes on");
        drop(sink);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "84 lost\nthe end\n");
    }

    #[test]
    fn lines_that_are_missing_at_the_end_are_told_too() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let sink = Sink::new(File::from(write), |lost| format!("{lost} lost\n"));
        sink.file.lock().dropped = 3;
        sink.finish();
        sink.finish();
        drop(sink);
        let mut rest = String::new();
        File::from(read).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "3 lost\n");
    }
}
