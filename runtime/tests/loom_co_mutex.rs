//! The hand-over of a CoMutex and of a CoQueue, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_co_mutex`
//!
//! `co_mutex.rs`, `co_queue.rs` and `wait_queue.rs` are the very files that the library is built of. Each coroutine is a
//! thread of its own here: to suspend is to park, to wake is to unpark. The value lies in loom's cell, which finds two
//! holders at once, and a holder that does not see what the last one wrote; a waiter that is forgotten is a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code, unsafe_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

/// Loom's atomics cannot be made in a `const fn`; these are made at their first use, which must be the first thread's.
mod atomic {
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

    pub(crate) struct Backoff;

    impl Backoff {
        pub(crate) fn new() -> Backoff {
            Backoff
        }

        pub(crate) fn snooze(&self) {
            loom::thread::yield_now();
        }
    }
}

/// A coroutine is a thread.
mod coroutine {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    use loom::sync::{Condvar, Mutex};
    use std::sync::atomic::{AtomicBool, Ordering};

    type Flag = Arc<(Mutex<bool>, Condvar)>;

    loom::thread_local! {
        static WOKEN: Flag = Arc::new((Mutex::new(false), Condvar::new()));
        /// Each wait of this thread ends early.
        static CANCELLED: AtomicBool = AtomicBool::new(false);
        /// Done once instead of a suspension.
        static INSTEAD: Rc<RefCell<Option<Box<dyn FnOnce()>>>> = Rc::new(RefCell::new(None));
    }

    pub(crate) struct Coroutine(Flag);
    pub(crate) struct Waker(Flag);

    impl Coroutine {
        pub(crate) fn current() -> Option<Coroutine> {
            Some(Coroutine(WOKEN.with(Arc::clone)))
        }

        pub(crate) fn waker(&self) -> Waker {
            Waker(Arc::clone(&self.0))
        }

        pub(crate) fn is_cancelled(&self) -> bool {
            CANCELLED.with(|cancelled| cancelled.load(Ordering::Relaxed))
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Cancelled;

    impl Waker {
        pub(crate) fn wake_later(&self) {
            *self.0.0.lock().unwrap() = true;
            self.0.1.notify_one();
        }
    }

    pub(crate) fn instead_of_suspending(f: impl FnOnce() + 'static) {
        INSTEAD.with(|instead| instead.replace(Some(Box::new(f))));
    }

    pub(crate) fn cancel_this_thread() {
        CANCELLED.with(|cancelled| cancelled.store(true, Ordering::Relaxed));
    }

    /// What is noted for messages, of which there are none here.
    pub(crate) mod waiting {
        #[derive(Clone, Copy)]
        pub(crate) enum Waiting {
            CoMutex(*const Holder),
            CoQueue(usize),
        }

        pub(crate) struct Holder;

        impl Holder {
            pub(crate) const fn new() -> Holder {
                Holder
            }

            pub(crate) fn note(&self) {}
            pub(crate) fn clear(&self) {}
            pub(crate) fn refuse_self(&self, _what: &str) {}
        }

        pub(crate) fn suspend_for(_waiting: Waiting) {
            super::suspend();
        }
    }

    fn suspend() {
        if let Some(f) = INSTEAD.with(|instead| instead.take()) {
            return f();
        }
        let flag = WOKEN.with(Arc::clone);
        let mut woken = flag.0.lock().unwrap();
        while !*woken {
            woken = flag.1.wait(woken).unwrap();
        }
        *woken = false;
    }
}

#[path = "../src/sync"]
mod sync {
    pub(crate) mod co_mutex;
    pub(crate) mod co_queue;
    mod wait_queue;
}

use sync::co_mutex::CoMutex;
use sync::co_queue::CoQueue;

/// A counter that two threads may not touch at once.
type Counter = CoMutex<UnsafeCell<usize>>;

/// A lock whose atomics have all been used by this thread.
fn counter() -> Arc<Counter> {
    let mutex = Arc::new(CoMutex::new(UnsafeCell::new(0)));
    let guard = Box::leak(Box::new(Arc::clone(&mutex))).lock();
    coroutine::instead_of_suspending(move || drop(guard));
    drop(mutex.lock());
    mutex
}

fn increment(mutex: &Counter) {
    let guard = mutex.lock();
    // SAFETY: the lock is held, which loom checks.
    guard.with_mut(|count| unsafe { *count += 1 });
}

fn read(held: &UnsafeCell<usize>) -> usize {
    // SAFETY: as above.
    held.with(|count| unsafe { *count })
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

#[test]
fn two_take_it_in_turn() {
    // S1: two coroutines on two threads: never both at once, nobody forgotten, what one wrote the other sees
    model(|| {
        let mutex = counter();
        let other = {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || increment(&mutex))
        };
        increment(&mutex);
        increment(&mutex);
        other.join().unwrap();
        assert_eq!(read(&mutex.lock()), 3);
    });
}

#[test]
fn one_that_gives_up_passes_on_what_it_was_granted() {
    // S1, S4: a wait is cancelled while the lock is being handed over: it has it then, or the next one gets it
    model(|| {
        let mutex = counter();
        let other = {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || {
                coroutine::cancel_this_thread();
                let guard = mutex.lock_cancellable();
                usize::from(guard.is_ok_and(|guard| guard.with_mut(|count| unsafe { *count += 1 }) == ()))
            })
        };
        increment(&mutex);
        let theirs = other.join().unwrap();
        assert_eq!(read(&mutex.lock()), 1 + theirs);
    });
}

#[test]
fn three_stand_in_line() {
    // S1: nor is one forgotten that comes while the lock is being handed to another
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let mutex = counter();
        let others = [(); 2].map(|()| {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || increment(&mutex))
        });
        increment(&mutex);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(read(&mutex.lock()), 3);
    });
}

#[test]
fn a_wake_after_the_mutex_was_given_up_is_not_missed() {
    // S2: whoever changes what is waited for under the mutex, and then wakes, wakes the one that gave it up
    model(|| {
        let shared = Arc::new((counter(), CoQueue::new()));
        assert!(!shared.1.wake_one());
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                increment(&shared.0);
                shared.1.wake_one();
            })
        };
        let mut guard = shared.0.lock();
        while read(&guard) == 0 {
            guard = shared.1.wait(guard);
        }
        drop(guard);
        other.join().unwrap();
    });
}
