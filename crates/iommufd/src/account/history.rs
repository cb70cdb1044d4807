//! What the ledger remembers for people: who pinned how much, under which rule, also after it was
//! let go.

use std::collections::BTreeMap;

use super::Rule;
use crate::Account;

/// One line: what a process has under one rule, in pages of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its thread-group id.
    pub pid: u32,
    /// Its name when it was charged first.
    pub name: Option<String>,
    /// Its user.
    pub uid: u32,
    /// Which rule.
    pub rule: Rule,
    /// Pinned now.
    pub pages: u64,
    /// Most that was pinned at once.
    pub peak: u64,
    /// What the rule allows; `None` where there is no limit.
    pub limit: Option<u64>,
    /// Charges that were over the limit.
    pub refused: u64,
}

/// How a process is called.
pub(super) type NameOf = fn(u32) -> Option<String>;

/// Entries that are kept; beyond, those without a charge are forgotten.
const KEPT: usize = 4096;

#[derive(Debug)]
pub(super) struct History {
    name_of: NameOf,
    entries: BTreeMap<(u32, Rule), Entry>,
}

impl History {
    pub(super) fn new(name_of: NameOf) -> Self {
        Self { name_of, entries: BTreeMap::new() }
    }

    pub(super) fn charged(&mut self, rule: Rule, account: &Account, pages: u64) {
        let entry = self.entry(rule, account);
        entry.pages += pages;
        entry.peak = entry.peak.max(entry.pages);
    }

    pub(super) fn refused(&mut self, rule: Rule, account: &Account) {
        self.entry(rule, account).refused += 1;
    }

    pub(super) fn uncharged(&mut self, rule: Rule, account: &Account, pages: u64) {
        // What was charged before there was a history is not in it.
        if let Some(entry) = self.entries.get_mut(&(account.pid, rule)) {
            entry.pages = entry.pages.saturating_sub(pages);
        }
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }

    fn entry(&mut self, rule: Rule, account: &Account) -> &mut Entry {
        if self.entries.len() >= KEPT && !self.entries.contains_key(&(account.pid, rule)) {
            self.entries.retain(|_, entry| entry.pages > 0);
        }
        let name_of = self.name_of;
        let entry = self.entries.entry((account.pid, rule)).or_insert_with(|| Entry {
            pid: account.pid,
            name: name_of(account.pid),
            uid: account.uid,
            rule,
            pages: 0,
            peak: 0,
            limit: None,
            refused: 0,
        });
        entry.uid = account.uid;
        entry.limit = rule.limit(account);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Ledger;
    use crate::tests::rig::ACCOUNT;

    fn account(pid: u32, memlock_pages: Option<u64>) -> Account {
        Account { pid, memlock_pages, ..ACCOUNT }
    }

    #[test]
    fn entries_say_who_has_what_under_which_rule_and_what_was_refused() {
        let ledger = Ledger::default();
        ledger.remember(|pid| Some(format!("program {pid}")));
        let (limited, free) = (account(1, Some(10)), account(2, None));
        ledger.charge(Rule::User, &limited, 6).unwrap();
        ledger.charge(Rule::User, &limited, 5).unwrap_err();
        ledger.charge(Rule::None, &limited, 7).unwrap();
        ledger.charge(Rule::Type1Unlimited, &free, 3).unwrap();
        ledger.uncharge(Rule::User, &limited, 6);
        ledger.uncharge(Rule::Type1Unlimited, &free, 3);
        let lines: Vec<_> = ledger
            .entries()
            .into_iter()
            .map(|e| (e.pid, e.rule, e.pages, e.peak, e.limit, e.refused))
            .collect();
        assert_eq!(
            lines,
            [
                (1, Rule::None, 7, 7, None, 0),
                (1, Rule::User, 0, 6, Some(10), 1),
                (2, Rule::Type1Unlimited, 0, 3, None, 0),
            ]
        );
        assert_eq!(ledger.entries()[2].name.as_deref(), Some("program 2"));
    }

    #[test]
    fn a_client_with_many_processes_does_not_fill_the_history() {
        let ledger = Ledger::default();
        ledger.remember(|_| None);
        let stays = account(u32::MAX, None);
        ledger.charge(Rule::Process, &stays, 1).unwrap();
        for pid in 0..10_000 {
            ledger.charge(Rule::Process, &account(pid, None), 1).unwrap();
            ledger.uncharge(Rule::Process, &account(pid, None), 1);
        }
        let entries = ledger.entries();
        assert!(entries.len() <= KEPT, "{}", entries.len());
        assert!(entries.iter().any(|entry| entry.pid == stays.pid), "what is charged stays");
    }
}
