//! Who can never run again (rule S6).
//!
//! When the loop has slept for a while, and no I/O, timer, watch or bottom half is left that could end that, it looks at its
//! coroutines. One that waits for something that only others of them could give is stuck if they are; and who could give it
//! is known, or nobody else is there: no other thread runs, or no handle is out that could reach it. What is found is
//! reported, once. It is no error: the loop goes on sleeping, and a debugger finds all as it was.

use std::fmt::Write;
use std::sync::Arc;
use std::{fs, io, ptr};

use crate::coroutine::control::{Control, State};
use crate::coroutine::waiting::Giver;
use crate::home::Home;

/// Handles to a context that are its own: the home's two, and that of whoever runs it.
const OWN_HANDLES: usize = 3;

impl Home {
    /// Those that nobody can wake any more.
    fn stuck(&self) -> Vec<&'static Control> {
        let suspended = |block: &&'static Control| self.own(block).state.get() == State::Suspended;
        let mut stuck: Vec<_> = self.live().filter(suspended).collect();
        let suspended = stuck.len();
        let with_waker = stuck.iter().filter(|block| self.own(block).waiting.get().keeps_waker()).count();
        let known = OWN_HANDLES + usize::from(self.source.get().is_some()) + with_waker;
        let handles_out = Arc::strong_count(&self.shared) > known;
        let threads = is_threaded();
        loop {
            let others = stuck.len() < suspended;
            let may_run = |block: &&'static Control| match self.own(block).waiting.get().giver(self) {
                Giver::Event => true,
                Giver::Handle => handles_out || others,
                Giver::Coroutine(giver) => !stuck.iter().any(|&other| ptr::eq(other, giver)),
                Giver::Nobody => false,
                Giver::Others => others,
                Giver::Anyone => threads || others,
            };
            let still: Vec<_> = stuck.iter().copied().filter(|block| !may_run(block)).collect();
            if still.len() == stuck.len() {
                return still;
            }
            stuck = still;
        }
    }

    /// Reports those that are stuck, unless these very ones were reported before.
    pub(crate) fn report_deadlock(&self) {
        let stuck = self.stuck();
        let news = stuck.iter().map(|block| self.own(block).serial.get()).max().unwrap_or(0);
        if stuck.is_empty() || self.reported.replace(news) == news {
            return;
        }
        let mut text = format!(
            "coralio: deadlock: nothing can wake these {} coroutines any more; the loop has no I/O in flight, no timer and no \
             watch\n",
            stuck.len()
        );
        const MOST: usize = 32;
        for block in stuck.iter().take(MOST) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {}", self.tell_of(block));
        }
        if stuck.len() > MOST {
            let _ = writeln!(text, "  and {} more", stuck.len() - MOST);
        }
        eprint!("{text}");
    }
}

/// Whether this process has other threads. Where that is not to be known, it may have.
fn is_threaded() -> bool {
    let threads = || -> io::Result<usize> { Ok(fs::read_dir("/proc/self/task")?.count()) };
    threads().map_or(true, |threads| threads > 1)
}
