//! What /proc says of a thread.

use super::super::action::{self, Action};

pub(super) fn threads_of(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn status_field(path: &str, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned()))
}

pub(in crate::trap) fn status_number(tid: u32, field: &str) -> Option<u32> {
    status_field(&format!("/proc/{tid}/status"), field)?.parse().ok()
}

/// The real user of a thread.
pub(in crate::trap) fn user(tid: u32) -> Option<u32> {
    status_field(&format!("/proc/{tid}/status"), "Uid:")?.split_whitespace().next()?.parse().ok()
}

/// A set of signals in the status of a thread.
pub(super) fn status_word(pid: u32, tid: u32, field: &str) -> Option<u64> {
    let word = status_field(&format!("/proc/{pid}/task/{tid}/status"), field)?;
    u64::from_str_radix(&word, 16).ok()
}

/// Whether SIGSEGV has a handler.
pub(super) fn is_caught(pid: u32, tid: u32) -> bool {
    status_word(pid, tid, "SigCgt:").is_some_and(|caught| caught & action::SEGV != 0)
}

/// What becomes of SIGSEGV in a process that has just been seized; of a handler only that there is one.
pub(super) fn found_action(pid: u32) -> Action {
    let has = |field| status_word(pid, pid, field).is_some_and(|set| set & action::SEGV != 0);
    if has("SigIgn:") {
        Action::ignore()
    } else if has("SigCgt:") {
        Action::unknown_handler()
    } else {
        Action::default()
    }
}
