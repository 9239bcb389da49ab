//! The state of a context as text: its coroutines, what each waits for, since when and where (rule
//! X11).
//!
//! The home thread reads its own state. Another thread reads it under the context's lock while the
//! loop sleeps; asks the loop if it runs; and if the loop does not answer, because some code blocks
//! it or it is ending, stops the home thread by a signal for the time of the read (`interrupt.rs`).

use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crate::context::{AioContext, LocalContext, SharedContext};
use crate::coroutine::{ControlBlock, State};
use crate::diagnostics::Prepared;
use crate::diagnostics::interrupt;
use crate::scheduler::Scheduler;
use crate::sys::format_fn;
use crate::task::Coroutine;

/// How long to wait for a running loop's answer before stopping its thread.
const TIMEOUT: Duration = Duration::from_millis(200);

/// A context's state as text. `Display` prints a few lines, and more for each suspended coroutine.
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
    /// Describes the context: each coroutine with its name, its state, what it waits for, since
    /// when and where, and where it was created; locks with their owners; bottom halves, fd
    /// handlers, timers, and the I/O engine's counters. From any thread, even if the loop hangs or
    /// the context is ending: the home thread is then stopped briefly by `SIGURG`.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::coroutine::{Coroutine, suspend};
    ///
    /// AioContext::run(|ctx| {
    ///     Coroutine::builder().name("idler").create(suspend).unwrap().enter();
    ///     let dump = ctx.dump().to_string();
    ///     assert!(dump.contains("'idler' waits for an enter or a wake"), "{dump}");
    ///     println!("{}", ctx.dump_with_backtraces()); // with the functions that the idler is in
    /// });
    /// ```
    ///
    /// # Control
    ///
    /// From another thread, may wait for an iteration of the loop.
    pub fn dump(&self) -> Dump {
        if let Some(home) = self.shared.home() {
            return Dump { text: self.shared.text_at_home(home, "asked", false) };
        }
        let text = self
            .read_while_asleep()
            .or_else(|| self.ask_loop(false))
            .or_else(|| self.read_while_asleep())
            .unwrap_or_else(|| self.read_while_stopped());
        Dump { text }
    }

    /// As [`dump`](Self::dump), with the backtrace of each suspended coroutine. If the loop hangs,
    /// the only backtrace is that of the code it runs.
    ///
    /// # Control
    ///
    /// From another thread, waits for an iteration of the loop.
    pub fn dump_with_backtraces(&self) -> Dump {
        match self.shared.home() {
            Some(home) => Dump { text: self.shared.text_at_home(home, "asked", true) },
            None => self.ask_loop(true).map_or_else(|| self.dump(), |text| Dump { text }),
        }
    }

    /// Lets the loop itself produce the text, in its next iteration. Returns `None` if it does not
    /// answer in time or has ended.
    fn ask_loop(&self, traces: bool) -> Option<String> {
        let (answer, answered) = mpsc::sync_channel(1);
        let shared = Arc::clone(&self.shared);
        self.shared.scheduler.run_at_home(Box::new(move || {
            let text = shared.home().map(|home| shared.text_at_home(home, "running", traces));
            let _ = answer.send(text);
        }));
        answered.recv_timeout(TIMEOUT).ok()?
    }

    /// Reads the state from another thread, while the loop sleeps.
    fn read_while_asleep(&self) -> Option<String> {
        let guard = self.try_acquire()?;
        let home = self.shared.sleeping_home(&guard)?;
        Some(self.shared.text_at_home(home, "asleep", false))
    }

    /// Reads the state from another thread by stopping the home thread; while it is stopped only
    /// the coroutines are read.
    fn read_while_stopped(&self) -> String {
        let shared = &*self.shared;
        let mut snapshot = Snapshot::prepare(256, 64 * 1024);
        let mut attempts = 1;
        loop {
            let backtrace = match interrupt::stopped(shared, |scheduler| snapshot.fill(scheduler, shared.is_sleeping()))
            {
                Ok(((), backtrace)) => backtrace,
                Err(_) if shared.thread.has_left() => return shared.text("ended", |_| Ok(())),
                Err(why) => return shared.text(&format!("cannot be interrupted: {why}"), |_| Ok(())),
            };
            // Coroutines may be created between two attempts; the last one shows as many as fit.
            if snapshot.has_all() || attempts == MAX_ATTEMPTS {
                let text = shared.text(snapshot.how, |text| text.write_str(snapshot.text.as_str()));
                return format!("{text}  its thread is at:\n{backtrace}");
            }
            attempts += 1;
            snapshot = snapshot.larger();
        }
    }
}

/// Maximum number of times a thread is stopped for one dump; the first attempts find the memory
/// needed.
const MAX_ATTEMPTS: usize = 4;

