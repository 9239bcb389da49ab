//! Scopes: coroutines that borrow from the frame that waits for them. However a scope is left, its
//! borrowers are gone first: coroutines, their captures, and unfetched results.

use std::cell::Cell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use crate::common::{Log, OnDrop, assert_aborted, in_child, panic_of};
use coralio_runtime::{AioContext, Cancelled, Coroutine, ScopedJoinHandle, scope, sleep, spawn, suspend, yield_now};

const HOUR: Duration = Duration::from_secs(3600);

/// Logs its end through a borrowed value: if that were gone, the text would be garbage.
struct Borrows<'a>(&'a Log, &'a str);

impl Drop for Borrows<'_> {
    fn drop(&mut self) {
        self.0.add(self.1);
    }
}

#[test]
fn borrowed_values_are_shared_changed_and_returned() {
    // S4: coroutines of a scope borrow from the waiting frame, shared and exclusively; handles
    // return their results
    fn halves() -> (Vec<u64>, u64) {
        let mut numbers: Vec<u64> = (0..100).collect();
        let factor = 3;
        let (left, right) = numbers.split_at_mut(50);
        let sum = scope(|s| {
            let multiply = |half| {
                let half: &mut [u64] = half;
                for n in half.iter_mut() {
                    *n *= factor;
                    yield_now();
                }
                half.iter().sum::<u64>()
            };
            let left = s.spawn(move || multiply(left));
            let right = s.spawn(move || multiply(right));
            assert!(!left.is_finished());
            let right = right.join().unwrap();
            assert!(left.is_finished(), "they took turns");
            left.join().unwrap() + right
        });
        (numbers, sum)
    }
    let expected = ((0..100).map(|n| n * 3).collect::<Vec<u64>>(), 4950 * 3);
    AioContext::run(|_| {
        assert_eq!(halves(), expected, "on the thread's own stack");
        assert_eq!(spawn(halves).join().unwrap(), expected, "in a coroutine");
    });
}

#[test]
fn unjoined_results_are_dropped_before_the_scope_ends() {
    // S4: an unfetched result that borrows is dropped before the scope ends: its handle leaked,
    // dropped early, or dropped late
    for own_stack in [true, false] {
        let log = Log::default();
        let inner = log.clone();
        let body = move || {
            let log = &inner;
            {
                let names = ["forgotten", "early", "late"].map(String::from);
                let [forgotten, early, late] = &names;
                scope(|s| {
                    mem::forget(s.spawn(move || Borrows(log, forgotten)));
                    drop(s.spawn(move || Borrows(log, early)));
                    let task = s.spawn(move || Borrows(log, late));
                    s.spawn(yield_now).join().unwrap();
                    assert!(task.is_finished());
                    log.add("then");
                    drop(task);
                });
            }
            log.add("end");
        };
        AioContext::run(|_| if own_stack { body() } else { spawn(body).join().unwrap() });
        assert_eq!(log.take(), "early then late forgotten end");
    }
}

#[test]
fn panicking_result_destructor_does_not_leak_other_results() {
    // S4: unfetched results are dropped before the scope ends even if one of their destructors
    // panics; the scope reports the panic
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("bomb");
        }
    }
    let log = Log::default();
    AioContext::run(|ctx| {
        let said = panic_of(|| {
            let names = ["first", "last"].map(String::from);
            let [first, last] = &names;
            let log = &log;
            scope(|s| {
                mem::forget(s.spawn(move || Borrows(log, first)));
                mem::forget(s.spawn(|| Bomb));
                mem::forget(s.spawn(move || Borrows(log, last)));
            });
        });
        assert_eq!(said, "bomb");
        assert_eq!(log.take(), "first last");
        // Likewise if the handle was dropped: the result is dropped while it still counts for the
        // scope.
        let said = panic_of(|| scope(|s| drop(s.spawn(|| Bomb))));
        assert_eq!(said, "bomb");
        ctx.poll(false);
    });
    assert_eq!(log.take(), "");
}

