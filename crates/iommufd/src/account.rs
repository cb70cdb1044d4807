//! Who pays for pinned pages.
//!
//! Invariant: the charges in a [`Ledger`] add up to the pages pinned by the `Pages` objects that use
//! it. Linux: `drivers/iommu/iommufd/pages.c` `do_update_pinned`, `drivers/vfio/vfio_iommu_type1.c` `vfio_lock_acct`.
//!
//! `Ledger::books` is a leaf lock.

use std::collections::BTreeMap;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use crate::Account;
use crate::inject::step;

/// Against which sum, and under which limit, pages are charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Counted as pinned only.
    None,
    /// Against what the user has locked, all processes together.
    User,
    /// Against what the process has locked.
    Process,
    /// Counted as locked by the process, over any limit: type1 with `CAP_IPC_LOCK`.
    ProcessUnlimited,
}

impl Rule {
    /// What iommufd applies when `account` maps under `mode`: the capability is judged at that moment.
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
        if account.ipc_lock { Self::ProcessUnlimited } else { Self::Process }
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
    /// Pages pinned under any rule: VmPin.
    pub pinned: u64,
}

#[derive(Debug, Default)]
struct Books {
    users: BTreeMap<u32, u64>,
    processes: BTreeMap<u32, Charges>,
}

/// The sums of all charges.
#[derive(Debug, Default)]
pub struct Ledger {
    books: Mutex<Books>,
}

impl Ledger {
    /// Charges `pages` to `account`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` over the limit; nothing is charged then.
    pub fn charge(&self, rule: Rule, account: &Account, pages: u64) -> Result<()> {
        step("a charge")?;
        let mut books = self.books.lock();
        let books = &mut *books;
        let process = books.processes.entry(account.pid).or_default();
        let sum = match rule {
            Rule::None => None,
            Rule::User => Some(books.users.entry(account.uid).or_default()),
            Rule::Process | Rule::ProcessUnlimited => Some(&mut process.locked),
        };
        if let Some(sum) = sum {
            let locked = sum.saturating_add(pages);
            let limit = if rule == Rule::ProcessUnlimited { None } else { account.memlock_pages };
            if limit.is_some_and(|limit| locked > limit) {
                Self::forget_empty(books, account);
                return refuse!(
                    ENOMEM,
                    "over the locked-memory limit (RLIMIT_MEMLOCK), in pages",
                    locked
                );
            }
            *sum = locked;
        }
        process.pinned += pages;
        Ok(())
    }

    /// Takes a charge back. Never fails.
    ///
    /// # Panics
    ///
    /// If less than that was charged.
    pub fn uncharge(&self, rule: Rule, account: &Account, pages: u64) {
        let mut books = self.books.lock();
        let books = &mut *books;
        let process = books.processes.get_mut(&account.pid).expect("a charge has its process");
        process.pinned =
            process.pinned.checked_sub(pages).expect("no more is uncharged than was charged");
        let sum = match rule {
            Rule::None => None,
            Rule::User => books.users.get_mut(&account.uid),
            Rule::Process | Rule::ProcessUnlimited => Some(&mut process.locked),
        };
        if let Some(sum) = sum {
            *sum = sum.checked_sub(pages).expect("no more is uncharged than was charged");
        }
        Self::forget_empty(books, account);
    }

    fn forget_empty(books: &mut Books, account: &Account) {
        if books.processes.get(&account.pid) == Some(&Charges::default()) {
            books.processes.remove(&account.pid);
        }
        if books.users.get(&account.uid) == Some(&0) {
            books.users.remove(&account.uid);
        }
    }

    /// What the process `pid` has charged.
    #[must_use]
    pub fn process(&self, pid: u32) -> Charges {
        self.books.lock().processes.get(&pid).copied().unwrap_or_default()
    }

    /// What the user `uid` has charged against the per-user limit, in pages.
    #[must_use]
    pub fn user(&self, uid: u32) -> u64 {
        self.books.lock().users.get(&uid).copied().unwrap_or_default()
    }

    /// All pinned pages.
    #[must_use]
    pub fn pinned(&self) -> u64 {
        self.books.lock().processes.values().map(|process| process.pinned).sum()
    }

    /// Every process with a charge, by thread-group id.
    #[must_use]
    pub fn processes(&self) -> Vec<(u32, Charges)> {
        self.books.lock().processes.iter().map(|(&pid, &charges)| (pid, charges)).collect()
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
        assert_eq!(ledger.process(1), Charges { locked: 0, pinned: 6 });
        assert_eq!(ledger.process(2), Charges { locked: 6, pinned: 6 });
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
        assert_eq!(ledger.process(1), Charges { locked: 0, pinned: 3 });
        ledger.uncharge(rule, &privileged, 3);
        let rule = Rule::type1(&privileged);
        ledger.charge(rule, &privileged, 3).unwrap();
        assert_eq!(ledger.process(1), Charges { locked: 3, pinned: 3 });
        ledger.uncharge(rule, &privileged, 3);
        assert_eq!(ledger.processes(), []);
    }
}
