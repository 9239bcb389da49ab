//! Lesson 16. Cancelling.
//!
//! `cancel` stops nothing. It sets a flag and wakes the coroutine; from then on its waits and its
//! I/O return the error `Cancelled`, which travels like any error, with `?`. So destructors run
//! where they always do, and code between two waits is never interrupted.
//!
//! Puzzle: A reads into a buffer on its stack, and the kernel has the request when A is cancelled.
//! When does A's call return, and with what?
//!
//! Hint: the kernel may write to the buffer at any moment until it reports the completion.

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::io;

use coralio::engine::guards::{AllGuards, Guards, OnCancel};
use coralio::task::{check_cancelled, shield};

use lesson::{Disk, act, attach, backend, say, spawn, try_read, try_read_leaked, try_write};

/// Returns from a cancelled call while the kernel still has the request.
struct ReturnsAtOnce;

// SAFETY: it reaps under the lock, and the cancelled request reads into leaked memory.
unsafe impl Guards for ReturnsAtOnce {
    const ON_CANCEL: OnCancel = OnCancel::ReturnsAtOnce;
}

/// Says when its scope is left.
struct Scope(&'static str);

impl Drop for Scope {
    fn drop(&mut self) {
        say(format!("{}: destructor", self.0));
    }
}

/// Runs A, which runs `job`, and cancels it when its first request is in flight. At the end the
/// block at 512, which says that the file is open, must say otherwise.
fn cancel_in_flight<G: Guards>(title: &str, job: fn(&Disk<G>) -> io::Result<()>) {
    act(title, |context| {
        let backend = backend();
        backend.hold(0);
        let disk: Disk<G> = attach(&backend, 8);
        let a = spawn("A", move || {
            let _scope = Scope("A's job");
            let result = job(&disk);
            say(result.map_or_else(|error| error.to_string(), |()| "the job is done".into()));
        });
        context.poll(false);
        say("cancels A");
        a.cancel();
        say("the kernel completes the read");
        backend.release(0);
        while !a.is_finished() {
            context.poll(true);
        }
        context.poll(false);
        assert!(backend.disk()[512] == 0, "A has ended, and the file still counts as open");
    });
}

/// Reads, and notes that the file is closed.
fn read_and_close(disk: &Disk, close: fn(&Disk) -> io::Result<()>) -> io::Result<()> {
    let read = try_read(disk, 0);
    say(format!("the read returns {read:?}"));
    close(disk)?;
    check_cancelled()?;
    read.map(drop)
}

fn note_closed(disk: &Disk) -> io::Result<()> {
    say("notes that the file is closed");
    try_write(disk, 512).map(drop)
}

pub fn main() {
    // A's call returns after the kernel has given the buffer back: here with the data, because the
    // kernel did not stop. The *next* call returns `Cancelled`, without a request. So the note that
    // A wants to leave behind is not written.
    cancel_in_flight("The puzzle: A is cancelled, then closes the file", |disk| read_and_close(disk, note_closed));

    // If the call returned immediately, the buffer would be freed, and the kernel would write to
    // memory that belongs to others. The engine panics when that completion comes. (The buffer of
    // this act is leaked, so that no memory is damaged.)
    cancel_in_flight::<ReturnsAtOnce>("A fix that fails: the call returns immediately", |disk| {
        let read = try_read_leaked(disk, 0);
        say(format!("the read returns {read:?}"));
        read.map(drop)
    });

    // A shield masks the flag, for work that must be finished. It should be short: who cancels A
    // waits for it.
    cancel_in_flight::<AllGuards>("The fix: a shield around the note", |disk| {
        read_and_close(disk, |disk| shield(|| note_closed(disk)))
    });

    // A request that is still pending never reaches the kernel: the call returns immediately.
    act("Cancelled before the submit", |context| {
        let disk: Disk = attach(&backend(), 8);
        let a = spawn("A", move || say(format!("the read returns {:?}", try_read(&disk, 0))));
        let b = spawn("B", move || {
            say("cancels A");
            a.cancel();
        });
        while !b.is_finished() {
            context.poll(false);
        }
    });
}
