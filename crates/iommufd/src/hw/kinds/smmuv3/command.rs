//! Commands that a guest hands over through HWPT_INVALIDATE: what each may say, and what it does.
//!
//! They go into the queue that the host shares, and one that the hardware does not know stops it.
//! So Linux lets only those bits pass that the hardware knows, from 7.3 on. Linux:
//! `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c`.

use ioasis_uapi::Result;
use ioasis_uapi::iommufd as abi;

use super::field;
use crate::hw::iommu::Iommu;
use crate::hw::kinds::driver::each_request;
use crate::hw::ops::{Invalidated, UserArray, ViommuCore};
use crate::params::Linux;

// 4.2 to 4.4: the commands a guest may issue.
pub(in crate::hw::kinds) const CFGI_CD: u64 = 0x05;
pub(in crate::hw::kinds) const CFGI_CD_ALL: u64 = 0x06;
pub(in crate::hw::kinds) const TLBI_NH_ALL: u64 = 0x10;
pub(in crate::hw::kinds) const TLBI_NH_ASID: u64 = 0x11;
pub(in crate::hw::kinds) const TLBI_NH_VA: u64 = 0x12;
pub(in crate::hw::kinds) const TLBI_NH_VAA: u64 = 0x13;
pub(in crate::hw::kinds) const TLBI_NSNH_ALL: u64 = 0x30;
pub(in crate::hw::kinds) const ATC_INV: u64 = 0x40;
pub(in crate::hw::kinds) const SYNC: u64 = 0x46;

const OPCODE: u64 = 0xff;

/// 4.4.1: the fields of a TLBI command, of its first and of its second doubleword.
const TLBI_NUM: u64 = 0x1f << 12;
/// Bit 25 counts only with 52-bit addresses (IDR5.DS), which the simulated hardware has not.
const TLBI_SCALE: u64 = 0x1f << 20;
const TLBI_VMID: u64 = 0xffff << 32;
/// IDR0.ASID16.
const TLBI_ASID: u64 = 0xffff << 48;
const TLBI_LEAF: u64 = 1;
const TLBI_TTL: u64 = 3 << 8;
const TLBI_TG: u64 = 3 << 10;
const ADDRESS: u64 = !0xfff;

/// 4.2, 4.3: the fields of a CFGI command.
const CFGI_SSID: u64 = 0xf_ffff << 12;
const CFGI_LEAF: u64 = 1;
const STREAM: u64 = 0xffff_ffff << 32;

/// 4.5.1: the fields of an ATC_INV command.
const ATC_SUBSTREAM: u64 = 1 << 11 | 0xf_ffff << 12 | 1 << 9;
const ATC_SIZE: u64 = 0x3f;
/// The size that means everything.
const ATC_SIZE_ALL: u64 = 52;

/// What the commands of one SMMUv3 may say.
#[derive(Clone, Copy, Debug)]
pub(in crate::hw::kinds) struct Commands {
    /// It answers devices that translate ahead.
    ats: bool,
    /// It has substreams.
    substreams: bool,
}

impl Commands {
    pub(in crate::hw::kinds) fn of(iommu: &Iommu) -> Self {
        Self { ats: iommu.ats, substreams: iommu.pasid_bits > 0 }
    }

    /// Carries out the commands of HWPT_INVALIDATE. Linux: `arm_vsmmu_cache_invalidate`.
    pub(in crate::hw::kinds) fn invalidate_all(
        self,
        viommu: &dyn ViommuCore,
        requests: &UserArray<'_>,
    ) -> Invalidated {
        each_request(requests, abi::VIOMMU_INVALIDATE_DATA_ARM_SMMUV3, |index| {
            let size = size_of::<abi::ViommuArmSmmuv3Invalidate>();
            let request: abi::ViommuArmSmmuv3Invalidate = requests.read(index, size)?;
            if viommu.linux() >= Linux::V7_3 {
                self.check(request.cmd)?;
            }
            invalidate(viommu, request.cmd)
        })
    }

