//! Dumps on request, by a signal.

use std::io;
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::Mutex;

use crate::context::{AioContext, SharedContext};
use crate::sys::report;

/// All running contexts.
static CONTEXTS: Mutex<Vec<Weak<SharedContext>>> = Mutex::new(Vec::new());

/// Registers a context until dropped.
pub(crate) struct RegistryGuard(Weak<SharedContext>);

impl RegistryGuard {
    pub(crate) fn new(context: &AioContext) -> RegistryGuard {
        let shared = Arc::downgrade(&context.shared);
        CONTEXTS.lock().push(Weak::clone(&shared));
        RegistryGuard(shared)
    }
}

impl Drop for RegistryGuard {
    fn drop(&mut self) {
        CONTEXTS.lock().retain(|other| !other.ptr_eq(&self.0));
    }
}

impl AioContext {
    /// Returns the contexts running in this process, oldest first. An ending context is included
    /// until its coroutines are unwound.
    pub fn running() -> Vec<AioContext> {
        CONTEXTS.lock().iter().filter_map(|shared| Some(AioContext { shared: shared.upgrade()? })).collect()
    }

    /// Installs a handler that writes a [`dump`](Self::dump) of all contexts to standard error
    /// whenever this process receives `signal` (for example `libc::SIGUSR1`), whatever the contexts
    /// are doing.
    ///
    /// ```no_run
    /// coralio::context::AioContext::dump_on_signal(libc::SIGUSR1).unwrap();
    /// // kill -USR1 <pid>
    /// ```
    ///
    /// # Errors
    ///
    /// The signal cannot be handled, as `SIGKILL` or the signals of a crash; or no thread can be
    /// created.
    pub fn dump_on_signal(signal: i32) -> io::Result<()> {
        if signal_hook::consts::FORBIDDEN.contains(&signal) {
            let why = format!("cannot handle signal {signal}: reserved or fatal; choose another, such as SIGUSR1");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut signals = signal_hook::iterator::Signals::new([signal])?;
        thread::Builder::new().name("coralio-dump".into()).spawn(move || {
            for _ in signals.forever() {
                AioContext::running().iter().for_each(|context| report(format_args!("{}", context.dump())));
            }
        })?;
        Ok(())
    }
}
