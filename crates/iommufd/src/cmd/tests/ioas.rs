use super::*;
use crate::tests::rig::ARG;

#[test]
fn a_map_is_refused_in_linuxs_order() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let fixed = RW | abi::IOAS_MAP_FIXED_IOVA;
    let with_iova = |iova, cmd| abi::IoasMap { iova, ..cmd };
    let mut refused = [
        (Errno::EOPNOTSUPP, with_iova(u64::MAX, map(99, 8, u64::MAX, 0))),
        (Errno::EOPNOTSUPP, abi::IoasMap { __reserved: 1, ..map(ioas, RW, BASE, 0x1000) }),
        (Errno::EOVERFLOW, with_iova(u64::MAX, map(99, 0, u64::MAX, 0))),
        (Errno::EOVERFLOW, map(99, RW, 0, u64::MAX)),
        (Errno::EINVAL, map(99, abi::IOAS_MAP_FIXED_IOVA, u64::MAX, 0)),
        (Errno::ENOENT, map(99, RW, u64::MAX, 0x1000)),
        (Errno::EOVERFLOW, map(ioas, RW, u64::MAX, 1)),
        (Errno::EOVERFLOW, map(ioas, RW, u64::MAX - 0xfff, 0x1000)),
        (Errno::EINVAL, map(ioas, RW, BASE, 0)),
        (Errno::EINVAL, map(ioas, RW, 0, u64::MAX - 1)),
        (Errno::EOVERFLOW, with_iova(u64::MAX - 0xfff, map(ioas, fixed, BASE, 0x2000))),
    ];
    for (errno, cmd) in &mut refused {
        let shown = *cmd;
        assert_eq!(fixture.errno(abi::IOAS_MAP, cmd), *errno, "{shown:x?}");
    }
    assert_eq!(fixture.context.ioas(ioas).unwrap().areas(), 0);
}

#[test]
fn a_fixed_map_over_another_is_refused_and_one_beside_it_is_not() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    fixture.map_at(ioas, 0x1000, 0, 0x2000).unwrap();
    for (iova, length) in [(0x1000, 1), (0x2fff, 1), (0, 0x1001), (0, 0x10000)] {
        assert_eq!(fixture.map_at(ioas, iova, 0, length).unwrap_err().errno, Errno::EEXIST);
    }
    fixture.map_at(ioas, 0, 0, 0x1000).unwrap();
    fixture.map_at(ioas, 0x3000, 0, 1).unwrap();
}

#[test]
fn an_automatic_map_keeps_the_place_in_the_page_and_writes_the_iova_back() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let mut cmd = map(ioas, RW, BASE + 0x1234, 0x1000);
    fixture.call(abi::IOAS_MAP, &mut cmd).unwrap();
    assert_eq!(cmd.iova, 0x1234);
    let mut cmd = map(ioas, RW, BASE, 0x1000);
    fixture.call(abi::IOAS_MAP, &mut cmd).unwrap();
    assert_eq!(cmd.iova, 0x3000);
}

#[test]
fn without_a_domain_a_bad_address_is_accepted_and_found_when_one_comes() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let mut cmd = map(ioas, RW, 0x1000, 0x1000);
    fixture.call(abi::IOAS_MAP, &mut cmd).unwrap();
    let bound = fixture.device();
    assert_eq!(bound.attach(ioas).unwrap_err().errno, Errno::EFAULT);
    assert!(!bound.is_attached());
    fixture.unmap(ioas, 0, u64::MAX).unwrap();
    bound.attach(ioas).unwrap();
    assert_eq!(fixture.errno(abi::IOAS_MAP, &mut cmd), Errno::EFAULT);
    assert_eq!(fixture.context.ioas(ioas).unwrap().areas(), 0);
}

