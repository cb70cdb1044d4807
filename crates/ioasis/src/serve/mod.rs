//! `ioasis serve`: a device model for whoever connects to a socket and speaks vfio-user.
//!
//! The main thread takes connections and signals. One client at a time has the device, on a thread
//! of its own; another is told so by the errno of its first message, and people by a line. The
//! device is as after power-on for each client.

mod device;
mod memory;
mod notice;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ioasis_pci::{Bdf, Function, Models, Refusal, Windows};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::signal::{self, SignalFd};
use ioasis_sys::sync::Mutex;
use ioasis_vfio::{DeviceWatcher, InterruptKind, Served};
use ioasis_vfio_user::{Errno, Error, Listener, Server};
use rustix::event::{PollFd, PollFlags};
use rustix::process::Signal;

use crate::machine::{Description, Translation};
use device::Session;

/// How long a client is waited for that owes something: the rest of a message, or an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// How long one is waited for that is to be told that the device is taken, and how many at once.
const REFUSAL_LIMIT: Duration = Duration::from_secs(1);
const REFUSALS: usize = 16;
/// Lines about what the device could not do, of all clients together: a client can cause any
/// number.
const REMARKS: usize = 100;

/// What `ioasis serve` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Serve {
    /// The device to serve: a model and its options, e.g. nvme,image=disk.img; `ioasis models`
    /// lists them
    #[arg(long, value_name = "MODEL[,key=value]...")]
    device: String,

    /// Where clients find it. The socket is its owner's alone; one that a server left behind is
    /// replaced
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Write a line to this descriptor, which this process was started with, when clients can
    /// connect, and close it
    #[arg(long, value_name = "FD")]
    ready_fd: Option<i32>,
}

/// A client that has the device.
struct Client {
    thread: JoinHandle<()>,
    /// Another descriptor of its connection.
    socket: OwnedFd,
    standing: Arc<Mutex<Standing>>,
    pid: String,
}

/// What is known of who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing yet.
    Unknown,
    /// It speaks the protocol.
    Client,
    /// Its thread has nothing left to do.
    Gone,
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(models: &Models, serve: &Serve) -> Result<ExitCode> {
    let ready = serve.ready_fd.map(notice::inherited).transpose()?;
    // Who waits for the end of --ready-fd must not wait for the number under which it came.
    ioasis_sys::spawn::close_inherited();
    let served = Arc::new(build(models, &serve.device)?);
    let listener = bind(&serve.socket)?;
    // Threads that are made from here on inherit what is blocked.
    let blocked = signal::Set::all_but(&signal::BROKEN);
    let previous = blocked.block();
    let signals = SignalFd::new(&blocked)?;
    if let Some(ready) = ready {
        notice::write(ready)?;
    }
    notice::service_manager("READY=1")?;
    let done = take_connections(&serve.socket, &served, &listener, &signals);
    let _ = notice::service_manager("STOPPING=1");
    // Nobody connects to a server that is about to end.
    drop(listener);
    let flushed = served.function().flush().context("what the device keeps cannot be flushed");
    previous.block();
    done.and(flushed).map(|()| ExitCode::SUCCESS)
}

/// The device, without a machine around it.
fn build(models: &Models, text: &str) -> Result<Served> {
    let mut description = Description::default();
    description.add(text)?;
    let device = &description.devices[0];
    device.check(models.list())?;
    let placed = device.address.is_some() || device.group.is_some() || device.iommu != 0;
    let sends = device.pasid_bits != 0 || device.ats || device.pri;
    ensure!(
        !placed && !sends && device.translation == Translation::Iommu,
        "{}: address, group, iommu, pasid_bits, ats and pri are the client's business",
        device.place
    );
    let model =
        models.create(&device.model, &device.options).with_context(|| device.place.clone())?;
    let address = Bdf::new(0, 0, 0, 0).context("an address")?;
    let served = Served::new(Function::new(address, model, &mut Windows::default()));
    served.watch(&device.model, Arc::new(Remarks(AtomicUsize::new(0))));
    Ok(served)
}

fn bind(path: &Path) -> Result<Listener> {
    Listener::bind(path).map_err(|error| {
        let name = path.display();
        if error == (Error::System { what: "bind", errno: Errno::ADDRINUSE }) {
            return anyhow::anyhow!(
                "{name} is in use: a server listens there, or it is no socket. End that server, or choose another --socket"
            );
        }
        anyhow::anyhow!("{name}: {error}")
    })
}

