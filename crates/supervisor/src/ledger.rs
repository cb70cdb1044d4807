//! `--ledger`: who pinned how much memory, under which rule. Printed when the run ends, and whenever `ioasis run` gets
//! SIGUSR1.

use std::fmt::Write as _;
use std::path::Path;

use ioasis_iommufd::account::{Entry, Rule};
use ioasis_uapi::Result;

use crate::trace::sink::Sink;

/// Where the ledger is printed.
#[derive(Debug)]
pub struct Ledger {
    sink: Sink,
}

fn missing(times: u64) -> String {
    format!("the ledger was not printed {times} times: the reader was too slow\n")
}

impl Ledger {
    /// It is printed to standard error.
    ///
    /// # Errors
    ///
    /// `EBADF` if that is closed.
    pub fn stderr() -> Result<Self> {
        Ok(Self { sink: Sink::stderr(missing)? })
    }

    /// It is printed to the file `path`, which is emptied or made.
    ///
    /// # Errors
    ///
    /// The errno of opening it.
    pub fn file(path: &Path) -> Result<Self> {
        Ok(Self { sink: Sink::file(path, missing)? })
    }

    pub(crate) fn print(&self, entries: &[Entry]) {
        self.sink.write(&table(entries));
    }
}

/// The name of a process, as a line can hold it.
pub(crate) fn name(pid: u32) -> Option<String> {
    let text = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim_ascii_end().escape_ascii().to_string())
}

const fn rule(rule: Rule) -> &'static str {
    match rule {
        Rule::None => "none, CAP_IPC_LOCK",
        Rule::User => "user",
        Rule::Process => "process",
        Rule::Type1 => "process, type1",
        Rule::Type1Unlimited => "none, type1, CAP_IPC_LOCK",
        Rule::Ahead => "none, paid ahead",
    }
}

const KIB_PER_PAGE: u64 = 4;

fn table(entries: &[Entry]) -> String {
    let mut text = "pinned memory in KiB\n".to_owned();
    let _ = writeln!(
        text,
        "{:>8} {:>6} {:16} {:26} {:>10} {:>10} {:>10} {:>8}",
        "pid", "uid", "program", "limit by", "now", "most", "limit", "refused"
    );
    for entry in entries {
        let limit = match entry.limit {
            Some(pages) => pages.saturating_mul(KIB_PER_PAGE).to_string(),
            None => "none".to_owned(),
        };
        let _ = writeln!(
            text,
            "{:>8} {:>6} {:16} {:26} {:>10} {:>10} {:>10} {:>8}",
            entry.pid,
            entry.uid,
            entry.name.as_deref().unwrap_or("?"),
            rule(entry.rule),
            entry.pages * KIB_PER_PAGE,
            entry.peak * KIB_PER_PAGE,
            limit,
            entry.refused
        );
    }
    let now: u64 = entries.iter().map(|entry| entry.pages).sum();
    let _ = writeln!(text, "together {} KiB now", now * KIB_PER_PAGE);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_line_a_rule() {
        let entry = Entry {
            pid: 123,
            name: Some("qemu-img".to_owned()),
            uid: 1000,
            rule: Rule::Type1,
            pages: 3,
            peak: 2048,
            limit: Some(2048),
            refused: 2,
        };
        let free = Entry { rule: Rule::None, limit: None, name: None, refused: 0, ..entry.clone() };
        assert_eq!(
            table(&[entry, free]),
            "pinned memory in KiB
     pid    uid program          limit by                          now       most      limit  refused
     123   1000 qemu-img         process, type1                     12       8192       8192        2
     123   1000 ?                none, CAP_IPC_LOCK                 12       8192       none        0
together 24 KiB now
"
        );
    }

    #[test]
    fn a_name_cannot_break_a_line() {
        assert!(name(std::process::id()).is_some());
        assert_eq!(name(u32::MAX), None);
    }
}