#[test]
fn unmap_takes_whole_maps_only_and_keeps_what_it_took_before_a_cut_one() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    for iova in [0x1000, 0x2000, 0x3000] {
        fixture.map_at(ioas, iova, 0, 0x1000).unwrap();
    }
    assert_eq!(fixture.unmap(ioas, 0x1000, 0x800).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(fixture.unmap(ioas, 0x1000, 0x1800).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(fixture.context.ioas(ioas).unwrap().areas(), 2, "the first is gone");
    assert_eq!(fixture.unmap(ioas, 0, 0x10000), Ok(0x2000));
    assert_eq!(fixture.unmap(ioas, 0, 0x10000).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(fixture.unmap(ioas, 0, u64::MAX), Ok(0), "everything, and there is nothing");
}

#[test]
fn an_unmap_is_refused_in_linuxs_order() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    assert_eq!(fixture.unmap(99, u64::MAX, 0).unwrap_err().errno, Errno::ENOENT);
    assert_eq!(fixture.unmap(ioas, 1, u64::MAX).unwrap_err().errno, Errno::EOVERFLOW);
    assert_eq!(fixture.unmap(ioas, u64::MAX, 1).unwrap_err().errno, Errno::EOVERFLOW);
    assert_eq!(fixture.unmap(ioas, 0, 0).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(fixture.unmap(ioas, 0x1000, u64::MAX - 1).unwrap_err().errno, Errno::EOVERFLOW);
}

fn copy(fixture: &Fixture, cmd: abi::IoasCopy) -> Result<u64> {
    let mut cmd = abi::IoasCopy { size: 40, ..cmd };
    fixture.call(abi::IOAS_COPY, &mut cmd)?;
    Ok(cmd.dst_iova)
}

#[test]
fn a_copy_of_several_maps_lies_in_one_piece_and_shares_their_pins() {
    let fixture = Fixture::new();
    let (source, target) = (fixture.ioas(), fixture.ioas());
    fixture.map_at(source, 0x1000, 0, 0x2000).unwrap();
    fixture.map_at(source, 0x3000, 0x8000, 0x2000).unwrap();
    let (one, other) = (fixture.device(), fixture.device());
    one.attach(source).unwrap();
    let cmd = abi::IoasCopy {
        flags: RW | abi::IOAS_MAP_FIXED_IOVA,
        src_ioas_id: source,
        dst_ioas_id: target,
        src_iova: 0x2000,
        dst_iova: 0x10_0000,
        length: 0x2000,
        ..Default::default()
    };
    assert_eq!(copy(&fixture, cmd), Ok(0x10_0000));
    other.attach(target).unwrap();
    assert_eq!(fixture.machine.machine.ledger.pinned(), 4, "nothing is charged twice");
    fixture.unmap(source, 0, u64::MAX).unwrap();
    assert_eq!(fixture.machine.machine.ledger.pinned(), 2, "what the copy shows stays");

    fixture.client.memory.write(BASE + 0x8000, b"there").unwrap();
    let mut seen = [0; 5];
    let segment = crate::Segment { iova: crate::Iova(0x10_1000), length: 5 };
    other.endpoint().read([segment], &mut seen).unwrap();
    assert_eq!(&seen, b"there");
}

#[test]
fn a_copy_is_refused_in_linuxs_order() {
    let fixture = Fixture::new();
    let (source, target) = (fixture.ioas(), fixture.ioas());
    let mut read_only =
        map(source, abi::IOAS_MAP_READABLE | abi::IOAS_MAP_FIXED_IOVA, BASE, 0x2000);
    read_only.iova = 0x1000;
    fixture.call(abi::IOAS_MAP, &mut read_only).unwrap();
    let good = abi::IoasCopy {
        flags: abi::IOAS_MAP_READABLE,
        src_ioas_id: source,
        dst_ioas_id: target,
        src_iova: 0x1000,
        length: 0x1000,
        ..Default::default()
    };
    let refused = [
        (Errno::EOPNOTSUPP, abi::IoasCopy { flags: 8, src_iova: u64::MAX, ..good }),
        (Errno::EOVERFLOW, abi::IoasCopy { flags: 0, src_iova: u64::MAX, ..good }),
        (Errno::EOVERFLOW, abi::IoasCopy { dst_iova: u64::MAX, ..good }),
        (Errno::EINVAL, abi::IoasCopy { flags: 0, src_ioas_id: 99, ..good }),
        (Errno::ENOENT, abi::IoasCopy { src_ioas_id: 99, length: 0, ..good }),
        (Errno::EINVAL, abi::IoasCopy { length: 0, dst_ioas_id: 99, ..good }),
        (Errno::EOVERFLOW, abi::IoasCopy { length: u64::MAX - 1, dst_ioas_id: 99, ..good }),
        (Errno::ENOENT, abi::IoasCopy { length: 0x3000, dst_ioas_id: 99, ..good }),
        (Errno::ENOENT, abi::IoasCopy { src_iova: 0, ..good }),
        (Errno::ENOENT, abi::IoasCopy { dst_ioas_id: 99, ..good }),
        (Errno::EPERM, abi::IoasCopy { flags: RW, ..good }),
    ];
    for (errno, cmd) in refused {
        assert_eq!(copy(&fixture, cmd).unwrap_err().errno, errno, "{cmd:x?}");
    }
    copy(&fixture, good).unwrap();
}

fn ranges(
    fixture: &Fixture,
    ioas: u32,
    room: u32,
) -> (Result<i64>, abi::IoasIovaRanges, Vec<(u64, u64)>) {
    let list = ARG + 0x1000;
    let mut cmd = abi::IoasIovaRanges {
        size: 32,
        ioas_id: ioas,
        num_iovas: room,
        allowed_iovas: list,
        ..Default::default()
    };
    let answer = fixture.call(abi::IOAS_IOVA_RANGES, &mut cmd);
    let seen = (0..room.min(cmd.num_iovas)).map(|index| {
        let mut entry = abi::IovaRange::default();
        fixture.client.memory.read(list + u64::from(index) * 16, entry.as_mut_bytes()).unwrap();
        (entry.start, entry.last)
    });
    let seen = seen.collect();
    (answer, cmd, seen)
}

#[test]
fn iova_ranges_are_the_holes_between_reserved_ones() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let (answer, cmd, seen) = ranges(&fixture, ioas, 4);
    assert_eq!((answer, cmd.out_iova_alignment, seen), (Ok(0), 1, vec![(0, u64::MAX)]));

    let bound = fixture.device();
    bound.attach(ioas).unwrap();
    let holes = vec![(0, 0xfedf_ffff), (0xfef0_0000, (1 << 48) - 1)];
    let (answer, cmd, seen) = ranges(&fixture, ioas, 4);
    assert_eq!(
        (answer, cmd.num_iovas, cmd.out_iova_alignment, seen),
        (Ok(0), 2, 0x1000, holes.clone())
    );
    let (answer, cmd, seen) = ranges(&fixture, ioas, 1);
    assert_eq!(answer.unwrap_err().errno, Errno::EMSGSIZE);
    assert_eq!(
        (cmd.num_iovas, seen),
        (2, holes[..1].to_vec()),
        "the answer is written all the same"
    );
}

fn allow(fixture: &Fixture, ioas: u32, list: &[(u64, u64)]) -> Result<i64> {
    let at = ARG + 0x1000;
    for (index, &(start, last)) in list.iter().enumerate() {
        fixture
            .client
            .memory
            .write(at + index as u64 * 16, abi::IovaRange { start, last }.as_bytes())
            .unwrap();
    }
    let mut cmd = abi::IoasAllowIovas {
        size: 24,
        ioas_id: ioas,
        num_iovas: u32::try_from(list.len()).unwrap(),
        __reserved: 0,
        allowed_iovas: at,
    };
    fixture.call(abi::IOAS_ALLOW_IOVAS, &mut cmd)
}

#[test]
fn the_allow_list_is_replaced_as_a_whole_and_steers_automatic_maps_only() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    allow(&fixture, ioas, &[(0x40000, 0x4ffff)]).unwrap();
    for bad in [[(1, 2), (5, 5)], [(1, 2), (2, 3)], [(7, 6), (1, 2)]] {
        assert_eq!(allow(&fixture, ioas, &bad).unwrap_err().errno, Errno::EINVAL);
    }
    let mut cmd = map(ioas, RW, BASE, 0x1000);
    fixture.call(abi::IOAS_MAP, &mut cmd).unwrap();
    assert_eq!(cmd.iova, 0x40000, "the list of before is still in force");
    fixture.map_at(ioas, 0x1000, 0, 0x1000).unwrap();
    assert_eq!(fixture.errno(abi::IOAS_MAP, &mut map(ioas, RW, BASE, 0x10000)), Errno::ENOSPC);
    allow(&fixture, ioas, &[]).unwrap();
    fixture.call(abi::IOAS_MAP, &mut map(ioas, RW, BASE, 0x10000)).unwrap();
}

