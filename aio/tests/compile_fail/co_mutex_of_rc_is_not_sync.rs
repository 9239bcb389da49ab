//! S1: a lock hands its value from thread to thread, so the value must be Send.
use coralio_runtime::CoMutex;
use std::rc::Rc;

fn main() {
    let lock = CoMutex::new(Rc::new(7));
    std::thread::scope(|s| {
        s.spawn(|| drop(lock.try_lock())); //~ cannot be sent between threads
    });
}
