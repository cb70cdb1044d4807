use std::os::fd::{AsFd, AsRawFd};

use ioasis_iommufd::{AddressSpace, Extent, Extents, Piece};
use ioasis_sys::mapping::Mapping;
use ioasis_sys::process::Vma;
use ioasis_sys::spawn::{self, Child};
use ioasis_uapi::{Errno, Error};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags};

use super::*;

const PAGE: u64 = 4096;
const BOTH: Prot = Prot::READ.union(Prot::WRITE);

/// A copy of the test that obeys one-byte orders.
struct Client {
    child: Child,
    thread: Arc<Thread>,
    orders: OwnedFd,
    done: OwnedFd,
}

impl Client {
    /// Forks, and calls `obey` in the copy with every order.
    fn start(mut obey: impl FnMut(u8)) -> Self {
        let (orders_out, orders) = rustix::pipe::pipe().expect("a pipe");
        let (done, done_in) = rustix::pipe::pipe().expect("a pipe");
        let child = spawn::fork_with(|| {
            let mut order = [0];
            while rustix::io::read(&orders_out, &mut order) == Ok(1) && order != [b'q'] {
                obey(order[0]);
                if rustix::io::write(&done_in, &order).is_err() {
                    return 1;
                }
            }
            0
        })
        .expect("fork");
        let thread = Arc::new(Thread::open(child.id()).expect("the child"));
        Self { child, thread, orders, done }
    }

    /// One that does nothing.
    fn idle() -> Self {
        Self::start(|_| {})
    }

    /// Gives an order and waits until it has been carried out.
    fn order(&self, order: u8) {
        rustix::io::write(&self.orders, &[order]).expect("the order");
        let mut done = [0];
        assert_eq!(rustix::io::read(&self.done, &mut done), Ok(1));
    }

    fn end(&self) {
        self.child.kill();
        self.child.wait().expect("wait");
    }

    /// Its mapping of `fd`.
    fn mapping_of(&self, fd: &OwnedFd) -> Vma {
        let stat = rustix::fs::fstat(fd).expect("fstat");
        let vmas = self.thread.mm().expect("memory").vmas(0, u64::MAX).expect("mappings");
        vmas.into_iter()
            .find(|vma| (vma.device, vma.inode) == (stat.st_dev, stat.st_ino))
            .expect("the file is mapped")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill();
        // Already waited for, or now.
        let _ = self.child.wait();
    }
}

fn memfd(pages: u64) -> OwnedFd {
    let fd =
        rustix::fs::memfd_create("memory-test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .expect("a memfd");
    rustix::fs::ftruncate(&fd, pages * PAGE).expect("a size");
    fd
}

fn shared(fd: &OwnedFd, access: Access) -> Mapping {
    let size = rustix::fs::fstat(fd).expect("fstat").st_size;
    Mapping::file(fd.as_fd(), 0, usize::try_from(size).expect("small"), access).expect("a mapping")
}

/// Whole pages of private memory, and the address of the first.
fn private(pages: u64) -> (Vec<u8>, u64) {
    let bytes = vec![0_u8; usize::try_from((pages + 1) * PAGE).expect("small")];
    let start = (bytes.as_ptr().addr() as u64).next_multiple_of(PAGE);
    (bytes, start)
}

fn read(extent: &Extent, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0xee; length];
    extent.backing.read(&[Piece { offset: extent.offset + at, length }], &mut buf)?;
    Ok(buf)
}

fn write(extent: &Extent, at: u64, bytes: &[u8]) -> Result<()> {
    extent.backing.write(&[Piece { offset: extent.offset + at, length: bytes.len() }], bytes)
}

fn one(extents: Extents) -> Extent {
    let [extent] = extents.into_inner().expect("one extent");
    extent
}

fn errno<T>(result: Result<T>) -> Option<Errno> {
    result.err().map(|error: Error| error.errno)
}