#[test]
fn allowed_reserved_and_mapped_ranges_conflict_as_linux_says() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let bound = fixture.device();
    allow(&fixture, ioas, &[(0xfee0_0000, 0xfee0_0fff)]).unwrap();
    assert_eq!(bound.attach(ioas).unwrap_err().errno, Errno::EADDRINUSE);
    allow(&fixture, ioas, &[]).unwrap();
    fixture.map_at(ioas, 0xfee0_0000, 0, 0x1000).unwrap();
    assert_eq!(bound.attach(ioas).unwrap_err().errno, Errno::EADDRINUSE);
    fixture.unmap(ioas, 0, u64::MAX).unwrap();
    fixture.map_at(ioas, 1 << 48, 0, 0x1000).unwrap();
    assert_eq!(bound.attach(ioas).unwrap_err().errno, Errno::EADDRINUSE, "outside the aperture");
    fixture.unmap(ioas, 0, u64::MAX).unwrap();
    bound.attach(ioas).unwrap();
    assert_eq!(allow(&fixture, ioas, &[(0, 0xfee0_0000)]).unwrap_err().errno, Errno::EADDRINUSE);
    assert_eq!(fixture.map_at(ioas, 0xfee0_0000, 0, 0x1000).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(fixture.map_at(ioas, 1 << 48, 0, 0x1000).unwrap_err().errno, Errno::EINVAL);
}

