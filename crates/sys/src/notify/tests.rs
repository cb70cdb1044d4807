use super::*;
use crate::seccomp::{Arch, Filter, Rule, no_new_privileges};
use crate::spawn::{Fork, fork, fork_with};
use std::sync::Arc;

/// getppid(2) and gettid(2), stopped.
fn filter() -> Filter {
    let rule = |number| Rule { arch: Arch::X86_64, number, when: &[] };
    Filter::new(&[
        rule(u32::try_from(libc::SYS_getppid).expect("a number")),
        rule(u32::try_from(libc::SYS_getpgrp).expect("a number")),
    ])
}

/// Runs `client` in a process under [`filter`] and `supervisor` in its parent, in a process of their own.
fn supervised(client: fn() -> i32, supervisor: fn(&Listener, &Slots) -> i32) -> Option<i32> {
    let outer = fork_with(|| {
        let slots = Slots::new(4, 2).expect("memory");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("sockets");
        match fork().expect("fork") {
            Fork::Child => {
                no_new_privileges().expect("always allowed");
                let listener = filter().install().expect("no listener yet");
                crate::message::send(&theirs, b"l", &[listener.as_fd()]).expect("the parent lives");
                drop(listener);
                crate::spawn::exit(client())
            }
            Fork::Parent(child) => {
                let (_, mut fds) = crate::message::receive(&ours, 16).expect("a listener");
                let listener = Listener::new(fds.pop().expect("a listener"));
                listener.wake_synchronously();
                let failed = supervisor(&listener, &slots);
                failed + 2 * child.wait().expect("a child").code().unwrap_or(50)
            }
        }
    });
    outer.expect("fork").wait().expect("a child").code()
}

fn getppid() -> i64 {
    // SAFETY: 1. getppid(2) takes no argument and touches no memory.
    unsafe { libc::syscall(libc::SYS_getppid) }
}

#[test]
fn a_call_is_received_answered_and_forgotten() {
    let client = || i32::from(getppid() != 12345);
    let supervisor = |listener: &Listener, slots: &Slots| {
        let call = slots.receive(listener, 2).expect("a call");
        let right = i64::from(call.number) == libc::SYS_getppid
            && call.arch == Arch::X86_64.raw()
            && slots.get(2) == Some(call)
            && listener.is_waiting(call.id);
        listener.answer(call.id, Answer::Value(12345)).expect("it waits");
        slots.clear(2);
        let gone = listener.answer(call.id, Answer::Value(1));
        i32::from(!right || slots.get(2).is_some() || gone.is_ok())
    };
    assert_eq!(supervised(client, supervisor), Some(0));
}

#[test]
fn an_error_and_a_continue_reach_the_caller() {
    let client = || {
        let refused = getppid() == -1 && crate::errno::last_errno() == Errno::ENODEV;
        i32::from(!refused || getppid() <= 1)
    };
    let supervisor = |listener: &Listener, slots: &Slots| {
        for answer in [Answer::Error(Errno::ENODEV), Answer::Continue] {
            let call = slots.receive(listener, 0).expect("a call");
            listener.answer(call.id, answer).expect("it waits");
        }
        0
    };
    assert_eq!(supervised(client, supervisor), Some(0));
}

#[test]
fn a_call_that_is_to_be_made_again_is_made_after_the_handler_of_a_signal() {
    static HANDLED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn handle(_: libc::c_int) {
        HANDLED.fetch_add(1, Ordering::SeqCst);
    }
    let client = || {
        let handler: extern "C" fn(libc::c_int) = handle;
        // SAFETY: 1. zeroes are a `sigaction` with an empty mask and no flags; 2. the handler counts and does nothing else.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = handler as libc::sighandler_t;
            libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        }
        i32::from(getppid() != 5 || HANDLED.load(Ordering::SeqCst) != 1)
    };
    let supervisor = |listener: &Listener, slots: &Slots| {
        let first = slots.receive(listener, 0).expect("a call");
        let pid = rustix::process::Pid::from_raw(first.tid.cast_signed()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("it is ours");
        listener.answer(first.id, Answer::Again).expect("it waits");
        let second = slots.receive(listener, 0).expect("the same call");
        listener.answer(second.id, Answer::Value(5)).expect("it waits");
        i32::from(first.number != second.number || first.id == second.id)
    };
    assert_eq!(supervised(client, supervisor), Some(0));
}

#[test]
fn a_file_arrives_with_the_answer() {
    let client = || {
        let Ok(fd) = i32::try_from(getppid()) else { return 1 };
        let mut byte = 0_u8;
        // SAFETY: 1. the buffer is one byte long, as the length says.
        let (length, flags) =
            unsafe { (libc::read(fd, (&raw mut byte).cast(), 1), libc::fcntl(fd, libc::F_GETFD)) };
        i32::from(length != 1 || byte != b'x' || flags != libc::FD_CLOEXEC)
    };
    let supervisor = |listener: &Listener, slots: &Slots| {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        std::io::Write::write_all(&mut writer, b"x").expect("room");
        let call = slots.receive(listener, 0).expect("a call");
        let fd =
            listener.answer_with_file(call.id, reader.as_fd(), OnExec::Close).expect("it waits");
        i32::from(fd < 3 || listener.is_waiting(call.id))
    };
    assert_eq!(supervised(client, supervisor), Some(0));
}

#[test]
fn what_a_killed_receiver_had_received_is_found_by_who_is_left() {
    let client = || i32::from(getppid() != 7);
    let supervisor = |listener: &Listener, slots: &Slots| {
        let receiver = fork_with(|| {
            slots.receive(listener, 3).expect("a call");
            crate::signal::die_of(libc::SIGKILL)
        });
        receiver.expect("fork").wait().expect("a child");
        let Some(call) = slots.get(3) else { return 1 };
        i32::from(listener.answer(call.id, Answer::Value(7)).is_err())
    };
    assert_eq!(supervised(client, supervisor), Some(0));
}

#[test]
fn words_lie_beside_the_slots_and_are_shared_with_a_child() {
    let slots = Arc::new(Slots::new(1, 2).expect("memory"));
    let child = fork_with(|| {
        slots.word(1).store(9, Ordering::SeqCst);
        0
    });
    child.expect("fork").wait().expect("a child");
    assert_eq!(
        (slots.word(0).load(Ordering::SeqCst), slots.word(1).load(Ordering::SeqCst)),
        (0, 9)
    );
    assert_eq!(slots.get(0), None);
}
