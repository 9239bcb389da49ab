//! E9: only a context's loop can call `sleep` of its source: the token stays on the loop's thread.
use std::os::fd::BorrowedFd;

use coralio_runtime::{AioContext, HomeToken};

fn sleeps_on_another_thread(context: &AioContext, other: BorrowedFd<'static>, token: HomeToken<'_>) {
    let source = context.source().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| source.sleep(token, other, None)); //~ cannot be shared between threads
    });
}

fn main() {
    let made = HomeToken {}; //~ private fields
}
