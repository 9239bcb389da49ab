//! The historic failures, on the production engine with one guard out (SPEC H): each fails in exactly its historic way,
//! and passes with the guard in. One file per bug; the kernel is scripted, so nothing depends on time.

mod h1_submit_reaps_its_own;
mod h2_entered_beneath;
mod h3_two_threads_reap;
mod h4_nested_poll;

use std::panic::{AssertUnwindSafe, catch_unwind};

use coralio_aio::Engine;
use coralio_aio::kernel::scripted::Scripted;
use coralio_aio::kernel::{Opcode, Operation};
use coralio_aio::policy::Policy;

/// Reads 512 bytes at `offset`, as a coroutine does.
fn read<P: Policy>(engine: &Engine<Scripted, P>, offset: u64) -> usize {
    let mut buf = [0u8; 512];
    let operation =
        Operation { opcode: Opcode::Read, fd: 0, addr: buf.as_mut_ptr() as u64, len: buf.len() as u64, offset };
    // SAFETY: the buffer is this function's, and alive until transfer returns or unwinds.
    unsafe { engine.transfer(&operation) }.expect("the script has no errors")
}

/// The message with which `f` panicked, or `None` if it did not.
fn panic_message(f: impl FnOnce()) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    match payload.downcast::<String>() {
        Ok(message) => Some(*message),
        Err(payload) => Some(payload.downcast_ref::<&str>().expect("a message").to_string()),
    }
}
