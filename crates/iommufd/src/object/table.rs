//! The objects of one context, by their ids.
//!
//! An id is reserved first and published last: between the two the object is invisible and a
//! failure leaves nothing. Ids are the lowest free ones from 1. A lookup and the removal by DESTROY
//! exclude each other, so that no call works on an object that is gone.
//!
//! `Table::slots` is a leaf lock; objects are dropped after it is released.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use ioasis_sys::sync::Mutex;
use ioasis_uapi::Result;

use super::{Held, Object, Tracked};
use crate::inject::step;

#[derive(Debug)]
enum Slot {
    Free,
    Reserved,
    Live(Arc<dyn Object>),
    /// Destroyed, but the id is never given out again.
    Tombstone,
}

#[derive(Debug, Default)]
struct Slots {
    /// Slot of id 1 first.
    slots: Vec<Slot>,
    free: BinaryHeap<Reverse<u32>>,
}

/// Objects one context may have. Linux has no limit but the memory charged to the client; ours is
/// the supervisor's.
const OBJECTS_MAX: usize = 1 << 16;

/// The objects of one context.
#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: Mutex<Slots>,
}

/// `object` as what it is, if that is a `T`.
#[inline]
pub(crate) fn typed<T: Tracked>(object: &Arc<dyn Object>) -> Option<Arc<T>> {
    // A lookup is 40 of the 1 700 instructions of a map: the type is asked once, and the count of
    // the Arc moved once.
    let object: Arc<dyn Any + Send + Sync> = Arc::<dyn Object>::clone(object);
    object.downcast().ok()
}

fn index(id: u32) -> Option<usize> {
    usize::try_from(id.checked_sub(1)?).ok()
}

impl Table {
    /// Takes the lowest free id.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when there are too many objects.
    pub(crate) fn reserve(self: &Arc<Self>) -> Result<Reservation> {
        step("an object")?;
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        let id = match slots.free.pop() {
            Some(Reverse(id)) => id,
            None if slots.slots.len() == OBJECTS_MAX => {
                return refuse!(ENOMEM, "the context has as many objects as it can hold");
            }
            None => {
                slots.slots.push(Slot::Free);
                // Room for every id, so that giving one back never allocates.
                slots.free.reserve(slots.slots.len());
                u32::try_from(slots.slots.len()).expect("the number of objects is limited")
            }
        };
        slots.slots[index(id).expect("ids start at 1")] = Slot::Reserved;
        Ok(Reservation { table: Arc::clone(self), id, published: false })
    }

    /// The object `id`, held.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is none, or one of another type.
    pub(crate) fn get<T: Tracked>(&self, id: u32) -> Result<Held<T>> {
        let slots = self.slots.lock();
        match slots.live(id).and_then(typed) {
            Some(object) => Ok(Held::of(object)),
            None => refuse!(ENOENT, T::ABSENT, u64::from(id)),
        }
    }

    /// The object `id` of any type, held.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is none.
    pub(crate) fn any(&self, id: u32) -> Result<Held<dyn Object>> {
        let slots = self.slots.lock();
        match slots.live(id) {
            Some(object) => Ok(Held::new(object)),
            None => refuse!(ENOENT, "no object has this id", u64::from(id)),
        }
    }

    /// Looks at the object `id` without holding it.
    #[cfg(test)]
    pub(crate) fn inspect<R>(&self, id: u32, with: impl FnOnce(&dyn Object) -> R) -> Result<R> {
        let slots = self.slots.lock();
        match slots.live(id) {
            Some(object) => Ok(with(&**object)),
            None => refuse!(ENOENT, "no object has this id", u64::from(id)),
        }
    }

