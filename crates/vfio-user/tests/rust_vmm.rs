//! Against rust-vmm's client and server.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ioasis_vfio_user::message::{
    DmaAccess, IRQ_TRIGGER, REGION_MMAP, REGION_READABLE, REGION_WRITABLE, pci,
};
use ioasis_vfio_user::{
    Answer, Area, Client, Device, DeviceInfo, DmaMap, DmaUnmap, Errno, IrqData, IrqInfo, Listener,
    Region, Server, SetIrqs,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfio_bindings::bindings::vfio::{vfio_region_info, vfio_region_sparse_mmap_area};

const LIMIT: Duration = Duration::from_secs(20);
const SIZE: u64 = 0x4000;

fn path(test: &str) -> PathBuf {
    std::env::temp_dir().join(format!("rust-vmm-{test}-{}", std::process::id()))
}

/// Copies what the client wrote to region 0 into the file it mapped, and sends interrupt 1.
#[derive(Default)]
struct Copier {
    registers: Vec<u8>,
    memory: Option<(u64, File)>,
    heard: Vec<File>,
    resets: u32,
}

impl Device for Copier {
    fn info(&mut self) -> DeviceInfo {
        DeviceInfo::PCI
    }

    fn region(&mut self, index: u32) -> Answer<Region> {
        if index != 0 {
            return Ok(Region::default());
        }
        let file = memfd_create("region", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, SIZE)?;
        Ok(Region {
            flags: REGION_READABLE | REGION_WRITABLE | REGION_MMAP,
            size: SIZE,
            areas: vec![
                Area { offset: 0x1000, size: 0x1000 },
                Area { offset: 0x3000, size: 0x1000 },
            ],
            file: Some(file),
            ..Region::default()
        })
    }

    fn irq(&mut self, index: u32) -> Answer<IrqInfo> {
        Ok(IrqInfo { flags: 1, count: if index == pci::MSIX { 4 } else { 0 } })
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Answer<()> {
        let IrqData::Eventfd(fds) = set.data else { return Err(Errno::INVAL) };
        self.heard = fds.into_iter().map(File::from).collect();
        Ok(())
    }

    fn read(&mut self, _: u32, offset: u64, bytes: &mut [u8]) -> Answer<()> {
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let end = start.checked_add(bytes.len()).ok_or(Errno::INVAL)?;
        bytes.copy_from_slice(self.registers.get(start..end).ok_or(Errno::INVAL)?);
        Ok(())
    }

    fn write(&mut self, _: u32, offset: u64, bytes: &[u8]) -> Answer<()> {
        self.registers = bytes.to_vec();
        let (address, file) = self.memory.as_ref().ok_or(Errno::FAULT)?;
        rustix::io::pwrite(file, bytes, offset.checked_sub(*address).ok_or(Errno::FAULT)?)?;
        rustix::io::write(&self.heard[1], &1_u64.to_ne_bytes())?;
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Answer<()> {
        self.memory = map.file.map(|(file, _)| (map.address, file.into()));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmap) -> Answer<()> {
        self.memory = None;
        Ok(())
    }

    fn reset(&mut self) -> Answer<()> {
        self.resets += 1;
        Ok(())
    }
}

#[test]
fn rust_vmms_client_drives_our_server() {
    let path = path("client");
    let listener = Listener::bind(&path).expect("bound");
    let server = thread::spawn(move || {
        rustix::event::poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).expect("polled");
        let socket = listener.accept().expect("accepted").expect("somebody");
        let mut device = Copier::default();
        Server::new(socket, LIMIT).expect("a version").serve(&mut device).expect("served");
        device.resets
    });
    let mut client = vfio_user::Client::new(&path).expect("a version");
    // It says the opposite of DEVICE_RESETS in 0.1.7.
    assert!(!client.resettable());
    let region = client.region(0).expect("there");
    assert_eq!((region.size, region.file_offset.is_some()), (SIZE, true));
    let areas: Vec<_> = region.sparse_areas.iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!(areas, [(0x1000, 0x1000), (0x3000, 0x1000)]);
    assert_eq!(client.get_irq_info(pci::MSIX).expect("MSI-X").count, 4);
    let memory = File::from(memfd_create("ram", MemfdFlags::CLOEXEC).expect("memory"));
    memory.set_len(0x10000).expect("room");
    client.dma_map(0, 0x1000, 0x10000, memory.as_raw_fd()).expect("mapped");
    let own = [(); 2].map(|()| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
    let fds: Vec<_> = own.iter().map(AsRawFd::as_raw_fd).collect();
    client.set_irqs(pci::MSIX, 4 | IRQ_TRIGGER, 0, 2, &fds).expect("set");
    client.region_write(0, 0x1400, b"to the memory").expect("written");
    let mut copied = [0; 13];
    rustix::io::pread(&memory, &mut copied, 0x400).expect("read");
    assert_eq!(&copied, b"to the memory");
    rustix::io::read(&own[1], &mut [0; 8]).expect("an interrupt");
    let mut read = [0; 6];
    client.region_read(0, 7, &mut read).expect("read");
    assert_eq!(&read, b"memory");
    client.dma_unmap(0x1000, 0x10000).expect("unmapped");
    client.reset().expect("reset");
    client.shutdown().expect("the end");
    assert_eq!(server.join().expect("no panic"), 1);
}

/// What a server of rust-vmm's was told.
#[derive(Default)]
struct Told {
    bytes: Vec<u8>,
    calls: Vec<String>,
}

impl vfio_user::ServerBackend for Told {
    fn region_read(&mut self, _: u32, offset: u64, data: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).expect("small");
        data.copy_from_slice(&self.bytes[start..start + data.len()]);
        Ok(())
    }

    fn region_write(&mut self, _: u32, _: u64, data: &[u8]) -> std::io::Result<()> {
        self.bytes = data.to_vec();
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: vfio_user::DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> std::io::Result<()> {
        let with = fd.is_some();
        self.calls
            .push(format!("map {address:#x}+{size:#x} {offset:#x} {:#x} {with}", flags.bits()));
        Ok(())
    }

    fn dma_unmap(
        &mut self,
        _: vfio_user::DmaUnmapFlags,
        address: u64,
        size: u64,
    ) -> std::io::Result<()> {
        self.calls.push(format!("unmap {address:#x}+{size:#x}"));
        Ok(())
    }

    fn reset(&mut self) -> std::io::Result<()> {
        self.calls.push("reset".to_owned());
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: Vec<File>,
    ) -> std::io::Result<()> {
        self.calls.push(format!("irqs {index} {flags:#x} {start}+{count}, {} fds", fds.len()));
        Ok(())
    }
}

fn offered(path: &Path) -> vfio_user::Server {
    let file = memfd_create("region", MemfdFlags::CLOEXEC).expect("memory");
    let region = |index: u32| vfio_user::ServerRegion {
        region_info: vfio_region_info {
            argsz: 32,
            flags: if index == 0 { 7 } else { 0 },
            index,
            size: if index == 0 { SIZE } else { 0 },
            ..vfio_region_info::default()
        },
        sparse_areas: if index == 0 {
            let area = vfio_region_sparse_mmap_area { offset: 0x2000, size: 0x1000 };
            vec![vfio_user::SparseArea { area }]
        } else {
            Vec::new()
        },
        mmap_fd: (index == 0)
            .then(|| std::os::fd::IntoRawFd::into_raw_fd(file.try_clone().expect("a duplicate"))),
    };
    let irq = |index| vfio_user::IrqInfo { index, flags: 1, count: u32::from(index == 2) * 3 };
    let irqs = (0..5).map(irq).collect();
    vfio_user::Server::new(path, true, irqs, (0..9).map(region).collect()).expect("bound")
}

#[test]
fn our_client_drives_rust_vmms_server() {
    let path = path("server");
    let server = offered(&path);
    let server = thread::spawn(move || {
        let mut told = Told::default();
        // It ends with an error when its client goes.
        let _ = server.run(&mut told);
        told.calls
    });
    let client = Client::connect(&path, LIMIT).expect("a version");
    assert_eq!(client.info(), DeviceInfo::PCI);
    assert!(!client.server().write_multiple);
    let region = client.region(0, &mut ()).expect("a region");
    assert_eq!(region.mappable(), [Area { offset: 0x2000, size: 0x1000 }]);
    assert_eq!(client.irq(pci::MSIX, &mut ()).expect("MSI-X").count, 3);
    let writes: [(u32, u64, &[u8]); 2] = [(0, 0, b"first"), (0, 0, b"second")];
    assert_eq!(client.region_write_multi(&writes, &mut ()).expect("one by one"), 2);
    let mut read = [0; 4];
    client.region_read(0, 2, &mut read, &mut ()).expect("read");
    assert_eq!(&read, b"cond");
    let file = memfd_create("ram", MemfdFlags::CLOEXEC).expect("memory");
    let mapped = Some((file.as_fd(), 0x3000));
    client.dma_map((0x1000, 0x2000), DmaAccess::READ, mapped, &mut ()).expect("mapped");
    let own = [(); 3].map(|()| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
    let fds: Vec<_> = own.iter().map(AsFd::as_fd).collect();
    client.set_eventfds(pci::MSIX, IRQ_TRIGGER, 0, &fds, &mut ()).expect("set");
    client.dma_unmap((0x1000, 0x2000), &mut ()).expect("unmapped");
    client.reset(&mut ()).expect("reset");
    drop(client);
    let calls = server.join().expect("no panic");
    let expected = [
        "map 0x1000+0x2000 0x3000 0x1 true",
        // It takes one descriptor a message.
        "irqs 2 0x24 0+1, 1 fds",
        "irqs 2 0x24 1+1, 1 fds",
        "irqs 2 0x24 2+1, 1 fds",
        "unmap 0x1000+0x2000",
        "reset",
    ];
    assert_eq!(calls, expected);
}
