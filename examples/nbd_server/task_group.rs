//! A group of coroutines that is cancelled and joined together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use coralio::JoinHandle;
use coralio::coroutine::Coroutine;
use coralio::task::shield;

/// The coroutines of the group that have not ended.
#[derive(Clone, Default)]
pub struct TaskGroup(Rc<Members>);

#[derive(Default)]
struct Members {
    tasks: RefCell<BTreeMap<u64, JoinHandle<()>>>,
    serial: Cell<u64>,
}

impl TaskGroup {
    /// Runs `work` in a new coroutine. Drops `work` if there is no memory for a coroutine.
    pub fn spawn(&self, name: &'static str, work: impl FnOnce() + 'static) {
        struct RemoveOnDrop(Rc<Members>, u64);
        impl Drop for RemoveOnDrop {
            fn drop(&mut self) {
                let gone = self.0.tasks.borrow_mut().remove(&self.1);
                drop(gone);
            }
        }
        let serial = self.0.serial.replace(self.0.serial.get() + 1);
        let remove_on_drop = RemoveOnDrop(Rc::clone(&self.0), serial);
        let spawned = Coroutine::builder().name(name).spawn(move || {
            let _remove_on_drop = remove_on_drop;
            work();
        });
        if let Ok(handle) = spawned {
            self.0.tasks.borrow_mut().insert(serial, handle);
        }
    }

    /// Returns the serial number of the next coroutine.
    pub fn next_serial(&self) -> u64 {
        self.0.serial.get()
    }

    /// Cancels the coroutines with serial numbers below `serial`.
    pub fn cancel_before(&self, serial: u64) {
        self.0.tasks.borrow().range(..serial).for_each(|(_, handle)| handle.cancel());
    }

    /// Cancels all coroutines and waits until they have ended.
    pub fn shutdown(&self) {
        let all = self.0.tasks.take();
        all.values().for_each(JoinHandle::cancel);
        for handle in all.into_values() {
            // A panic was reported when it happened.
            let _ = shield(|| handle.join());
        }
    }
}
