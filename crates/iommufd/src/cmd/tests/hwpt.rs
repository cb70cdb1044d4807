use super::*;
use crate::tests::rig::ARG;

fn alloc(device: u32, pt_id: u32, flags: u32) -> abi::HwptAlloc {
    abi::HwptAlloc { size: 48, flags, dev_id: device, pt_id, ..Default::default() }
}

#[test]
fn a_hwpt_is_refused_in_linuxs_order() {
    let fixture = Fixture::new();
    let (bound, ioas) = (fixture.device(), fixture.ioas());
    let good = alloc(bound.id(), ioas, 0);
    let mut refused = [
        (Errno::EOPNOTSUPP, abi::HwptAlloc { __reserved: 1, data_len: 1, ..good }),
        (Errno::EINVAL, abi::HwptAlloc { data_len: 1, dev_id: 99, ..good }),
        (Errno::EINVAL, abi::HwptAlloc { data_type: 1, dev_id: 99, ..good }),
        (Errno::ENOENT, abi::HwptAlloc { dev_id: 99, pt_id: 99, ..good }),
        (Errno::ENOENT, abi::HwptAlloc { dev_id: ioas, pt_id: 99, ..good }),
        (Errno::EINVAL, abi::HwptAlloc { pt_id: 99, flags: 1 << 31, ..good }),
        (Errno::EINVAL, abi::HwptAlloc { pt_id: bound.id(), ..good }),
        (Errno::EOPNOTSUPP, abi::HwptAlloc { flags: 1 << 31, ..good }),
    ];
    for (errno, cmd) in &mut refused {
        let shown = *cmd;
        assert_eq!(fixture.errno(abi::HWPT_ALLOC, cmd), *errno, "{shown:?}");
    }
}

#[test]
fn a_manual_hwpt_stays_until_it_is_destroyed_and_is_never_picked() {
    let fixture = Fixture::new();
    let (bound, ioas) = (fixture.device(), fixture.ioas());
    let mut cmd = alloc(bound.id(), ioas, 0);
    fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
    let manual = cmd.out_hwpt_id;
    assert_eq!(fixture.destroy(ioas).unwrap_err().errno, Errno::EBUSY);
    let automatic = bound.attach(ioas).unwrap();
    assert_ne!(automatic, manual);
    assert_eq!(bound.replace(manual), Ok(manual));
    assert_eq!(
        fixture.destroy(automatic).unwrap_err().errno,
        Errno::ENOENT,
        "it went with its last device"
    );
    assert_eq!(fixture.destroy(manual).unwrap_err().errno, Errno::EBUSY);
    bound.detach();
    fixture.destroy(manual).unwrap();
    fixture.destroy(ioas).unwrap();
}

#[test]
fn a_hwpt_that_cannot_be_filled_leaves_nothing() {
    let fixture = Fixture::new();
    let (bound, ioas) = (fixture.device(), fixture.ioas());
    fixture.map_at(ioas, 0x1000, 0, 0x1000).unwrap();
    let mut bad = map(ioas, RW, 0x2000, 0x1000);
    fixture.call(abi::IOAS_MAP, &mut bad).unwrap();
    assert_eq!(fixture.errno(abi::HWPT_ALLOC, &mut alloc(bound.id(), ioas, 0)), Errno::EFAULT);
    fixture.machine.assert_clean();
    fixture.destroy(ioas).unwrap();
}

fn hw_info(
    fixture: &Fixture,
    device: u32,
    room: u32,
    flags: u32,
    kind: u32,
) -> (Result<i64>, abi::HwInfo) {
    let mut cmd = abi::HwInfo {
        size: 40,
        flags,
        dev_id: device,
        data_len: room,
        data_uptr: ARG + 0x1000,
        data_type: kind,
        ..Default::default()
    };
    let answer = fixture.call(abi::GET_HW_INFO, &mut cmd);
    (answer, cmd)
}

