//! Every file given to a client, by inode.
//!
//! A file of ours is an unnamed file on a memory file system of the run's own, so that dup, fork, exec, threads,
//! SCM_RIGHTS and mmap need no help: whatever descriptor a client uses, its inode says what it is. One open of ours is
//! one open file of the kernel's, and holds a lock on a byte of its own (fcntl(2), open file description locks). When
//! its last descriptor and its last mapping are gone, inotify says that something was closed, and the lock is free.
//!
//! The event comes a moment before the lock is released (`__fput`, fs/file_table.c), so an inode with an event is looked
//! at again until the lock is gone: before every answer, and by the main thread now and then. An open of somebody else
//! on the same inode, through /proc, closes without a lock having gone; that is given up after [`PATIENCE`].
//!
//! What a client may do with its descriptor that nobody is asked about changes nothing and is refused by the kernel:
//! every open is at [`END`] of a file that is as long and appends, so that read(2) and write(2) are EINVAL
//! (`rw_verify_area`, fs/read_write.c) and a write anywhere is EFBIG (`generic_write_checks`). Whoever finds another open
//! of the inode, through /proc, is told by inotify when it has written, and that is undone ([`Files::take_touched`]).
//!
//! A program has a share of the files ([`State::admit`]): what it opens beyond it is refused, so that it takes neither the
//! descriptors nor the inotify watches of others.
//!
//! Nobody closes a file himself: whoever lets go of it last hands it to the [`Closer`], whose threads may wait for it.
//! That a close has begun is known before `Files::state` is unlocked.
//!
//! Lock order: `Files::state` -> `Open::opens`, and `Files::state` -> the closer's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ioasis_iommufd::inject;
use ioasis_sys::because;
use ioasis_sys::locks::{self, Lock};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::{Errno, Error, Result};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, SeekFrom, fstat};

use crate::closer::Closer;
use crate::descriptors;

/// Closes, and what else somebody may do with an inode of ours.
const WATCHED: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CLOSE_NOWRITE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB);

/// How long after a close event the lock may still be on its way out.
const PATIENCE: Duration = Duration::from_secs(10);

/// The last offset there is, and the length of every file: `MAX_LFS_FILESIZE` (linux/fs.h).
pub(crate) const END: u64 = i64::MAX as u64;

/// What any process may have open: a few devices, their groups and an iommufd.
const FEW: usize = 32;

/// What stands behind a file.
pub(crate) trait Behind: Debug + Send + Sync + 'static {
    /// The last descriptor and the last mapping of the file `inode` are gone. It may take as long as it likes.
    fn close(&self, inode: u64);
}

/// How a file looks to who asks the kernel about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// What /proc/PID/fd/N is a link to.
    pub(crate) path: String,
    /// Device number as `st_rdev` has it.
    pub(crate) rdev: (u32, u32),
}

/// Holds an open file of a client's: the table and every call in progress have one. The last one closes it.
#[derive(Debug)]
pub(crate) struct Opened<F: Behind> {
    /// There until the drop.
    open: Option<Open<F>>,
    closer: Closer,
}

impl<F: Behind> Deref for Opened<F> {
    type Target = Open<F>;

    fn deref(&self) -> &Open<F> {
        self.open.as_ref().expect("only the drop takes it")
    }
}

impl<F: Behind> Drop for Opened<F> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.closer.begin(Box::new(move || open.close()));
        }
    }
}

/// An open file of a client's.
#[derive(Debug)]
pub(crate) struct Open<F: Behind> {
    /// Immutable.
    pub(crate) inode: u64,
    /// What it is. Immutable.
    pub(crate) file: F,
    /// Immutable.
    pub(crate) look: Look,
    /// This process's own open of the inode, which no client gets. Immutable.
    own: OwnedFd,
    /// Immutable.
    watch: i32,
    /// The process that it was opened for. Immutable.
    owner: u32,
    opens: Mutex<Opens>,
}

/// The opens of one inode, by the byte each has locked.
#[derive(Debug, Default)]
struct Opens {
    last: u32,
    alive: BTreeSet<u32>,
}

impl<F: Behind> Open<F> {
    /// The table and every call in progress have let go of it.
    fn close(self) {
        self.file.close(self.inode);
        // Its memory is free at once, though the watchdog may hold the inode a little longer.
        let _ = rustix::fs::ftruncate(&self.own, 0);
    }

