//! Test operations with arguments that mean nothing much, in any order: an errno each, which for
//! some can be said beforehand, and nothing left at the end.

use std::sync::Arc;

use ioasis_uapi::Errno;
use ioasis_uapi::iommufd::{self as abi, test};
use proptest::prelude::*;

use crate::hwpt::Hwpt;
use crate::object::Held;
use crate::tests::rig::{BASE, TestClient};
use crate::{Context, Machine};

/// A command of a client that tries things.
#[derive(Clone, Debug)]
enum Try {
    Test {
        op: u32,
        id: u32,
        body: [u64; 6],
    },
    /// The same with what the operation asks for, chosen by `body`.
    Sense {
        op: u32,
        id: u32,
        body: [u64; 6],
    },
    Map {
        ioas: u32,
        iova: u64,
        address: u64,
        length: u64,
    },
    Unmap {
        ioas: u32,
        iova: u64,
        length: u64,
    },
    Hwpt {
        flags: u32,
        device: u32,
        parent: u32,
    },
    /// A table of the client's own, on an object that may be there.
    Nested {
        device: u32,
        parent: u32,
    },
    Viommu {
        device: u32,
        hwpt: u32,
        kind: u32,
    },
    Vdevice {
        viommu: u32,
        device: u32,
        virtual_id: u64,
    },
    Queue {
        viommu: u32,
    },
    Destroy {
        id: u32,
    },
}

/// Numbers that are an object's, a descriptor's or a set of flags.
fn small() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..12_u32, 2 => 97..104_u32, 1 => any::<u32>()]
}

/// Numbers that are an address or a length.
fn large() -> impl Strategy<Value = u64> {
    let page = 0..8_u64;
    prop_oneof![
        3 => page.clone().prop_map(|page| test::MOCK_APERTURE_START + page * 0x800),
        3 => page.clone().prop_map(|page| BASE + page * 0x1000),
        3 => page.prop_map(|page| page * 0x800),
        1 => Just(u64::MAX),
        1 => Just(1 << 63),
        1 => any::<u64>(),
    ]
}

/// One word of an operation's arguments: a number of 64 bits, or two of 32.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        large(),
        (small(), small()).prop_map(|(low, high)| u64::from(low) | u64::from(high) << 32)
    ]
}

fn attempt() -> impl Strategy<Value = Try> {
    let body = prop::array::uniform6(word());
    let device = (small(), Just([0; 6])).prop_map(|(id, body)| (id % 3 + 1, body));
    prop_oneof![
        3 => device.prop_map(|(id, body)| Try::Test { op: test::TEST_OP_MOCK_DOMAIN, id, body }),
        6 => (0..26_u32, small(), body).prop_map(|(op, id, body)| Try::Test { op, id, body }),
        24 => (1..24_u32, any::<u32>(), any::<[u64; 6]>())
            .prop_map(|(op, id, body)| Try::Sense { op, id, body }),
        4 => (1..4_u32, large(), large(), large())
            .prop_map(|(ioas, iova, address, length)| Try::Map { ioas, iova, address, length }),
        2 => (1..4_u32, large(), large())
            .prop_map(|(ioas, iova, length)| Try::Unmap { ioas, iova, length }),
        5 => (0..8_u32, small(), 0..4_u32)
            .prop_map(|(flags, device, parent)| Try::Hwpt { flags, device, parent }),
        3 => (any::<u32>(), any::<u32>()).prop_map(|(device, parent)| Try::Nested { device, parent }),
        2 => (small(), small(), prop_oneof![Just(test::VIOMMU_TYPE_SELFTEST), small()])
            .prop_map(|(device, hwpt, kind)| Try::Viommu { device, hwpt, kind }),
        2 => (small(), small(), large())
            .prop_map(|(viommu, device, virtual_id)| Try::Vdevice { viommu, device, virtual_id }),
        1 => small().prop_map(|viommu| Try::Queue { viommu }),
        2 => small().prop_map(|id| Try::Destroy { id }),
    ]
}

/// What a word of an operation's arguments is.
#[derive(Clone, Copy)]
enum Word {
    Iova,
    Length,
    Address,
    /// Twice the size of a mock page is a page.
    Granule,
    /// A number or flags, and an object.
    NumberAndObject,
    /// An object, and a number or flags.
    ObjectAndNumber,
    /// Two numbers, or flags.
    Numbers,
    /// Flags in the upper half.
    Flags,
    /// A descriptor and a number.
    FdAndNumber,
}

