//! What bottom halves, fd handlers, timers and poll handlers have in common: a callback that the
//! loop calls, and a handle that deletes it when dropped.
//!
//! Each kind has a table under one small lock. Foreign code never runs under that lock: a callback
//! is taken out of its entry while it runs, and what leaves the table is dropped after the lock is
//! released. A nested poll does not find the callback, and so does not call it again; an entry that
//! is deleted meanwhile is freed when the callback has returned.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, io, mem};

use parking_lot::{Mutex, MutexGuard};
use slab::Slab;

use crate::context::SharedContext;
use crate::sys::in_child;
use crate::trace::Span;

/// Called with an event, and the parts of a handle to the registration.
pub(crate) type Callback<E> = Box<dyn FnMut(E, &Arc<SharedContext>, Key) + Send>;

/// A callback that was taken out of the entry of this key, to be called.
pub(crate) type Started<E> = (Key, Callback<E>);

/// A kind of registration: what its entries contain besides the callback.
pub(crate) trait Kind: Any + Sized {
    /// The callback's argument besides the parts of a handle.
    type Event;
    /// What the table contains besides its entries.
    type Queues: Default;
    /// The operation that an ended context refuses.
    const CREATION: &'static str;
    /// The span of a call in the event log.
    const SPAN: Span;

    fn table(shared: &SharedContext) -> &Table<Self>;

    /// Returns 0 if an iteration of the loop can skip the table.
    fn pending(state: &State<Self>) -> u64;

    /// Takes the entry out of the queues, when it is deleted.
    fn cancel(entry: &mut Entry<Self>, queues: &mut Self::Queues, shared: &SharedContext);

    /// Queues an entry whose callback has returned, if it became due meanwhile. Returns whether the
    /// loop must check its tables again.
    fn requeue(state: &mut State<Self>, index: usize, shared: &SharedContext) -> bool;
}

/// Identifies one registration. Serial numbers are never reused, so a key never refers to a later
/// registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: usize,
    serial: u64,
}

impl Key {
    /// Returns the number that epoll reports: the index, and the low 31 bits of the serial number.
    pub(crate) fn token(self) -> u64 {
        (self.serial & 0x7fff_ffff) << 32 | self.index as u64
    }
}

/// One registration.
pub(crate) struct Entry<K: Kind> {
    pub(crate) key: Key,
    /// `None` while it runs, and for registrations that only wake coroutines.
    callback: Option<Callback<K::Event>>,
    pub(crate) is_running: bool,
    /// Deleted while the callback runs; freed when it returns.
    pub(crate) is_deleted: bool,
    /// The number of the newest queue entry; older ones are stale. 0: not queued.
    pub(crate) ticket: u64,
    pub(crate) created_at: &'static Location<'static>,
    pub(crate) kind: K,
}

/// What leaves the table with a callback that is not put back.
type Finished<K> = (Callback<<K as Kind>::Event>, Option<Entry<K>>);

pub(crate) struct State<K: Kind> {
    pub(crate) entries: Slab<Entry<K>>,
    pub(crate) queues: K::Queues,
    /// Number of running callbacks.
    pub(crate) running: usize,
    /// The last serial number or ticket.
    last_number: u64,
    /// The context has ended.
    is_closed: bool,
}

impl<K: Kind> State<K> {
    /// Returns a number that was never used before.
    pub(crate) fn new_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    #[track_caller]
    fn insert(&mut self, kind: K, callback: Option<Callback<K::Event>>) -> Key {
        let key = Key { index: self.entries.vacant_key(), serial: self.new_number() };
        let created_at = Location::caller();
        self.entries.insert(Entry { key, callback, is_running: false, is_deleted: false, ticket: 0, created_at, kind });
        key
    }

    fn find(&mut self, key: Key) -> Option<(&mut Entry<K>, &mut K::Queues)> {
        let entry = self.entries.get_mut(key.index).filter(|entry| entry.key.serial == key.serial)?;
        Some((entry, &mut self.queues))
    }

    /// Returns the registration, unless it was deleted, and the queues.
    pub(crate) fn get(&mut self, key: Key) -> Option<(&mut Entry<K>, &mut K::Queues)> {
        self.find(key).filter(|(entry, _)| !entry.is_deleted)
    }

    /// Returns the registration at `index`, if its newest queue entry has this ticket.
    pub(crate) fn ticketed(&mut self, index: usize, ticket: u64) -> Option<&mut Entry<K>> {
        self.entries.get_mut(index).filter(|entry| entry.ticket == ticket)
    }

    pub(crate) fn is_current(&self, index: usize, ticket: u64) -> bool {
        self.entries.get(index).is_some_and(|entry| entry.ticket == ticket)
    }

    /// Takes the callback out of its entry, to be called.
    pub(crate) fn start(&mut self, key: Key) -> Option<Started<K::Event>> {
        let (entry, _) = self.find(key)?;
        let callback = entry.callback.take()?;
        entry.is_running = true;
        self.running += 1;
        Some((key, callback))
    }

