//! A context on a thread of its own, as the storage side of a program of another executor.
//!
//! ```text
//!   any thread                          the context's thread
//!   ----------                          --------------------
//!   start(init)  ------------------->   coroutine `main`: state = init(), waits
//!   run(f)       -- one wake for -->    a coroutine for each: f(&state)
//!   run(f)          several runs
//!     await      <-------------------   its result
//!   stop, or the last handle is gone:
//!                                       the runs end; `main` drops the state, and ends the loop
//! ```

use std::any::Any;
use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread;

use coralio_runtime::{AioContext, CancelOnDrop, Cancelled, RemoteJoinHandle, Sender, channel};
use parking_lot::Mutex;

use crate::builder::RuntimeBuilder;

thread_local! {
    /// The state of the `Remote` that runs this thread.
    static STATE: RefCell<Option<Rc<dyn Any>>> = const { RefCell::new(None) };
}

/// A handle to a context on a thread of its own, which runs closures for code of any thread and any
/// executor: the storage side of a tokio program, for example. The closures run as coroutines, with
/// plain [`File`](crate::File) calls, concurrently.
///
/// The context has a state, such as its open files, which is created, used and dropped on the
/// context's thread, and need not be `Send`.
///
/// The thread ends when all handles have been dropped and all runs have ended. For more about
/// coroutines and async code see [`block_on`](crate::block_on#with-other-executors).
///
/// ```
/// use coralio::task::Remote;
/// use coralio::{File, RuntimeBuilder};
///
/// let tokio = tokio::runtime::Builder::new_current_thread().build()?;
/// tokio.block_on(async {
///     let storage = Remote::start(RuntimeBuilder::new(), "storage", || File::open("Cargo.toml"))?;
///     let parts = [0, 4].map(|offset| {
///         storage.run(move |file| {
///             let mut part = [0; 4];
///             file.read_exact_at(&mut part, offset).map(|()| part)
///         })
///     });
///     let [first, second] = parts;
///     assert_eq!((&first.await.unwrap()?, &second.await.unwrap()?), (b"[pac", b"kage"));
///     storage.stop().await.unwrap();
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub struct Remote<S: 'static = ()> {
    shared: Arc<Shared>,
    _state: PhantomData<fn(&S)>,
}

/// Drops the state in its context, even if the context ends by a panic.
struct ClearState;

impl Drop for ClearState {
    fn drop(&mut self) {
        drop(STATE.take());
    }
}

struct Shared {
    context: AioContext,
    /// Cloned into each run; `None` once stopped. The drop of the last clone tells `main`.
    open: Mutex<Option<Arc<Sender<Infallible>>>>,
    main: Mutex<Option<RemoteJoinHandle<io::Result<()>>>>,
}

impl<S: 'static> Remote<S> {
    /// Starts a thread named `name` with such a context, and in it the coroutine `init`, which creates
    /// the state.
    ///
    /// # Errors
    ///
    /// As [`RuntimeBuilder::start_thread`], or the error of `init`.
    ///
    /// # Panics
    ///
    /// Propagates a panic of `init`.
    ///
    /// # Control
    ///
    /// Blocks the thread until `init` has returned.
    pub fn start<F>(builder: RuntimeBuilder, name: &str, init: F) -> io::Result<Remote<S>>
    where
        F: FnOnce() -> io::Result<S> + Send + 'static,
    {
        let thread = builder.start_thread(name)?;
        let context = thread.context().clone();
        let (open, closed) = channel::bounded::<Infallible>(1);
        let (ready, started) = mpsc::sync_channel(1);
        let main = context.spawn(move || {
            // Last, its drop asks the loop to end.
            let _thread = thread;
            let state = Rc::new(init()?);
            STATE.set(Some(state));
            let _clear = ClearState;
            let _ = ready.send(());
            let _all_ended = closed.recv();
            Ok(())
        });
        if started.recv().is_err() {
            return match main.join() {
                Ok(Err(error)) => Err(error),
                Err(panic) if !panic.is::<Cancelled>() => resume_unwind(panic),
                _ => Err(io::Error::other("the context ended during startup")),
            };
        }
        let shared = Shared { context, open: Mutex::new(Some(Arc::new(open))), main: Mutex::new(Some(main)) };
        Ok(Remote { shared: Arc::new(shared), _state: PhantomData })
    }

    /// Runs `f` as a coroutine of the context. The future returns its result; it need not be polled
    /// for `f` to begin.
    ///
    /// Dropping the future (in `tokio::time::timeout` or `select!`, for example) cancels the run, as
    /// [`Coroutine::cancel`](crate::coroutine::Coroutine::cancel) does: its waits and its I/O return
    /// errors from then on. Use [`spawn`](Self::spawn) for work that must be completed.
    ///
    /// # Errors
    ///
    /// The future returns the payload of a panic of `f`; or [`Cancelled`], if the handle was
    /// [stopped](Self::stop) before.
    #[track_caller]
    pub fn run<T, F>(&self, f: F) -> CancelOnDrop<RemoteJoinHandle<T>>
    where
        F: FnOnce(&S) -> T + Send + 'static,
        T: Send + 'static,
    {
        self.spawn(f).cancel_on_drop()
    }

    /// Runs `f` as [`run`](Self::run) does; but dropping the handle detaches the run.
    #[track_caller]
    pub fn spawn<T, F>(&self, f: F) -> RemoteJoinHandle<T>
    where
        F: FnOnce(&S) -> T + Send + 'static,
        T: Send + 'static,
    {
        let open = self.shared.open.lock().clone();
        self.shared.context.spawn(move || {
            let _open = open.unwrap_or_else(|| resume_unwind(Box::new(Cancelled)));
            let state = STATE.with_borrow(Clone::clone).and_then(|state| state.downcast::<S>().ok());
            f(&state.unwrap_or_else(|| unreachable!("the state lives while a run does")))
        })
    }

    /// Accepts no more runs from any handle, and waits until those in progress have ended and the
    /// state has been dropped. The context and its thread end then.
    ///
    /// Dropping the future does not undo the stop. If `stop` was called on another handle before, the
    /// future is ready immediately.
    ///
    /// # Errors
    ///
    /// The future returns the payload of a panic of the state's destructor; or [`Cancelled`], if the
    /// context had ended by a panic.
    pub fn stop(self) -> impl Future<Output = thread::Result<()>> + Send + 'static {
        drop(self.shared.open.lock().take());
        let main = self.shared.main.lock().take();
        async move {
            match main {
                Some(main) => main.await.map(drop),
                None => Ok(()),
            }
        }
    }

    /// Returns the context.
    pub fn context(&self) -> &AioContext {
        &self.shared.context
    }
}

impl<S: 'static> Clone for Remote<S> {
    fn clone(&self) -> Remote<S> {
        Remote { shared: Arc::clone(&self.shared), _state: PhantomData }
    }
}

impl<S: 'static> fmt::Debug for Remote<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("is_stopped", &self.shared.open.lock().is_none()).finish_non_exhaustive()
    }
}