    /// The process that it was opened for.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    /// A duplicate of this process's own open.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn own(&self) -> Result<OwnedFd> {
        self.own.try_clone().map_err(|_| Error::new(Errno::EMFILE, "too many open files"))
    }
}

/// A file that is nothing yet: gone unless it is published.
#[derive(Debug)]
pub(crate) struct Blank {
    pub(crate) file: OwnedFd,
    pub(crate) inode: u64,
}

/// All files of a run.
#[derive(Debug)]
pub(crate) struct Files<F: Behind> {
    /// Root of the memory file system. Immutable.
    root: OwnedFd,
    /// `st_dev` of every file there. Immutable.
    dev: u64,
    /// Immutable.
    inotify: OwnedFd,
    pub(crate) closer: Closer,
    state: Mutex<State<F>>,
}

#[derive(Debug)]
struct State<F: Behind> {
    by_inode: BTreeMap<u64, Arc<Opened<F>>>,
    by_watch: BTreeMap<i32, u64>,
    /// Inodes with a close event whose lock may not be free yet.
    closing: Vec<(u64, Instant)>,
    /// How many files were opened for each process and are open.
    owned: HashMap<u32, usize>,
    /// Immutable.
    most: usize,
    /// Inodes that were written, cut or marked, by us or by somebody else.
    touched: BTreeSet<u64>,
}

/// Inodes of the file system from which on no text is made: a page each, of the 64 MiB that it has at least half.
const TEXTS: u64 = 8192;

impl<F: Behind> Files<F> {
    /// No files, to be made below `root`.
    ///
    /// # Errors
    ///
    /// `EMFILE` when the user's inotify instances are used up (`fs.inotify.max_user_instances`), `EAGAIN` without a
    /// thread to close files with.
    pub(crate) fn new(root: OwnedFd) -> Result<Self> {
        let dev = fstat(&root).map_err(because("the file system for files is gone"))?.st_dev;
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(because("no inotify instance is left: raise fs.inotify.max_user_instances"))?;
        let state = State {
            by_inode: BTreeMap::new(),
            by_watch: BTreeMap::new(),
            closing: Vec::new(),
            owned: HashMap::new(),
            most: descriptors::most_files(),
            touched: BTreeSet::new(),
        };
        Ok(Self { root, dev, inotify, closer: Closer::new()?, state: Mutex::new(state) })
    }

    /// `st_dev` of every file given to a client.
    pub(crate) fn dev(&self) -> u64 {
        self.dev
    }

    /// Readable when a file was closed.
    pub(crate) fn closes(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// An empty file.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENOSPC`.
    pub(crate) fn blank(&self) -> Result<Blank> {
        inject::step("a file for the program")?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.root, ".", flags, Mode::from_raw_mode(0o600))
            .map_err(because("a file for the program cannot be made"))?;
        let file = descriptors::keep(file)?;
        let inode = fstat(&file).map_err(because("a file cannot be looked at"))?.st_ino;
        Ok(Blank { file, inode })
    }

    /// The same, for a text that a program reads and that nobody closes for us: so many that what devices need is left.
    ///
    /// # Errors
    ///
    /// `ENFILE` when there are too many; as [`Files::blank`].
    pub(crate) fn blank_for_text(&self) -> Result<Blank> {
        let system = rustix::fs::fstatvfs(&self.root);
        let system = system.map_err(because("the file system for files cannot be looked at"))?;
        let used = system.f_files.saturating_sub(system.f_ffree);
        if used >= TEXTS {
            return Err(Error::at(Errno::ENFILE, "too many texts are open in this run", used));
        }
        self.blank()
    }

