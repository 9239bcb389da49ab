//! H10, 2026: submit reaps, the coroutine that it wakes submits, and that submit reaps.
//!
//! ```text
//!   submit > reap > submit > reap > submit > ..
//! ```
//!
//! After a reap there is room, so it looked economical to submit the requests collected meanwhile
//! immediately. But a submit reaps (rule E4), and where requests complete within submit, as
//! page-cached reads do, there is always something to reap, which wakes a coroutine that reads the
//! next block. Each block costs a few stack frames; a long file overflows the stack.
//!
//! The guard: a reap submits nothing. Collected requests are submitted at the end of the loop's
//! iteration.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::guards::{AfterReap, AllGuards, Guards};
use coralio::engine::scripted::ScriptedBackend;
use coralio::spawn;

use crate::read;
use crate::stack::stack_pointer;

/// As of 2026: a reap submits.
struct SubmitsFromReap2026;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for SubmitsFromReap2026 {
    const AFTER_REAP: AfterReap = AfterReap::ReapSubmits;
}

const BLOCKS: usize = 200;

/// Reads one block after another in a coroutine; each read completes within submit. Returns the
/// number of submits nested within each other, by the stack pointer: each deeper than the one
/// before.
fn schedule<G: Guards>() -> usize {
    AioContext::run(|context| {
        let backend = ScriptedBackend::new(8);
        (0..BLOCKS).for_each(|number| backend.complete_on_submit(number, number));
        let engine = Engine::<_, G>::attach(backend.clone(), 8).unwrap();
        let (deepest, levels) = (Arc::new(AtomicUsize::new(usize::MAX)), Arc::new(AtomicUsize::new(0)));
        let ended = Rc::new(Cell::new(false));
        drop(spawn({
            let (levels, ended) = (levels.clone(), Rc::clone(&ended));
            move || {
                for _ in 0..BLOCKS {
                    let (deepest, levels) = (deepest.clone(), levels.clone());
                    // Called by the reap, on its stack: the loop's.
                    backend.on_next_peek(move || {
                        let here = stack_pointer();
                        if deepest.fetch_min(here, Ordering::Relaxed) > here {
                            levels.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    read(&engine, 0);
                }
                ended.set(true);
            }
        }));
        while !ended.get() {
            context.poll(true);
        }
        levels.load(Ordering::Relaxed)
    })
}

#[test]
fn unguarded_reap_recurses_per_block() {
    // H10: as many submits are on the stack as there were blocks; a longer file would overflow it.
    assert_eq!(schedule::<SubmitsFromReap2026>(), BLOCKS);
}

#[test]
fn guarded_reap_leaves_submits_to_the_loop() {
    // H10, E8: all submits are on the same level.
    assert_eq!(schedule::<AllGuards>(), 1);
}
