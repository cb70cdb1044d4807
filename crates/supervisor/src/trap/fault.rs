//! One access to a trapped page, done for the thread that stopped at it.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use ioasis_pci::PageKind;
use ioasis_sys::process::Vma;
use ioasis_sys::ptrace::{Registers, Vectors};
use ioasis_vfio::DeviceFile;
use ioasis_x86::{Bus, Failure, Fault, Instruction, Mode, PAGE, State};

use super::Surroundings;
use super::space::{Plain, Space};

/// What becomes of a thread that faulted.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It goes on with these registers; vectors where the instruction set any.
    Done(Box<(Registers, Option<Vectors>)>),
    /// The fault is the program's own.
    Theirs,
    /// The page was made writable meanwhile.
    Again,
    /// It would have faulted at another address, which the instruction also wanted.
    Elsewhere(u64),
    /// The device does not answer: memory decoding is off, or it was removed.
    NoDevice,
    /// The instruction, of these bytes, is none that can be done.
    Unknown(Vec<u8>),
}

/// What a program asked to do with trapped pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leave {
    pub(super) load: bool,
    pub(super) store: bool,
}

impl Leave {
    pub(super) const ALL: Self = Self { load: true, store: true };
}

/// The trapped pages around a fault. What is mapped where is asked of the kernel once for each page.
struct Pages<'a> {
    space: &'a Space,
    surroundings: &'a dyn Surroundings,
    /// By page: the device and the offset in its file, or nothing.
    known: RefCell<Vec<(u64, Option<Place>)>>,
    leave: Leave,
    /// The device refused.
    refused: bool,
}

#[derive(Clone, Debug)]
struct Place {
    device: Arc<DeviceFile>,
    /// Of the page, in the file.
    offset: u64,
    /// Loads are trapped as well: what may be done there the mapping does not say.
    loads: bool,
}

impl Pages<'_> {
    fn place(&self, address: u64) -> Option<Place> {
        let page = address & !(PAGE - 1);
        if let Some((_, place)) = self.known.borrow().iter().find(|(known, _)| *known == page) {
            return place.clone();
        }
        let vma = self.space.vma(page);
        self.find(page, vma.as_ref())
    }

    /// The trapped page at `page`, if `vma`, which is mapped there, has one.
    fn find(&self, page: u64, vma: Option<&Vma>) -> Option<Place> {
        let place = vma.and_then(|vma| place(vma, page, self.surroundings));
        self.known.borrow_mut().push((page, place.clone()));
        place
    }
}

/// The trapped page at `page`, if `vma` has one there.
fn place(vma: &Vma, page: u64, surroundings: &dyn Surroundings) -> Option<Place> {
    if !vma.shared || vma.inode == 0 {
        return None;
    }
    let device = surroundings.device(vma.device, vma.inode)?;
    let offset = vma.offset.checked_add(page - vma.start)?;
    let loads = match device.page_kind(offset)? {
        PageKind::Shared => return None,
        PageKind::Trapped => false,
        PageKind::TrappedLoads => true,
    };
    Some(Place { device, offset, loads })
}

/// Whether a trapped page is mapped at `address`.
pub(super) fn is_trapped(space: &Space, address: u64, surroundings: &dyn Surroundings) -> bool {
    let page = address & !(PAGE - 1);
    space.vma(page).is_some_and(|vma| place(&vma, page, surroundings).is_some())
}

impl Bus for Pages<'_> {
    fn is_trapped(&self, address: u64) -> bool {
        self.place(address).is_some()
    }

    fn load(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let place = self.place(address).filter(|_| self.leave.load);
        let Place { device, offset, .. } = place.ok_or(Fault { address })?;
        device.load(offset + address % PAGE, bytes).map_err(|_| self.refuse(address))
    }

    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let place = self.place(address).filter(|_| self.leave.store);
        let Place { device, offset, .. } = place.ok_or(Fault { address })?;
        device.store(offset + address % PAGE, bytes).map_err(|_| self.refuse(address))
    }
}

impl Pages<'_> {
    fn refuse(&mut self, address: u64) -> Fault {
        self.refused = true;
        Fault { address }
    }
}

/// Does the instruction at which a thread faulted at `address`, a page of which it has this leave. `peek` reads eight bytes of its memory,
/// `vectors` its vector registers.
pub(super) fn fault(
    registers: &Registers,
    (address, leave): (u64, Leave),
    (space, surroundings): (&Space, &dyn Surroundings),
    peek: impl FnOnce(u64) -> Option<[u8; 8]>,
    vectors: impl FnOnce() -> Option<Vectors>,
) -> Outcome {
    let known = RefCell::default();
    let mut pages = Pages { space, surroundings, known, leave, refused: false };
    let page = address & !(PAGE - 1);
    let vma = space.vma(address);
    let readable = vma.as_ref().is_some_and(|vma| vma.prot.read);
    match pages.find(page, vma.as_ref()) {
        _ if vma.as_ref().is_some_and(|vma| vma.prot.write) => return Outcome::Again,
        // Code is not fetched from registers.
        Some(place) if (readable || place.loads) && registers.rip & !(PAGE - 1) != page => {}
        _ => return Outcome::Theirs,
    }
    let mode = if registers.is_32_bit() { Mode::Bits32 } else { Mode::Bits64 };
    let unknown = |code: Vec<u8>| Outcome::Unknown(code);
    // Most instructions end within what one request peeks at, which takes half the time.
    let mut code = peek(registers.rip).map_or_else(Vec::new, Vec::from);
    let mut decoded = Instruction::decode(&code, registers.rip, mode);
    if decoded.is_err() {
        code = space.code(registers.rip);
        decoded = Instruction::decode(&code, registers.rip, mode);
    }
    let Ok(instruction) = decoded else { return unknown(code) };
    let mut state = state(registers);
    let mut area = None;
    if instruction.uses_vectors() {
        let Some(read) = vectors() else { return unknown(code) };
        state.vectors = (0..read.shape().0).map(|index| read.get(index)).collect();
        area = Some(read);
    }
    match instruction.execute(&mut state, &mut pages, &mut Plain(space)) {
        Ok(_) => {
            let written: Range<usize> = if state.written == 0 { 0..0 } else { 0..32 };
            for index in written.filter(|index| state.written & 1 << index != 0) {
                if let (Some(area), Some(bytes)) = (&mut area, state.vectors.get(index)) {
                    area.set(index, bytes);
                }
            }
            let area = area.filter(|_| state.written != 0);
            Outcome::Done(Box::new((changed(registers, &state), area)))
        }
        Err(Failure::Unknown) => unknown(code[..instruction.length().min(code.len())].to_vec()),
        Err(Failure::Fault(_)) if pages.refused => Outcome::NoDevice,
        Err(Failure::Fault(Fault { address })) => Outcome::Elsewhere(address),
    }
}

fn state(registers: &Registers) -> State {
    let Registers { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, .. } = *registers;
    let Registers { r8, r9, r10, r11, r12, r13, r14, r15, .. } = *registers;
    State {
        general: [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15],
        ip: registers.rip,
        flags: registers.eflags,
        fs_base: registers.fs_base,
        gs_base: registers.gs_base,
        vectors: Vec::new(),
        written: 0,
    }
}

fn changed(before: &Registers, state: &State) -> Registers {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
        state.general;
    Registers {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.ip,
        eflags: state.flags,
        ..*before
    }
}
