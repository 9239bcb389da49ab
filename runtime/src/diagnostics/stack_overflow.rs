//! The report of a stack overflow (rule C11).
//!
//! ```text
//!   'deep' recurses  ---->  guard page  ---->  SIGSEGV, handled on the thread's alternate stack
//!                                                in an entered coroutine's guard: message, abort
//!                                                anywhere else:                   previous handler
//! ```
//!
//! Code compiled by rustc touches each page of a large frame, from above, so it cannot step over
//! the guard. Other code can: a C function whose frame is larger than the guard page must be
//! compiled with `-fstack-clash-protection`, or needs a sufficiently large stack.
//!
//! - *async-signal-safe*: the handler allocates nothing and takes no lock: it reads cells of its
//!   own thread, formats into a buffer on its stack (`report.rs`), and makes system calls. The
//!   fault is synchronous, raised by this thread touching its stack, so it never interrupts a
//!   change of those cells.
//!
//! Linux reports a guard page by SIGSEGV only, so SIGBUS is left alone.

#![allow(unsafe_code)]

use std::sync::{Once, OnceLock};
use std::{mem, process, ptr};

use crate::coroutine::{LocalState, PAGE, StackPool};
use crate::scheduler::Scheduler;
use crate::sys::report;

/// The handler's own use of an alternate stack, besides the kernel's signal frame.
const NEEDED: usize = 4096;

/// The handler of SIGSEGV before ours.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// The thread's alternate signal stack, while it runs a context. A sufficiently large existing one,
/// as std's threads have, is kept.
pub(crate) struct AlternateStack {
    /// The pool of our stack, and the thread's own alternate stack that ours replaces.
    installed: Option<(StackPool, libc::stack_t)>,
}

impl AlternateStack {
    /// Without memory the thread has no alternate stack: an overflow still ends the process,
    /// without a message.
    pub(crate) fn install() -> AlternateStack {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(install_handler);
        // SAFETY: takes no pointers.
        let by_the_kernel = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let enough = by_the_kernel.max(libc::MINSIGSTKSZ) + NEEDED;
        // SAFETY: all zeroes is a valid stack_t; the call fills it in with the thread's own.
        let before = unsafe {
            let mut before: libc::stack_t = mem::zeroed();
            libc::sigaltstack(ptr::null(), &mut before);
            before
        };
        if before.ss_flags & libc::SS_DISABLE == 0 && before.ss_size >= enough {
            return AlternateStack { installed: None };
        }
        // A stack of its own, with a guard page, as a coroutine has.
        let pool = StackPool::new(enough + PAGE, false);
        let Ok(lease) = pool.take(None) else { return AlternateStack { installed: None } };
        let usable = lease.usable();
        let start = ptr::with_exposed_provenance_mut(usable.start);
        let ours = libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: usable.len() };
        // SAFETY: the memory is ours until `drop` has uninstalled it.
        let is_installed = unsafe { libc::sigaltstack(&ours, ptr::null_mut()) == 0 };
        AlternateStack { installed: is_installed.then_some((pool, before)) }
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        if let Some((pool, before)) = self.installed.take() {
            // SAFETY: the thread had this alternate stack before. If ours cannot be uninstalled,
            // its memory must stay mapped.
            if unsafe { libc::sigaltstack(&before, ptr::null_mut()) } != 0 {
                mem::forget(pool);
            }
        }
    }
}

/// Runs once per process, and is never undone: a handler installed later may forward to ours.
fn install_handler() {
    // SAFETY: all zeroes is a valid sigaction; each pointer passed is valid for its call. The
    // previous handler is stored before ours can be called.
    unsafe {
        let mut previous: libc::sigaction = mem::zeroed();
        if libc::sigaction(libc::SIGSEGV, ptr::null(), &mut previous) != 0 {
            return;
        }
        let previous = PREVIOUS.get_or_init(|| previous);
        let mut ours: libc::sigaction = mem::zeroed();
        let handler: unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        ours.sa_sigaction = handler as usize;
        // The previous handler's mask and flags apply, since it runs within ours.
        ours.sa_mask = previous.sa_mask;
        let kept = previous.sa_flags & (libc::SA_NODEFER | libc::SA_RESTART);
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | kept;
        libc::sigaction(libc::SIGSEGV, &ours, ptr::null_mut());
    }
}

/// # Safety
///
/// Called by the kernel, as a handler with SA_SIGINFO, or by another handler that forwards its
/// arguments.
unsafe extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the caller's promise.
    let (sent, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr().addr()) };
    if let (false, Some(scheduler)) = (sent, Scheduler::current()) {
        let hit = |local: &&LocalState| local.lease.get().is_some_and(|lease| lease.guard().contains(&address));
        // Checks all entered coroutines: in an iteration of the loop none is running, but one may
        // lie below.
        if let Some(local) = scheduler.on_stack().flatten().map(|block| scheduler.local(block)).find(hit) {
            end_process(local);
        }
    }
    // SAFETY: the caller's promise is passed on.
    unsafe { hand_on(signal, info, context, sent) };
}

fn end_process(local: &LocalState) -> ! {
    let size = local.lease.get().map_or(0, |lease| lease.size());
    // The user does not create the first coroutine with a builder.
    let is_main = local.name.try_borrow().is_ok_and(|name| name.as_deref() == Some("main"));
    let remedy = match is_main {
        true => "set a larger one with `ContextBuilder::stack_size` or `RuntimeBuilder::stack_size`",
        false => {
            "set a larger one with `CoroutineBuilder::stack_size`, or for all coroutines with `ContextBuilder::stack_size`"
        }
    };
    report(format_args!(
        "coralio: stack overflow: coroutine {} (created at {}) exceeded its stack of {size} bytes; {remedy}",
        local.label(),
        local.created_at.get()
    ));
    process::abort();
}

/// Does what would have happened without our handler.
///
/// # Safety
///
/// As [`on_fault`].
unsafe fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void, sent: bool) {
    let Some(previous) = PREVIOUS.get() else { return };
    let handler = previous.sa_sigaction;
    let by_default = handler == libc::SIG_DFL || handler == libc::SIG_IGN;
    if handler == libc::SIG_IGN && sent {
        return;
    }
    // SAFETY: SIG_DFL is a valid action. The handler has the type that its flags specify, and
    // receives the kernel's arguments.
    unsafe {
        if by_default || previous.sa_flags & libc::SA_RESETHAND != 0 {
            libc::signal(signal, libc::SIG_DFL);
        }
        if by_default {
            // A fault is raised again when this returns to the instruction. A sent signal would not
            // be.
            if sent {
                libc::raise(signal);
            }
        } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                mem::transmute(handler);
            handler(signal, info, context);
        } else {
            let handler: unsafe extern "C" fn(libc::c_int) = mem::transmute(handler);
            handler(signal);
        }
    }
}
