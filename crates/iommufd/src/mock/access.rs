//! Accesses that the client drives: each is a descriptor, and what it pinned has a number.
//!
//! Lock order: `Pinned::items` -> `Access::state`.

use std::any::Any;
use std::sync::{Arc, OnceLock, Weak};

use ioasis_iommupt::{Iova, IovaRange, Prot};
use ioasis_sys::sync::Mutex;
use ioasis_uapi::iommufd as abi;
use ioasis_uapi::{Errno, Error, Result};

use super::Test;
use crate::client::PAGE_SIZE;
use crate::device::access::{Access, AccessKind, AccessUser};
use crate::inject::step;
use crate::open::AccessHandle;
use crate::pages::Way;
use crate::{ClientFile, OnExec};

/// Most bytes of one access.
const LENGTH_MAX: u64 = 16 << 20;

/// A range that is pinned.
#[derive(Clone, Copy, Debug)]
struct Item {
    id: u32,
    range: IovaRange,
}

#[derive(Debug, Default)]
struct Items {
    next: u32,
    items: Vec<Item>,
}

/// What one access has pinned.
#[derive(Debug, Default)]
struct Pinned {
    /// Gone before the access is.
    access: OnceLock<Weak<AccessHandle>>,
    items: Mutex<Items>,
}

impl Pinned {
    fn unpin(&self, item: Item) {
        if let Some(access) = self.access.get().and_then(Weak::upgrade) {
            access
                .unpin(item.range.start(), item.range.span() + 1)
                .expect("a listed range is pinned");
        }
    }
}

impl AccessUser for Pinned {
    fn unmap(&self, range: IovaRange) {
        self.items.lock().items.retain(|&item| {
            let stays = item.range.intersect(range).is_none();
            if !stays {
                self.unpin(item);
            }
            stays
        });
    }
}

/// An access and its descriptor.
#[derive(Debug)]
struct TestAccess {
    /// `None` once it is closed.
    access: Mutex<Option<Arc<AccessHandle>>>,
    pinned: Arc<Pinned>,
    pins: bool,
}

impl TestAccess {
    fn access(&self) -> Result<Arc<AccessHandle>> {
        match &*self.access.lock() {
            Some(access) => Ok(Arc::clone(access)),
            None => refuse!(EBADFD, "the access is closed"),
        }
    }
}

impl ClientFile for TestAccess {
    fn name(&self) -> &'static str {
        "anon_inode:[iommufd_test_staccess]"
    }

    fn close(&self) {
        self.pinned.unmap(IovaRange::ALL);
        // Out of the lock: it may be the last of the context.
        let access = self.access.lock().take();
        drop(access);
    }
}

/// The access behind the descriptor `fd`.
fn with_access<R>(
    test: &Test<'_>,
    fd: u32,
    with: impl FnOnce(&TestAccess) -> Result<R>,
) -> Result<R> {
    let no_access = |error| Error { errno: Errno::EBADFD, ..error };
    let file = test.call.client.installed(fd.cast_signed()).map_err(no_access)?;
    match (&*file as &dyn Any).downcast_ref::<TestAccess>() {
        Some(access) => with(access),
        None => refuse!(EBADFD, "the descriptor is no access", u64::from(fd)),
    }
}

/// The IOVA that an operation names: by itself, or as `__iommufd_test_syz_conv_iova` reads it, the
/// number of an area in the lower half and an offset in the upper, 0 where there is no such area.
fn place(access: &Access, flags: u32, iova: u64) -> Iova {
    if flags & abi::test::MOCK_FLAGS_ACCESS_SYZ == 0 {
        return Iova(iova);
    }
    convert(iova, |nth| access.nth_area(nth))
}

/// See [`place`].
pub(super) fn convert(iova: u64, nth_area: impl FnOnce(u32) -> Option<Iova>) -> Iova {
    let nth = u32::try_from(iova & u64::from(u32::MAX)).expect("the lower half");
    nth_area(nth).map_or(Iova(0), |start| Iova(start.0.wrapping_add(iova >> 32)))
}

fn check_length(length: u64) -> Result<()> {
    if length > LENGTH_MAX {
        return refuse!(ENOMEM, "more bytes than one access may have", length);
    }
    Ok(())
}

