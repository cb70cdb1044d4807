//! A thread that has the device of a file system for itself, in a descriptor table of its own.
//!
//! A thread of this process that opens a file of our own file system, or asks anything of it, waits for an answer, and once
//! its request was read, no signal ends that (`request_wait_answer`, fs/fuse/dev.c). Were the process killed then, the thread
//! would hold up its end: it shares the table that holds the device, so that the device is not closed, and only its close
//! would end the request. A program was seen waiting for ever for a supervisor that could not die. With a table of its
//! own, the thread here dies at once, the kernel closes the device with its table, and answers all that wait.
//!
//! What the kernel shall forget is told it by a second thread, as it may wait for the answer to a request
//! (`fuse_reverse_inval_entry`, fs/fuse/dir.c, takes a directory's lock). It shares the table of the first one, and would keep
//! the device open in the one moment in which it is killed while it waits.
//!
//! Invariant: from [`Apart::start`] on no other thread has the device, and nothing that the first thread does waits for
//! anybody.
//!
//! Lock order: `Post::mail` is a leaf.

#![expect(unsafe_code, reason = "close_range(2), and a descriptor of another table")]

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use ioasis_uapi::{Errno, Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use crate::because;
use crate::errno::last_errno;
use crate::sync::{Condvar, Mutex};

/// Requests that are kept here at most; the others wait in the kernel. What one asks is at most a megabyte long.
const KEPT: usize = 32;

/// Where the thread is reached.
#[derive(Debug)]
pub(super) struct Apart {
    post: Arc<Post>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Post {
    mail: Mutex<Mail>,
    /// The device was read, or is gone; something was forgotten.
    done: Condvar,
    /// Something is to be forgotten, or the thread ends.
    forget: Condvar,
    /// Readable when there is something for the thread to do.
    ring: OwnedFd,
    /// Readable when a request has arrived, or the file system is gone.
    arrived: OwnedFd,
}

#[derive(Debug, Default)]
struct Mail {
    requests: VecDeque<Vec<u8>>,
    replies: VecDeque<Vec<u8>>,
    /// How often the device was asked to be read, and how often that was done.
    asked: u64,
    done: u64,
    /// What the kernel shall forget, how much that ever was, and how much of it is done.
    notices: VecDeque<Vec<u8>>,
    told: u64,
    forgotten: u64,
    /// Whether the last reading left nothing in the kernel.
    is_all: bool,
    is_gone: bool,
    ends: bool,
}

impl Apart {
    /// Gives the device to a thread of its own.
    ///
    /// # Errors
    ///
    /// `EMFILE`; `EAGAIN` if the system has no thread left; what close_range(2) says.
    pub(super) fn start(device: OwnedFd) -> Result<Self> {
        let bell = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(because("no eventfd to be had"))
        };
        let post = Post {
            mail: Mutex::default(),
            done: Condvar::new(),
            forget: Condvar::new(),
            ring: bell()?,
            arrived: bell()?,
        };
        let post = Arc::new(post);
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let theirs = Arc::clone(&post);
        let number = device.as_raw_fd();
        let builder = thread::Builder::new().name("fuse".to_owned());
        let thread = builder.spawn(move || {
            // SAFETY: 1. the owner waits below until this thread has a copy of the number in its own table, where nobody
            // closes it before the thread ends.
            let device = unsafe { BorrowedFd::borrow_raw(number) };
            let begun = own_table(&[device, theirs.ring.as_fd(), theirs.arrived.as_fd()]);
            if begun.is_err() {
                let _ = ready.send(begun);
                return;
            }
            thread::scope(|scope| {
                let builder = thread::Builder::new().name("forgetter".to_owned());
                let second = builder.spawn_scoped(scope, || theirs.forget_all(device));
                let second = second.map(drop).map_err(|_| no_thread());
                let is_begun = second.is_ok();
                let _ = ready.send(second);
                if is_begun {
                    theirs.carry(device);
                }
            });
        });
        let thread = thread.map_err(|_| no_thread())?;
        let begun = is_ready.recv();
        begun
            .map_err(|_| Error::new(Errno::EAGAIN, "the thread that serves files has ended"))??;
        // The device is closed in the table of the others.
        drop(device);
        Ok(Self { post, thread: Some(thread) })
    }

    /// Whether all that was asked up to now has been fetched; more waits in the kernel otherwise.
    ///
    /// # Errors
    ///
    /// `ENODEV` once the file system is gone.
    pub(super) fn fetch(&self) -> Result<bool> {
        let mut mail = self.post.mail.lock();
        mail.asked += 1;
        let number = mail.asked;
        drop(mail);
        ring(&self.post.ring);
        let mail = self.post.mail.lock();
        let mail = self.post.done.wait_while(mail, |mail| mail.done < number && !mail.is_gone);
        if mail.is_gone { Err(gone()) } else { Ok(mail.is_all) }
    }

    /// The next request that was fetched, into `buffer`: its length.
    ///
    /// # Errors
    ///
    /// `ENODEV` once the file system is gone and nothing is left.
    pub(super) fn next(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        silence(&self.post.arrived);
        let mut mail = self.post.mail.lock();
        let Some(request) = mail.requests.pop_front() else {
            return if mail.is_gone { Err(gone()) } else { Ok(None) };
        };
        if mail.requests.len() == KEPT - 1 {
            ring(&self.post.ring);
        }
        drop(mail);
        buffer[..request.len()].copy_from_slice(&request);
        Ok(Some(request.len()))
    }

    /// Sends a reply or a notice. It has arrived when what is fetched later was asked after it.
    pub(super) fn send(&self, message: Vec<u8>) {
        self.post.mail.lock().replies.push_back(message);
        ring(&self.post.ring);
    }

    /// Sends a notice of what to forget, and waits until that is forgotten.
    pub(super) fn forget(&self, notice: Vec<u8>) {
        let mut mail = self.post.mail.lock();
        mail.notices.push_back(notice);
        mail.told += 1;
        let number = mail.told;
        self.post.forget.notify_one();
        let goes_on = |mail: &mut Mail| mail.forgotten < number && !mail.is_gone;
        drop(self.post.done.wait_while(mail, goes_on));
    }

    /// Readable when a request has arrived, or the file system is gone.
    pub(super) fn arrived(&self) -> &OwnedFd {
        &self.post.arrived
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.post.mail.lock().ends = true;
        self.post.forget.notify_all();
        ring(&self.post.ring);
        let _ended = self.thread.take().map(thread::JoinHandle::join);
    }
}

impl Post {
    /// Sends notices of what to forget, one at a time, until it is told to end, or the file system is gone.
    fn forget_all(&self, device: BorrowedFd<'_>) {
        let mut mail = self.mail.lock();
        loop {
            let idle = |mail: &mut Mail| mail.notices.is_empty() && !mail.ends && !mail.is_gone;
            mail = self.forget.wait_while(mail, idle);
            let Some(notice) = mail.notices.pop_front() else { return };
            drop(mail);
            // ENOENT: nobody knows it.
            let _ = rustix::io::write(device, &notice);
            mail = self.mail.lock();
            mail.forgotten += 1;
            self.done.notify_all();
        }
    }

    /// Fetches requests and sends replies until it is told to end, or the file system is gone.
    fn carry(&self, device: BorrowedFd<'_>) {
        let mut buffer = super::Buffer::default().0;
        loop {
            silence(&self.ring);
            let mut mail = self.mail.lock();
            let (replies, asked) = (std::mem::take(&mut mail.replies), mail.asked);
            let (ends, room) = (mail.ends, KEPT.saturating_sub(mail.requests.len()));
            drop(mail);
            for reply in replies {
                // Whoever asked may have been killed meanwhile, which is nothing to us.
                let _ = rustix::io::write(device, &reply);
            }
            if ends {
                return;
            }
            let read = self.fetch_some(device, &mut buffer, room);
            let mut mail = self.mail.lock();
            (mail.done, mail.is_gone) = (asked, read.is_err());
            mail.is_all = read == Ok(true);
            let is_full = mail.requests.len() >= KEPT;
            if !mail.requests.is_empty() || mail.is_gone {
                ring(&self.arrived);
            }
            drop(mail);
            self.done.notify_all();
            if read.is_err() {
                self.forget.notify_all();
                return;
            }
            let mut polled =
                [PollFd::new(&self.ring, PollFlags::IN), PollFd::new(&device, PollFlags::IN)];
            let count = if is_full { 1 } else { 2 };
            let _ = rustix::event::poll(&mut polled[..count], None);
        }
    }

    /// Whether nothing is left in the kernel.
    fn fetch_some(
        &self,
        device: BorrowedFd<'_>,
        buffer: &mut [u8],
        room: usize,
    ) -> Result<bool, Errno> {
        for _ in 0..room {
            let Some(length) = super::read(device, buffer).map_err(|error| error.errno)? else {
                return Ok(true);
            };
            self.mail.lock().requests.push_back(buffer[..length].to_vec());
        }
        Ok(false)
    }
}

fn no_thread() -> Error {
    Error::new(Errno::EAGAIN, "no thread to serve files with")
}

fn gone() -> Error {
    Error::new(Errno::ENODEV, "the file system is gone")
}

fn ring(bell: &OwnedFd) {
    // At its end it is readable already.
    let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn silence(bell: &OwnedFd) {
    let _ = rustix::io::read(bell, &mut [0; 8]);
}

/// Gives the calling thread a descriptor table with nothing in it but `kept` and the standard three.
fn own_table(kept: &[BorrowedFd<'_>]) -> Result<()> {
    // Closes the last number there could be, in a table of this thread's own.
    // SAFETY: 1. close_range(2) touches no memory. 2. nothing that this thread uses afterwards was opened, or will be closed,
    // by another: it uses those in `kept`, whose owners outlive it.
    let answer = unsafe {
        libc::syscall(libc::SYS_close_range, u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE)
    };
    if answer != 0 {
        let why = "no descriptor table for the thread that serves files";
        return Err(Error::new(last_errno(), why));
    }
    crate::spawn::close_all_but(kept);
    Ok(())
}