/// The arguments of an operation.
fn words(op: u32) -> &'static [Word] {
    use Word::{
        Address, FdAndNumber, Flags, Granule, Iova, Length, NumberAndObject, Numbers,
        ObjectAndNumber,
    };
    match op {
        test::TEST_OP_ADD_RESERVED => &[Iova, Length],
        test::TEST_OP_MD_CHECK_MAP => &[Iova, Length, Address],
        test::TEST_OP_MD_CHECK_REFS => &[Length, Address, Numbers],
        test::TEST_OP_CREATE_ACCESS => &[Flags],
        test::TEST_OP_ACCESS_PAGES => &[Numbers, Iova, Length, Address],
        test::TEST_OP_ACCESS_RW => &[Iova, Length, Address, Numbers],
        test::TEST_OP_MOCK_DOMAIN_FLAGS => &[Numbers, Flags],
        test::TEST_OP_DIRTY => &[Numbers, Iova, Length, Granule, Address],
        test::TEST_OP_TRIGGER_IOPF => &[ObjectAndNumber, Numbers, Iova],
        test::TEST_OP_PASID_ATTACH
        | test::TEST_OP_PASID_REPLACE
        | test::TEST_OP_PASID_DETACH
        | test::TEST_OP_PASID_CHECK_HWPT => &[NumberAndObject],
        test::TEST_OP_DMABUF_GET => &[Length],
        test::TEST_OP_DMABUF_REVOKE => &[FdAndNumber],
        test::TEST_OP_MD_CHECK_IOTLB
        | test::TEST_OP_DEV_CHECK_CACHE
        | test::TEST_OP_DESTROY_ACCESS_PAGES => &[Numbers],
        _ => &[ObjectAndNumber],
    }
}

/// An operation with an object, or for those of an access a descriptor, and arguments that are what
/// it asks for.
fn sensible(client: &TestClient, context: &Context, op: u32, id: u32, body: [u64; 6]) -> Try {
    let ids = context.objects().ids();
    let files = client.files.borrow().len().max(1) as u64;
    let object = |chosen: u64| u64::from(ids[usize::try_from(chosen).unwrap() % ids.len()]);
    let fd = |chosen: u64| 100 + chosen % files;
    let both = |low: u64, high: u64| low | (high << 32);
    let word = |word: Word, chosen: u64| match word {
        Word::Iova => test::MOCK_APERTURE_START + chosen % 8 * 0x1000,
        Word::Length => (chosen % 3 + 1) * 0x1000,
        Word::Address => BASE + chosen % 8 * 0x1000,
        Word::Granule => 0x800 << (chosen % 2),
        Word::NumberAndObject => both(chosen % 4, object(chosen >> 8)),
        Word::ObjectAndNumber => both(object(chosen >> 8), chosen % 2),
        // The bit above is that of the kernel's fuzzer, which reads an IOVA as the number of an
        // area and an offset.
        Word::Numbers => both((chosen % 4) | (chosen & (1 << 16)), (chosen >> 8) % 4),
        Word::Flags => both(0, chosen % 16),
        Word::FdAndNumber => both(fd(chosen >> 8), chosen % 2),
    };
    let mut filled = [0; 6];
    for (to, (&kind, chosen)) in filled.iter_mut().zip(words(op).iter().zip(body)) {
        *to = word(kind, chosen);
    }
    let of_access = matches!(
        op,
        test::TEST_OP_ACCESS_PAGES
            | test::TEST_OP_ACCESS_RW
            | test::TEST_OP_DESTROY_ACCESS_PAGES
            | test::TEST_OP_ACCESS_REPLACE_IOAS
    );
    let id = if of_access { fd(id.into()) } else { object(id.into()) };
    Try::Test { op, id: u32::try_from(id).unwrap(), body: filled }
}

