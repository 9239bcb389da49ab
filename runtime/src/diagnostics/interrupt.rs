//! Stops a home thread that does not return to its loop, to read its state.
//!
//! The inspecting thread sends a signal to the home thread. The handler records where that thread
//! is, announces that it has stopped, and waits. The inspector meanwhile reads state that only the
//! home thread may write, and then lets it continue.
//!
//! - *stopped*: between `STOPPED` and `GO` the home thread is in the handler, and touches nothing.
//! - *claimed*: only one thread at a time takes the step from `SENT` to `CLAIMED`, and writes the
//!   frames before `STOPPED`.
//!
//! - *nothing is waited for*: the home thread may have been stopped inside the allocator, the
//!   loader, or any lock. So while it is stopped, the inspector allocates nothing, frees nothing
//!   and takes no lock, not even by `try_lock`: a thread waiting for that lock would then have to
//!   be woken, under a lock of the lock library. It writes into preallocated memory ([`Prepared`]),
//!   and does everything else once the home thread runs again.
//! - *read only*: another thread may read at the same time, with the context's lock, while the loop
//!   sleeps (*away*, in `lock.rs`). Both only read, so they may do so concurrently.
//!
//! The thread may have been stopped at any instruction, so inspection relies on the value that is
//! changed last: a control block is complete before its state shows that, and a list is changed by
//! one word. The signal is `SIGURG`, which is ignored by default.
//!
//! The handler walks its own stack. Where the C library has `_dl_find_object` (glibc 2.35) the
//! unwinder takes no lock for that. Elsewhere it would take the loader's lock, whose owner may wait
//! for the allocator inside which the thread was stopped; there the handler records no frames.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fmt::{self, Write};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::context::{LocalContext, SharedContext, context_ended};
use crate::scheduler::Scheduler;

const SIGNAL: libc::c_int = libc::SIGURG;
/// How long to wait for a signalled thread: it may wait for a disk, where signals do not reach it.
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_FRAMES: usize = 128;

/// No inspection.
const IDLE: u32 = 0;
/// The signal is sent.
const SENT: u32 = 1;
/// The home thread has received the signal, and records its position.
const CLAIMED: u32 = 2;
/// The home thread is in the handler, and waits.
const STOPPED: u32 = 3;
/// The home thread may leave the handler.
const GO: u32 = 4;

/// The state of the inspection; there is at most one at a time.
struct StopRequest {
    step: AtomicU32,
    /// The inspected context: the handler stops no other thread.
    shared: AtomicPtr<SharedContext>,
    scheduler: AtomicPtr<Scheduler>,
    /// Whether the handler can walk its stack without a lock.
    walks_stack: AtomicBool,
    depth: AtomicUsize,
    frames: UnsafeCell<[*mut c_void; MAX_FRAMES]>,
}

// SAFETY: *claimed*: `frames` is written before `STOPPED`, and read after it, before the next
// `SENT`; the rest is atomic.
unsafe impl Sync for StopRequest {}

static STOP: StopRequest = StopRequest {
    step: AtomicU32::new(IDLE),
    shared: AtomicPtr::new(ptr::null_mut()),
    scheduler: AtomicPtr::new(ptr::null_mut()),
    walks_stack: AtomicBool::new(false),
    depth: AtomicUsize::new(0),
    frames: UnsafeCell::new([ptr::null_mut(); MAX_FRAMES]),
};

/// Serializes inspections. True once the handler is installed.
static STOP_LOCK: Mutex<bool> = Mutex::new(false);

/// Text in memory that is allocated before a thread is stopped, and filled while it is.
pub(crate) struct Prepared {
    text: String,
    needed: usize,
}

impl Prepared {
    pub(crate) fn with_capacity(capacity: usize) -> Prepared {
        Prepared { text: String::with_capacity(capacity), needed: 0 }
    }

    /// Returns the part that fit.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the length of the whole text.
    pub(crate) fn needed(&self) -> usize {
        self.needed
    }

    /// Returns whether the whole text fit.
    pub(crate) fn is_complete(&self) -> bool {
        self.needed == self.text.len()
    }
}

