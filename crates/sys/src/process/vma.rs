//! What another process has mapped where, and whether it still has.

use std::os::fd::{AsFd, AsRawFd};

use ioasis_uapi::{Errno, Error, Result};

use super::Mm;
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

/// What a query says about an address.
enum Answer {
    Vma(Vma),
    /// Nothing there or above.
    Nothing,
    /// The kernel is older than 6.11.
    Unknown,
}

impl Mm {
    /// The mappings that touch `start..=last`, ascending, whole: the first may begin before and the last end after.
    ///
    /// # Errors
    ///
    /// `ESRCH` once the process has ended or executed another program.
    pub fn vmas(&self, start: u64, last: u64) -> Result<Vec<Vma>> {
        let mut found = Vec::new();
        let mut at = start;
        loop {
            match self.query(at)? {
                Answer::Unknown => return self.parse_all(start, last),
                Answer::Vma(vma) if vma.start <= last => {
                    found.push(vma);
                    match vma.last.checked_add(1) {
                        Some(next) if next <= last => at = next,
                        _ => return Ok(found),
                    }
                }
                Answer::Vma(_) | Answer::Nothing => return Ok(found),
            }
        }
    }

    /// The mapping at `address`, if there is one.
    ///
    /// # Errors
    ///
    /// `ESRCH` once the process has ended or executed another program.
    pub fn vma(&self, address: u64) -> Result<Option<Vma>> {
        Ok(self.vmas(address, address)?.into_iter().next())
    }

    /// Whether the process still runs in this memory.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self.query(0) {
            Ok(Answer::Unknown) => matches!(rustix::io::pread(&self.maps, &mut [0], 0), Ok(1)),
            answer => answer.is_ok(),
        }
    }

    /// The mapping at `address`, or the next one above.
    fn query(&self, address: u64) -> Result<Answer> {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT_VMA,
            query_addr: address,
            ..ProcmapQuery::default()
        };
        // SAFETY: 1. the struct is the one the number names, its size field says so, and it asks for no name and no
        // build id, so the kernel writes nothing else.
        if unsafe { libc::ioctl(self.maps.as_fd().as_raw_fd(), PROCMAP_QUERY, &raw mut query) } == 0
        {
            return Ok(Answer::Vma(query.into()));
        }
        match last_errno() {
            Errno::ENOENT => Ok(Answer::Nothing),
            Errno::ENOTTY => Ok(Answer::Unknown),
            Errno::ESRCH => {
                Err(Error::new(Errno::ESRCH, "the process has ended or executed another program"))
            }
            errno => Err(Error::at(errno, "the mappings cannot be queried", address)),
        }
    }

    /// The same from the text.
    pub(super) fn parse_all(&self, start: u64, last: u64) -> Result<Vec<Vma>> {
        let text = self.text()?;
        let text = String::from_utf8_lossy(&text);
        Ok(text
            .lines()
            .filter_map(parse)
            .filter(|vma| vma.last >= start && vma.start <= last)
            .collect())
    }

    /// The text of /proc/PID/maps, which is never empty.
    pub(super) fn text(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        let mut part = [0; 4096];
        loop {
            match rustix::io::pread(&self.maps, &mut part, text.len() as u64) {
                Ok(0) => break,
                Ok(count) => text.extend_from_slice(&part[..count]),
                Err(_) => {
                    return Err(Error::new(
                        Errno::ESRCH,
                        "the process has ended or executed another program",
                    ));
                }
            }
        }
        if text.is_empty() {
            return Err(Error::new(
                Errno::ESRCH,
                "the process has ended or executed another program",
            ));
        }
        Ok(text)
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
