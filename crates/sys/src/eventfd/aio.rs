//! Signalling an eventfd the way a driver does, from outside the kernel.
//!
//! A write to a blocking eventfd waits while its counter is at its end, and who owns the eventfd can put it there between
//! any check and the write. `eventfd_signal` in Linux's fs/eventfd.c never waits, and asynchronous I/O calls it for an
//! operation that names an eventfd (linux/aio_abi.h, `IOCB_FLAG_RESFD`). The operation is a read of nothing from
//! /dev/null, which is done before io_submit(2) returns.
#![expect(unsafe_code, reason = "asynchronous I/O takes pointers, and libc has no wrappers for it")]

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Operations between two collections of what they left.
const BATCH: u32 = 64;
/// `IOCB_FLAG_RESFD`.
const RESFD: u32 = 1;
/// `IOCB_CMD_PREAD`.
const PREAD: u16 = 0;

/// `struct iocb`, little endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<Event>() == 32);

/// A context of asynchronous I/O, one for each thread that signals.
struct Context {
    id: libc::c_ulong,
    null: File,
    submitted: u32,
}

thread_local! {
    /// None where the system has no asynchronous I/O, or no more contexts.
    static CONTEXT: RefCell<Option<Context>> = RefCell::new(Context::new());
}

/// Adds one to the counter of an eventfd, without ever waiting; whether that was possible.
pub(super) fn signal(eventfd: BorrowedFd<'_>) -> bool {
    let done = CONTEXT.try_with(|context| {
        context.borrow_mut().as_mut().is_some_and(|context| context.signal(eventfd))
    });
    done.unwrap_or(false)
}

impl Context {
    fn new() -> Option<Self> {
        let null = File::open("/dev/null").ok()?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: 1. the kernel writes one word to `id`, which outlives the call.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, BATCH, &raw mut id) };
        (made == 0).then_some(Self { id, null, submitted: 0 })
    }

    fn signal(&mut self, eventfd: BorrowedFd<'_>) -> bool {
        if self.submitted == BATCH {
            self.collect();
        }
        let iocb = Iocb {
            opcode: PREAD,
            fd: self.null.as_raw_fd().cast_unsigned(),
            flags: RESFD,
            resfd: eventfd.as_raw_fd().cast_unsigned(),
            ..Iocb::default()
        };
        let list = [&raw const iocb];
        // SAFETY: 1. the context is ours until it is dropped; 2. list and operation outlive the call, which copies
        // them; 3. the operation reads no byte, so that its null buffer is never used.
        let submitted = unsafe {
            libc::syscall(libc::SYS_io_submit, self.id, 1 as libc::c_long, list.as_ptr())
        };
        if submitted == 1 {
            self.submitted += 1;
        }
        submitted == 1
    }

    /// Makes room for the results of the next batch.
    fn collect(&mut self) {
        let mut events = [Event::default(); BATCH as usize];
        // SAFETY: 1. the context is ours until it is dropped; 2. the kernel writes at most as many events as the array
        // has; 3. a null timeout with a minimum of nothing does not wait.
        let got = unsafe {
            let (least, most): (libc::c_long, libc::c_long) = (0, BATCH.into());
            let none = std::ptr::null_mut::<libc::timespec>();
            libc::syscall(libc::SYS_io_getevents, self.id, least, most, events.as_mut_ptr(), none)
        };
        let got = u32::try_from(got).unwrap_or(0);
        self.submitted = self.submitted.saturating_sub(got);
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: 1. the context is ours and used no more; nothing in it is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}
