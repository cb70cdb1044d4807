//! A running `ioasis serve` of a disk.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A folder of a test's own.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Self {
        let name = format!("ioasis-serve-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("an UTF-8 path").to_owned()
    }

    pub(crate) fn socket(&self) -> String {
        self.path("socket")
    }

    /// `ioasis serve` with a device.
    pub(crate) fn command(&self, device: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
        command.args(["serve", "--device", device, "--socket", &self.socket()]);
        command
    }

    /// A server of an NVMe disk that is ready.
    pub(crate) fn serve(&self, options: &[&str]) -> Running {
        let image = self.path("disk.img");
        let device = [&[format!("nvme,image={image}").as_str()], options].concat().join(",");
        let mut child = self.command(&device).stderr(Stdio::piped()).spawn().expect("it starts");
        let socket = PathBuf::from(self.socket());
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if child.try_wait().expect("a child").is_some() {
                let mut words = String::new();
                let _ = child.stderr.take().expect("piped").read_to_string(&mut words);
                panic!("the server ended: {words}");
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Running { child, socket, image: image.into() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running server.
pub(crate) struct Running {
    child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) image: PathBuf,
}

impl Running {
    /// Ends it by a signal; answers what it said.
    pub(crate) fn end(mut self, signal: Signal) -> String {
        kill_process(Pid::from_child(&self.child), signal).expect("sent");
        let status = self.child.wait().expect("a child");
        let mut words = String::new();
        let stderr = self.child.stderr.take().expect("piped");
        let _ = std::io::BufReader::new(stderr).read_to_string(&mut words);
        assert!(status.success(), "{status}: {words}");
        words
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