#[test]
fn private_memory_is_reached_where_it_is() {
    let (bytes, start) = private(3);
    let (client, memory) = (Client::idle(), Memory::new(None));
    let space = memory.of(&client.thread).expect("memory");
    let extent = one(space.pin(start + 5, 2 * PAGE, BOTH).expect("pinned"));
    assert_eq!((extent.offset, extent.length), (start + 5, 2 * PAGE));
    write(&extent, 100, b"into the client").expect("write");
    assert_eq!(read(&extent, 105, 3).expect("read"), b"the");
    let pieces =
        [Piece { offset: start + 2 * PAGE, length: 4 }, Piece { offset: start + 105, length: 4 }];
    let mut buf = [1; 8];
    extent.backing.read(&pieces, &mut buf).expect("scattered read");
    assert_eq!(&buf, b"\0\0\0\0into");
    extent.backing.write(&pieces, b"12345678").expect("scattered write");
    assert_eq!(read(&extent, 100, 4).expect("read"), b"5678");
    assert!(bytes.iter().all(|&byte| byte == 0), "the copy was written, not the original");
}

#[test]
fn shared_memory_outlives_the_clients_mapping_and_the_client() {
    let fd = memfd(4);
    let mut mapping = Some(shared(&fd, Access::ReadWrite));
    let client = Client::start(move |_| drop(mapping.take()));
    let vma = client.mapping_of(&fd);
    let memory = Memory::new(None);
    let space = memory.of(&client.thread).expect("memory");
    let extent = one(space.pin(vma.start + PAGE, 2 * PAGE, BOTH).expect("pinned"));
    assert_eq!((extent.offset, extent.length), (PAGE, 2 * PAGE));
    write(&extent, 0, b"before").expect("write");
    client.order(b'u');
    assert_eq!(
        errno(space.pin(vma.start, PAGE, Prot::READ)),
        Some(Errno::EFAULT),
        "the client has unmapped it"
    );
    write(&extent, 6, b" and after").expect("write after munmap");
    client.end();
    drop(fd);
    assert_eq!(read(&extent, 0, 16).expect("read after exit"), b"before and after");
}

#[test]
fn what_is_not_mapped_or_not_with_that_access_cannot_be_pinned() {
    let fd = memfd(2);
    let _mapping = shared(&fd, Access::Read);
    let client = Client::idle();
    let vma = client.mapping_of(&fd);
    let space = Memory::new(None).of(&client.thread).expect("memory");
    let refused = space.pin(vma.start + PAGE, PAGE, Prot::WRITE).expect_err("mapped read-only");
    assert_eq!((refused.errno, refused.at), (Errno::EFAULT, Some(vma.start + PAGE)));
    let extent = one(space.pin(vma.start, 2 * PAGE, Prot::READ).expect("readable"));
    assert_eq!(errno(write(&extent, 0, b"x")), Some(Errno::EFAULT));
    let refused = space.pin(0, 16 * PAGE, Prot::READ).expect_err("page zero");
    assert_eq!((refused.errno, refused.at), (Errno::EFAULT, Some(0)));
    assert_eq!(errno(space.pin(u64::MAX - PAGE, 2 * PAGE, Prot::READ)), Some(Errno::EFAULT));
    assert_eq!(errno(space.pin(u64::MAX - PAGE + 1, PAGE, Prot::READ)), Some(Errno::EFAULT));
    assert_eq!(errno(space.pin(1 << 62, PAGE, BOTH)), Some(Errno::EFAULT));
}

#[test]
fn kernel_pages_in_the_client_cannot_be_pinned() {
    let client = Client::idle();
    let text =
        std::fs::read_to_string(format!("/proc/{}/maps", client.thread.tid())).expect("maps");
    let line = text.lines().find(|line| line.ends_with("[vvar]")).expect("vvar is mapped");
    let start =
        u64::from_str_radix(line.split('-').next().expect("an address"), 16).expect("hexadecimal");
    let space = Memory::new(None).of(&client.thread).expect("memory");
    assert_eq!(errno(space.pin(start, PAGE, Prot::READ)), Some(Errno::EFAULT));
}

