//! What the lock-free parts are made of, with loom's atomics for the real ones. Those cannot be made in a `const fn`; these
//! are made at their first use, which must be the first thread's.

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

/// Two threads that spin and let each other run in turn are an execution without end to loom: models in which that can
/// happen have two threads only.
pub(crate) struct Backoff;

impl Backoff {
    pub(crate) fn new() -> Backoff {
        Backoff
    }

    pub(crate) fn snooze(&self) {
        loom::thread::yield_now();
    }
}