#[test]
fn hw_info_is_cut_to_the_buffer_and_the_rest_of_the_buffer_is_zeroed() {
    let fixture = Fixture::new();
    let bound = fixture.device();
    fixture.client.memory.write(ARG + 0x1000, &[0xaa; 64]).unwrap();
    let (answer, cmd) = hw_info(&fixture, bound.id(), 40, 0, 99);
    answer.unwrap();
    assert_eq!((cmd.data_len, cmd.data_type), (24, abi::HW_INFO_TYPE_INTEL_VTD));
    let mut seen = [0; 41];
    fixture.client.memory.read(ARG + 0x1000, &mut seen).unwrap();
    assert_ne!(seen[8..16], [0; 8]);
    assert_eq!(seen[24..], [[0; 16].as_slice(), &[0xaa]].concat());
    let (answer, cmd) = hw_info(&fixture, bound.id(), 0, 0, 0);
    assert_eq!((answer, cmd.data_len), (Ok(0), 24), "a question for the size");
    assert_eq!(
        cmd.out_capabilities,
        abi::HW_CAP_DIRTY_TRACKING | abi::HW_CAP_PCI_ATS_NOT_SUPPORTED
    );
    assert_eq!(cmd.out_max_pasid_log2, 20);
}

#[test]
fn hw_info_is_refused_in_linuxs_order() {
    let fixture = Fixture::new();
    let bound = fixture.device();
    assert_eq!(hw_info(&fixture, 99, 0, 2, 0).0.unwrap_err().errno, Errno::EOPNOTSUPP);
    assert_eq!(hw_info(&fixture, 99, 0, 1, 99).0.unwrap_err().errno, Errno::ENOENT);
    assert_eq!(hw_info(&fixture, bound.id(), 0, 1, 99).0.unwrap_err().errno, Errno::EOPNOTSUPP);
    assert_eq!(hw_info(&fixture, bound.id(), 24, 1, abi::HW_INFO_TYPE_INTEL_VTD).0, Ok(0));
    let mut cmd = abi::HwInfo { size: 40, dev_id: bound.id(), data_len: 1, ..Default::default() };
    assert_eq!(fixture.errno(abi::GET_HW_INFO, &mut cmd), Errno::EFAULT);
}

#[test]
fn every_kind_of_iommu_describes_itself() {
    let kinds = [
        (IommuKind::Vtd, abi::HW_INFO_TYPE_INTEL_VTD, 24),
        (IommuKind::Amd, abi::HW_INFO_TYPE_AMD, 16),
        (IommuKind::Smmuv3, abi::HW_INFO_TYPE_ARM_SMMUV3, 40),
        (IommuKind::Riscv, abi::HW_INFO_TYPE_NONE, 0),
    ];
    for (kind, data_type, length) in kinds {
        let fixture = Fixture::on(TestMachine::with(Iommu::new(kind)));
        let bound = fixture.device();
        let (answer, cmd) = hw_info(&fixture, bound.id(), 64, 0, 0);
        assert_eq!((answer, cmd.data_type, cmd.data_len), (Ok(0), data_type, length), "{kind:?}");
    }
}

/// The registers of an IOMMU, as 64-bit words.
fn registers(iommu: &Iommu) -> Vec<u64> {
    let (_, bytes) = iommu.registers();
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    words.collect()
}

/// The bits of `word` from `first` to `last`.
fn field(word: u64, last: u32, first: u32) -> u64 {
    (word >> first) & ((1 << (last - first + 1)) - 1)
}

