//! The primitives of the lock-free parts, with loom's atomics instead of the real ones. Loom's
//! cannot be created in a `const fn`; these are created at their first use, which must be on the
//! first thread.

use std::sync::OnceLock;

pub(crate) use loom::sync::atomic::Ordering;

macro_rules! lazy {
    ($name:ident, $value:ty) => {
        pub(crate) struct $name($value, OnceLock<loom::sync::atomic::$name>);

        impl $name {
            pub(crate) const fn new(value: $value) -> $name {
                $name(value, OnceLock::new())
            }

            fn inner(&self) -> &loom::sync::atomic::$name {
                self.1.get_or_init(|| loom::sync::atomic::$name::new(self.0))
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                self.inner().load(order)
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                self.inner().store(value, order);
            }

            pub(crate) fn compare_exchange(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.inner().compare_exchange(old, new, success, failure)
            }

            pub(crate) fn compare_exchange_weak(
                &self,
                old: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.inner().compare_exchange(old, new, success, failure)
            }
        }
    };
}
lazy!(AtomicBool, bool);
lazy!(AtomicU32, u32);

impl AtomicU32 {
    pub(crate) fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
        self.inner().fetch_add(value, order)
    }

    pub(crate) fn fetch_sub(&self, value: u32, order: Ordering) -> u32 {
        self.inner().fetch_sub(value, order)
    }

    pub(crate) fn fetch_and(&self, value: u32, order: Ordering) -> u32 {
        self.inner().fetch_and(value, order)
    }
}

/// To loom, two threads that spin and yield to each other are an endless execution: models in which
/// that can happen must have only two threads.
pub(crate) struct Backoff;

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff
    }

    pub(crate) fn snooze(&self) {
        loom::thread::yield_now();
    }
}
