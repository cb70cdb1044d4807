use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use rustix::mm::{MapFlags, ProtFlags};

use super::*;

const PAGE: usize = 4096;

fn ourselves() -> Process {
    Process::open(std::process::id()).expect("this process")
}

/// Pages mapped by the test itself, to be looked at as another process's.
struct Pages(*mut u8, usize);

impl Pages {
    fn map(count: usize, prot: ProtFlags, flags: MapFlags) -> Self {
        // SAFETY: 1. a null hint without MAP_FIXED.
        let base =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), count * PAGE, prot, flags) };
        Self(base.expect("memory").cast(), count)
    }

    fn read_write(count: usize) -> Self {
        Self::map(count, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }

    fn at(&self, page: usize) -> u64 {
        (self.0.addr() + page * PAGE) as u64
    }

    fn protect(&self, page: usize, prot: rustix::mm::MprotectFlags) {
        // SAFETY: 1. a page of ours no reference points into.
        unsafe { rustix::mm::mprotect(self.0.add(page * PAGE).cast(), PAGE, prot) }
            .expect("mprotect");
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: 1. exactly what was mapped, and no reference points into it.
        unsafe { rustix::mm::munmap(self.0.cast(), self.1 * PAGE) }.expect("munmap");
    }
}

/// A child that waits until it is killed.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep"))
    }

    fn process(&self) -> Process {
        Process::open(self.0.id()).expect("the child")
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}

#[test]
fn bytes_travel_both_ways() {
    let (process, pages) = (ourselves(), Pages::read_write(2));
    let at = pages.at(0) + 4000;
    process.write(at, b"across the page border and back, about two hundred bytes would do, but fewer do too. And a bit more.").expect("write");
    let mut buf = [0; 6];
    process.read(at, &mut buf).expect("read");
    assert_eq!(&buf, b"across");
    process.read(at, &mut []).expect("nothing is always readable");
}

#[test]
fn half_a_transfer_is_efault_with_the_first_bad_address() {
    let (process, pages) = (ourselves(), Pages::read_write(2));
    pages.protect(1, rustix::mm::MprotectFlags::empty());
    let mut buf = vec![0; 2 * PAGE];
    let error = process.read(pages.at(0), &mut buf).expect_err("the second page is not readable");
    assert_eq!((error.errno, error.at), (Errno::EFAULT, Some(pages.at(1))));
    let error = process.write(pages.at(0), &buf).expect_err("the second page is not writable");
    assert_eq!((error.errno, error.at), (Errno::EFAULT, Some(pages.at(1))));
    assert_eq!(process.read_prefix(pages.at(0) + 4000, &mut buf), Ok(96));
    assert_eq!(process.read_prefix(pages.at(1), &mut buf), Ok(0));
}

#[test]
fn what_the_process_may_only_read_is_not_written() {
    let (process, pages) = (ourselves(), Pages::read_write(1));
    pages.protect(0, rustix::mm::MprotectFlags::READ);
    assert_eq!(process.write(pages.at(0), &[1]).expect_err("read-only").errno, Errno::EFAULT);
}

#[test]
fn memory_unmapped_under_a_running_transfer_is_efault() {
    let pages = Pages::read_write(256);
    let at = pages.at(0);
    let child = crate::spawn::fork_with(|| {
        std::thread::sleep(std::time::Duration::from_millis(5));
        drop(pages);
        std::thread::sleep(std::time::Duration::from_secs(1000));
        0
    });
    let child = child.expect("fork");
    let process = Process::open(child.id()).expect("the child");
    let data = vec![9; 256 * PAGE];
    let begun = std::time::Instant::now();
    while process.write(at, &data).is_ok() {
        assert!(begun.elapsed().as_secs() < 20, "it is unmapped");
    }
    let refused = process.read(at, &mut [0]).expect_err("unmapped");
    assert_eq!((refused.errno, refused.at), (Errno::EFAULT, Some(at)));
    child.kill();
    child.wait().expect("wait");
}

