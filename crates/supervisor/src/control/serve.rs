//! Answers on the control socket: who may ask, how much, how long.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, sockopt};
use serde_json::{Value, json};

use super::socket::{Socket, shares_mounts};
use super::{FDS_MAX, REQUEST_MAX, VERSION, answer};
use crate::serve::Server;

/// Connections that are answered at once.
const CONNECTIONS: usize = 8;

/// How long a request may take to come, and an answer to go.
const PATIENCE: Duration = Duration::from_secs(2);

/// Generations between a process and the supervisor, at most: no client is further down.
const GENERATIONS: usize = 1 << 16;

/// What a run says of itself.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) name: String,
    /// Of `ioasis run`.
    pub(crate) pid: u32,
    pub(crate) command: Vec<String>,
    pub(crate) since: Instant,
}

/// The control socket of a run that goes on.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    about: Arc<About>,
}

impl Control {
    /// Takes the socket over, in the process that answers.
    pub(crate) fn new(socket: Socket, command: &[std::ffi::OsString], pid: u32) -> Self {
        let about = About {
            name: socket.name().to_owned(),
            pid,
            command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            since: Instant::now(),
        };
        Self { listener: socket.listener, about: Arc::new(about) }
    }

    /// Answers from now on, until this process ends.
    ///
    /// # Errors
    ///
    /// `EAGAIN` without a thread.
    pub(crate) fn start(self, server: &Arc<Server>) -> io::Result<()> {
        let server = Arc::clone(server);
        let thread = std::thread::Builder::new().name("control".into());
        thread.spawn(move || self.listen(&server)).map(drop)
    }

