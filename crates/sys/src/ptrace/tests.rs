use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::spawn;
use ioasis_uapi::Errno;

/// Words that a forked process shares with this one.
fn shared_words() -> &'static [AtomicU64; 512] {
    // SAFETY: 1. a fresh mapping overlaps nothing; 2. it is never unmapped, and zeroes are such words.
    unsafe {
        let page = libc::mmap(
            ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        &*page.cast()
    }
}

fn child(run: impl FnOnce() -> i32) -> u32 {
    spawn::fork_with(run).expect("fork").id()
}

fn stop(tracer: &Tracer) -> Stop {
    loop {
        match tracer.wait() {
            Waited::Stop(stop) => return stop,
            Waited::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Waits for the end of the only tracee.
fn end(tracer: &Tracer, pid: u32) -> ExitStatus {
    loop {
        match tracer.wait() {
            Waited::Ended(tid, status) if tid == pid => return status,
            Waited::Stop(Stop { tid, event: Event::Exit }) => {
                // Killed meanwhile, it ends all the same.
                let _ = tracer.resume(tid, Resume::Continue, 0);
            }
            Waited::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

fn wait_until(holds: impl Fn() -> bool) {
    while !holds() {
        std::thread::yield_now();
    }
}

/// Sleeps until a signal comes, in the call whose instruction the registers then follow.
fn pause() {
    // SAFETY: 1. pause(2) has no arguments.
    unsafe { libc::syscall(libc::SYS_pause) };
}

fn is_asleep(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| text.contains(") S "))
}

fn kill(pid: u32, signal: i32) {
    let number = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process id");
    let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty());
    crate::signal::send(pidfd.expect("a child of ours"), signal).expect("it is ours");
}

#[test]
fn a_seized_thread_runs_on_until_it_is_interrupted_and_then_stands_still() {
    let words = shared_words();
    let pid = child(|| {
        while words[1].load(Ordering::Relaxed) == 0 {
            words[0].fetch_add(1, Ordering::Relaxed);
        }
        7
    });
    let tracer = Tracer::new();
    tracer.seize(pid, Follow::Alone).unwrap();
    let before = words[0].load(Ordering::Relaxed);
    wait_until(|| words[0].load(Ordering::Relaxed) > before + 1000);
    tracer.interrupt(pid).unwrap();
    assert_eq!(stop(&tracer), Stop { tid: pid, event: Event::Interrupted });
    let before = words[0].load(Ordering::Relaxed);
    let registers = tracer.registers(pid).unwrap();
    assert_eq!(tracer.registers(pid).unwrap(), registers);
    assert_eq!(words[0].load(Ordering::Relaxed), before);
    words[1].store(1, Ordering::Relaxed);
    tracer.resume(pid, Resume::Continue, 0).unwrap();
    assert_eq!(end(&tracer, pid).code(), Some(7));
    assert_eq!((tracer.wait(), spawn::wait_for(pid).is_err()), (Waited::Nobody, true));
}

#[test]
fn a_thread_has_one_tracer() {
    let pid = child(|| {
        pause();
        0
    });
    let tracer = Tracer::new();
    tracer.seize(pid, Follow::Alone).unwrap();
    let other = std::thread::spawn(move || {
        let refused = |result: Result<()>| result.unwrap_err().errno;
        let tracer = Tracer::new();
        (refused(tracer.seize(pid, Follow::Alone)), refused(tracer.interrupt(pid)))
    });
    assert_eq!(other.join().unwrap(), (Errno::EPERM, Errno::ESRCH));
    kill(pid, libc::SIGKILL);
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGKILL));
    assert_eq!(tracer.interrupt(pid).unwrap_err().errno, Errno::ESRCH);
}

/// A child that sleeps in pause(2), interrupted there.
fn interrupted_in_pause() -> (Tracer, u32) {
    let pid = child(|| {
        pause();
        0
    });
    wait_until(|| is_asleep(pid));
    let tracer = Tracer::new();
    tracer.seize(pid, Follow::Children).unwrap();
    tracer.interrupt(pid).unwrap();
    assert_eq!(stop(&tracer).event, Event::Interrupted);
    (tracer, pid)
}

#[test]
fn memory_is_peeked_at_where_it_is_mapped() {
    let (tracer, pid) = interrupted_in_pause();
    let registers = tracer.registers(pid).unwrap();
    let bytes = tracer.peek(pid, SystemCall::instruction_before(&registers)).unwrap();
    assert_eq!(bytes[..2], [0x0f, 0x05]);
    assert_eq!(tracer.peek(pid, 8).unwrap_err().errno, Errno::EIO);
    kill(pid, libc::SIGKILL);
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGKILL));
}

