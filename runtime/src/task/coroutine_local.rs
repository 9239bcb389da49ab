//! Variables with a value for each coroutine (rule S13).
//!
//! The values lie on the stack of the coroutine that set them, linked from the innermost to the
//! outermost:
//!
//! - *values nest*: a value is linked in by `scope`, which unlinks it before it returns or unwinds,
//!   from the same list; while it is linked, it and its frame are not touched otherwise. Code outside
//!   a coroutine uses a list of the thread, and cannot be suspended.
//!
//! Thread-local scopes do not nest in this way: see [thread state held across a
//! suspension](crate#thread-state-held-across-a-suspension).

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::{fmt, ptr};

use crate::coroutine::LocalValue;
use crate::scheduler::Scheduler;

thread_local! {
    /// The innermost value of code outside a coroutine.
    static OUTSIDE: Cell<*const LocalValue> = const { Cell::new(ptr::null()) };
}

/// A variable with a value for each coroutine, set for the duration of a closure. For request
/// numbers, log prefixes and the like; declare it as a `static`.
///
/// ```
/// use coralio::{spawn, yield_now};
/// use coralio::task::CoroutineLocal;
///
/// static REQUEST: CoroutineLocal<u64> = CoroutineLocal::new();
///
/// fn log(text: &str) -> String {
///     REQUEST.with(|request| format!("request {request}: {text}"))
/// }
///
/// coralio::run(|| {
///     let tasks = [1, 2].map(|request| {
///         spawn(move || {
///             REQUEST.scope(request, || {
///                 yield_now(); // the other one runs
///                 log("done")
///             })
///         })
///     });
///     assert_eq!(tasks.map(|task| task.join().unwrap()), ["request 1: done", "request 2: done"]);
/// });
/// ```
///
/// A coroutine that is spawned within the scope does not inherit the value: set it there again. The
/// branches of [`select`](crate::select()) are such coroutines. Callbacks of the loop, such as bottom
/// halves, see the values that the thread's own stack has set.
pub struct CoroutineLocal<T: 'static> {
    /// Gives each variable an address of its own.
    _address: u8,
    _value: PhantomData<fn() -> T>,
}

impl<T: 'static> CoroutineLocal<T> {
    /// Creates a variable without a value.
    pub const fn new() -> CoroutineLocal<T> {
        CoroutineLocal { _address: 0, _value: PhantomData }
    }

    /// Runs `f` with this value of the variable, in the calling coroutine; outside a coroutine, on
    /// the thread's own stack. An outer value is hidden meanwhile. Works outside a context too.
    ///
    /// # Control
    ///
    /// As `f`.
    pub fn scope<R>(&'static self, value: T, f: impl FnOnce() -> R) -> R {
        struct Leave(*const Cell<*const LocalValue>, *const LocalValue);
        impl Drop for Leave {
            fn drop(&mut self) {
                // SAFETY: the list outlives its values: see `list`.
                unsafe { &*self.0 }.set(self.1);
            }
        }
        let list = list();
        // SAFETY: as above.
        let outer = unsafe { &*list }.get();
        let value: &dyn Any = &value;
        let linked = LocalValue { key: self.key(), value, outer };
        let _leave = Leave(list, outer);
        // SAFETY: as above.
        unsafe { &*list }.set(&linked);
        f()
    }

    /// Calls `f` with the value, if the running code is within a [`scope`](Self::scope); otherwise
    /// returns `None`.
    ///
    /// ```
    /// use coralio::task::CoroutineLocal;
    ///
    /// static USER: CoroutineLocal<&str> = CoroutineLocal::new();
    /// let name = || USER.try_with(|user| user.to_string()).unwrap_or_else(|| "unknown".into());
    /// assert_eq!(name(), "unknown");
    /// assert_eq!(USER.scope("root", name), "root");
    /// ```
    ///
    /// # Control
    ///
    /// As `f`.
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Option<R> {
        // SAFETY: the list of the running code: see `list`.
        let mut next = unsafe { &*list() }.get();
        // SAFETY: *values nest*: the values belong to frames below this one, on the same stack or, for
        // code outside a coroutine, on stacks below.
        while let Some(LocalValue { key, value, outer }) = unsafe { next.as_ref() } {
            // SAFETY: as above. Compared by type as well: two variables that are `const`, not
            // `static`, may share an address.
            let value = (*key == self.key()).then(|| unsafe { &**value }.downcast_ref::<T>());
            if let Some(value) = value.flatten() {
                return Some(f(value));
            }
            next = *outer;
        }
        None
    }

    /// Calls `f` with the value.
    ///
    /// # Panics
    ///
    /// Outside a [`scope`](Self::scope) of this variable.
    ///
    /// # Control
    ///
    /// As `f`.
    #[track_caller]
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Some(result) => result,
            None => panic!(
                "a CoroutineLocal<{}> has no value here: call this within its `scope`, in the same coroutine",
                std::any::type_name::<T>()
            ),
        }
    }

    /// Returns a copy of the value.
    ///
    /// # Panics
    ///
    /// Outside a [`scope`](Self::scope) of this variable.
    #[track_caller]
    pub fn get(&'static self) -> T
    where
        T: Copy,
    {
        self.with(|value| *value)
    }

    fn key(&'static self) -> usize {
        ptr::from_ref(self).addr()
    }
}

/// Returns the list of the running coroutine, or that of this thread. The former is in a control
/// block, which is never freed; the latter has no destructor, and lives as long as the thread.
fn list() -> *const Cell<*const LocalValue> {
    let running = Scheduler::current().and_then(|scheduler| Some(scheduler.local(scheduler.running()?)));
    match running {
        Some(local) => &local.local_values,
        None => OUTSIDE.with(ptr::from_ref),
    }
}

impl<T: 'static> Default for CoroutineLocal<T> {
    fn default() -> CoroutineLocal<T> {
        CoroutineLocal::new()
    }
}

impl<T: 'static> fmt::Debug for CoroutineLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoroutineLocal").finish_non_exhaustive()
    }
}
