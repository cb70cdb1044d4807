//! Who pays for pinned pages, under which limit, and how that passes to another process.

use super::*;
use crate::Account;
use crate::account::{Charges, Ledger};
use crate::tests::rig::{ACCOUNT, FILE};

/// How a context accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    User,
    Process,
}

/// A context that accounts as said, with an IOAS whose pages a device pins.
fn attached(by: By, account: Account) -> (Fixture, u32, Bound) {
    let mut fixture = Fixture::new();
    fixture.client.account = Account { sys_resource: true, ..account };
    let value = u64::from(by == By::Process);
    let mut cmd = abi::Option {
        size: 24,
        option_id: abi::OPTION_RLIMIT_MODE,
        op: abi::OPTION_OP_SET,
        __reserved: 0,
        object_id: 0,
        val64: value,
    };
    fixture.call(abi::OPTION, &mut cmd).unwrap();
    fixture.client.account = account;
    let ioas = fixture.ioas();
    let bound = fixture.device();
    bound.attach(ioas).unwrap();
    (fixture, ioas, bound)
}

fn limited(pages: u64) -> Account {
    Account { memlock_pages: Some(pages), ..ACCOUNT }
}

fn map_file(fixture: &Fixture, ioas_id: u32, offset: u64, length: u64) -> Result<u64> {
    let (flags, fd, start) = (RW, FILE, BASE + offset);
    let mut cmd = abi::IoasMapFile { size: 40, flags, ioas_id, fd, start, length, iova: 0 };
    fixture.call(abi::IOAS_MAP_FILE, &mut cmd)?;
    Ok(cmd.iova)
}

fn change_process(fixture: &Fixture) -> Result<i64> {
    let mut cmd = abi::IoasChangeProcess { size: 8, __reserved: 0 };
    fixture.call(abi::IOAS_CHANGE_PROCESS, &mut cmd)
}

fn ledger(fixture: &Fixture) -> &Ledger {
    &fixture.machine.machine.ledger
}

/// (VmLck, VmPin) of a process.
fn shown(fixture: &Fixture, pid: u32) -> (u64, u64) {
    let charges = ledger(fixture).process(pid);
    (charges.locked, charges.vm_pin())
}

#[test]
fn the_limit_of_a_user_binds_all_its_processes_together_and_vmlck_stays() {
    let (mut fixture, ioas, _bound) = attached(By::User, limited(4));
    fixture.map_at(ioas, 0x10_0000, 0, 0x3000).unwrap();
    assert_eq!((ledger(&fixture).user(1000), shown(&fixture, 100)), (3, (0, 3)));
    fixture.client.account.pid = 101;
    assert_eq!(
        fixture.map_at(ioas, 0x20_0000, 0, 0x2000).map_err(|error| error.errno),
        Err(Errno::ENOMEM)
    );
    fixture.map_at(ioas, 0x20_0000, 0, 0x1000).unwrap();
    assert_eq!((ledger(&fixture).user(1000), shown(&fixture, 101)), (4, (0, 1)));
    fixture.client.account.uid = 1001;
    fixture.map_at(ioas, 0x30_0000, 0, 0x4000).unwrap();
    assert_eq!((ledger(&fixture).user(1000), ledger(&fixture).user(1001)), (4, 4));
}

#[test]
fn the_limit_of_a_process_binds_it_alone_and_counts_in_vmlck_too() {
    let (mut fixture, ioas, _bound) = attached(By::Process, limited(4));
    fixture.map_at(ioas, 0x10_0000, 0, 0x4000).unwrap();
    assert_eq!(
        fixture.map_at(ioas, 0x20_0000, 0, 0x1000).map_err(|error| error.errno),
        Err(Errno::ENOMEM)
    );
    fixture.client.account.pid = 101;
    fixture.map_at(ioas, 0x20_0000, 0, 0x4000).unwrap();
    assert_eq!((shown(&fixture, 100), shown(&fixture, 101)), ((4, 4), (4, 4)));
    assert_eq!(ledger(&fixture).user(1000), 0);
}

