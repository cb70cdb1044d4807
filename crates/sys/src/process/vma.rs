//! What another process has mapped where.

use std::os::fd::AsRawFd;

use ioasis_uapi::{Errno, Error, Result};

use super::Process;
use crate::errno::last_errno;

/// What a mapping permits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmaProt {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub exec: bool,
}

/// One mapping, as a line of `/proc/PID/maps` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
    /// What it permits.
    pub prot: VmaProt,
    /// `MAP_SHARED`.
    pub shared: bool,
    /// Where in the file `start` lies.
    pub offset: u64,
    /// The file system, as in `st_dev`.
    pub device: u64,
    /// The file; 0 for private anonymous memory.
    pub inode: u64,
}

/// `struct procmap_query` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<ProcmapQuery>() == 104);

/// `PROCMAP_QUERY`: `_IOWR('f', 17, struct procmap_query)`, Linux 6.11.
const PROCMAP_QUERY: libc::c_ulong = 0xc068_6611;
/// `PROCMAP_QUERY_VMA_*` of linux/fs.h.
const VMA_READABLE: u64 = 1;
const VMA_WRITABLE: u64 = 2;
const VMA_EXECUTABLE: u64 = 4;
const VMA_SHARED: u64 = 8;
const COVERING_OR_NEXT_VMA: u64 = 0x10;

impl Process {
    /// The mapping at `address`, if there is one.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone, `EACCES` when it is not ours to look at.
    pub fn vma(&self, address: u64) -> Result<Option<Vma>> {
        Ok(self.vmas(address, address)?.into_iter().next())
    }

    /// The mappings that touch `start..=last`, ascending, whole: the first may begin before and the last end after.
    ///
    /// # Errors
    ///
    /// `ESRCH` when the process is gone, `EACCES` when it is not ours to look at.
    pub fn vmas(&self, start: u64, last: u64) -> Result<Vec<Vma>> {
        match self.query_all(start, last) {
            Err(error) if error.errno == Errno::ENOTTY => self.parse_all(start, last),
            answer => answer,
        }
    }

    fn query_all(&self, start: u64, last: u64) -> Result<Vec<Vma>> {
        let mut found = Vec::new();
        let mut at = start;
        while let Some(vma) = self.query(at)?.filter(|vma| vma.start <= last) {
            found.push(vma);
            match vma.last.checked_add(1) {
                Some(next) if next <= last => at = next,
                _ => break,
            }
        }
        Ok(found)
    }

    /// The mapping at `address`, or the next one above.
    fn query(&self, address: u64) -> Result<Option<Vma>> {
        let mut maps = self.maps.lock();
        let mut reopened = false;
        loop {
            let fd = match &*maps {
                Some(fd) => fd.as_raw_fd(),
                None => maps.insert(self.open_maps()?).as_raw_fd(),
            };
            let mut query = ProcmapQuery {
                size: size_of::<ProcmapQuery>() as u64,
                query_flags: COVERING_OR_NEXT_VMA,
                query_addr: address,
                ..ProcmapQuery::default()
            };
            // SAFETY: 1. `fd` is open, held by the lock. 2. The struct is the one the number names, its size field says
            // so, and it asks for no name and no build id, so the kernel writes nothing else.
            if unsafe { libc::ioctl(fd, PROCMAP_QUERY, &raw mut query) } == 0 {
                return Ok(Some(query.into()));
            }
            match last_errno() {
                Errno::ENOENT => return Ok(None),
                // The fd speaks of the memory before an exec.
                Errno::ESRCH if !reopened => {
                    *maps = None;
                    reopened = true;
                }
                Errno::ESRCH => {
                    return Err(Error::at(Errno::ESRCH, "the process is gone", self.pid().into()));
                }
                errno => return Err(Error::at(errno, "the mappings cannot be queried", address)),
            }
        }
    }

    fn open_maps(&self) -> Result<std::os::fd::OwnedFd> {
        let (task, pid) = (self.task(), self.pid());
        if task != pid || !self.has_memory(task) && self.choose_task(task) {
            return self.open_proc(&format!("task/{}/maps", self.task()));
        }
        self.open_proc("maps")
    }

    /// The same from the text, on kernels before 6.11.
    pub(super) fn parse_all(&self, start: u64, last: u64) -> Result<Vec<Vma>> {
        let task = self.task();
        if !self.has_memory(task) {
            self.choose_task(task);
        }
        let text = self.read_proc(&format!("task/{}/maps", self.task()))?;
        Ok(text
            .lines()
            .filter_map(parse)
            .filter(|vma| vma.last >= start && vma.start <= last)
            .collect())
    }
}

impl From<ProcmapQuery> for Vma {
    fn from(query: ProcmapQuery) -> Self {
        let is = |flag| query.vma_flags & flag != 0;
        Self {
            start: query.vma_start,
            last: query.vma_end - 1,
            prot: VmaProt {
                read: is(VMA_READABLE),
                write: is(VMA_WRITABLE),
                exec: is(VMA_EXECUTABLE),
            },
            shared: is(VMA_SHARED),
            offset: query.vma_offset,
            device: rustix::fs::makedev(query.dev_major, query.dev_minor),
            inode: query.inode,
        }
    }
}

/// `7f00-7f10 rw-s 00002000 00:01 1234 /name`: proc_pid_maps(5).
fn parse(line: &str) -> Option<Vma> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let flags = fields.next()?.as_bytes();
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = |text| u32::from_str_radix(text, 16).ok();
    let is = |at: usize, letter| flags.get(at) == Some(&letter);
    Some(Vma {
        start: hex(start)?,
        last: hex(end)?.checked_sub(1)?,
        prot: VmaProt { read: is(0, b'r'), write: is(1, b'w'), exec: is(2, b'x') },
        shared: is(3, b's'),
        offset,
        device: rustix::fs::makedev(device(major)?, device(minor)?),
        inode: fields.next()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_manual_is_parsed() {
        let vma = parse("00e03000-00e24000 rw-s 00002000 fe:01 1183 /usr/bin/some name")
            .expect("a mapping");
        assert_eq!(
            (vma.start, vma.last, vma.offset, vma.inode),
            (0xe0_3000, 0xe2_3fff, 0x2000, 1183)
        );
        assert_eq!((vma.device, vma.shared), (rustix::fs::makedev(0xfe, 1), true));
        assert_eq!(vma.prot, VmaProt { read: true, write: true, exec: false });
        assert_eq!(parse("garbage"), None);
    }
}
