//! A backend scripted by a test, which determines when each request completes and with which
//! result.
//!
//! Its disk is a vector of bytes. A request completes
//!
//! - by default when the loop sleeps, like a request on a slow disk;
//! - when a given request is submitted, possibly itself: [`ScriptedBackend::complete_on_submit`];
//! - when the test releases it: [`ScriptedBackend::hold`], then [`ScriptedBackend::release`].
//!
//! A test can also decide during the run, for instance to search all runs: its hook is called at
//! each [`Turn`] of the kernel, see [`ScriptedBackend::on_turn`].
//!
//! Requests are numbered from 0 in the order in which the backend accepted them.
//!
//! # Differences from Linux
//!
//! Time stands still. A sleep that nothing could end panics: this detects a poll that would never
//! end, without a time limit. Another thread's `notify` does not end a sleep.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use super::Entry;
use super::io_buffers::IoBuffers;
use super::{Backend, Completion, Operation};

/// A scripted backend, see the [module](self). Clones share their state: one for the engine, one
/// for the test. It serves one engine at a time: while one has requests in flight, those of another
/// fail with `EBUSY`.
pub struct ScriptedBackend {
    state: Arc<Mutex<State>>,
    capacity: u32,
    /// Identifies the clone.
    number: u64,
}

impl Clone for ScriptedBackend {
    fn clone(&self) -> ScriptedBackend {
        let mut state = self.state.lock();
        state.clones += 1;
        ScriptedBackend { state: Arc::clone(&self.state), capacity: self.capacity, number: state.clones }
    }
}

/// The event that completes a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Sleep,
    Submit(usize),
    Released,
}

/// The outcome of one call of `submit`.
enum Verdict {
    Take(usize),
    Refuse(i32),
}

type Hook = Box<dyn FnOnce() + Send>;

/// A moment at which the kernel may act, see [`ScriptedBackend::on_turn`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Turn<'a> {
    /// A submit offers these operations. [`refuse`](ScriptedBackend::refuse) and
    /// [`take_at_most`](ScriptedBackend::take_at_most), called now, apply to this submit.
    Offered(&'a [Operation]),
    /// The submit has accepted this many operations, and has not returned yet. Requests that are
    /// [released](ScriptedBackend::release) now complete within the submit.
    Accepted(usize),
    /// A completion has been peeked, and the cursor has not moved yet.
    Peeked,
    /// The loop sleeps, with an empty ring.
    Asleep,
}

