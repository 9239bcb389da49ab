//! Runs coroutines that do the same work until it is complete or one of them fails.

use std::cell::RefCell;
use std::io;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio::Coroutine;

/// The first error of a group. The other coroutines check it and stop.
#[derive(Default)]
pub struct FirstError(RefCell<Option<io::Error>>);

impl FirstError {
    pub fn is_there(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// Runs `work` on the shared state in this number of coroutines, until all have ended. Returns the
/// first error, if any.
pub fn join_all<T: 'static>(
    coroutines: u64,
    shared: &Rc<T>,
    first_error: fn(&T) -> &FirstError,
    work: fn(&T) -> io::Result<()>,
) -> io::Result<()> {
    let start = |_| {
        let shared = Rc::clone(shared);
        Coroutine::builder().spawn(move || {
            if let Err(error) = work(&shared) {
                first_error(&shared).0.borrow_mut().get_or_insert(error);
            }
        })
    };
    let started: io::Result<Vec<_>> = (0..coroutines).map(start).collect();
    for coroutine in started? {
        coroutine.join().unwrap_or_else(|panic| resume_unwind(panic));
    }
    first_error(shared).0.take().map_or(Ok(()), Err)
}
