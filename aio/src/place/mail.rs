//! Cancellations posted to the thread that owns the engine.
//!
//! ```text
//!   sender                               the engine's thread, before it sleeps in place
//!   ------                               ---------------------------------------------------------
//!   the key is put, `has_mail` is set    `asleep` is set
//!   fence                                fence
//!   asleep?  has the kernel cancel       has_mail?  reads the mail, and does not sleep
//! ```
//!
//! Each side writes its flag before it reads the other's, with a sequentially consistent fence in
//! between: at least one of the two sees the other's flag, so the sender and the sleeper never both
//! wait for the other to cancel the request.
//! `tests/loom_mail.rs` checks this file on the model checker.

use std::sync::PoisonError;

use super::atomic::{AtomicBool, Mutex, MutexGuard, Ordering, fence};

pub(crate) struct Mail {
    /// Keys of requests, oldest first.
    keys: Mutex<Vec<u64>>,
    /// Whether there are any. Written under the mutex.
    has_mail: AtomicBool,
    /// A thread sleeps in place, with the engine's lock: it reads no mail before something completes.
    asleep: AtomicBool,
}

impl Mail {
    pub(crate) fn new() -> Mail {
        Mail { keys: Mutex::new(Vec::new()), has_mail: AtomicBool::new(false), asleep: AtomicBool::new(false) }
    }

    fn keys(&self) -> MutexGuard<'_, Vec<u64>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a key. Afterwards the caller looks where the engine is, or whether a thread [is asleep](Self::is_asleep).
    pub(crate) fn put(&self, key: u64) {
        {
            let mut keys = self.keys();
            keys.push(key);
            // Relaxed: the fence orders it before the caller's look.
            self.has_mail.store(true, Ordering::Relaxed);
        }
        // Pairs with the fences in `sleep` and in `Place::go`.
        fence(Ordering::SeqCst);
    }

    /// Takes the oldest key.
    pub(crate) fn take(&self) -> Option<u64> {
        let mut keys = self.keys();
        let key = (!keys.is_empty()).then(|| keys.remove(0));
        if keys.is_empty() {
            self.has_mail.store(false, Ordering::Relaxed);
        }
        key
    }

    /// Relaxed: a loop's last look comes after the fence of its way to sleep; an earlier look may miss a key.
    #[inline]
    pub(crate) fn is_there(&self) -> bool {
        self.has_mail.load(Ordering::Relaxed)
    }

    /// Runs `sleep`, which sleeps in place, under the engine's lock. Returns false, and does not run it, if there is mail to be
    /// read first.
    pub(crate) fn sleep(&self, sleep: impl FnOnce()) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `put`: the key is seen here, or its sender sees that this thread sleeps.
        fence(Ordering::SeqCst);
        let may_sleep = !self.is_there();
        if may_sleep {
            sleep();
        }
        self.asleep.store(false, Ordering::Relaxed);
        may_sleep
    }

    /// Whether a thread sleeps in place. To be asked after [`put`](Self::put).
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
}
