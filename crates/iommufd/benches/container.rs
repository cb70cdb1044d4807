//! The container's calls, from the bytes of the ioctl on: instructions of one, by the type1 rules
//! and by those of Linux's compatibility layer, with one group attached. The bounds are what Linux
//! 7.2 takes for the same, its system call included.
//!
//! UNMAP of everything is counted at 10 000 and at 100 000 mappings: each must not cost more when
//! there are more.

#[path = "callgrind/mod.rs"]
mod callgrind;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use callgrind::{asked, instructions, line};
use ioasis_iommufd::type1::{Container, GroupKind, Member};
use ioasis_iommufd::{
    Account, AddressSpace, Bound, Client, Context, Endpoint, EndpointConfig, Group, Iommu,
    IommuKind, Machine, Memory,
};
use ioasis_uapi::vfio as abi;
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
/// Where the client's memory lies, and the struct of a call in it.
const BASE: u64 = 1 << 32;
const SIZE: usize = 64 << 20;
const ARG: u64 = BASE + SIZE as u64 - PAGE;

/// A client in this process.
struct Local(Memory);

impl Client for Local {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read(address, buf)
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        self.0.write(address, buf)
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        Arc::new(self.0.clone())
    }

    fn file_memory(&self, _fd: i32) -> Result<Arc<dyn AddressSpace>> {
        Err(Error::new(Errno::EBADF, "no files"))
    }

    fn account(&self) -> Account {
        Account {
            pid: 1,
            uid: 1,
            memlock_pages: None,
            ipc_lock: false,
            sys_resource: false,
            sys_rawio: false,
        }
    }
}

/// Whose rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Type1,
    Compat,
}

enum File {
    Type1(Arc<Container>),
    Compat(Arc<Context>, Bound),
}

/// A container with one group, and a client.
struct Rig {
    file: File,
    client: Local,
}

impl Rig {
    fn new(rules: Rules) -> Self {
        let machine = Machine::new();
        machine.params.dma_entry_limit.store(u32::MAX, Ordering::Relaxed);
        let client = Local(Memory::new(BASE, SIZE).expect("memory"));
        let iommu = Arc::new(Iommu::new(IommuKind::Vtd));
        let group = Group::new(&machine, &iommu, 1);
        let config = EndpointConfig {
            name: "0000:01:00.0".into(),
            requester_id: 0x100,
            reserved: iommu.reserved(),
            ..EndpointConfig::default()
        };
        let endpoint = Endpoint::new(&group, config);
        let file = match rules {
            Rules::Type1 => {
                let container = Container::new(&machine);
                let member = Member::new(GroupKind::Iommu, &group, &[endpoint]);
                container.add_group(&client.account(), member).expect("added");
                File::Type1(container)
            }
            Rules::Compat => {
                let context = Context::new(&machine);
                context.compat_create_ioas().expect("an IOAS");
                let bound = context.bind(&endpoint).expect("bound");
                bound.attach(context.compat_ioas_id().expect("an IOAS")).expect("attached");
                File::Compat(context, bound)
            }
        };
        let rig = Self { file, client };
        rig.call(abi::SET_IOMMU, abi::TYPE1v2_IOMMU.into());
        rig
    }

    fn call(&self, code: u32, arg: u64) {
        let answer = match &self.file {
            File::Type1(container) => container.ioctl(&self.client, code, arg),
            File::Compat(context, _bound) => context.ioctl(&self.client, code, arg),
        };
        answer.expect("answered");
    }

    fn map(&self, n: u64) {
        let map = abi::IommuType1DmaMap {
            argsz: 32,
            flags: abi::DMA_MAP_FLAG_READ | abi::DMA_MAP_FLAG_WRITE,
            vaddr: BASE + (n % 1000) * PAGE,
            iova: BASE + n * PAGE,
            size: PAGE,
        };
        self.client.0.write(ARG, map.as_bytes()).expect("room");
        self.call(abi::IOMMU_MAP_DMA, ARG);
    }

    fn unmap(&self, flags: u32, iova: u64, size: u64) {
        let unmap = abi::IommuType1DmaUnmap { argsz: 24, flags, iova, size };
        self.client.0.write(ARG, unmap.as_bytes()).expect("room");
        self.call(abi::IOMMU_UNMAP_DMA, ARG);
    }
}

/// What is counted, `times` over.
fn counted(name: &str, times: u64) {
    let (rules, what) = name.split_once('.').expect("rules.what");
    let rig = Rig::new(if rules == "type1" { Rules::Type1 } else { Rules::Compat });
    (0..times).for_each(|n| rig.map(n));
    match what {
        "maps" => {}
        "maps_unmaps" => (0..times).for_each(|n| rig.unmap(0, BASE + n * PAGE, PAGE)),
        "maps_unmap_all" => rig.unmap(abi::DMA_UNMAP_FLAG_ALL, 0, 0),
        _ => panic!("{what} is not counted"),
    }
    // Giving everything back is not what is counted.
    std::process::exit(0);
}

/// Linux's instructions for MAP_DMA of 4 KiB, UNMAP_DMA, and each mapping of an UNMAP of 100 000.
struct Linux {
    map: f64,
    unmap: f64,
    all: f64,
}

fn count(rules: &str, linux: &Linux) -> Option<()> {
    let turn = |what: &str, few, many| instructions(&format!("{rules}.{what}"), few, many);
    let map = turn("maps", 1_000, 11_000)?;
    line(&format!("container.{rules}.map_4k"), map, linux.map);
    let both = turn("maps_unmaps", 1_000, 11_000)?;
    line(&format!("container.{rules}.unmap_4k"), both - map, linux.unmap);
    let each = |many| Some(turn("maps_unmap_all", 0, many)? - turn("maps", 0, many)?);
    let (few, many) = (each(10_000)?, each(100_000)?);
    line(&format!("container.{rules}.unmap_all_100k_each"), many, linux.all);
    // Linear: a tenth more is noise.
    line(&format!("container.{rules}.unmap_all_100k_beside_10k"), many / few, 1.1);
    Some(())
}

fn main() {
    if let Some((name, times)) = asked() {
        counted(&name, times);
        return;
    }
    let type1 = Linux { map: 4_380.0, unmap: 2_818.0, all: 1_490.0 };
    let compat = Linux { map: 7_034.0, unmap: 5_201.0, all: 4_799.0 };
    if count("type1", &type1).and_then(|()| count("compat", &compat)).is_none() {
        println!("container: callgrind is not installed, nothing was counted");
    }
}
