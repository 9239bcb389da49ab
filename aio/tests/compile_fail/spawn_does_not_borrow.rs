//! C9: a spawned coroutine may outlive the frame that spawned it.
use coralio_runtime::{AioContext, spawn};

fn main() {
    AioContext::run(|_| {
        let mut buffer = [0; 8];
        let task = spawn(|| buffer[0] = 1); //~ E0373
        task.join().unwrap();
    });
}
