//! Exercise 8: a permit that is given back.

use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use coralio::coroutine::Coroutine;
use coralio::simulate::{Faults, Sim, Simulation};
use coralio::sync::Notify;
use coralio::task::Cancelled;

use super::{Judged, join, judge_on, pause, say, spawn};

/// Runs `read` while it holds a permit. Returns its result, or the error of waiting for a permit.
pub type WithPermit = fn(&Permits, &dyn Fn() -> io::Result<usize>) -> io::Result<usize>;

/// A number of permits.
pub struct Permits {
    free: Cell<u32>,
    holders: RefCell<Vec<Coroutine>>,
    returned: Notify,
}

impl Permits {
    /// Takes a permit; waits while there is none.
    ///
    /// # Errors
    ///
    /// The coroutine was cancelled; it has no permit.
    pub fn acquire(&self) -> Result<(), Cancelled> {
        self.returned.wait_until(|| self.free.get() > 0)?;
        self.free.set(self.free.get() - 1);
        self.holders.borrow_mut().extend(Coroutine::current());
        say(format!("takes a permit, leaves {}", self.free.get()));
        Ok(())
    }

    /// Gives a permit back.
    pub fn release(&self) {
        let mut holders = self.holders.borrow_mut();
        let place = holders.iter().position(|holder| Coroutine::current() == Some(*holder));
        holders.remove(place.expect("a coroutine gives back a permit that it does not have."));
        self.free.set(self.free.get() + 1);
        say(format!("gives a permit back: {}", self.free.get()));
        self.returned.notify_one();
    }
}

/// The payload of a read that panics.
struct ReadPanics;

/// A, B and C read with one permit; one of them may be cancelled at any moment, and reads may fail
/// or panic.
pub fn is_correct(with_permit: WithPermit) -> Judged {
    let machine = Simulation::new().faults(Faults::none().errors(0.1).cancelled(0.5));
    judge_on(&machine, |sim: &Sim| {
        let file = Rc::new(sim.create("file", 4096));
        let permits = Rc::new(Permits { free: Cell::new(1), holders: RefCell::default(), returned: Notify::new() });
        let reading = Rc::new(Cell::new(0));
        let readers = ["A", "B", "C"].map(|name| {
            let (file, permits, reading) = (Rc::clone(&file), Rc::clone(&permits), Rc::clone(&reading));
            let sim = sim.clone();
            spawn(name, move || {
                let read = || {
                    reading.set(reading.get() + 1);
                    assert!(permits.free.get() == 0, "{name} reads, and has no permit: all of them are free.");
                    assert!(reading.get() == 1, "{name} reads while another coroutine does, with one permit.");
                    let result = file.read_at(&mut [0; 512], 0);
                    reading.set(reading.get() - 1);
                    if sim.choose(10) == 1 {
                        say("the read panics");
                        resume_unwind(Box::new(ReadPanics));
                    }
                    result
                };
                match catch_unwind(AssertUnwindSafe(|| with_permit(&permits, &read))) {
                    Ok(Ok(bytes)) => say(format!("has read {bytes} bytes")),
                    Ok(Err(error)) if Cancelled::is_cause_of(&error) => say("was cancelled"),
                    Ok(Err(_)) => say("the read has failed"),
                    Err(payload) if payload.is::<ReadPanics>() => {}
                    Err(payload) => resume_unwind(payload),
                }
            })
        });
        pause(sim, 3);
        if let Some(reader) = readers.get(sim.choose(4) as usize) {
            say("cancels a reader");
            reader.cancel();
        }
        // The join ends only if no permit is lost: a reader would wait for a lost permit forever.
        join(readers);
        assert!(permits.free.get() == 1, "all reads have ended, and the permit was not given back.");
    })
}
