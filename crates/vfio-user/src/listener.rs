//! Where clients find a server.

use std::fs::Permissions;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// A socket that clients find by its path, which goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the path: somebody else's that is there later is not ours to remove.
    identity: (u64, u64),
}

impl Listener {
    /// Makes the socket at `path`, for its owner alone. One that a server left behind is replaced;
    /// whether one lives is found out by a connection, which is dropped.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` where a server lives or where there is something that is no socket, and what
    /// the system answers.
    pub fn bind(path: &Path) -> Result<Self> {
        let address = SocketAddrUnix::new(path).map_err(Error::system("the socket's path"))?;
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() || is_alive(&address)? {
                return Err(Error::System { what: "bind", errno: Errno::ADDRINUSE });
            }
            std::fs::remove_file(path).map_err(Error::io("a socket that was left behind"))?;
        }
        let socket = stream()?;
        // What the file's mode will be, so that there is no moment in which it is another
        // (unix_bind_bsd).
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(Error::system("fchmod"))?;
        rustix::net::bind(&socket, &address).map_err(Error::system("bind"))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(Error::io("the socket's mode"))?;
        let found = std::fs::symlink_metadata(path).map_err(Error::io("the socket"))?;
        let listener = Self { socket, path: path.to_owned(), identity: (found.dev(), found.ino()) };
        rustix::net::listen(&listener.socket, 16).map_err(Error::system("listen"))?;
        Ok(listener)
    }

    /// Takes who connected; `None` when nobody did.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub fn accept(&self) -> Result<Option<OwnedFd>> {
        match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(Error::System { what: "accept", errno }),
        }
    }
}

fn stream() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(Error::system("socket"))
}

/// Whether somebody listens there.
fn is_alive(address: &SocketAddrUnix) -> Result<bool> {
    match rustix::net::connect(&stream()?, address) {
        // A full queue is somebody's, too.
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::System { what: "connect", errno }),
    }
}

impl AsFd for Listener {
    /// To be polled for input: somebody connected.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let found = std::fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
