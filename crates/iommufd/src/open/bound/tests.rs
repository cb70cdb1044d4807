use super::*;
use crate::tests::rig::{ACCOUNT, BASE, RW, TestClient, TestMachine};
use crate::{Group, Iommu, IommuKind, Iova, MapRequest, Place};

fn errno<T>(result: Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("the call was accepted"),
        Err(error) => error.errno,
    }
}

#[test]
fn a_group_belongs_to_one_context() {
    let machine = TestMachine::new();
    let group = machine.group();
    let (one, other) = (machine.endpoint_in(&group), machine.endpoint_in(&group));
    let (context, stranger) = (Context::new(&machine.machine), Context::new(&machine.machine));
    let bound = context.bind(&one).unwrap();
    assert_eq!(errno(stranger.bind(&other)), Errno::EPERM);
    let second = context.bind(&other).unwrap();
    drop(bound);
    assert_eq!(errno(stranger.bind(&one)), Errno::EPERM);
    drop(second);
    stranger.bind(&one).unwrap();
}

#[test]
fn a_group_a_host_driver_uses_is_not_bound() {
    let machine = TestMachine::new();
    let group = machine.group();
    let endpoint = machine.endpoint_in(&group);
    let context = Context::new(&machine.machine);
    group.kernel_driver_attached().unwrap();
    assert_eq!(errno(context.bind(&endpoint)), Errno::EPERM);
    group.kernel_driver_detached();
    let bound = context.bind(&endpoint).unwrap();
    assert_eq!(errno(group.kernel_driver_attached()), Errno::EBUSY);
    drop(bound);
}

#[test]
fn unsafe_interrupts_need_the_parameter_and_incoherent_dma_has_none() {
    let machine = TestMachine::with(Iommu { isolated_msi: false, ..Iommu::new(IommuKind::Vtd) });
    let context = Context::new(&machine.machine);
    assert_eq!(errno(context.bind(&machine.endpoint())), Errno::EPERM);
    machine.machine.params.iommufd_allow_unsafe_interrupts.store(true, Ordering::Relaxed);
    context.bind(&machine.endpoint()).unwrap();
    let machine = TestMachine::with(Iommu { cache_coherent: false, ..Iommu::new(IommuKind::Vtd) });
    assert_eq!(errno(Context::new(&machine.machine).bind(&machine.endpoint())), Errno::EINVAL);
}

#[test]
fn a_bound_device_cannot_be_destroyed_and_its_id_is_free_after_it() {
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let bound = context.bind(&machine.endpoint()).unwrap();
    let id = bound.id();
    assert_eq!(errno(context.destroy(id)), Errno::EBUSY);
    drop(bound);
    assert_eq!(errno(context.destroy(id)), Errno::ENOENT);
    assert_eq!(context.alloc_ioas(), Ok(id));
}

#[test]
fn attaching_says_what_is_wrong_with_the_page_table() {
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let bound = context.bind(&machine.endpoint()).unwrap();
    assert_eq!(errno(bound.attach(99)), Errno::ENOENT);
    assert_eq!(errno(bound.attach(bound.id())), Errno::EINVAL);
    let ioas = context.alloc_ioas().unwrap();
    assert_eq!(errno(bound.replace(ioas)), Errno::EINVAL, "there is nothing to replace");
    let hwpt = bound.attach(ioas).unwrap();
    assert_eq!(errno(bound.attach(hwpt)), Errno::EBUSY);
    assert_eq!(bound.replace(hwpt), Ok(hwpt), "the same again changes nothing");
}

#[test]
fn devices_of_one_group_follow_each_other_and_are_moved_together() {
    let machine = TestMachine::new();
    let group = machine.group();
    let context = Context::new(&machine.machine);
    let (ioas, elsewhere) = (context.alloc_ioas().unwrap(), context.alloc_ioas().unwrap());
    let one = context.bind(&machine.endpoint_in(&group)).unwrap();
    let other = context.bind(&machine.endpoint_in(&group)).unwrap();
    let hwpt = one.attach(ioas).unwrap();
    let manual = {
        let held = context.ioas(elsewhere).unwrap();
        let (reservation, hwpt) = context.make_hwpt(&held, one.endpoint(), 0, None).unwrap();
        let id = reservation.id();
        reservation.publish(hwpt);
        id
    };
    assert_eq!(errno(other.attach(manual)), Errno::EINVAL);
    assert_eq!(other.attach(hwpt), Ok(hwpt));
    assert_eq!(one.replace(manual), Ok(manual));
    assert_eq!(other.replace(manual), Ok(manual), "it is there already");
    one.detach();
    assert!(other.is_attached());
    assert_eq!(errno(context.destroy(manual)), Errno::EBUSY);
    other.detach();
    context.destroy(manual).unwrap();
}

