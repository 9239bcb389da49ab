//! Attaching an I/O engine to a context.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::context::{AioContext, EventSource, HomeToken};

/// The I/O engine of a context, if it has one.
#[derive(Default)]
pub(crate) struct Attached(RefCell<Option<Rc<Arc<dyn EventSource>>>>);

impl Attached {
    /// Returns the engine. A caller keeps the `Rc` during calls of the engine's methods: code that
    /// the engine runs may detach the engine, which must not be dropped while that code runs.
    #[inline]
    pub(crate) fn get(&self) -> Option<Rc<Arc<dyn EventSource>>> {
        self.0.borrow().clone()
    }

    fn set(&self, source: &Arc<dyn EventSource>) -> io::Result<()> {
        if self.0.borrow().is_some() {
            let why = "cannot attach an I/O engine: the context already has one; share that one";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        bind(source)?;
        self.0.replace(Some(Rc::new(Arc::clone(source))));
        Ok(())
    }

    fn take(&self) -> Option<Rc<Arc<dyn EventSource>>> {
        let source = self.0.take();
        source.as_deref().into_iter().for_each(release);
        source
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.take();
    }
}

/// Addresses of all attached sources of this process. At most one context drives an engine.
static ATTACHED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn address(source: &Arc<dyn EventSource>) -> usize {
    Arc::as_ptr(source).cast::<()>().addr()
}

/// Records that a context has `source`. Fails if another context has it.
fn bind(source: &Arc<dyn EventSource>) -> io::Result<()> {
    let mut attached = ATTACHED.lock();
    if attached.contains(&address(source)) {
        let why = "cannot attach the I/O engine: it is attached to another context; detach it there first";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    attached.push(address(source));
    Ok(())
}

fn release(source: &Arc<dyn EventSource>) {
    ATTACHED.lock().retain(|&other| other != address(source));
}

impl AioContext {
    /// Attaches an I/O engine to the context. For authors of engines.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the context has an engine already. `ResourceBusy`: another context has this
    /// engine.
    ///
    /// # Panics
    ///
    /// Panics on any thread other than the context's home thread.
    pub fn attach(&self, source: Arc<dyn EventSource>) -> io::Result<()> {
        let Some(home) = self.shared.home() else {
            panic!("cannot attach an engine off the context's home thread; call this on the home thread");
        };
        home.source.set(&source)?;
        *self.shared.source.lock() = Some(source);
        Ok(())
    }

    /// Detaches the I/O engine from the context, and returns it, if there is one. For authors of
    /// engines.
    ///
    /// # Errors
    ///
    /// The error of [`EventSource::leave`]; the context then keeps the engine.
    ///
    /// # Panics
    ///
    /// Panics on any thread other than the context's home thread.
    ///
    /// # Control
    ///
    /// May block the thread, as [`acquire`](Self::acquire).
    pub fn detach(&self) -> io::Result<Option<Arc<dyn EventSource>>> {
        let Some(home) = self.shared.home() else {
            panic!("cannot detach an engine off the context's home thread; call this on the home thread");
        };
        // The lock excludes polls of other threads, even if `detach` is called outside the loop.
        let _guard = self.shared.acquire_at_home();
        if let Some(source) = home.source.get() {
            source.leave(HomeToken::new(home))?;
            if !home.source.get().is_some_and(|now| Rc::ptr_eq(&now, &source)) {
                let why = "cannot detach the engine: another one was attached while it left; detach that one";
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
            }
        }
        let shared = self.shared.source.lock().take();
        drop(shared);
        Ok(home.source.take().map(|source| Arc::clone(&source)))
    }
}