#[test]
fn addresses_that_wrap_are_efault() {
    let process = ourselves();
    let mut buf = [0; 16];
    for address in [u64::MAX, u64::MAX - 15, u64::MAX - 14, 1 << 63, 1 << 47, 0] {
        assert_eq!(
            process.read(address, &mut buf).expect_err("nothing there").errno,
            Errno::EFAULT,
            "{address:#x}"
        );
        assert_eq!(
            process.write(address, &buf).expect_err("nothing there").errno,
            Errno::EFAULT,
            "{address:#x}"
        );
    }
    assert_eq!(process.read_prefix(u64::MAX - 3, &mut buf), Ok(0));
}

#[test]
fn more_pieces_than_one_call_takes_arrive_in_order() {
    let (process, pages) = (ourselves(), Pages::read_write(2));
    let pieces: Vec<_> = (0..2500).map(|i| (pages.at(0) + (i * 3) % 8000, 2)).collect();
    let data: Vec<u8> = (0..5000_u32).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
    let distinct = &pieces[..2000];
    process.write_vectored(distinct, &data[..4000]).expect("write");
    let mut back = vec![0; 4000];
    process.read_vectored(distinct, &mut back).expect("read");
    assert_eq!(back, data[..4000]);
}

#[test]
fn a_bad_piece_among_good_ones_is_named() {
    let (process, pages) = (ourselves(), Pages::read_write(3));
    pages.protect(1, rustix::mm::MprotectFlags::empty());
    let pieces = [(pages.at(0), 8), (pages.at(2), 8), (pages.at(1) + 64, 8), (pages.at(0), 8)];
    let error = process.write_vectored(&pieces, &[7; 32]).expect_err("one page is not writable");
    assert_eq!((error.errno, error.at), (Errno::EFAULT, Some(pages.at(1) + 64)));
    let touching = [(pages.at(0), 8), (pages.at(0) + 8, 8), (pages.at(0) + 16, 0)];
    process.write_vectored(&touching, &[7; 16]).expect("joined into one");
}

#[test]
fn a_dead_process_is_efault_and_not_alive() {
    let sleeper = Sleeper::start();
    let process = sleeper.process();
    assert!(process.is_alive());
    drop(sleeper);
    assert!(!process.is_alive());
    assert_eq!(process.read(0x1000, &mut [0]).expect_err("dead").errno, Errno::EFAULT);
    assert_eq!(process.credentials().expect_err("dead").errno, Errno::ESRCH);
    assert_eq!(process.vma(0x1000).expect_err("dead").errno, Errno::ESRCH);
    assert_eq!(process.fd(process.pid(), 0).expect_err("dead").errno, Errno::EBADF);
    assert_eq!(Process::open(u32::MAX).expect_err("no such thread").errno, Errno::ESRCH);
}

#[test]
fn an_fd_is_duplicated_and_a_wrong_one_is_ebadf() {
    let sleeper = Sleeper::start();
    let process = sleeper.process();
    let theirs = process.fd(process.pid(), 1).expect("its standard output");
    let null = rustix::fs::stat("/dev/null").expect("stat");
    assert_eq!(rustix::fs::fstat(&theirs).expect("fstat").st_rdev, null.st_rdev);
    for fd in [-1, i32::MIN, 1000, i32::MAX] {
        assert_eq!(
            process.fd(process.pid(), fd).expect_err("no such fd").errno,
            Errno::EBADF,
            "{fd}"
        );
    }
}

#[test]
fn a_thread_is_asked_for_its_own_fds() {
    let process = ourselves();
    let (reader, _writer) = rustix::pipe::pipe().expect("a pipe");
    let number = reader.as_raw_fd();
    let (tell, told) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // SAFETY: 1. unsharing the descriptor table changes this thread only, which then closes its own copy.
        let apart = unsafe { libc::unshare(libc::CLONE_FILES) == 0 && libc::close(number) == 0 };
        tell.send((apart, rustix::thread::gettid().as_raw_pid().cast_unsigned())).expect("told");
        wait.recv().expect_err("the sender is dropped");
    });
    let (apart, tid) = told.recv().expect("the thread's id");
    assert!(apart);
    assert_eq!(process.fd(tid, number).expect_err("closed there").errno, Errno::EBADF);
    assert!(process.fd(process.pid(), number).is_ok(), "open in the rest of the process");
    drop(go_on);
    thread.join().expect("no panic");
}

