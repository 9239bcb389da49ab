//! Wrong solutions of exercise 7.

use std::cell::{Cell, RefCell};

use crate::judge::plug::{FULL, Kernel, Queue};

pub struct State {
    kernel: Kernel,
    pending: RefCell<Vec<u32>>,
    plugs: Cell<u32>,
}

impl State {
    fn new(kernel: Kernel) -> State {
        State { kernel, pending: RefCell::default(), plugs: Cell::new(0) }
    }

    fn push(&self, request: u32) {
        self.pending.borrow_mut().push(request);
    }

    fn is_full(&self) -> bool {
        self.pending.borrow().len() >= FULL
    }

    fn submit(&self) {
        let pending = self.pending.take();
        if !pending.is_empty() {
            self.kernel.submit(&pending);
        }
    }
}

/// Defines a queue: by its `push`, by what happens when a plug is dropped, and by its
/// `iteration`.
macro_rules! queue {
    ($(#[doc = $doc:literal])* $queue:ident, $plug:ident, push: $push:expr, drop: $drop:expr, iteration: $iteration:expr) => {
        $(#[doc = $doc])*
        pub struct $queue(State);

        pub struct $plug<'a>(&'a State);

        impl Queue for $queue {
            type Plug<'a> = $plug<'a>;

            fn new(kernel: Kernel) -> $queue {
                $queue(State::new(kernel))
            }

            fn plug(&self) -> $plug<'_> {
                self.0.plugs.set(self.0.plugs.get() + 1);
                $plug(&self.0)
            }

            fn push(&self, request: u32) {
                self.0.push(request);
                let push: fn(&State) = $push;
                push(&self.0);
            }

            fn iteration(&self) {
                let iteration: fn(&State) = $iteration;
                iteration(&self.0);
            }
        }

        impl Drop for $plug<'_> {
            fn drop(&mut self) {
                let drop: fn(&State) = $drop;
                drop(self.0);
            }
        }
    };
}

/// Submits when there is no plug, or the batch is full.
fn pushes_well(queue: &State) {
    if queue.plugs.get() == 0 || queue.is_full() {
        queue.submit();
    }
}

/// Counts the plug.
fn drops_well(queue: &State) {
    queue.plugs.set(queue.plugs.get() - 1);
}

/// Submits when there is no plug.
fn iterates_well(queue: &State) {
    if queue.plugs.get() == 0 {
        queue.submit();
    }
}

queue! {
    /// The destructor of the last plug submits.
    DropSubmits, EagerPlug,
    push: pushes_well,
    drop: |queue| {
        drops_well(queue);
        iterates_well(queue);
    },
    iteration: iterates_well
}

queue! {
    /// The loop submits though there is a plug.
    LoopIgnoresPlugs, LoosePlug,
    push: pushes_well,
    drop: drops_well,
    iteration: State::submit
}

queue! {
    /// The inner of two plugs ends the delay.
    OnePlugOnly, EarlyPlug,
    push: pushes_well,
    drop: |queue| queue.plugs.set(0),
    iteration: iterates_well
}

queue! {
    /// As of 2021: one of two branches forgets to count.
    CountsInOneBranch, DriftingPlug,
    push: pushes_well,
    drop: |queue| {
        if !queue.pending.borrow().is_empty() {
            drops_well(queue);
        }
    },
    iteration: iterates_well
}

queue! {
    /// Delays a full batch too.
    IgnoresFull, PatientPlug,
    push: iterates_well,
    drop: drops_well,
    iteration: iterates_well
}
