//! Who pays for pinned pages.
//!
//! Invariant: the charges in a [`Ledger`] add up to the pages pinned by the `Pages` objects that
//! use it, and what SPAPR containers are charged for their windows: such a container pays ahead for
//! all that it can map there ([`Rule::Ahead`]), and for the tables. Linux:
//! `drivers/iommu/iommufd/pages.c` `do_update_pinned`, `drivers/vfio/vfio_iommu_type1.c`
//! `vfio_lock_acct`.
//!
//! `Ledger::books` is a leaf lock.

mod history;

use std::collections::BTreeMap;

use ioasis_sys::sync::{Mutex, MutexGuard};
use ioasis_uapi::Result;

use crate::Account;
use crate::inject::step;
use history::History;

pub use history::Entry;

/// Against which sum, and under which limit, pages are charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Counted as pinned only.
    None,
    /// Against what the user has locked, all processes together.
    User,
    /// Against what the process has locked.
    Process,
    /// The same, but Linux does not count them as pinned: the type1 container.
    Type1,
    /// Counted as locked by the process, over any limit: type1 with `CAP_IPC_LOCK`.
    Type1Unlimited,
    /// Counted nowhere: an SPAPR container was charged for its whole window ahead.
    Ahead,
}

impl Rule {
    /// What iommufd applies when `account` maps under `mode`: the capability is judged at that
    /// moment.
    #[must_use]
    pub fn iommufd(mode: Mode, account: &Account) -> Self {
        match mode {
            _ if account.ipc_lock => Self::None,
            Mode::User => Self::User,
            Mode::Process => Self::Process,
        }
    }

    /// What the type1 container applies when `account` maps.
    #[must_use]
    pub fn type1(account: &Account) -> Self {
        if account.ipc_lock { Self::Type1Unlimited } else { Self::Type1 }
    }
}

impl Rule {
    const fn is_type1(self) -> bool {
        matches!(self, Self::Type1 | Self::Type1Unlimited)
    }

    /// Pages that `account` may have under it.
    const fn limit(self, account: &Account) -> Option<u64> {
        match self {
            Self::User | Self::Process | Self::Type1 => account.memlock_pages,
            Self::None | Self::Type1Unlimited | Self::Ahead => None,
        }
    }
}

/// A context's choice between the two limits: `IOMMU_OPTION_RLIMIT_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One sum per user, what `/dev/iommu` starts with.
    User,
    /// One sum per process, what a VFIO container has.
    Process,
}

/// What one process has charged, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charges {
    /// Pages counted against a process limit: VmLck.
    pub locked: u64,
    /// Pages pinned under any rule.
    pub pinned: u64,
    /// Of those, what type1 containers pinned.
    pub type1: u64,
}

impl Charges {
    /// Pages in VmPin, where type1 counts nothing (`mm->pinned_vm`).
    #[must_use]
    pub const fn vm_pin(self) -> u64 {
        self.pinned - self.type1
    }
}

/// The sums of the account that was charged last. They are in neither map meanwhile: calls come
/// from one client in a row.
#[derive(Debug)]
struct Hot {
    pid: u32,
    uid: u32,
    process: Charges,
    user: u64,
}

impl Hot {
    /// The sum that `rule` limits.
    fn sum(&mut self, rule: Rule) -> Option<&mut u64> {
        match rule {
            Rule::None | Rule::Ahead => None,
            Rule::User => Some(&mut self.user),
            Rule::Process | Rule::Type1 | Rule::Type1Unlimited => Some(&mut self.process.locked),
        }
    }
}

/// Sums of zero are in no map.
#[derive(Debug, Default)]
struct Books {
    users: BTreeMap<u32, u64>,
    processes: BTreeMap<u32, Charges>,
    hot: Option<Hot>,
    /// Kept when somebody asked for it.
    history: Option<Box<History>>,
}

impl Books {
    fn hot(&mut self, account: &Account) -> &mut Hot {
        if self.hot.as_ref().is_none_or(|hot| hot.pid != account.pid || hot.uid != account.uid) {
            self.cool();
            self.hot = Some(Hot {
                pid: account.pid,
                uid: account.uid,
                process: self.processes.remove(&account.pid).unwrap_or_default(),
                user: self.users.remove(&account.uid).unwrap_or_default(),
            });
        }
        self.hot.as_mut().expect("the account is hot now")
    }

    /// Puts the sums of the hot account into the maps.
    #[cold]
    fn cool(&mut self) {
        let Some(hot) = self.hot.take() else { return };
        if hot.process != Charges::default() {
            self.processes.insert(hot.pid, hot.process);
        }
        if hot.user != 0 {
            self.users.insert(hot.uid, hot.user);
        }
    }
}

/// The sums of all charges.
#[derive(Debug, Default)]
pub struct Ledger {
    books: Mutex<Books>,
}

impl Ledger {
    /// Keeps [`entries`](Self::entries) from now on; `name_of` says what a process is called.
    pub fn remember(&self, name_of: fn(u32) -> Option<String>) {
        self.books.lock().history = Some(Box::new(History::new(name_of)));
    }