#[test]
fn polling_result_destructor_delays_the_scope() {
    // S4, X2: a result's destructor may run the loop; the scope does not end meanwhile
    struct Polls<'a>(&'a Log, &'a str);
    impl Drop for Polls<'_> {
        fn drop(&mut self) {
            let ctx = AioContext::current().unwrap();
            (0..3).for_each(|_| _ = ctx.poll(false));
            self.0.add(self.1);
        }
    }
    let log = Log::default();
    AioContext::run(|_| {
        let log = log.clone();
        let task = spawn(move || {
            {
                let name = String::from("polled");
                scope(|s| drop(s.spawn(|| Polls(&log, &name))));
                log.add("left");
            }
            log.add("gone");
        });
        task.join().unwrap();
    });
    assert_eq!(log.take(), "polled left gone");
}

#[test]
fn panic_before_its_handle_is_dropped_reaches_the_scope() {
    // S4, C8: the panic of a coroutine whose handle is dropped later propagates from the scope, and
    // so does the first of two panics
    AioContext::run(|_| {
        let said = panic_of(|| {
            scope(|s| {
                let task = s.spawn(|| panic!("first"));
                s.spawn(|| {}).join().unwrap();
                assert!(task.is_finished());
                drop(task);
                drop(s.spawn(|| panic!("second")));
            });
        });
        assert_eq!(said, "first");
    });
}

#[test]
fn panic_in_the_loop_unwinds_every_scope() {
    // S4, C9: a panic in the loop, while a scope on the thread's own stack waits, first unwinds the
    // scope's coroutines
    let log = Log::default();
    AioContext::run(|ctx| {
        let said = panic_of(|| {
            let frame = log.on_drop("frame");
            let (frame, log) = (&frame, &log);
            scope(|s| {
                drop(s.spawn(move || {
                    let _noted = (log.on_drop("suspended"), frame);
                    suspend();
                }));
                drop(s.spawn(move || {
                    let _noted = (log.on_drop("ready"), frame);
                    loop {
                        yield_now();
                    }
                }));
                ctx.poll(false);
                ctx.schedule_oneshot(|| panic!("bottom half")).unwrap();
                let caught = (log.on_drop("never-started"), frame);
                drop(s.spawn(move || drop(caught)));
            });
        });
        assert_eq!((said.as_str(), log.take().as_str()), ("bottom half", "suspended ready never-started frame"));
        ctx.poll(false);
        assert_eq!(spawn(|| 3).join().unwrap(), 3);
    });
}

/// Runs a scope when dropped.
struct Scopes<'a>(&'a Log);

impl Drop for Scopes<'_> {
    fn drop(&mut self) {
        let name = String::from("unwound");
        let log = self.0;
        scope(|s| {
            let caught = Borrows(log, &name);
            drop(s.spawn(move || {
                let _caught = caught;
                yield_now();
                log.add("ran");
            }));
        });
        log.add("left");
    }
}

#[test]
fn destructor_can_run_a_scope() {
    // S4, C9: a scope in a destructor during a panic cannot wait on a coroutine's stack: its
    // coroutines are unwound in place, not run. On the thread's own stack it runs the loop
    for (own_stack, expected) in [(true, "ran unwound left ran unwound left"), (false, "unwound left ran unwound left")]
    {
        let log = Log::default();
        let inner = log.clone();
        let body = move |panics: bool| {
            let _scopes = Scopes(&inner);
            assert!(!panics, "on purpose");
        };
        AioContext::run(|_| {
            if own_stack {
                panic_of(|| body(true));
                body(false);
            } else {
                let body = Rc::new(body);
                let other = Rc::clone(&body);
                assert!(spawn(move || body(true)).join().is_err());
                spawn(move || other(false)).join().unwrap();
            }
        });
        assert_eq!(log.take(), expected);
    }
}

#[test]
fn destructor_can_spawn_in_its_scope() {
    // S4: coroutines spawned in a scope by the unwinding of one of its coroutines do not outlive
    // it, even if the panic is caught
    struct Spawns<'a, 'scope, 'env>(&'a Log, &'scope coralio_runtime::Scope<'scope, 'env>, &'scope str);
    impl Drop for Spawns<'_, '_, '_> {
        fn drop(&mut self) {
            let (log, name) = (self.0.clone(), self.2);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                drop(self.1.spawn(move || {
                    yield_now();
                    log.add(name);
                }));
            }));
            self.0.add(if outcome.is_ok() { "spawned" } else { "refused" });
        }
    }
    let log = Log::default();
    AioContext::run(|ctx| {
        let said = panic_of(|| {
            let name = String::from("outlived");
            scope(|s| {
                let (log, name) = (&log, name.as_str());
                drop(s.spawn(move || {
                    let _spawns = Spawns(log, s, name);
                    suspend();
                }));
                ctx.poll(false);
                ctx.schedule_oneshot(|| panic!("bottom half")).unwrap();
            });
        });
        assert_eq!(said, "bottom half");
        (0..5).for_each(|_| _ = ctx.poll(false));
        assert_eq!(log.take(), "spawned");
    });
    assert_eq!(log.take(), "");
}

