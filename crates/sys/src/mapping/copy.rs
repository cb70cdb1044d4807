//! Copies that survive SIGBUS.
//!
//! Each routine is a leaf in assembly: no stack, no call, nothing to unwind; they lie side by side, before a common
//! landing. A SIGBUS whose instruction lies among them continues at the landing, which returns 1 to the routine's
//! caller. Every other SIGBUS goes to the handler that was there before ours.
//!
//! A thread must not block SIGBUS: the kernel kills a process whose blocked thread faults. Whoever blocks all
//! signals for a signalfd leaves this one out.
//!
//! Which routine for which size, measured on a Xeon with AVX-512 beside libc's memcpy, in cache and out of it: below
//! 2 KiB four 32-byte moves a turn keep up with it; from there on `rep movsb` does, where the processor says that it is
//! fast for short copies too (FSRM). Where it only says that it is fast for long ones (ERMS), 8 KiB.

#![expect(unsafe_code, reason = "assembly routines and the signal handler that mends their faults")]

use std::arch::{global_asm, x86_64};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the copy routines and the signal frame are those of x86-64 Linux");

/// The routine met a SIGBUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Faulted;

// All routines: System V arguments in rdi, rsi, rdx; 0 in rax when done. The landing answers 1.
global_asm!(
    // Up to 32 bytes, with moves that overlap in the middle; more goes on behind the macro.
    ".macro ioasis_copy_small",
    "    cmp rdx, 16",
    "    jb 20f",
    "    cmp rdx, 32",
    "    ja 10f",
    "    movdqu xmm0, [rsi]",
    "    movdqu xmm1, [rsi + rdx - 16]",
    "    movdqu [rdi], xmm0",
    "    movdqu [rdi + rdx - 16], xmm1",
    "    xor eax, eax",
    "    ret",
    "20: cmp edx, 8",
    "    jb 21f",
    "    mov rax, [rsi]",
    "    mov rcx, [rsi + rdx - 8]",
    "    mov [rdi], rax",
    "    mov [rdi + rdx - 8], rcx",
    "    xor eax, eax",
    "    ret",
    "21: cmp edx, 4",
    "    jb 22f",
    "    mov eax, [rsi]",
    "    mov ecx, [rsi + rdx - 4]",
    "    mov [rdi], eax",
    "    mov [rdi + rdx - 4], ecx",
    "    xor eax, eax",
    "    ret",
    "22: test edx, edx",
    "    jz 23f",
    "    mov r8d, edx",
    "    shr r8d, 1",
    "    movzx eax, byte ptr [rsi]",
    "    movzx ecx, byte ptr [rsi + r8]",
    "    movzx r9d, byte ptr [rsi + rdx - 1]",
    "    mov [rdi], al",
    "    mov [rdi + r8], cl",
    "    mov [rdi + rdx - 1], r9b",
    "23: xor eax, eax",
    "    ret",
    "10:",
    ".endm",
    ".pushsection .text.ioasis_foreign, \"ax\", @progbits",
    ".p2align 6",
    ".globl ioasis_foreign_start",
    ".hidden ioasis_foreign_start",
    "ioasis_foreign_start:",
    // Plain SSE2: every x86-64 has it.
    ".p2align 6",
    ".globl ioasis_foreign_copy_sse2",
    ".hidden ioasis_foreign_copy_sse2",
    "ioasis_foreign_copy_sse2:",
    "    ioasis_copy_small",
    "    movdqu xmm4, [rsi + rdx - 32]",
    "    movdqu xmm5, [rsi + rdx - 16]",
    "    lea rcx, [rdi + rdx - 32]",
    "30: movdqu xmm0, [rsi]",
    "    movdqu xmm1, [rsi + 16]",
    "    movdqu [rdi], xmm0",
    "    movdqu [rdi + 16], xmm1",
    "    add rsi, 32",
    "    add rdi, 32",
    "    cmp rdi, rcx",
    "    jb 30b",
    "    movdqu [rcx], xmm4",
    "    movdqu [rcx + 16], xmm5",
    "    xor eax, eax",
    "    ret",
    // AVX: aligned stores, four a turn, the tail first loaded and last stored.
    ".p2align 6",
    ".globl ioasis_foreign_copy_avx",
    ".hidden ioasis_foreign_copy_avx",
    "ioasis_foreign_copy_avx:",
    "    ioasis_copy_small",
    "    vmovdqu ymm0, [rsi]",
    "    vmovdqu ymm7, [rsi + rdx - 32]",
    "    lea rcx, [rdi + rdx]",
    "    cmp rdx, 64",
    "    jbe 31f",
    "    vmovdqu ymm1, [rsi + 32]",
    "    vmovdqu ymm6, [rsi + rdx - 64]",
    "    cmp rdx, 128",
    "    jbe 32f",
    "    vmovdqu ymm5, [rsi + rdx - 96]",
    "    vmovdqu ymm4, [rsi + rdx - 128]",
    "    vmovdqu [rdi], ymm0",
    "    mov rax, rdi",
    "    and rax, 31",
    "    sub rax, 32",
    "    sub rdi, rax",
    "    sub rsi, rax",
    "    lea rdx, [rcx - 128]",
    "    cmp rdi, rdx",
    "    jae 34f",
    ".p2align 5",
    "33: vmovdqu ymm0, [rsi]",
    "    vmovdqu ymm1, [rsi + 32]",
    "    vmovdqu ymm2, [rsi + 64]",
    "    vmovdqu ymm3, [rsi + 96]",
    "    sub rsi, -128",
    "    vmovdqa [rdi], ymm0",
    "    vmovdqa [rdi + 32], ymm1",
    "    vmovdqa [rdi + 64], ymm2",
    "    vmovdqa [rdi + 96], ymm3",
    "    sub rdi, -128",
    "    cmp rdi, rdx",
    "    jb 33b",
    "34: vmovdqu [rcx - 128], ymm4",
    "    vmovdqu [rcx - 96], ymm5",
    "    vmovdqu [rcx - 64], ymm6",
    "    vmovdqu [rcx - 32], ymm7",
    "    vzeroupper",
    "    xor eax, eax",
    "    ret",
    "32: vmovdqu [rdi + 32], ymm1",
    "    vmovdqu [rcx - 64], ymm6",
    "31: vmovdqu [rdi], ymm0",
    "    vmovdqu [rcx - 32], ymm7",
    "    vzeroupper",
    "    xor eax, eax",
    "    ret",
    // ERMS: the first 64 bytes apart, so that the string move's target is aligned. At least 64 bytes.
    ".p2align 6",
    ".globl ioasis_foreign_copy_erms",
    ".hidden ioasis_foreign_copy_erms",
    "ioasis_foreign_copy_erms:",
    "    movdqu xmm0, [rsi]",
    "    movdqu xmm1, [rsi + 16]",
    "    movdqu xmm2, [rsi + 32]",
    "    movdqu xmm3, [rsi + 48]",
    "    movdqu [rdi], xmm0",
    "    movdqu [rdi + 16], xmm1",
    "    movdqu [rdi + 32], xmm2",
    "    movdqu [rdi + 48], xmm3",
    "    lea rcx, [rdi + rdx]",
    "    mov rax, rdi",
    "    and rax, 63",
    "    sub rax, 64",
    "    sub rdi, rax",
    "    sub rsi, rax",
    "    sub rcx, rdi",
    "    rep movsb",
    "    xor eax, eax",
    "    ret",
    // rdi target, esi byte, rdx length
    ".p2align 4",
    ".globl ioasis_foreign_fill",
    ".hidden ioasis_foreign_fill",
    "ioasis_foreign_fill:",
    "    mov eax, esi",
    "    mov rcx, rdx",
    "    rep stosb",
    "    xor eax, eax",
    "    ret",
    // rdi source, rsi where to put it
    ".p2align 4",
    ".globl ioasis_foreign_load_u32",
    ".hidden ioasis_foreign_load_u32",
    "ioasis_foreign_load_u32:",
    "    mov eax, [rdi]",
    "    mov [rsi], eax",
    "    xor eax, eax",
    "    ret",
    ".p2align 4",
    ".globl ioasis_foreign_load_u64",
    ".hidden ioasis_foreign_load_u64",
    "ioasis_foreign_load_u64:",
    "    mov rax, [rdi]",
    "    mov [rsi], rax",
    "    xor eax, eax",
    "    ret",
    // rdi target, rsi value
    ".p2align 4",
    ".globl ioasis_foreign_store_u32",
    ".hidden ioasis_foreign_store_u32",
    "ioasis_foreign_store_u32:",
    "    mov [rdi], esi",
    "    xor eax, eax",
    "    ret",
    ".p2align 4",
    ".globl ioasis_foreign_store_u64",
    ".hidden ioasis_foreign_store_u64",
    "ioasis_foreign_store_u64:",
    "    mov [rdi], rsi",
    "    xor eax, eax",
    "    ret",
    // rdi target, esi value, rdx where to put what was there
    ".p2align 4",
    ".globl ioasis_foreign_swap_u32",
    ".hidden ioasis_foreign_swap_u32",
    "ioasis_foreign_swap_u32:",
    "    xchg [rdi], esi",
    "    mov [rdx], esi",
    "    xor eax, eax",
    "    ret",
    // Where the SIGBUS handler continues. The stack is as at entry: no routine pushes.
    ".p2align 4",
    ".globl ioasis_foreign_landing",
    ".hidden ioasis_foreign_landing",
    "ioasis_foreign_landing:",
    "    mov eax, 1",
    "    ret",
    ".popsection",
    ".purgem ioasis_copy_small",
);

