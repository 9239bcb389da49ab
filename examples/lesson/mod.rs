//! The lessons' common module. A lesson consists of *acts*. Each act runs in its own context with
//! an event log, and is printed as text lanes, whether it ends well or fails.
//!
//! The kernel is scripted, so every run is the same. `--trace FILE` also writes each act's log:
//! with `--trace h2.txt`, the second act's goes to `h2-2.txt`.

// No lesson uses all of it.
#![allow(dead_code)]

use std::any::Any;
use std::cell::Cell;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards};
use coralio::engine::scripted::ScriptedBackend;
use coralio::engine::{Opcode, Operation};
use coralio::simulate::{Failure, Faults, Sim, Simulation};
use coralio::trace::{Recording, TextOptions, Trace};
use coralio::{File, JoinHandle};
use coralio_runtime::report;

/// An engine on a scripted backend.
pub type Disk<G = AllGuards> = Arc<Engine<ScriptedBackend, G>>;

/// Takes what a lesson shows, in place of standard output; `examples/course` makes a page of it.
#[derive(Clone, Copy)]
pub struct Sink {
    /// Takes an act: its title, its events with their source lines, and its failure.
    pub act: fn(&str, &Recording, Option<&str>),
    /// Takes a text besides the acts.
    pub text: fn(&str),
}

thread_local!(static SINK: Cell<Option<Sink>> = const { Cell::new(None) });

/// Sends to `sink` what this thread shows from now on.
pub fn send_to(sink: Sink) {
    SINK.set(Some(sink));
}

/// Runs `f` on this thread's own stack, in a context whose loop runs when `f` polls, and prints the
/// picture and the outcome.
pub fn act(title: &str, f: impl FnOnce(&AioContext)) {
    let (recording, failure) = record(f);
    // The engine's state, at the end of its messages, is no part of a lesson.
    let ends_at = |text: &str| [": key 0x", " (in_flight "].iter().filter_map(|state| text.find(state)).min();
    let failure = failure.as_deref().map(|text| &text[..ends_at(text).unwrap_or(text.len())]);
    show(title, &recording, failure);
}

/// Does the same as [`act`] on a simulated backend, whose decisions depend on a seed. Tries a
/// hundred seeds and prints the first failing run, or the first run if none fails.
pub fn simulated_act(title: &str, f: impl Fn(&Sim) -> Result<(), String>) {
    let run = |seed, machine: Simulation| {
        let failure = Cell::new(None);
        machine.run([seed], |sim| {
            failure.set(f(sim).err());
            Ok(())
        });
        failure.take()
    };
    let machine = Simulation::new().faults(Faults::none());
    let failing = (0..100).find(|&seed| run(seed, machine.clone()).is_some());
    let seed = failing.unwrap_or(0);
    let trace = new_trace();
    let failure = run(seed, machine.trace(&trace));
    show(title, &trace.recording(), failure.as_deref());
    print(&match failing {
        Some(seed) => format!("This is the run of seed {seed}, the first that fails.\n"),
        None => "This is the run of seed 0. So do the other 99.\n".into(),
    });
}

/// Prints the outcome of a search among simulated runs: the failing run, with its tape, or the
/// first one.
pub fn search_act(
    title: &str,
    machine: &Simulation,
    found: Result<u64, Box<Failure>>,
    f: impl Fn(&Sim) -> io::Result<()>,
) {
    let trace = new_trace();
    let machine = machine.clone().trace(&trace);
    let (failure, about) = match found {
        Ok(1) => {
            machine.run([0], f);
            (None, String::new())
        }
        Ok(runs) => {
            // The harmless run: all choices are 0.
            machine.tape("0").expect("a tape").run([0], f);
            (None, format!("All {runs} runs do; this is one of them.\n"))
        }
        Err(found) => {
            let _same = machine.tape(&found.tape).expect("a tape of this machine").search([0], f);
            let seed = found.seed.map_or(String::new(), |seed| format!("Seed {seed} is the first that fails. "));
            let crash = found.log.lines().find(|line| line.contains("CRASH")).unwrap_or_default().trim_start();
            let about = format!(
                "{seed}From its log:\n{crash}\nTo repeat this run, a test would print:\n\
                 reproduce: CORALIO_SIM_TAPE='{}' cargo test ..\n",
                found.tape
            );
            (Some(found.shrunk_message.replace("the run ended with an error: ", "")), about)
        }
    };
    show(title, &trace.recording(), failure.as_deref());
    print(&about);
}

