//! The production engine on a scripted backend: what it submits and when, the order of reaping, and
//! early termination (SPEC E). Nothing here depends on time. The kernel's side of each test is a
//! transcript: `0,512>1` is a submit that offered the requests at these offsets, of which the
//! kernel took one; `wait` is a sleep.

mod cancel;
mod drain;
mod hostile;
mod lone;
mod plug;
mod reap;
mod short;
mod submit;
mod teardown;

#[path = "../common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::scripted::{Entry, ScriptedBackend};
use coralio::engine::{Backend, Completion, Opcode, Operation};

use common::{panic_of, scaled, text};

/// A scripted backend whose calls are recorded.
#[derive(Clone)]
pub struct Watched {
    /// The script that decides what the kernel does.
    pub script: ScriptedBackend,
    seen: Arc<Mutex<Seen>>,
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Seen {
    transcript: Vec<String>,
    offsets: HashMap<u64, u64>,
    on_wait: Option<Hook>,
    /// Whether the next completion is delivered twice.
    echo: bool,
    echoed: bool,
}

impl Watched {
    pub fn new(capacity: u32) -> Watched {
        Watched { script: ScriptedBackend::new(capacity), seen: Arc::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns what happened since the last call.
    pub fn transcript(&self) -> String {
        std::mem::take(&mut self.seen().transcript).join(" ")
    }

    /// Returns the number of distinct slots that requests have used so far.
    pub fn slots(&self) -> usize {
        let mut slots: Vec<_> = self.seen().offsets.keys().map(|&key| key as u32).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.len()
    }

    /// Runs `hook` in the next sleep.
    pub fn on_next_wait(&self, hook: impl FnOnce() + Send + 'static) {
        self.seen().on_wait = Some(Box::new(hook));
    }

    /// Delivers the next completion twice.
    pub fn echo_next(&self) {
        self.seen().echo = true;
    }
}

// SAFETY: the scripted backend keeps the contract. An echo breaks it, but the echoed request never
// touches its memory again.
unsafe impl Backend for Watched {
    type Entry = Entry;

    fn capacity(&self) -> u32 {
        self.script.capacity()
    }

    fn prepare(&self, operation: &Operation, key: u64) -> Entry {
        self.seen().offsets.insert(key, operation.offset);
        self.script.prepare(operation, key)
    }

    fn key(&self, entry: &Entry) -> u64 {
        self.script.key(entry)
    }

    unsafe fn submit(&self, entries: &mut [Entry]) -> io::Result<usize> {
        let keys: Vec<_> = entries.iter().map(|entry| self.script.key(entry)).collect();
        // SAFETY: the caller upholds the contract.
        let result = unsafe { self.script.submit(entries) };
        let mut seen = self.seen();
        let offered: Vec<_> = keys.iter().map(|key| seen.offsets[key].to_string()).collect();
        let said = match &result {
            Ok(taken) => taken.to_string(),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => "again".into(),
                errno => format!("error{}", errno.unwrap()),
            },
        };
        seen.transcript.push(format!("{}>{said}", offered.join(",")));
        result
    }

    unsafe fn peek_completion(&self) -> Option<Completion> {
        // SAFETY: the caller upholds the contract.
        unsafe { self.script.peek_completion() }
    }

    unsafe fn advance(&self) {
        let mut seen = self.seen();
        if seen.echo && !std::mem::replace(&mut seen.echoed, true) {
            return;
        }
        drop(seen);
        // SAFETY: the caller upholds the contract.
        unsafe { self.script.advance() };
    }

    unsafe fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        self.seen().transcript.push("wait".into());
        let hook = self.seen().on_wait.take();
        if let Some(hook) = hook {
            hook();
        }
        // SAFETY: the caller upholds the contract.
        unsafe { self.script.wait(other, timeout) }
    }
}

type Watch = Arc<Engine<Watched>>;

/// Runs `f` on this thread's own stack, in a context with an engine of this depth.
fn with_engine<R>(depth: u32, f: impl FnOnce(&AioContext, &Watched, &Watch) -> R) -> R {
    AioContext::run(|context| {
        let backend = Watched::new(depth);
        let engine = Engine::attach(backend.clone(), depth).unwrap();
        f(context, &backend, &engine)
    })
}

fn read(engine: &Watch, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let (addr, len) = (buf.as_mut_ptr() as u64, buf.len() as u64);
    // SAFETY: the buffer is borrowed exclusively until transfer returns or unwinds.
    unsafe { engine.transfer(&Operation { opcode: Opcode::Read, fd: 0, addr, len, offset }) }
}

fn write(engine: &Watch, buf: &[u8], offset: u64) -> io::Result<usize> {
    let (addr, len) = (buf.as_ptr() as u64, buf.len() as u64);
    // SAFETY: the buffer is borrowed until transfer returns or unwinds, and a write only reads it.
    unsafe { engine.transfer(&Operation { opcode: Opcode::Write, fd: 0, addr, len, offset }) }
}

/// Reads one byte at `offset`, for tests that need only the request.
fn touch(engine: &Watch, offset: u64) -> Result<usize, i32> {
    read(engine, &mut [0], offset).map_err(|error| error.raw_os_error().unwrap())
}

/// Polls, with sleeps, until `done`; fails after a hundred iterations. The idle bottom half ends
/// sleeps that nothing else would end.
fn rounds_until(done: impl Fn() -> bool) {
    let context = AioContext::current().unwrap();
    let alarm = context.new_bottom_half(|| {}).unwrap();
    for _ in 0..100 {
        if done() {
            return;
        }
        alarm.schedule_idle();
        context.poll(true);
    }
    // Unwinding would wait for the request, which never completes.
    eprintln!("a wedge: a hundred rounds, and a request is still waiting");
    std::process::abort();
}

/// A log of events, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, what: impl ToString) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(what.to_string());
    }

    fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock().unwrap()).join(" ")
    }
}