#[test]
fn two_devices_share_an_automatic_hwpt_only_behind_one_iommu() {
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let one = context.bind(&machine.endpoint()).unwrap();
    let other = context.bind(&machine.endpoint()).unwrap();
    let hwpt = one.attach(ioas).unwrap();
    assert_eq!(other.attach(ioas), Ok(hwpt));
    let far_iommu = Arc::new(Iommu::new(IommuKind::Vtd));
    let far_group = Group::new(&machine.machine, &far_iommu, 9);
    let far = context.bind(&machine.endpoint_in(&far_group)).unwrap();
    assert_eq!(errno(far.attach(hwpt)), Errno::EINVAL);
    assert_ne!(far.attach(ioas), Ok(hwpt));
}

#[test]
fn a_replace_that_fails_leaves_the_old_attachment() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let (ioas, blocked) = (context.alloc_ioas().unwrap(), context.alloc_ioas().unwrap());
    let request = |iova| MapRequest {
        space: Arc::new(client.memory.clone()),
        address: BASE,
        length: 0x1000,
        place: Place::Fixed(Iova(iova)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioas, request(0x1000)).unwrap();
    context.map(blocked, request(0xfee0_0000)).unwrap();
    let bound = context.bind(&machine.endpoint()).unwrap();
    let hwpt = bound.attach(ioas).unwrap();
    assert_eq!(errno(bound.replace(blocked)), Errno::EADDRINUSE);
    assert_eq!(bound.replace(hwpt), Ok(hwpt));
    let segment = crate::Segment { iova: Iova(0x1000), length: 4 };
    bound.endpoint().write([segment], b"here").unwrap();
    context.destroy(blocked).unwrap();
}

#[test]
fn pasids_need_page_tables_made_for_them() {
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let ioas = context.alloc_ioas().unwrap();
    let bound = context.bind(&machine.endpoint()).unwrap();
    let make = |flags| {
        let held = context.ioas(ioas).unwrap();
        let (reservation, hwpt) = context.make_hwpt(&held, bound.endpoint(), flags, None).unwrap();
        let id = reservation.id();
        reservation.publish(hwpt);
        id
    };
    let (plain, able) = (make(0), make(ioasis_uapi::iommufd::HWPT_ALLOC_PASID));
    assert_eq!(errno(bound.attach_pasid(1 << 20, able)), Errno::EINVAL);
    assert_eq!(errno(bound.attach_pasid(5, plain)), Errno::EINVAL);
    assert_eq!(errno(bound.attach_pasid(5, ioas)), Errno::EINVAL);
    bound.attach(plain).unwrap();
    assert_eq!(errno(bound.attach_pasid(5, able)), Errno::EINVAL);
    bound.replace(able).unwrap();
    bound.attach_pasid(5, able).unwrap();
    assert_eq!(errno(bound.attach_pasid(5, able)), Errno::EBUSY);
    assert_eq!(errno(bound.replace(plain)), Errno::EINVAL);
    assert_eq!(errno(bound.replace_pasid(6, able)), Errno::EINVAL);
    bound.detach_pasid(6);
    bound.detach_pasid(5);
    bound.replace(plain).unwrap();
}

/// A device that sends PASIDs of so many bits, through an IOMMU of so many.
fn endpoint_with(group: &Arc<Group>, pasid_bits: u32) -> Arc<Endpoint> {
    let config = crate::EndpointConfig { pasid_bits, ..crate::EndpointConfig::default() };
    Endpoint::new(group, config)
}

