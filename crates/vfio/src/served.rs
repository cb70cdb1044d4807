//! A function that is served by messages: without a group, a container and a file, to whoever
//! speaks for its user.
//!
//! What VFIO's ioctls do with interrupts is done here with the same code; their argument is a
//! message's bytes, and a descriptor in it the place of one that came along.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioasis_iommufd::{Account, AddressSpace};
use ioasis_pci::{BARS, Dma, Function, IrqMode, Session};
use ioasis_sys::eventfd::EventFd;
use ioasis_sys::mapping::Mapping;
use ioasis_uapi::vfio::{self, IrqInfo, IrqSet};
use ioasis_uapi::{Errno, Error, Result};
use zerocopy::{FromZeros, IntoBytes};

use crate::irq::Interrupts;
use crate::{Client, Device, DeviceMemory, DeviceWatcher, IommuFile, VfioFile, info};

/// A function and its interrupts.
#[derive(Debug)]
pub struct Served {
    function: Arc<Function>,
    interrupts: Arc<Interrupts>,
}

/// What comes along with SET_IRQS.
#[derive(Debug)]
pub enum ServedIrqs {
    /// Nothing.
    None,
    /// A byte an interrupt: whether it is meant.
    Bool(Vec<bool>),
    /// An eventfd an interrupt, or none at all, which takes them away.
    Eventfd(Vec<OwnedFd>),
}

impl Served {
    /// A function that nobody uses yet.
    #[must_use]
    pub fn new(function: Function) -> Self {
        let interrupts = Arc::new(Interrupts::new(&function));
        Self { function: Arc::new(function), interrupts }
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Tells `watcher` from now on what the function, called `name`, does by itself.
    ///
    /// # Panics
    ///
    /// If there is a watcher already.
    pub fn watch(&self, name: &str, watcher: Arc<dyn DeviceWatcher>) {
        self.interrupts.watch(name, watcher);
    }

    /// Its user comes: the function is as after power-on.
    ///
    /// # Errors
    ///
    /// As [`Function::open`].
    pub fn open(&self, dma: Arc<dyn Dma>, pages: [Option<Arc<Mapping>>; BARS]) -> Result<()> {
        let (irq, witness) = (Arc::clone(&self.interrupts), Arc::clone(&self.interrupts));
        self.function.open(Session { dma, irq, witness, pages, doorbells: None })
    }

    /// Its user goes: no DMA, no interrupt and no eventfd after it returns.
    pub fn close(&self) {
        self.function.close();
        self.interrupts.close(&self.function);
    }

    /// A function-level reset.
    ///
    /// # Errors
    ///
    /// As [`Function::reset`].
    pub fn reset(&self) -> Result<()> {
        self.function.reset()?;
        self.interrupts.command_changed(&self.function);
        self.interrupts.told_reset();
        Ok(())
    }

    /// Flags and number of the interrupts of kind `index`.
    ///
    /// # Errors
    ///
    /// `EINVAL` when there is no such kind.
    pub fn irq(&self, index: u32) -> Result<(u32, u32)> {
        let mut asked = IrqInfo::new_zeroed();
        (asked.argsz, asked.index) = (size(size_of::<IrqInfo>()), index);
        let message = Argument::new(asked.as_bytes().to_vec(), Vec::new());
        info::irq(&message, &self.function, 0)?;
        let bytes = message.bytes.into_inner();
        let answer: IrqInfo = zerocopy::FromBytes::read_from_bytes(&bytes)
            .map_err(|_| Error::new(Errno::EINVAL, "an answer of another size"))?;
        Ok((answer.flags, answer.count))
    }

    /// SET_IRQS: `action` is one of VFIO's `IRQ_SET_ACTION` flags.
    ///
    /// # Errors
    ///
    /// As VFIO_DEVICE_SET_IRQS.
    pub fn set_irqs(
        &self,
        index: u32,
        (mut start, mut count): (u32, u32),
        action: u32,
        irqs: ServedIrqs,
    ) -> Result<()> {
        let (kind, data, fds) = match irqs {
            ServedIrqs::None => (vfio::IRQ_SET_DATA_NONE, Vec::new(), Vec::new()),
            ServedIrqs::Bool(meant) => {
                let bytes = meant.into_iter().map(u8::from).collect();
                (vfio::IRQ_SET_DATA_BOOL, bytes, Vec::new())
            }
            ServedIrqs::Eventfd(fds) => {
                // Which of those that came along each interrupt has; -1 takes its own away.
                let (first, most) = (start, self.interrupts_of(index, start, count)?);
                if index == vfio::PCI_MSI_IRQ_INDEX && !self.has_msi() && !fds.is_empty() {
                    // MSI has as many messages as it is enabled with, and the descriptors of one
                    // call are sent in several messages where they are many: the first of them
                    // enables all there are.
                    (start, count) = (0, Interrupts::count(&self.function, index));
                }
                let place = |vector: u32| {
                    let place =
                        vector.checked_sub(first).and_then(|place| i32::try_from(place).ok());
                    let came = |place: &i32| *place < size_of_list(most.min(fds.len()));
                    place.filter(came).unwrap_or(-1)
                };
                let bytes = (start..start + count).flat_map(|vector| place(vector).to_ne_bytes());
                let bytes = bytes.collect();
                (vfio::IRQ_SET_DATA_EVENTFD, bytes, fds)
            }
        };
        let argsz = size(size_of::<IrqSet>() + data.len());
        let head = IrqSet { argsz, flags: kind | action, index, start, count };
        let message = Argument::new([head.as_bytes(), &data].concat(), fds);
        self.interrupts.set(&message, &self.function, 0)
    }

    fn has_msi(&self) -> bool {
        matches!(self.function.irq_mode(), IrqMode::Msi { .. })
    }

    /// `count`, which is not more than there are interrupts from `start` on.
    fn interrupts_of(&self, index: u32, start: u32, count: u32) -> Result<usize> {
        let there = Interrupts::count(&self.function, index);
        if start.checked_add(count).is_none_or(|end| end > there) {
            return Err(Error::at(Errno::EINVAL, "more interrupts than there are", there.into()));
        }
        Ok(count as usize)
    }

    /// Reads configuration space.
    ///
    /// # Errors
    ///
    /// `EFAULT` past its end.
    pub fn config_read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.function.config_read(offset, bytes)
    }