#[test]
fn a_hole_between_mappings_is_named() {
    let fd = memfd(1);
    let _mapping = shared(&fd, Access::ReadWrite);
    let client = Client::idle();
    let vma = client.mapping_of(&fd);
    let space = Memory::new(None).of(&client.thread).expect("memory");
    let vmas = client.thread.mm().expect("memory").vmas(0, 1 << 47).expect("mappings");
    let gap = vmas
        .windows(2)
        .find(|pair| pair[0].last + 1 < pair[1].start && pair[0].prot.read && !pair[0].shared);
    let before = gap.expect("there is a gap")[0];
    let refused = space
        .pin(before.last & !(PAGE - 1), 2 * PAGE, Prot::READ)
        .expect_err("half of it is a hole");
    assert_eq!((refused.errno, refused.at), (Errno::EFAULT, Some(before.last + 1)));
    assert!(space.pin(vma.start, PAGE, BOTH).is_ok());
}

#[test]
fn a_truncated_or_punched_file_harms_nobody() {
    let fd = memfd(4);
    let _mapping = shared(&fd, Access::ReadWrite);
    let client = Client::idle();
    let vma = client.mapping_of(&fd);
    let space = Memory::new(None).of(&client.thread).expect("memory");
    let extent = one(space.pin(vma.start, 4 * PAGE, BOTH).expect("pinned"));
    write(&extent, 0, &[7; 4 * 4096]).expect("write");
    rustix::fs::fallocate(&fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, PAGE)
        .expect("punch");
    assert_eq!(read(&extent, PAGE - 1, 2).expect("read"), [0, 7]);
    rustix::fs::ftruncate(&fd, PAGE).expect("truncate");
    assert_eq!(errno(read(&extent, 0, 2 * 4096)), Some(Errno::EFAULT));
    assert_eq!(errno(write(&extent, 3 * PAGE, b"x")), Some(Errno::EFAULT));
    assert_eq!(read(&extent, 0, 4).expect("what is left"), [0; 4]);
    assert_eq!(
        errno(space.pin(vma.start, 4 * PAGE, BOTH)),
        Some(Errno::EFAULT),
        "mapped past the end of the file"
    );
}

/// A file on a tmpfs of 16 KiB, made in a user namespace of its own where that takes one.
fn file_on_a_small_tmpfs() -> OwnedFd {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let make = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(context.as_fd(), "size", "16k")?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        let mount = rustix::mount::fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )?;
        rustix::fs::openat(
            &mount,
            ".",
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )
    };
    if let Ok(file) = make() {
        return file;
    }
    let (out, tell) = rustix::pipe::pipe().expect("a pipe");
    let child = spawn::fork_with(|| {
        let namespaces =
            rustix::thread::UnshareFlags::NEWUSER | rustix::thread::UnshareFlags::NEWNS;
        #[expect(deprecated, reason = "the copy has one thread and no fd it would leave behind")]
        let file = rustix::thread::unshare(namespaces).and_then(|()| make());
        let number = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let _ = rustix::io::write(&tell, &number.to_ne_bytes());
        std::thread::sleep(std::time::Duration::from_secs(1000));
        0
    })
    .expect("fork");
    let mut number = [0; 4];
    assert_eq!(rustix::io::read(&out, &mut number), Ok(4));
    let thread = Thread::open(child.id()).expect("the child");
    let file =
        thread.fd(i32::from_ne_bytes(number)).expect("a tmpfs needs root or user namespaces");
    child.kill();
    child.wait().expect("wait");
    file
}

#[test]
fn a_full_file_system_is_efault_to_the_device() {
    let fd = file_on_a_small_tmpfs();
    rustix::fs::ftruncate(&fd, 16 * PAGE).expect("sparse");
    let memory = Memory::new(None);
    let space = memory.file(fd.try_clone().expect("a duplicate")).expect("memory");
    let extent = one(space.pin(0, 16 * PAGE, BOTH).expect("pinned: pages come when touched"));
    for page in 0..4 {
        write(&extent, page * PAGE, &[1; 4096]).expect("there is room for four");
    }
    assert_eq!(errno(write(&extent, 4 * PAGE, &[1; 4096])), Some(Errno::EFAULT));
    assert_eq!(errno(read(&extent, 5 * PAGE, 16)), Some(Errno::EFAULT));
    write(&extent, 0, b"still works").expect("what is there stays");
}

