//! TCE windows: what an IOMMU of POWER translates through, two tables beside each other.
//!
//! Bit 59 of an I/O address chooses the window (`tce_bypass_base` in
//! `arch/powerpc/platforms/powernv/pci-ioda.c`), the rest is looked up in its table. Windows come
//! and go while devices use the other one. To the core both together are one page table.
//!
//! Lock order: `Window::writer` comes after `Domain::writer` and before nothing.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ioasis_iommupt::dump::Style;
use ioasis_iommupt::fmt::Tce;
use ioasis_iommupt::{
    Changes, Config, Dirty, Fault, Iova, IovaRange, Pa, Prot, Quiesce, Run, Step, TableReader,
    TableWriter,
};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use super::format::{TABLES_MAX, sizes, table};
use crate::client::PAGE_SIZE;
use crate::inject::step;

/// `IOMMU_TABLE_GROUP_MAX_TABLES`: windows there can be.
pub(crate) const WINDOWS: usize = 2;
/// Where the second window begins.
const SECOND_LG2: u32 = 59;
/// An I/O address has 60 bits.
pub(crate) const IOVA_LG2: u32 = SECOND_LG2 + 1;

/// Where window `number` begins.
pub(crate) const fn start_of(number: usize) -> u64 {
    (number as u64) << SECOND_LG2
}

/// What devices behind a host bridge of POWER have, in `struct iommu_table_group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spapr {
    /// Bytes of the window that is there without being asked for: a power of two of at most 2 GiB,
    /// or 0 where there is none.
    pub window: u32,
    /// Windows can be made and removed (DDW).
    pub dynamic_windows: bool,
    /// Levels of tables that a window can be asked for with, at most 5.
    pub levels: u32,
    /// Errors freeze what made them, until it is recovered (EEH).
    pub eeh: bool,
}

impl Default for Spapr {
    fn default() -> Self {
        // POWERNV_IOMMU_MAX_LEVELS; the window is what DPDK's and QEMU's comments call the default.
        Self { window: 1 << 31, dynamic_windows: true, levels: 5, eeh: true }
    }
}

/// Sizes of pages that windows can have.
pub(crate) fn page_sizes() -> u64 {
    sizes::<Tce<12, 3>>()
        | sizes::<Tce<16, 5>>()
        | sizes::<Tce<21, 4>>()
        | sizes::<Tce<24, 4>>()
        | sizes::<Tce<28, 3>>()
        | sizes::<Tce<30, 3>>()
}

/// One window.
#[derive(Debug)]
pub(crate) struct Window {
    /// The I/O addresses it translates.
    pub(crate) range: IovaRange,
    /// lg2 of the bytes of its pages.
    pub(crate) page_lg2: u32,
    writer: Mutex<Box<dyn TableWriter>>,
    reader: Arc<dyn TableReader>,
}

impl Window {
    /// Window `number`, of `1 << lg2` bytes in pages of `1 << page_lg2`, with nothing in it.
    ///
    /// # Errors
    ///
    /// `EINVAL` for pages that no table has; `ENOMEM`.
    pub(crate) fn new(
        number: usize,
        page_lg2: u32,
        lg2: u32,
        quiesce: Arc<dyn Quiesce>,
    ) -> Result<Self> {
        step("a TCE table")?;
        let config =
            Config { tables_max: TABLES_MAX, page_sizes: 1 << page_lg2, iova_lg2: lg2, quiesce };
        let writer = match page_lg2 {
            12 if lg2 <= 39 => table::<Tce<12, 3>>(config),
            12 => table::<Tce<12, 5>>(config),
            16 => table::<Tce<16, 5>>(config),
            21 => table::<Tce<21, 4>>(config),
            24 => table::<Tce<24, 4>>(config),
            28 => table::<Tce<28, 3>>(config),
            30 => table::<Tce<30, 3>>(config),
            _ => refuse!(EINVAL, "no table has such pages", page_lg2.into()),
        }?;
        let reader = writer.reader();
        let range = IovaRange::new(Iova(start_of(number)), 1 << lg2)?;
        Ok(Self { range, page_lg2, writer: Mutex::new(writer), reader })
    }

    /// Bytes of a page.
    pub(crate) fn page(&self) -> u64 {
        1 << self.page_lg2
    }

    fn below(&self, iova: Iova) -> Iova {
        Iova(iova.0 - self.range.start().0)
    }

