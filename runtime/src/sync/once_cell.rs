//! A cell that is initialized once, by code that may wait (rule S11).

use std::convert::Infallible;
use std::fmt;
use std::sync::OnceLock;

use crate::sync::CoMutex;

/// A cell that is written at most once, for coroutines of any number of contexts and threads; the
/// initializer may suspend. The others wait for it; if it fails, the next one tries.
///
/// ```
/// use coralio::{spawn, yield_now};
/// use coralio::sync::OnceCell;
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let shared = Rc::new((OnceCell::new(), Cell::new(0)));
///     let tasks = [(); 3].map(|()| {
///         let shared = Rc::clone(&shared);
///         spawn(move || {
///             *shared.0.get_or_init(|| {
///                 yield_now(); // reads a configuration
///                 shared.1.set(shared.1.get() + 1);
///                 7
///             })
///         })
///     });
///     assert_eq!(tasks.map(|task| task.join().unwrap()), [7, 7, 7]);
///     assert_eq!(shared.1.get(), 1);
/// });
/// ```
///
/// An initializer that fails leaves the cell empty:
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::sync::OnceCell;
///
/// AioContext::run(|_ctx| {
///     let mut port = OnceCell::new();
///     assert!(port.get_or_try_init(|| "http".parse::<u16>()).is_err());
///     assert_eq!(port.get_or_try_init(|| "80".parse::<u16>()), Ok(&80));
///     *port.get_mut().unwrap() += 8000;
///     assert_eq!(port.get(), Some(&8080));
/// });
/// ```
pub struct OnceCell<T> {
    value: OnceLock<T>,
    /// Held by the initializer.
    initializing: CoMutex<()>,
}

impl<T> OnceCell<T> {
    /// Creates an empty cell.
    pub const fn new() -> OnceCell<T> {
        OnceCell { value: OnceLock::new(), initializing: CoMutex::new(()) }
    }

    /// Returns the value, if the cell is initialized.
    pub fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// Returns the value; initializes the cell by `f` if it is empty, or waits for another
    /// coroutine that does. If that one panics or is unwound, `f` is run.
    ///
    /// Neither cancellation nor a timeout ends the wait for another initializer.
    ///
    /// # Panics
    ///
    /// Propagates a panic of `f`; the cell stays empty. If `f` initializes the same cell.
    ///
    /// # Control
    ///
    /// May yield; as `f`.
    #[track_caller]
    pub fn get_or_init(&self, f: impl FnOnce() -> T) -> &T {
        match self.get_or_try_init(|| Ok::<_, Infallible>(f())) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    /// Returns the value as [`get_or_init`](Self::get_or_init) does, with an initializer that may
    /// fail.
    ///
    /// # Errors
    ///
    /// That of `f`: the cell stays empty, and the next waiter runs its own initializer.
    ///
    /// # Panics
    ///
    /// As [`get_or_init`](Self::get_or_init).
    ///
    /// # Control
    ///
    /// May yield; as `f`.
    #[track_caller]
    pub fn get_or_try_init<E>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let _initializing = self.initializing.lock();
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let value = f()?;
        Ok(self.value.get_or_init(|| value))
    }

    /// Sets the value.
    ///
    /// # Errors
    ///
    /// Returns the value if the cell is initialized, or being initialized.
    #[track_caller]
    pub fn set(&self, value: T) -> Result<(), T> {
        match self.initializing.try_lock() {
            Some(_initializing) => self.value.set(value),
            None => Err(value),
        }
    }

    /// Returns the value exclusively, if the cell is initialized.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        self.value.get_mut()
    }

    /// Returns the value, if the cell is initialized.
    pub fn into_inner(self) -> Option<T> {
        self.value.into_inner()
    }
}

impl<T> Default for OnceCell<T> {
    fn default() -> OnceCell<T> {
        OnceCell::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnceCell").field(&self.get()).finish()
    }
}
