//! Scopes: coroutines that borrow from the frame that waits for them.

mod common;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::{Log, OnDrop, panic_of, scaled};
use coralio_runtime::{
    AioContext, Cancelled, Coroutine, TimedOut, is_cancelled, scope, sleep, spawn, suspend, timeout, yield_now,
};

/// In a coroutine, and on the thread's own stack.
fn both(f: fn()) {
    AioContext::run(|_| {
        f();
        spawn(f).join().unwrap();
    });
}

#[test]
fn they_borrow_and_return() {
    // S4: the coroutines of a scope borrow from its frame, shared and exclusively; handles give their results; scopes nest
    both(|| {
        let mut numbers = [1, 2, 3, 4];
        let log = RefCell::new(Vec::new());
        let sum = scope(|s| {
            let (left, right) = numbers.split_at_mut(2);
            let tasks = [left, right].map(|half| {
                let log = &log;
                s.spawn(move || {
                    yield_now();
                    scope(|inner| half.iter_mut().for_each(|n| drop(inner.spawn(|| *n *= 10))));
                    log.borrow_mut().push(half.len());
                    half.iter().sum::<i32>()
                })
            });
            tasks.map(|task| task.join().unwrap()).iter().sum::<i32>()
        });
        assert_eq!((sum, numbers, log.into_inner()), (100, [10, 20, 30, 40], vec![2, 2]));
    });
}

#[test]
fn a_panic_of_the_body_waits_for_all() {
    // S4, C8: if the body panics, the others are cancelled and waited for, and then its panic goes on
    both(|| {
        let log = Log::default();
        let said = panic_of(|| {
            scope(|s| {
                drop(s.spawn(|| {
                    assert_eq!(sleep(Duration::MAX), Err(Cancelled));
                    log.add("told");
                }));
                drop(s.spawn(|| {
                    (0..5).for_each(|_| yield_now());
                    log.add("finished");
                }));
                yield_now_here();
                panic!("of the body");
            })
        });
        assert_eq!((said.as_str(), log.take().as_str()), ("of the body", "told finished"));
    });
}

/// Lets the others run, wherever this is.
fn yield_now_here() {
    match Coroutine::current() {
        Some(_) => yield_now(),
        None => drop(AioContext::current().unwrap().poll(false)),
    }
}

#[test]
fn a_panic_that_nobody_joined_is_the_scopes() {
    // S4, C8: a coroutine's panic is its handle's; if that is dropped, before or after, or forgotten, it is the scope's; and
    // the others have ended by then
    both(|| {
        let log = Log::default();
        scope(|s| assert!(s.spawn(|| panic!("joined")).join().is_err()));
        for how in ["dropped", "dropped later", "forgotten"] {
            let said = panic_of(|| {
                scope(|s| {
                    let fails = s.spawn(move || panic!("{how}"));
                    drop(s.spawn(|| {
                        (0..3).for_each(|_| yield_now());
                        log.add("others");
                    }));
                    match how {
                        "dropped" => drop(fails),
                        "forgotten" => std::mem::forget(fails),
                        _ => {
                            while !fails.is_finished() {
                                yield_now_here();
                            }
                            drop(fails);
                        }
                    }
                })
            });
            assert_eq!((said.as_str(), log.take().as_str()), (how, "others"));
        }
    });
}

#[test]
fn a_forgotten_result_is_dropped_before_the_scope_ends() {
    // S4: a result that borrows, whose handle was leaked, is dropped while what it borrows is there: *the scope ends last*
    struct Borrows<'a>(&'a Log);
    impl Drop for Borrows<'_> {
        fn drop(&mut self) {
            self.0.add("result-dropped");
        }
    }
    both(|| {
        let log = Log::default();
        let end: OnDrop;
        {
            let inner = log.clone();
            scope(|s| std::mem::forget(s.spawn(|| Borrows(&inner))));
            end = log.on_drop("frame-left");
        }
        drop(end);
        assert_eq!(log.take(), "result-dropped frame-left");
    });
}

#[test]
fn the_end_of_the_context_unwinds_the_inner_ones_first() {
    // C9, S4: a coroutine that waits in a scope is unwound: what borrows from its frame is unwound before, entered or not
    let log = Log::default();
    AioContext::builder()
        .unwind_report(false)
        .run(|ctx| {
            let seen = log.clone();
            drop(spawn(move || {
                let _frame = seen.on_drop("frame");
                let fresh = seen.on_drop("fresh");
                scope(|s| {
                    for what in ["one", "two"] {
                        let seen = &seen;
                        drop(s.spawn(move || {
                            let _gone = seen.on_drop(what);
                            suspend();
                        }));
                    }
                    yield_now();
                    drop(s.spawn(move || drop(fresh)));
                    suspend();
                });
            }));
            ctx.poll(false);
            ctx.poll(false);
        })
        .unwrap();
    let order = log.take();
    assert!(order.ends_with("frame"), "{order}");
    assert_eq!(order.split(' ').count(), 4, "{order}");
}

#[test]
fn a_scope_in_a_destructor_while_the_stack_unwinds() {
    // C9, S4: where nothing can be waited for, a scope unwinds its coroutines in place, and does not leave them behind
    struct Scopes(Log);
    impl Drop for Scopes {
        fn drop(&mut self) {
            let borrowed = Cell::new(0);
            scope(|s| {
                let gone = self.0.on_drop("unwound");
                drop(s.spawn(|| {
                    let _gone = gone;
                    borrowed.set(1);
                }));
            });
            self.0.add(borrowed.get());
        }
    }
    both(|| {
        let log = Log::default();
        let scopes = Scopes(log.clone());
        let caught = catch_unwind(AssertUnwindSafe(move || {
            let _scopes = scopes;
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(caught.is_err());
        // In a coroutine it never began; on the thread's own stack the loop runs it.
        let said = log.take();
        assert!(["unwound 0", "unwound 1"].contains(&said.as_str()), "{said}");
    });
}

#[test]
fn cancelling_goes_down() {
    // S4: whoever waits in a scope and is cancelled, or out of time, cancels those it waits for
    AioContext::run(|ctx| {
        let seen = Log::default();
        let log = seen.clone();
        let parent = spawn(move || {
            scope(|s| {
                for what in ["one", "two"] {
                    let log = &log;
                    drop(s.spawn(move || {
                        let _ = sleep(Duration::MAX);
                        log.add(format!("{what}-{}", is_cancelled()));
                    }));
                }
            });
            log.add("parent");
        });
        ctx.poll(false);
        ctx.poll(false);
        parent.cancel();
        parent.join().unwrap();
        assert_eq!(seen.take(), "one-true two-true parent");
        let late = spawn(|| timeout(Duration::from_millis(1), || scope(|s| s.spawn(|| sleep(Duration::MAX)).join())));
        assert!(matches!(late.join().unwrap(), Err(TimedOut)));
    });
}

#[test]
fn a_hundred_thousand_children() {
    // S4: a scope holds on to nothing of those that have ended: many in turn take the stacks of a few
    AioContext::run(|_| {
        let total = Cell::new(0);
        let count = scaled(100_000);
        spawn_and_wait(|| {
            scope(|s| {
                for n in 0..count {
                    let total = &total;
                    drop(s.spawn(move || total.set(total.get() + n)));
                    if n % 64 == 0 {
                        yield_now();
                    }
                }
            });
        });
        assert_eq!(total.get(), count * (count - 1) / 2);
    });
}

/// Runs `f` in a coroutine that may borrow.
fn spawn_and_wait(f: impl FnOnce()) {
    scope(|s| s.spawn(f).join().unwrap());
}