#[test]
fn the_same_page_has_the_same_key_and_offset() {
    let fd = memfd(4);
    let (_first, _second) = (shared(&fd, Access::ReadWrite), shared(&fd, Access::ReadWrite));
    let (one_client, other_client) = (Client::idle(), Client::idle());
    let memory = Memory::new(None);
    let spaces =
        [&one_client, &other_client].map(|client| memory.of(&client.thread).expect("memory"));
    let start = one_client.mapping_of(&fd).start;
    let extents =
        spaces.each_ref().map(|space| one(space.pin(start + PAGE, PAGE, BOTH).expect("pinned")));
    let by_offset =
        one(memory.file(fd).expect("memory").pin(PAGE, PAGE, Prot::READ).expect("pinned"));
    assert_eq!(extents[0].backing.key(), extents[1].backing.key());
    assert_eq!(extents[0].backing.key(), by_offset.backing.key());
    assert_eq!((extents[0].offset, extents[1].offset, by_offset.offset), (PAGE, PAGE, PAGE));
    write(&extents[0], 0, b"one").expect("write");
    assert_eq!(read(&by_offset, 0, 3).expect("read"), b"one");
    let (_bytes, private_start) = private(1);
    let own =
        spaces.each_ref().map(|space| one(space.pin(private_start, PAGE, BOTH).expect("pinned")));
    assert_ne!(
        own[0].backing.key(),
        own[1].backing.key(),
        "private pages of two processes are never the same"
    );
}

#[test]
fn a_process_keeps_its_key_until_it_ends_or_executes() {
    let mut shell = std::process::Command::new("sh")
        .args(["-c", "read x; exec sleep 1000"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("sh");
    let memory = Memory::new(None);
    let pid = shell.id();
    let open = || Arc::new(Thread::open(pid).expect("the shell"));
    let (thread, again) = (open(), open());
    let space = memory.of(&thread).expect("memory");
    assert_eq!(space.key(), memory.of(&again).expect("memory").key());
    let vmas = thread.mm().expect("memory").vmas(0, 1 << 47).expect("mappings");
    let writable = vmas.iter().find(|vma| vma.prot.write && !vma.shared).expect("data");
    let extent = one(space.pin(writable.start, PAGE, BOTH).expect("pinned"));
    assert!(read(&extent, 0, 4096).is_ok());
    // As the server does when the exec is stopped.
    for thread in [&thread, &again] {
        thread.process().executes();
    }
    drop(shell.stdin.take());
    let begun = std::time::Instant::now();
    while thread.process().comm().expect("alive") != "sleep" {
        assert!(begun.elapsed().as_secs() < 20, "the shell executes sleep");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(errno(read(&extent, 0, 1)), Some(Errno::EFAULT), "another program runs there");
    assert_eq!(errno(write(&extent, 0, b"x")), Some(Errno::EFAULT), "another program runs there");
    assert_eq!(errno(space.pin(writable.start, PAGE, BOTH)), Some(Errno::EFAULT));
    let after = memory.of(&open()).expect("memory");
    assert_ne!(space.key(), after.key());
    let thread = open();
    shell.kill().expect("kill");
    shell.wait().expect("wait");
    assert_eq!(errno(memory.of(&thread)), Some(Errno::ESRCH));
}

#[test]
fn a_map_lives_as_long_as_the_memory_and_not_as_who_asked_for_it() {
    let (_bytes, start) = private(1);
    let client = Client::idle();
    let memory = Memory::new(None);
    let other = Arc::new(Thread::open(client.thread.tid()).expect("the same once more"));
    let first = one(memory.of(&other).expect("memory").pin(start, PAGE, BOTH).expect("pinned"));
    let again =
        one(memory.of(&client.thread).expect("memory").pin(start, PAGE, BOTH).expect("pinned"));
    assert_eq!(first.backing.key(), again.backing.key(), "one memory, whoever asks");
    drop((other, again));
    write(&first, 0, b"still").expect("the memory is there");
    client.end();
    assert_eq!(errno(write(&first, 0, b"gone")), Some(Errno::EFAULT));
}

#[test]
fn a_client_that_ends_under_dma_harms_nobody() {
    let (_bytes, start) = private(64);
    let client = Client::idle();
    let space = Memory::new(None).of(&client.thread).expect("memory");
    let extent = one(space.pin(start, 64 * PAGE, BOTH).expect("pinned"));
    let (moved, first) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (moved, client) = (moved, &client);
        scope.spawn(move || {
            first.recv().expect("a transfer before the end");
            std::thread::sleep(std::time::Duration::from_millis(5));
            client.end();
        });
        let mut bad = 0;
        let begun = std::time::Instant::now();
        while bad < 100 {
            assert!(begun.elapsed().as_secs() < 60, "the client ends");
            match write(&extent, 0, &[5; 64 * 4096]) {
                Ok(()) => drop(moved.send(())),
                Err(error) => {
                    assert_eq!(error.errno, Errno::EFAULT);
                    bad += 1;
                }
            }
        }
    });
}

#[test]
fn memory_mapped_read_only_first_can_be_pinned_for_writing_later() {
    let fd = memfd(2);
    let read_only = rustix::fs::open(
        format!("/proc/self/fd/{}", fd.as_raw_fd()),
        OFlags::RDONLY,
        Mode::empty(),
    );
    let memory = Memory::new(None);
    let reader = memory.file(read_only.expect("the same file")).expect("memory");
    let first = one(reader.pin(0, PAGE, Prot::READ).expect("readable"));
    assert_eq!(errno(reader.pin(0, PAGE, BOTH)), Some(Errno::EACCES), "open for reading only");
    assert_eq!(errno(write(&first, 0, b"x")), Some(Errno::EFAULT));
    let second = one(memory.file(fd).expect("memory").pin(0, 2 * PAGE, BOTH).expect("writable"));
    write(&second, PAGE, b"x").expect("write");
    write(&first, 0, b"x").expect("one backing: who may write is for the page table to say");
    assert!(Arc::ptr_eq(&first.backing, &second.backing));
}

#[test]
fn only_files_that_live_in_memory_can_be_mapped_by_offset() {
    let memory = Memory::new(None);
    let (pipe, _end) = rustix::pipe::pipe().expect("a pipe");
    let program =
        rustix::fs::open("/proc/self/exe", OFlags::RDONLY, Mode::empty()).expect("this program");
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).expect("null");
    for fd in [pipe, program, null] {
        let space = memory.file(fd).expect("any file will do until it is pinned");
        assert_eq!(errno(space.pin(0, PAGE, Prot::READ)), Some(Errno::EINVAL));
    }
}

