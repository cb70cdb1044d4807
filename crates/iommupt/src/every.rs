//! Every format, by name: a test that is made for each of them names no format itself.

/// Calls `$call!` with a module name and a type for every format there is.
macro_rules! for_every_format {
    ($call:ident) => {
        $call! {
            vtdss_39: crate::fmt::VtdSs<3>;
            vtdss: crate::fmt::VtdSs<4>;
            vtdss_57: crate::fmt::VtdSs<5>;
            amdv1_1: crate::fmt::AmdV1<1>;
            amdv1_2: crate::fmt::AmdV1<2>;
            amdv1_3: crate::fmt::AmdV1<3>;
            amdv1: crate::fmt::AmdV1<4>;
            amdv1_5: crate::fmt::AmdV1<5>;
            amdv1_6: crate::fmt::AmdV1<6>;
            amdv1_mock: crate::fmt::AmdV1<5, 11>;
            x86_64: crate::fmt::X86_64<4>;
            x86_64_57: crate::fmt::X86_64<5>;
            sv39: crate::fmt::Sv39;
            sv48: crate::fmt::Sv48;
            sv57: crate::fmt::Sv57;
            sv39x4: crate::fmt::Sv39x4;
            sv48x4: crate::fmt::Sv48x4;
            sv57x4: crate::fmt::Sv57x4;
            arm_s1_4k: crate::fmt::ArmS1<12>;
            arm_s1_16k: crate::fmt::ArmS1<14>;
            arm_s1_64k: crate::fmt::ArmS1<16>;
            arm_s1_4k_52: crate::fmt::ArmS1<12, 52>;
            arm_s1_16k_52: crate::fmt::ArmS1<14, 52>;
            arm_s1_64k_52: crate::fmt::ArmS1<16, 52>;
            arm_s2_4k: crate::fmt::ArmS2<12>;
            arm_s2_16k: crate::fmt::ArmS2<14>;
            arm_s2_64k: crate::fmt::ArmS2<16>;
            arm_s2_4k_52: crate::fmt::ArmS2<12, 52>;
            arm_s2_16k_52: crate::fmt::ArmS2<14, 52>;
            arm_s2_64k_52: crate::fmt::ArmS2<16, 52>;
            tce_4k_3: crate::fmt::Tce<12, 3>;
            tce_4k: crate::fmt::Tce<12, 5>;
            tce_64k: crate::fmt::Tce<16, 5>;
            tce_2m: crate::fmt::Tce<21, 4>;
            tce_16m: crate::fmt::Tce<24, 4>;
            tce_256m: crate::fmt::Tce<28, 3>;
            tce_1g: crate::fmt::Tce<30, 3>;
        }
    };
}
pub(crate) use for_every_format;