    /// Who pinned how much under which rule since [`remember`](Self::remember), by thread-group id
    /// and rule.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.books.lock().history.as_ref().map(|history| history.entries()).unwrap_or_default()
    }

    /// What is charged now: pages by user, and by process.
    #[must_use]
    pub fn sums(&self) -> (BTreeMap<u32, u64>, BTreeMap<u32, Charges>) {
        let mut books = self.books.lock();
        books.cool();
        (books.users.clone(), books.processes.clone())
    }

    /// Charges `pages` to `account`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` over the limit; nothing is charged then.
    pub fn charge(&self, rule: Rule, account: &Account, pages: u64) -> Result<()> {
        step("a charge")?;
        if rule == Rule::Ahead {
            return Ok(());
        }
        let mut books = self.books.lock();
        let hot = books.hot(account);
        if let Some(sum) = hot.sum(rule) {
            let locked = sum.saturating_add(pages);
            if rule.limit(account).is_some_and(|limit| locked > limit) {
                if let Some(history) = &mut books.history {
                    history.refused(rule, account);
                }
                return refuse!(
                    ENOMEM,
                    "over the locked-memory limit (RLIMIT_MEMLOCK), in pages",
                    locked
                );
            }
            *sum = locked;
        }
        hot.process.pinned += pages;
        if rule.is_type1() {
            hot.process.type1 += pages;
        }
        if let Some(history) = &mut books.history {
            history.charged(rule, account, pages);
        }
        Ok(())
    }

    /// Takes a charge back. Never fails.
    ///
    /// # Panics
    ///
    /// If less than that was charged.
    pub fn uncharge(&self, rule: Rule, account: &Account, pages: u64) {
        if rule == Rule::Ahead {
            return;
        }
        let mut books = self.books.lock();
        let hot = books.hot(account);
        let less =
            |sum: u64| sum.checked_sub(pages).expect("no more is uncharged than was charged");
        hot.process.pinned = less(hot.process.pinned);
        if rule.is_type1() {
            hot.process.type1 = less(hot.process.type1);
        }
        if let Some(sum) = hot.sum(rule) {
            *sum = less(*sum);
        }
        if let Some(history) = &mut books.history {
            history.uncharged(rule, account, pages);
        }
    }

    /// What the process `pid` has charged.
    #[must_use]
    pub fn process(&self, pid: u32) -> Charges {
        self.cooled().processes.get(&pid).copied().unwrap_or_default()
    }

    /// What the user `uid` has charged against the per-user limit, in pages.
    #[must_use]
    pub fn user(&self, uid: u32) -> u64 {
        self.cooled().users.get(&uid).copied().unwrap_or_default()
    }

    /// All pinned pages.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.cooled().processes.values().map(|process| process.pinned).sum()
    }

    /// Every process with a charge, by thread-group id.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, Charges)> {
        self.cooled().processes.iter().map(|(&pid, &charges)| (pid, charges)).collect()
    }

    /// All sums, in the maps.
    fn cooled(&self) -> MutexGuard<'_, Books> {
        let mut books = self.books.lock();
        books.cool();
        books
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_uapi::Errno;

    fn account(pid: u32, memlock_pages: Option<u64>) -> Account {
        Account {
            pid,
            uid: 1000,
            memlock_pages,
            ipc_lock: false,
            sys_resource: false,
            sys_rawio: false,
        }
    }

    #[test]
    fn the_user_rule_sums_over_processes_and_the_process_rule_does_not() {
        let ledger = Ledger::default();
        ledger.charge(Rule::User, &account(1, Some(10)), 6).unwrap();
        let refused = ledger.charge(Rule::User, &account(2, Some(10)), 6).unwrap_err();
        assert_eq!(refused.errno, Errno::ENOMEM);
        ledger.charge(Rule::Process, &account(2, Some(10)), 6).unwrap();
        assert_eq!(ledger.user(1000), 6);
        assert_eq!(ledger.process(1), Charges { pinned: 6, ..Charges::default() });
        assert_eq!(ledger.process(2), Charges { locked: 6, pinned: 6, type1: 0 });
    }

    #[test]
    fn accounts_that_take_turns_share_the_sums_of_their_user() {
        let ledger = Ledger::default();
        for turn in 1..=4 {
            ledger.charge(Rule::User, &account(1, Some(100)), 2).unwrap();
            ledger.charge(Rule::User, &account(2, Some(100)), 3).unwrap();
            ledger.charge(Rule::Process, &Account { uid: 7, ..account(2, None) }, 1).unwrap();
            assert_eq!((ledger.user(1000), ledger.pinned()), (turn * 5, turn * 6));
        }
        assert_eq!(ledger.process(2), Charges { locked: 4, pinned: 16, type1: 0 });
        for _ in 0..4 {
            ledger.uncharge(Rule::Process, &Account { uid: 7, ..account(2, None) }, 1);
            ledger.uncharge(Rule::User, &account(1, Some(100)), 2);
            ledger.uncharge(Rule::User, &account(2, Some(100)), 3);
        }
        assert_eq!((ledger.user(1000), ledger.processes()), (0, vec![]));
    }

    #[test]
    fn a_refused_charge_leaves_nothing() {
        let ledger = Ledger::default();
        assert!(ledger.charge(Rule::Process, &account(1, Some(0)), 1).is_err());
        assert_eq!(ledger.processes(), []);
    }

    #[test]
    fn ipc_lock_frees_iommufd_of_counting_and_type1_of_the_limit_only() {
        let privileged = Account { ipc_lock: true, ..account(1, Some(0)) };
        let ledger = Ledger::default();
        let rule = Rule::iommufd(Mode::Process, &privileged);
        ledger.charge(rule, &privileged, 3).unwrap();
        assert_eq!(ledger.process(1), Charges { pinned: 3, ..Charges::default() });
        ledger.uncharge(rule, &privileged, 3);
        let rule = Rule::type1(&privileged);
        ledger.charge(rule, &privileged, 3).unwrap();
        assert_eq!(ledger.process(1), Charges { locked: 3, pinned: 3, type1: 3 });
        assert_eq!(ledger.process(1).vm_pin(), 0, "Linux's type1 counts in VmLck alone");
        ledger.uncharge(rule, &privileged, 3);
        assert_eq!(ledger.processes(), []);
    }
}
