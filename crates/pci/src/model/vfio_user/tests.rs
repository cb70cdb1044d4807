//! The device in a function, by a server in another thread.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ioasis_sys::mapping::{Access, Mapping};
use ioasis_sys::sync::Mutex;
use ioasis_vfio_user::message::{REGION_MMAP, REGION_READABLE, REGION_WRITABLE};
use ioasis_vfio_user::{
    Answer, Area, Device, DeviceInfo, DmaMap, DmaUnmap, IrqData, IrqInfo, Peer, Region, Server,
    SetIrqs,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::fake::{Interrupts, Memory as Ram, Told};
use crate::{BARS, Function, Session, Windows};

const LIMIT: Duration = Duration::from_secs(20);
const BAR: u64 = 0x3000;

/// What the server has heard.
#[derive(Debug, Default)]
struct Heard {
    calls: Vec<String>,
    eventfds: Vec<OwnedFd>,
}

/// BAR 0 has two pages of registers and one that is mapped. A store to 0x10 doubles the byte at the
/// address stored and sends message 3.
struct Doubler {
    config: Vec<u8>,
    registers: Vec<u8>,
    page: OwnedFd,
    peer: Peer,
    heard: Arc<Mutex<Heard>>,
}

impl Device for Doubler {
    fn info(&mut self) -> DeviceInfo {
        DeviceInfo::PCI
    }

    fn region(&mut self, index: u32) -> Answer<Region> {
        let flags = REGION_READABLE | REGION_WRITABLE;
        Ok(match index {
            0 => Region {
                flags: flags | REGION_MMAP,
                size: BAR,
                file_offset: 0,
                areas: vec![Area { offset: 0x2000, size: 0x1000 }],
                file: Some(self.page.try_clone().map_err(|_| Errno::MFILE)?),
            },
            pci::CONFIG => Region { flags, size: 256, ..Region::default() },
            _ => Region::default(),
        })
    }

    fn irq(&mut self, index: u32) -> Answer<IrqInfo> {
        Ok(IrqInfo { flags: 1, count: if index == pci::MSI { 4 } else { 0 } })
    }

    fn set_irqs(&mut self, set: SetIrqs) -> Answer<()> {
        let mut heard = self.heard.lock();
        match set.data {
            IrqData::Eventfd(fds) => {
                heard.calls.push(format!("irqs {} {}+{}", set.index, set.start, set.count));
                heard.eventfds.extend(fds);
            }
            _ => heard.eventfds.clear(),
        }
        Ok(())
    }

    fn read(&mut self, region: u32, offset: u64, bytes: &mut [u8]) -> Answer<()> {
        let space = if region == pci::CONFIG { &self.config } else { &self.registers };
        let start = usize::try_from(offset).expect("small");
        bytes.copy_from_slice(space.get(start..start + bytes.len()).ok_or(Errno::INVAL)?);
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Answer<()> {
        if region == pci::CONFIG {
            self.heard.lock().calls.push(format!("config {offset:#x} {bytes:02x?}"));
            return Ok(());
        }
        let start = usize::try_from(offset).expect("small");
        self.registers[start..start + bytes.len()].copy_from_slice(bytes);
        if offset == 0x10 {
            let address = u64::from_le_bytes(bytes.try_into().map_err(|_| Errno::INVAL)?);
            let mut byte = [0];
            let moved = self.peer.dma_read(address, &mut byte);
            let moved = moved.and_then(|()| self.peer.dma_write(address, &[byte[0] * 2]));
            self.registers[0x18] = u8::from(moved.is_err());
            if let Some(eventfd) = self.heard.lock().eventfds.get(3) {
                rustix::io::write(eventfd, &1_u64.to_ne_bytes())?;
            }
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Answer<()> {
        assert!(map.file.is_none(), "the program's memory is not given away");
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmap) -> Answer<()> {
        Err(Errno::NOENT)
    }

    fn reset(&mut self) -> Answer<()> {
        self.heard.lock().calls.push("reset".to_owned());
        Ok(())
    }
}

struct Rig {
    function: Function,
    ram: Arc<Ram>,
    interrupts: Arc<Interrupts>,
    pages: Arc<Mapping>,
    theirs: Mapping,
    heard: Arc<Mutex<Heard>>,
    server: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Rig {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("pci-vfio-user-{test}-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("bound");
        let page = memfd_create("page", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&page, BAR).expect("room");
        let theirs =
            Mapping::file(page.as_fd(), 0x2000, 0x1000, Access::ReadWrite).expect("mapped");
        theirs.store_u32(4, 0x77).expect("stored");
        let heard = Arc::new(Mutex::new(Heard::default()));
        let told = Arc::clone(&heard);
        let server = thread::spawn(move || {
            let (socket, _) = listener.accept().expect("somebody");
            let server = Server::new(socket.into(), LIMIT).expect("a version");
            let mut config = vec![0; 256];
            config[..12].copy_from_slice(&[0x34, 0x12, 0x99, 0x11, 0, 0, 0x10, 0, 7, 0, 0, 0xff]);
            config[0x34] = 0x80;
            config[0x80..0x88].copy_from_slice(&[9, 0, 8, 1, 2, 3, 4, 5]);
            let peer = server.peer();
            let registers = vec![0; 0x3000];
            let mut device = Doubler { config, registers, page, peer, heard: told };
            server.serve(&mut device).expect("served");
        });
        let socket = path.to_str().expect("UTF-8").to_owned();
        let model = crate::create("vfio-user", &[("socket".to_owned(), socket)]);
        let address = "0000:01:00.0".parse().expect("an address");
        let function = Function::new(address, model.expect("a device"), &mut Windows::default());
        Self {
            function,
            ram: Arc::new(Ram::new(0x1_0000, 0x1000)),
            interrupts: Arc::default(),
            pages: Arc::new(Mapping::anonymous(0x3000).expect("memory")),
            theirs,
            heard,
            server: Some(server),
            path,
        }
    }

    fn open(&self) {
        let mut pages: [Option<Arc<Mapping>>; BARS] = Default::default();
        pages[0] = Some(Arc::clone(&self.pages));
        let session = Session {
            dma: Arc::clone(&self.ram) as _,
            irq: Arc::clone(&self.interrupts) as _,
            witness: Arc::new(Told::default()),
            pages,
            doorbells: None,
        };
        self.function.open(session).expect("opened");
    }

    fn double(&self, address: u64) -> u8 {
        self.function.bar_write(0, 0x10, &address.to_le_bytes()).expect("written");
        let mut failed = [0];
        self.function.bar_read(0, 0x18, &mut failed).expect("read");
        failed[0]
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.function.close();
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn a_function_is_what_its_server_says() {
    let rig = Rig::new("is");
    let ids = rig.function.ids();
    assert_eq!((ids.vendor, ids.device, ids.revision, ids.class), (0x1234, 0x1199, 7, 0xff_0000));
    let bar = rig.function.bar(0).expect("a BAR");
    assert_eq!(bar.size, 0x4000, "a power of two");
    let pages = [crate::Pages::trapped_loads(0..0x2000), crate::Pages::shared(0x2000..0x3000)];
    assert_eq!(bar.mappable, pages);
    let vectors = rig.function.vectors();
    assert_eq!((vectors.intx, vectors.msi, vectors.msix), (false, 4, 0));
    let mut config = [0; 256];
    rig.function.config_read(0, &mut config).expect("read");
    let vendor = config.windows(8).any(|bytes| bytes[0] == 9 && bytes[2..] == [8, 1, 2, 3, 4, 5]);
    assert!(vendor, "its vendor-specific capability");
}

#[test]
fn its_dma_goes_through_the_bus_and_its_messages_are_raised() {
    let rig = Rig::new("dma");
    rig.open();
    rig.function.set_irq_mode(IrqMode::Msi { messages: 4 });
    rig.ram.put(0x1_0020, &[21]);
    assert_eq!(rig.double(0x1_0020), 1, "bus mastering is off");
    rig.function.config_write(COMMAND, &[6, 0]).expect("written");
    assert_eq!(rig.double(0x1_0020), 0);
    assert_eq!(rig.ram.get(0x1_0020, 1), [42]);
    assert_eq!(rig.double(0x9_0000), 1, "nothing is there");
    while rig.interrupts.raised.lock().is_empty() {
        thread::yield_now();
    }
    assert!(rig.interrupts.raised.lock().iter().all(|&vector| vector == 3));
    let calls = rig.heard.lock().calls.clone();
    let expected =
        ["reset", "config 0x4 [02, 00]", "irqs 1 0+4", "config 0x4 [06, 00]"].map(str::to_owned);
    assert_eq!(calls, expected);
}

#[test]
fn a_page_that_is_mapped_is_the_same_on_both_sides() {
    let rig = Rig::new("page");
    rig.open();
    assert_eq!(rig.pages.load_u32(0x2004), Ok(0x77));
    rig.pages.store_u32(0x2008, 5).expect("stored");
    while rig.theirs.load_u32(8) != Ok(5) {
        thread::yield_now();
    }
    rig.theirs.store_u32(12, 6).expect("stored");
    while rig.pages.load_u32(0x200c) != Ok(6) {
        thread::yield_now();
    }
    let mut past = [0; 4];
    rig.function.bar_read(0, 0x3000, &mut past).expect("read");
    assert_eq!(past, [0xff; 4], "the server's BAR ends before");
}

#[test]
fn an_open_after_a_close_finds_a_device_that_was_reset() {
    let mut rig = Rig::new("again");
    rig.open();
    rig.function.set_irq_mode(IrqMode::Msi { messages: 1 });
    rig.function.close();
    assert!(rig.heard.lock().eventfds.is_empty(), "nobody hears its messages any more");
    rig.open();
    rig.function.close();
    let resets = rig.heard.lock().calls.iter().filter(|call| *call == "reset").count();
    assert_eq!(resets, 4, "at each open and each close");
    let server = rig.server.take().expect("a server");
    drop(rig);
    server.join().expect("it ended well when its client went");
}

#[test]
fn a_time_is_seconds_or_milliseconds() {
    for (text, millis) in [("5s", 5000), ("5", 5000), ("250ms", 250), ("0.5s", 500)] {
        assert_eq!(seconds(text), Some(Duration::from_millis(millis)), "{text}");
    }
    for text in ["", "s", "0", "-1", "1h", "nan", "inf", "1e9", "99999s", "1ms"] {
        assert_eq!(seconds(text), None, "{text}");
    }
}
