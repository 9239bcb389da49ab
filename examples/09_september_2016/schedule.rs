//! The schedules of lessons 9 and 10: who reads when, and when the kernel is done.

use std::rc::Rc;

use coralio_aio::policy::Policy;
use coralio_aio::{AioContext, CoMutex};

use crate::lesson::{Disk, attach, coroutine, kernel, read, run_loop};

/// A reads, and its request is done before submit returns.
pub fn a_alone<P: Policy>(_context: &AioContext) {
    let kernel = kernel();
    kernel.complete_on_submit(0, 0);
    let disk: Disk<P> = attach(&kernel, 8);
    coroutine("A", move || _ = read(&disk, 0)).enter();
}

/// X and Y read under a lock that only one of them can have, and A reads.
///
/// Request 0 is of X, 1 of A, 2 of Y: in the order in which they are submitted. X's is done when A submits, and A's when Y does.
pub fn three_and_a_lock<P: Policy>(context: &AioContext) {
    let kernel = kernel();
    kernel.complete_on_submit(0, 1);
    kernel.complete_on_submit(1, 2);
    let disk: Disk<P> = attach(&kernel, 8);
    let reader = |name, lock: Option<Rc<CoMutex<()>>>| {
        let disk = disk.clone();
        coroutine(name, move || {
            let _guard = lock.as_deref().map(CoMutex::lock);
            read(&disk, 0);
        })
    };
    let lock = Rc::new(CoMutex::new(()));
    let a = reader("A", None);
    let (x, y) = (reader("X", Some(Rc::clone(&lock))), reader("Y", Some(lock)));
    x.enter(); // has the lock, and reads
    y.enter(); // waits for the lock
    a.enter();
    run_loop(context, &[a, x, y]);
}
