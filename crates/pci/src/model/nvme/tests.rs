//! The controller seen from a driver.

mod admin;
mod events;
mod hostile;
mod io;
mod migration;
mod prp;
mod registers;
mod rig;

pub(in crate::model) use rig::image_path;
