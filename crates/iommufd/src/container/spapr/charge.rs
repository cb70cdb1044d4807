//! What a container has charged ahead: `account_locked_vm` (`mm/util.c`).

use std::sync::Arc;

use ioasis_uapi::Result;

use crate::Client;
use crate::account::Rule;
use crate::client::Account;
use crate::hw::machine::Machine;

/// Pages that a process has locked, until this is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    machine: Arc<Machine>,
    rule: Rule,
    account: Account,
    pages: u64,
}

impl Charge {
    /// Charges the caller.
    ///
    /// # Errors
    ///
    /// `ENOMEM` over its limit.
    pub(super) fn new(machine: &Arc<Machine>, client: &dyn Client, pages: u64) -> Result<Self> {
        let account = client.account();
        let rule = Rule::type1(&account);
        if pages > 0 {
            machine.ledger.charge(rule, &account, pages)?;
        }
        Ok(Self { machine: Arc::clone(machine), rule, account, pages })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.pages > 0 {
            self.machine.ledger.uncharge(self.rule, &self.account, self.pages);
        }
    }
}
