//! The schedules of lessons 9 and 10: the order of the reads and of their completions.

use std::rc::Rc;

use coralio::context::AioContext;
use coralio::engine::guards::Guards;
use coralio::sync::CoMutex;

use super::lesson::{Disk, attach, backend, coroutine, read, run_loop, say};

/// Runs A, whose read completes before submit returns.
pub fn a_alone<G: Guards>(_context: &AioContext) {
    let backend = backend();
    backend.complete_on_submit(0, 0);
    let disk: Disk<G> = attach(&backend, 8);
    coroutine("A", move || _ = read(&disk, 0)).enter();
}

/// Runs X and Y, which read while they hold one `CoMutex`, and A, which reads without it.
///
/// Request 0 is X's, 1 is A's, 2 is Y's, in the order of submission. X's completes when A submits,
/// and A's when Y submits.
pub fn three_and_a_lock<G: Guards>(context: &AioContext) {
    let backend = backend();
    backend.complete_on_submit(0, 1);
    backend.complete_on_submit(1, 2);
    let disk: Disk<G> = attach(&backend, 8);
    let reader = |name, lock: Option<Rc<CoMutex<()>>>| {
        let disk = disk.clone();
        coroutine(name, move || {
            let guard = lock.as_deref().map(CoMutex::lock);
            if guard.is_some() {
                say("owns the lock");
            }
            read(&disk, 0);
            if guard.is_some() {
                say("drops its guard");
            }
        })
    };
    let lock = Rc::new(CoMutex::new(()));
    let a = reader("A", None);
    let (x, y) = (reader("X", Some(Rc::clone(&lock))), reader("Y", Some(lock)));
    x.enter(); // takes the lock, and reads
    y.enter(); // waits for the lock
    a.enter();
    run_loop(context, &[a, x, y]);
}
