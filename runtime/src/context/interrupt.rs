//! Stopping a home thread for a look at it, when it does not come back to its loop.
//!
//! The thread that wants to look sends the home thread a signal. The handler notes where that thread is, says that it has
//! stopped, and waits. Meanwhile the other one reads what is the home's alone, and lets it go on.
//!
//! - *stopped*: between `STOPPED` and `GO` the home thread is in the handler, and touches nothing.
//! - *claimed*: one thread at a time moves on from `SENT`, and fills in the frames before `STOPPED`.
//!
//! - *nothing is waited for*: the home thread may have been stopped inside the allocator, the loader, or any lock. So while it
//!   is stopped the other thread allocates nothing, frees nothing and takes no lock, not even by `try_lock`: a thread that
//!   waits for that lock would have to be woken, under a lock of the lock library's. It writes into memory that it allocated
//!   before ([`Prepared`]), and does everything else when the home thread is running again.
//! - *read only*: another thread may look at the same time, with the context's lock, while the loop sleeps (*away*, in
//!   `lock.rs`). Both only read, and so may do so at once.
//!
//! The thread may have been stopped anywhere, so the look goes by what is changed last: a control block is filled before its
//! state says so, and a list is changed by one word. The signal is `SIGURG`, ignored where nobody handles it.
//!
//! The handler walks its own stack. Where the C library has `_dl_find_object` (glibc 2.35) the unwinder takes no lock for that.
//! Elsewhere it would take the loader's lock, whose holder may wait for the allocator that the stopped thread is in: there the
//! handler leaves no frames.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fmt::{self, Write};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::home::Home;

use super::identity::context_ended;
use super::shared::Shared;

const SIGNAL: libc::c_int = libc::SIGURG;
/// For how long a thread is waited for that was sent the signal: it may wait for a disk, where no signal reaches it.
const PATIENCE: Duration = Duration::from_secs(2);
const DEEPEST: usize = 128;

/// Nobody looks.
const IDLE: u32 = 0;
/// The signal is on its way.
const SENT: u32 = 1;
/// The home thread has it, and fills in where it is.
const CLAIMED: u32 = 2;
/// It is in the handler, and waits.
const STOPPED: u32 = 3;
/// It may leave the handler.
const GO: u32 = 4;

/// The one look at a time that there is.
struct Look {
    step: AtomicU32,
    /// Whose home: the handler stops no other thread.
    shared: AtomicPtr<Shared>,
    home: AtomicPtr<Home>,
    /// Whether the handler can walk its stack without a lock.
    walks_stack: AtomicBool,
    depth: AtomicUsize,
    frames: UnsafeCell<[*mut c_void; DEEPEST]>,
}

// SAFETY: *claimed*: `frames` is written before `STOPPED`, and read after it, before the next `SENT`; the rest is atomic.
unsafe impl Sync for Look {}

static LOOK: Look = Look {
    step: AtomicU32::new(IDLE),
    shared: AtomicPtr::new(ptr::null_mut()),
    home: AtomicPtr::new(ptr::null_mut()),
    walks_stack: AtomicBool::new(false),
    depth: AtomicUsize::new(0),
    frames: UnsafeCell::new([ptr::null_mut(); DEEPEST]),
};

/// One who looks at a time. Says whether the handler is there.
static LOOKER: Mutex<bool> = Mutex::new(false);

/// A text in memory that is allocated before a thread is stopped, and filled while it is.
pub(crate) struct Prepared {
    text: String,
    needed: usize,
}

impl Prepared {
    pub(crate) fn with_capacity(capacity: usize) -> Prepared {
        Prepared { text: String::with_capacity(capacity), needed: 0 }
    }

    /// What fitted.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// How long the text would be if all of it fitted.
    pub(crate) fn needed(&self) -> usize {
        self.needed
    }

    /// Whether all of it fitted.
    pub(crate) fn is_complete(&self) -> bool {
        self.needed == self.text.len()
    }
}

impl Write for Prepared {
    /// Never fails, and never allocates.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.needed += text.len();
        // Nothing is put behind a gap.
        if self.needed <= self.text.capacity() {
            self.text.push_str(text);
        }
        Ok(())
    }
}