#[test]
fn a_range_past_the_end_of_a_file_is_einval_and_the_file_does_not_grow() {
    let (fd, memory) = (memfd(2), Memory::new(None));
    let space = memory.file(fd.try_clone().expect("a duplicate")).expect("memory");
    for (offset, length) in
        [(0, 2 * PAGE + 1), (2 * PAGE, 1), (u64::MAX, 1), (u64::MAX, 2), (1 << 63, PAGE)]
    {
        assert_eq!(
            errno(space.pin(offset, length, Prot::READ)),
            Some(Errno::EINVAL),
            "{offset:#x}"
        );
    }
    assert!(space.pin(PAGE, PAGE, BOTH).is_ok());
    assert_eq!(rustix::fs::fstat(&fd).expect("fstat").st_size, 2 * 4096);
}

#[test]
fn a_sealed_file_is_not_written() {
    let (fd, memory) = (memfd(1), Memory::new(None));
    rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).expect("sealed");
    let space = memory.file(fd).expect("memory");
    assert_eq!(errno(space.pin(0, PAGE, BOTH)), Some(Errno::EPERM));
}

#[test]
fn a_mapping_made_before_its_file_was_sealed_is_still_written() {
    let fd = memfd(1);
    let _mapping = shared(&fd, Access::ReadWrite);
    let client = Client::idle();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE).expect("sealed");
    let start = client.mapping_of(&fd).start;
    let space = Memory::new(None).of(&client.thread).expect("memory");
    let extent = one(space.pin(start, PAGE, BOTH).expect("the client may write there"));
    write(&extent, 0, b"through the client").expect("write");
    assert_eq!(shared(&fd, Access::Read).load_u32(0), Ok(u32::from_le_bytes(*b"thro")));
}

