//! A deadlock: two coroutines, two locks, taken in opposite order. The program hangs, to be looked into:
//!
//! ```text
//! $ cargo run -p coralio-runtime --example hung &
//! hung
//! $ gdb -p $(pgrep -x hung) -x runtime/gdb/coralio.py
//! (gdb) coralio coroutines
//! (gdb) coralio bt 'alice to bob'
//! ```
//!
//! The remedy: whoever takes both locks takes them in the same order, say the account with the lower number first.

use std::rc::Rc;

use coralio_runtime::{AioContext, CoMutex, Coroutine, spawn, yield_now};

/// Moves `amount` from one account to the other. Nobody sees a state in between: both are locked.
#[inline(never)]
fn transfer(from: &CoMutex<i64>, to: &CoMutex<i64>, amount: i64) {
    let mut from = from.lock();
    yield_now(); // the other one comes to its first lock, and both have half of what they need
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