/// Stops the home thread of `shared`, has `look` look, and lets it go on. Returns what that said, and where
/// the thread was stopped.
///
/// `look` allocates nothing, frees nothing, takes no lock and does not panic (*nothing is waited for*); it only reads (*read
/// only*).
///
/// # Errors
///
/// No handler can be installed; the context has ended; the caller is its thread; or that did not stop in time.
pub(crate) fn stopped<R>(shared: &Shared, look: impl FnOnce(&Home) -> R) -> io::Result<(R, Frames)> {
    // An engine's `sleep` is on the home thread, though the home is hidden: the handler would wait for its own thread.
    if Home::current_or_hidden().is_some_and(|home| ptr::eq(&*home.shared, shared)) {
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "the calling thread is its own"));
    }
    let mut installed = LOOKER.lock();
    if !*installed {
        install()?;
        // The unwinder's tables are loaded at its first use, which must not be the handler's.
        backtrace::trace(|_| false);
        // SAFETY: the name ends with a zero byte; the answer is only compared.
        let lock_free = unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()).is_null() };
        LOOK.walks_stack.store(lock_free, Ordering::Relaxed);
        *installed = true;
    }
    LOOK.shared.store(ptr::from_ref(shared).cast_mut(), Ordering::Relaxed);
    LOOK.step.store(SENT, Ordering::Release);
    let take_back = || LOOK.step.compare_exchange(SENT, IDLE, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    // Not if a late signal of an earlier look was claimed: then the thread is in the handler.
    if let Err(error) = shared.thread.signal(SIGNAL)
        && take_back()
    {
        return Err(error);
    }
    let sent = Instant::now();
    // Acquire pairs with the release in the handler.
    while LOOK.step.load(Ordering::Acquire) != STOPPED {
        if shared.thread.has_left() && take_back() {
            return Err(context_ended());
        }
        if sent.elapsed() > PATIENCE && take_back() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its thread waits where no signal reaches it"));
        }
        std::thread::yield_now();
    }
    /// Lets it go on, also if `look` panics.
    struct Go;
    impl Drop for Go {
        fn drop(&mut self) {
            LOOK.step.store(GO, Ordering::Release);
            // It says when it is out: the next look must not find it in there.
            while LOOK.step.load(Ordering::Acquire) != IDLE {
                std::thread::yield_now();
            }
        }
    }
    let looked = {
        let _go = Go;
        // SAFETY: *stopped*: the home is that of the thread in the handler, and it stays there until `Go`. Whoever else may
        // look meanwhile only reads it too (*read only*).
        look(unsafe { &*LOOK.home.load(Ordering::Relaxed) })
    };
    // SAFETY: *claimed*: no handler writes the frames before another thread is sent the signal, which takes `LOOKER`.
    let frames = unsafe { &*LOOK.frames.get() };
    let frames = frames[..LOOK.depth.load(Ordering::Relaxed)].to_vec();
    drop(installed);
    Ok((looked, Frames(frames)))
}

fn install() -> io::Result<()> {
    // SAFETY: the handler does what a signal handler may: atomics, nanosleep, and an unwinder whose tables are loaded. The
    // structure is zeroed, which is valid, and filled.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        // On the alternate stack, if there is one: a coroutine's may be nearly used up.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(SIGNAL, &action, ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handler(_signal: libc::c_int) {
    // Hidden, it may be waiting for the context's lock, with no end.
    let Some(home) = Home::current_or_hidden() else { return };
    let mine = ptr::from_ref(&*home.shared).cast_mut();
    // An old signal may come late, while another thread is looked at. Acquire pairs with the release in `stopped`. From the
    // claim on whoever looks waits, however long it takes.
    if LOOK.shared.load(Ordering::Relaxed) != mine
        || LOOK.step.compare_exchange(SENT, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return;
    }
    // The look may have changed between the two.
    if LOOK.shared.load(Ordering::Relaxed) != mine {
        LOOK.step.store(SENT, Ordering::Release);
        return;
    }
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    let mut depth = 0;
    if LOOK.walks_stack.load(Ordering::Relaxed) && !home.switching.get() {
        // SAFETY: *claimed* by this thread alone, so nobody else writes the frames, or traces from this handler. Resolving,
        // which allocates, is left to whoever looks.
        unsafe {
            let frames = &mut *LOOK.frames.get();
            backtrace::trace_unsynchronized(|frame| {
                frames[depth] = frame.ip();
                depth += 1;
                depth < DEEPEST
            });
        }
    }
    LOOK.depth.store(depth, Ordering::Relaxed);
    LOOK.home.store(ptr::from_ref(home).cast_mut(), Ordering::Relaxed);
    // Release pairs with the acquire in `stopped`.
    LOOK.step.store(STOPPED, Ordering::Release);
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 100_000 };
    // Acquire pairs with the release of whoever looked.
    while LOOK.step.load(Ordering::Acquire) != GO {
        // SAFETY: reads the one timespec.
        unsafe { libc::nanosleep(&pause, ptr::null_mut()) };
    }
    LOOK.step.store(IDLE, Ordering::Release);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Where a thread was stopped. Displaying it allocates and takes the loader's lock, so the thread must be running again.