#[test]
fn scope_cancel_reaches_all_members() {
    // S4: `cancel` reaches all coroutines that have not ended, even if those that it enters spawn
    // others and end meanwhile
    AioContext::run(|_| {
        let ended = Cell::new(0);
        let asleep = 40;
        scope(|s| {
            for _ in 0..asleep {
                drop(s.spawn(|| {
                    assert_eq!(sleep(HOUR), Err(Cancelled));
                    // Entered by `cancel`, on the thread's own stack.
                    drop(s.spawn(|| ended.set(ended.get() + 1)));
                }));
            }
            for _ in 0..asleep {
                drop(s.spawn(|| {}));
            }
            s.spawn(|| {}).join().unwrap();
            s.cancel();
        });
        assert_eq!(ended.get(), asleep);
        // One by one: the others continue to sleep.
        scope(|s| {
            let tasks = [(); 3].map(|()| s.spawn(|| sleep(HOUR)));
            s.spawn(yield_now).join().unwrap();
            tasks[1].cancel();
            assert_eq!(tasks.each_ref().map(ScopedJoinHandle::is_finished), [false, true, false]);
            s.cancel();
            assert!(tasks.into_iter().all(|task| task.join().unwrap() == Err(Cancelled)));
        });
    });
}

#[test]
fn scope_above_its_own_member_is_rejected() {
    // S4: a scope that unwinds on top of its own coroutine cannot unwind that one: the process
    // aborts with the reason
    match in_child("scope::scope_above_its_own_member_is_rejected") {
        Some(child) => assert_aborted(&child, "scope unwinding while its coroutine 'below' is entered"),
        None => AioContext::run(|ctx| {
            let task = Coroutine::builder().name("above").spawn({
                let ctx = ctx.clone();
                move || {
                    let me = Coroutine::current().unwrap();
                    scope(|s| {
                        let below = Coroutine::builder().name("below");
                        drop(s.spawn_with(below, move || me.enter()));
                        suspend();
                        // The lock makes the wait of the scope panic.
                        mem::forget(ctx.acquire());
                    });
                }
            });
            drop(task);
            ctx.poll(false);
            ctx.poll(false);
        }),
    }
}

#[test]
fn handles_can_be_results() {
    // S4: results may be handles of the same scope; they are dropped with it, in any order
    let log = &Log::default();
    AioContext::run(|_| {
        scope(|s| {
            let first = s.spawn(|| log.on_drop("first"));
            let second = s.spawn(move || (first, log.on_drop("second")));
            let third = s.spawn(move || second.join().map(|(first, second)| (first.join().unwrap(), second)));
            let (first, second): (OnDrop, OnDrop) = third.join().unwrap().unwrap();
            log.add("fetched");
            drop((second, first));
            let kept = s.spawn(|| log.on_drop("kept"));
            mem::forget(s.spawn(move || kept));
        });
        log.add("left");
    });
    assert_eq!(log.take(), "fetched second first kept left");
}

#[test]
fn panic_during_cancel_leaves_no_member_uncancelled() {
    // W3, S4: a coroutine woken by the first member's cancellation panics; the second member is
    // cancelled all the same
    AioContext::run(|ctx| {
        scope(|s| {
            let bad = Coroutine::new(|| {
                suspend();
                panic!("woken");
            });
            bad.enter();
            let first = s.spawn(move || {
                let slept = sleep(Duration::MAX);
                bad.wake();
                slept
            });
            let second = s.spawn(|| sleep(Duration::MAX));
            ctx.poll(false);
            assert_eq!(panic_of(|| s.cancel()), "woken");
            ctx.poll(false);
            assert!(first.is_finished() && second.is_finished());
        });
    });
}
