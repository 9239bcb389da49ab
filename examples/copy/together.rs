//! Coroutines that do the same, until all is done or one fails.

use std::cell::RefCell;
use std::io;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio_aio::Coroutine;

/// What the first who failed has met. The others look for it, and stop.
#[derive(Default)]
pub struct FirstError(RefCell<Option<io::Error>>);

impl FirstError {
    pub fn is_there(&self) -> bool {
        self.0.borrow().is_some()
    }
}

/// So many coroutines that `work` on what they share, to their ends. The first error, if there was one, is the one returned.
pub fn together<T: 'static>(
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
