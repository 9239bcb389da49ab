//! Group commit: many writers, one sync.
//!
//! A sync costs as much for one record as for a hundred. Writers therefore add their records to a
//! batch in memory and wait. One of them, the leader, writes and syncs the batch for all writers
//! that arrived before; meanwhile further writers fill the next batch:
//!
//! ```text
//!   batch n      filling  ->  taken by a leader  ->  written, synced  ->  durable, its writers wake
//!   batch n+1                 filling ........................ one of its writers leads ->
//! ```
//!
//! After a failed commit nothing more is acknowledged. When a sync fails, Linux marks the pages clean
//! although they were not written, and the next sync succeeds without them. So a second attempt
//! would acknowledge lost records.

use std::cell::{Cell, OnceCell};
use std::error::Error;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use coralio_runtime::{CoMutex, CoQueue, check_cancelled, shield, yield_now};

use crate::file::File;

/// Commits the records of many coroutines together.
///
/// `B` is a batch: whatever `commit` needs to write it, such as a buffer. `commit` makes a batch
/// durable, typically by a write and a sync, and empties it. There are two batches, so that one is
/// filled while the other is committed; no two commits run at the same time, and they run in order.
///
/// ```
/// use coralio::commit::GroupCommit;
/// use coralio::{File, spawn};
/// use std::rc::Rc;
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("coralio-commit-doc-{}", std::process::id()));
/// coralio::run(|| {
///     let file = File::options().read(true).write(true).create(true).open(&path)?;
///     let mut end = 0;
///     let log = Rc::new(GroupCommit::new(move |batch: &mut Vec<u8>| {
///         end += file.write_at(batch, end)? as u64;
///         batch.clear();
///         file.sync_data()
///     }));
///     let writers: Vec<_> = (0..100u8)
///         .map(|number| {
///             let log = Rc::clone(&log);
///             spawn(move || log.append(|batch| batch.push(number))) // durable when it returns
///         })
///         .collect();
///     writers.into_iter().try_for_each(|writer| writer.join().unwrap())?;
///     assert_eq!(log.commits(), 1); // one write and one sync for all
///     assert_eq!(coralio::fs::read(&path)?.len(), 100);
///     # std::fs::remove_file(&path)?;
///     Ok(())
/// })
/// # }
/// ```
///
/// To name the type, as for a field of a struct, box the closure: [`CommitFn`].
#[doc(alias("batch", "fsync", "WAL"))]
pub struct GroupCommit<B, F> {
    state: CoMutex<State<B, F>>,
    /// One queue for the writers of the batch being committed, one for those of the batch being
    /// filled, alternating.
    queues: [CoQueue; 2],
    /// Batches before this one are durable.
    durable: Cell<u64>,
    /// The first failed commit.
    failed: OnceCell<Arc<io::Error>>,
    /// The writers are coroutines of one context.
    _home: PhantomData<*const ()>,
}

/// A boxed commit function, so that the type of a [`GroupCommit`] can be named.
///
/// ```
/// use coralio::commit::{CommitFn, GroupCommit};
/// use std::rc::Rc;
///
/// struct Log {
///     file: Rc<coralio::File>,
///     syncs: GroupCommit<(), CommitFn<()>>,
/// }
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("coralio-boxed-doc-{}", std::process::id()));
/// coralio::run(|| {
///     let file = Rc::new(coralio::File::options().write(true).create(true).open(&path)?);
///     let synced = Rc::clone(&file);
///     let log = Log { file, syncs: GroupCommit::new(Box::new(move |()| synced.sync_data())) };
///     log.file.write_at(b"first", 0)?;
///     log.syncs.sync_or_poison()?;
///     # std::fs::remove_file(&path)?;
///     Ok(())
/// })
/// # }
/// ```
pub type CommitFn<B> = Box<dyn FnMut(&mut B) -> io::Result<()>>;

struct State<B, F> {
    filling: B,
    /// The number of the batch being filled.
    number: u64,
    /// `None` while a leader commits.
    idle: Option<(B, F)>,
    /// A writer is about to commit, or commits.
    is_led: bool,
}

impl<B: Default, F: FnMut(&mut B) -> io::Result<()>> GroupCommit<B, F> {
    /// Creates a group with two empty batches.
    pub fn new(commit: F) -> GroupCommit<B, F> {
        GroupCommit::with_batches([B::default(), B::default()], commit)
    }
}

impl GroupCommit<(), ()> {
    /// Creates a group whose commit is a sync of `file`'s data: for writers that make their own
    /// writes, and then call [`sync_or_poison`](GroupCommit::sync_or_poison).
    ///
    /// ```
    /// use coralio::commit::GroupCommit;
    /// use coralio::File;
    /// use std::rc::Rc;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("coralio-syncs-doc-{}", std::process::id()));
    /// coralio::run(|| {
    ///     let file = Rc::new(File::options().write(true).create(true).open(&path)?);
    ///     let syncs = GroupCommit::of_file(Rc::clone(&file));
    ///     file.write_at(b"first", 0)?;
    ///     syncs.sync_or_poison()?; // durable
    ///     # std::fs::remove_file(&path)?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn of_file(file: Rc<File>) -> GroupCommit<(), impl FnMut(&mut ()) -> io::Result<()>> {
        GroupCommit::new(move |()| file.sync_data())
    }
}

impl<B, F: FnMut(&mut B) -> io::Result<()>> GroupCommit<B, F> {
    /// Creates a group with these batches, for batches that are not empty by
    /// [`default`](Default::default), such as buffers of a fixed size.
    pub fn with_batches([filling, spare]: [B; 2], commit: F) -> GroupCommit<B, F> {
        GroupCommit {
            state: CoMutex::new(State { filling, number: 0, idle: Some((spare, commit)), is_led: false }),
            queues: [CoQueue::new(), CoQueue::new()],
            durable: Cell::new(0),
            failed: OnceCell::new(),
            _home: PhantomData,
        }
    }