#[test]
fn our_own_device_files_are_never_pinned() {
    let fd = memfd(1);
    let _mapping = shared(&fd, Access::ReadWrite);
    let client = Client::idle();
    let memory = Memory::new(Some(rustix::fs::fstat(&fd).expect("fstat").st_dev));
    let start = client.mapping_of(&fd).start;
    let space = memory.of(&client.thread).expect("memory");
    assert_eq!(errno(space.pin(start, PAGE, Prot::READ)), Some(Errno::EFAULT));
    assert_eq!(
        errno(memory.file(fd).expect("memory").pin(0, PAGE, Prot::READ)),
        Some(Errno::EINVAL)
    );
}

#[test]
fn a_mapping_of_a_device_file_is_the_device_to_who_asks_for_device_memory() {
    let fd = memfd(2);
    let _mapping = shared(&fd, Access::ReadWrite);
    let client = Client::idle();
    let memory = Memory::new(Some(rustix::fs::fstat(&fd).expect("fstat").st_dev));
    let bar = Memory::new(None).file(memfd(2)).expect("memory").pin(0, 2 * PAGE, BOTH);
    let bar = one(bar.expect("pinned")).backing;
    memory.add_device(&fd, &bar, Vec::new()).expect("added");
    let start = client.mapping_of(&fd).start;
    let space = memory.of(&client.thread).expect("memory");
    assert_eq!(errno(space.pin(start + PAGE, PAGE, BOTH)), Some(Errno::EFAULT));
    let extent = one(space.pin(start + PAGE, PAGE, BOTH | Prot::MMIO).expect("device memory"));
    assert!(Arc::ptr_eq(&extent.backing, &bar));
    assert_eq!(extent.offset, PAGE);
}

#[test]
fn a_file_that_is_written_back_is_pinned_for_reading_only() {
    let path = std::env::current_exe()
        .expect("this program")
        .with_extension(format!("disk-{}", std::process::id()));
    let file = std::fs::OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("a file");
    std::fs::remove_file(&path).expect("it lives on without a name");
    file.set_len(PAGE).expect("a size");
    let fd = OwnedFd::from(file);
    let mapping = shared(&fd, Access::ReadWrite);
    mapping.store_u32(0, 77).expect("store");
    let client = Client::idle();
    let start = client.mapping_of(&fd).start;
    let space = Memory::new(None).of(&client.thread).expect("memory");
    assert_eq!(errno(space.pin(start, PAGE, BOTH)), Some(Errno::EFAULT));
    let extent = one(space.pin(start, PAGE, Prot::READ).expect("readable"));
    assert_eq!(read(&extent, 0, 4).expect("read"), 77_u32.to_ne_bytes());
}

#[test]
fn a_file_that_grows_and_grows_stays_mapped() {
    let (fd, memory) = (memfd(1), Memory::new(None));
    let space = memory.file(fd.try_clone().expect("a duplicate")).expect("memory");
    let first = one(space.pin(0, PAGE, BOTH).expect("pinned"));
    for pages in 2..600 {
        rustix::fs::ftruncate(&fd, pages * PAGE).expect("grow");
        let extent = one(space.pin((pages - 1) * PAGE, PAGE, BOTH).expect("pinned"));
        write(&extent, 0, &pages.to_ne_bytes()).expect("write");
        assert!(Arc::ptr_eq(&first.backing, &extent.backing));
    }
    let mut buf = vec![0; 599 * 4096];
    first.backing.read(&[Piece { offset: 0, length: buf.len() }], &mut buf).expect("all of it");
    assert_eq!(buf[598 * 4096..][..8], 599_u64.to_ne_bytes());
}

#[test]
fn pages_far_apart_in_a_file_larger_than_memory_are_reached() {
    let (fd, memory) = (memfd(1), Memory::new(None));
    rustix::fs::ftruncate(&fd, 1 << 60).expect("sparse");
    let space = memory.file(fd).expect("memory");
    for offset in [0, 1 << 59, (1 << 60) - PAGE] {
        let extent = one(space.pin(offset, PAGE, BOTH).expect("pinned"));
        write(&extent, 0, b"here").expect("write");
        assert_eq!(read(&extent, 0, 4).expect("read"), b"here");
    }
}

