//! C7: the result lies on the coroutine's stack, which is its home's.
use coralio_runtime::{AioContext, spawn};

fn main() {
    AioContext::run(|_| {
        let task = spawn(|| 7);
        std::thread::spawn(move || task.join());
    });
}