impl Test<'_> {
    pub(super) fn create_access(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdCreateAccess = self.body();
        if body.flags & !abi::test::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES != 0 {
            return refuse!(EOPNOTSUPP, "unknown flags of an access", u64::from(body.flags));
        }
        let pins = body.flags & abi::test::MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES != 0;
        step("a file")?;
        let pinned = Arc::new(Pinned::default());
        let kind = if pins {
            AccessKind::Pins(Arc::clone(&pinned) as Arc<dyn AccessUser>)
        } else {
            AccessKind::ReadWrite
        };
        let access = Arc::new(self.call.context.create_access(kind)?);
        pinned.access.set(Arc::downgrade(&access)).expect("it is set once");
        access.attach(self.cmd.id)?;
        self.call.prove_reply::<abi::test::TestCmd>()?;
        let file = TestAccess { access: Mutex::new(Some(access)), pinned, pins };
        let fd = self.call.client.install(Arc::new(file), OnExec::Close)?;
        body.out_access_fd = fd.cast_unsigned();
        self.reply(&body)?;
        Ok(0)
    }

    pub(super) fn access_replace_ioas(&self) -> Result<i64> {
        let body: abi::test::TestCmdAccessReplaceIoas = self.body();
        with_access(self, self.cmd.id, |file| {
            file.access()?.replace(body.ioas_id)?;
            Ok(0)
        })
    }

    pub(super) fn access_pages(&mut self) -> Result<i64> {
        let mut body: abi::test::TestCmdAccessPages = self.body();
        check_length(body.length)?;
        let known = abi::test::MOCK_FLAGS_ACCESS_WRITE | abi::test::MOCK_FLAGS_ACCESS_SYZ;
        if body.flags & !known != 0 {
            return refuse!(EOPNOTSUPP, "unknown flags of a pin", u64::from(body.flags));
        }
        let need = if body.flags & abi::test::MOCK_FLAGS_ACCESS_WRITE == 0 {
            Prot::READ
        } else {
            Prot::WRITE
        };
        let file = self.call.client.installed(self.cmd.id.cast_signed());
        let file = file.map_err(|error| Error { errno: Errno::EBADFD, ..error })?;
        let Some(file) = (&*file as &dyn Any).downcast_ref::<TestAccess>() else {
            return refuse!(EBADFD, "the descriptor is no access", u64::from(self.cmd.id));
        };
        if !file.pins {
            return refuse!(EOPNOTSUPP, "the access was not made to pin pages");
        }
        step("an array of pages")?;
        // Held until the range is listed, so that an unmap finds it.
        let access = file.access()?;
        let iova = place(access.access(), body.flags, body.iova);
        let mut items = file.pinned.items.lock();
        let runs = access.pin(iova, body.length, need)?;
        let id = items.next;
        let listed = self.list_pin(&mut body, iova, id, &runs);
        if let Err(error) = listed {
            access.unpin(iova, body.length).expect("it was pinned just now");
            return Err(error);
        }
        let range = IovaRange::new(iova, body.length)?;
        items.next = id.wrapping_add(1);
        items.items.push(Item { id, range });
        Ok(0)
    }

    fn list_pin(
        &mut self,
        body: &mut abi::test::TestCmdAccessPages,
        iova: Iova,
        id: u32,
        runs: &[ioasis_iommupt::Run],
    ) -> Result<()> {
        if body.uptr != 0 {
            self.compare_pages(body.uptr.wrapping_sub(iova.0 % PAGE_SIZE), runs)?;
        }
        step("a pinned range")?;
        body.out_access_pages_id = id;
        self.reply(body)
    }

    pub(super) fn destroy_access_pages(&self) -> Result<i64> {
        let body: abi::test::TestCmdDestroyAccessPages = self.body();
        with_access(self, self.cmd.id, |file| {
            let mut items = file.pinned.items.lock();
            let at = items.items.iter().position(|item| item.id == body.access_pages_id);
            let Some(at) = at else {
                let id = u64::from(body.access_pages_id);
                return refuse!(ENOENT, "the access pinned nothing under this number", id);
            };
            let item = items.items.remove(at);
            file.pinned.unpin(item);
            Ok(0)
        })
    }

    pub(super) fn access_rw(&self) -> Result<i64> {
        let body: abi::test::TestCmdAccessRw = self.body();
        check_length(body.length)?;
        let known = abi::test::MOCK_ACCESS_RW_WRITE
            | abi::test::MOCK_ACCESS_RW_SLOW_PATH
            | abi::test::MOCK_FLAGS_ACCESS_SYZ;
        if body.flags & !known != 0 {
            return refuse!(EOPNOTSUPP, "unknown flags of an access", u64::from(body.flags));
        }
        with_access(self, self.cmd.id, |file| {
            step("a buffer")?;
            let length = usize::try_from(body.length).expect("at most 16 MiB");
            let mut bytes = vec![0; length];
            let writes = body.flags & abi::test::MOCK_ACCESS_RW_WRITE != 0;
            if writes {
                self.call.client.read(body.uptr, &mut bytes)?;
            }
            let access = file.access()?;
            let iova = place(access.access(), body.flags, body.iova);
            if writes {
                let slow = body.flags & abi::test::MOCK_ACCESS_RW_SLOW_PATH != 0;
                let own = self.call.client.memory().key();
                let way = if slow { Way::Pinned } else { Way::CopiedBy(own) };
                access.access().write(iova, &bytes, way)?;
            } else {
                access.read(iova, &mut bytes)?;
                self.call.client.write(body.uptr, &bytes)?;
            }
            Ok(0)
        })
    }
}
