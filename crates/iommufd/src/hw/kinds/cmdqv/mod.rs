//! NVIDIA's Tegra241 CMDQ-V beside an SMMUv3: command queues that a guest fills and the hardware
//! empties, nobody between.
//!
//! A virtual IOMMU of this type is a virtual interface, VINTF. Its queues, logical VCMDQs, lie in
//! the guest's memory; their registers lie in a page that the client maps from its /dev/iommu and
//! gives to the guest. While a queue is in use the interface has a thread that looks at the page as
//! the thread of a device model looks at a BAR, fetches commands and carries them out. What is in
//! the page is read once and then judged; a turn takes a bounded number of commands. Linux:
//! `drivers/iommu/arm/arm-smmu-v3/tegra241-cmdqv.c`; NVIDIA's manual is not public.
//!
//! DIFFERS: STATUS follows CONFIG, and CONS follows PROD, within 5 ms: the page is polled.
//!
//! Lock order: `Interface::used` -> `Interface::lvcmdqs` -> what the virtual IOMMU has.
//! `Interface::used` is taken under `Table::slots`: whoever holds it does not wait for commands. A
//! queue's lock is held for a turn, which may wait for DMA.

mod interfaces;
mod queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use ioasis_iommupt::Pa;
use ioasis_sys::pace::Pace;
use ioasis_sys::sync::Mutex;
use ioasis_uapi::iommufd as abi;
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::IntoBytes;

pub use interfaces::Cmdqv;

use super::smmuv3::command::Commands;
use super::smmuv3::{self, CMDQS_LG2};
use crate::client::MappableMemory;
use crate::hw::ops::{Invalidated, NestedOps, UserArray, UserData, ViommuCore, ViommuOps};
use crate::inject::step;
use interfaces::{Taken, VINTFS_LG2};
use queue::{COMMAND_LG2, Lvcmdq, Memory, Registers, Turn};

/// PARAM: lg2 of all queues, of an interface's stream ids; the version.
const VCMDQS_LG2: u32 = 7;
const VSIDS_LG2: u32 = 4;
const VERSION: u8 = 1;

/// Queues of one interface.
const LVCMDQS: usize = 1 << (VCMDQS_LG2 - VINTFS_LG2);
/// Devices whose stream ids an interface replaces.
const VSIDS: usize = 1 << VSIDS_LG2;
/// The largest virtual stream id that SID_MATCH holds.
const VSID_MAX: u64 = (1 << 20) - 1;
/// Page 0 of an interface.
const PAGE0: u64 = 64 << 10;
/// VCMDQ_BASE: the bits of an address.
const ADDRESS: u64 = 0xffff_ffff_ffe0;
/// Bytes of the shortest and the longest queue.
const LENGTH_MIN: u64 = 32;
const LENGTH_MAX: u64 = 1 << (CMDQS_LG2 + COMMAND_LG2);

/// What GET_HW_INFO shows.
pub(super) fn info() -> abi::HwInfoTegra241Cmdqv {
    let lg2 = |value: u32| u8::try_from(value).expect("four bits");
    abi::HwInfoTegra241Cmdqv {
        flags: 0,
        version: VERSION,
        log2vcmdqs: lg2(VCMDQS_LG2 - VINTFS_LG2),
        log2vsids: lg2(VSIDS_LG2),
        __reserved: 0,
    }
}

/// Judges the virtual id of a device that is to join an interface with `others`. Linux:
/// `tegra241_vintf_init_vsid`.
fn check_vsid(virtual_id: u64, others: usize) -> Result<()> {
    if virtual_id > VSID_MAX {
        return refuse!(EINVAL, "a virtual stream id has 20 bits", virtual_id);
    }
    if others >= VSIDS {
        return refuse!(ENOSPC, "the virtual interface has no stream id left", others as u64);
    }
    Ok(())
}

/// A virtual interface. Its thread has it too.
#[derive(Debug)]
pub(super) struct Vintf(Arc<Interface>);

#[derive(Debug)]
struct Interface {
    /// What commands through HWPT_INVALIDATE may say.
    commands: Commands,
    // Before the number: another interface of this number has a page of its own.
    page: Arc<dyn MappableMemory>,
    taken: Taken,
    used: Mutex<Used>,
    lvcmdqs: [Mutex<Lvcmdq>; LVCMDQS],
    /// LVCMDQ_ERR_MAP: a bit for each queue in error. Written by the thread alone.
    errors: AtomicU64,
}