fn getpid(registers: &Registers) -> SystemCall {
    let instruction = SystemCall::instruction_before(registers);
    SystemCall { instruction, number: 39, args: [0; 6] }
}

#[test]
fn an_injected_call_is_made_and_leaves_no_trace() {
    let (tracer, pid) = interrupted_in_pause();
    tracer.set_signal_mask(pid, 1 << 5).unwrap();
    let before = (tracer.registers(pid).unwrap(), tracer.vectors(pid).unwrap());
    let outcome = Injection::make(&tracer, pid, getpid(&before.0)).unwrap();
    assert_eq!((outcome.result, outcome.signal), (Ok(pid.into()), 0));
    assert_eq!((tracer.registers(pid).unwrap(), tracer.vectors(pid).unwrap()), before);
    assert_eq!(tracer.signal_mask(pid).unwrap(), 1 << 5);
    let mut refused = getpid(&before.0);
    refused.number = 11;
    refused.args = [1, 1, 0, 0, 0, 0];
    let outcome = Injection::make(&tracer, pid, refused).unwrap();
    assert_eq!(outcome.result, Err(Errno::EINVAL));
    // The call it was in begins anew: it does not see the number that asks the kernel to do so.
    assert!(outcome.to_interrupt);
    tracer.interrupt(pid).unwrap();
    tracer.resume(pid, Resume::Continue, 0).unwrap();
    assert_eq!(stop(&tracer).event, Event::Interrupted);
    tracer.resume(pid, Resume::Continue, 0).unwrap();
    wait_until(|| is_asleep(pid));
    kill(pid, libc::SIGTERM);
    assert_eq!(stop(&tracer).event, Event::Signal(libc::SIGTERM));
    tracer.resume(pid, Resume::Continue, libc::SIGTERM).unwrap();
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGTERM));
}

#[test]
fn a_stop_signal_in_an_injected_call_stops_the_process_after_it() {
    let (tracer, pid) = interrupted_in_pause();
    kill(pid, libc::SIGSTOP);
    kill(pid, libc::SIGUSR1);
    let call = getpid(&tracer.registers(pid).unwrap());
    let outcome = Injection::make(&tracer, pid, call).unwrap();
    assert_eq!(outcome, Outcome { result: Ok(pid.into()), to_interrupt: true, signal: 0 });
    tracer.interrupt(pid).unwrap();
    tracer.resume(pid, Resume::Continue, 0).unwrap();
    assert_eq!(stop(&tracer).event, Event::Group(libc::SIGSTOP));
    tracer.listen(pid).unwrap();
    kill(pid, libc::SIGCONT);
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Signal(libc::SIGUSR1))) {
        events.push(stop(&tracer).event);
        let signal = match events.last() {
            Some(Event::Signal(signal)) => *signal,
            _ => 0,
        };
        tracer.resume(pid, Resume::Continue, signal).unwrap();
    }
    assert!(!events.contains(&Event::Group(libc::SIGSTOP)), "{events:?}");
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGUSR1));
}

#[test]
fn a_call_whose_instruction_is_gone_ends_with_the_fault_and_the_threads_own_registers() {
    let (tracer, pid) = interrupted_in_pause();
    let before = tracer.registers(pid).unwrap();
    let call = SystemCall { instruction: 8, number: 39, args: [0; 6] };
    let outcome = Injection::make(&tracer, pid, call).unwrap();
    assert_eq!((outcome.result, outcome.signal), (Err(Errno::EFAULT), libc::SIGSEGV));
    assert_eq!(tracer.registers(pid).unwrap(), before);
    kill(pid, libc::SIGKILL);
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGKILL));
}