    /// Removes an object that nobody holds; it is the caller's now.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is none, `EBUSY` when somebody holds it.
    pub(crate) fn remove(&self, id: u32) -> Result<Arc<dyn Object>> {
        let mut slots = self.slots.lock();
        let Some(object) = slots.live(id) else {
            return refuse!(ENOENT, "no object has this id", u64::from(id));
        };
        // The object itself is asked last: a queue that may stop has begun to.
        let is_busy = object.head().holders() > 0 || object.is_busy();
        if is_busy {
            return refuse!(
                EBUSY,
                "another object or a call in flight uses the object",
                u64::from(id)
            );
        }
        Ok(slots.take(id, Slot::Free))
    }

    /// Removes the object behind `held`, if nobody else holds it.
    pub(crate) fn remove_held<T: Tracked>(&self, held: Held<T>) -> Option<Arc<T>> {
        let mut slots = self.slots.lock();
        // Nobody finds it without the lock, and so it is never there without a holder.
        let alone = held.head().holders() == 1;
        let removed = alone.then(|| {
            let object = slots.take(held.id(), Slot::Free);
            (object, Arc::clone(held.arc()))
        });
        drop(slots);
        drop(held);
        removed.map(|(_, object)| object)
    }

    /// Removes `object`, if it is still there, and keeps its id from being used again.
    pub(crate) fn entomb<T: Tracked>(
        &self,
        id: u32,
        object: impl FnOnce(&T) -> bool,
    ) -> Option<Arc<T>> {
        let mut slots = self.slots.lock();
        let found = slots.live(id).and_then(typed).filter(|found| object(found))?;
        let buried = slots.take(id, Slot::Tombstone);
        drop(slots);
        drop(buried);
        Some(found)
    }

    /// Removes an object that only its owner holds, whatever its holders.
    pub(crate) fn evict(&self, id: u32) -> Arc<dyn Object> {
        self.slots.lock().take(id, Slot::Free)
    }

    /// Whether there is nothing: no object, no reservation, no id that is kept.
    pub(crate) fn is_empty(&self) -> bool {
        let slots = self.slots.lock();
        slots.free.len() == slots.slots.len()
    }

    /// The ids of all objects, ascending.
    pub(crate) fn ids(&self) -> Vec<u32> {
        let slots = self.slots.lock();
        slots.objects().map(|object| object.head().id()).collect()
    }

    /// The ids of the objects that hold their context.
    pub(crate) fn holders_of_context(&self) -> Vec<u32> {
        let slots = self.slots.lock();
        let holders = slots.objects().filter(|object| object.holds_context());
        holders.map(|object| object.head().id()).collect()
    }

    /// What `seen` makes of each object, by ascending id. None of them is held, and none goes
    /// meanwhile: `seen` waits for no lock, and keeps nothing that holds another object.
    pub(crate) fn look<R>(&self, seen: impl FnMut(&Arc<dyn Object>) -> R) -> Vec<R> {
        let slots = self.slots.lock();
        slots.objects().map(seen).collect()
    }

    /// All objects of one type, held, by ascending id.
    pub(crate) fn all<T: Tracked>(&self) -> Vec<Held<T>> {
        let slots = self.slots.lock();
        slots.objects().filter_map(typed).map(Held::of).collect()
    }
}

impl Slots {
    fn objects(&self) -> impl Iterator<Item = &Arc<dyn Object>> {
        self.slots
            .iter()
            .filter_map(|slot| if let Slot::Live(object) = slot { Some(object) } else { None })
    }

    fn live(&self, id: u32) -> Option<&Arc<dyn Object>> {
        match self.slots.get(index(id)?)? {
            Slot::Live(object) => Some(object),
            Slot::Free | Slot::Reserved | Slot::Tombstone => None,
        }
    }

    fn take(&mut self, id: u32, with: Slot) -> Arc<dyn Object> {
        let free = matches!(with, Slot::Free);
        let slot = &mut self.slots[index(id).expect("ids start at 1")];
        let Slot::Live(object) = std::mem::replace(slot, with) else {
            unreachable!("only a live object is removed");
        };
        if free {
            self.free.push(Reverse(id));
        }
        object
    }
}