unsafe extern "C" {
    fn ioasis_foreign_start();
    fn ioasis_foreign_copy_sse2(target: *mut u8, source: *const u8, length: usize) -> u32;
    fn ioasis_foreign_copy_avx(target: *mut u8, source: *const u8, length: usize) -> u32;
    fn ioasis_foreign_copy_erms(target: *mut u8, source: *const u8, length: usize) -> u32;
    fn ioasis_foreign_fill(target: *mut u8, byte: u32, length: usize) -> u32;
    fn ioasis_foreign_load_u32(source: *const u8, value: *mut u32) -> u32;
    fn ioasis_foreign_load_u64(source: *const u8, value: *mut u64) -> u32;
    fn ioasis_foreign_store_u32(target: *mut u8, value: u32) -> u32;
    fn ioasis_foreign_store_u64(target: *mut u8, value: u64) -> u32;
    fn ioasis_foreign_swap_u32(target: *mut u8, value: u32, before: *mut u32) -> u32;
    fn ioasis_foreign_landing();
}

/// Copies of at least this many bytes use the string move.
static STRING_MOVE_FROM: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Copies of at least this many bytes use SSE2: all of them, until AVX is known to be there.
static SSE2_FROM: AtomicUsize = AtomicUsize::new(0);

/// The bytes from which `rep movsb` is no slower than moves of 32 bytes, on a processor with FSRM.
const SHORT_STRING_MOVE_WINS: usize = 2048;
/// The same, on one with ERMS only.
const STRING_MOVE_WINS: usize = 8192;
/// Where the target lies this little above the source, by their places in their pages, a string move is up to six times
/// slower than moves of 32 bytes: each load seems to meet a store that is under way. Measured on Zen 4 for 1, 8 and 16 bytes,
/// not for 32 and more; a `Vec` that is mapped for itself begins 16 bytes into a page.
const TOO_CLOSE: usize = 64;