/// Takes connections until a signal ends it.
fn take_connections(
    path: &Path,
    served: &Arc<Served>,
    listener: &Listener,
    signals: &SignalFd,
) -> Result<()> {
    let (changed, refusals) = (Arc::new(EventFd::create()?), Arc::new(AtomicUsize::new(0)));
    let mut client: Option<Client> = None;
    loop {
        // Whether who came first is a client shows soon; until then the next one waits.
        let undecided = client.as_ref().is_some_and(|client| client.stands(Standing::Unknown));
        let mut polled =
            vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&*changed, PollFlags::IN)];
        if !undecided {
            polled.push(PollFd::new(listener, PollFlags::IN));
        }
        match rustix::event::poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
        while let Some(arrived) = signals.next() {
            if [Signal::TERM, Signal::INT].map(Signal::as_raw).contains(&arrived.signal) {
                client.take().into_iter().for_each(Client::end);
                return Ok(());
            }
        }
        let _ = changed.take();
        if client.as_ref().is_some_and(|client| client.stands(Standing::Gone)) {
            client.take().into_iter().for_each(Client::end);
        }
        if undecided {
            continue;
        }
        let Some(socket) = listener.accept()? else { continue };
        let pid = pid_of(&socket);
        // Who has hung up has the device no more, even if its thread is not done yet.
        if client.as_ref().is_some_and(Client::has_hung_up) {
            client.take().into_iter().for_each(Client::end);
        }
        match &client {
            Some(client) => {
                let words =
                    format!("process {pid} was refused: process {} has the device", client.pid);
                say(path, &words);
                refuse(socket, &refusals);
            }
            None => client = begin(path, served, socket, &changed, pid),
        }
    }
}

impl Client {
    fn stands(&self, how: Standing) -> bool {
        *self.standing.lock() == how
    }

    fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = rustix::event::Timespec::default();
        matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1))
    }

    fn end(self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.thread.join();
    }
}

/// Gives the device to who connected.
fn begin(
    path: &Path,
    served: &Arc<Served>,
    socket: OwnedFd,
    changed: &Arc<EventFd>,
    pid: String,
) -> Option<Client> {
    let standing = Arc::new(Mutex::new(Standing::Unknown));
    let (path, name, told) = (path.to_owned(), pid.clone(), Arc::clone(&standing));
    let (served, changed) = (Arc::clone(served), Arc::clone(changed));
    let kept = socket.try_clone();
    let started = kept.and_then(|kept| {
        let run = move || {
            match serve(&served, socket, (&told, &changed)) {
                // A look whether anybody listens says nothing and goes.
                Ok(()) | Err(Error::Closed) => {}
                Err(error) => say(&path, &format!("process {name} was left: {error}")),
            }
            *told.lock() = Standing::Gone;
            changed.signal();
        };
        Ok((kept, thread::Builder::new().name("client".into()).spawn(run)?))
    });
    match started {
        Ok((socket, thread)) => Some(Client { thread, socket, standing, pid }),
        Err(error) => {
            eprintln!("ioasis: process {pid} cannot be served: {error}");
            None
        }
    }
}

/// Serves who connected until it goes; says when it turned out to be a client.
fn serve(
    served: &Served,
    socket: OwnedFd,
    (standing, changed): (&Mutex<Standing>, &EventFd),
) -> Result<(), Error> {
    let server = Server::new(socket, LIMIT)?;
    *standing.lock() = Standing::Client;
    changed.signal();
    let mut session = match Session::open(served, server.peer()) {
        Ok(session) => session,
        Err(error) => {
            eprintln!("ioasis: the device cannot be opened: {error:#}");
            return Ok(());
        }
    };
    server.serve(&mut session)
}

/// Tells who connected that the device is taken, without making anybody wait.
fn refuse(socket: OwnedFd, running: &Arc<AtomicUsize>) {
    if running.fetch_add(1, Ordering::AcqRel) >= REFUSALS {
        running.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let counted = Arc::clone(running);
    let started = thread::Builder::new().name("refusal".into()).spawn(move || {
        let _ = Server::refuse(socket, REFUSAL_LIMIT, Errno::BUSY);
        counted.fetch_sub(1, Ordering::AcqRel);
    });
    if started.is_err() {
        running.fetch_sub(1, Ordering::AcqRel);
    }
}

fn pid_of(socket: impl AsFd) -> String {
    let peer = rustix::net::sockopt::socket_peercred(socket);
    peer.map_or_else(|_| "unknown".to_owned(), |peer| peer.pid.as_raw_nonzero().to_string())
}

fn say(path: &Path, words: &str) {
    eprintln!("ioasis: {}: {words}", path.display());
}

/// Says what the device could not do, as far as it is the server's owner who can do something about
/// it.
#[derive(Debug)]
struct Remarks(AtomicUsize);

impl DeviceWatcher for Remarks {
    fn interrupt(&self, _: &str, _: InterruptKind, _: u16) {}

    fn reset(&self, _: &str) {}

    fn refused(&self, device: &str, refusal: &Refusal) {
        if matches!(refusal, Refusal::Image { .. })
            && self.0.fetch_add(1, Ordering::Relaxed) < REMARKS
        {
            eprintln!("ioasis: {device}: {refusal}: {}; {}", refusal.why(), refusal.remedy());
        }
    }
}