    /// Puts the callback back after it has returned. Returns the values to drop outside the lock.
    fn finish(&mut self, (key, callback): Started<K::Event>, shared: &SharedContext) -> Option<Finished<K>> {
        self.running -= 1;
        // None: the context was closed meanwhile.
        let Some((entry, _)) = self.find(key) else { return Some((callback, None)) };
        if entry.is_deleted {
            return Some((callback, Some(self.entries.remove(key.index))));
        }
        entry.callback = Some(callback);
        entry.is_running = false;
        if K::requeue(self, key.index, shared) {
            shared.scheduler.wake_loop_of_another();
        }
        None
    }
}

/// All registrations of one kind in a context.
pub(crate) struct Table<K: Kind> {
    state: Mutex<State<K>>,
    /// [`Kind::pending`], readable without the lock. Relaxed: the fences of `NotifyState` order a
    /// change before the loop's last check; an earlier check may miss the change.
    pending: AtomicU64,
}

/// The locked table.
pub(crate) struct Locked<'a, K: Kind> {
    state: MutexGuard<'a, State<K>>,
    pending: &'a AtomicU64,
}

impl<K: Kind> Deref for Locked<'_, K> {
    type Target = State<K>;

    fn deref(&self) -> &State<K> {
        &self.state
    }
}

impl<K: Kind> DerefMut for Locked<'_, K> {
    fn deref_mut(&mut self) -> &mut State<K> {
        &mut self.state
    }
}

impl<K: Kind> Drop for Locked<'_, K> {
    fn drop(&mut self) {
        self.pending.store(K::pending(&self.state), Ordering::Relaxed);
    }
}

impl<K: Kind> Default for Table<K> {
    fn default() -> Table<K> {
        let (entries, queues) = (Slab::new(), K::Queues::default());
        let state = State { entries, queues, running: 0, last_number: 0, is_closed: false };
        Table { state: Mutex::new(state), pending: AtomicU64::new(0) }
    }
}

impl<K: Kind> Table<K> {
    pub(crate) fn lock(&self) -> Locked<'_, K> {
        Locked { state: self.state.lock(), pending: &self.pending }
    }

    /// Adds an entry, unless the context has ended.
    #[track_caller]
    pub(crate) fn insert(&self, kind: K, callback: Option<Callback<K::Event>>) -> Result<Key, ContextEnded> {
        let mut state = self.lock();
        if state.is_closed {
            // Before the callback is dropped.
            drop(state);
            return Err(ContextEnded { operation: K::CREATION });
        }
        Ok(state.insert(kind, callback))
    }

    #[inline]
    pub(crate) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Returns whether an iteration of the loop can skip the table, as it must in the child of a
    /// fork.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.pending() == 0 || in_child()
    }

    /// Calls the callbacks that `next` starts. Returns whether there were any. In the child of a
    /// fork nothing more is called.
    ///
    /// # Control
    ///
    /// May enter and poll, through the callbacks.
    pub(crate) fn run<'a>(
        &'a self,
        mut state: Locked<'a, K>,
        shared: &Arc<SharedContext>,
        mut next: impl FnMut(&mut State<K>) -> Option<(Started<K::Event>, K::Event)>,
    ) -> bool {
        let mut progress = false;
        while let Some((started, event)) = next(&mut state) {
            drop(state);
            progress = true;
            match self.call(shared, started, event) {
                Some(locked) => state = locked,
                None => return true,
            }
        }
        progress
    }

    /// Calls a callback that was taken out of its entry, and puts it back, also after a panic.
    /// Returns the locked table, except in the child of a fork, where another thread may have held
    /// the lock.
    pub(crate) fn call(
        &self,
        shared: &Arc<SharedContext>,
        (key, callback): Started<K::Event>,
        event: K::Event,
    ) -> Option<Locked<'_, K>> {
        struct Running<'a, 's, K: Kind>(Option<Callback<K::Event>>, &'a Table<K>, Key, &'s SharedContext);
        impl<'a, K: Kind> Running<'a, '_, K> {
            fn finish(&mut self) -> Option<Locked<'a, K>> {
                let callback = self.0.take()?;
                if in_child() {
                    mem::forget(callback);
                    return None;
                }
                let mut state = self.1.lock();
                if let Some(unneeded) = state.finish((self.2, callback), self.3) {
                    drop(state);
                    drop(unneeded);
                    state = self.1.lock();
                }
                Some(state)
            }
        }
        impl<K: Kind> Drop for Running<'_, '_, K> {
            fn drop(&mut self) {
                self.finish();
            }
        }
        let mut running = Running(Some(callback), self, key, shared);
        if let Some(callback) = &mut running.0 {
            let _span = shared.scheduler.span(K::SPAN);
            callback(event, shared, key);
        }
        running.finish()
    }

    /// Describes the table. Does not wait for its lock: the thread that holds it may have been
    /// stopped, and would never release it.
    pub(crate) fn describe(&self, describe: impl FnOnce(&mut State<K>) -> String) -> String {
        self.state.try_lock().map_or_else(|| "table in use".into(), |mut state| describe(&mut state))
    }

    /// Returns what `info` makes of each entry.
    pub(crate) fn list<I>(&self, mut info: impl FnMut(&Entry<K>) -> I) -> Vec<I> {
        self.state.lock().entries.iter().map(|(_, entry)| info(entry)).collect()
    }

    /// Deletes all entries, and rejects further ones. Returns the values to drop outside the lock.
    pub(crate) fn close(&self, shared: &SharedContext) -> impl Iterator<Item = Box<dyn Any>> + use<K> {
        let mut state = self.lock();
        state.is_closed = true;
        let mut closed = mem::take(&mut state.entries);
        closed.iter_mut().for_each(|(_, entry)| K::cancel(entry, &mut state.queues, shared));
        let parts = |(_, entry): (usize, Entry<K>)| [Box::new(entry.kind) as Box<dyn Any>, Box::new(entry.callback)];
        closed.into_iter().flat_map(parts)
    }
}