    fn range_below(&self, range: IovaRange) -> IovaRange {
        IovaRange::closed(self.below(range.start()), self.below(range.last()))
            .expect("a range stays one")
    }

    fn range_above(&self, range: IovaRange) -> IovaRange {
        let above = |iova: Iova| Iova(iova.0 + self.range.start().0);
        IovaRange::closed(above(range.start()), above(range.last())).expect("a range stays one")
    }

    fn fault(&self, fault: Fault) -> Fault {
        Fault { iova: Iova(fault.iova.0.saturating_add(self.range.start().0)), ..fault }
    }
}

/// The windows of a container, which all its groups have.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    slots: [ArcSwapOption<Window>; WINDOWS],
    /// Nobody keeps translations of these tables: there is no nesting.
    changes: Arc<Changes>,
}

impl Windows {
    /// Puts a window where there is none, or takes one away. What was translated through it may be
    /// in use still.
    pub(crate) fn set(&self, number: usize, window: Option<Arc<Window>>) {
        self.slots[number].store(window);
    }

    /// What the core writes through.
    pub(crate) fn writer(windows: &Arc<Self>) -> Box<dyn TableWriter> {
        Box::new(WindowsWriter { windows: Arc::clone(windows) })
    }

    /// The window that `iova` lies in.
    fn at(&self, iova: Iova) -> Option<Arc<Window>> {
        let number = usize::try_from(iova.0 >> SECOND_LG2).ok()?;
        let window = self.slots.get(number)?.load_full()?;
        (window.range.start() <= iova && iova <= window.range.last()).then_some(window)
    }

    /// The windows that share an address with `range`, with what they share.
    fn over(&self, range: IovaRange) -> impl Iterator<Item = (Arc<Window>, IovaRange)> {
        self.slots.iter().filter_map(move |slot| {
            let window = slot.load_full()?;
            let part = window.range.intersect(range)?;
            Some((window, part))
        })
    }
}

const fn nothing(iova: Iova) -> Fault {
    Fault { iova, level: 0, missing: Prot::empty() }
}

impl TableReader for Windows {
    fn translate(&self, iova: Iova, length: u64, need: Prot) -> Result<Run, Fault> {
        let window = self.at(iova).ok_or(nothing(iova))?;
        let length = length.min(window.range.last().0 - iova.0 + 1);
        let run = window.reader.translate(window.below(iova), length, need);
        run.map_err(|fault| window.fault(fault))
    }

    fn leaf(&self, iova: Iova, need: Prot) -> Result<(IovaRange, Pa), Fault> {
        let window = self.at(iova).ok_or(nothing(iova))?;
        let (leaf, pa) =
            window.reader.leaf(window.below(iova), need).map_err(|fault| window.fault(fault))?;
        Ok((window.range_above(leaf), pa))
    }

    fn iova_to_phys(&self, iova: Iova) -> Option<Pa> {
        let window = self.at(iova)?;
        window.reader.iova_to_phys(window.below(iova))
    }

    fn changes(&self) -> Arc<Changes> {
        Arc::clone(&self.changes)
    }