#[test]
fn whoever_may_lock_memory_is_counted_as_pinning_and_limited_by_nothing() {
    for by in [By::User, By::Process] {
        let (fixture, ioas, _bound) = attached(by, Account { ipc_lock: true, ..limited(0) });
        fixture.map_at(ioas, 0x10_0000, 0, 0x4000).unwrap();
        assert_eq!((ledger(&fixture).user(1000), shown(&fixture, 100)), (0, (0, 4)));
    }
}

#[test]
fn who_maps_pays_whoever_has_the_pages_pinned() {
    let mut fixture = Fixture::new();
    let ioas = fixture.ioas();
    fixture.client.account = limited(2);
    fixture.map_at(ioas, 0x10_0000, 0, 0x2000).unwrap();
    assert_eq!(ledger(&fixture).processes(), [], "nothing is pinned before a device comes");
    fixture.client.account = Account { pid: 101, uid: 1001, ..limited(0) };
    let bound = fixture.device();
    bound.attach(ioas).unwrap();
    assert_eq!((ledger(&fixture).user(1000), shown(&fixture, 100)), (2, (0, 2)));
    bound.detach();
    assert_eq!(ledger(&fixture).processes(), []);
}

#[test]
fn a_change_of_process_moves_every_charge_to_the_caller() {
    for by in [By::User, By::Process] {
        let (mut fixture, ioas, _bound) = attached(by, limited(8));
        let iova = map_file(&fixture, ioas, 0, 0x3000).unwrap();
        map_file(&fixture, ioas, 0x8000, 0x1000).unwrap();
        fixture.client.account = Account { pid: 101, uid: 1001, ..limited(8) };
        change_process(&fixture).unwrap();
        let locked = if by == By::Process { 4 } else { 0 };
        assert_eq!((shown(&fixture, 100), shown(&fixture, 101)), ((0, 0), (locked, 4)));
        assert_eq!((ledger(&fixture).user(1000), ledger(&fixture).user(1001)), (0, 4 - locked));
        fixture.unmap(ioas, iova, 0x3000).unwrap();
        assert_eq!(shown(&fixture, 101), (locked / 4, 1), "what is unmapped is given back there");
    }
}

#[test]
fn a_change_to_the_process_that_pays_already_needs_no_room_for_it_twice() {
    for by in [By::User, By::Process] {
        let (mut fixture, ioas, _bound) = attached(by, limited(4));
        map_file(&fixture, ioas, 0, 0x4000).unwrap();
        let before = ledger(&fixture).process(100);
        change_process(&fixture).unwrap();
        assert_eq!(ledger(&fixture).process(100), before, "{by:?}");
        // Another process of the same user is charged before the first is freed, as on Linux.
        fixture.client.account.pid = 101;
        let answer = change_process(&fixture).map_err(|error| error.errno);
        assert_eq!(answer, if by == By::User { Err(Errno::ENOMEM) } else { Ok(0) });
    }
}

#[test]
fn a_change_that_the_limit_forbids_changes_nothing() {
    let (mut fixture, ioas, _bound) = attached(By::Process, limited(8));
    map_file(&fixture, ioas, 0, 0x3000).unwrap();
    fixture.client.account.ipc_lock = true;
    map_file(&fixture, ioas, 0x8000, 0x1000).unwrap();
    let before = ledger(&fixture).processes();
    fixture.client.account = Account { pid: 101, ..limited(2) };
    assert_eq!(change_process(&fixture).map_err(|error| error.errno), Err(Errno::ENOMEM));
    assert_eq!(ledger(&fixture).processes(), before);
    fixture.client.account = Account { pid: 101, ipc_lock: true, ..limited(3) };
    change_process(&fixture).unwrap();
    let paid = Charges { locked: 3, pinned: 4, type1: 0 };
    assert_eq!(ledger(&fixture).processes(), [(101, paid)], "the rule is that of the map");
}