#[test]
fn a_thread_killed_in_an_injected_call_is_given_up() {
    let (tracer, pid) = interrupted_in_pause();
    kill(pid, libc::SIGKILL);
    let call = SystemCall { instruction: 8, number: 34, args: [0; 6] };
    let begun = Injection::begin(&tracer, pid, call);
    drop(begun);
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGKILL));
}

#[test]
fn what_a_tracee_makes_is_seized_and_ends_as_it_would() {
    let words = shared_words();
    let pid = child(|| {
        wait_until(|| words[0].load(Ordering::Acquire) == 1);
        let thread = std::thread::spawn(|| 3);
        let inner = spawn::fork_with(|| 4).expect("fork");
        thread.join().expect("it returns") + inner.wait().expect("a child").code().unwrap_or(0)
    });
    let tracer = Tracer::new();
    tracer.seize(pid, Follow::Children).unwrap();
    words[0].store(1, Ordering::Release);
    let (mut made, mut seen, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let Stop { tid, event } = match tracer.wait() {
            Waited::Stop(stop) => stop,
            Waited::Ended(tid, status) => {
                ended.push((tid, status.code()));
                continue;
            }
            Waited::Interrupted => continue,
            Waited::Nobody => break,
        };
        let signal = match event {
            Event::Thread | Event::Process => {
                made.push(tracer.message(tid).unwrap());
                0
            }
            Event::Interrupted if tid != pid => {
                seen.push(tid);
                0
            }
            Event::Signal(signal) => signal,
            Event::Exit => 0,
            other => panic!("{tid} stops with {other:?}"),
        };
        tracer.resume(tid, Resume::Continue, signal).unwrap();
    }
    // The status of the tracee's own child reached the tracee, or it would not have ended with this one.
    assert!(ended.contains(&(pid, Some(7))), "{ended:?}");
    made.sort_unstable();
    seen.sort_unstable();
    assert_eq!((made.len(), &made), (2, &seen));
}

#[test]
fn a_fault_in_a_thread_that_blocks_its_signal_costs_it_the_mask_which_is_put_back() {
    const SEGV: u64 = 1 << (libc::SIGSEGV - 1);
    let words = shared_words();
    let at = words.as_ptr().addr() as u64;
    let pid = child(|| {
        crate::signal::Set::all_but(&[]).block();
        // SAFETY: 1. the page is this process's own, and nothing else uses the mapping in this copy of it.
        unsafe {
            let page = ptr::from_ref(words).cast_mut();
            libc::mprotect(page.cast(), 4096, libc::PROT_READ);
            pause_until_traced();
            (&raw mut (*page)[3]).cast::<u64>().write_volatile(5);
        }
        9
    });
    wait_until(|| is_asleep(pid));
    let tracer = Tracer::new();
    tracer.seize(pid, Follow::Alone).unwrap();
    tracer.interrupt(pid).unwrap();
    assert_eq!(stop(&tracer).event, Event::Interrupted);
    assert_eq!(tracer.signal_mask(pid).unwrap() & SEGV, SEGV);
    tracer.resume(pid, Resume::Continue, 0).unwrap();
    assert_eq!(stop(&tracer).event, Event::Signal(libc::SIGSEGV));
    let info = tracer.signal_info(pid).unwrap();
    let expected = SignalInfo { signal: libc::SIGSEGV, code: SEGV_ACCERR, address: at + 24 };
    assert_eq!(info, expected);
    let mask = tracer.signal_mask(pid).unwrap();
    assert_eq!(mask & SEGV, 0, "the kernel took it out");
    tracer.set_signal_mask(pid, mask | SEGV).unwrap();
    assert_eq!(tracer.signal_mask(pid).unwrap() & SEGV, SEGV);
    let changed = SignalInfo { code: SEGV_MAPERR, address: 0x1234_5678_9abc, ..info };
    tracer.set_signal_info(pid, changed).unwrap();
    assert_eq!(tracer.signal_info(pid).unwrap(), changed);
    // A signal that is blocked when it is delivered would be queued, and the fault come again.
    tracer.set_signal_mask(pid, mask).unwrap();
    tracer.resume(pid, Resume::Continue, libc::SIGSEGV).unwrap();
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGSEGV));
}

