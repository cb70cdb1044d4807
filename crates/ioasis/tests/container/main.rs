//! The VFIO container through real system calls: every way in which Linux's compatibility layer differs from the type1
//! driver, by number, each shown by one client under both sets of rules; and what the type1 rules promise beyond.

mod emulated;
mod groups;
mod mapping;
mod peers;
mod pinned;
mod rules;
mod setup;
mod table;