#[test]
fn registers_say_what_the_machine_was_given() {
    let bare = |kind| Iommu {
        dirty_tracking: false,
        enforce_coherency: false,
        pasid_bits: 0,
        nesting: false,
        ats: false,
        pri: false,
        page_sizes: 1 << 12,
        ..Iommu::new(kind)
    };
    // VT-d 11.4.3: SC, NEST, DT, PRS, PASID, PSS, SSADS; 11.4.2: large pages.
    let vtd = |iommu: &Iommu| {
        let words = registers(iommu);
        let ecap = [(7, 7), (26, 26), (2, 2), (29, 29), (40, 40), (39, 35), (45, 45)];
        let mut all = ecap.map(|(last, first)| field(words[2], last, first)).to_vec();
        all.push(field(words[1], 35, 34));
        all
    };
    assert_eq!(vtd(&Iommu::new(IommuKind::Vtd)), [1, 1, 1, 1, 1, 19, 1, 3]);
    assert_eq!(vtd(&bare(IommuKind::Vtd)), [0; 8]);
    // AMD-Vi 3.4.10: PPRSup, GTSup, PASmax, HASup, HDSup.
    let amd = |iommu: &Iommu| {
        let fields = [(1, 1), (4, 4), (36, 32), (49, 49), (52, 52)];
        fields.map(|(last, first)| field(registers(iommu)[0], last, first))
    };
    assert_eq!(amd(&Iommu::new(IommuKind::Amd)), [1, 1, 19, 1, 1]);
    assert_eq!(amd(&bare(IommuKind::Amd)), [0; 5]);
    // SMMU 6.3.1, 6.3.2: S2P and S1P, HTTU, ATS, PRI; SSIDSIZE.
    let smmu = |iommu: &Iommu| {
        let words = registers(iommu);
        let idr0 = [(1, 0), (7, 6), (10, 10), (16, 16)];
        let mut all = idr0.map(|(last, first)| field(words[1], last, first)).to_vec();
        all.push(field(words[1], 32 + 10, 32 + 6));
        all
    };
    assert_eq!(smmu(&Iommu::new(IommuKind::Smmuv3)), [3, 2, 1, 1, 20]);
    assert_eq!(smmu(&bare(IommuKind::Smmuv3)), [2, 0, 0, 0, 0]);
}

#[test]
fn an_smmu_that_loses_invalidations_says_so() {
    let flags = |iommu: &Iommu| field(registers(iommu)[0], 31, 0);
    let smmu = Iommu::new(IommuKind::Smmuv3);
    assert_eq!(flags(&smmu), 0);
    let repeats = Iommu { repeat_invalidations: true, ..smmu };
    assert_eq!(flags(&repeats), u64::from(abi::HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI));
}

#[test]
fn a_device_without_page_requests_takes_no_fault_queue_behind_a_vtd() {
    for (kind, expected) in [(IommuKind::Vtd, Some(Errno::ENODEV)), (IommuKind::Amd, None)] {
        let fixture = Fixture::on(TestMachine::with(Iommu::new(kind)));
        let mut queue = abi::FaultAlloc { size: 16, ..Default::default() };
        fixture.call(abi::FAULT_QUEUE_ALLOC, &mut queue).unwrap();
        let config =
            crate::EndpointConfig { pri: false, ..fixture.machine.endpoint().config().clone() };
        let endpoint = crate::Endpoint::new(&fixture.machine.group(), config);
        let bound = fixture.context.bind(&endpoint).unwrap();
        let mut cmd = alloc(bound.id(), fixture.ioas(), abi::HWPT_FAULT_ID_VALID);
        cmd.fault_id = queue.out_fault_id;
        fixture.call(abi::HWPT_ALLOC, &mut cmd).unwrap();
        let attached = bound.attach(cmd.out_hwpt_id);
        assert_eq!(attached.err().map(|error| error.errno), expected, "{kind:?}");
    }
}

#[test]
fn flags_go_together_as_each_kinds_driver_has_it() {
    let (parent, dirty, pasid) =
        (abi::HWPT_ALLOC_NEST_PARENT, abi::HWPT_ALLOC_DIRTY_TRACKING, abi::HWPT_ALLOC_PASID);
    let pairs = [dirty | parent, dirty | pasid, parent | pasid];
    for (kind, expected) in [
        (IommuKind::Vtd, [true, true, true]),
        (IommuKind::Amd, [true, false, false]),
        (IommuKind::Smmuv3, [false, true, false]),
    ] {
        let fixture = Fixture::on(TestMachine::with(Iommu::new(kind)));
        let (bound, ioas) = (fixture.device(), fixture.ioas());
        for alone in [parent, dirty, pasid] {
            fixture.call(abi::HWPT_ALLOC, &mut alloc(bound.id(), ioas, alone)).unwrap();
        }
        let made = pairs.map(|flags| {
            let made = fixture.call(abi::HWPT_ALLOC, &mut alloc(bound.id(), ioas, flags));
            made.map_err(|error| assert_eq!(error.errno, Errno::EOPNOTSUPP)).is_ok()
        });
        assert_eq!(made, expected, "{kind:?}");
    }
}
