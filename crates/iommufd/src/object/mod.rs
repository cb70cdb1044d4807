//! Objects: what a client makes by calls and names by ids.
//!
//! The storey knows no kind of object: each says for itself what keeps it and what it takes with it
//! when it goes, as in Linux the `destroy` of its `struct iommufd_object_ops` does. Whoever keeps
//! an object from being destroyed has a [`Held`]; DESTROY is refused while there is one. Linux:
//! `drivers/iommu/iommufd/main.c`.

mod table;

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use table::{Reservation, Table, typed};

/// The id of an object, and how many keep it from being destroyed.
#[derive(Debug)]
pub(crate) struct Head {
    id: u32,
    holders: AtomicU32,
}

impl Head {
    pub(crate) fn new(id: u32) -> Self {
        Self { id, holders: AtomicU32::new(0) }
    }

    /// The head of an object that is in no table.
    pub(crate) fn outside() -> Self {
        Self::new(0)
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn holders(&self) -> u32 {
        self.holders.load(Ordering::Acquire)
    }
}

/// Something with an id in a [`Table`].
pub(crate) trait Object: Any + fmt::Debug + Send + Sync {
    fn head(&self) -> &Head;

    /// Whether something else than its holders keeps it. Asked by who would destroy it, last and
    /// under the lock of the table: an object that is not busy is gone.
    fn is_busy(&self) -> bool {
        false
    }

    /// What it takes with it once it is out of the table. Never fails.
    fn retire(self: Arc<Self>) {}

    /// Whether it holds the context it is in, which therefore never goes by itself: the close of
    /// the file destroys it.
    fn holds_context(&self) -> bool {
        false
    }
}

/// An object of a type that calls ask for.
pub(crate) trait Tracked: Object + Sized {
    /// What a failed lookup says.
    const ABSENT: &'static str;
}

/// An object that cannot be destroyed meanwhile.
pub(crate) struct Held<T: Object + ?Sized>(Arc<T>);

impl<T: Object + ?Sized> Held<T> {
    /// Holds an object that somebody else holds already, or that is not published yet.
    pub(crate) fn new(object: &Arc<T>) -> Self {
        Self::of(Arc::clone(object))
    }

    /// The same of an object that is handed over.
    #[inline]
    pub(crate) fn of(object: Arc<T>) -> Self {
        object.head().holders.fetch_add(1, Ordering::AcqRel);
        Self(object)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.head().id
    }

    pub(crate) fn arc(&self) -> &Arc<T> {
        &self.0
    }
}

impl Held<dyn Object> {
    /// The same as what it is, if that is a `T`.
    pub(crate) fn as_a<T: Object>(&self) -> Option<Held<T>> {
        let object: Arc<dyn Any + Send + Sync> = Arc::<dyn Object>::clone(&self.0);
        object.downcast().ok().map(Held::of)
    }
}

impl<T: Object + ?Sized> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl<T: Object + ?Sized> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Object + ?Sized> Drop for Held<T> {
    fn drop(&mut self) {
        self.0.head().holders.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<T: Object + ?Sized> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The id only: objects hold each other, and printing all of them does not end.
        write!(f, "object {}", self.id())
    }
}
