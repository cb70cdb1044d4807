use super::*;

fn option(option_id: u32, op: u16, object_id: u32, val64: u64) -> abi::Option {
    abi::Option { size: 24, option_id, op, __reserved: 0, object_id, val64 }
}

#[test]
fn the_accounting_mode_is_fixed_once_there_is_an_object() {
    let mut fixture = Fixture::new();
    let mut get = option(abi::OPTION_RLIMIT_MODE, abi::OPTION_OP_GET, 0, 99);
    fixture.call(abi::OPTION, &mut get).unwrap();
    assert_eq!(get.val64, 0);
    let mut set = option(abi::OPTION_RLIMIT_MODE, abi::OPTION_OP_SET, 0, 1);
    assert_eq!(fixture.errno(abi::OPTION, &mut set), Errno::EPERM);
    fixture.client.account.sys_resource = true;
    fixture.call(abi::OPTION, &mut set).unwrap();
    fixture.call(abi::OPTION, &mut get).unwrap();
    assert_eq!(get.val64, 1);
    set.val64 = 2;
    assert_eq!(fixture.errno(abi::OPTION, &mut set), Errno::EINVAL);
    fixture.ioas();
    assert_eq!(fixture.errno(abi::OPTION, &mut set), Errno::EBUSY);
    set.val64 = 0;
    assert_eq!(fixture.errno(abi::OPTION, &mut set), Errno::EBUSY);
    fixture.call(abi::OPTION, &mut get).unwrap();
}

#[test]
fn unknown_options_operations_and_reserved_bits_are_not_supported() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let mut unknown = [
        option(2, abi::OPTION_OP_GET, 0, 0),
        option(abi::OPTION_RLIMIT_MODE, abi::OPTION_OP_GET, ioas, 0),
        option(abi::OPTION_RLIMIT_MODE, 2, 0, 0),
        option(abi::OPTION_HUGE_PAGES, 2, ioas, 0),
        abi::Option {
            __reserved: 1,
            ..option(abi::OPTION_HUGE_PAGES, abi::OPTION_OP_GET, ioas, 0)
        },
    ];
    for cmd in &mut unknown {
        assert_eq!(fixture.errno(abi::OPTION, cmd), Errno::EOPNOTSUPP, "{cmd:?}");
    }
    assert_eq!(
        fixture.errno(abi::OPTION, &mut option(abi::OPTION_HUGE_PAGES, abi::OPTION_OP_GET, 99, 0)),
        Errno::ENOENT
    );
}

#[test]
fn huge_pages_are_forbidden_only_where_nothing_large_can_exist() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let set = |value| {
        fixture
            .call(abi::OPTION, &mut option(abi::OPTION_HUGE_PAGES, abi::OPTION_OP_SET, ioas, value))
    };
    let get = || {
        let mut cmd = option(abi::OPTION_HUGE_PAGES, abi::OPTION_OP_GET, ioas, 7);
        fixture.call(abi::OPTION, &mut cmd).unwrap();
        cmd.val64
    };
    assert_eq!(get(), 1);
    assert_eq!(set(2).unwrap_err().errno, Errno::EINVAL);
    fixture.map_at(ioas, 0x10800, 0x800, 0x800).unwrap();
    assert_eq!(set(0).unwrap_err().errno, Errno::EADDRINUSE);
    fixture.unmap(ioas, 0, u64::MAX).unwrap();
    fixture.map_at(ioas, 0x10000, 0, 0x1000).unwrap();
    set(0).unwrap();
    assert_eq!(get(), 0);
    assert_eq!(fixture.map_at(ioas, 0x20800, 0, 0x1000).unwrap_err().errno, Errno::EINVAL);
    set(1).unwrap();
    fixture.map_at(ioas, 0x20800, 0x800, 0x800).unwrap();
    fixture.unmap(ioas, 0x20800, 0x800).unwrap();

    let bound = fixture.device();
    bound.attach(ioas).unwrap();
    assert_eq!(set(0).unwrap_err().errno, Errno::EINVAL);
    fixture.unmap(ioas, 0, u64::MAX).unwrap();
    set(0).unwrap();
}

#[test]
fn the_ioas_of_vfio_calls_is_set_got_cleared_and_forgotten_when_destroyed() {
    let fixture = Fixture::new();
    let ioas = fixture.ioas();
    let cmd = |op, ioas_id| abi::VfioIoas { size: 12, ioas_id, op, __reserved: 0 };
    let mut get = cmd(abi::VFIO_IOAS_GET, 0);
    assert_eq!(fixture.errno(abi::VFIO_IOAS, &mut get), Errno::ENODEV);
    assert_eq!(fixture.errno(abi::VFIO_IOAS, &mut cmd(abi::VFIO_IOAS_SET, 99)), Errno::ENOENT);
    assert_eq!(fixture.errno(abi::VFIO_IOAS, &mut cmd(3, ioas)), Errno::EOPNOTSUPP);
    assert_eq!(
        fixture.errno(abi::VFIO_IOAS, &mut abi::VfioIoas { __reserved: 1, ..get }),
        Errno::EOPNOTSUPP
    );
    fixture.call(abi::VFIO_IOAS, &mut cmd(abi::VFIO_IOAS_SET, ioas)).unwrap();
    fixture.call(abi::VFIO_IOAS, &mut get).unwrap();
    assert_eq!(get.ioas_id, ioas);
    fixture.call(abi::VFIO_IOAS, &mut cmd(abi::VFIO_IOAS_CLEAR, 0)).unwrap();
    assert_eq!(fixture.errno(abi::VFIO_IOAS, &mut get), Errno::ENODEV);
    fixture.call(abi::VFIO_IOAS, &mut cmd(abi::VFIO_IOAS_SET, ioas)).unwrap();
    fixture.destroy(ioas).unwrap();
    assert_eq!(fixture.errno(abi::VFIO_IOAS, &mut get), Errno::ENODEV);
}