/// What Linux answers, where that follows from what the operation names; one of these.
fn known(client: &TestClient, context: &Context, op: u32, id: u32, body: [u64; 6]) -> Vec<Errno> {
    let is_nested = context.objects().get(id).is_ok_and(|hwpt: Held<Hwpt>| hwpt.nested.is_some());
    match op {
        // get_md_pagetable comes first for the one, after the bitmap's shape for the other.
        test::TEST_OP_MD_CHECK_MAP if is_nested => vec![Errno::ENOENT],
        test::TEST_OP_DIRTY if is_nested => vec![Errno::ENOENT, Errno::EINVAL, Errno::EOVERFLOW],
        test::TEST_OP_DMABUF_REVOKE => {
            let fd = u32::try_from(body[0] & u64::from(u32::MAX)).expect("the lower half");
            let files = client.files.borrow();
            let file = usize::try_from(fd).ok().and_then(|fd| files.get(fd.checked_sub(100)?));
            match file {
                Some(file) if file.memory().is_none() => vec![Errno::EINVAL],
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// Makes the attempt; whatever it is answered, unless that is known.
fn make(client: &TestClient, context: &Arc<Context>, attempt: &Try) {
    let _answer = match *attempt {
        Try::Sense { op, id, body } => {
            return make(client, context, &sensible(client, context, op, id, body));
        }
        Try::Test { op, id, body } => {
            let known = known(client, context, op, id, body);
            let mut cmd = test::TestCmd { size: 72, op, id, body, ..Default::default() };
            let answer = client.call(context, test::TEST_CMD, &mut cmd);
            let errno = answer.as_ref().map_err(|error| error.errno);
            let expected = |errno| known.is_empty() || known.contains(&errno);
            assert!(errno.map_or_else(expected, |_| known.is_empty()), "{attempt:?}: {answer:?}");
            answer
        }
        Try::Nested { device, parent } => {
            let ids = context.objects().ids();
            let pick = |chosen: u32| ids[usize::try_from(chosen).unwrap() % ids.len()];
            let data = BASE + 0x20_0000;
            client.memory.write(data, &7_u32.to_le_bytes()).unwrap();
            let mut cmd = abi::HwptAlloc {
                size: 48,
                dev_id: pick(device),
                pt_id: pick(parent),
                data_type: test::HWPT_DATA_SELFTEST,
                data_len: 8,
                data_uptr: data,
                ..Default::default()
            };
            client.call(context, abi::HWPT_ALLOC, &mut cmd)
        }
        Try::Map { ioas, iova, address, length } => {
            let length = if length > 0x1_0000 { length } else { length.next_multiple_of(0x1000) };
            let flags = abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_READABLE | abi::IOAS_MAP_WRITEABLE;
            let (size, ioas_id, user_va) = (40, ioas, address);
            let mut cmd =
                abi::IoasMap { size, flags, ioas_id, __reserved: 0, user_va, length, iova };
            client.call(context, abi::IOAS_MAP, &mut cmd)
        }
        Try::Unmap { ioas, iova, length } => {
            let mut cmd = abi::IoasUnmap { size: 24, ioas_id: ioas, iova, length };
            client.call(context, abi::IOAS_UNMAP, &mut cmd)
        }
        Try::Hwpt { flags, device, parent } => {
            let mut cmd = abi::HwptAlloc {
                size: 48,
                flags,
                dev_id: device,
                pt_id: parent,
                ..Default::default()
            };
            client.call(context, abi::HWPT_ALLOC, &mut cmd)
        }
        Try::Viommu { device, hwpt, kind } => {
            let mut cmd = abi::ViommuAlloc {
                size: 40,
                type_: kind,
                dev_id: device,
                hwpt_id: hwpt,
                ..Default::default()
            };
            client.call(context, abi::VIOMMU_ALLOC, &mut cmd)
        }
        Try::Vdevice { viommu, device, virtual_id } => {
            let mut cmd = abi::VdeviceAlloc {
                size: 24,
                viommu_id: viommu,
                dev_id: device,
                virt_id: virtual_id,
                ..Default::default()
            };
            client.call(context, abi::VDEVICE_ALLOC, &mut cmd)
        }
        Try::Queue { viommu } => {
            let mut cmd = abi::VeventqAlloc {
                size: 32,
                viommu_id: viommu,
                type_: test::VEVENTQ_TYPE_SELFTEST,
                veventq_depth: 4,
                ..Default::default()
            };
            client.call(context, abi::VEVENTQ_ALLOC, &mut cmd)
        }
        Try::Destroy { id } => {
            client.call(context, abi::DESTROY, &mut abi::Destroy { size: 8, id })
        }
    };
}

proptest! {
    #[test]
    fn no_sequence_of_test_operations_panics_or_leaves_anything(
        attempts in prop::collection::vec(attempt(), 1..100)
    ) {
        let machine = Machine::with_mock();
        let context = Context::new(&machine);
        let client = TestClient::new();
        for _ in 0..3 {
            context.alloc_ioas().unwrap();
        }
        let begin = |op, body| make(&client, &context, &Try::Test { op, id: 1, body });
        let flags = u64::from(test::MOCK_FLAGS_DEVICE_PASID);
        begin(test::TEST_OP_MOCK_DOMAIN, [0; 6]);
        begin(test::TEST_OP_MOCK_DOMAIN_FLAGS, [0, flags << 32, 0, 0, 0, 0]);
        begin(test::TEST_OP_CREATE_ACCESS, [0; 6]);
        begin(test::TEST_OP_CREATE_ACCESS, [1 << 32, 0, 0, 0, 0, 0]);
        let (iova, length) = (test::MOCK_APERTURE_START, 0x6000);
        make(&client, &context, &Try::Map { ioas: 1, iova, address: BASE, length });
        let device = context.objects().all::<crate::device::Device>()[0].id();
        make(&client, &context, &Try::Hwpt { flags: abi::HWPT_ALLOC_NEST_PARENT, device, parent: 1 });
        for attempt in &attempts {
            make(&client, &context, attempt);
        }
        let files = client.files.take();
        files.iter().for_each(|file| file.close());
        drop(files);
        context.close();
        drop((context, client));
        prop_assert_eq!(machine.ledger.processes(), []);
        prop_assert_eq!(machine.phys.windows(), 0);
    }
}