/// Whether a string move from `source` to `target` is slow.
fn is_close(target: *mut u8, source: *const u8) -> bool {
    let apart = target.addr().wrapping_sub(source.addr()) % 4096;
    apart != 0 && apart < TOO_CLOSE
}

fn status(code: u32) -> Result<(), Faulted> {
    if code == 0 { Ok(()) } else { Err(Faulted) }
}

/// Copies `length` bytes.
///
/// # Safety
///
/// `target..+length` must be writable and `source..+length` readable memory of this process, where "may raise
/// SIGBUS" counts as readable and writable; they must not overlap, and [`install`] must have run.
#[inline]
pub(super) unsafe fn copy(
    target: *mut u8,
    source: *const u8,
    length: usize,
) -> Result<(), Faulted> {
    // SAFETY: 1. the caller vouches for both ranges. 2. A routine is only chosen when `install` has found its
    // instructions on this processor. 3. The string move is given at least 2048 bytes, more than
    // the 64 it needs.
    status(unsafe {
        if length >= STRING_MOVE_FROM.load(Ordering::Relaxed) && !is_close(target, source) {
            ioasis_foreign_copy_erms(target, source, length)
        } else if length >= SSE2_FROM.load(Ordering::Relaxed) {
            ioasis_foreign_copy_sse2(target, source, length)
        } else {
            ioasis_foreign_copy_avx(target, source, length)
        }
    })
}

