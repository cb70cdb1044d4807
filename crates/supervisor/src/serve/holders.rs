//! Whether programs of the run still have a file that one of them gave us open.
//!
//! The kernel tells nobody that all descriptors but ours are gone, so each is compared. A descriptor on its way through a socket, one
//! that a ring keeps, and one that was sent out of the run are not found.

use std::fs::DirEntry;
use std::os::fd::BorrowedFd;

use ioasis_sys::process::is_open_in;

use crate::watchdog::descendants;

/// Descriptors compared before the file is taken for open.
const DESCRIPTORS_MAX: usize = 1 << 17;

/// Whether any program of the run has `file` open.
pub(super) fn have_open(file: BorrowedFd<'_>) -> bool {
    let folder = |path: String| std::fs::read_dir(path).into_iter().flatten().flatten();
    // The threads of a process can have descriptors of their own.
    let tasks = descendants(&[])
        .into_iter()
        .flat_map(|pid| folder(format!("/proc/{pid}/task")))
        .filter_map(|task| number::<u32>(&task));
    let fds = tasks.flat_map(|tid| {
        let fds = folder(format!("/proc/{tid}/fd"));
        fds.filter_map(move |fd| Some((tid, number::<i32>(&fd)?)))
    });
    let mut compared = 0;
    fds.into_iter().any(|(tid, fd)| {
        compared += 1;
        compared > DESCRIPTORS_MAX || is_open_in(file, tid, fd)
    })
}

fn number<T: std::str::FromStr>(entry: &DirEntry) -> Option<T> {
    entry.file_name().to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_sys::eventfd::EventFd;
    use rustix::pipe::PipeFlags;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    #[test]
    fn a_file_is_open_as_long_as_a_child_has_it() {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        assert!(!have_open(writer.as_fd()), "nobody but this process");
        let duplicate = Stdio::from(writer.try_clone().unwrap());
        // A grandchild that waits for its standard input, with the pipe as its standard output.
        let mut child = Command::new("sh")
            .args(["-c", "cat > /dev/null; exit"])
            .stdin(Stdio::piped())
            .stdout(duplicate)
            .spawn()
            .unwrap();
        assert!(have_open(writer.as_fd()));
        assert!(!have_open(reader.as_fd()), "the other end is another file");
        assert!(!have_open(EventFd::create().unwrap().as_fd()));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!have_open(writer.as_fd()));
    }
}