/// Linux: `dev->iommu->max_pasids` is 0 where device or IOMMU has none, and then nobody asks how
/// wide a PASID is (`iommu_attach_device_pasid`) nor tells the IOMMU of it
/// (`__iommu_set_group_pasid`).
#[test]
fn a_device_without_pasids_takes_any_to_no_effect() {
    for (of_iommu, of_device) in [(20, 0), (0, 20), (0, 0)] {
        let iommu = Iommu { pasid_bits: of_iommu, ..Iommu::new(IommuKind::Vtd) };
        let machine = TestMachine::with(iommu);
        let context = Context::new(&machine.machine);
        let bound = context.bind(&endpoint_with(&machine.group(), of_device)).unwrap();
        let [ioas, other] = [0, 1].map(|_| context.alloc_ioas().unwrap());
        let able = context.alloc_hwpt(ioas, &bound, crate::HwptFlags::PASID).unwrap();
        let plain = context.alloc_hwpt(ioas, &bound, crate::HwptFlags::NONE).unwrap();
        for pasid in [1, 1 << 20, u32::MAX] {
            // What comes before the hardware is asked: iommufd_device_change_pt,
            // iommufd_hwpt_pasid_compat.
            assert_eq!(errno(bound.attach_pasid(pasid, 99)), Errno::ENOENT);
            assert_eq!(errno(bound.attach_pasid(pasid, plain)), Errno::EINVAL);
            assert_eq!(errno(bound.replace_pasid(pasid, able)), Errno::EINVAL);
            assert_eq!(bound.attach_pasid(pasid, able).unwrap(), able);
            assert_eq!(errno(bound.attach_pasid(pasid, able)), Errno::EBUSY);
            bound.detach_pasid(pasid);
        }
        bound.attach_pasid(7, able).unwrap();
        // An IOAS that the new page table does not suit is judged before the PASID is.
        context.ioas(other).unwrap().lock().raise_alignment(1).unwrap();
        let space: Arc<dyn crate::AddressSpace> = Arc::new(TestClient::new().memory);
        let request = MapRequest {
            space,
            address: BASE,
            length: 0x1000,
            place: Place::Fixed(Iova(1 << 60)),
            prot: RW,
            account: ACCOUNT,
        };
        context.map(other, request).unwrap();
        assert_eq!(errno(bound.replace_pasid(7, other)), Errno::EADDRINUSE);
        drop(bound);
        drop(context);
        machine.assert_clean();
    }
}

#[test]
fn a_pasid_is_as_wide_as_each_device_of_the_group_sends() {
    let machine = TestMachine::new();
    let context = Context::new(&machine.machine);
    let group = machine.group();
    let bits = [20, 0, 8];
    let endpoints = bits.map(|bits| endpoint_with(&group, bits));
    let bound = endpoints.each_ref().map(|endpoint| context.bind(endpoint).unwrap());
    let ioas = context.alloc_ioas().unwrap();
    let able = context.alloc_hwpt(ioas, &bound[0], crate::HwptFlags::PASID).unwrap();
    for bound in &bound {
        assert_eq!(errno(bound.attach_pasid(1 << 8, able)), Errno::EINVAL);
        bound.attach_pasid((1 << 8) - 1, able).unwrap();
    }
    drop(bound);
    // One that is gone is asked no more.
    let [wide, none, narrow] = endpoints;
    drop(narrow);
    let bound = context.bind(&none).unwrap();
    bound.attach_pasid(1 << 8, able).unwrap();
    assert_eq!(errno(bound.attach_pasid(1 << 20, able)), Errno::EINVAL);
    drop(wide);
    bound.attach_pasid(1 << 20, able).unwrap();
}

#[test]
fn page_tables_for_pasids_are_made_where_linuxs_driver_does_not_ask() {
    let answers = [
        (IommuKind::Vtd, Ok(())),
        (IommuKind::Smmuv3, Ok(())),
        (IommuKind::Amd, Err(Errno::EOPNOTSUPP)),
        (IommuKind::Riscv, Err(Errno::EOPNOTSUPP)),
    ];
    for (kind, answer) in answers {
        let machine = TestMachine::with(Iommu { pasid_bits: 0, ..Iommu::new(kind) });
        let context = Context::new(&machine.machine);
        let bound = context.bind(&machine.endpoint()).unwrap();
        let ioas = context.alloc_ioas().unwrap();
        let made = context.alloc_hwpt(ioas, &bound, crate::HwptFlags::PASID);
        assert_eq!(made.map(|_| ()).map_err(|error| error.errno), answer, "{kind:?}");
    }
}

#[test]
fn a_pasid_that_one_device_attached_is_that_of_its_whole_group() {
    let (machine, client) = (TestMachine::new(), TestClient::new());
    let context = Context::new(&machine.machine);
    let group = machine.group();
    let [one, other] = [0, 1].map(|_| context.bind(&machine.endpoint_in(&group)).unwrap());
    let ioas = context.alloc_ioas().unwrap();
    let hwpt = context.alloc_hwpt(ioas, &one, crate::HwptFlags::PASID).unwrap();
    let request = MapRequest {
        space: Arc::new(client.memory.clone()),
        address: BASE,
        length: 0x1000,
        place: Place::Fixed(Iova(0x1000)),
        prot: RW,
        account: ACCOUNT,
    };
    context.map(ioas, request).unwrap();
    let reads = |bound: &Bound| {
        let segment = crate::Segment { iova: Iova(0x1000), length: 1 };
        bound.endpoint().with_pasid(1).read([segment], &mut [0]).is_ok()
    };
    one.attach_pasid(1, hwpt).unwrap();
    assert!(reads(&other), "the IOMMU does not tell them apart");
    other.attach_pasid(1, hwpt).unwrap();
    one.detach_pasid(1);
    assert!(reads(&other) && reads(&one));
    other.detach_pasid(1);
    assert!(!reads(&other) && !reads(&one));
}
