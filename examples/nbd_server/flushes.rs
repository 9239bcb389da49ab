//! Groups the flushes of one image: at most one runs at a time, and the requests that arrive
//! meanwhile share the next one.
//!
//! A flush covers the writes that completed before it began. It begins after all requests of its
//! group have arrived, so it covers the writes that each of them must cover. A client that sends an
//! endless stream of flushes causes at most two at a time.

use std::cell::{OnceCell, RefCell};
use std::io;
use std::rc::Rc;

use coralio::CoMutex;
use coralio_qcow2::Image;

/// The result of a group's flush, copied to each of its requests: error kind and text.
type Outcome = Result<(), (io::ErrorKind, String)>;

/// The requests that share one flush.
#[derive(Default)]
struct Group(OnceCell<Outcome>);

/// Groups the flushes of one image on one thread.
pub struct Flushes {
    running: CoMutex<()>,
    /// The group whose flush has not begun.
    next: RefCell<Option<Rc<Group>>>,
}

impl Default for Flushes {
    fn default() -> Flushes {
        Flushes { running: CoMutex::new(()), next: RefCell::default() }
    }
}

impl Flushes {
    /// Flushes `image`, sharing the flush with all other waiting requests.
    ///
    /// # Errors
    ///
    /// The error of the flush, for each request of its group.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn flush(&self, image: &dyn Image) -> io::Result<()> {
        let group = Rc::clone(self.next.borrow_mut().get_or_insert_default());
        let _running = self.running.lock();
        if group.0.get().is_none() {
            // If an earlier member of the group was cancelled, a later group may have formed; leave
            // that one in place.
            let is_next = self.next.borrow().as_ref().is_some_and(|next| Rc::ptr_eq(next, &group));
            if is_next {
                self.next.take();
            }
            let outcome = image.flush().map_err(|error| (error.kind(), error.to_string()));
            // Cannot be set already: the mutex is held.
            let _ = group.0.set(outcome);
        }
        let outcome = group.0.get().expect("set above, or by an earlier member of the group");
        outcome.clone().map_err(|(kind, text)| io::Error::new(kind, text))
    }
}
