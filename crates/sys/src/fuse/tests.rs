use super::*;
use crate::namespace::{self, User};
use crate::spawn::fork_with;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::SeekFrom;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;

const FILE: u64 = 2;

/// Runs `check` with a file system of its own, in a process of its own; without one where the host has none.
fn with_file_system(check: impl FnOnce(Mounted)) {
    let child = fork_with(|| {
        let run = || {
            let namespace = namespace::enter(User::Own).expect("a namespace");
            match mount(Users::Own) {
                Ok(mounted) => check(mounted),
                Err(error) => {
                    let absent = [Errno::ENOENT, Errno::EACCES, Errno::EPERM, Errno::ENODEV];
                    assert!(absent.contains(&error.errno), "{error}");
                }
            }
            namespace.drop_capabilities().expect("they are given back");
        };
        catch_unwind(AssertUnwindSafe(run)).map_or(1, |()| 0)
    });
    assert!(child.expect("fork").wait().expect("a child").success(), "see above");
}

/// What a test's file is asked, without bytes.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Read(u64, u32),
    Fill,
    Written(Vec<u8>),
    Polled(Option<u64>),
    Released,
    Other,
}

fn attributes(node: u64, mode: u32, owner: Owner) -> Attributes {
    Attributes { node, mode, size: 4096, owner, rdev: 0, times: Default::default() }
}

/// Answers for one file, `positions` or not: it holds "text", and polls readable once `ready`.
fn serve(connection: &Connection, positions: Positions, told: &mpsc::Sender<Asked>) {
    let mut buffer = Buffer::default();
    let mut polled = 0;
    loop {
        let mut fd = [PollFd::new(connection, PollFlags::IN)];
        let _ = poll(&mut fd, None);
        let request = match connection.next(&mut buffer) {
            Ok(Some(request)) => request,
            Ok(None) => continue,
            Err(_) => return,
        };
        let of = attributes(FILE, 0o100_600, request.owner);
        let gone = Error::new(Errno::ENOENT, "no such file");
        let refused = Error::new(Errno::EINVAL, "not possible");
        let (answer, asked) = match request.operation {
            Operation::Lookup { name: b"file" } => (Ok(Answer::Entry(of)), None),
            Operation::Lookup { .. } => (Err(gone), None),
            Operation::Attributes if request.node == ROOT => {
                (Ok(Answer::Attributes(attributes(ROOT, 0o040_700, request.owner))), None)
            }
            Operation::Attributes => (Ok(Answer::Attributes(of)), None),
            Operation::Open { .. } => (Ok(Answer::Opened(positions)), None),
            Operation::Read { offset, size } => {
                let text = b"text".get(usize::try_from(offset).unwrap()..).unwrap_or_default();
                let text = &text[..text.len().min(size as usize)];
                (Ok(Answer::Bytes(text)), Some(Asked::Read(offset, size)))
            }
            Operation::Fill => (Err(refused), Some(Asked::Fill)),
            Operation::Write { bytes, .. } => {
                let size = u32::try_from(bytes.len()).unwrap();
                (Ok(Answer::Written(size)), Some(Asked::Written(bytes.to_vec())))
            }
            Operation::Poll { waiter } => {
                polled += 1;
                // Ready when asked for the second time.
                let events = if polled > 1 { 1 } else { 0 };
                (Ok(Answer::Events(events)), Some(Asked::Polled(waiter)))
            }
            Operation::Release => (Ok(Answer::Done), Some(Asked::Released)),
            _ => (Err(refused), Some(Asked::Other)),
        };
        connection.answer(request.unique, answer);
        if let Some(asked) = asked {
            let _ = told.send(asked);
        }
    }
}

/// An open file of a test, and what stands behind it.
struct Bench {
    file: OwnedFd,
    connection: Arc<Connection>,
    told: mpsc::Receiver<Asked>,
    root: OwnedFd,
}

impl Bench {
    fn new(mounted: Mounted, positions: Positions) -> Self {
        let connection = Arc::new(Connection::apart(mounted.device).expect("a thread"));
        let (tell, told) = mpsc::channel();
        let server = Arc::clone(&connection);
        std::thread::spawn(move || serve(&server, positions, &tell));
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&mounted.root, "file", flags, Mode::empty()).expect("it opens");
        Self { file, connection, told, root: mounted.root }
    }
}

fn raw<T>(result: rustix::io::Result<T>) -> Option<rustix::io::Errno> {
    result.err()
}

#[test]
fn a_file_without_positions_is_read_written_and_released_with_its_last_descriptor() {
    with_file_system(|mounted| {
        let Bench { file, connection, told, root } = Bench::new(mounted, Positions::None);
        let mut bytes = [0; 40];
        for _ in 0..2 {
            assert_eq!(rustix::io::read(&file, &mut bytes), Ok(4));
            assert_eq!(told.recv(), Ok(Asked::Read(0, 40)), "no position is kept");
        }
        assert_eq!(&bytes[..4], b"text");
        assert_eq!(rustix::io::write(&file, b"answer"), Ok(6));
        assert_eq!(told.recv(), Ok(Asked::Written(b"answer".to_vec())));
        let spipe = Some(rustix::io::Errno::SPIPE);
        assert_eq!(raw(rustix::io::pread(&file, &mut bytes, 0)), spipe);
        assert_eq!(raw(rustix::io::pwrite(&file, b"x", 0)), spipe);
        assert_eq!(raw(rustix::fs::seek(&file, SeekFrom::Start(0))), spipe);
        let copy = file.try_clone().expect("a copy");
        drop(file);
        assert_eq!(rustix::io::read(&copy, &mut bytes), Ok(4));
        assert_eq!(told.recv(), Ok(Asked::Read(0, 40)), "nothing was released");
        drop(copy);
        assert_eq!(told.recv(), Ok(Asked::Released));
        drop((root, connection));
    });
}

