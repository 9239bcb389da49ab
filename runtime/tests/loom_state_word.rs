//! Several threads schedule a coroutine at the same time, checked on every interleaving that the
//! memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_state_word`
//!
//! `state_word.rs` is the library's own source file. The coroutine waits for the flags of two
//! wakers; only one of them puts it on the list, and the other relies on that. If a wake were lost,
//! the coroutine would not be on the list although its flag is set, and home would wait forever:
//! loom reports that as a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}
#[path = "../src/coroutine/state_word.rs"]
mod state_word;

use state_word::{ScheduleOutcome, StateWord};

struct Home {
    word: StateWord,
    flags: [AtomicBool; 2],
    /// Number of entries of the coroutine on the list of woken ones.
    list: Mutex<usize>,
    changed: Condvar,
}

impl Home {
    fn new() -> Arc<Home> {
        Arc::new(Home {
            word: StateWord::new(),
            flags: [AtomicBool::new(false), AtomicBool::new(false)],
            list: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    fn wake(&self, generation: u64, who: usize) -> ScheduleOutcome {
        // Relaxed: the word must publish it.
        self.flags[who].store(true, Ordering::Relaxed);
        let claim = self.word.claim(generation);
        if claim == ScheduleOutcome::Claimed {
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

    /// Resumes the coroutine. Returns whether its condition is true.
    fn resume(&self) -> bool {
        self.word.clear_scheduled();
        self.flags.iter().all(|flag| flag.load(Ordering::Relaxed))
    }
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(f);
}

fn two_wakers(home: &Arc<Home>) -> [thread::JoinHandle<ScheduleOutcome>; 2] {
    let generation = home.word.generation();
    [0, 1].map(|who| {
        let home = Arc::clone(home);
        thread::spawn(move || home.wake(generation, who))
    })
}

#[test]
fn scheduled_state_guarantees_a_run() {
    // W3: a wake that finds the coroutine already scheduled is seen by the scheduled run
    model(|| {
        let home = Home::new();
        let wakers = two_wakers(&home);
        // It is also entered for another reason, at any moment.
        let mut done = home.resume();
        while !done {
            home.accept();
            // A stale entry of the list: it ran since.
            done = home.word.is_scheduled() && home.resume();
        }
        let claims = wakers.map(|waker| waker.join().unwrap());
        assert!(claims.contains(&ScheduleOutcome::Claimed), "{claims:?}");
    });
}

#[test]
fn single_scheduler_queues_the_coroutine() {
    // W2: a coroutine scheduled by several threads at the same time is put on the list once
    model(|| {
        let home = Home::new();
        let wakers = two_wakers(&home);
        let claims = wakers.map(|waker| waker.join().unwrap());
        assert_eq!(claims.iter().filter(|&&claim| claim == ScheduleOutcome::Claimed).count(), 1);
        assert!(home.resume());
    });
}
