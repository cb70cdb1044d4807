//! The order in which locks are taken, checked while a debug build runs.
//!
//! Locks that are made at one place of the source are one class: all `Ioas::space` are, all `Pages::pins` are. When a
//! thread that holds a lock takes one of another class, that is an order of the two; it must never be the other way
//! round, directly or by way of others, in any thread at any time of the process. So a test finds two threads that could
//! block each other although they never met, as Linux's lockdep does.
//!
//! Invariant: what is known of orders has no circle. What would close one is a panic that names every lock of it.
//!
//! Not checked: two locks of one class (they have an order of their own, such as their addresses'), and what is taken
//! only if it is free, which blocks nobody.
//!
//! With `IOASIS_LOCK_ORDER=FILE` each order is appended to the file when it is first seen; the drawing in
//! ARCHITECTURE.md was made from it.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::panic::Location;

/// Locks that one thread holds at once, at most; what is beyond is not checked.
const MOST: usize = 32;

/// Where locks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class(&'static Location<'static>);

/// Says that the thread no longer holds a lock when it is dropped.
#[derive(Debug)]
pub(super) struct Held(Class);

thread_local! {
    /// What this thread holds, oldest first. An array, so that a child that was forked allocates nothing for it.
    static HELD: Cell<([Option<Class>; MOST], usize)> = const { Cell::new(([None; MOST], 0)) };
    /// Orders that are known, so that most locks are taken without asking [`ORDERS`].
    static SEEN: RefCell<HashSet<(Class, Class)>> = RefCell::default();
}

/// What is taken after a class. It is only ever tried: in a child that was forked while another thread had it, it stays
/// locked, and nothing is checked there.
static ORDERS: std::sync::Mutex<Option<HashMap<Class, Vec<Class>>>> = std::sync::Mutex::new(None);

impl Class {
    #[track_caller]
    pub(super) const fn here() -> Self {
        Self(Location::caller())
    }

    /// Before the thread waits for a lock of this class.
    ///
    /// # Panics
    ///
    /// If the order is the wrong way round.
    pub(super) fn check(self) {
        let Ok((held, count)) = HELD.try_with(Cell::get) else { return };
        for before in held[..count].iter().flatten().filter(|before| **before != self) {
            let known = SEEN.try_with(|seen| seen.borrow().contains(&(*before, self)));
            if known == Ok(false) && learn(*before, self) {
                let _ = SEEN.try_with(|seen| seen.borrow_mut().insert((*before, self)));
            }
        }
    }

    /// Once the thread has it.
    pub(super) fn hold(self) -> Held {
        let _ = HELD.try_with(|cell| {
            let (mut held, count) = cell.get();
            if count < MOST {
                held[count] = Some(self);
                cell.set((held, count + 1));
            }
        });
        Held(self)
    }
}

impl Held {
    pub(super) const fn class(&self) -> Class {
        self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = HELD.try_with(|cell| {
            let (mut held, count) = cell.get();
            if let Some(at) = held[..count].iter().rposition(|&class| class == Some(self.0)) {
                held[at..count].rotate_left(1);
                cell.set((held, count - 1));
            }
        });
    }
}

/// Whether the order is known from now on.
fn learn(before: Class, after: Class) -> bool {
    let Ok(mut orders) = ORDERS.try_lock() else { return false };
    let orders = orders.get_or_insert_default();
    if orders.get(&before).is_some_and(|known| known.contains(&after)) {
        return true;
    }
    if let Some(circle) = way(orders, after, before) {
        let names: Vec<_> = circle.iter().map(|class| class.0.to_string()).collect();
        panic!(
            "a lock made at {} is taken while one made at {} is held, and elsewhere it is the other way round: {}",
            after.0,
            before.0,
            names.join(" -> ")
        );
    }
    orders.entry(before).or_default().push(after);
    write_down(before, after);
    true
}

/// The classes on a way from one to another.
fn way(orders: &HashMap<Class, Vec<Class>>, from: Class, to: Class) -> Option<Vec<Class>> {
    let (mut came_from, mut open) = (HashMap::from([(from, from)]), vec![from]);
    while let Some(class) = open.pop() {
        if class == to {
            let mut way = vec![to];
            while way.last() != Some(&from) {
                way.push(came_from[&way[way.len() - 1]]);
            }
            way.reverse();
            return Some(way);
        }
        for &next in orders.get(&class).into_iter().flatten() {
            came_from.entry(next).or_insert_with(|| {
                open.push(next);
                class
            });
        }
    }
    None
}

fn write_down(before: Class, after: Class) {
    let Some(path) = std::env::var_os("IOASIS_LOCK_ORDER") else { return };
    let file = std::fs::File::options().create(true).append(true).open(path);
    // Who asked for the file sees that it is not there.
    let _ = file.and_then(|mut file| writeln!(file, "{} -> {}", before.0, after.0));
}

#[cfg(test)]
mod tests {
    use crate::sync::{Condvar, Mutex, RwLock, thread};

    /// What a thread panics with.
    fn panic_of(body: impl FnOnce() + Send) -> Option<String> {
        let ended = thread::scope(|scope| scope.spawn(body).join());
        ended.err().map(|panic| *panic.downcast::<String>().expect("a text"))
    }

    #[test]
    fn two_locks_taken_in_both_orders_are_told_although_no_thread_waited() {
        let (first, second) = (Mutex::new(()), RwLock::new(()));
        {
            let _first = first.lock();
            let _second = second.read();
        }
        let told = panic_of(|| {
            let _second = second.write();
            let _first = first.lock();
        });
        assert!(told.is_some_and(|text| text.contains("the other way round")));
    }

    #[test]
    fn a_circle_of_three_is_told_and_names_each() {
        let (first, second, third) = (Mutex::new(1), Mutex::new(2), Mutex::new(3));
        let both = |a: &Mutex<i32>, b: &Mutex<i32>| {
            let _a = a.lock();
            let _b = b.lock();
        };
        both(&first, &second);
        both(&second, &third);
        let text = panic_of(|| both(&third, &first)).expect("it is refused");
        assert_eq!(text.matches(" -> ").count(), 2, "{text}");
    }

    #[test]
    fn one_order_locks_of_one_class_and_tried_locks_are_no_fault() {
        let locks: Vec<_> = (0..2).map(Mutex::new).collect();
        let outer = Mutex::new(());
        for way in [[0, 1], [1, 0]] {
            let _outer = outer.lock();
            let [_a, _b] = way.map(|at: usize| locks[at].lock());
        }
        let _held = locks[0].lock();
        assert!(outer.try_lock().is_some());
    }

    #[test]
    fn a_lock_that_a_wait_has_given_back_counts_again_after_it() {
        let (waited, other, condvar) = (Mutex::new(()), Mutex::new(()), Condvar::new());
        let guard = waited.lock();
        let (guard, _) = condvar.wait_timeout(guard, std::time::Duration::from_millis(1));
        drop(other.lock());
        drop(guard);
        let told = panic_of(|| {
            let _other = other.lock();
            let _waited = waited.lock();
        });
        assert!(told.is_some());
    }
}
