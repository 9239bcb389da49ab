//! X8: the lock is released by the thread that took it.
use coralio_runtime::AioContext;

fn main() {
    AioContext::run(|ctx| {
        let guard = ctx.acquire();
        std::thread::scope(|s| {
            s.spawn(move || drop(guard)); //~ cannot be sent between threads
        });
    });
}
