//! A region: what can be done with it, and which parts of it can be mapped.

use std::os::fd::OwnedFd;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::{Error, Result};
use crate::message::{
    CAP_SPARSE_MMAP, CapHeader, Command, MAX_DATA, REGION_CAPS, REGION_MMAP, RegionInfoBody,
};

/// Bytes of the region info itself, after which capabilities stand.
const INFO: usize = size_of::<RegionInfoBody>();
/// Bytes of capabilities that are taken: more than 2000 areas.
const MAX_CAPS: usize = 1 << 16;
/// Capabilities and areas of one region.
const MAX_CHAIN: usize = 64;
const MAX_AREAS: usize = 1024;

/// A part of a region that can be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Where in the region it begins.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A region.
#[derive(Debug, Default)]
pub struct Region {
    /// `REGION_READABLE`, `REGION_WRITABLE` and `REGION_MMAP`.
    pub flags: u32,
    /// Bytes; 0 where there is none.
    pub size: u64,
    /// Where in `file` the region begins.
    pub file_offset: u64,
    /// What can be mapped; with `REGION_MMAP` and without a list, all of it. In the order given,
    /// each inside the region.
    pub areas: Vec<Area>,
    /// What is mapped.
    pub file: Option<OwnedFd>,
}

impl Region {
    /// What can be mapped, the whole region as one area included.
    #[must_use]
    pub fn mappable(&self) -> Vec<Area> {
        if self.flags & REGION_MMAP == 0 || self.file.is_none() {
            return Vec::new();
        }
        if self.areas.is_empty() {
            return vec![Area { offset: 0, size: self.size }];
        }
        self.areas.clone()
    }

    /// The body of a reply, at most `room` bytes: where the capabilities do not fit, none, and what
    /// it would take.
    pub(crate) fn encode(&self, index: u32, room: usize) -> Vec<u8> {
        let mut info = RegionInfoBody::new_zeroed();
        info.index = index.into();
        info.flags = self.flags.into();
        info.size = self.size.into();
        info.offset = self.file_offset.into();
        let mut caps = Vec::new();
        if !self.areas.is_empty() {
            let header =
                CapHeader { id: CAP_SPARSE_MMAP.into(), version: 1.into(), next: 0.into() };
            caps.extend_from_slice(header.as_bytes());
            let count = u32::try_from(self.areas.len()).unwrap_or(u32::MAX);
            caps.extend_from_slice([U32::new(count), U32::new(0)].as_bytes());
            for area in &self.areas {
                caps.extend_from_slice([U64::new(area.offset), U64::new(area.size)].as_bytes());
            }
            info.flags = (self.flags | REGION_CAPS).into();
        }
        let need = INFO + caps.len();
        info.argsz = u32::try_from(need).unwrap_or(u32::MAX).into();
        if !caps.is_empty() {
            // Said also where they do not fit: QEMU takes no answer with the flag and without the
            // offset.
            info.cap_offset = u32::try_from(INFO).unwrap_or(u32::MAX).into();
        }
        if caps.is_empty() || room < need {
            return info.as_bytes().to_vec();
        }
        [info.as_bytes(), &caps].concat()
    }

    /// What a reply needs that had no room, if it had none.
    pub(crate) fn need(body: &[u8], room: usize) -> Result<Option<usize>> {
        let info = info(body)?;
        let argsz = usize::try_from(info.argsz.get()).unwrap_or(usize::MAX);
        if info.flags.get() & REGION_CAPS == 0 || argsz <= room {
            return Ok(None);
        }
        if argsz > MAX_CAPS {
            return Err(wrong("capabilities of that size", argsz as u64));
        }
        Ok(Some(argsz))
    }

    /// Reads a reply about region `index`.
    pub(crate) fn decode(index: u32, body: &[u8], mut files: Vec<OwnedFd>) -> Result<Self> {
        let info = info(body)?;
        if info.index.get() != index {
            return Err(wrong("an answer about another region", info.index.get().into()));
        }
        if files.len() > 1 {
            return Err(wrong("more descriptors than a region has", files.len() as u64));
        }
        let (size, file_offset) = (info.size.get(), info.offset.get());
        if file_offset.checked_add(size).is_none() {
            return Err(wrong("a region that passes the end of its file's offsets", file_offset));
        }
        let flags = info.flags.get();
        let mut region = Self { flags, size, file_offset, areas: Vec::new(), file: files.pop() };
        if flags & REGION_CAPS != 0 {
            region.areas = areas(body, info.cap_offset.get(), size)?;
        }
        Ok(region)
    }
}

fn wrong(why: &'static str, value: u64) -> Error {
    Error::malformed(Command::DEVICE_GET_REGION_INFO, why, value)
}

fn info(body: &[u8]) -> Result<RegionInfoBody> {
    let (info, _) = RegionInfoBody::read_from_prefix(body)
        .map_err(|_| wrong("an answer that is too short", body.len() as u64))?;
    Ok(info)
}

/// The areas that the chain of capabilities from `first` lists.
fn areas(body: &[u8], first: u32, size: u64) -> Result<Vec<Area>> {
    let mut areas = Vec::new();
    let mut at = usize::try_from(first).unwrap_or(usize::MAX);
    for _ in 0..MAX_CHAIN {
        if at == 0 {
            return Ok(areas);
        }
        let outside = || wrong("a capability outside the answer", at as u64);
        let rest = body.get(at..).filter(|_| at >= INFO).ok_or_else(outside)?;
        let (cap, data) = CapHeader::read_from_prefix(rest).map_err(|_| outside())?;
        if cap.id.get() == CAP_SPARSE_MMAP {
            areas = sparse(data, size)?;
        }
        at = usize::try_from(cap.next.get()).unwrap_or(usize::MAX);
    }
    Err(wrong("a chain of capabilities without an end", MAX_CHAIN as u64))
}

fn sparse(data: &[u8], size: u64) -> Result<Vec<Area>> {
    let short = |_| wrong("a list of areas that is cut", data.len() as u64);
    let ([count, _], rest) = <[U32; 2]>::read_from_prefix(data).map_err(|_| short(()))?;
    let count = usize::try_from(count.get()).unwrap_or(usize::MAX);
    if count > MAX_AREAS || count * 16 > MAX_DATA {
        return Err(wrong("that many areas", count as u64));
    }
    let mut areas = Vec::with_capacity(count);
    for entry in rest.chunks(16).take(count) {
        let words = <[U64; 2]>::read_from_bytes(entry).map_err(|_| short(()))?;
        let [offset, length] = words.map(U64::get);
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(wrong("an area outside its region", offset));
        }
        areas.push(Area { offset, size: length });
    }
    if areas.len() != count {
        return Err(short(()));
    }
    Ok(areas)
}
