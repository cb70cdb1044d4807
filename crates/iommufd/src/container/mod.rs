//! The VFIO container, on an IOAS: one open of `/dev/vfio/vfio`.
//!
//! Which file was opened decides the rules, not the code: on `/dev/iommu` they are those of Linux's
//! compatibility layer (`compat`), on `/dev/vfio/vfio` those of the type1 driver ([`Container`],
//! `type1`), on a machine of POWER's those of the SPAPR driver (`spapr`). One IOAS does the work
//! under each.
//!
//! Groups come first: only they give the right to an IOMMU. SET_IOMMU then chooses the driver, and
//! with the last group both driver and mappings go. Linux: `drivers/vfio/container.c`.
//!
//! `Container::state` is held for a whole call, as the type1 driver holds its own lock, and comes
//! before every lock of the IOAS. Those that wait for devices let go of it: an unmap while there
//! are pins, and EEH_PE_OP, which has a claim on each group that it acts on.

mod argument;
pub(crate) mod compat;
mod emulated;
mod log;
mod look;
mod member;
mod pins;
mod spapr;
mod type1;
mod vaddr;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;
use ioasis_uapi::vfio as abi;

pub use look::ContainerLook;
pub use member::{GroupKind, Member};

use crate::client::{Account, Client};
use crate::device::access::AccessUser;
use crate::hw::group::Group;
use crate::hw::machine::Machine;
use spapr::{Operation, Spapr};
use type1::Type1;

#[derive(Debug)]
enum Driver {
    Type1(Box<Type1>),
    Spapr(Box<Spapr>),
    /// Every call but the three of the container itself is unknown.
    NoIommu,
}

#[derive(Debug, Default)]
struct State {
    members: Vec<Member>,
    driver: Option<Driver>,
    /// Open devices that may pin.
    users: Vec<Arc<dyn AccessUser>>,
}

impl State {
    fn has_pins(&self) -> bool {
        matches!(&self.driver, Some(Driver::Type1(type1)) if !type1.pins.is_empty())
    }
}

/// One open of `/dev/vfio/vfio`.
#[derive(Debug)]
pub struct Container {
    machine: Arc<Machine>,
    token: u64,
    state: Mutex<State>,
}

impl Container {
    /// A container without groups on `machine`.
    #[must_use]
    pub fn new(machine: &Arc<Machine>) -> Arc<Self> {
        Arc::new(Self {
            machine: Arc::clone(machine),
            token: machine.token(),
            state: Mutex::default(),
        })
    }

    /// Carries out the ioctl `cmd` with argument `arg` for `client`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for everything before SET_IOMMU except the three calls of the container itself,
    /// `ENOTTY` for an unknown code after it, and whatever the call refuses.
    pub fn ioctl(&self, client: &dyn Client, cmd: u32, arg: u64) -> Result<i64> {
        let mut state = self.state.lock();
        match cmd {
            abi::EEH_PE_OP if matches!(state.driver, Some(Driver::Spapr(_))) => {
                drop(state);
                self.eeh_pe_op(client, arg)
            }
            abi::IOMMU_UNMAP_DMA if state.has_pins() => {
                drop(state);
                self.unmap_dma(client, arg)
            }
            abi::GET_API_VERSION => Ok(i64::from(abi::API_VERSION)),
            abi::CHECK_EXTENSION => Ok(i64::from(self.check_extension(&state, arg))),
            abi::SET_IOMMU => self.set_iommu(&mut state, client, arg),
            _ => match &mut state.driver {
                None => refuse!(
                    EINVAL,
                    "the container has no IOMMU yet: SET_IOMMU comes first",
                    u64::from(cmd)
                ),
                Some(Driver::NoIommu) => {
                    refuse!(ENOTTY, "a no-iommu container maps nothing", u64::from(cmd))
                }
                Some(Driver::Type1(type1)) => type1.ioctl(client, cmd, arg),
                Some(Driver::Spapr(spapr)) => spapr.ioctl(client, cmd, arg),
            },
        }
    }

    /// EEH_PE_OP. The argument is read, and the groups are reset, with nothing locked: the client
    /// may stall the one, and the other waits for devices.
    fn eeh_pe_op(&self, client: &dyn Client, arg: u64) -> Result<i64> {
        let check = || match &self.state.lock().driver {
            Some(Driver::Spapr(spapr)) => spapr.check_eeh(client),
            _ => Ok(()),
        };
        check()?;
        let operation = Operation::read(client, arg)?;
        let claims = match &self.state.lock().driver {
            Some(Driver::Spapr(spapr)) => spapr.claim_groups(self.token)?,
            _ => Vec::new(),
        };
        operation.carry_out(&claims)
    }

