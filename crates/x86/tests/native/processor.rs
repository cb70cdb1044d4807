//! The processor, in a child that runs one instruction at a time.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ioasis_sys::ptrace::{
    Event, Follow, Injection, Registers, Resume, Stop, SystemCall, Tracer, Waited,
};
use ioasis_sys::spawn::{self, Child};
use ioasis_x86::{Mode, State};

use crate::forms::Case;

/// Where the instruction lies, and where its memory: both below 4 GiB, for 32-bit code.
pub(crate) const CODE: u64 = 0x1000_0800;
pub(crate) const DATA: u64 = 0x2000_0000;
/// How many pages of memory there are.
pub(crate) const PAGES: usize = 4;

/// `__USER32_CS` and `__USER32_DS` of Linux (asm/segment.h).
const CODE_32: u64 = 0x23;
const DATA_32: u64 = 0x2b;

pub(crate) struct Processor {
    tracer: Tracer,
    child: Child,
    memory: File,
    registers: Registers,
}

/// What became of an instruction.
pub(crate) enum Ran {
    Done(Box<State>, Vec<u8>),
    /// The processor has no such instruction.
    Unknown,
    Faulted(i32),
}

impl Processor {
    pub(crate) fn start() -> Self {
        let child = spawn::fork_with(|| {
            loop {
                std::thread::park();
            }
        });
        let child = child.expect("fork");
        let tracer = Tracer::new();
        let tid = child.id();
        while !std::fs::read_to_string(format!("/proc/{tid}/stat"))
            .is_ok_and(|it| it.contains(") S "))
        {
            std::thread::yield_now();
        }
        tracer.seize(tid, Follow::Alone).expect("it is ours");
        tracer.interrupt(tid).expect("it runs");
        assert_eq!(wait(&tracer), Event::Interrupted);
        let registers = tracer.registers(tid).expect("it stands");
        let instruction = SystemCall::instruction_before(&registers);
        for (at, length) in [(CODE & !0xfff, 4096), (DATA, PAGES as u64 * 4096)] {
            // mmap(2): readable, writable, executable; private, anonymous and fixed.
            let args = [at, length, 7, 0x32, u64::MAX, 0];
            let call = SystemCall { instruction, number: 9, args };
            let outcome = Injection::make(&tracer, tid, call).expect("it stands");
            assert_eq!(outcome.result.map_err(|errno| errno.raw()), Ok(at));
        }
        let path = format!("/proc/{tid}/mem");
        let memory = File::options().read(true).write(true).open(path).expect("it is ours");
        Self { tracer, child, memory, registers }
    }

    /// How many vector registers there are, and of how many bytes.
    pub(crate) fn vectors(&self) -> (usize, usize) {
        self.tracer.vectors(self.child.id()).expect("it stands").shape()
    }

    /// Runs the instruction `code`.
    pub(crate) fn run(&mut self, case: &Case, code: &[u8]) -> Ran {
        let tid = self.child.id();
        self.memory.write_all_at(code, CODE).expect("it is writable");
        self.memory.write_all_at(&case.memory, DATA).expect("it is writable");
        let mut registers = registers(&self.registers, &case.state);
        if case.mode == Mode::Bits32 {
            (registers.cs, registers.ds, registers.es, registers.ss) =
                (CODE_32, DATA_32, DATA_32, DATA_32);
        }
        self.tracer.set_registers(tid, &registers).expect("they are valid");
        if !case.state.vectors.is_empty() {
            let mut vectors = self.tracer.vectors(tid).expect("it stands");
            for (index, bytes) in case.state.vectors.iter().enumerate() {
                vectors.set(index, bytes);
            }
            self.tracer.set_vectors(tid, &vectors).expect("they are valid");
        }
        // A repeated instruction stops after each iteration.
        for _ in 0..1000 {
            self.tracer.resume(tid, Resume::Step, 0).expect("it stands");
            match wait(&self.tracer) {
                Event::Signal(5) => {}
                Event::Signal(4) => return Ran::Unknown,
                Event::Signal(signal) => return Ran::Faulted(signal),
                other => panic!("{other:?}"),
            }
            registers = self.tracer.registers(tid).expect("it stands");
            if registers.rip != CODE {
                break;
            }
        }
        let mut memory = vec![0; case.memory.len()];
        self.memory.read_exact_at(&mut memory, DATA).expect("it is readable");
        let mut state = state(&registers);
        if !case.state.vectors.is_empty() {
            let vectors = self.tracer.vectors(tid).expect("it stands");
            state.vectors = (0..case.state.vectors.len()).map(|index| vectors.get(index)).collect();
        }
        Ran::Done(Box::new(state), memory)
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(tracer: &Tracer) -> Event {
    match tracer.wait() {
        Waited::Stop(Stop { event, .. }) => event,
        other => panic!("{other:?}"),
    }
}

fn registers(of: &Registers, state: &State) -> Registers {
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
        fs_base: state.fs_base,
        gs_base: state.gs_base,
        orig_rax: u64::MAX,
        ..*of
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