    fn listen(&self, server: &Arc<Server>) {
        let busy = Arc::new(AtomicUsize::new(0));
        loop {
            let Ok((stream, _)) = self.listener.accept() else {
                // No descriptor is left, say: there is no hurry.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            if busy.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS {
                busy.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (server, about, left) =
                (Arc::clone(server), Arc::clone(&self.about), Arc::clone(&busy));
            let serve = move || {
                connection(&stream, &about, &server);
                drop(stream);
                left.fetch_sub(1, Ordering::AcqRel);
            };
            let thread = std::thread::Builder::new().name("control-answer".into()).spawn(serve);
            if thread.is_err() {
                busy.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

/// One request, and its answer.
fn connection(stream: &UnixStream, about: &About, server: &Arc<Server>) {
    if let Err(why) = admit(stream) {
        let _ = reply(stream, &Err(why));
        return;
    }
    let answered = match receive(stream, Instant::now() + PATIENCE) {
        Ok((line, fds)) => request(&line, fds, about, server),
        Err(why) => Err(why),
    };
    let _ = reply(stream, &answered);
}

fn request(
    line: &[u8],
    fds: Vec<OwnedFd>,
    about: &About,
    server: &Arc<Server>,
) -> Result<Value, String> {
    let request: Value =
        serde_json::from_slice(line).map_err(|error| format!("no request: {error}"))?;
    if request["version"].as_u64() != Some(VERSION) {
        return Err(format!("this run understands requests of version {VERSION}"));
    }
    answer::answer(&request, fds, (about, server))
}

/// Whether who is at the other end may ask.
fn admit(stream: &UnixStream) -> Result<(), String> {
    let peer = sockopt::socket_peercred(stream).map_err(|error| error.to_string())?;
    let own = rustix::process::geteuid();
    if peer.uid != own && !peer.uid.is_root() {
        return Err("the run is another user's".to_owned());
    }
    let pid = peer.pid.as_raw_nonzero().get().unsigned_abs();
    if descends_from_this(pid) {
        return Err("a process of the run itself is not answered".to_owned());
    }
    // Root of the host reaches everything anyway, and may have reasons to be elsewhere.
    if !peer.uid.is_root() && !shares_mounts(pid) {
        return Err(
            "a process of another mount namespace, of another run perhaps, is not answered"
                .to_owned(),
        );
    }
    // Its number was its own as long as it was there.
    let mut polled = [PollFd::new(stream, PollFlags::RDHUP)];
    let _ = rustix::event::poll(&mut polled, Some(&Timespec::default()));
    if polled[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP) {
        return Err("who asked is gone".to_owned());
    }
    Ok(())
}

/// Whether `pid` is this process or descends from it, as every process of the run does; what cannot be found out is taken for
/// that.
fn descends_from_this(pid: u32) -> bool {
    let own = std::process::id();
    let mut pid = pid;
    for _ in 0..GENERATIONS {
        match pid {
            pid if pid == own => return true,
            0 | 1 => return false,
            _ => {}
        }
        let Some(parent) = parent(pid) else { return true };
        pid = parent;
    }
    true
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program may hold anything, but the last parenthesis is the kernel's.
    let after = stat.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(stat.get(after + 1..)?).ok()?;
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// A line, and the descriptors that came with it.
fn receive(stream: &UnixStream, until: Instant) -> Result<(Vec<u8>, Vec<OwnedFd>), String> {
    let (mut line, mut fds) = (Vec::new(), Vec::new());
    let mut piece = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("the request did not come in time".to_owned());
        }
        stream.set_read_timeout(Some(left)).map_err(|error| error.to_string())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [IoSliceMut::new(&mut piece)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let count = match rustix::net::recvmsg(stream.as_fd(), &mut buffer, &mut ancillary, flags) {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return Err("the request did not come in time".to_owned()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if count == 0 {
            return Err("the request has no end".to_owned());
        }
        if fds.len() > FDS_MAX {
            return Err(format!("a request comes with at most {FDS_MAX} descriptors"));
        }
        line.extend_from_slice(&piece[..count]);
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            line.truncate(end);
            return Ok((line, fds));
        }
        if line.len() > REQUEST_MAX {
            return Err(format!("a request has at most {REQUEST_MAX} bytes"));
        }
    }
}

fn reply(mut stream: &UnixStream, answered: &Result<Value, String>) -> io::Result<()> {
    let answer = match answered {
        Ok(value) => json!({ "version": VERSION, "answer": value }),
        Err(why) => json!({ "version": VERSION, "error": why }),
    };
    let mut text = answer.to_string().into_bytes();
    if text.len() >= super::ANSWER_MAX {
        text = json!({ "version": VERSION, "error": "the answer would be too long" })
            .to_string()
            .into();
    }
    text.push(b'\n');
    let until = Instant::now() + PATIENCE;
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_and_its_children_descend_from_it_and_its_parent_does_not() {
        assert!(descends_from_this(std::process::id()));
        let mut child =
            Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().expect("sleep");
        assert!(descends_from_this(child.id()));
        assert!(!descends_from_this(std::os::unix::process::parent_id()));
        child.kill().and_then(|()| child.wait()).expect("a child");
        assert!(descends_from_this(child.id()), "who cannot be found is not answered");
    }

    #[test]
    fn a_request_without_an_end_is_given_up() {
        let (ours, mut theirs) = UnixStream::pair().expect("sockets");
        let soon = || Instant::now() + Duration::from_millis(50);
        theirs.write_all(b"{\"version\":1").expect("written");
        assert_eq!(receive(&ours, soon()).unwrap_err(), "the request did not come in time");
        theirs.write_all(&vec![b' '; REQUEST_MAX + 1]).expect("written");
        let why = receive(&ours, Instant::now() + PATIENCE).unwrap_err();
        assert_eq!(why, "a request has at most 65536 bytes");
        drop(theirs);
    }

    #[test]
    fn a_line_comes_with_its_descriptors() {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let (_reader, writer) = io::pipe().expect("a pipe");
        ioasis_sys::message::send(theirs.as_fd(), b"{}\n", &[writer.as_fd()]).expect("sent");
        let (line, fds) = receive(&ours, Instant::now() + PATIENCE).expect("a request");
        assert_eq!((line.as_slice(), fds.len()), (b"{}".as_slice(), 1));
    }
}