#[test]
fn both_ways_to_find_a_mapping_agree() {
    let (process, pages) = (ourselves(), Pages::map(3, ProtFlags::READ, MapFlags::SHARED));
    pages.protect(1, rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE);
    let mm = process.mm().expect("memory");
    let found = mm.vmas(pages.at(0), pages.at(2)).expect("mappings");
    assert_eq!(found, mm.parse_all(pages.at(0), pages.at(2)).expect("mappings"));
    assert_eq!(found.iter().map(|vma| vma.prot.write).collect::<Vec<_>>(), [false, true, false]);
    assert!(found.iter().all(|vma| vma.shared && vma.prot.read && vma.inode != 0));
    assert_eq!(found[1].offset, PAGE as u64);
    assert_eq!(process.vma(0), Ok(None));
}

#[test]
fn after_exec_the_mappings_are_those_of_the_program_now_running() {
    let mut child = Command::new("sh")
        .args(["-c", "read x; exec sleep 1000"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    let process = Process::open(child.id()).expect("the child");
    let old = process.mm().expect("memory");
    let before = old.vmas(0, u64::MAX).expect("mappings");
    drop(child.stdin.take());
    let begun = std::time::Instant::now();
    while process.comm().expect("alive") != "sleep" {
        assert!(begun.elapsed().as_secs() < 20, "the shell executes sleep");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let after = process.mm().expect("memory").vmas(0, u64::MAX).expect("mappings");
    assert!(!old.is_live());
    assert_eq!(old.vmas(0, u64::MAX).expect_err("the shell's memory is gone").errno, Errno::ESRCH);
    assert_eq!(
        old.parse_all(0, u64::MAX).expect_err("the shell's memory is gone").errno,
        Errno::ESRCH
    );
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert_ne!(before, after);
    assert!(!after.is_empty());
}

#[test]
fn credentials_limits_and_names_are_those_of_proc() {
    let process = ourselves();
    let credentials = process.credentials().expect("credentials");
    assert_eq!(credentials.uid, rustix::process::getuid().as_raw());
    assert_eq!(credentials.gid, rustix::process::getgid().as_raw());
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    assert_eq!(process.memlock_limit(), Ok(limit));
    assert_eq!(process.exe().expect("exe"), std::env::current_exe().expect("exe"));
    assert!(!process.comm().expect("comm").is_empty());
    assert!(process.start_time().expect("stat") > 0);
    assert!(process.threads().expect("threads").contains(&process.pid()));
    assert!(Credentials { uid: 0, gid: 0, capabilities: 1 << 14 }.has(Credentials::IPC_LOCK));
}

#[test]
fn memory_stays_in_reach_when_the_first_thread_ends_before_the_others() {
    let secret = Box::new(*b"still here");
    // SAFETY: 1. the child makes one thread, then leaves by system call: it takes no lock another thread may hold but
    // the allocator's, which glibc makes usable after fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let sleeper =
            std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_secs(1000)));
        // SAFETY: 1. ends the calling thread only; its stack is left alone for good.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        drop(sleeper);
    }
    let process = Process::open(pid.cast_unsigned()).expect("the child");
    while process.has_memory(process.pid()) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let address = secret.as_ptr().addr() as u64;
    let mut buf = [0; 10];
    let read = process.read(address, &mut buf);
    let vma = process.vma(address);
    // SAFETY: 1. the child is ours and has not been waited for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
    }
    assert_eq!((read, &buf), (Ok(()), &*secret));
    assert!(matches!(vma, Ok(Some(_))));
}

#[test]
fn a_thread_belongs_to_its_process_until_it_ends() {
    let own = Process::open(std::process::id()).unwrap();
    let tid = std::thread::spawn(move || {
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert!(own.has_thread(tid) && !own.has_thread(1));
        (own, tid)
    });
    let (own, tid) = tid.join().unwrap();
    while std::path::Path::new(&format!("/proc/self/task/{tid}")).exists() {
        std::thread::yield_now();
    }
    assert!(!own.has_thread(tid));
}

#[test]
fn a_duplicate_is_the_same_file_and_another_open_is_not() {
    let open = || std::fs::File::open("/dev/null").expect("it is always there");
    let (one, other) = (open(), open());
    let duplicate = one.try_clone().expect("a descriptor");
    assert!(is_same_file(one.as_fd(), duplicate.as_fd()));
    assert!(!is_same_file(one.as_fd(), other.as_fd()));
}
