//! What stands for `order` where the order of locks is not checked: nothing.

#[derive(Clone, Copy, Debug)]
pub(super) struct Class;

#[derive(Debug)]
pub(super) struct Held;

impl Class {
    pub(super) const fn here() -> Self {
        Self
    }

    pub(super) const fn check(self) {}

    pub(super) const fn hold(self) -> Held {
        Held
    }
}

impl Held {
    pub(super) const fn class(&self) -> Class {
        Class
    }
}
