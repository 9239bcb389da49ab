//! S1: a lock is released where it was taken.
use coralio_runtime::CoMutex;

fn main() {
    let lock = CoMutex::new(7);
    let guard = lock.try_lock().unwrap();
    std::thread::scope(|s| {
        s.spawn(move || drop(guard)); //~ cannot be sent between threads
    });
}
