//! A context in words: who is there, who waits for what, since when and where (rule X11).
//!
//! The home thread looks for itself. Another thread may look while the loop sleeps, with the context's lock; it asks the
//! loop, if that runs; and if it does not answer, because it hangs in something that it runs, it is stopped for the look, by
//! a signal (`interrupt.rs`).

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::coroutine::Token;
use crate::coroutine::control::{Control, State};
use crate::home::Home;

use super::AioContext;
use super::interrupt;
use super::shared::Shared;

/// For how long a running loop is waited for, until it is stopped for the look.
const PATIENCE: Duration = Duration::from_millis(200);

/// A context in words. `Display` is the text, a few lines; more for each coroutine that waits.
#[derive(Clone, PartialEq, Eq)]
pub struct Dump {
    text: String,
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl AioContext {
    /// How the context stands: each coroutine with its name, state, what it waits for, since when and where, and where it was
    /// made; locks with their holders; bottom halves, watches, timers, and the I/O engine's counters. From any thread, also
    /// when the loop hangs: then its thread is stopped for a moment by `SIGURG`.
    ///
    /// ```
    /// use coralio_runtime::{AioContext, Coroutine, suspend};
    ///
    /// AioContext::run(|ctx| {
    ///     Coroutine::builder().name("idler").create(suspend).unwrap().enter();
    ///     let dump = ctx.dump().to_string();
    ///     assert!(dump.contains("'idler' waits for an enter or a wake"), "{dump}");
    /// });
    /// ```
    ///
    /// # Control
    ///
    /// Never switches. From another thread, it may wait for a round of the loop.
    pub fn dump(&self) -> Dump {
        if let Some(home) = self.shared.home() {
            return Dump { text: self.shared.told(Some(home), "asked", false) };
        }
        if let Some(text) = self.look_while_asleep() {
            return Dump { text };
        }
        let text = match self.ask_the_loop(false) {
            Ok(text) => text,
            Err(RecvTimeoutError::Disconnected) => self.shared.told(None, "ended", false),
            Err(RecvTimeoutError::Timeout) => self.look_while_asleep().unwrap_or_else(|| self.look_by_force()),
        };
        Dump { text }
    }

    /// As [`dump`](Self::dump), with the backtrace of each coroutine that is suspended. If the loop hangs there are none but
    /// that of what it runs.
    ///
    /// # Control
    ///
    /// Never switches. From another thread, it waits for a round of the loop.
    pub fn dump_with_backtraces(&self) -> Dump {
        match self.shared.home() {
            Some(home) => Dump { text: self.shared.told(Some(home), "asked", true) },
            None => self.ask_the_loop(true).map_or_else(|_| self.dump(), |text| Dump { text }),
        }
    }

    /// By the loop itself, in its next round.
    fn ask_the_loop(&self, traces: bool) -> Result<String, RecvTimeoutError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let shared = Arc::clone(&self.shared);
        self.shared.arrive(Box::new(move || _ = answer.send(shared.told(shared.home(), "running", traces))));
        answered.recv_timeout(PATIENCE)
    }

    /// By another thread, while the loop sleeps.
    fn look_while_asleep(&self) -> Option<String> {
        let guard = self.try_acquire()?;
        let home = self.shared.away(&guard)?;
        Some(self.shared.told(Some(home), "asleep", false))
    }

    fn look_by_force(&self) -> String {
        let stopped = interrupt::stopped(&self.shared, |home| self.shared.told(Some(home), "busy in one round", false));
        match stopped {
            Ok((text, backtrace)) => format!("{text}  its thread is at\n{backtrace}"),
            Err(why) => {
                self.shared.told(None, &format!("busy in one round, and cannot be stopped for a look: {why}"), false)
            }
        }
    }
}

impl Shared {
    /// The text. Without `home` it is what any thread may see.
    fn told(&self, home: Option<&Home>, how: &str, traces: bool) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.tell(&mut text, home, how, traces);
        text
    }

    fn tell(&self, f: &mut String, home: Option<&Home>, how: &str, traces: bool) -> fmt::Result {
        writeln!(f, "context of thread {} ({how})", self.thread.describe())?;
        if let Some(home) = home {
            writeln!(f, "  on the stack: {}", home.chain())?;
            let live: Vec<_> = home.live().collect();
            writeln!(f, "  coroutines: {}", live.len())?;
            for block in live {
                writeln!(f, "    {}", home.tell_of(block))?;
                if let Some(Ok(trace)) = traces.then(|| Token::of(block.id()).coroutine().backtrace()) {
                    write!(f, "{trace}")?;
                }
            }
        }
        let busy = || "in use right now".to_string();
        writeln!(f, "  bottom halves: {}", self.bottom_halves.describe().unwrap_or_else(busy))?;
        writeln!(f, "  watches: {}", self.watches.describe().unwrap_or_else(busy))?;
        writeln!(f, "  timers: {}", self.timers.describe(self.clock.now()).unwrap_or_else(busy))?;
        let source = match home {
            Some(home) => home.source.get().cloned(),
            None => self.source.try_lock().and_then(|source| source.clone()),
        };
        if let Some(source) = source {
            writeln!(f, "  I/O engine: {}", source.describe())?;
        }
        Ok(())
    }
}

/// A coroutine in words.
pub(crate) struct ToldOf<'a>(&'a Home, &'static Control);

impl Home {
    /// One of its coroutines in words.
    pub(crate) fn tell_of(&self, block: &'static Control) -> ToldOf<'_> {
        ToldOf(self, block)
    }
}

impl fmt::Display for ToldOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ToldOf(home, block) = *self;
        let own = home.own(block);
        write!(f, "{} ", own.label())?;
        match own.state.get() {
            State::Free => f.write_str("is no more")?,
            State::Suspended if own.yielder.get().is_null() => f.write_str("has not been entered yet")?,
            State::Suspended => write!(
                f,
                "waits for {}, for {:?}, at {}",
                own.waiting.get().told_by(home),
                home.since(own.since.get()),
                own.suspended_at.get()
            )?,
            State::Scheduled => write!(f, "is to run, scheduled at {}", block.scheduled_at())?,
            State::Entered => f.write_str("is entered")?,
            State::Finished => f.write_str("has ended, and is not joined")?,
        }
        if block.ticket.is_cancelled() {
            f.write_str("; cancelled")?;
        }
        write!(f, "; made at {}", own.created_at.get())
    }
}
