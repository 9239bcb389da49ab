//! A deadlock: two coroutines take two locks in opposite order. The program hangs, for inspection:
//!
//! ```text
//! $ CARGO_PROFILE_DEV_DEBUG=2 cargo run -p coralio-runtime --example hung &
//! hung
//! $ gdb -p $(pgrep -x hung) -x runtime/gdb/coralio.py
//! (gdb) coralio coroutines
//! (gdb) coralio bt 'alice to bob'
//! ```
//!
//! The fix: always take both locks in the same order, for example the lower account number first.

use std::rc::Rc;

use coralio_runtime::{AioContext, CoMutex, Coroutine, spawn, yield_now};

/// Moves `amount` to the other account. Both are locked, so no intermediate state is visible.
#[inline(never)]
fn transfer(from: &CoMutex<i64>, to: &CoMutex<i64>, amount: i64) {
    let mut from = from.lock();
    yield_now(); // the other coroutine takes its first lock: each now holds one of two
    let mut to = to.lock();
    *from -= amount;
    *to += amount;
}

fn main() {
    AioContext::run(|ctx| {
        let alice = Rc::new(CoMutex::new(100));
        let bob = Rc::new(CoMutex::new(100));
        let transfers = [("alice to bob", &alice, &bob), ("bob to alice", &bob, &alice)].map(|(name, from, to)| {
            let (from, to) = (Rc::clone(from), Rc::clone(to));
            Coroutine::builder().name(name).spawn(move || transfer(&from, &to, 10)).expect("there is memory")
        });
        let both = spawn(move || {
            for transfer in transfers {
                transfer.join().expect("no panic");
            }
        });
        while ctx.poll(false) {}
        println!("hung");
        both.join().expect("no panic");
    });
}