/// A handle to a registration, which is deleted when the handle is dropped.
pub(crate) struct Handle<K: Kind> {
    pub(crate) shared: Arc<SharedContext>,
    pub(crate) key: Key,
    /// False for the handle passed to the callback; dropping that one deletes nothing.
    owns: bool,
    _kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Handle<K> {
    /// Adds a registration, unless the context has ended.
    #[track_caller]
    pub(crate) fn new(
        shared: &Arc<SharedContext>,
        kind: K,
        callback: Option<Callback<K::Event>>,
    ) -> Result<Handle<K>, ContextEnded> {
        let key = K::table(shared).insert(kind, callback)?;
        Ok(Handle::of(shared, key, true))
    }

    /// Adds a registration without a callback, also after the context has ended.
    #[track_caller]
    pub(crate) fn without_callback(shared: &Arc<SharedContext>, kind: K) -> Handle<K> {
        let key = K::table(shared).lock().insert(kind, None);
        Handle::of(shared, key, true)
    }

    /// Returns the handle that the callback receives.
    pub(crate) fn within(shared: &Arc<SharedContext>, key: Key) -> Handle<K> {
        Handle::of(shared, key, false)
    }

    fn of(shared: &Arc<SharedContext>, key: Key, owns: bool) -> Handle<K> {
        Handle { shared: Arc::clone(shared), key, owns, _kind: PhantomData }
    }

    pub(crate) fn table(&self) -> &Table<K> {
        K::table(&self.shared)
    }

    /// Takes the registration out of the queues.
    pub(crate) fn cancel(&self) -> Locked<'_, K> {
        let mut state = self.table().lock();
        if let Some((entry, queues)) = state.get(self.key) {
            K::cancel(entry, queues, &self.shared);
        }
        state
    }

    /// Deletes the registration. A running callback finishes first.
    pub(crate) fn delete(&self) {
        // Another thread may have held the lock when this child was forked.
        if in_child() {
            return;
        }
        let mut state = self.cancel();
        let Some((entry, _)) = state.get(self.key) else { return };
        entry.is_deleted = entry.is_running;
        if !entry.is_deleted {
            let entry = state.entries.remove(self.key.index);
            drop(state);
            drop(entry);
        }
    }
}

impl<K: Kind> Drop for Handle<K> {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
    }
}

impl<K: Kind> fmt::Debug for Handle<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

/// The context has ended, or is ending, and accepts no registration. The rejected closure has been
/// dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEnded {
    pub(crate) operation: &'static str,
}

impl fmt::Display for ContextEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: the context has ended; do so while its `run` or its thread is running", self.operation)
    }
}

impl std::error::Error for ContextEnded {}

impl From<ContextEnded> for io::Error {
    fn from(error: ContextEnded) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, error)
    }
}

#[cfg(test)]
mod tests {
    use crate::AioContext;
    use crate::context::{Action, Timer};

    #[test]
    fn key_never_refers_to_later_entry() {
        // X4: the key of a removed registration stays invalid when its index is reused, even after
        // the context has ended
        let (context, third) = AioContext::run(|ctx| {
            let keys = [(); 2].map(|()| ctx.new_timer(|| {}).unwrap().0.key);
            let third = ctx.new_timer(|| {}).unwrap();
            assert_eq!(keys.map(|key| key.index), [third.0.key.index; 2]);
            assert_ne!(keys[0].token(), keys[1].token());
            let mut state = ctx.shared.timers.lock();
            let found = [keys[0], keys[1], third.0.key].map(|key| state.get(key).is_some());
            assert_eq!(found, [false, false, true]);
            drop(state);
            (ctx.clone(), third)
        });
        assert!(context.new_timer(|| {}).is_err());
        let later = Timer::start(context.now(), Action::Nothing, &context.shared);
        assert_eq!(third.0.key.index, later.0.key.index);
        assert!(third.deadline().is_none() && later.deadline().is_some());
    }
}
