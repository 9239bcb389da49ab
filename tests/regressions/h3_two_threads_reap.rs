//! H3, 2018: two threads reap the same ring without the lock.
//!
//! The loop on its home thread has read an event and not yet counted it. Meanwhile another thread,
//! which polls the same context, takes all sixteen events from the ring. When the loop continues,
//! its count drops below zero. (Seen in the field: 4294967280, which is -16.)

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards};
use coralio::engine::scripted::ScriptedBackend;
use coralio::fs::Direct;
use coralio::{File, JoinHandle, spawn};

use crate::{panic_message, read};

/// As of 2018: reaping from submit took no lock.
struct Unlocked2018;

// SAFETY: this thread waits while the other one acts.

unsafe impl Guards for Unlocked2018 {
    const REAP_LOCKS: bool = false;
}

const REQUESTS: usize = 16;

/// What the other thread could do.
#[derive(Debug, PartialEq)]
enum Foreign {
    Polled,
    LockedOut,
}

fn schedule<G: Guards>() -> (Foreign, Option<String>) {
    AioContext::run(|context| {
        let backend = ScriptedBackend::new(REQUESTS as u32);
        let engine = Engine::<_, G>::attach(backend.clone(), REQUESTS as u32).unwrap();
        for number in 0..REQUESTS {
            backend.complete_on_submit(number, REQUESTS - 1);
        }

        // When the home thread first looks at an event, another thread polls, if it can take the
        // lock.
        let (go, wait_for_go) = channel();
        let (done, wait_for_done) = channel();
        let foreign = thread::spawn({
            let context = context.clone();
            move || {
                wait_for_go.recv().unwrap();
                let met = match context.try_acquire() {
                    Some(_guard) => {
                        context.poll(false);
                        Foreign::Polled
                    }
                    None => Foreign::LockedOut,
                };
                done.send(()).unwrap();
                met
            }
        });

        let readers: Vec<_> = (0..REQUESTS)
            .map(|_| {
                Coroutine::new({
                    let engine = engine.clone();
                    move || _ = read(&engine, 0)
                })
            })
            .collect();
        let last = *readers.last().unwrap();
        let message = panic_message(|| {
            for &reader in &readers[..REQUESTS - 1] {
                reader.enter(); // submits, and yields
            }
            backend.on_next_peek(move || {
                go.send(()).unwrap();
                wait_for_done.recv().unwrap();
            });
            last.enter(); // submits the sixteenth: all are on the ring
            while !readers.iter().all(|reader| reader.has_ended()) {
                context.poll(true);
            }
        });
        (foreign.join().unwrap(), message)
    })
}

#[test]
fn unlocked_reap_counts_below_zero() {
    // H3: the same events are reaped twice.
    let (foreign, message) = schedule::<Unlocked2018>();
    assert_eq!(foreign, Foreign::Polled);
    let message = message.unwrap();
    assert!(message.starts_with("in_flight below zero"), "{message}");
    assert!(message.contains("16 requests submitted, 16 completed"), "{message}");
}

#[test]
fn locked_reap_excludes_the_other_thread() {
    // H3, E9: a reap holds the lock, and no other thread comes in between.
    assert_eq!(schedule::<AllGuards>(), (Foreign::LockedOut, None));
}

#[test]
fn two_reaping_threads_complete_a_million_requests() {
    // H3, E9: another thread polls and reaps while the loop does; every request completes once.
    const COROUTINES: u64 = 32;
    const EACH: u64 = 1_000_000 / COROUTINES;
    /// A file removed on drop.
    struct Scratch(PathBuf);
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
    let scratch = Scratch(Path::new("/dev/shm").join(format!("coralio-h3-{}", std::process::id())));
    let path = &scratch.0;
    std::fs::write(path, (0..64 * 512).map(|i| (i / 512) as u8).collect::<Vec<_>>()).unwrap();
    let foreign = coralio::run(|| {
        let context = AioContext::current().unwrap();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let foreign = thread::spawn({
            let stop = stop.clone();
            move || {
                let mut progress = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    progress += u64::from(context.poll(false));
                }
                progress
            }
        });
        let file = Rc::new(File::options().read(true).direct(Direct::Auto).open(path).unwrap());
        let readers: Vec<JoinHandle<u64>> = (0..COROUTINES)
            .map(|n| {
                let file = Rc::clone(&file);
                spawn(move || {
                    let mut buf = [0; 512];
                    for i in 0..EACH {
                        let block = (n * 7 + i * 13) % 64;
                        assert_eq!(file.read_at(&mut buf, block * 512).unwrap(), 512);
                        assert_eq!((buf[0], buf[511]), (block as u8, block as u8));
                    }
                    EACH
                })
            })
            .collect();
        let total: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(total, COROUTINES * EACH);
        let stats = coralio::driver::stats();
        assert_eq!((stats.requests, stats.completions), (total, total));
        assert_eq!((stats.in_flight, stats.pending), (0, 0));
        // Joined outside: the loop holds the context's lock while a coroutine runs, and the other
        // thread needs it.
        foreign
    });
    let foreign_polls = foreign.join().unwrap();
    println!("the foreign thread's polls made progress {foreign_polls} times");
}