impl Write for Prepared {
    /// Never fails, and never allocates.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.needed += text.len();
        // Text after a gap is dropped too.
        if self.needed <= self.text.capacity() {
            self.text.push_str(text);
        }
        Ok(())
    }
}

/// Stops the home thread of `shared`, calls `look`, and lets the thread continue. Returns the
/// result of `look`, and where the thread was stopped.
///
/// `look` must not allocate, free, take a lock or panic (*nothing is waited for*); it must only
/// read (*read only*).
///
/// # Errors
///
/// The handler cannot be installed; the context has ended; the caller is the context's own thread;
/// or that thread did not stop in time.
pub(crate) fn stopped<R>(shared: &SharedContext, look: impl FnOnce(&Scheduler) -> R) -> io::Result<(R, Frames)> {
    // An engine's `sleep` is on the home thread, though the home is hidden: the handler would wait
    // for its own thread.
    if LocalContext::current_or_suspended().is_some_and(|home| ptr::eq(&*home.context.shared, shared)) {
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "the calling thread is its own"));
    }
    let mut installed = STOP_LOCK.lock();
    if !*installed {
        install()?;
        // The unwinder loads its tables at its first use, which must not be in the handler.
        backtrace::trace(|_| false);
        // SAFETY: the name ends with a zero byte; the result is only compared with null.
        let lock_free = unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr()).is_null() };
        STOP.walks_stack.store(lock_free, Ordering::Relaxed);
        *installed = true;
    }
    STOP.shared.store(ptr::from_ref(shared).cast_mut(), Ordering::Relaxed);
    STOP.step.store(SENT, Ordering::Release);
    let take_back = || STOP.step.compare_exchange(SENT, IDLE, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    // Not if a late signal of an earlier inspection was claimed: then the thread is in the handler.
    match shared.thread.signal(SIGNAL) {
        Err(error) if take_back() => return Err(error),
        _ => {}
    }
    let sent = Instant::now();
    // Acquire pairs with the release in the handler.
    while STOP.step.load(Ordering::Acquire) != STOPPED {
        if shared.thread.has_left() && take_back() {
            return Err(context_ended());
        }
        if sent.elapsed() > TIMEOUT && take_back() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the thread is blocked where no signal reaches it"));
        }
        std::thread::yield_now();
    }
    /// Lets the thread continue, even if `look` panics.
    struct Go;
    impl Drop for Go {
        fn drop(&mut self) {
            STOP.step.store(GO, Ordering::Release);
            // Wait until it has left the handler: the next inspection must not find it there.
            while STOP.step.load(Ordering::Acquire) != IDLE {
                std::thread::yield_now();
            }
        }
    }
    let result = {
        let _go = Go;
        // SAFETY: *stopped*: the scheduler is that of the thread in the handler, which stays there
        // until `Go`. Any other thread that accesses it meanwhile only reads it too (*read only*).
        look(unsafe { &*STOP.scheduler.load(Ordering::Relaxed) })
    };
    // SAFETY: *claimed*: no handler writes the frames before another thread is sent the signal,
    // which requires `STOP_LOCK`.
    let frames = unsafe { &*STOP.frames.get() };
    let frames = frames[..STOP.depth.load(Ordering::Relaxed)].to_vec();
    drop(installed);
    Ok((result, Frames(frames)))
}