#[test]
fn dropped_extents_leave_no_fd_and_no_mapping() {
    let fd = memfd(1);
    let stat = rustix::fs::fstat(&fd).expect("fstat");
    let memory = Memory::new(None);
    let extent = one(memory.file(fd).expect("memory").pin(0, PAGE, BOTH).expect("pinned"));
    let held = || {
        let own = Thread::open(std::process::id()).expect("ourselves");
        let vmas = own.mm().expect("memory").vmas(0, u64::MAX).expect("mappings");
        vmas.iter().filter(|vma| (vma.device, vma.inode) == (stat.st_dev, stat.st_ino)).count()
    };
    assert_eq!(held(), 1);
    drop(extent);
    assert_eq!(held(), 0);
}

/// A shared anonymous mapping of this process, and how it looks there.
fn anonymous(pages: u64) -> (Mapping, Arc<Thread>, Vma) {
    let fd = memfd(pages);
    let mapping = shared(&fd, Access::ReadWrite);
    let own = Arc::new(Thread::open(std::process::id()).expect("this process"));
    let stat = rustix::fs::fstat(&fd).expect("fstat");
    drop(fd);
    let vmas = own.mm().expect("memory").vmas(0, u64::MAX).expect("mappings");
    let is_it = |vma: &Vma| (vma.device, vma.inode) == (stat.st_dev, stat.st_ino);
    let vma = vmas.into_iter().find(is_it).expect("the file is mapped");
    (mapping, own, vma)
}

#[test]
fn memory_that_cannot_be_opened_is_reached_in_whoever_maps_it() {
    let (mapping, _own, vma) = anonymous(4);
    let mut theirs = Some(mapping);
    // The client's copy of the mapping goes with the first order, this process's own with the last step.
    let client = Client::start(|_| drop(theirs.take()));
    let memory = Arc::new(PrivateMemory::new(1, &client.thread).expect("memory"));
    let id = FileId { device: vma.device, inode: vma.inode };
    let backing = Unopened::new(id);
    backing.add(&memory, &vma);
    let piece = |offset| [Piece { offset, length: 5 }];
    backing.write(&piece(2 * PAGE + 1), b"there").expect("the client maps it");
    let mut seen = [0; 5];
    theirs.as_ref().expect("mapped").read(2 * PAGE + 1, &mut seen).expect("read");
    assert_eq!(&seen, b"there", "it is the same page");

    client.order(b'u');
    backing.read(&piece(2 * PAGE + 1), &mut seen).expect("this process maps it too");
    client.end();
    backing.write(&piece(PAGE), b"after").expect("the client has ended");
    theirs.as_ref().expect("mapped").read(PAGE, &mut seen).expect("read");
    assert_eq!(&seen, b"after");
    drop(theirs);
    let gone = backing.read(&piece(PAGE), &mut seen);
    assert_eq!(errno(gone), Some(Errno::EFAULT), "nobody maps it any more");
}

#[test]
fn what_is_mapped_later_in_the_place_of_unopened_memory_is_not_reached() {
    let (mapping, own, vma) = anonymous(1);
    let memory = Arc::new(PrivateMemory::new(1, &own).expect("memory"));
    let id = FileId { device: vma.device, inode: vma.inode };
    let backing = Unopened::new(id);
    backing.add(&memory, &vma);
    assert!(memory.shows(id, 0, vma.start, PAGE));
    assert!(!memory.shows(id, 0, vma.start, PAGE + 1), "it ends there");
    assert!(!memory.shows(id, PAGE, vma.start, PAGE), "another part of the file");
    let other = FileId { inode: id.inode + 1, ..id };
    assert!(!memory.shows(other, 0, vma.start, PAGE), "another file");
    drop(mapping);
    let gone = backing.write(&[Piece { offset: 0, length: 1 }], b"x");
    assert_eq!(errno(gone), Some(Errno::EFAULT));
}