/// An id that is taken and has no object yet. Dropping it gives the id back.
#[derive(Debug)]
pub(crate) struct Reservation {
    table: Arc<Table>,
    id: u32,
    published: bool,
}

impl Reservation {
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Makes `object` visible. Cannot fail.
    pub(crate) fn publish(mut self, object: Arc<dyn Object>) {
        assert_eq!(
            object.head().id(),
            self.id,
            "an object carries the id that was reserved for it"
        );
        let mut slots = self.table.slots.lock();
        let slot = &mut slots.slots[index(self.id).expect("ids start at 1")];
        assert!(matches!(slot, Slot::Reserved), "a reserved slot is empty");
        *slot = Slot::Live(object);
        self.published = true;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.published {
            let mut slots = self.table.slots.lock();
            slots.slots[index(self.id).expect("ids start at 1")] = Slot::Free;
            slots.free.push(Reverse(self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::hw::machine::Machine;
    use crate::ioas::Ioas;
    use crate::object::Head;
    use ioasis_uapi::Errno;

    fn ioas(reservation: Reservation) -> u32 {
        let id = reservation.id();
        reservation.publish(Arc::new(Ioas::new(&Machine::new(), Head::new(id))));
        id
    }

    #[test]
    fn ids_are_the_lowest_free_ones_from_one() {
        let table = Arc::new(Table::default());
        let ids: Vec<u32> = (0..4).map(|_| ioas(table.reserve().unwrap())).collect();
        assert_eq!(ids, [1, 2, 3, 4]);
        table.remove(3).unwrap();
        table.remove(2).unwrap();
        assert_eq!(ioas(table.reserve().unwrap()), 2);
        assert_eq!(ioas(table.reserve().unwrap()), 3);
        assert_eq!(ioas(table.reserve().unwrap()), 5);
    }

    #[test]
    fn a_reservation_is_invisible_and_gives_its_id_back() {
        let table = Arc::new(Table::default());
        let reservation = table.reserve().unwrap();
        assert_eq!(table.get::<Ioas>(1).unwrap_err().errno, Errno::ENOENT);
        assert_eq!(table.remove(1).unwrap_err().errno, Errno::ENOENT);
        assert!(!table.is_empty());
        drop(reservation);
        assert!(table.is_empty());
        assert_eq!(table.reserve().unwrap().id(), 1);
    }

    #[test]
    fn a_held_object_is_not_destroyed() {
        let table = Arc::new(Table::default());
        let id = ioas(table.reserve().unwrap());
        let held = table.get::<Ioas>(id).unwrap();
        assert_eq!(table.remove(id).unwrap_err().errno, Errno::EBUSY);
        drop(held);
        assert!(table.remove(id).is_ok());
    }

    #[test]
    fn a_kept_id_is_not_given_out_again() {
        let table = Arc::new(Table::default());
        let id = ioas(table.reserve().unwrap());
        assert!(table.entomb(id, |_: &Ioas| false).is_none());
        assert!(table.entomb(id, |_: &Device| true).is_none());
        assert!(table.entomb(id, |_: &Ioas| true).is_some());
        assert_eq!(table.remove(id).unwrap_err().errno, Errno::ENOENT);
        assert!(table.entomb(id, |_: &Ioas| true).is_none());
        assert!(!table.is_empty());
        assert_eq!(table.reserve().unwrap().id(), id + 1);
    }

    #[test]
    fn the_last_holder_takes_the_object_with_it_and_no_other_does() {
        let table = Arc::new(Table::default());
        let id = ioas(table.reserve().unwrap());
        let [one, other] = [0, 1].map(|_| table.get::<Ioas>(id).unwrap());
        assert!(table.remove_held(one).is_none());
        assert!(table.remove_held(other).is_some());
        assert_eq!(table.get::<Ioas>(id).unwrap_err().errno, Errno::ENOENT);
    }
}
