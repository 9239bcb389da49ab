//! A group of coroutines that is cancelled and joined together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use coralio_aio::{Coroutine, JoinHandle, shield};

/// The coroutines of the group that have not ended.
#[derive(Clone, Default)]
pub struct Crew(Rc<Members>);

#[derive(Default)]
struct Members {
    at_work: RefCell<BTreeMap<u64, JoinHandle<()>>>,
    serial: Cell<u64>,
}

impl Crew {
    /// Runs `work` in a new coroutine. Drops `work` if there is no memory for a coroutine.
    pub fn hire(&self, name: &'static str, work: impl FnOnce() + 'static) {
        struct Leaves(Rc<Members>, u64);
        impl Drop for Leaves {
            fn drop(&mut self) {
                let gone = self.0.at_work.borrow_mut().remove(&self.1);
                drop(gone);
            }
        }
        let serial = self.0.serial.replace(self.0.serial.get() + 1);
        let leaves = Leaves(Rc::clone(&self.0), serial);
        let hired = Coroutine::builder().name(name).spawn(move || {
            let _leaves = leaves;
            work();
        });
        if let Ok(handle) = hired {
            self.0.at_work.borrow_mut().insert(serial, handle);
        }
    }

    /// Returns the serial number of the next coroutine.
    pub fn next_serial(&self) -> u64 {
        self.0.serial.get()
    }

    /// Cancels the coroutines with serial numbers below `serial`.
    pub fn cancel_before(&self, serial: u64) {
        self.0.at_work.borrow().range(..serial).for_each(|(_, handle)| handle.cancel());
    }

    /// Cancels all coroutines and waits until they have ended.
    pub fn dismiss(&self) {
        let all = self.0.at_work.take();
        all.values().for_each(JoinHandle::cancel);
        for handle in all.into_values() {
            // A panic was reported when it happened.
            let _ = shield(|| handle.join());
        }
    }
}
