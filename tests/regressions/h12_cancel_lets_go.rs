//! H12, in other libraries: cancel returns before the kernel is done with the buffer.
//!
//! `io_cancel` fails for almost all requests, and io_uring's cancel may come too late; the request
//! continues. A library that returns anyway gives the buffer back to its owner, which reuses it, or
//! returns from the stack frame that contains it. Then the kernel writes the data that it has read.
//!
//! The guard: cancel is only a request. The call returns once the completion was reaped, and not
//! before.
//!
//! Here the buffer is memory that is never freed, and the kernel is scripted, so the failure
//! corrupts only its content.

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards, OnCancel};
use coralio::engine::scripted::ScriptedBackend;
use coralio::engine::{Opcode, Operation};
use coralio::spawn;
use coralio::task::Cancelled;

use crate::{panic_message, rounds};

/// Cancel does not wait.
struct LetsGo;

// SAFETY: it reaps under the lock; the request cancelled below reads into leaked memory, which is
// accessed through a raw pointer.
unsafe impl Guards for LetsGo {
    const ON_CANCEL: OnCancel = OnCancel::ReturnsAtOnce;
}

/// The outcome for a coroutine that was cancelled while the kernel had its buffer.
#[derive(Debug, PartialEq)]
struct Story {
    /// Whether the call returned before the kernel was done.
    over_before: bool,
    /// The final content of the buffer, which its owner refilled after the call returned.
    buffer: [u8; 4],
    /// The panic of the engine when the completion came.
    panicked_with: Option<String>,
}

fn schedule<G: Guards>() -> Story {
    AioContext::run(|context| {
        let backend = ScriptedBackend::new(8);
        let engine = Engine::<_, G>::attach(backend.clone(), 8).unwrap();
        let buffer: *mut [u8; 4] = Box::leak(Box::new(*b"new."));
        backend.hold(0);
        backend.set_disk(b"disk");
        let task = spawn({
            let engine = engine.clone();
            move || {
                let operation = Operation { opcode: Opcode::Read, fd: 0, addr: buffer as u64, len: 4, offset: 0 };
                // SAFETY: leaked, so valid forever, and without any reference to it.
                let result = unsafe { engine.transfer(&operation) };
                // SAFETY: as above.
                unsafe { buffer.write(*b"mine") };
                result
            }
        });
        context.poll(false);
        task.cancel();
        rounds(|| task.is_finished());
        let over_before = task.is_finished();
        backend.release(0);
        let panicked_with = panic_message(|| rounds(|| task.is_finished() && engine.stats().in_flight == 0));
        let result = task.join().unwrap();
        assert_eq!(result.is_err_and(|error| Cancelled::is_cause_of(&error)), over_before);
        // SAFETY: as above.
        Story { over_before, buffer: unsafe { buffer.read() }, panicked_with }
    })
}

#[test]
fn unguarded_cancel_lets_the_kernel_write_foreign_memory() {
    // H12: the owner's data is overwritten, and the completion belongs to no request any more.
    let Story { over_before, buffer, panicked_with } = schedule::<LetsGo>();
    assert!(over_before);
    assert_eq!(&buffer, b"disk");
    let message = panicked_with.unwrap();
    assert!(message.starts_with("a completion for a request that is not in flight"), "{message}");
}

#[test]
fn guarded_cancel_keeps_the_buffer_until_completion() {
    // H12, E11, E13: the call returns when the kernel is done; only then is the buffer its owner's.
    assert_eq!(schedule::<AllGuards>(), Story { over_before: false, buffer: *b"mine", panicked_with: None });
}
