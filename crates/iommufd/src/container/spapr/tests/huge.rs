//! Memory in huge pages.

use std::sync::Arc;

use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Result};
use zerocopy::IntoBytes;

use super::{Fixture, RW, SECOND, V2, errno};
use crate::tests::rig::{ACCOUNT, ARG, BASE};
use crate::{Account, AddressSpace, Backing, Client, Extents, Kind, Memory, Piece, Prot};

/// The client's memory, as if it were in huge pages of 2 MiB.
#[derive(Debug)]
struct Huge(Memory);

#[derive(Debug)]
struct HugeBacking(Arc<dyn Backing>);

impl AddressSpace for Huge {
    fn key(&self) -> u128 {
        AddressSpace::key(&self.0)
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        let mut extents = self.0.pin(address, length, need)?;
        for extent in &mut extents {
            extent.backing = Arc::new(HugeBacking(Arc::clone(&extent.backing)));
        }
        Ok(extents)
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}

impl Backing for HugeBacking {
    fn key(&self) -> u128 {
        self.0.key()
    }

    fn page_lg2(&self) -> u32 {
        21
    }

    fn read(&self, pieces: &[Piece], buf: &mut [u8]) -> Result<()> {
        self.0.read(pieces, buf)
    }

    fn write(&self, pieces: &[Piece], buf: &[u8]) -> Result<()> {
        self.0.write(pieces, buf)
    }
}

impl Client for Huge {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.0.write(address, buf)
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        Arc::new(Self(self.0.clone()))
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
        refuse!(EBADF, "no file is open", u64::from(fd.unsigned_abs()))
    }

    fn account(&self) -> Account {
        ACCOUNT
    }
}

#[test]
fn huge_pages_suit_a_window_of_their_size_where_the_region_is_aligned_to_them() {
    let fixture = Fixture::new(V2);
    let huge = Huge(fixture.client.memory.clone());
    let call = |code, cmd: &[u8]| {
        huge.0.write(ARG, cmd).unwrap();
        fixture.container.ioctl(&huge, code, ARG)
    };
    let register = |vaddr, size| {
        let range = abi::IommuSpaprRegisterMemory { argsz: 24, flags: 0, vaddr, size };
        call(abi::IOMMU_SPAPR_REGISTER_MEMORY, range.as_bytes())
    };
    let map = |vaddr, size| {
        let map = abi::IommuType1DmaMap { argsz: 32, flags: RW, vaddr, iova: SECOND, size };
        call(abi::IOMMU_MAP_DMA, map.as_bytes())
    };
    let large = 2 << 20;
    assert_eq!(register(BASE, large), Ok(0));
    assert_eq!(register(BASE + large, large - 0x1_0000), Ok(0));
    let create = abi::IommuSpaprTceCreate {
        argsz: 40,
        page_shift: 21,
        window_size: 1 << 30,
        levels: 1,
        ..Default::default()
    };
    assert_eq!(call(abi::IOMMU_SPAPR_TCE_CREATE, create.as_bytes()), Ok(0));
    assert_eq!(errno(map(BASE, 0x1000)), Errno::EINVAL, "no page of the window");
    assert_eq!(errno(map(BASE + large, large)), Errno::EINVAL, "the region is too short");
    assert_eq!(map(BASE, large), Ok(0));
    assert!(fixture.reaches(SECOND + large - 1, BASE + large - 1));
    assert!(!fixture.reaches(SECOND + large, BASE + large));
    fixture.end();
}
