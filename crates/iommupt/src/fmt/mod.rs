//! One file is one manual.

mod vtdss;

pub use vtdss::VtdSs;
