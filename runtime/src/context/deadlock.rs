//! Who can never run again (rule S6).
//!
//! When the loop has had nothing to do for a while, and no I/O, timer, watch or bottom half is left that could end that, it
//! looks at its coroutines. One that waits for something that only others of them could give is stuck if they are; and who
//! could give it is known, or nobody else is there: no other thread runs, or no handle is out that could reach it. What is
//! found is reported, once. It is no error: the loop goes on sleeping, and a debugger finds all as it was.

use std::cell::{Cell, LazyCell, OnceCell};
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, ptr};

use crate::coroutine::control::{Control, State};
use crate::coroutine::waiting::Giver;
use crate::home::Home;
use crate::report::report;
use crate::sys::TimerFd;

use super::shared::KICK_TOKEN;

/// When to look. The kernel's clock is set once and not for each sleep, which would cost each: a loop that sleeps and wakes
/// a hundred thousand times a second sets it once a second.
#[derive(Default)]
pub(crate) struct Patience {
    after: Cell<Option<Duration>>,
    clock: OnceCell<TimerFd>,
    /// Set for this time of the loop's clock, when so many rounds had made progress.
    set: Cell<Option<(u32, u64)>>,
    /// At how much progress it was looked last.
    looked: Cell<Option<u64>>,
}

impl Patience {
    /// After how long in which nothing happened.
    pub(crate) fn set_limit(&self, after: Option<Duration>) {
        self.after.set(after);
    }
}

impl Home {
    /// The loop is about to sleep, and no event can come: whether it is worth setting the clock.
    pub(crate) fn is_impatient(&self) -> bool {
        let patience = &self.patience;
        patience.after.get().is_some()
            && patience.set.get().is_none()
            && patience.looked.get() != Some(self.progress.get())
            && self.alive.get() > 0
    }

    /// Sets the clock; or looks at once, where no time passes while nothing happens.
    pub(crate) fn lose_patience(&self) {
        if self.shared.clock.is_virtual() {
            return self.report_deadlock();
        }
        let patience = &self.patience;
        let Some(after) = patience.after.get() else { return };
        let clock = || -> io::Result<TimerFd> {
            let clock = TimerFd::new()?;
            self.shared.epoll.add(clock.as_fd().as_raw_fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, KICK_TOKEN)?;
            Ok(clock)
        };
        // Without a descriptor for it there is no report, and nothing else is the worse for it.
        if patience.clock.get().is_none() {
            let Ok(clock) = clock() else { return patience.after.set(None) };
            let _ = patience.clock.set(clock);
        }
        self.look_at_clock();
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX / 4);
        if patience.clock.get().is_some_and(|clock| clock.arm(after).is_ok()) {
            patience.set.set(Some((self.clock.get().wrapping_add(after_ms), self.progress.get())));
        }
    }

    /// The loop has slept: whether the time is over, and nothing has happened in it.
    pub(crate) fn has_lost_patience(&self) -> bool {
        let Some((until, progress)) = self.patience.set.get() else { return false };
        if self.clock.get().wrapping_sub(until) as i32 >= 0 {
            self.patience.set.set(None);
            return progress == self.progress.get();
        }
        false
    }
}

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
        let threads = LazyCell::new(is_threaded);
        loop {
            let others = stuck.len() < suspended;
            let may_run = |block: &&'static Control| match self.own(block).waiting.get().giver(self) {
                Giver::Event => true,
                Giver::Handle => handles_out || others,
                Giver::Coroutine(giver) => !stuck.iter().any(|&other| ptr::eq(other, giver)),
                Giver::Nobody => false,
                Giver::Others => others,
                Giver::Anyone => others || *threads,
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
        self.patience.looked.set(Some(self.progress.get()));
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
        report(format_args!("{text}"));
    }
}

/// Whether this process has other threads. Where that is not to be known, it may have.
fn is_threaded() -> bool {
    let threads = || -> io::Result<usize> { Ok(fs::read_dir("/proc/self/task")?.count()) };
    threads().map_or(true, |threads| threads > 1)
}