    /// Writes configuration space.
    ///
    /// # Errors
    ///
    /// `EFAULT` past its end.
    pub fn config_write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let resets = self.function.resets();
        self.function.config_write(offset, bytes)?;
        if self.function.resets() != resets {
            self.interrupts.told_reset();
        }
        self.interrupts.command_changed(&self.function);
        Ok(())
    }
}

fn size_of_list(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A message as the argument of an ioctl, at address 0.
#[derive(Debug)]
struct Argument {
    bytes: RefCell<Vec<u8>>,
    fds: RefCell<Vec<Option<OwnedFd>>>,
}

impl Argument {
    fn new(bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Self {
        let fds = RefCell::new(fds.into_iter().map(Some).collect());
        Self { bytes: RefCell::new(bytes), fds }
    }

    fn span(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>> {
        let outside = Error::at(Errno::EFAULT, "past the end of the message", address);
        let start = usize::try_from(address).map_err(|_| outside)?;
        let end = start.checked_add(length).ok_or(outside)?;
        if end > self.bytes.borrow().len() { Err(outside) } else { Ok(start..end) }
    }
}

impl ioasis_iommufd::Client for Argument {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<()> {
        let span = self.span(address, buf.len())?;
        buf.copy_from_slice(&self.bytes.borrow()[span]);
        Ok(())
    }

    fn write(&self, address: u64, buf: &[u8]) -> Result<()> {
        let span = self.span(address, buf.len())?;
        self.bytes.borrow_mut()[span].copy_from_slice(buf);
        Ok(())
    }

    fn memory(&self) -> Arc<dyn AddressSpace> {
        unreachable!("interrupts need no memory but their argument")
    }

    fn file_memory(&self, _: i32) -> Result<Arc<dyn AddressSpace>> {
        Err(Error::new(Errno::EBADF, "a message has no memory files"))
    }

    fn account(&self) -> Account {
        Account {
            pid: 0,
            uid: 0,
            memlock_pages: Some(0),
            ipc_lock: false,
            sys_resource: false,
            sys_rawio: false,
        }
    }
}

impl Client for Argument {
    fn iommu_file(&self, _: i32) -> Result<IommuFile> {
        Err(Error::new(Errno::EBADF, "a message has no iommufd"))
    }

    fn eventfd(&self, fd: i32) -> Result<EventFd> {
        let bad = Error::new(Errno::EBADF, "no such descriptor came along");
        let place = usize::try_from(fd).map_err(|_| bad)?;
        let mut fds = self.fds.borrow_mut();
        EventFd::from_fd(fds.get_mut(place).and_then(Option::take).ok_or(bad)?)
    }

    fn vfio_file(&self, _: i32) -> Result<VfioFile> {
        Err(Error::new(Errno::EBADF, "a message has no VFIO files"))
    }

    fn device_memory(&self, _: &Device) -> Result<DeviceMemory> {
        Err(Error::new(Errno::ENOMEM, "a message opens no device"))
    }
}
