//! One file is one manual.

mod amdv1;
mod arm;
mod riscv;
#[cfg(any(kani, all(test, not(any(loom, ioasis_shuttle)))))]
mod round_trip;
mod tce;
#[cfg(kani)]
mod verification;
mod vtdss;
#[cfg(all(test, not(any(loom, ioasis_shuttle))))]
mod words;
mod x86_64;

pub use amdv1::AmdV1;
pub use arm::{Arm, ArmS1, ArmS2};
pub use riscv::{Riscv, Sv39, Sv39x4, Sv48, Sv48x4, Sv57, Sv57x4};
pub use tce::Tce;
pub use vtdss::VtdSs;
pub use x86_64::{AmdV2, VtdFs, X86_64};
