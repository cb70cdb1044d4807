//! Every command, driven by bytes as a client drives it.

mod account;
mod cmdqv;
mod dirty;
mod dispatch;
mod hwpt;
mod ioas;
mod noiommu;
mod option;
mod queue;
mod smmu_commands;
mod viommu;

use std::sync::Arc;

use ioasis_uapi::iommufd as abi;
use ioasis_uapi::{Errno, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::tests::rig::{BASE, TestClient, TestMachine};
use crate::{Bound, Context, Iommu, IommuKind};

/// A client with one open of `/dev/iommu`.
struct Fixture {
    machine: TestMachine,
    client: TestClient,
    context: Arc<Context>,
}

impl Fixture {
    fn new() -> Self {
        Self::on(TestMachine::new())
    }

    fn on(machine: TestMachine) -> Self {
        let context = Context::new(&machine.machine);
        Self { machine, client: TestClient::new(), context }
    }

    fn call<T: FromBytes + IntoBytes + Immutable>(&self, ioctl: u32, cmd: &mut T) -> Result<i64> {
        self.client.call(&self.context, ioctl, cmd)
    }

    fn errno<T: FromBytes + IntoBytes + Immutable>(&self, ioctl: u32, cmd: &mut T) -> Errno {
        self.call(ioctl, cmd).unwrap_err().errno
    }

    fn ioas(&self) -> u32 {
        let mut cmd = abi::IoasAlloc { size: 12, ..Default::default() };
        self.call(abi::IOAS_ALLOC, &mut cmd).unwrap();
        cmd.out_ioas_id
    }

    fn destroy(&self, id: u32) -> Result<i64> {
        self.call(abi::DESTROY, &mut abi::Destroy { size: 8, id })
    }

    /// Maps client memory at `BASE + offset` at a fixed IOVA.
    fn map_at(&self, ioas: u32, iova: u64, offset: u64, length: u64) -> Result<i64> {
        let flags = abi::IOAS_MAP_FIXED_IOVA | abi::IOAS_MAP_WRITEABLE | abi::IOAS_MAP_READABLE;
        let mut cmd = map(ioas, flags, BASE + offset, length);
        cmd.iova = iova;
        self.call(abi::IOAS_MAP, &mut cmd)
    }

    fn unmap(&self, ioas: u32, iova: u64, length: u64) -> Result<u64> {
        let mut cmd = abi::IoasUnmap { size: 24, ioas_id: ioas, iova, length };
        self.call(abi::IOAS_UNMAP, &mut cmd)?;
        Ok(cmd.length)
    }

    fn device(&self) -> Bound {
        self.context.bind(&self.machine.endpoint()).unwrap()
    }
}

const RW: u32 = abi::IOAS_MAP_WRITEABLE | abi::IOAS_MAP_READABLE;

fn map(ioas_id: u32, flags: u32, user_va: u64, length: u64) -> abi::IoasMap {
    abi::IoasMap { size: 40, flags, ioas_id, __reserved: 0, user_va, length, iova: 0 }
}