fn install() -> io::Result<()> {
    // SAFETY: the handler only does what a signal handler may: atomics, nanosleep, and an unwinder
    // whose tables are loaded. The structure is zeroed, which is valid, and then filled.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        // On the alternate stack, if there is one: a coroutine's stack may be nearly used up.
        action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(SIGNAL, &action, ptr::null_mut())
    };
    if installed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn handler(_signal: libc::c_int) {
    // A thread with a hidden home may be waiting for the context's lock indefinitely.
    let Some(home) = LocalContext::current_or_suspended() else { return };
    let mine = ptr::from_ref(&*home.context.shared).cast_mut();
    // A stale signal may arrive during the inspection of another thread. Acquire pairs with the
    // release in `stopped`. After the claim the inspector waits, however long it takes.
    if STOP.shared.load(Ordering::Relaxed) != mine
        || STOP.step.compare_exchange(SENT, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return;
    }
    // The inspected context may have changed between the check and the claim.
    if STOP.shared.load(Ordering::Relaxed) != mine {
        STOP.step.store(SENT, Ordering::Release);
        return;
    }
    // SAFETY: errno is this thread's.
    let errno = unsafe { *libc::__errno_location() };
    let mut depth = 0;
    if STOP.walks_stack.load(Ordering::Relaxed) && !home.scheduler.is_switching() {
        // SAFETY: *claimed* by this thread alone, so no other code writes the frames, or traces
        // from this handler. Resolving, which allocates, is left to the inspector.
        unsafe {
            let frames = &mut *STOP.frames.get();
            backtrace::trace_unsynchronized(|frame| {
                frames[depth] = frame.ip();
                depth += 1;
                depth < MAX_FRAMES
            });
        }
    }
    STOP.depth.store(depth, Ordering::Relaxed);
    STOP.scheduler.store(ptr::from_ref(&home.scheduler).cast_mut(), Ordering::Relaxed);
    // Release pairs with the acquire in `stopped`.
    STOP.step.store(STOPPED, Ordering::Release);
    let pause = libc::timespec { tv_sec: 0, tv_nsec: 100_000 };
    // Acquire pairs with the release of the inspector.
    while STOP.step.load(Ordering::Acquire) != GO {
        // SAFETY: reads the one timespec.
        unsafe { libc::nanosleep(&pause, ptr::null_mut()) };
    }
    STOP.step.store(IDLE, Ordering::Release);
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Where a thread was stopped. Formatting it allocates and takes the loader's lock, so the thread
/// must be running again.
pub(crate) struct Frames(Vec<*mut c_void>);

impl fmt::Display for Frames {
    /// Prints a line for each frame, without those of this file and the kernel's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            let why = "between two stacks, or the C library cannot walk the stack in a signal handler";
            return writeln!(f, "    unknown location: {why}");
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

/// Allocation counting for the unit tests of this crate. (A program has one global allocator, so it
/// is here once.)
#[cfg(test)]
pub(crate) mod allocations {
    use super::{CLAIMED, GO, STOP, STOPPED, SharedContext};
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::ptr;
    use std::sync::atomic::Ordering;

    thread_local! {
        /// The context that this thread inspects, if a test watches it.
        static LOOKED_AT: Cell<*const SharedContext> = const { Cell::new(ptr::null()) };
        static SEEN: Cell<usize> = const { Cell::new(0) };
    }

    /// Returns how often this thread allocates or frees in `f` while it keeps the home thread of
    /// `shared` stopped.
    pub(crate) fn while_stopped(shared: &SharedContext, f: impl FnOnce()) -> usize {
        LOOKED_AT.set(shared);
        SEEN.set(0);
        f();
        LOOKED_AT.set(ptr::null());
        SEEN.get()
    }

    fn note() {
        let shared = LOOKED_AT.get();
        if !shared.is_null()
            && ptr::eq(STOP.shared.load(Ordering::Relaxed), shared)
            && matches!(STOP.step.load(Ordering::Relaxed), CLAIMED | STOPPED | GO)
        {
            SEEN.set(SEEN.get() + 1);
        }
    }

    struct Watched;

    // SAFETY: the system's allocator; `note` allocates nothing.
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
    fn thread_can_be_stopped_between_two_stacks() {
        // X11, C13: a thread can be stopped anywhere, even during a switch, where no unwind table
        // describes the stack
        AioContext::run(|ctx| {
            let co = Coroutine::new(|| {
                loop {
                    suspend();
                }
            });
            let over = Arc::new(AtomicBool::new(false));
            let (shared, ends) = (Arc::clone(&ctx.shared), Arc::clone(&over));
            let looker = thread::spawn(move || {
                let looks = (0..5000).map(|_| stopped(&shared, |scheduler| scheduler.live().count()));
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
