use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};

use rustix::mm::{MapFlags, ProtFlags};

use super::*;

const PAGE: usize = 4096;

fn ourselves() -> Thread {
    Thread::open(std::process::id()).expect("this process")
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

    fn file(file: BorrowedFd<'_>, prot: ProtFlags, flags: MapFlags) -> Self {
        // SAFETY: 1. a null hint without MAP_FIXED.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), PAGE, prot, flags, file, 0) };
        Self(base.expect("memory").cast(), 1)
    }

    fn unmap(&self, page: usize) {
        // SAFETY: 1. a page of ours no reference points into; unmapping it once more when dropped does nothing.
        unsafe { rustix::mm::munmap(self.0.add(page * PAGE).cast(), PAGE) }.expect("munmap");
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

    fn thread(&self) -> Thread {
        Thread::open(self.0.id()).expect("the child")
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
    let (thread, pages) = (ourselves(), Pages::read_write(2));
    let at = pages.at(0) + 4000;
    let text = [b"across the page border and back; ".as_slice(); 4].concat();
    thread.write(at, &text).expect("write");
    let mut buf = [0; 6];
    thread.read(at, &mut buf).expect("read");
    assert_eq!(&buf, b"across");
    thread.read(at, &mut []).expect("nothing is always readable");
    let mm = thread.mm().expect("memory");
    mm.write(at + 128, b"device").expect("write");
    mm.read(at + 128, &mut buf).expect("read");
    assert_eq!(&buf, b"device");
}

#[test]
fn half_a_transfer_is_efault_with_the_first_bad_address() {
    let (thread, pages) = (ourselves(), Pages::read_write(3));
    pages.unmap(1);
    let mut buf = vec![0; 2 * PAGE];
    let hole = Some(pages.at(1));
    let efault = |error: Error| (error.errno, error.at) == (Errno::EFAULT, hole);
    assert!(thread.read(pages.at(0), &mut buf).is_err_and(efault));
    assert!(thread.write(pages.at(0), &buf).is_err_and(efault));
    let mm = thread.mm().expect("memory");
    assert!(mm.read(pages.at(0), &mut buf).is_err_and(efault));
    assert!(mm.write(pages.at(0), &buf).is_err_and(efault));
    assert_eq!(thread.read_prefix(pages.at(0) + 4000, &mut buf), Ok(96));
    assert_eq!(mm.read_prefix(pages.at(0) + 4000, &mut buf), Ok(96));
    assert_eq!(thread.read_prefix(pages.at(1), &mut buf), Ok(0));
}

#[test]
fn a_system_call_may_do_what_its_thread_may_and_a_device_what_was_decided_before() {
    use rustix::mm::MprotectFlags;
    let (thread, pages) = (ourselves(), Pages::read_write(2));
    let mm = thread.mm().expect("memory");
    for (prot, readable) in [(MprotectFlags::READ, true), (MprotectFlags::empty(), false)] {
        pages.protect(1, prot);
        let at = pages.at(1);
        let refused = thread.write(pages.at(0) + 4090, &[1; 16]).expect_err("not writable");
        assert_eq!((refused.errno, refused.at), (Errno::EFAULT, Some(at)));
        assert_eq!(thread.read(at, &mut [0; 4]).is_ok(), readable);
        mm.write(at, b"DMA").expect("the page was pinned for writing");
        let mut seen = [0; 3];
        mm.read(at, &mut seen).expect("and for reading");
        assert_eq!(&seen, b"DMA");
    }
    let mut head = [0; 6];
    thread.read(pages.at(0) + 4090, &mut head).expect("readable");
    assert_eq!(head, [1; 6], "what lies before the first bad address is written");
}

#[test]
fn a_forced_write_never_reaches_a_file_that_the_program_may_only_read() {
    use rustix::fs::{MemfdFlags, SealFlags};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("text", flags).expect("a memfd");
    rustix::io::pwrite(&file, b"as it was", 0).expect("written");
    let map = |prot, flags| Pages::file(file.as_fd(), prot, flags);
    let (read, both) = (ProtFlags::READ, ProtFlags::READ | ProtFlags::WRITE);
    let shared = map(read, MapFlags::SHARED);
    let narrowed = map(both, MapFlags::SHARED);
    narrowed.protect(0, rustix::mm::MprotectFlags::READ);
    let copied = map(read, MapFlags::PRIVATE);
    rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).expect("sealed");
    let sealed = map(read, MapFlags::SHARED);
    let mm = ourselves().mm().expect("memory");
    for pages in [&shared, &narrowed, &sealed] {
        assert_eq!(
            mm.write(pages.at(0), b"forced").map_err(|error| error.errno),
            Err(Errno::EFAULT)
        );
    }
    mm.write(copied.at(0), b"forced").expect("it makes a copy of the program's own");
    let mut seen = [0; 9];
    mm.read(copied.at(0), &mut seen).expect("read");
    assert_eq!(&seen, b"forcedwas");
    rustix::io::pread(&file, &mut seen, 0).expect("read");
    assert_eq!(&seen, b"as it was");
}

#[test]
fn why_a_page_cannot_be_had_is_said() {
    let file = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    rustix::fs::ftruncate(&file, PAGE as u64).expect("a size");
    let mapped = Pages::file(file.as_fd(), ProtFlags::READ, MapFlags::SHARED);
    rustix::fs::ftruncate(&file, 0).expect("truncated");
    let plain = Pages::read_write(3);
    plain.unmap(1);
    let mm = ourselves().mm().expect("memory");
    let why = |at| mm.read(at, &mut [0]).expect_err("it is not there").why;
    assert!(why(mapped.at(0)).contains("truncated"), "{}", why(mapped.at(0)));
    assert!(why(plain.at(1)).contains("munmap"), "{}", why(plain.at(1)));
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
    let thread = Thread::open(child.id()).expect("the child");
    let mm = thread.mm().expect("memory");
    let data = vec![9; 256 * PAGE];
    let begun = std::time::Instant::now();
    while mm.write(at, &data).is_ok() {
        assert!(begun.elapsed().as_secs() < 20, "it is unmapped");
    }
    for refused in [mm.read(at, &mut [0]), thread.read(at, &mut [0]), thread.write(at, &[0])] {
        let refused = refused.expect_err("unmapped");
        assert_eq!((refused.errno, refused.at), (Errno::EFAULT, Some(at)));
    }
    child.kill();
    child.wait().expect("wait");
}

#[test]
fn addresses_that_wrap_are_efault() {
    let thread = ourselves();
    let mm = thread.mm().expect("memory");
    let mut buf = [0; 16];
    for address in [u64::MAX, u64::MAX - 15, u64::MAX - 14, 1 << 63, 1 << 47, 0] {
        let errno = |result: Result<()>| result.expect_err("nothing there").errno;
        assert_eq!(errno(thread.read(address, &mut buf)), Errno::EFAULT, "{address:#x}");
        assert_eq!(errno(thread.write(address, &buf)), Errno::EFAULT, "{address:#x}");
        assert_eq!(errno(mm.read(address, &mut buf)), Errno::EFAULT, "{address:#x}");
        assert_eq!(errno(mm.write(address, &buf)), Errno::EFAULT, "{address:#x}");
    }
    assert_eq!(thread.read_prefix(u64::MAX - 3, &mut buf), Ok(0));
    assert_eq!(mm.read_prefix(u64::MAX - 3, &mut buf), Ok(0));
}

#[test]
fn a_dead_process_is_efault_and_not_alive() {
    let sleeper = Sleeper::start();
    let thread = sleeper.thread();
    let (mm, process) = (thread.mm().expect("memory"), Arc::clone(thread.process()));
    assert!(thread.is_alive() && process.is_alive() && mm.is_live());
    drop(sleeper);
    assert!(!thread.is_alive() && !process.is_alive() && !mm.is_live());
    let efault = |result: Result<()>| assert_eq!(result.expect_err("dead").errno, Errno::EFAULT);
    efault(thread.read(0x1000, &mut [0]));
    efault(thread.write(0x1000, &[0]));
    efault(mm.read(0x1000, &mut [0]));
    efault(mm.write(0x1000, &[0]));
    assert_eq!(thread.credentials().expect_err("dead").errno, Errno::ESRCH);
    assert_eq!(thread.memlock_limit().expect_err("dead").errno, Errno::ESRCH);
    assert_eq!(process.mm().expect_err("dead").errno, Errno::ESRCH);
    assert_eq!(thread.fd(0).expect_err("dead").errno, Errno::EBADF);
    assert_eq!(Thread::open(u32::MAX).expect_err("no such thread").errno, Errno::ESRCH);
}

#[test]
fn an_fd_is_duplicated_and_a_wrong_one_is_ebadf() {
    let sleeper = Sleeper::start();
    let thread = sleeper.thread();
    let theirs = thread.fd(1).expect("its standard output");
    let null = rustix::fs::stat("/dev/null").expect("stat");
    assert_eq!(rustix::fs::fstat(&theirs).expect("fstat").st_rdev, null.st_rdev);
    for fd in [-1, i32::MIN, 1000, i32::MAX] {
        assert_eq!(thread.fd(fd).expect_err("no such fd").errno, Errno::EBADF, "{fd}");
    }
}

#[test]
fn a_thread_is_asked_for_its_own_fds() {
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
    let theirs = Thread::open(tid).expect("it waits");
    assert_eq!(theirs.process().pid(), std::process::id());
    assert_eq!(theirs.fd(number).expect_err("closed there").errno, Errno::EBADF);
    assert!(ourselves().fd(number).is_ok(), "open in the rest of the process");
    drop(go_on);
    thread.join().expect("no panic");
}

#[test]
fn both_ways_to_find_a_mapping_agree() {
    let (thread, pages) = (ourselves(), Pages::map(3, ProtFlags::READ, MapFlags::SHARED));
    pages.protect(1, rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::WRITE);
    let mm = thread.mm().expect("memory");
    let found = mm.vmas(pages.at(0), pages.at(2)).expect("mappings");
    assert_eq!(found, mm.parse_all(pages.at(0), pages.at(2)).expect("mappings"));
    assert_eq!(found.iter().map(|vma| vma.prot.write).collect::<Vec<_>>(), [false, true, false]);
    assert!(found.iter().all(|vma| vma.shared && vma.prot.read && vma.inode != 0));
    assert_eq!(found[1].offset, PAGE as u64);
    assert_eq!(mm.vmas(0, 0), Ok(Vec::new()));
}

#[test]
fn memory_never_becomes_that_of_the_program_now_running() {
    let mut child = Command::new("sh")
        .args(["-c", "read x; exec sleep 1000"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    let thread = Thread::open(child.id()).expect("the child");
    let old = thread.mm().expect("memory");
    let before = old.vmas(0, u64::MAX).expect("mappings");
    drop(child.stdin.take());
    let begun = std::time::Instant::now();
    while thread.process().comm().expect("alive") != "sleep" {
        assert!(begun.elapsed().as_secs() < 20, "the shell executes sleep");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let now = thread.process().mm().expect("memory");
    let after = now.vmas(0, u64::MAX).expect("mappings");
    assert!(!old.is_live());
    let gone = |result: Result<Vec<Vma>>| assert_eq!(result.expect_err("gone").errno, Errno::ESRCH);
    gone(old.vmas(0, u64::MAX));
    gone(old.parse_all(0, u64::MAX));
    let writable = after.iter().find(|vma| vma.prot.write).expect("a stack").start;
    let mut bytes = [0; 64];
    now.read(writable, &mut bytes).expect("the program's");
    for refused in [old.read(writable, &mut [0; 64]), old.write(writable, &[7; 64])] {
        assert_eq!(refused.expect_err("the shell's memory is gone").errno, Errno::EFAULT);
    }
    let mut again = [0; 64];
    now.read(writable, &mut again).expect("the program's");
    assert_eq!(bytes, again, "nothing of it was written");
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert_ne!(before, after);
}

#[test]
fn a_status_with_every_group_there_can_be_tells_the_capabilities_behind_them() {
    let groups = (0..65_536).map(|group| format!("{group} ")).collect::<String>();
    let text = format!("Uid:\t7\t0\t0\t0\nGid:\t8\t0\t0\t0\nGroups:\t{groups}\nCapEff:\t05\n");
    let expected = Credentials { uid: 7, gid: 8, capabilities: 5 };
    assert_eq!(Credentials::of_status(text.as_bytes()), Some(expected));
    assert_eq!(Credentials::of_status(&text.as_bytes()[..1000]), None);
}

#[test]
fn a_text_that_is_too_long_is_no_text_of_another_length() {
    let folder = rustix::fs::open("/proc/self", OFlags::PATH, Mode::empty()).expect("a folder");
    let whole = text(&folder, "status", 1 << 16).expect("short");
    assert!(whole.ends_with(b"\n"));
    let refused = text(&folder, "status", 100).expect_err("it is longer");
    assert_eq!((refused.errno, refused.at), (Errno::E2BIG, Some(100)));
}

#[test]
fn credentials_limits_and_names_are_those_of_proc() {
    let thread = ourselves();
    let process = thread.process();
    let credentials = thread.credentials().expect("credentials");
    assert_eq!(credentials.uid, rustix::process::getuid().as_raw());
    assert_eq!(credentials.gid, rustix::process::getgid().as_raw());
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    assert_eq!(thread.memlock_limit(), Ok(limit));
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
    let first = Thread::open(pid.cast_unsigned()).expect("the child");
    let before = first.mm().expect("memory");
    let address = secret.as_ptr().addr() as u64;
    while first.read(address, &mut [0]).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let found = first.process().mm().expect("another thread has it");
    let (mut one, mut other) = ([0; 10], [0; 10]);
    let read = (before.read(address, &mut one), found.read(address, &mut other));
    // SAFETY: 1. the child is ours and has not been waited for.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL);
    }
    assert_eq!((read, &one, &other), ((Ok(()), Ok(())), &*secret, &*secret));
}

#[test]
fn a_thread_is_there_until_it_ends() {
    let (tell, told) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).expect("told");
        wait.recv().expect_err("the sender is dropped");
    });
    let handle = Thread::open(told.recv().expect("a number")).expect("it waits");
    assert!(handle.is_alive() && handle.shares_memory_with(&ourselves()));
    let mm = handle.mm().expect("memory");
    drop(go_on);
    thread.join().expect("no panic");
    while handle.is_alive() {
        std::thread::yield_now();
    }
    assert!(!handle.shares_memory_with(&ourselves()));
    assert_eq!(handle.read(0x1000, &mut [0]).expect_err("it has ended").errno, Errno::EFAULT);
    assert!(mm.is_live(), "the other threads have it");
}

#[test]
fn two_processes_share_memory_only_after_vfork() {
    let sleeper = Sleeper::start();
    assert!(!sleeper.thread().shares_memory_with(&ourselves()));
}

#[test]
fn a_duplicate_is_the_same_file_and_another_open_is_not() {
    let open = || std::fs::File::open("/dev/null").expect("it is always there");
    let (one, other) = (open(), open());
    let duplicate = one.try_clone().expect("a descriptor");
    assert!(is_same_file(one.as_fd(), duplicate.as_fd()));
    assert!(!is_same_file(one.as_fd(), other.as_fd()));
}
