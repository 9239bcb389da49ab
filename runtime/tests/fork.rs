//! Code that forks in a context: the parent continues undisturbed, and the child must not use the
//! context.

#![allow(unsafe_code)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{Log, in_child, panic_of, text};
use coralio_runtime::{AioContext, Coroutine, Interest, JoinHandle, spawn, suspend, yield_now};

/// Ends the process immediately.
fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Forks. Returns `None` in the child; in the parent, waits for the child and returns its status.
fn fork() -> Option<i32> {
    // SAFETY: the child only does what these tests check, and leaves by `_exit`.
    match unsafe { libc::fork() } {
        0 => None,
        child => {
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: the kernel writes the status.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            Some(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) })
        }
    }
}

/// The exit code of a child that passed its checks. No other way out ends with it.
const PASSED: i32 = 33;

/// Runs `checks` in the child of a fork, and exits.
fn checked(checks: impl FnOnce()) -> ! {
    leave(if catch_unwind(AssertUnwindSafe(checks)).is_ok() { PASSED } else { 99 })
}

fn assert_success(run: &Output) {
    assert!(run.status.success(), "{}\n{}", run.status, String::from_utf8_lossy(&run.stderr));
}

#[test]
fn forked_child_cannot_use_the_context() {
    // C7: any use of the parent's context in the child of a fork fails with cause and remedy
    let Some(run) = in_child("forked_child_cannot_use_the_context") else {
        AioContext::run(|ctx| {
            let ctx = ctx.clone();
            let other = Coroutine::new(suspend);
            other.enter();
            let joined: JoinHandle<()> = spawn(suspend);
            let task = spawn(move || {
                let Some(code) = fork() else {
                    checked(|| {
                        let said = [
                            panic_of(suspend),
                            panic_of(yield_now),
                            panic_of(|| spawn(|| {})),
                            panic_of(|| Coroutine::new(|| {})),
                            panic_of(|| other.enter()),
                            panic_of(|| other.waker()),
                            panic_of(|| joined.join()),
                            panic_of(|| ctx.poll(false)),
                            panic_of(|| ctx.poll(true)),
                            panic_of(|| ctx.at_home(|_| ())),
                            panic_of(|| AioContext::run(|_| ())),
                        ];
                        for said in said {
                            assert!(said.contains("the process was forked inside a context"), "{said}");
                            assert!(said.contains("call exec or _exit in the child, or fork before `run`"), "{said}");
                        }
                        other.wake();
                        assert!(Coroutine::current().is_none() && AioContext::current().is_none());
                    })
                };
                other.enter();
                code
            });
            assert_eq!(task.join().unwrap(), PASSED);
        });
        return;
    };
    assert_success(&run);
}

/// Polls until nothing is left to do. `prepare` arranges for a fork, by calling its argument.
/// Returns the log of what else ran; in the child nothing may. The value returned by `prepare` is
/// kept until then.
fn nobody_else_goes_on<K>(prepare: impl FnOnce(&AioContext, &Log, Box<dyn FnOnce() + Send>) -> K) -> String {
    let (log, codes) = (Log::default(), Log::default());
    let forked = Arc::new(AtomicBool::new(false));
    AioContext::run(|ctx| {
        let (codes_in, forked_in, log_in) = (codes.clone(), Arc::clone(&forked), log.clone());
        let forks = Box::new(move || match fork() {
            Some(code) => codes_in.add(code),
            None => {
                forked_in.store(true, Ordering::Relaxed);
                log_in.take();
            }
        });
        let _kept = prepare(ctx, &log, forks);
        // The child continues here, and only the child is refused another iteration.
        let polled = catch_unwind(AssertUnwindSafe(|| while ctx.poll(false) {}));
        if forked.load(Ordering::Relaxed) {
            checked(|| {
                assert!(text(&*polled.unwrap_err()).contains("the process was forked"));
                assert_eq!(log.take(), "");
            });
        }
    });
    assert_eq!(codes.take(), PASSED.to_string());
    log.take()
}

#[test]
fn no_other_coroutine_runs_in_the_child_of_a_coroutine() {
    // C9: in the child of a fork no coroutine of the parent runs, whether woken or ready
    let Some(run) = in_child("no_other_coroutine_runs_in_the_child_of_a_coroutine") else {
        let ran = nobody_else_goes_on(|_, log, forks| {
            let (log_in, woken_log, ready_log) = (log.clone(), log.clone(), log.clone());
            drop(spawn(move || {
                let woken = Coroutine::new(move || {
                    suspend();
                    woken_log.add("woken");
                });
                woken.enter();
                woken.wake();
                drop(spawn(move || log_in.add("spawned")));
                forks();
            }));
            drop(spawn(move || ready_log.add("ready")));
        });
        assert_eq!(ran, "woken ready spawned");
        return;
    };
    assert_success(&run);
}