    fn check_extension(&self, state: &State, arg: u64) -> bool {
        let number = u32::try_from(arg).unwrap_or(u32::MAX);
        let no_iommu = || {
            number == abi::NOIOMMU_IOMMU
                && self.machine.params.enable_unsafe_noiommu_mode.load(Ordering::Relaxed)
        };
        let offers = || match self.machine.is_spapr() {
            true => Spapr::offers(&self.machine, number),
            false => Type1::offers(number),
        };
        match &state.driver {
            Some(Driver::Type1(type1)) => type1.check_extension(number),
            Some(Driver::Spapr(_)) => offers(),
            Some(Driver::NoIommu) => no_iommu(),
            // Before SET_IOMMU: what any driver has that may serve the groups there are.
            None => match state.members.first().map(|member| member.kind) {
                Some(GroupKind::NoIommu) => no_iommu(),
                Some(_) => offers(),
                None => offers() || no_iommu(),
            },
        }
    }

    fn set_iommu(&self, state: &mut State, client: &dyn Client, arg: u64) -> Result<i64> {
        if state.members.is_empty() {
            return refuse!(
                EINVAL,
                "the container has no group yet: GROUP_SET_CONTAINER comes first"
            );
        }
        if state.driver.is_some() {
            return refuse!(EINVAL, "the container has an IOMMU already");
        }
        let number = u32::try_from(arg).unwrap_or(u32::MAX);
        if !self.check_extension(state, arg) {
            return refuse!(ENODEV, "no driver serves this IOMMU type", arg);
        }
        if state.members.iter().any(|member| member.kind == GroupKind::NoIommu) {
            if !client.account().sys_rawio {
                return refuse!(EPERM, "no-iommu mode needs CAP_SYS_RAWIO");
            }
            state.driver = Some(Driver::NoIommu);
            return Ok(0);
        }
        // The one that came last first, as in Linux's list of them.
        let mut members = state.members.iter().rev();
        // On failure the driver goes, and with it whatever was attached.
        state.driver = Some(if self.machine.is_spapr() {
            let mut spapr = Spapr::open(&self.machine, number)?;
            members.try_for_each(|member| spapr.attach(member))?;
            Driver::Spapr(Box::new(spapr))
        } else {
            let mut type1 = Type1::open(&self.machine, number)?;
            members.try_for_each(|member| type1.attach(member))?;
            Driver::Type1(Box::new(type1))
        });
        Ok(0)
    }

    /// Adds a group: GROUP_SET_CONTAINER.
    ///
    /// # Errors
    ///
    /// `EPERM` for a no-iommu group without `CAP_SYS_RAWIO`, one among others or the other way
    /// round, or a group that somebody else owns; what attaching refuses when the container has its
    /// IOMMU.
    pub fn add_group(&self, account: &Account, member: Member) -> Result<()> {
        let no_iommu = member.kind == GroupKind::NoIommu;
        if no_iommu && !account.sys_rawio {
            return refuse!(EPERM, "a no-iommu group needs CAP_SYS_RAWIO");
        }
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.members.iter().any(|other| (other.kind == GroupKind::NoIommu) != no_iommu) {
            return refuse!(
                EPERM,
                "groups with and without an IOMMU do not mix",
                u64::from(member.group.number())
            );
        }
        if member.kind == GroupKind::Iommu {
            member.group.claim(self.token)?;
        }
        let attached = match &mut state.driver {
            Some(Driver::Type1(type1)) => type1.attach(&member),
            Some(Driver::Spapr(spapr)) => spapr.attach(&member),
            Some(Driver::NoIommu) | None => Ok(()),
        };
        if let Err(error) = attached {
            disown(&member);
            return Err(error);
        }
        state.members.push(member);
        Ok(())
    }

    /// Takes a group out: GROUP_UNSET_CONTAINER, or the end of the group's file. With the last one
    /// the IOMMU and all mappings go.
    pub fn remove_group(&self, group: &Arc<Group>) {
        let mut state = self.state.lock();
        let Some(at) = state.members.iter().position(|member| member.is(group)) else { return };
        let member = state.members.remove(at);
        match &mut state.driver {
            Some(Driver::Type1(type1)) => type1.detach(&member),
            Some(Driver::Spapr(spapr)) => spapr.detach(&member),
            Some(Driver::NoIommu) | None => {}
        }
        let driver = if state.members.is_empty() { state.driver.take() } else { None };
        drop(state);
        drop(driver);
        disown(&member);
    }

    /// Whether it is one of SPAPR's rules: the machine is of POWER's.
    #[must_use]
    pub fn is_spapr(&self) -> bool {
        self.machine.is_spapr()
    }

    /// Whether a device of the container can be opened: it has an IOMMU.
    #[must_use]
    pub fn has_iommu(&self) -> bool {
        self.state.lock().driver.is_some()
    }

    /// Whether `group` was added.
    #[must_use]
    pub fn has_group(&self, group: &Arc<Group>) -> bool {
        self.state.lock().members.iter().any(|member| member.is(group))
    }
}

fn disown(member: &Member) {
    if member.kind == GroupKind::Iommu {
        member.group.disown();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let groups: Vec<Arc<Group>> =
            self.state.get_mut().members.iter().map(|member| Arc::clone(&member.group)).collect();
        groups.iter().for_each(|group| self.remove_group(group));
    }
}

#[cfg(test)]
mod pins_tests;
#[cfg(test)]
mod tests;
