//! Which commands a guest's SMMUv3 driver may hand over: `arm_vsmmu_validate_user_cmd`.

use super::viommu::Nest;
use super::*;
use crate::Linux;

const KIND: u32 = abi::VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;

/// A virtual SMMUv3 that knows a device as 0x18.
fn smmu(linux: Linux, iommu: Iommu) -> (Nest, u32) {
    let nest = Nest::of(linux, iommu);
    let viommu = nest.viommu_with(abi::VIOMMU_TYPE_ARM_SMMUV3, 0).unwrap();
    nest.vdevice(viommu, 0x18).unwrap();
    (nest, viommu)
}

/// What a command is answered.
fn answer(nest: &Nest, viommu: u32, cmd: [u64; 2]) -> Result<i64, Errno> {
    let command = abi::ViommuArmSmmuv3Invalidate { cmd };
    nest.invalidate(viommu, KIND, &[command]).0.map_err(|error| error.errno)
}

/// Bits that some command may set in its first and its second doubleword, on an SMMU with ATS and
/// substreams, where those of a range go together.
const KNOWN: [([u64; 2], [u64; 2]); 9] = [
    // TLBI_NSNH_ALL, NH_ALL, NH_ASID.
    ([0x30, 0], [0, 0]),
    ([0x10, 0], [0xffff << 32, 0]),
    ([0x11, 0], [0xffff_ffff << 32, 0]),
    // TLBI_NH_VA, NH_VAA: without a range, and with one of 4 KiB granules.
    ([0x12, 0], [0xffff_ffff << 32, !0xfff | 1]),
    ([0x13, 0], [0xffff << 32, !0xfff | 1]),
    ([0x12 | 1 << 12, 1 << 10], [0xffff_ffff << 32 | 0x1f << 12 | 0x1f << 20, !0xfff | 0x301]),
    // CFGI_CD, CFGI_CD_ALL, ATC_INV.
    ([0x05 | 0x18 << 32, 0], [0xf_ffff << 12, 1]),
    ([0x06 | 0x18 << 32, 0], [0, 0]),
    ([0x40 | 0x18 << 32, 0], [0xf_ffff << 12 | 1 << 11 | 1 << 9, !0xfff | 0x3f]),
];

#[test]
fn a_command_with_a_bit_that_the_smmu_does_not_know_is_eio() {
    let (nest, viommu) = smmu(Linux::V7_3, Iommu::new(IommuKind::Smmuv3));
    for (command, known) in KNOWN {
        assert_eq!(answer(&nest, viommu, command), Ok(0), "{command:x?}");
        let stream = command[0] >> 32;
        for bit in 8..128 {
            let mut more = command;
            more[bit / 64] ^= 1 << (bit % 64);
            // Another stream than the one known is EIO for that.
            let same_stream = stream == 0 || more[0] >> 32 == stream;
            let is_known = known[bit / 64] >> (bit % 64) & 1 != 0;
            // The field that makes a range of the command.
            let breaks = command[1] == 1 << 10 && (bit == 12 || bit == 64 + 10);
            let both = bit == 64 + 11 && command[1] == 1 << 10;
            if breaks || both {
                continue;
            }
            let expected = if is_known && same_stream { Ok(0) } else { Err(Errno::EIO) };
            assert_eq!(answer(&nest, viommu, more), expected, "{command:x?}, bit {bit}");
        }
    }
    assert_eq!(answer(&nest, viommu, [0x20, 0]), Err(Errno::EIO), "a command of the host's");
}

#[test]
fn the_fields_of_a_range_go_together() {
    let (nest, viommu) = smmu(Linux::V7_3, Iommu::new(IommuKind::Smmuv3));
    let (num, scale, ttl, tg) = (1 << 12, 1 << 20, 1_u64 << 8, 1_u64 << 10);
    for (command, expected) in [
        ([0x12 | num, 0], Err(Errno::EIO)),
        ([0x12 | scale, 0], Err(Errno::EIO)),
        ([0x12, ttl], Err(Errno::EIO)),
        ([0x12, tg], Err(Errno::EIO)),
        ([0x12, tg | ttl], Ok(0)),
        ([0x12 | num, tg], Ok(0)),
        ([0x12 | num | scale, tg | ttl], Ok(0)),
        // 16 KiB granules and a leaf at level 1 are of 52-bit addresses.
        ([0x12 | num, (2 * tg) | ttl], Err(Errno::EIO)),
        ([0x12 | num, (2 * tg) | (2 * ttl)], Ok(0)),
        ([0x13 | num, (3 * tg) | ttl], Ok(0)),
        // A scale of more than 31 is, too.
        ([0x12 | num | 1 << 25, tg], Err(Errno::EIO)),
    ] {
        assert_eq!(answer(&nest, viommu, command), expected, "{command:x?}");
    }
}

#[test]
fn what_the_smmu_has_not_its_commands_do_not_name() {
    let plain = Iommu { ats: false, pasid_bits: 0, ..Iommu::new(IommuKind::Smmuv3) };
    let (nest, viommu) = smmu(Linux::V7_3, plain);
    let stream = 0x18 << 32;
    assert_eq!(answer(&nest, viommu, [0x40 | stream, 0]), Err(Errno::EIO), "no ATS");
    assert_eq!(answer(&nest, viommu, [0x05 | stream | 1 << 12, 0]), Err(Errno::EIO), "no SSID");
    assert_eq!(answer(&nest, viommu, [0x05 | stream, 1]), Ok(0));
    let (nest, viommu) = smmu(Linux::V7_3, Iommu::new(IommuKind::Smmuv3));
    assert_eq!(answer(&nest, viommu, [0x40 | stream, 52]), Ok(0), "everything");
    assert_eq!(answer(&nest, viommu, [0x40 | stream, 53]), Err(Errno::EIO));
}

#[test]
fn linux_7_2_looks_at_the_command_alone() {
    let (nest, viommu) = smmu(Linux::V7_2, Iommu::new(IommuKind::Smmuv3));
    assert_eq!(answer(&nest, viommu, [0x12 | 1 << 10, 0x400]), Ok(0));
    assert_eq!(answer(&nest, viommu, [0x40 | 0x18 << 32, 63]), Ok(0));
    assert_eq!(answer(&nest, viommu, [0x20, 0]), Err(Errno::EIO));
}

#[test]
fn commands_before_the_one_that_is_refused_count() {
    let (nest, viommu) = smmu(Linux::V7_3, Iommu::new(IommuKind::Smmuv3));
    let commands = [[0x10, 0], [0x12, 0x1000], [0x10, 1], [0x10, 0]]
        .map(|cmd| abi::ViommuArmSmmuv3Invalidate { cmd });
    let (answer, done) = nest.invalidate(viommu, KIND, &commands);
    assert_eq!((answer.map_err(|error| error.errno), done), (Err(Errno::EIO), 2));
}
