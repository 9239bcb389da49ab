//! The name of the coroutine in the message of a panic.

use std::panic;
use std::sync::Once;

use crate::scheduler::Scheduler;
use crate::sys::report;

/// Installs a panic hook that writes, on standard error, which coroutine panics, and then calls the
/// hook that was installed before. Does nothing if it was called before.
///
/// The standard library's message names the thread only. A program with a hook of its own installs
/// that first, or calls [`Coroutine::current`](crate::Coroutine::current) in it. As any hook, this
/// one is not called for payloads that [`resume_unwind`](std::panic::resume_unwind) passes on, such
/// as [`Cancelled`](crate::Cancelled).
///
/// ```
/// use coralio::context::install_panic_hook;
/// use coralio::coroutine::Coroutine;
///
/// install_panic_hook();
/// coralio::run(|| {
///     // coralio: panic in coroutine 'parser', created at src/main.rs:6:20
///     // thread 'main' panicked at ...
///     let parser = Coroutine::builder().name("parser").spawn(|| panic!("no input")).unwrap();
///     assert!(parser.join().is_err());
/// });
/// ```
///
/// # Panics
///
/// On a thread that is panicking.
pub fn install_panic_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            report_coroutine();
            before(info);
        }));
    });
}

fn report_coroutine() {
    let Some(scheduler) = Scheduler::current() else { return };
    let Some(block) = scheduler.running() else { return };
    let local = scheduler.local(block);
    report(format_args!("coralio: panic in coroutine {}, created at {}", local.label(), local.created_at.get()));
}
