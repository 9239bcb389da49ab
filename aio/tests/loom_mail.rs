//! A cancel that meets a sleep in place, on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-aio --release --test loom_mail`
//!
//! `mail.rs` is the very file that the library is built of. Around it stands a kernel with requests in flight that complete only when
//! they are cancelled. If a cancel were lost, the thread that has the engine would sleep forever: loom calls that a deadlock. It
//! finds one if either fence is taken out.
#![cfg(loom)]
#![allow(unsafe_code, unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering, fence};
    pub(crate) use loom::sync::{Mutex, MutexGuard};
}

#[path = "../src/place/mail.rs"]
mod mail;

use mail::Mail;

struct Engine {
    mail: Mail,
    /// Which requests the kernel has completed.
    done: Mutex<Vec<u64>>,
    completed: Condvar,
}

impl Engine {
    fn cancel(&self, key: u64) {
        let mut done = self.done.lock().unwrap();
        if !done.contains(&key) {
            done.push(key);
            self.completed.notify_one();
        }
    }

    fn done(&self) -> usize {
        self.done.lock().unwrap().len()
    }

    /// As `Engine::sleep_in_place`.
    fn sleep_in_place(&self, seen: usize) {
        let sleep = || {
            let mut done = self.done.lock().unwrap();
            while done.len() == seen {
                done = self.completed.wait(done).unwrap();
            }
        };
        if !self.mail.sleep(sleep) {
            while let Some(key) = self.mail.take() {
                self.cancel(key);
            }
        }
    }

    /// As `Engine::cancel_from_elsewhere`.
    fn cancel_from_elsewhere(&self, key: u64) {
        self.mail.put(key);
        if self.mail.is_asleep() {
            self.cancel(key);
        }
    }
}

fn cancels_arrive(senders: u64, preemptions: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        let engine = Arc::new(Engine { mail: Mail::new(), done: Mutex::new(Vec::new()), completed: Condvar::new() });
        let threads: Vec<_> = (0..senders)
            .map(|key| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || engine.cancel_from_elsewhere(key))
            })
            .collect();
        loop {
            let seen = engine.done();
            if seen == senders as usize {
                break;
            }
            engine.sleep_in_place(seen);
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(!engine.mail.is_asleep());
    });
}

#[test]
fn cancel_meets_a_sleep() {
    // E11, E12: the sleeper reads the mail, or the sender asks the kernel
    cancels_arrive(1, None);
}

#[test]
fn two_cancels_meet_a_sleep() {
    // E11, E12: as above, with a key that is put while the other is taken
    cancels_arrive(2, Some(2));
}