/// How far a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Use {
    #[default]
    Free,
    Started,
    /// Taken still, and no ground for the next one.
    Stopping,
}

/// Which queues are in use, and who empties them while any is.
#[derive(Debug, Default)]
struct Used {
    queues: [Use; LVCMDQS],
    worker: Option<Worker>,
}

impl Vintf {
    /// A free interface of `cmdqv`, whose page the client learns of in `data`. Linux:
    /// `tegra241_cmdqv_init_vintf_user`.
    ///
    /// # Errors
    ///
    /// `EINVAL` without data or for another struct, `EFAULT`, `ENOSPC` when all interfaces are in
    /// use, `ENOMEM`.
    pub(super) fn new(
        cmdqv: &Cmdqv,
        commands: Commands,
        data: Option<&UserData<'_>>,
    ) -> Result<Self> {
        let Some(data) = data else {
            return refuse!(EINVAL, "the client has no room for where the page is");
        };
        let size = size_of::<abi::ViommuTegra241Cmdqv>();
        let mut sent: abi::ViommuTegra241Cmdqv =
            data.read(abi::VIOMMU_TYPE_TEGRA241_CMDQV, size)?;
        let taken = cmdqv.take()?;
        step("the page of a virtual interface")?;
        let page = data.client.mappable(PAGE0)?;
        sent.out_vintf_mmap_offset = page.offset();
        sent.out_vintf_mmap_length = PAGE0;
        data.write(&sent)?;
        Ok(Self(Arc::new(Interface {
            commands,
            page,
            taken,
            used: Mutex::default(),
            lvcmdqs: Default::default(),
            errors: AtomicU64::new(0),
        })))
    }
}

impl ViommuOps for Vintf {
    fn alloc_nested(&self, flags: u32, data: &UserData<'_>) -> Result<Box<dyn NestedOps>> {
        smmuv3::nested_in_viommu(flags, data)
    }

    fn invalidate(&self, viommu: &dyn ViommuCore, requests: &UserArray<'_>) -> Invalidated {
        self.0.commands.invalidate_all(viommu, requests)
    }

    fn vdevice_init(&self, virtual_id: u64, others: usize) -> Result<()> {
        check_vsid(virtual_id, others)
    }

    fn has_queue(&self, kind: u32) -> bool {
        kind == abi::HW_QUEUE_TYPE_TEGRA241_CMDQV
    }

    fn start_queue(
        &self,
        viommu: &Arc<dyn ViommuCore>,
        index: u32,
        base: Pa,
        length: u64,
    ) -> Result<()> {
        self.0.start(viommu, index, base, length)
    }

    fn may_stop_queue(&self, index: u32) -> bool {
        self.0.may_stop(index)
    }

    fn stop_queue(&self, index: u32) {
        self.0.stop(index);
    }

    fn is_mapped(&self) -> bool {
        self.0.page.is_mapped()
    }
}

impl Interface {
    /// Whether queue `index` may go: the hardware lets go of queues in descending order. If so none
    /// follows it any more, and it has to be stopped.
    fn may_stop(&self, index: u32) -> bool {
        let (at, mut used) = (index as usize, self.used.lock());
        let may = used.queues.get(at + 1).is_none_or(|&next| next == Use::Free);
        if may {
            used.queues[at] = Use::Stopping;
        }
        may
    }