/// Sets `length` bytes to `byte`.
///
/// # Safety
///
/// `target..+length` must be writable in the sense of [`copy`], and [`install`] must have run.
pub(super) unsafe fn fill(target: *mut u8, byte: u8, length: usize) -> Result<(), Faulted> {
    // SAFETY: 1. the caller vouches for the range.
    status(unsafe { ioasis_foreign_fill(target, u32::from(byte), length) })
}

/// One load. Being on x86 it acquires.
///
/// # Safety
///
/// `source` must be a multiple of 4 and readable in the sense of [`copy`], and [`install`] must have run.
#[inline]
pub(super) unsafe fn load_u32(source: *const u8) -> Result<u32, Faulted> {
    let mut value = 0;
    // SAFETY: 1. the caller vouches for `source`. 2. `value` is a local.
    status(unsafe { ioasis_foreign_load_u32(source, &raw mut value) })?;
    Ok(value)
}

/// One load. Being on x86 it acquires.
///
/// # Safety
///
/// `source` must be a multiple of 8 and readable in the sense of [`copy`], and [`install`] must have run.
#[inline]
pub(super) unsafe fn load_u64(source: *const u8) -> Result<u64, Faulted> {
    let mut value = 0;
    // SAFETY: 1. the caller vouches for `source`. 2. `value` is a local.
    status(unsafe { ioasis_foreign_load_u64(source, &raw mut value) })?;
    Ok(value)
}

/// One store. Being on x86 it releases.
///
/// # Safety
///
/// `target` must be a multiple of 4 and writable in the sense of [`copy`], and [`install`] must have run.
#[inline]
pub(super) unsafe fn store_u32(target: *mut u8, value: u32) -> Result<(), Faulted> {
    // SAFETY: 1. the caller vouches for `target`.
    status(unsafe { ioasis_foreign_store_u32(target, value) })
}

/// One store. Being on x86 it releases.
///
/// # Safety
///
/// `target` must be a multiple of 8 and writable in the sense of [`copy`], and [`install`] must have run.
#[inline]
pub(super) unsafe fn store_u64(target: *mut u8, value: u64) -> Result<(), Faulted> {
    // SAFETY: 1. the caller vouches for `target`.
    status(unsafe { ioasis_foreign_store_u64(target, value) })
}

/// Stores `value` and returns what was there, in one step.
///
/// # Safety
///
/// `target` must be a multiple of 4 and writable in the sense of [`copy`], and [`install`] must have run.
#[inline]
pub(super) unsafe fn swap_u32(target: *mut u8, value: u32) -> Result<u32, Faulted> {
    let mut before = 0;
    // SAFETY: 1. the caller vouches for `target`. 2. `before` is a local.
    status(unsafe { ioasis_foreign_swap_u32(target, value, &raw mut before) })?;
    Ok(before)
}