    /// Another open of a file that is to stay nothing of ours: its text is all there is to it.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn reopen(&self, blank: &Blank, access: OFlags) -> Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", blank.file.as_raw_fd());
        rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())
            .map_err(because("a file for the program cannot be opened"))
    }

    /// Makes a blank file one of ours, opened for the process `owner`. Where it fails, `file` is dropped without having been
    /// closed.
    ///
    /// # Errors
    ///
    /// `EMFILE` when the process has its share of files, `ENFILE` when there are no more; `ENOSPC` when the user's inotify watches are used up (`fs.inotify.max_user_watches`).
    pub(crate) fn publish(
        &self,
        (blank, owner): (Blank, u32),
        file: F,
        look: Look,
    ) -> Result<Arc<Opened<F>>> {
        inject::step("a watch on a file")?;
        self.state.lock().admit(owner)?;
        let Blank { file: own, inode } = blank;
        let path = format!("/proc/self/fd/{}", own.as_raw_fd());
        rustix::fs::ftruncate(&own, END).map_err(because("a file cannot be made long enough"))?;
        let watch = inotify::add_watch(&self.inotify, path, WATCHED)
            .map_err(because("no inotify watch is left: raise fs.inotify.max_user_watches"))?;
        let open =
            Open { inode, file, look, own, watch, owner, opens: Mutex::new(Opens::default()) };
        let opened = Arc::new(Opened { open: Some(open), closer: self.closer.clone() });
        let mut state = self.state.lock();
        *state.owned.entry(owner).or_default() += 1;
        state.by_watch.insert(watch, inode);
        let old = state.by_inode.insert(inode, Arc::clone(&opened));
        assert!(old.is_none(), "an inode is used again only after its file was closed");
        Ok(opened)
    }

    /// Another open of a file, to be given to a client: it counts from here on.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub(crate) fn open(&self, opened: &Opened<F>, access: OFlags) -> Result<OwnedFd> {
        inject::step("another open of a file")?;
        let path = format!("/proc/self/fd/{}", opened.own.as_raw_fd());
        let flags = access | OFlags::APPEND | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map_err(because("a file for the program cannot be opened"))?;
        rustix::fs::seek(&file, SeekFrom::Start(END))
            .map_err(because("a file for the program has no end"))?;
        let mut opens = opened.opens.lock();
        // Access mode 3: neither to be read nor to be written, and to be locked neither (fcntl_setlk, fs/locks.c). It is
        // the one open of its inode, so the next event of a close is its.
        if access & OFlags::RWMODE == OFlags::RWMODE {
            return Ok(file);
        }
        let lock = if access.contains(OFlags::WRONLY) || access.contains(OFlags::RDWR) {
            Lock::Exclusive
        } else {
            Lock::Shared
        };
        opens.last += 1;
        let byte = opens.last;
        locks::lock_byte(&file, byte, lock)?;
        opens.alive.insert(byte);
        Ok(file)
    }

    /// The file with this identity, if it is one of ours.
    pub(crate) fn get(&self, dev: u64, inode: u64) -> Option<Arc<Opened<F>>> {
        if dev != self.dev {
            return None;
        }
        self.state.lock().by_inode.get(&inode).cloned()
    }

    /// Whether some file is such a one.
    pub(crate) fn any(&self, is: impl Fn(&F) -> bool) -> bool {
        self.state.lock().by_inode.values().any(|opened| is(&opened.file))
    }

    /// Takes back a file that could not be given to anybody.
    pub(crate) fn forget(&self, opened: &Opened<F>) {
        let _ = inotify::remove_watch(&self.inotify, opened.watch);
        let taken = self.state.lock().take(opened.inode);
        drop(taken);
    }

    /// Begins to close what clients have closed. Nobody waits here; who must see it closed asks the closer.
    pub(crate) fn drain(&self) {
        let mut state = self.state.lock();
        self.read_events(&mut state);
        if state.closing.is_empty() {
            return;
        }
        for opened in state.take_closed() {
            // The kernel drops the watch itself once the inode is gone.
            let _ = inotify::remove_watch(&self.inotify, opened.watch);
        }
    }

    /// The files that somebody has written or changed otherwise since the last call: [`Files::drain`] finds out which.
    pub(crate) fn take_touched(&self) -> Vec<Arc<Opened<F>>> {
        let mut state = self.state.lock();
        let touched = std::mem::take(&mut state.touched);
        touched.iter().filter_map(|inode| state.by_inode.get(inode).cloned()).collect()
    }

    /// What `seen` makes of every open file; it takes no lock, and keeps none of them open.
    pub(crate) fn look<R>(&self, seen: impl Fn(&Open<F>) -> R) -> Vec<R> {
        let state = self.state.lock();
        state.by_inode.values().map(|opened| seen(opened)).collect()
    }

    /// Every open file.
    pub(crate) fn all(&self) -> Vec<Arc<Opened<F>>> {
        self.state.lock().by_inode.values().cloned().collect()
    }

    /// Whether a close is still on its way, so that [`Files::drain`] must be called again soon.
    pub(crate) fn is_closing(&self) -> bool {
        !self.state.lock().closing.is_empty()
    }

    /// Whether there are files for [`Files::take_touched`].
    pub(crate) fn is_touched(&self) -> bool {
        !self.state.lock().touched.is_empty()
    }

    /// Begins to close every file, whoever has it open.
    pub(crate) fn close_all(&self) {
        let mut state = self.state.lock();
        state.owned.clear();
        drop(std::mem::take(&mut state.by_inode));
    }

    /// How many files are open.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.state.lock().by_inode.len()
    }

    fn read_events(&self, state: &mut State<F>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let now = Instant::now();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                state.closing = state.by_inode.keys().map(|&inode| (inode, now)).collect();
                state.touched = state.by_inode.keys().copied().collect();
                continue;
            }
            if event.events().contains(ReadFlags::IGNORED) {
                state.by_watch.remove(&event.wd());
                continue;
            }
            let Some(&inode) = state.by_watch.get(&event.wd()) else { continue };
            if event.events().intersects(ReadFlags::MODIFY | ReadFlags::ATTRIB) {
                state.touched.insert(inode);
            }
            if event.events().intersects(ReadFlags::CLOSE_WRITE | ReadFlags::CLOSE_NOWRITE) {
                state.closing.retain(|&(other, _)| other != inode);
                state.closing.push((inode, now));
            }
        }
    }
}