    /// Takes queue `index` into use, `length` bytes from `base`. Linux:
    /// `tegra241_vintf_alloc_lvcmdq_user`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an index it does not have, `EEXIST` when it is in use, `EIO` when the one
    /// before it is not, `EINVAL` for a length that is no power of two, is too short or too long,
    /// and for a base that is not aligned to it.
    fn start(
        self: &Arc<Self>,
        viommu: &Arc<dyn ViommuCore>,
        index: u32,
        base: Pa,
        length: u64,
    ) -> Result<()> {
        let at = index as usize;
        let Some(queue) = self.lvcmdqs.get(at) else {
            return refuse!(EINVAL, "no queue has this index", u64::from(index));
        };
        let mut used = self.used.lock();
        if used.queues[at] != Use::Free {
            return refuse!(EEXIST, "the queue is in use", u64::from(index));
        }
        if at > 0 && used.queues[at - 1] != Use::Started {
            return refuse!(EIO, "the queue before it is not in use", u64::from(index));
        }
        if !length.is_power_of_two() || !(LENGTH_MIN..=LENGTH_MAX).contains(&length) {
            let why = "a queue has 32 bytes to 8 MiB, a power of two";
            return refuse!(EINVAL, why, length);
        }
        if base.0 & !ADDRESS != 0 || base.0 & (length - 1) != 0 {
            return refuse!(EINVAL, "the queue's memory is not aligned to its length", base.0);
        }
        if used.worker.is_none() {
            used.worker = Some(Worker::start(self, viommu)?);
        }
        let memory = Memory { base, lg2: length.trailing_zeros() - COMMAND_LG2 };
        queue.lock().begin(memory, self.registers(at));
        used.queues[at] = Use::Started;
        used.worker.as_ref().expect("it was started").wake();
        Ok(())
    }

    /// Lets go of queue `index`: its memory is not read any more when this returns.
    fn stop(&self, index: u32) {
        let at = index as usize;
        self.lvcmdqs[at].lock().end(self.registers(at));
        let mut used = self.used.lock();
        used.queues[at] = Use::Free;
        let idle = used.queues == [Use::Free; LVCMDQS];
        let worker = if idle { used.worker.take() } else { None };
        drop(used);
        if let Some(worker) = worker {
            worker.stop();
        }
    }

    fn registers(&self, at: usize) -> Registers<'_> {
        Registers::new(&*self.page, at)
    }

    /// Looks at every queue once; whether there was work.
    ///
    /// # Errors
    ///
    /// `EFAULT` when the page is gone.
    fn turn(&self, viommu: &dyn ViommuCore) -> Result<bool> {
        let mut worked = false;
        for (at, queue) in self.lvcmdqs.iter().enumerate() {
            let mut queue = queue.lock();
            let turn = queue.turn(self.registers(at), viommu)?;
            let in_error = queue.is_in_error();
            drop(queue);
            worked |= turn != Turn::Idle;
            if in_error {
                self.errors.fetch_or(1 << at, Ordering::AcqRel);
            } else {
                self.errors.fetch_and(!(1 << at), Ordering::AcqRel);
            }
            if turn == Turn::Failed {
                self.report(viommu);
            }
        }
        Ok(worked)
    }

    /// Tells the guest which queues are in error. Linux: `tegra241_vintf_user_handle_error`.
    fn report(&self, viommu: &dyn ViommuCore) {
        let map = self.errors.load(Ordering::Acquire).to_le();
        let event = abi::VeventTegra241Cmdqv { lvcmdq_err_map: [map, 0] };
        // Nobody listens: the guest finds the error in the page.
        let _unheard = viommu.report(abi::VEVENTQ_TYPE_TEGRA241_CMDQV, event.as_bytes());
    }
}

/// The thread of an interface whose queues are in use.
#[derive(Debug)]
struct Worker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(interface: &Arc<Interface>, viommu: &Arc<dyn ViommuCore>) -> Result<Self> {
        step("the thread of a virtual interface")?;
        let stop = Arc::new(AtomicBool::new(false));
        let number = interface.taken.number;
        let (stopped, interface, viommu) =
            (Arc::clone(&stop), Arc::clone(interface), Arc::clone(viommu));
        let run = move || work(&interface, &*viommu, &stopped);
        let thread = thread::Builder::new().name(format!("vintf{number}")).spawn(run);
        let thread =
            thread.map_err(|_| Error::new(Errno::ENOMEM, "no thread for the virtual interface"))?;
        Ok(Self { stop, thread })
    }

    fn wake(&self) {
        self.thread.thread().unpark();
    }

    /// Ends the thread after the turn it is in.
    fn stop(self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        self.thread.join().expect("a command queue does not panic");
    }
}

fn work(interface: &Interface, viommu: &dyn ViommuCore, stop: &AtomicBool) {
    let mut pace = Pace::default();
    while !stop.load(Ordering::Acquire) {
        match interface.turn(viommu) {
            Ok(true) => pace.worked(),
            Ok(false) => pace.rest(),
            // Without the page nobody can say anything any more.
            Err(_) => return,
        }
    }
}
