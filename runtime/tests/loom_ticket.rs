//! Scheduling a coroutine from several threads at once, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_ticket`
//!
//! `ticket.rs` is the very file that the library is built of. The coroutine waits for the flags of two wakers; of these
//! only one puts it on the list, and the other relies on that. If a wake were lost, the coroutine would not be on the list
//! though its flag is up, and home would wait for ever: loom calls that a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}
#[path = "../src/coroutine/ticket.rs"]
mod ticket;

use ticket::{Claim, Ticket};

struct Home {
    ticket: Ticket,
    flags: [AtomicBool; 2],
    /// How often the coroutine stands on the list of those that were woken.
    list: Mutex<usize>,
    changed: Condvar,
}

impl Home {
    fn new() -> Arc<Home> {
        Arc::new(Home {
            ticket: Ticket::new(),
            flags: [AtomicBool::new(false), AtomicBool::new(false)],
            list: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    fn wake(&self, generation: u64, who: usize) -> Claim {
        // Relaxed: it is the ticket that must carry this over.
        self.flags[who].store(true, Ordering::Relaxed);
        let claim = self.ticket.claim(generation);
        if claim == Claim::Mine {
            *self.list.lock().unwrap() += 1;
            self.changed.notify_one();
        }
        claim
    }

    /// Sleeps until the coroutine is on the list, and takes it off.
    fn accept(&self) -> usize {
        let mut list = self.list.lock().unwrap();
        while *list == 0 {
            list = self.changed.wait(list).unwrap();
        }
        std::mem::take(&mut *list)
    }

    /// Resumes the coroutine: has it what it waits for?
    fn resume(&self) -> bool {
        self.ticket.clear_scheduled();
        self.flags.iter().all(|flag| flag.load(Ordering::Relaxed))
    }
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(f);
}

#[test]
fn whoever_finds_it_scheduled_may_rely_on_that() {
    // W3: a wake that finds the coroutine scheduled already is seen by the run that is to come
    model(|| {
        let home = Home::new();
        let generation = home.ticket.generation();
        let wakers = [0, 1].map(|who| {
            let home = Arc::clone(&home);
            thread::spawn(move || home.wake(generation, who))
        });
        // It is also entered for another reason, at any moment.
        let mut done = home.resume();
        while !done {
            home.accept();
            // A stale entry of the list: it ran since.
            done = home.ticket.is_scheduled() && home.resume();
        }
        let claims = wakers.map(|waker| waker.join().unwrap());
        assert!(claims.contains(&Claim::Mine), "{claims:?}");
    });
}

#[test]
fn only_one_puts_it_on_the_list() {
    // W2: scheduled by several at once, it is put on the list once
    model(|| {
        let home = Home::new();
        let generation = home.ticket.generation();
        let wakers = [0, 1].map(|who| {
            let home = Arc::clone(&home);
            thread::spawn(move || home.wake(generation, who))
        });
        let claims = wakers.map(|waker| waker.join().unwrap());
        assert_eq!(claims.iter().filter(|&&claim| claim == Claim::Mine).count(), 1);
        assert!(home.resume());
    });
}
