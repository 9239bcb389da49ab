//! The crash test. In each of four rounds, writers put numbers until the power fails; some requests
//! fail too. Afterwards each key must have the value acknowledged last, or a value put after that.

use std::array;
use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;

use coralio::simulate::{Faults, Sim, Simulation};
use coralio::{spawn, yield_now};

use super::store::{Flaw, Store};

/// What the store may contain. Each of four keys has one writer.
struct Model {
    /// For each key, the last known value and the values put after it.
    possible: [RefCell<Vec<Option<u64>>>; 4],
    next: Cell<u64>,
}

/// Returns the simulated machine: sectors smaller than a record, and one request in fifty fails.
pub fn machine() -> Simulation {
    Simulation::new().sector_size(16).faults(Faults::harmless().errors(0.02))
}

/// Runs the test once. Panics or returns an error if the store has broken a promise.
pub fn survives(sim: &Sim, flaw: Option<Flaw>) -> io::Result<()> {
    let model = Rc::new(Model { possible: array::from_fn(|_| RefCell::new(vec![None])), next: Cell::new(1) });
    for _ in 0..4 {
        // If an I/O error ends the program, it starts once more, without a crash. Then the power
        // fails.
        let ended = sim.crash_during(|| put_numbers(sim, &model, flaw).or_else(|_| put_numbers(sim, &model, flaw)));
        match ended {
            Some(Err(error)) if error.kind() == ErrorKind::InvalidData => return Err(error),
            _ => {}
        }
    }
    sim.set_faults(Faults::harmless());
    check(&open(flaw)?, &model);
    Ok(())
}

fn open(flaw: Option<Flaw>) -> io::Result<Store> {
    Store::open(Path::new("db"), 256, flaw) // bytes: a new snapshot after about eight records
}

fn put_numbers(sim: &Sim, model: &Rc<Model>, flaw: Option<Flaw>) -> io::Result<()> {
    let store = Rc::new(open(flaw)?);
    check(&store, model);
    let writer = |key: usize| {
        let (sim, store, model) = (sim.clone(), Rc::clone(&store), Rc::clone(model));
        spawn(move || {
            (0..4).try_for_each(|_| {
                (0..sim.choose(4)).for_each(|_| yield_now()); // not all records are in one batch
                let number = model.next.replace(model.next.get() + 1);
                model.possible[key].borrow_mut().push(Some(number));
                store.put(&key.to_le_bytes(), &number.to_le_bytes())?;
                model.possible[key].replace(vec![Some(number)]);
                Ok(())
            })
        })
    };
    let writers = [0, 1, 2, 3].map(writer);
    writers.map(|writer| writer.join().expect("no writer panics")).into_iter().collect()
}

/// Checks the contents of a store that was just opened. After that only a put may change a value.
fn check(store: &Store, model: &Model) {
    for (key, possible) in model.possible.iter().enumerate() {
        let found = store.get(&key.to_le_bytes());
        let found = found.map(|bytes| u64::from_le_bytes(bytes.try_into().expect("a value is a number")));
        let possible = possible.replace(vec![found]);
        assert!(possible.contains(&found), "key {key} has the value {found:?}, not one of {possible:?}");
    }
}