#[test]
fn a_file_with_positions_keeps_them_and_lives_when_its_mount_is_gone() {
    with_file_system(|mounted| {
        let Bench { file, told, root, .. } = Bench::new(mounted, Positions::Kept);
        drop(root);
        let mut bytes = [0; 3];
        assert_eq!(rustix::io::read(&file, &mut bytes), Ok(3));
        assert_eq!(rustix::io::read(&file, &mut bytes), Ok(1));
        assert_eq!(rustix::io::read(&file, &mut bytes), Ok(0));
        assert_eq!(rustix::io::pread(&file, &mut bytes, 2), Ok(2));
        let asked: Vec<_> = told.iter().take(4).collect();
        assert_eq!(asked, [(0, 3), (3, 3), (4, 3), (2, 3)].map(|(at, size)| Asked::Read(at, size)));
    });
}

#[test]
fn who_polls_sleeps_until_woken() {
    with_file_system(|mounted| {
        let Bench { file, connection, told, .. } = Bench::new(mounted, Positions::None);
        let copy = file.try_clone().expect("a copy");
        let sleeper = std::thread::spawn(move || {
            let mut polled = [PollFd::new(&copy, PollFlags::IN)];
            poll(&mut polled, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })).expect("a poll")
        });
        let Ok(Asked::Polled(Some(waiter))) = told.recv() else { panic!("it says who waits") };
        connection.wake(waiter);
        assert!(matches!(told.recv(), Ok(Asked::Polled(_))), "it asks again");
        assert_eq!(sleeper.join().expect("no panic"), 1);
    });
}

#[test]
fn a_copy_from_the_page_cache_is_told_from_a_read() {
    with_file_system(|mounted| {
        let Bench { file, told, .. } = Bench::new(mounted, Positions::Kept);
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let flags = rustix::pipe::SpliceFlags::empty();
        assert!(rustix::pipe::splice(&file, None, &writer, None, 4, flags).is_err());
        assert_eq!(told.recv(), Ok(Asked::Fill));
        drop(reader);
    });
}

#[test]
fn a_read_of_any_length_within_the_limit_arrives_as_one() {
    with_file_system(|mounted| {
        let Bench { file, told, .. } = Bench::new(mounted, Positions::None);
        let mut bytes = vec![0; MAX_BYTES as usize - 4096];
        assert_eq!(rustix::io::read(&file, &mut bytes), Ok(4));
        assert_eq!(told.recv(), Ok(Asked::Read(0, MAX_BYTES - 4096)));
        assert_eq!(rustix::io::write(&file, &bytes), Ok(bytes.len()));
        assert!(matches!(told.recv(), Ok(Asked::Written(all)) if all.len() == bytes.len()));
    });
}

#[test]
fn without_its_server_a_file_fails_and_nobody_hangs() {
    with_file_system(|mounted| {
        let (ours, theirs) = crate::message::pair().expect("sockets");
        let child = fork_with(|| {
            let connection = Connection::new(mounted.device.try_clone().expect("a copy"));
            let (tell, _told) = mpsc::channel();
            std::thread::scope(|scope| {
                scope.spawn(|| serve(&connection, Positions::None, &tell));
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                let file = openat(&mounted.root, "file", flags, Mode::empty()).expect("it opens");
                crate::message::send(&theirs, b"x", &[file.as_fd()]).expect("sent");
                let _ = crate::message::receive(&theirs, 1);
                crate::spawn::exit(0)
            })
        })
        .expect("fork");
        drop(mounted);
        let (_, mut files) = crate::message::receive(&ours, 1).expect("a file");
        let file = files.pop().expect("a file");
        let mut bytes = [0; 40];
        assert_eq!(rustix::io::read(&file, &mut bytes), Ok(4));
        crate::message::send(&ours, b"x", &[]).expect("sent");
        child.wait().expect("a child");
        assert_eq!(raw(rustix::io::read(&file, &mut bytes)), Some(rustix::io::Errno::NOTCONN));
        let mut polled = [PollFd::new(&file, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 30, tv_nsec: 0 })).expect("a poll");
        assert!(polled[0].revents().contains(PollFlags::ERR));
    });
}

/// Something that waits for an answer that does not come.
#[derive(Clone, Copy, Debug)]
enum Waits {
    ForAnOpen,
    ForAttributes,
}

#[test]
fn a_process_that_is_killed_while_it_waits_for_its_own_answer_ends() {
    for waits in [Waits::ForAnOpen, Waits::ForAttributes] {
        with_file_system(|mounted| {
            let (ours, theirs) = crate::message::pair().expect("sockets");
            let child = fork_with(move || {
                // The parent's copies are closed with this closure.
                let Mounted { device, root, .. } = mounted;
                let connection = Connection::apart(device).expect("a thread");
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut buffer = Buffer::default();
                        let mut polled = [PollFd::new(&connection, PollFlags::IN)];
                        while !matches!(connection.next(&mut buffer), Ok(Some(_))) {
                            poll(&mut polled, None).expect("a poll");
                        }
                        crate::message::send(&theirs, b"x", &[]).expect("sent");
                        std::thread::sleep(std::time::Duration::from_secs(60));
                    });
                    let _ = match waits {
                        Waits::ForAnOpen => {
                            openat(&root, "file", OFlags::RDWR, Mode::empty()).map(drop)
                        }
                        Waits::ForAttributes => rustix::fs::fstat(&root).map(drop),
                    };
                    crate::spawn::exit(1)
                })
            })
            .expect("fork");
            crate::message::receive(&ours, 1).expect("it was asked");
            child.kill();
            child.wait().expect("it ends");
        });
    }
}