pub(crate) struct Frames(Vec<*mut c_void>);

impl fmt::Display for Frames {
    /// A line for each frame, without those of this file and the kernel's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            let why = "between two stacks, or this C library cannot walk the stack in a signal handler";
            return writeln!(f, "    a place that is not known: {why}");
        }
        let (mut is_first, mut result) = (true, Ok(()));
        for &frame in &self.0 {
            backtrace::resolve(frame, |symbol| {
                let Some(name) = symbol.name().map(|name| format!("{name:#}")) else { return };
                if is_first && (name.contains("interrupt::handler") || name.contains("backtrace::")) {
                    return;
                }
                is_first = false;
                let written = match (symbol.filename(), symbol.lineno()) {
                    (Some(file), Some(line)) => writeln!(f, "    {name} at {}:{line}", file.display()),
                    _ => writeln!(f, "    {name}"),
                };
                result = result.and(written);
            });
        }
        result
    }
}

/// What the unit tests of this crate know of allocations. (The allocator is for the whole program, so it is here once.)
#[cfg(test)]
pub(super) mod allocations {
    use super::{CLAIMED, GO, LOOK, STOPPED, Shared};
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::ptr;
    use std::sync::atomic::Ordering;

    thread_local! {
        /// The context that this thread looks at, if a test watches it.
        static LOOKED_AT: Cell<*const Shared> = const { Cell::new(ptr::null()) };
        static SEEN: Cell<usize> = const { Cell::new(0) };
    }

    /// How often this thread allocates or frees in `f` while it has the home thread of `shared` stopped.
    pub(in crate::context) fn while_stopped(shared: &Shared, f: impl FnOnce()) -> usize {
        LOOKED_AT.set(shared);
        SEEN.set(0);
        f();
        LOOKED_AT.set(ptr::null());
        SEEN.get()
    }

    fn note() {
        let shared = LOOKED_AT.get();
        if !shared.is_null()
            && ptr::eq(LOOK.shared.load(Ordering::Relaxed), shared)
            && matches!(LOOK.step.load(Ordering::Relaxed), CLAIMED | STOPPED | GO)
        {
            SEEN.set(SEEN.get() + 1);
        }
    }

    struct Watched;

    // SAFETY: the system's allocator; what is noted allocates nothing.
    unsafe impl GlobalAlloc for Watched {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            note();
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            note();
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(memory, layout) }
        }

        unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            note();
            // SAFETY: the caller's promise.
            unsafe { System.realloc(memory, layout, size) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Watched = Watched;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AioContext, Coroutine, suspend};
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    #[test]
    fn a_thread_may_be_stopped_between_two_stacks() {
        // X11, C13: stopped anywhere, also in the midst of a switch, where no table says how to walk the stack
        AioContext::run(|ctx| {
            let co = Coroutine::new(|| {
                loop {
                    suspend();
                }
            });
            let over = Arc::new(AtomicBool::new(false));
            let (shared, ends) = (Arc::clone(&ctx.shared), Arc::clone(&over));
            let looker = thread::spawn(move || {
                let looks = (0..5000).map(|_| stopped(&shared, |home| home.live().count()));
                let seen = looks.map(|look| look.map_or(0, |(count, _)| count)).max();
                ends.store(true, Ordering::Relaxed);
                seen
            });
            while !over.load(Ordering::Relaxed) {
                (0..100).for_each(|_| co.enter());
            }
            assert_eq!(looker.join().unwrap(), Some(1));
        });
    }
}