/// Sleeps until the interrupt of a tracer ends the sleep.
fn pause_until_traced() {
    let minute = libc::timespec { tv_sec: 60, tv_nsec: 0 };
    // SAFETY: 1. both live across the call, and zeroes are an empty set. Most calls would begin anew; this one does not.
    unsafe {
        let none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigtimedwait(&raw const none, ptr::null_mut(), &raw const minute);
    }
}

#[test]
fn vector_registers_are_set_as_they_are_read() {
    let (tracer, pid) = interrupted_in_pause();
    let mut vectors = tracer.vectors(pid).unwrap();
    let (count, bytes) = vectors.shape();
    for index in 0..count {
        let mut value = [0; 64];
        for (at, byte) in value[..bytes].iter_mut().enumerate() {
            *byte = u8::try_from((index * 67 + at * 3 + 1) % 256).unwrap();
        }
        vectors.set(index, &value);
    }
    tracer.set_vectors(pid, &vectors).unwrap();
    let read = tracer.vectors(pid).unwrap();
    for index in 0..32 {
        assert_eq!(read.get(index), vectors.get(index), "register {index}");
        assert_eq!(read.get(index) == [0; 64], index >= count);
    }
    kill(pid, libc::SIGKILL);
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGKILL));
}

#[test]
fn a_single_step_is_one_instruction() {
    let (tracer, pid) = interrupted_in_pause();
    let mut registers = tracer.registers(pid).unwrap();
    let before = SystemCall::instruction_before(&registers);
    // The system call's instruction again, as getpid.
    (registers.rip, registers.rax, registers.orig_rax) = (before, 39, u64::MAX);
    tracer.set_registers(pid, &registers).unwrap();
    tracer.resume(pid, Resume::Step, 0).unwrap();
    assert_eq!(stop(&tracer).event, Event::Signal(libc::SIGTRAP));
    let after = tracer.registers(pid).unwrap();
    assert_eq!((after.rip, after.rax), (before + 2, pid.into()));
    kill(pid, libc::SIGKILL);
    assert_eq!(end(&tracer, pid).signal(), Some(libc::SIGKILL));
}

#[test]
fn a_waker_ends_the_wait_of_its_tracer_only() {
    let pid = child(|| {
        pause();
        0
    });
    let (send, wakers) = std::sync::mpsc::channel();
    let tracer = std::thread::spawn(move || {
        let tracer = Tracer::new();
        tracer.seize(pid, Follow::Alone).unwrap();
        send.send(tracer.waker()).unwrap();
        tracer.wait()
    });
    let waker = wakers.recv().unwrap();
    while !tracer.is_finished() {
        waker.wake();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // With its tracer gone, it is a child like any other.
    assert_eq!(tracer.join().unwrap(), Waited::Interrupted);
    kill(pid, libc::SIGKILL);
    assert_eq!(spawn::wait_for(pid).unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn a_child_that_a_tracer_of_this_process_holds_hides_no_other_that_ended() {
    let status = spawn::fork_with(|| {
        let sleeps = || {
            pause();
            0
        };
        let held = child(sleeps);
        let (send, stopped) = std::sync::mpsc::channel();
        let (done, go) = std::sync::mpsc::channel::<()>();
        let tracer = std::thread::spawn(move || {
            let tracer = Tracer::new();
            tracer.seize(held, Follow::Alone).unwrap();
            tracer.interrupt(held).unwrap();
            send.send(()).unwrap();
            go.recv().unwrap();
            // The stop has not been taken by whoever looked for ends.
            stop(&tracer).event
        });
        stopped.recv().unwrap();
        wait_until(|| !is_asleep(held));
        let none = spawn::ended();
        let other = child(|| 6);
        let found = loop {
            if let Ok(Some(found)) = spawn::ended() {
                break found;
            }
        };
        done.send(()).unwrap();
        let taken = tracer.join().unwrap();
        kill(held, libc::SIGKILL);
        let right = matches!(none, Ok(None))
            && found == (other, ExitStatus::from_raw(6 << 8))
            && taken == Event::Interrupted;
        i32::from(!right)
    });
    assert_eq!(status.unwrap().wait().unwrap().code(), Some(0));
}