/// The state read from a stopped thread, in preallocated memory.
struct Snapshot {
    how: &'static str,
    /// The number of coroutines, and as many of them as fit.
    count: usize,
    live: Vec<&'static ControlBlock>,
    text: Prepared,
}

impl Snapshot {
    fn prepare(coroutines: usize, bytes: usize) -> Snapshot {
        Snapshot { how: "", count: 0, live: Vec::with_capacity(coroutines), text: Prepared::with_capacity(bytes) }
    }

    /// Allocates nothing, takes no lock, and only reads, as [`interrupt::stopped`]
    /// requires.
    fn fill(&mut self, scheduler: &Scheduler, is_sleeping: bool) {
        self.how = match scheduler.is_ending() {
            true => "ending",
            false if is_sleeping => "asleep or waiting for its lock",
            false => "busy in one iteration",
        };
        for block in scheduler.live_in_any_order() {
            self.count += 1;
            if self.live.len() < self.live.capacity() {
                self.live.push(block);
            }
        }
        scheduler.sort_by_age(&mut self.live);
        // Writing to preallocated memory does not fail.
        let _ = scheduler.write_coroutines(&mut self.text, self.count, &self.live, false);
    }

    fn has_all(&self) -> bool {
        self.live.len() == self.count && self.text.is_complete()
    }

    /// Allocates space for the state that this attempt found, and some more.
    fn larger(&self) -> Snapshot {
        let each = self.text.needed() / self.live.len().max(1) + 1;
        let coroutines = self.count + self.count / 4 + 256;
        Snapshot::prepare(coroutines, each * coroutines + 64 * 1024)
    }
}

impl SharedContext {
    /// Formats the text, with all coroutines of `home`.
    fn text_at_home(&self, home: &LocalContext, how: &str, traces: bool) -> String {
        let live: Vec<_> = home.scheduler.live().collect();
        self.text(how, |text| home.scheduler.write_coroutines(text, live.len(), &live, traces))
    }

    /// Formats the text; `coroutines` writes its middle.
    fn text(&self, how: &str, coroutines: impl FnOnce(&mut String) -> fmt::Result) -> String {
        let mut text = format!("context of thread {} ({how})\n", self.thread.describe());
        // Writing to a string does not fail.
        let _ = coroutines(&mut text).and_then(|()| self.write_tables(&mut text));
        text
    }

    /// Formats the registrations with the loop. Takes locks, so must not be called while the home
    /// thread is stopped.
    fn write_tables(&self, f: &mut String) -> fmt::Result {
        writeln!(f, "  bottom halves: {}", self.bottom_halves.description())?;
        writeln!(f, "  watches: {}", self.watches.description())?;
        writeln!(f, "  timers: {}", self.timers.description(self.scheduler.clock.now()))?;
        let source = self.source.try_lock().and_then(|source| source.clone());
        if let Some(source) = source {
            writeln!(f, "  I/O engine: {}", source.describe())?;
        }
        Ok(())
    }
}

