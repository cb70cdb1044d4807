//! Clients whose memory is read-only from some address on, or that do something else while a call
//! reads its argument.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Result};
use zerocopy::IntoBytes;

use super::{Fixture, R, RW, V1, V2, errno};
use crate::container::{Container, GroupKind, Member};
use crate::tests::rig::{ACCOUNT, ARG, BASE};
use crate::{Account, AddressSpace, Client, Extents, Frozen, Kind, Memory, PeDevices, Prot};

/// Memory that nobody may write from an address on.
#[derive(Clone, Debug)]
struct Guarded {
    memory: Memory,
    from: u64,
}

impl AddressSpace for Guarded {
    fn key(&self) -> u128 {
        AddressSpace::key(&self.memory)
    }

    fn pin(&self, address: u64, length: u64, need: Prot) -> Result<Extents> {
        if need.contains(Prot::WRITE) && address + length > self.from {
            return refuse!(EFAULT, "the memory is read-only", address);
        }
        self.memory.pin(address, length, need)
    }

    fn kind(&self) -> Kind {
        Kind::User
    }
}

struct Acting<'a> {
    memory: Guarded,
    /// What it does at each read.
    act: &'a dyn Fn(),
}

impl fmt::Debug for Acting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.memory.fmt(f)
    }
}

impl Client for Acting<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        (self.act)();
        self.memory.memory.read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.memory.memory.write(address, buf)
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        Arc::new(self.memory.clone())
    }

    fn file_memory(&self, fd: i32) -> Result<Arc<dyn AddressSpace>> {
        refuse!(EBADF, "no file is open", u64::from(fd.unsigned_abs()))
    }

    fn account(&self) -> Account {
        ACCOUNT
    }
}

impl Fixture {
    /// The client, doing `act` at each read.
    fn acting<'a>(&self, act: &'a dyn Fn()) -> Acting<'a> {
        let memory = Guarded { memory: self.client.memory.clone(), from: BASE + 0x2000 };
        Acting { memory, act }
    }
}

/// Devices that count how often they were reset.
#[derive(Debug, Default)]
struct Counted(AtomicU32);

impl PeDevices for Counted {
    fn hot_reset(&self) -> Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn version_1_maps_what_can_be_written_whatever_the_map_allows() {
    let fixture = Fixture::enabled();
    let client = fixture.acting(&|| {});
    let map = |flags, iova, vaddr, size| {
        let map = abi::IommuType1DmaMap { argsz: 32, flags, vaddr, iova, size };
        client.write(ARG, map.as_bytes()).unwrap();
        fixture.container.ioctl(&client, abi::IOMMU_MAP_DMA, ARG)
    };
    assert_eq!(map(R, 0, BASE, 0x2000), Ok(0));
    assert!(fixture.reaches(0, BASE) && !fixture.writes(0), "a TCE allows what was asked for");
    assert_eq!(errno(map(R, 0x8000, BASE + 0x2000, 0x1000)), Errno::EFAULT);
    assert_eq!(errno(map(R, 0, BASE + 0x1000, 0x2000)), Errno::EFAULT);
    assert!(!fixture.reaches(0, BASE), "the TCE before it is emptied");
    assert!(fixture.reaches(0x1000, BASE + 0x1000), "the others are what they were");
    fixture.end();
}

#[test]
fn error_handling_leaves_a_group_alone_that_is_another_clients_meanwhile() {
    let fixture = Fixture::new(V2);
    let group = Arc::clone(fixture.endpoint.group());
    let devices = Arc::new(Counted::default());
    let weak = Arc::downgrade(&devices);
    group.set_devices(weak);
    let next = Container::new(&fixture.machine.machine);
    let member = || {
        let endpoints = std::slice::from_ref(&fixture.endpoint);
        Member::new(GroupKind::Iommu, &group, endpoints)
    };
    let act = || {
        fixture.container.remove_group(&group);
        if !next.has_group(&group) {
            next.add_group(&ACCOUNT, member()).unwrap();
        }
    };
    let client = fixture.acting(&act);
    let op = abi::EehPeOp { argsz: 12, op: abi::EEH_PE_RESET_HOT, ..Default::default() };
    client.write(ARG, op.as_bytes()).unwrap();
    assert_eq!(fixture.container.ioctl(&client, abi::EEH_PE_OP, ARG), Ok(0));
    assert!(next.has_group(&group));
    assert_eq!(group.frozen(), Frozen::empty());
    assert_eq!(devices.0.load(Ordering::Relaxed), 0);
    drop(next);
    fixture.end();
}

/// Devices that let their group leave its container when they are reset.
struct Leaving {
    container: Arc<Container>,
    next: Arc<Container>,
    group: Arc<crate::Group>,
    member: Member,
}

impl fmt::Debug for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.group.fmt(f)
    }
}

impl PeDevices for Leaving {
    fn hot_reset(&self) -> Result<()> {
        self.container.remove_group(&self.group);
        let refused = self.next.add_group(&ACCOUNT, self.member.clone());
        assert_eq!(errno(refused), Errno::EPERM, "the reset is not over");
        Ok(())
    }
}

#[test]
fn a_group_that_leaves_during_its_reset_is_nobody_elses_before_it_is_over() {
    let fixture = Fixture::new(V1);
    let group = Arc::clone(fixture.endpoint.group());
    let endpoints = std::slice::from_ref(&fixture.endpoint);
    let leaving = Arc::new(Leaving {
        container: Arc::clone(&fixture.container),
        next: Container::new(&fixture.machine.machine),
        group: Arc::clone(&group),
        member: Member::new(GroupKind::Iommu, &group, endpoints),
    });
    let weak = Arc::downgrade(&leaving);
    group.set_devices(weak);
    assert_eq!(fixture.eeh(abi::EEH_PE_RESET_HOT), Ok(0));
    assert!(!group.is_owned());
    leaving.next.add_group(&ACCOUNT, leaving.member.clone()).unwrap();
    drop(leaving);
    fixture.end();
}

#[test]
fn the_group_that_came_first_speaks_for_those_that_were_there_at_set_iommu() {
    let fixture = Fixture::on(crate::Spapr::default());
    let second = fixture.machine.endpoint();
    fixture.add(&second).unwrap();
    fixture.set_iommu(V2).unwrap();
    let first = || match &fixture.container.state.lock().driver {
        Some(crate::container::Driver::Spapr(spapr)) => spapr.first_group().unwrap().0,
        _ => panic!("the driver is SPAPR's"),
    };
    assert!(Arc::ptr_eq(&first(), fixture.endpoint.group()));
    let third = fixture.machine.endpoint();
    fixture.add(&third).unwrap();
    assert!(Arc::ptr_eq(&first(), third.group()), "one that comes later is before them");
    fixture.end();
}

#[test]
fn a_small_window_has_a_page_of_tces() {
    let fixture = Fixture::registered();
    let start = fixture.create(12, 1 << 12, 1).unwrap();
    fixture.map(RW, start + 0x1f_f000, BASE, 0x1000).unwrap();
    assert!(fixture.reaches(start + 0x1f_f000, BASE));
    assert_eq!(errno(fixture.map(RW, start + 0x20_0000, BASE, 0x1000)), Errno::ENXIO);
    fixture.end();
}
