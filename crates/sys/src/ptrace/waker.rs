//! Gets a tracer out of its wait.

use std::sync::Once;

use super::Tracer;

/// The signal for it: none that the kernel or libc sends by themselves, and its handler does nothing.
fn signal() -> i32 {
    libc::SIGRTMIN()
}

/// Makes the wait of a tracer end.
#[derive(Clone, Copy, Debug)]
pub struct Waker {
    process: i32,
    thread: i32,
}

impl Tracer {
    /// A waker of this tracer's, for other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        static HANDLED: Once = Once::new();
        extern "C" fn nothing(_: libc::c_int) {}
        HANDLED.call_once(|| {
            let handler: extern "C" fn(libc::c_int) = nothing;
            // SAFETY: 1. zeroes are a `sigaction` with an empty mask and no flags: a wait that it interrupts is not begun
            // anew; 2. the handler touches nothing; 3. no other code of this program uses the signal.
            unsafe {
                let mut action = std::mem::zeroed::<libc::sigaction>();
                action.sa_sigaction = handler as libc::sighandler_t;
                libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
            }
        });
        // SAFETY: 1. the set is initialized before it is used, and lives across the call; 2. gettid has no arguments.
        unsafe {
            let mut only = std::mem::zeroed::<libc::sigset_t>();
            libc::sigaddset(&raw mut only, signal());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut());
            Waker { process: libc::getpid(), thread: libc::gettid() }
        }
    }
}

impl Waker {
    /// The thread that traces, as /proc names it.
    #[must_use]
    pub fn thread(&self) -> u32 {
        self.thread.unsigned_abs()
    }

    /// Ends a wait that the tracer is in. One that it is about to begin does not end: who has something to tell wakes it
    /// until it has been heard.
    pub fn wake(&self) {
        // SAFETY: 1. tgkill(2) touches no memory; 2. a number that has passed on within this process is a thread that blocks
        // the signal or is another tracer, for which it is one wait that ends early.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, signal()) };
    }
}

/// Keeps the stops of tracees and children from being told by SIGCHLD as well; their ends still are. For the whole process.
pub fn tell_ends_only() {
    // SAFETY: 1. zeroes are a `sigaction` with an empty mask; 2. the action is the default one, as it is without this.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_NOCLDSTOP;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
    }
}