    /// Calls `add`, which adds a record to the batch being filled, and returns its result when that
    /// batch is durable. A batch grows while the one before it is committed; since each writer
    /// waits, it has at most one record of each writer.
    ///
    /// `add` runs immediately, in the order of the calls. It must not yield: all other writers wait
    /// for it meanwhile. A call of `append` panics in `add`, and waits for ever in `commit`.
    ///
    /// # Errors
    ///
    /// The error of the first commit that failed, whichever batch it was for: with its kind, its
    /// [code](crate::task::OsCode) and itself as source. The record may be durable or not; it is not
    /// acknowledged. `Cancelled`, if the coroutine was cancelled before the call, and then `add` is not
    /// called. A later cancellation or timeout does not end the wait, nor the commit if this
    /// coroutine leads it.
    ///
    /// # Panics
    ///
    /// Outside a coroutine. Propagates a panic of `add`, and of `commit` in the writer that leads; the
    /// group is then poisoned as by an error.
    ///
    /// # Control
    ///
    /// Yields.
    pub fn append<R>(&self, add: impl FnOnce(&mut B) -> R) -> io::Result<R> {
        check_cancelled()?;
        let mut state = self.state.lock();
        self.check()?;
        let value = add(&mut state.filling);
        let batch = state.number;
        loop {
            if batch < self.durable.get() {
                return Ok(value);
            }
            self.check()?;
            if state.is_led {
                state = self.queues[(batch % 2) as usize].wait(state);
                continue;
            }
            state.is_led = true;
            drop(state);
            // A cancelled leader would fail the commit of all others.
            shield(|| self.lead())?;
            state = self.state.lock();
        }
    }

    /// Returns when a sync has succeeded that began after this call: the caller's earlier writes are
    /// then durable.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append): after a failed sync, every call returns its error. Reopen the
    /// file, and read its contents from the disk again.
    ///
    /// # Panics
    ///
    /// As [`append`](Self::append).
    ///
    /// # Control
    ///
    /// Yields.
    pub fn sync_or_poison(&self) -> io::Result<()> {
        self.append(|_| ())
    }

    /// Commits the batch being filled.
    fn lead(&self) -> io::Result<()> {
        let poison = Poison(self);
        // All runnable writers add their records to the batch first.
        yield_now();
        let mut state = self.state.lock();
        let (spare, mut commit) = state.idle.take().expect("one writer leads at a time");
        let mut batch = mem::replace(&mut state.filling, spare);
        let number = state.number;
        state.number += 1;
        drop(state);
        let result = commit(&mut batch);
        let mut state = self.state.lock();
        state.idle = Some((batch, commit));
        state.is_led = false;
        result.map_err(|error| self.poison(error))?;
        self.durable.set(number + 1);
        drop(state);
        mem::forget(poison);
        self.queues[(number % 2) as usize].wake_all();
        // One of the writers of the next batch commits it.
        self.queues[((number + 1) % 2) as usize].wake_one();
        Ok(())
    }
}

impl<B, F> GroupCommit<B, F> {
    /// Returns the number of commits that succeeded.
    pub fn commits(&self) -> u64 {
        self.durable.get()
    }

    /// Returns whether a commit has failed, so that every call fails.
    ///
    /// ```
    /// use coralio::commit::GroupCommit;
    /// use coralio::simulate::{Fault, Faults, Simulation};
    /// use std::rc::Rc;
    ///
    /// Simulation::new().faults(Faults::none()).run(0..1, |sim| {
    ///     let syncs = GroupCommit::of_file(Rc::new(sim.create("log", 0)));
    ///     sim.inject(Fault::Error(libc::EIO));
    ///     assert!(syncs.sync_or_poison().is_err());
    ///     assert!(syncs.is_poisoned() && syncs.sync_or_poison().is_err()); // for ever
    ///     Ok(())
    /// });
    /// ```
    pub fn is_poisoned(&self) -> bool {
        self.failed.get().is_some()
    }

    /// Fails if a commit has failed.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append).
    fn check(&self) -> io::Result<()> {
        self.failed.get().map_or(Ok(()), |cause| Err(Poisoned(Arc::clone(cause)).into()))
    }

    /// Records the first failure. Returns it.
    fn poison(&self, error: io::Error) -> io::Error {
        Poisoned(Arc::clone(self.failed.get_or_init(|| Arc::new(error)))).into()
    }
}

impl<B, F> fmt::Debug for GroupCommit<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupCommit").field("failed", &self.failed.get()).finish_non_exhaustive()
    }
}

/// Guards a commit by a leader: unless forgotten, poisons the group and wakes its writers on drop.
struct Poison<'a, B, F>(&'a GroupCommit<B, F>);

impl<B, F> Drop for Poison<'_, B, F> {
    fn drop(&mut self) {
        self.0.poison(io::Error::other("the writer that led the commit panicked, or its context ended"));
        self.0.queues.iter().for_each(CoQueue::wake_all);
    }
}

/// The error of all calls after a failed commit.
#[derive(Debug)]
struct Poisoned(Arc<io::Error>);

impl From<Poisoned> for io::Error {
    fn from(poisoned: Poisoned) -> io::Error {
        io::Error::new(poisoned.0.kind(), poisoned)
    }
}

impl fmt::Display for Poisoned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing more is acknowledged after a failed commit: {}; reopen the file and recover", self.0)
    }
}

impl Error for Poisoned {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