fn new_trace() -> Trace {
    let trace = Trace::new(10_000);
    // A page shows the source too.
    let is_page = |argument: OsString| Path::new(&argument).extension().is_some_and(|extension| extension == "html");
    if SINK.get().is_some() || std::env::args_os().any(is_page) { trace.with_source() } else { trace }
}

fn show(title: &str, recording: &Recording, failure: Option<&str>) {
    if let Some(sink) = SINK.get() {
        return (sink.act)(title, recording, failure);
    }
    thread_local!(static ACTS: Cell<u32> = const { Cell::new(0) });
    let act = ACTS.get() + 1;
    ACTS.set(act);
    let options = if act == 1 { TextOptions::default() } else { TextOptions::default().without_legend() };
    if act > 1 {
        print("\n");
    }
    print(&scene(&format!("{act}. {title}"), &recording.text_with(options), failure));
    if let Some(file) = trace_file() {
        let file = with_suffix(&file, &format!("-{act}"));
        recording.write_titled(&file, &format!("{title}: {}", ending(failure)), failure).unwrap_or_else(|error| {
            report(format_args!("cannot write the trace: {error}"));
            process::exit(1)
        });
        report(format_args!("see {}", file.display()));
    }
}

/// Returns the outcome, for a title.
pub fn ending(failure: Option<&str>) -> String {
    failure.map_or("ends well".into(), |failure| format!("fails: {failure}"))
}

/// Returns a picture with its heading and outcome.
pub fn scene(heading: &str, picture: &str, failure: Option<&str>) -> String {
    let end = failure.map_or("Ends well.".into(), |failure| format!("Fails: {failure}"));
    format!("== {heading}\n\n{picture}\n{end}\n")
}

/// Prints to standard output. Exits without an error if its reader is gone, as with `| head`.
pub fn print(text: &str) {
    if let Some(sink) = SINK.get() {
        return (sink.text)(text);
    }
    if io::stdout().write_all(text.as_bytes()).is_err() {
        process::exit(0);
    }
}

/// Runs `f` in a context. Returns the event log, and the message if `f` panicked.
pub fn record(f: impl FnOnce(&AioContext)) -> (Recording, Option<String>) {
    let trace = new_trace();
    let builder = AioContext::builder().trace(&trace).report_deadlocks_after(None).report_unwound(false);
    // Lanes and outcome show the panic already. A panic in a destructor would abort the process:
    // exit instead, to leave no core file.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        if message(info.payload()).starts_with("panic in a destructor") {
            process::exit(3);
        }
    }));
    let ran = panic::catch_unwind(AssertUnwindSafe(|| builder.run(f).expect("descriptors for a context")));
    panic::set_hook(hook);
    (trace.recording(), ran.err().map(|payload| message(&*payload)))
}

fn message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_string(),
        _ => "a panic payload that is not text".into(),
    }
}

/// Returns the file named on the command line, if any.
fn trace_file() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next(), arguments.next()) {
        (None, ..) => None,
        (Some(option), Some(file), None) if option == "--trace" => Some(file.into()),
        _ => {
            report(format_args!("unexpected arguments: a lesson takes only --trace FILE"));
            process::exit(2)
        }
    }
}

/// Inserts a suffix before the extension: `h2.txt` and `-1` give `h2-1.txt`.
pub fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_os_string();
    name.push(suffix);
    if let Some(extension) = file.extension() {
        name.push(".");
        name.push(extension);
    }
    file.with_file_name(name)
}

/// Records a message in the lane of the caller.
#[track_caller]
pub fn say(what: impl Display) {
    if let Some(tracer) = AioContext::current().as_ref().and_then(AioContext::tracer) {
        tracer.mark(format!("\"{what}\""));
    }
}

/// Creates a coroutine that runs `f` when first entered.
#[track_caller]
pub fn coroutine(name: &'static str, f: impl FnOnce() + 'static) -> Coroutine {
    Coroutine::builder().name(name).create(|| told(f)).expect("memory for a stack")
}

