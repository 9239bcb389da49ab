//! Calls of a file that have not returned: what [`File::drain`] waits for.

use std::cell::{Cell, RefCell};
use std::io;

use coralio_runtime::{AioContext, Cancelled, Token};

use super::File;

/// Set in the count while coroutines wait in `drain`: a call that ends tests the count and this bit by one comparison.
const AWAITED: u32 = 1 << 31;

/// See the module. The file's thread alone uses it.
#[derive(Default)]
pub(super) struct Calls {
    count: Cell<u32>,
    waiters: RefCell<Vec<Token>>,
}

/// One call, until it returns or unwinds.
pub(super) struct Call<'a>(&'a Calls);

impl Calls {
    #[inline(always)]
    pub(super) fn begin(&self) -> Call<'_> {
        self.count.set(self.count.get() + 1);
        Call(self)
    }

    fn is_idle(&self) -> bool {
        self.count.get() & !AWAITED == 0
    }

    /// Has `waiter` scheduled when no call is left.
    fn wake_when_idle(&self, waiter: Token) {
        let mut waiters = self.waiters.borrow_mut();
        if !waiters.contains(&waiter) {
            waiters.push(waiter);
        }
        self.count.set(self.count.get() | AWAITED);
    }

    fn forget(&self, waiter: Token) {
        self.waiters.borrow_mut().retain(|&other| other != waiter);
    }

    #[cold]
    fn wake_waiters(&self) {
        self.count.set(0);
        let waiters = self.waiters.take();
        if let Some(context) = AioContext::current() {
            waiters.into_iter().for_each(|waiter| context.schedule(waiter));
        }
    }
}

impl Drop for Call<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == AWAITED {
            self.0.wake_waiters();
        }
    }
}

impl File {
    /// Waits until no other coroutine is within a call of this file: reads, writes and syncs, whole and not request by
    /// request, and what runs on the thread pool. Calls that begin meanwhile are waited for too. To wait for all files
    /// of a context use [`AioContext::drain`].
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if the coroutine is cancelled meanwhile, or a timeout around this is over. `NotConnected`: the file
    /// belongs to another context.
    ///
    /// # Control
    ///
    /// May yield. Outside a coroutine it runs the loop, as [`AioContext::poll_while`].
    #[doc(alias = "bdrv_drain")]
    pub fn drain(&self) -> io::Result<()> {
        self.check_context(|| "draining a file".into())?;
        let Some(context) = AioContext::current() else { return Ok(()) };
        let suspended = context.at_home(|here| {
            let waiter = here.current()?;
            let look = || {
                let is_idle = self.calls.is_idle();
                if !is_idle {
                    self.calls.wake_when_idle(waiter);
                }
                is_idle.then_some(Ok(()))
            };
            let drained = here.suspend_until(look, || Some(Err(Cancelled.into())));
            self.calls.forget(waiter);
            drained
        });
        suspended.flatten().unwrap_or_else(|| {
            context.poll_while(|| !self.calls.is_idle());
            Ok(())
        })
    }
}
