//! C7: a handle stays at home; only its waker is Send.
use coralio_runtime::{AioContext, Coroutine};

fn main() {
    AioContext::run(|_| {
        let co = Coroutine::new(|| {});
        std::thread::spawn(move || co.enter()); //~ cannot be sent between threads
    });
}