type TurnHook = Box<dyn FnMut(&ScriptedBackend, Turn<'_>) + Send>;

#[derive(Default)]
struct State {
    disk: Vec<u8>,
    taken: usize,
    in_flight: BTreeMap<usize, Entry>,
    ring: VecDeque<Completion>,
    when: BTreeMap<usize, When>,
    results: BTreeMap<usize, i64>,
    limits: BTreeMap<usize, usize>,
    verdicts: VecDeque<Verdict>,
    peek_hook: Option<Hook>,
    turn_hook: Option<TurnHook>,
    /// Whether there is a turn hook, also while it runs.
    has_turns: bool,
    clones: u64,
    /// The clone that submitted the requests in flight. Otherwise a second engine could take their
    /// completions for its own, and release buffers that are lent.
    user: u64,
}

impl ScriptedBackend {
    /// Creates a backend for up to `capacity` requests in flight, with an empty disk.
    pub fn new(capacity: u32) -> ScriptedBackend {
        ScriptedBackend { state: Arc::default(), capacity, number: 0 }
    }

    /// Completes request `number` when request `trigger` is submitted; within its own submit, if
    /// both numbers are equal.
    pub fn complete_on_submit(&self, number: usize, trigger: usize) {
        self.state.lock().when.insert(number, When::Submit(trigger));
    }

    /// Keeps request `number` in flight until it is [released](Self::release).
    pub fn hold(&self, number: usize) {
        self.state.lock().when.insert(number, When::Released);
    }

    /// Completes request `number`, which is in flight.
    ///
    /// # Panics
    ///
    /// If the request is not in flight.
    pub fn release(&self, number: usize) {
        self.state.lock().complete(number);
    }

    /// Makes request `number` do nothing and complete with `result`: bytes, or a negative `errno`.
    pub fn set_result(&self, number: usize, result: i64) {
        self.state.lock().results.insert(number, result);
    }

    /// Makes request `number`, a read or write, transfer only its first `most` bytes.
    pub fn shorten(&self, number: usize, most: usize) {
        self.state.lock().limits.insert(number, most);
    }

    /// Makes the next submit that is not scripted yet accept at most `most` requests.
    pub fn take_at_most(&self, most: usize) {
        self.state.lock().verdicts.push_back(Verdict::Take(most));
    }

    /// Makes the next submit that is not scripted yet fail with `errno`.
    pub fn refuse(&self, errno: i32) {
        self.state.lock().verdicts.push_back(Verdict::Refuse(errno));
    }

    /// Runs `hook` once, the next time that a completion has been peeked and the cursor has not
    /// moved yet. `hook` may let another thread act, and wait for that thread.
    pub fn on_next_peek(&self, hook: impl FnOnce() + Send + 'static) {
        // Dropped after the state is unlocked: its destructor may use this backend.
        let _old = self.state.lock().peek_hook.replace(Box::new(hook));
    }

    /// Runs `hook` at each turn of the kernel. The hook acts by this backend's other methods. From
    /// now on, a request for which nothing is scripted stays in flight until the hook, or the test,
    /// releases it. The hook is not called for turns within it, as when it lets another thread
    /// poll.
    ///
    /// ```
    /// use coralio::engine::scripted::{ScriptedBackend, Turn};
    ///
    /// let backend = ScriptedBackend::new(8);
    /// // A kernel that completes the request accepted last, within the submit or during a sleep.
    /// backend.on_turn(|backend, turn| match turn {
    ///     Turn::Accepted(_) | Turn::Asleep if backend.in_flight() > 0 => backend.release(backend.taken() - 1),
    ///     _ => {}
    /// });
    /// ```
    pub fn on_turn(&self, hook: impl FnMut(&ScriptedBackend, Turn<'_>) + Send + 'static) {
        let old = {
            let mut state = self.state.lock();
            state.has_turns = true;
            state.turn_hook.replace(Box::new(hook))
        };
        // Dropped after the state is unlocked: its destructor may use this backend.
        drop(old);
    }

    /// Runs the turn hook with the state unlocked, since the hook calls this backend.
    fn turn(&self, turn: Turn<'_>) {
        let Some(mut hook) = self.state.lock().turn_hook.take() else { return };
        hook(self, turn);
        let mut state = self.state.lock();
        if state.turn_hook.is_none() {
            state.turn_hook = Some(hook);
        }
    }

    /// Replaces the contents of the disk.
    pub fn set_disk(&self, contents: &[u8]) {
        self.state.lock().disk = contents.to_vec();
    }

    /// Returns the contents of the disk.
    pub fn disk(&self) -> Vec<u8> {
        self.state.lock().disk.clone()
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.state.lock().in_flight.len()
    }

    /// Returns the number of requests accepted so far.
    pub fn taken(&self) -> usize {
        self.state.lock().taken
    }
}

impl State {
    fn complete(&mut self, number: usize) {
        let Some(entry) = self.in_flight.remove(&number) else {
            panic!("the script completes request {number}, which is not in flight")
        };
        let result = match self.results.remove(&number) {
            Some(result) => result,
            None => {
                let most = self.limits.remove(&number).unwrap_or(usize::MAX);
                self.copy(&entry.operation, most)
            }
        };
        self.ring.push_back(Completion { key: entry.key, result });
    }

    fn complete_all(&mut self, chosen: impl Fn(When) -> bool) {
        let unscripted = if self.has_turns { When::Released } else { When::Sleep };
        let when = |number| self.when.get(number).copied().unwrap_or(unscripted);
        let due: Vec<_> = self.in_flight.keys().filter(|number| chosen(when(number))).copied().collect();
        for number in due {
            self.complete(number);
        }
    }

    /// Performs the request on the disk in memory, up to `most` bytes.
    fn copy(&mut self, operation: &Operation, most: usize) -> i64 {
        let at = operation.offset as usize;
        // SAFETY: *lent to the kernel*: the completion is put on the ring after this.
        let lent = unsafe { IoBuffers::of(operation) };
        let len = lent.len().min(most);
        // No panic: `submit` may have accepted other requests, which it then could not count.
        let Some(end) = at.checked_add(len).filter(|&end| isize::try_from(end).is_ok()) else {
            return -i64::from(libc::EFBIG);
        };
        if operation.opcode.is_write() {
            self.disk.resize(self.disk.len().max(end), 0);
            self.disk[at..end].copy_from_slice(&lent.gather()[..len]);
            return len as i64;
        }
        let there = &self.disk[at.min(self.disk.len())..end.min(self.disk.len())];
        lent.scatter(there);
        there.len() as i64
    }
}

// SAFETY: a request's memory is accessed only in `perform`, before its completion goes on the ring;
// an entry that was not counted is not kept.
unsafe impl Backend for ScriptedBackend {
    type Entry = Entry;

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn prepare(&self, operation: &Operation, key: u64) -> Entry {
        Entry { operation: *operation, key }
    }

    fn key(&self, entry: &Entry) -> u64 {
        entry.key
    }

    unsafe fn submit(&self, entries: &mut [Entry]) -> io::Result<usize> {
        let mut state = self.state.lock();
        if state.user != self.number && !(state.in_flight.is_empty() && state.ring.is_empty()) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        state.user = self.number;
        if state.turn_hook.is_some() {
            let offered: Vec<_> = entries.iter().map(|entry| entry.operation).collect();
            drop(state);
            self.turn(Turn::Offered(&offered));
            state = self.state.lock();
        }
        let room = self.capacity as usize - state.in_flight.len();
        let most = match state.verdicts.pop_front() {
            Some(Verdict::Refuse(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(Verdict::Take(most)) => most.min(room),
            None => room,
        };
        let taken = most.min(entries.len());
        if taken == 0 && !entries.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        for &entry in &entries[..taken] {
            let number = state.taken;
            state.taken += 1;
            state.in_flight.insert(number, entry);
            state.complete_all(|when| when == When::Submit(number));
        }
        drop(state);
        self.turn(Turn::Accepted(taken));
        Ok(taken)
    }

    unsafe fn peek_completion(&self) -> Option<Completion> {
        let mut state = self.state.lock();
        let completion = state.ring.front().copied().filter(|_| state.user == self.number)?;
        let hook = state.peek_hook.take();
        drop(state);
        if let Some(hook) = hook {
            hook();
        }
        self.turn(Turn::Peeked);
        Some(completion)
    }

    unsafe fn advance(&self) {
        let mut state = self.state.lock();
        assert_eq!(state.user, self.number, "a completion belongs to a request in flight");
        state.ring.pop_front();
    }

    unsafe fn wait(&self, _other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let state = self.state.lock();
        if !state.ring.is_empty() {
            return Ok(());
        }
        drop(state);
        self.turn(Turn::Asleep);
        let mut state = self.state.lock();
        state.complete_all(|when| when == When::Sleep);
        assert!(
            !state.ring.is_empty() || timeout.is_some(),
            "this sleep would never end: the ring is empty, and none of the {} requests in flight will complete",
            state.in_flight.len()
        );
        Ok(())
    }
}

impl std::fmt::Debug for ScriptedBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        write!(
            f,
            "ScriptedBackend({} submitted, {} in flight, {} on the ring)",
            state.taken,
            state.in_flight.len(),
            state.ring.len()
        )
    }
}