impl<F: Behind> State<F> {
    /// Takes out the files that nobody has open any more.
    fn take_closed(&mut self) -> Vec<Arc<Opened<F>>> {
        let mut closed = Vec::new();
        let Self { by_inode, closing, .. } = &mut *self;
        closing.retain(|&(inode, since)| {
            let Some(opened) = by_inode.get(&inode) else { return false };
            let mut opens = opened.opens.lock();
            let before = opens.alive.len();
            opens.alive.retain(|&byte| locks::is_byte_locked(&opened.own, byte));
            let (after, none) = (opens.alive.len(), opens.alive.is_empty());
            drop(opens);
            if none {
                closed.push(inode);
            }
            !none && after == before && since.elapsed() < PATIENCE
        });
        closed.into_iter().filter_map(|inode| self.take(inode)).collect()
    }

    /// Takes a file out.
    fn take(&mut self, inode: u64) -> Option<Arc<Opened<F>>> {
        let taken = self.by_inode.remove(&inode)?;
        if let Some(owned) = self.owned.get_mut(&taken.owner) {
            *owned -= 1;
            if *owned == 0 {
                self.owned.remove(&taken.owner);
            }
        }
        Some(taken)
    }

    /// Whether one more file may be opened for `owner`: it may have a quarter of those that are left, and [`FEW`] in any
    /// case while there are any. By forking, a program gets less and less for each process.
    fn admit(&self, owner: u32) -> Result<()> {
        let (used, owned) = (self.by_inode.len(), self.owned.get(&owner).copied().unwrap_or(0));
        if used >= self.most {
            return Err(Error::at(
                Errno::ENFILE,
                "all clients have too many files",
                self.most as u64,
            ));
        }
        if owned >= FEW.min(self.most / 2).max((self.most - used) / 4) {
            return Err(Error::at(
                Errno::EMFILE,
                "the process has its share of files",
                owned as u64,
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug)]
    struct Counted(Arc<AtomicU32>);

    impl Behind for Counted {
        fn close(&self, _: u64) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Bench {
        files: Files<Counted>,
        closed: Arc<AtomicU32>,
    }

    impl Bench {
        fn new() -> Self {
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
            let root = rustix::fs::open("/dev/shm", flags, Mode::empty()).expect("a tmpfs");
            Self { files: Files::new(root).expect("inotify"), closed: Arc::default() }
        }

        fn publish(&self) -> Arc<Opened<Counted>> {
            let blank = self.files.blank().expect("a file");
            let look = Look { path: "/dev/iommu".to_owned(), rdev: (10, 126) };
            self.files
                .publish((blank, 1), Counted(Arc::clone(&self.closed)), look)
                .expect("a watch")
        }

        fn closed(&self) -> u32 {
            self.files.drain();
            self.files.closer.finish(Duration::from_secs(60));
            self.closed.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn a_file_is_closed_after_its_last_descriptor() {
        let bench = Bench::new();
        let opened = bench.publish();
        let file = bench.files.open(&opened, OFlags::RDWR).expect("an open");
        drop(opened);
        let copy = file.try_clone().expect("a copy");
        drop(file);
        assert_eq!(bench.closed(), 0);
        let stat = fstat(&copy).expect("a file");
        assert!(bench.files.get(stat.st_dev, stat.st_ino).is_some());
        assert!(bench.files.get(stat.st_dev ^ 1, stat.st_ino).is_none());
        drop(copy);
        assert_eq!((bench.closed(), bench.files.count()), (1, 0));
        assert!(bench.files.get(stat.st_dev, stat.st_ino).is_none());
    }

    #[test]
    fn a_mapping_keeps_a_file_open() {
        use ioasis_sys::mapping::{Access, Mapping};
        let bench = Bench::new();
        let opened = bench.publish();
        let file = bench.files.open(&opened, OFlags::RDWR).expect("an open");
        drop(opened);
        let mapping = Mapping::file(file.as_fd(), 0, 4096, Access::ReadWrite).expect("a mapping");
        drop(file);
        assert_eq!(bench.closed(), 0);
        drop(mapping);
        assert_eq!(bench.closed(), 1);
    }

    #[test]
    fn an_open_reads_and_writes_nothing_by_itself() {
        use rustix::io::Errno;
        let bench = Bench::new();
        let opened = bench.publish();
        let file = bench.files.open(&opened, OFlags::RDWR).expect("an open");
        assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::INVAL));
        assert_eq!(rustix::io::read(&file, &mut [0; 1]), Err(Errno::INVAL));
        for offset in [0, 1 << 40, END - 1] {
            assert_eq!(rustix::io::pwrite(&file, b"x", offset), Err(Errno::FBIG), "{offset:#x}");
        }
        rustix::fs::seek(&file, SeekFrom::Start(0)).expect("a regular file");
        assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::FBIG));
        let stat = fstat(&file).expect("a file");
        assert_eq!((stat.st_blocks, stat.st_size), (0, END.cast_signed()));
        bench.files.drain();
        assert!(bench.files.take_touched().is_empty());
    }

    #[test]
    fn what_is_written_through_another_open_is_told_once() {
        let bench = Bench::new();
        let (opened, other) = (bench.publish(), bench.publish());
        let _opens =
            [&opened, &other].map(|file| bench.files.open(file, OFlags::RDWR).expect("an open"));
        let path = format!("/proc/self/fd/{}", opened.own.as_raw_fd());
        let stray = rustix::fs::open(path, OFlags::RDWR, Mode::empty()).expect("through /proc");
        rustix::io::pwrite(&stray, b"x", 7).expect("room");
        rustix::fs::ftruncate(&stray, 0).expect("a regular file");
        bench.files.drain();
        let touched = bench.files.take_touched();
        assert_eq!(touched.iter().map(|file| file.inode).collect::<Vec<_>>(), [opened.inode]);
        bench.files.drain();
        assert!(bench.files.take_touched().is_empty());
    }

    #[test]
    fn a_file_opened_twice_is_closed_once() {
        let bench = Bench::new();
        let opened = bench.publish();
        let first = bench.files.open(&opened, OFlags::RDWR).expect("an open");
        let second = bench.files.open(&opened, OFlags::RDONLY).expect("an open");
        drop(opened);
        drop(first);
        assert_eq!(bench.closed(), 0);
        drop(second);
        assert_eq!(bench.closed(), 1);
    }

    #[test]
    fn an_open_of_somebody_else_does_not_close_a_file() {
        let bench = Bench::new();
        let opened = bench.publish();
        let file = bench.files.open(&opened, OFlags::RDWR).expect("an open");
        drop(opened);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        drop(std::fs::File::open(path).expect("through /proc"));
        assert_eq!(bench.closed(), 0);
        assert!(bench.files.is_closing());
        drop(file);
        assert_eq!(bench.closed(), 1);
        assert!(!bench.files.is_closing());
    }

    #[test]
    fn a_call_in_progress_keeps_what_it_works_on() {
        let bench = Bench::new();
        let in_progress = bench.publish();
        drop(bench.files.open(&in_progress, OFlags::RDWR).expect("an open"));
        assert_eq!((bench.closed(), bench.files.count()), (0, 0));
        drop(in_progress);
        assert_eq!(bench.closed(), 1);
    }

    #[test]
    fn closing_all_leaves_nothing() {
        let bench = Bench::new();
        let files: Vec<_> = (0..3)
            .map(|_| bench.files.open(&bench.publish(), OFlags::RDWR).expect("an open"))
            .collect();
        bench.files.close_all();
        assert_eq!((bench.closed(), bench.files.count()), (3, 0));
        drop(files);
        assert_eq!(bench.closed(), 3);
    }
}
