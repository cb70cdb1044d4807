//! A client of IOMMUFD as a VMM is one: `iommu-client HOW [KIND]`, where KIND is vtd, amd, smmuv3,
//! cmdqv (an smmuv3 with one) or riscv, that of the machine's first IOMMU. It prints "ok", or says
//! what was not as it should be.
//!
//! Devices are `testdev`s: /dev/vfio/devices/vfio0 and so on; for `noiommu` and `unprivileged` one
//! without an IOMMU.

mod cmdqv;
mod device;
mod faults;
mod groups;
mod hwpt;
mod iommufd;
mod memory;
mod nested;
mod noiommu;
mod pasid;

use anyhow::{Context, Result, bail};

/// Whose IOMMU it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Vtd,
    Amd,
    Smmuv3,
    Cmdqv,
    Riscv,
}

impl Kind {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "vtd" => Self::Vtd,
            "amd" => Self::Amd,
            "smmuv3" => Self::Smmuv3,
            "cmdqv" => Self::Cmdqv,
            "riscv" => Self::Riscv,
            other => bail!("no kind called {other:?}"),
        })
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let how = arguments.first().context("usage: iommu-client HOW [KIND]")?;
    let kind = || Kind::parse(arguments.get(1).context("a kind is needed")?);
    match how.as_str() {
        "hwpt" => hwpt::run(kind()?)?,
        "nested" => nested::run(kind()?)?,
        "cmdqv" => cmdqv::run()?,
        "noiommu" => noiommu::run()?,
        "unprivileged" => noiommu::unprivileged()?,
        "pasid" => pasid::run()?,
        "faults" => faults::run()?,
        "abandon" => faults::abandon()?,
        "groups" => groups::run()?,
        "refused" => groups::refused()?,
        "hold" => hwpt::hold()?,
        "hold-cmdqv" => cmdqv::hold()?,
        other => bail!("no way called {other:?}"),
    }
    println!("ok");
    Ok(())
}