#[test]
fn no_other_coroutine_runs_in_the_child_of_a_bottom_half() {
    // C9: nor does a bottom half that the iteration had taken up, nor a ready coroutine
    let Some(run) = in_child("no_other_coroutine_runs_in_the_child_of_a_bottom_half") else {
        let ran = nobody_else_goes_on(|ctx, log, forks| {
            let (due, ready) = (log.clone(), log.clone());
            ctx.schedule_oneshot(forks).unwrap();
            ctx.schedule_oneshot(move || due.add("due")).unwrap();
            drop(spawn(move || ready.add("ready")));
        });
        assert_eq!(ran, "due ready");
        return;
    };
    assert_success(&run);
}

#[test]
fn no_other_coroutine_runs_in_the_child_of_an_fd_handler() {
    // C9: nor does an fd handler that was reported ready
    let Some(run) = in_child("no_other_coroutine_runs_in_the_child_of_an_fd_handler") else {
        let sockets = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
        let ran = nobody_else_goes_on(|ctx, log, forks| {
            let forks = Arc::new(Mutex::new(Some(forks)));
            sockets.map(|(ours, mut theirs)| {
                theirs.write_all(&[1]).unwrap();
                ours.set_nonblocking(true).unwrap();
                let (ours, forks, log) = (Arc::new(ours), Arc::clone(&forks), log.clone());
                let watch = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, move |_| {
                    let _ = (&*ours).read(&mut [0]);
                    log.add("served");
                    if let Some(forks) = forks.lock().unwrap().take() {
                        forks();
                    }
                });
                (watch, theirs)
            })
        });
        assert_eq!(ran, "served served");
        return;
    };
    assert_success(&run);
}

#[test]
fn returning_child_leaks_the_remaining_coroutines() {
    // C9: a child that returns out of the context reports that, unwinds nothing, waits for nothing,
    // and leaves the parent's resources alone
    let Some(run) = in_child("returning_child_leaks_the_remaining_coroutines") else {
        let log = Log::default();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(ours);
        let (code, _callback) = AioContext::run(|ctx| {
            let kept = log.on_drop("callback");
            let callback = ctx
                .new_bottom_half(move || {
                    let _ = &kept;
                })
                .unwrap();
            let log_in = log.clone();
            let waits = Coroutine::new(move || {
                let _drop = log_in.on_drop("unwound");
                suspend();
            });
            waits.enter();
            let (ours_in, log_in) = (Arc::clone(&ours), log.clone());
            let watch = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, move |_| {
                let mut byte = [0];
                (&*ours_in).read_exact(&mut byte).unwrap();
                log_in.add("read");
            });
            let code = Log::default();
            let code_in = code.clone();
            Coroutine::new(move || {
                if let Some(code) = fork() {
                    code_in.add(code);
                }
            })
            .enter();
            let code = code.take();
            if !code.is_empty() {
                // The parent's watch still works, although the child has dropped its own.
                theirs.write_all(&[1]).unwrap();
                assert!(ctx.poll(false));
                assert_eq!(log.take(), "read");
            }
            drop(watch);
            (code, callback)
        });
        if code.is_empty() {
            leave(if log.take().is_empty() { PASSED } else { 99 });
        }
        assert_eq!((code, log.take().as_str()), (PASSED.to_string(), "callback unwound"));
        return;
    };
    assert_success(&run);
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(
        said.contains("returned from its parent's context, leaking its copies of 1 coroutine; call exec or _exit"),
        "{said}"
    );
}

#[test]
fn programs_can_be_started() {
    // C7: std's `Command` forks, or does something similar, and continues to exec: that is allowed
    AioContext::run(|_| {
        let task = spawn(|| {
            use std::os::unix::process::CommandExt;
            let mut command = std::process::Command::new("true");
            // SAFETY: the closure does nothing; its presence makes std fork.
            unsafe { command.pre_exec(|| Ok(())) };
            command.status().unwrap().success()
        });
        assert!(task.join().unwrap());
        assert_eq!(spawn(|| 6).join().unwrap(), 6);
    });
}

#[test]
fn child_of_a_destructor_unwinds_nothing_more() {
    // C7, C9: a coroutine forks while the end of its context unwinds it: the parent unwinds the
    // others, the child none
    struct Forks(Log);
    impl Drop for Forks {
        fn drop(&mut self) {
            if let Some(code) = fork() {
                assert_eq!(code, PASSED);
                self.0.add("forked");
            } else {
                self.0.add("child");
            }
        }
    }
    let Some(run) = in_child("child_of_a_destructor_unwinds_nothing_more") else {
        let log = Log::default();
        AioContext::run(|_| {
            let forks = Forks(log.clone());
            Coroutine::new(move || drop((suspend(), forks))).enter();
            let later = log.on_drop("later");
            Coroutine::new(move || drop((suspend(), later))).enter();
        });
        match log.take().as_str() {
            "child" => leave(PASSED),
            told => return assert_eq!(told, "forked later"),
        }
    };
    assert_success(&run);
}