impl Scheduler {
    /// Formats the stack of entered coroutines, and `live`, the first of `count` coroutines.
    /// Without `traces`, allocates nothing, takes no lock and only reads.
    fn write_coroutines(
        &self,
        f: &mut impl Write,
        count: usize,
        live: &[&'static ControlBlock],
        traces: bool,
    ) -> fmt::Result {
        writeln!(f, "  on the stack: {}", self.chain())?;
        writeln!(f, "  coroutines: {count}")?;
        for &block in live {
            writeln!(f, "    {}", self.describe(block))?;
            if let Some(Ok(trace)) = traces.then(|| Coroutine::of(block.id()).backtrace()) {
                write!(f, "{trace}")?;
            }
        }
        Ok(())
    }

    /// Describes one coroutine. Formatting allocates nothing, takes no lock and only reads.
    pub(crate) fn describe(&self, block: &'static ControlBlock) -> impl fmt::Display {
        format_fn(move |f| {
            let local = self.local(block);
            write!(f, "{} ", local.label())?;
            match local.state.get() {
                State::Free => f.write_str("freed")?,
                State::Suspended if local.yielder.get().is_null() => f.write_str("not entered yet")?,
                State::Suspended => write!(
                    f,
                    "waits for {}, for {:?}, at {}",
                    local.wait_reason.get().display(self),
                    self.clock.since(local.since.get()),
                    local.suspended_at.get()
                )?,
                State::Scheduled => write!(f, "scheduled at {}", block.scheduled_at())?,
                State::Entered => f.write_str("entered")?,
                State::Finished => f.write_str("finished, not joined")?,
            }
            if block.word.is_cancelled() {
                f.write_str("; cancelled")?;
            }
            write!(f, "; created at {}", local.created_at.get())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::interrupt::allocations;
    use super::*;
    use crate::{CoMutex, Coroutine, suspend};
    use std::rc::Rc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn dump_allocates_nothing_while_the_thread_is_stopped() {
        // X11: the home thread may have been stopped inside the allocator; an attempt that finds
        // more state than fits is repeated with more memory
        AioContext::run(|ctx| {
            const COROUTINES: usize = 700;
            let lock = Rc::new(CoMutex::new(()));
            let start = |name: String, f: Box<dyn FnOnce()>| {
                Coroutine::builder().name(name).stack_size(32 * 1024).create(f).unwrap().enter();
            };
            let held = Rc::clone(&lock);
            start("holder".into(), Box::new(move || drop((held.lock(), suspend()))));
            start("waiter".into(), Box::new(move || drop(lock.lock())));
            for number in 2..COROUTINES - 1 {
                // Names longer than the initial estimate.
                start(format!("{number}{}", "-".repeat(400)), Box::new(suspend));
            }
            let (context, over) = (ctx.clone(), Arc::new(AtomicBool::new(false)));
            let ends = Arc::clone(&over);
            let looker = thread::spawn(move || {
                let mut text = String::new();
                let seen = allocations::while_stopped(&context.shared, || text = context.read_while_stopped());
                ends.store(true, Ordering::Relaxed);
                (seen, text)
            });
            start(
                "busy".into(),
                Box::new(move || {
                    while !over.load(Ordering::Relaxed) {
                        thread::yield_now();
                    }
                }),
            );
            let (seen, text) = looker.join().unwrap();
            assert_eq!(seen, 0);
            for words in ["thread > 'busy'", "'waiter' waits for CoMutex", "held by 'holder'", "'busy' entered"] {
                assert!(text.contains(words), "no `{words}` in\n{text}");
            }
            assert!(text.contains(&format!("coroutines: {COROUTINES}\n")), "{text}");
            assert_eq!(text.matches("waits for an enter or a wake").count(), COROUTINES - 2);
            assert!(text.find("'2--").unwrap() < text.find("'600--").unwrap(), "in the order of creation");
        });
    }

    #[test]
    fn two_threads_dump_simultaneously() {
        // X11: one thread holds the context's lock and reads while the loop sleeps, another stops
        // the home thread, which waits for that lock by now: each finds all coroutines, and all are
        // unwound at the end
        const COROUTINES: usize = 2000;
        let dropped = Rc::new(std::cell::Cell::new(0));
        struct Counts(Rc<std::cell::Cell<usize>>);
        impl Drop for Counts {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        AioContext::builder()
            .stack_size(16 * 1024)
            .report_unwound(false)
            .report_deadlocks_after(None)
            .run(|ctx| {
                for _ in 0..COROUTINES {
                    let counts = Counts(Rc::clone(&dropped));
                    Coroutine::new(move || drop((suspend(), counts))).enter();
                }
                let (context, over) = (ctx.clone(), Arc::new(AtomicBool::new(false)));
                let ends = Arc::clone(&over);
                let inspectors = thread::spawn(move || {
                    let shared = &*context.shared;
                    let guard = loop {
                        let guard = context.acquire();
                        if shared.sleeping_home(&guard).is_some() {
                            break guard;
                        }
                        drop(guard);
                        thread::yield_now();
                    };
                    context.notify();
                    let waits = |text: &str| text.contains("ContextLock::lock");
                    thread::scope(|scope| {
                        let forced = scope.spawn(|| {
                            let text = loop {
                                let text = context.read_while_stopped();
                                if waits(&text) {
                                    break text;
                                }
                            };
                            let count = |home: &Scheduler| home.live_in_any_order().count();
                            (text, [(); 200].map(|()| interrupt::stopped(shared, count).unwrap().0))
                        });
                        while !forced.is_finished() {
                            let home = shared.sleeping_home(&guard).expect("the loop waits for the lock");
                            assert_eq!(home.scheduler.live().count(), COROUTINES);
                        }
                        let (text, counts) = forced.join().unwrap();
                        assert_eq!(counts, [COROUTINES; 200]);
                        assert!(text.contains(&format!("coroutines: {COROUTINES}\n")), "{text}");
                        assert!(text.contains("(asleep or waiting for its lock)"), "{text}");
                    });
                    drop(guard);
                    ends.store(true, Ordering::Relaxed);
                    context.notify();
                });
                while !over.load(Ordering::Relaxed) {
                    ctx.poll(true);
                }
                inspectors.join().unwrap();
            })
            .unwrap();
        assert_eq!(dropped.get(), COROUTINES);
    }
}