    fn format_name(&self) -> &'static str {
        "tce"
    }

    fn steps(&self, iova: Iova) -> Vec<Step> {
        let window = self.at(iova);
        window.map(|window| window.reader.steps(window.below(iova))).unwrap_or_default()
    }

    fn write_dump(&self, style: Style, to: &mut dyn fmt::Write) -> fmt::Result {
        for window in self.slots.iter().filter_map(ArcSwapOption::load_full) {
            if style == Style::Tree {
                writeln!(to, "window from {:#x}", window.range.start().0)?;
            }
            window.reader.write_dump(style, to)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct WindowsWriter {
    windows: Arc<Windows>,
}

impl TableWriter for WindowsWriter {
    fn aperture(&self) -> IovaRange {
        IovaRange::closed(Iova(0), Iova((1 << IOVA_LG2) - 1)).expect("it is not empty")
    }

    fn page_sizes(&self) -> u64 {
        // What the core aligns to; a window has its own page.
        PAGE_SIZE
    }

    fn map(&mut self, iova: Iova, runs: &[Run], prot: Prot) -> Result<()> {
        match self.windows.at(iova) {
            Some(window) => window.writer.lock().map(window.below(iova), runs, prot),
            None => refuse!(ERANGE, "no window is there", iova.0),
        }
    }

    fn unmap(&mut self, range: IovaRange, old: &mut dyn FnMut(Iova, Run)) -> Result<()> {
        for (window, part) in self.windows.over(range) {
            let start = window.range.start().0;
            window.writer.lock().unmap(window.range_below(part), &mut |iova, run| {
                old(Iova(iova.0 + start), run);
            })?;
        }
        Ok(())
    }

    fn clear(&mut self, range: IovaRange) {
        for (window, part) in self.windows.over(range) {
            window.writer.lock().clear(window.range_below(part));
        }
    }

    fn cut(&mut self, at: Iova) -> Result<()> {
        match self.windows.at(at) {
            Some(window) => window.writer.lock().cut(window.below(at)),
            None => Ok(()),
        }
    }

    fn protect(&mut self, range: IovaRange, prot: Prot) -> Result<()> {
        self.windows.over(range).try_for_each(|(window, part)| {
            window.writer.lock().protect(window.range_below(part), prot)
        })
    }

    fn cut_aperture(&mut self, last: Iova) -> Result<()> {
        refuse!(EINVAL, "windows end where they end", last.0)
    }

    fn read_dirty(&mut self, range: IovaRange, dirty: Dirty, found: &mut dyn FnMut(IovaRange)) {
        for (window, part) in self.windows.over(range) {
            window.writer.lock().read_dirty(window.range_below(part), dirty, &mut |range| {
                found(window.range_above(range));
            });
        }
    }

    fn set_dirty(&mut self, range: IovaRange) {
        for (window, part) in self.windows.over(range) {
            window.writer.lock().set_dirty(window.range_below(part));
        }
    }

    fn reader(&self) -> Arc<dyn TableReader> {
        Arc::<Windows>::clone(&self.windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_iommupt::Counted;

    fn two() -> (Box<dyn TableWriter>, Arc<Windows>) {
        let windows = Arc::new(Windows::default());
        for (number, page_lg2) in [(0, 12), (1, 16)] {
            let quiesce = Arc::new(Counted::default());
            let window = Window::new(number, page_lg2, 24, quiesce).unwrap();
            windows.set(number, Some(Arc::new(window)));
        }
        (Windows::writer(&windows), windows)
    }

    #[test]
    fn bit_59_chooses_the_window_and_neither_reaches_past_its_end() {
        let (mut writer, windows) = two();
        let (low, high) = (Iova(0xff_f000), Iova((1 << 59) + 0xff_0000));
        writer.map(low, &[Run { pa: Pa(0x5000), length: 0x1000 }], Prot::READ).unwrap();
        writer.map(high, &[Run { pa: Pa(0x7_0000), length: 0x1_0000 }], Prot::READ).unwrap();
        assert_eq!(windows.iova_to_phys(Iova(low.0 + 8)), Some(Pa(0x5008)));
        assert_eq!(windows.iova_to_phys(Iova(high.0 + 8)), Some(Pa(0x7_0008)));
        let run = windows.translate(low, 0x10_0000, Prot::READ).unwrap();
        assert_eq!(run, Run { pa: Pa(0x5000), length: 0x1000 });
        let fault = windows.translate(Iova((1 << 59) + 0x1_0000), 1, Prot::READ).unwrap_err();
        assert_eq!(fault.iova, Iova((1 << 59) + 0x1_0000), "an address of the window's own");
        for beyond in [1 << 24, (1 << 59) + (1 << 24), 1 << 60, 3 << 59, u64::MAX] {
            assert!(windows.translate(Iova(beyond), 1, Prot::READ).is_err(), "{beyond:#x}");
            assert!(
                writer.map(Iova(beyond), &[Run { pa: Pa(0), length: 0x1000 }], Prot::READ).is_err()
            );
        }
        let (leaf, _) = windows.leaf(high, Prot::READ).unwrap();
        assert_eq!(leaf, IovaRange::new(high, 0x1_0000).unwrap());
    }

    #[test]
    fn a_window_that_goes_leaves_the_other_alone() {
        let (mut writer, windows) = two();
        let high = Iova(1 << 59);
        writer.map(Iova(0), &[Run { pa: Pa(0x5000), length: 0x1000 }], Prot::READ).unwrap();
        writer.map(high, &[Run { pa: Pa(0x7_0000), length: 0x1_0000 }], Prot::READ).unwrap();
        windows.set(0, None);
        assert_eq!(windows.iova_to_phys(Iova(0)), None);
        assert_eq!(windows.iova_to_phys(high), Some(Pa(0x7_0000)));
        writer.clear(IovaRange::ALL);
        assert_eq!(windows.iova_to_phys(high), None);
    }
}
