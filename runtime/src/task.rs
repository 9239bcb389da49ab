//! Spawned coroutines, and their join handles.
//!
//! A spawned coroutine's result lies at the top of its own stack until the handle fetches it: spawning allocates
//! nothing, and a stack whose result nobody has fetched is not used again.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::thread;

use crate::coroutine::control::{CoroutineId, State};
use crate::coroutine::{Attributes, Builder, Cancelled};
use crate::home::Home;

/// Makes a coroutine that runs `f` in the loop's next round, on this thread. `f` need not be `Send`.
///
/// If the handle is dropped, the coroutine goes on by itself.
///
/// ```
/// use coralio_runtime::{AioContext, spawn};
///
/// AioContext::run(|_ctx| {
///     let words = spawn(|| "from a coroutine".to_string());
///     assert_eq!(words.join().unwrap(), "from a coroutine");
/// });
/// ```
///
/// # Panics
///
/// Outside a context; if there is no memory for a stack; if the context is ending.
///
/// # Control
///
/// Never switches.
#[track_caller]
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    let builder = Builder { attributes: Attributes::new() };
    builder.spawn(f).unwrap_or_else(|error| panic!("cannot spawn a coroutine: {error}"))
}

impl Builder {
    /// As [`spawn`], with this name and stack size.
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        // SAFETY: `f` and its result are 'static.
        unsafe { self.spawn_borrowing(f) }
    }

    /// As [`spawn`](Builder::spawn), for a closure that borrows.
    ///
    /// # Safety
    ///
    /// What it borrows lives until the coroutine has ended, at the latest when the context has.
    pub(crate) unsafe fn spawn_borrowing<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T,
    {
        let home = Home::expect("spawn");
        let created_at = self.attributes.created_at;
        // SAFETY: the caller's promise.
        let id = unsafe { home.create(self.attributes, false, f) }?;
        home.make_ready(id.block, created_at);
        Ok(JoinHandle { id, _result: PhantomData })
    }
}

/// Waits for a spawned coroutine and takes its result. Stays on its thread.
#[must_use = "a coroutine whose handle is dropped is detached; drop it by name to say that you mean it"]
pub struct JoinHandle<T> {
    id: CoroutineId,
    _result: PhantomData<(*const (), T)>,
}

impl<T> JoinHandle<T> {
    /// Waits until the coroutine has ended. In a coroutine, that one is suspended meanwhile; on the thread's own stack,
    /// the loop runs meanwhile.
    ///
    /// # Errors
    ///
    /// The payload of its panic, as `std::thread`'s; or [`Cancelled`], if its context ended before it did.
    ///
    /// # Panics
    ///
    /// If a coroutine joins itself.
    ///
    /// # Control
    ///
    /// May yield; on the thread's own stack, may enter.
    #[inline]
    pub fn join(self) -> thread::Result<T> {
        loop {
            let Some(home) = Home::current().filter(|_| self.id.is_live()) else {
                return Err(Box::new(Cancelled));
            };
            let own = home.own(self.id.block);
            if own.state.get() == State::Finished {
                let block = self.id.block;
                std::mem::forget(self);
                return home.fetch(block);
            }
            match home.running() {
                Some(running) => {
                    assert!(running.id() != self.id, "a coroutine joins itself, and would wait for ever");
                    own.joiner.set(Some(running.id()));
                    home.suspend();
                }
                // A destructor at the very end: nobody will run it any more.
                None if home.is_ending() => return Err(Box::new(Cancelled)),
                None => drop(crate::AioContext { shared: home.shared.clone() }.poll(true)),
            }
        }
    }

    /// Whether [`join`](Self::join) would return at once.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn is_finished(&self) -> bool {
        match Home::current().filter(|_| self.id.is_live()) {
            Some(home) => home.own(self.id.block).state.get() == State::Finished,
            None => true,
        }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(home) = Home::current().filter(|_| self.id.is_live()) {
            home.detach(self.id.block);
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").finish_non_exhaustive()
    }
}
