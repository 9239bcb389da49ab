//! H12, in other libraries: cancel returns before the kernel is done with the buffer.
//!
//! `io_cancel` fails for almost all requests, and io_uring's cancel may come too late; the request goes on. A library that
//! returns all the same gives the buffer back to its owner, who uses it for something else, or returns from the frame that it lay
//! in. Then the kernel writes what it has read.
//!
//! The guard: cancelling is asking. The call returns when the completion was reaped, and not before.
//!
//! Here the buffer is memory that is never freed, and the kernel is scripted: what the failure breaks is what is in it.

use coralio_aio::kernel::scripted::Scripted;
use coralio_aio::kernel::{Opcode, Operation};
use coralio_aio::policy::{Current, OnCancel, Policy};
use coralio_aio::{AioContext, Cancelled, Engine, spawn};

use crate::{panic_message, rounds};

/// Cancel does not wait.
struct LetsGo;

// SAFETY: it reaps under the lock; what is cancelled below is a read into memory that is leaked, and looked at through a raw
// pointer.
unsafe impl Policy for LetsGo {
    const ON_CANCEL: OnCancel = OnCancel::ReturnsAtOnce;
}

/// What a coroutine found that was cancelled while the kernel had its buffer, and what became of it.
#[derive(Debug, PartialEq)]
struct Story {
    /// Whether the call was over before the kernel was done.
    over_before: bool,
    /// What the buffer, filled anew by its owner when the call was over, has in it at the end.
    buffer: [u8; 4],
    /// With what the engine went on when the completion came.
    panicked_with: Option<String>,
}

fn schedule<P: Policy>() -> Story {
    AioContext::run(|context| {
        let kernel = Scripted::new(8);
        let engine = Engine::<_, P>::attach(kernel.clone(), 8).unwrap();
        let buffer: *mut [u8; 4] = Box::leak(Box::new(*b"new."));
        kernel.hold(0);
        kernel.set_disk(b"disk");
        let task = spawn({
            let engine = engine.clone();
            move || {
                let operation = Operation { opcode: Opcode::Read, fd: 0, addr: buffer as u64, len: 4, offset: 0 };
                // SAFETY: leaked, so valid for ever, and nobody has a reference to it.
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
        kernel.release(0);
        let panicked_with = panic_message(|| rounds(|| task.is_finished() && engine.stats().in_flight == 0));
        let result = task.join().unwrap();
        assert_eq!(result.is_err_and(|error| Cancelled::is_cause_of(&error)), over_before);
        // SAFETY: as above.
        Story { over_before, buffer: unsafe { buffer.read() }, panicked_with }
    })
}

#[test]
fn without_the_guard_the_kernel_writes_into_what_is_anothers() {
    // H12: the owner's data is gone; and the completion belongs to no request any more.
    let Story { over_before, buffer, panicked_with } = schedule::<LetsGo>();
    assert!(over_before);
    assert_eq!(&buffer, b"disk");
    let message = panicked_with.unwrap();
    assert!(message.starts_with("a completion for a request that is not in flight"), "{message}");
}

#[test]
fn with_the_guard_the_buffer_is_the_kernels_until_it_is_done() {
    // H12, E11, E13: the call is over when the kernel is done; then the buffer is its owner's.
    assert_eq!(schedule::<Current>(), Story { over_before: false, buffer: *b"mine", panicked_with: None });
}