/// What SIGBUS did before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Chooses the routines for this processor and puts the SIGBUS handler in place, once per process.
pub(super) fn install() {
    PREVIOUS.get_or_init(|| {
        SSE2_FROM.store(
            if std::is_x86_feature_detected!("avx") { usize::MAX } else { 0 },
            Ordering::Relaxed,
        );
        STRING_MOVE_FROM.store(string_move_from(), Ordering::Relaxed);
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        // SAFETY: 1. an all-zero sigaction is a valid one. 2. The handler has the signature SA_SIGINFO asks for and
        // calls nothing that is not async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut previous: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let answer = libc::sigaction(libc::SIGBUS, &raw const action, &raw mut previous);
            assert_eq!(answer, 0, "a handler for SIGBUS is always accepted");
            previous
        }
    });
}

/// Enhanced REP MOVSB: CPUID leaf 7, EBX bit 9; fast short REP MOVSB: EDX bit 4 (Intel SDM volume 2, CPUID).
fn string_move_from() -> usize {
    if x86_64::__get_cpuid_max(0).0 < 7 {
        return usize::MAX;
    }
    let leaf = x86_64::__cpuid_count(7, 0);
    match (leaf.ebx & (1 << 9) != 0, leaf.edx & (1 << 4) != 0) {
        (true, true) => SHORT_STRING_MOVE_WINS,
        (true, false) => STRING_MOVE_WINS,
        (false, _) => usize::MAX,
    }
}

/// Whether `ip` is an instruction of a routine.
fn in_a_routine(ip: usize) -> bool {
    let first: unsafe extern "C" fn() = ioasis_foreign_start;
    let landing: unsafe extern "C" fn() = ioasis_foreign_landing;
    (first as usize..landing as usize).contains(&ip)
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let frame = context.cast::<libc::ucontext_t>();
    // SAFETY: 1. with SA_SIGINFO the kernel passes a ucontext_t that is ours to change until we return.
    let ip = unsafe { &mut (*frame).uc_mcontext.gregs[libc::REG_RIP as usize] };
    // SAFETY: 1. with SA_SIGINFO the kernel passes a siginfo_t.
    let sent_by_a_process = unsafe { (*info).si_code } <= 0;
    if !sent_by_a_process && usize::try_from(*ip).is_ok_and(in_a_routine) {
        let landing: unsafe extern "C" fn() = ioasis_foreign_landing;
        *ip = (landing as usize).cast_signed() as i64;
        return;
    }
    chain(signal, info, context, sent_by_a_process);
}

/// Does what would have been done without us.
fn chain(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    sent_by_a_process: bool,
) {
    let previous = PREVIOUS.get();
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    let takes_info = previous.is_some_and(|action| action.sa_flags & libc::SA_SIGINFO != 0);
    match handler {
        libc::SIG_IGN if sent_by_a_process => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: 1. both calls are async-signal-safe. 2. A fault comes again when we return, and then kills;
            // a signal another process sent does not, so it is raised again.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if sent_by_a_process {
                    libc::raise(signal);
                }
            }
        }
        // SAFETY: 1. the previous owner of SIGBUS gave this address to sigaction with SA_SIGINFO.
        address if takes_info => unsafe {
            let call: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(address);
            call(signal, info, context);
        },
        // SAFETY: 1. the previous owner of SIGBUS gave this address to sigaction without SA_SIGINFO.
        address => unsafe {
            let call: extern "C" fn(i32) = std::mem::transmute(address);
            call(signal);
        },
    }
}

/// [`copy`] as on a processor without AVX.
///
/// # Safety
///
/// As for [`copy`].
#[cfg(test)]
pub(super) unsafe fn copy_sse2(
    target: *mut u8,
    source: *const u8,
    length: usize,
) -> Result<(), Faulted> {
    // SAFETY: 1. the caller vouches for both ranges.
    status(unsafe { ioasis_foreign_copy_sse2(target, source, length) })
}
