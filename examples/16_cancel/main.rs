//! Lesson 16. Cancelling.
//!
//! `cancel` stops nothing. It sets a flag and wakes the coroutine. Waits and I/O that begin later
//! return the error `Cancelled`, which is passed on with `?`. So destructors run where they always
//! do, and code between two waits is never interrupted.
//!
//! Puzzle: A reads into a buffer on its stack, and the kernel has the request when A is cancelled.
//! When does A's call return, and with what?
//!
//! Hint: the kernel may write to the buffer until it has reported the completion.

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::io;

use coralio::engine::guards::{Guards, OnCancel};
use coralio::task::{check_cancelled, shield};

use lesson::{Disk, act, attach, backend, run_loop, say, spawn, try_read, try_read_leaked, try_write};

/// Returns from a cancelled call while the kernel still has the request.
struct ReturnsAtOnce;

// SAFETY: it reaps under the lock, and the cancelled request reads into leaked memory.
unsafe impl Guards for ReturnsAtOnce {
    const ON_CANCEL: OnCancel = OnCancel::ReturnsAtOnce;
}

/// A value on A's stack.
struct Local;

impl Drop for Local {
    fn drop(&mut self) {
        say("drops its locals");
    }
}

/// Runs A, which runs `job`, and cancels it when its first request is in flight. In the end the
/// block at 512, which notes that the file is open, must note that it is closed.
fn cancel_in_flight<G: Guards>(title: &str, job: fn(&Disk<G>) -> io::Result<()>) {
    act(title, |context| {
        let backend = backend();
        backend.hold(0);
        let disk: Disk<G> = attach(&backend, 8);
        let a = spawn("A", move || {
            let _local = Local;
            job(&disk)
        });
        context.poll(false);
        say("cancels A");
        a.cancel();
        say("the kernel completes the read");
        backend.release(0);
        context.poll(true);
        run_loop(context, &[a.coroutine()]);
        assert!(backend.disk()[512] == 0, "A has ended, and the file is still noted as open");
    });
}

fn tell(result: io::Result<usize>) -> io::Result<()> {
    say(result.as_ref().map_or("returns Cancelled".into(), |bytes| format!("returns {bytes} bytes")));
    result.map(drop)
}

fn note_closed(disk: &Disk) -> io::Result<()> {
    say("notes that the file is closed");
    tell(try_write(disk, 512))
}

pub fn main() {
    // A is entered to see the flag; it asks the kernel to stop (no row shows this), and waits on.
    // The call returns when the kernel has given the buffer back: here with the data, as it did not
    // stop. The *next* call returns `Cancelled`, without a request; so A's note is not written.
    cancel_in_flight("The puzzle: A is cancelled, and then closes the file", |disk| {
        tell(try_read(disk, 0))?;
        note_closed(disk)
    });

    // If the call returned immediately, the kernel would write to a buffer that is freed, or in use
    // for something else. (Here it is leaked.) The engine panics when the completion comes.
    cancel_in_flight::<ReturnsAtOnce>("A fix that fails: an early return", |disk| tell(try_read_leaked(disk, 0)));

    // A shield masks the flag, for work that must be finished. Keep it short: the code that has
    // cancelled A may be waiting for it.
    cancel_in_flight("The fix: a shield around the note", |disk| {
        tell(try_read(disk, 0))?;
        shield(|| note_closed(disk))?;
        Ok(check_cancelled()?)
    });

    // A request that is pending has not reached the kernel: it is removed.
    act("Cancelled before the submit", |context| {
        let disk: Disk = attach(&backend(), 8);
        let a = spawn("A", move || tell(try_read(&disk, 0)));
        let _b = spawn("B", move || a.cancel());
        context.poll(false);
    });
}