/// Runs `f`. Records a message if it unwinds: because of a panic, or because its context ends.
fn told<T>(f: impl FnOnce() -> T) -> T {
    struct Unwinding;
    impl Drop for Unwinding {
        fn drop(&mut self) {
            if thread::panicking() {
                say("unwinds");
            }
        }
    }
    let _unwinding = Unwinding;
    f()
}

/// Creates a kernel with a disk of 4 KiB. By default, requests complete when the loop sleeps.
pub fn backend() -> ScriptedBackend {
    let backend = ScriptedBackend::new(8);
    backend.set_disk(&[7; 4096]);
    backend
}

/// Attaches an engine on `backend` to this thread's context, with up to `depth` requests in flight.
/// A batch of `depth` pending requests is full, and submitted immediately.
pub fn attach<G: Guards>(backend: &ScriptedBackend, depth: u32) -> Disk<G> {
    Engine::attach(backend.clone(), depth).expect("the context's first engine")
}

/// Reads 512 bytes into a buffer on the calling coroutine's stack.
pub fn read<G: Guards>(disk: &Disk<G>, offset: u64) -> usize {
    try_read(disk, offset).expect("the script has no errors")
}

/// Does the same as [`read`], and returns errors that the script injects.
pub fn try_read<G: Guards>(disk: &Disk<G>, offset: u64) -> io::Result<usize> {
    let mut buffer = [0; 512];
    let (addr, len) = (buffer.as_mut_ptr() as u64, buffer.len() as u64);
    // SAFETY: the buffer is a local, alive until `transfer` returns or unwinds.
    unsafe { disk.transfer(&Operation { opcode: Opcode::Read, fd: 0, addr, len, offset }) }
}

/// Writes 512 zero bytes from a buffer on the calling coroutine's stack.
pub fn try_write<G: Guards>(disk: &Disk<G>, offset: u64) -> io::Result<usize> {
    let buffer = [0; 512];
    let (addr, len) = (buffer.as_ptr() as u64, buffer.len() as u64);
    // SAFETY: the buffer is a local, alive until `transfer` returns or unwinds.
    unsafe { disk.transfer(&Operation { opcode: Opcode::Write, fd: 0, addr, len, offset }) }
}

/// Does the same as [`try_read`] with a buffer that is never freed, for an engine that may return
/// while the kernel still has it.
pub fn try_read_leaked<G: Guards>(disk: &Disk<G>, offset: u64) -> io::Result<usize> {
    let addr = Box::leak(Box::new([0_u8; 512])).as_mut_ptr() as u64;
    // SAFETY: leaked memory is valid forever, and no reference to it exists.
    unsafe { disk.transfer(&Operation { opcode: Opcode::Read, fd: 0, addr, len: 512, offset }) }
}

/// Creates a coroutine that the loop's next iteration enters. The join handle returns its panic.
#[track_caller]
pub fn spawn<T: 'static>(name: &'static str, f: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    Coroutine::builder().name(name).spawn(|| told(f)).expect("memory for a stack")
}

/// Runs the loop until all coroutines have ended.
pub fn run_loop(context: &AioContext, all: &[Coroutine]) {
    while !all.iter().all(|coroutine| coroutine.has_ended()) {
        context.poll(true);
    }
}

/// Creates a file whose name and contents are durable.
pub fn durable_file(sim: &Sim, name: &str, contents: &str) -> File {
    let file = sim.create(name, contents.len() as u64);
    // Changes the disk itself, without a request.
    sim.corrupt(name, 0, contents.as_bytes());
    file
}

/// Makes another thread run `meanwhile` when this thread has read the next completion and not yet
/// counted it. This thread waits meanwhile, so the order is deterministic.
pub fn meet_another_thread(backend: &ScriptedBackend, context: &AioContext, meanwhile: fn(&AioContext)) {
    let context = context.clone();
    backend.on_next_peek(move || {
        say("has read the first completion, and not counted it yet");
        thread::spawn(move || meanwhile(&context)).join().expect("it does not panic");
    });
}

/// Polls if the context's lock is free.
pub fn poll_if_free(context: &AioContext) {
    let guard = context.try_acquire();
    let what = if guard.is_some() { "takes the lock: polls" } else { "cannot take the lock: does not poll" };
    context.tracer().expect("acts are traced").mark(format!("\"{what}\""));
    if guard.is_some() {
        context.poll(false);
    }
}
