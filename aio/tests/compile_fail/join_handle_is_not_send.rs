//! C7: the result is on the coroutine's stack, which belongs to its home thread.
use coralio_runtime::{AioContext, spawn};

fn main() {
    AioContext::run(|_| {
        let task = spawn(|| 7);
        std::thread::spawn(move || task.join()); //~ cannot be sent between threads
    });
}