    /// Whether the hardware knows what a command says. Linux: `arm_vsmmu_validate_user_cmd`.
    ///
    /// # Errors
    ///
    /// `EIO` for a command, a field or a value that it does not know.
    fn check(self, words: [u64; 2]) -> Result<()> {
        let substreams = |fields| if self.substreams { fields } else { 0 };
        let (first, second) = match words[0] & OPCODE {
            TLBI_NSNH_ALL => (0, 0),
            opcode @ (TLBI_NH_VA | TLBI_NH_VAA) => {
                check_range(words)?;
                let asid = if opcode == TLBI_NH_VA { TLBI_ASID } else { 0 };
                let first = asid | TLBI_VMID | TLBI_NUM | TLBI_SCALE;
                (first, TLBI_LEAF | TLBI_TTL | TLBI_TG | ADDRESS)
            }
            TLBI_NH_ASID => (TLBI_ASID | TLBI_VMID, 0),
            TLBI_NH_ALL => (TLBI_VMID, 0),
            ATC_INV => {
                if !self.ats {
                    return refuse!(EIO, "ATC_INV, and the SMMU has no ATS", words[0]);
                }
                if words[1] & ATC_SIZE > ATC_SIZE_ALL {
                    return refuse!(EIO, "ATC_INV of more than 2^52 pages", words[1]);
                }
                (substreams(ATC_SUBSTREAM) | STREAM, ATC_SIZE | ADDRESS)
            }
            CFGI_CD => (substreams(CFGI_SSID) | STREAM, CFGI_LEAF),
            CFGI_CD_ALL => (STREAM, 0),
            other => return refuse!(EIO, "a guest may not issue this command", other),
        };
        let unknown = [words[0] & !(first | OPCODE), words[1] & !second];
        match unknown.into_iter().find(|&bits| bits != 0) {
            Some(bits) => refuse!(EIO, "the command sets bits that the SMMU does not know", bits),
            None => Ok(()),
        }
    }
}

/// Whether the fields of a range go together. Linux: `arm_vsmmu_validate_range`.
fn check_range(words: [u64; 2]) -> Result<()> {
    let is_range = words[0] & (TLBI_NUM | TLBI_SCALE | 1 << 25) != 0;
    let (ttl, granule) = (field(words[1], 9, 8), field(words[1], 11, 10));
    let why = match granule {
        0 if is_range || ttl != 0 => "a range without a granule",
        // With 52-bit addresses alone.
        2 if ttl == 1 => "granules of 16 KiB with TTL 1",
        1.. if !is_range && ttl == 0 => "a granule without a range and a level",
        _ => return Ok(()),
    };
    refuse!(EIO, why, words[1])
}

/// Carries out one of them.
///
/// # Errors
///
/// `EIO` for any other command, and for a stream id that no virtual device has.
pub(in crate::hw::kinds) fn invalidate(viommu: &dyn ViommuCore, words: [u64; 2]) -> Result<()> {
    match words[0] & OPCODE {
        TLBI_NH_VA | TLBI_NH_VAA => {
            let page = words[1] & !0xfff;
            // 4.4.1: NUM and SCALE make a range of (NUM + 1) << SCALE granules.
            let (num, scale) = (field(words[0], 16, 12), field(words[0], 24, 20));
            let pages = (num + 1)
                .checked_shl(u32::try_from(scale).expect("five bits"))
                .unwrap_or(u64::MAX >> 12);
            viommu.invalidate(page, page.saturating_add((pages << 12) - 1));
        }
        TLBI_NH_ALL | TLBI_NSNH_ALL | TLBI_NH_ASID => viommu.invalidate(0, u64::MAX),
        CFGI_CD | CFGI_CD_ALL | ATC_INV => {
            let stream = field(words[0], 63, 32);
            if !viommu.with_device(stream, &mut |_| ()) {
                return refuse!(EIO, "no virtual device has this stream id", stream);
            }
            viommu.invalidate(0, u64::MAX);
        }
        other => return refuse!(EIO, "a guest may not issue this command", other),
    }
    Ok(())
}
