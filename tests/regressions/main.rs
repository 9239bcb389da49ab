//! The historic failures, on the production engine with one guard out (SPEC H): each fails in
//! exactly its historic way, and passes with the guard in. One file per bug (H8 and H9 are the
//! runtime's and tested there); the kernel is scripted, so nothing depends on time.

mod h10_submit_from_reap;
mod h11_short_reads;
mod h12_cancel_lets_go;
mod h1_submit_reaps_its_own;
mod h2_entered_beneath;
mod h3_two_threads_reap;
mod h4_nested_poll;
mod h5_bad_first_request;
mod h6_try_again_when_idle;
mod h7_plug_depth_drifts;
mod mutants;
#[path = "../engine/stack.rs"]
mod stack;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::guards::Guards;
use coralio::engine::scripted::ScriptedBackend;
use coralio::engine::{Opcode, Operation};
use coralio::{JoinHandle, spawn};

/// Reads 512 bytes at `offset`, from a coroutine.
fn read<G: Guards>(engine: &Engine<ScriptedBackend, G>, offset: u64) -> usize {
    try_read(engine, offset).expect("the script has no errors")
}

fn try_read<G: Guards>(engine: &Engine<ScriptedBackend, G>, offset: u64) -> io::Result<usize> {
    let mut buf = [0u8; 512];
    let operation =
        Operation { opcode: Opcode::Read, fd: 0, addr: buf.as_mut_ptr() as u64, len: buf.len() as u64, offset };
    // SAFETY: the buffer is a local, alive until transfer returns or unwinds.
    unsafe { engine.transfer(&operation) }
}

/// Polls, with sleeps, until `done`, or for fifty iterations, after which more would change
/// nothing. The idle bottom half ends sleeps that nothing else would end.
fn rounds(done: impl Fn() -> bool) {
    let context = AioContext::current().unwrap();
    let alarm = context.new_bottom_half(|| {}).unwrap();
    for _ in 0..50 {
        if done() {
            return;
        }
        alarm.schedule_idle();
        context.poll(true);
    }
}

/// The outcome of four requests.
struct Outcome {
    /// Bytes or `errno` of each request that ended before the context did.
    ended: [Option<Result<usize, i32>>; 4],
    /// The engine's state after that.
    state: String,
    /// The number of submitting system calls until then.
    submits: u64,
}

/// Makes three requests in one iteration, of which the script may refuse some; when nothing changes
/// any more, makes one more.
fn three_and_a_later_one<G: Guards>(script: impl FnOnce(&ScriptedBackend)) -> Outcome {
    AioContext::run(|_context| {
        let backend = ScriptedBackend::new(8);
        backend.set_disk(&[7; 4096]);
        let engine = Engine::<_, G>::attach(backend.clone(), 8).unwrap();
        script(&backend);
        let reader = |offset| {
            let engine = engine.clone();
            spawn(move || try_read(&engine, offset).map_err(|error| error.raw_os_error().expect("a kernel's error")))
        };
        let finished = |readers: &[JoinHandle<_>]| readers.iter().all(JoinHandle::is_finished);
        let mut readers = Vec::from([0, 512, 1024].map(reader));
        rounds(|| finished(&readers));
        readers.push(reader(1536));
        rounds(|| finished(&readers));
        let (state, submits) = (format!("{engine:?}"), engine.stats().submits);
        let ended =
            readers.into_iter().map(|reader| if reader.is_finished() { Some(reader.join().unwrap()) } else { None });
        Outcome { ended: ended.collect::<Vec<_>>().try_into().expect("four"), state, submits }
    })
}

/// Returns the message with which `f` panicked, or `None` if it did not.
fn panic_message(f: impl FnOnce()) -> Option<String> {
    let payload = catch_unwind(AssertUnwindSafe(f)).err()?;
    match payload.downcast::<String>() {
        Ok(message) => Some(*message),
        Err(payload) => Some(payload.downcast_ref::<&str>().expect("a message").to_string()),
    }
}
