//! H7, 2021: unplug counts down in only one branch of a condition.
//!
//! Unplug had two reasons to submit: the queue is full, or this was the last plug. Written as
//! `full || --depth == 0`, it counted only if the queue was not full. Each unplug of a full queue
//! left the depth one too high, so it never returned to 0, and from then on requests were held back
//! for an unplug that had already happened.
//!
//! The guard: a plug is a value, and its drop counts down unconditionally.

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards, UnplugDecrement};
use coralio::engine::scripted::ScriptedBackend;

use crate::read;

/// As of 2021: a full queue is submitted without counting.
struct ShortCircuit2021;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for ShortCircuit2021 {
    const UNPLUG_DECREMENT: UnplugDecrement = UnplugDecrement::OnlyWhenNotFull;
}

/// Drops a plug while the queue is full; then reads once more, without a plug. Returns whether that
/// request was submitted immediately, and the engine's state.
fn schedule<G: Guards>() -> (bool, String) {
    AioContext::run(|context| {
        let backend = ScriptedBackend::new(2);
        let engine = Engine::<_, G>::attach(backend.clone(), 2).unwrap();
        let enter_reader = || {
            let engine = engine.clone();
            let reader = Coroutine::new(move || assert_eq!(read(&engine, 0), 0));
            reader.enter();
            reader
        };
        // Two are in flight, so that the next two fill the queue and stay there.
        (0..2).for_each(|number| backend.hold(number));
        let mut readers = vec![enter_reader(), enter_reader()];
        let plug = engine.plug();
        readers.extend([enter_reader(), enter_reader()]);
        assert_eq!((engine.stats().in_flight, engine.stats().pending), (2, 2));
        drop(plug);
        (0..2).for_each(|number| backend.release(number));
        while !readers.iter().all(|reader| reader.has_ended()) {
            context.poll(true);
        }
        let taken = backend.taken();
        let last = enter_reader();
        let at_once = backend.taken() > taken;
        let state = format!("{engine:?}");
        while !last.has_ended() {
            context.poll(true);
        }
        (at_once, state)
    })
}

#[test]
fn unguarded_requests_wait_for_a_dropped_plug() {
    // H7: the depth is 1 though no plug is left, and a request is held back by nothing.
    let (at_once, state) = schedule::<ShortCircuit2021>();
    assert!(!at_once && state.contains("plug depth 1"), "{state}");
}

#[test]
fn guarded_plug_depth_is_exact() {
    // H7, E3: the depth is 0, and the request is submitted immediately.
    let (at_once, state) = schedule::<AllGuards>();
    assert!(at_once && state.contains("plug depth 0"), "{state}");
}
