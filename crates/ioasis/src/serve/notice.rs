//! Who waits for a server to be ready, and how it is told.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, Result, ensure};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The descriptor `number` that this process was started with.
pub(super) fn inherited(number: i32) -> Result<File> {
    ensure!(number > 2, "--ready-fd {number} is one of the standard three");
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let found = pidfd_getfd(own.as_fd(), number, PidfdGetfdFlags::empty());
    Ok(File::from(found.with_context(|| format!("--ready-fd {number}"))?))
}

/// Writes a line to `ready` and closes it.
pub(super) fn write(mut ready: File) -> Result<()> {
    ready.write_all(b"READY=1\n").context("--ready-fd cannot be written")
}

/// Says `state` to the service manager, if there is one (sd_notify(3)).
pub(super) fn service_manager(state: &str) -> Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes() {
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let socket = UnixDatagram::unbound()?;
    let sent = address.and_then(|address| socket.send_to_addr(state.as_bytes(), &address));
    sent.with_context(|| format!("NOTIFY_SOCKET {} cannot be told", name.display()))?;
    Ok(())
}
