//! A context that ends while coroutines are suspended: they are unwound, and every handle reports
//! that they have ended. With `panic = "abort"` they cannot be unwound; `tests/panic_abort.rs`
//! builds and runs this program that way.

use std::sync::atomic::{AtomicU32, Ordering};

use coralio_runtime::{AioContext, Cancelled, Coroutine, spawn, suspend, yield_now};

static UNWOUND: AtomicU32 = AtomicU32::new(0);
static WENT_ON: AtomicU32 = AtomicU32::new(0);

struct OnDrop;

impl Drop for OnDrop {
    fn drop(&mut self) {
        UNWOUND.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for longer than the program runs.
fn wait(how: fn()) {
    let _on_drop = OnDrop;
    how();
    WENT_ON.fetch_add(1, Ordering::Relaxed);
}

fn main() {
    let (suspended, waker, ready, task) = AioContext::run(|ctx| {
        let suspended = Coroutine::new(|| wait(suspend));
        let task = spawn(|| wait(suspend));
        ctx.poll(false);
        let ready = Coroutine::new(|| wait(yield_now));
        suspended.enter();
        ready.enter();
        (suspended, suspended.waker(), ready, task)
    });
    println!("unwound: {}", UNWOUND.load(Ordering::Relaxed));
    // A later context of the same thread.
    AioContext::run(|ctx| {
        for co in [suspended, ready] {
            co.wake();
            waker.wake();
            println!("{co}: {}", co.try_enter().expect_err("it has ended"));
        }
        assert!(task.is_finished(), "to join it would take for ever");
        let joined = task.join();
        println!("joined: {}", joined.is_err_and(|payload| payload.is::<Cancelled>()));
        let other = spawn(|| 7);
        while ctx.poll(false) {}
        println!("another: {}", other.join().expect("it does not panic"));
    });
    println!("went on: {}", WENT_ON.load(Ordering::Relaxed));
}