#[test]
fn maps_less_aligned_than_the_iommu_keep_it_out_and_are_kept_out_by_it() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let bound = fixture.device();
    for (iova, offset, length) in
        [(0x1800, 0x800, 0x800), (0x1000, 0, 0x800), (0x1000, 0x800, 0x1000)]
    {
        fixture.map_at(ioas, iova, offset, length).unwrap();
        assert_eq!(bound.attach(ioas).unwrap_err().errno, Errno::EADDRINUSE);
        fixture.unmap(ioas, 0, u64::MAX).unwrap();
    }
    bound.attach(ioas).unwrap();
    for (iova, offset, length) in
        [(0x1800, 0x800, 0x1000), (0x1000, 0, 0x800), (0x1000, 0x800, 0x1000)]
    {
        assert_eq!(fixture.map_at(ioas, iova, offset, length).unwrap_err().errno, Errno::EINVAL);
    }
    bound.detach();
    fixture.map_at(ioas, 0x1001, 0x800, 1).unwrap();
}

#[test]
fn a_map_over_the_limit_leaves_nothing() {
    let mut fixture = Fixture::new();
    fixture.client.account.memlock_pages = Some(3);
    let ioas = fixture.ioas();
    let bound = fixture.device();
    bound.attach(ioas).unwrap();
    fixture.map_at(ioas, 0x1000, 0, 0x2000).unwrap();
    assert_eq!(fixture.map_at(ioas, 0x10000, 0x2000, 0x2000).unwrap_err().errno, Errno::ENOMEM);
    assert_eq!(fixture.machine.machine.ledger.user(1000), 2);
    fixture.map_at(ioas, 0x10000, 0x2000, 0x1000).unwrap();
    fixture.unmap(ioas, 0, u64::MAX).unwrap();
    fixture.machine.assert_clean();
}

#[test]
fn two_maps_of_one_page_pay_twice() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let bound = fixture.device();
    bound.attach(ioas).unwrap();
    fixture.map_at(ioas, 0x1000, 0, 0x1000).unwrap();
    fixture.map_at(ioas, 0x2000, 0, 0x1000).unwrap();
    assert_eq!(fixture.machine.machine.ledger.user(1000), 2);
    assert_eq!(fixture.machine.machine.phys.windows(), 1);
}

#[test]
fn only_files_change_their_process() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let mut cmd = abi::IoasChangeProcess { size: 8, __reserved: 0 };
    fixture.call(abi::IOAS_CHANGE_PROCESS, &mut cmd).unwrap();
    fixture.map_at(ioas, 0x1000, 0, 0x1000).unwrap();
    assert_eq!(fixture.errno(abi::IOAS_CHANGE_PROCESS, &mut cmd), Errno::EINVAL);
    cmd.__reserved = 1;
    assert_eq!(fixture.errno(abi::IOAS_CHANGE_PROCESS, &mut cmd), Errno::EOPNOTSUPP);
}

#[test]
fn closing_the_file_gives_everything_back() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let bound = fixture.device();
    fixture.map_at(ioas, 0x1000, 0, 0x10000).unwrap();
    bound.attach(ioas).unwrap();
    assert_eq!(fixture.destroy(ioas).unwrap_err().errno, Errno::EBUSY);
    let Fixture { machine, client: _client, context } = fixture;
    drop(context);
    assert_eq!(machine.machine.ledger.pinned(), 16, "the device keeps the context alive");
    drop(bound);
    machine.assert_clean();
}

#[test]
fn the_whole_space_can_be_mapped_and_unmapped_where_nothing_is_pinned() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let fixed =
        |iova, length| abi::IoasMap { iova, ..map(ioas, RW | abi::IOAS_MAP_FIXED_IOVA, 0, length) };
    fixture.call(abi::IOAS_MAP, &mut fixed(0, 1 << 63)).unwrap();
    fixture.call(abi::IOAS_MAP, &mut fixed(1 << 63, 1 << 63)).unwrap();
    assert_eq!(fixture.errno(abi::IOAS_MAP, &mut map(ioas, RW, 0, 1)), Errno::ENOSPC);
    assert_eq!(fixture.unmap(ioas, 0, u64::MAX), Ok(0), "2^64 bytes do not fit the answer");
    assert_eq!(fixture.context.ioas(ioas).unwrap().areas(), 0);
}
