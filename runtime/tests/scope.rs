//! Scopes: coroutines that borrow from the frame that waits for them. However a scope is left, its
//! borrowers are gone first: coroutines, their captures, and unfetched results.

mod common;

use std::cell::Cell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use common::{Log, OnDrop, assert_aborted, in_child, panic_of, scaled, text};
use coralio_runtime::{
    AioContext, Cancelled, Coroutine, ScopedJoinHandle, check_cancelled, scope, shield, sleep, spawn, suspend,
    yield_now,
};

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
fn scope_waits_for_coroutines_without_handles() {
    // S4: a scope ends after the last of its coroutines, whatever happened to their handles
    for own_stack in [true, false] {
        let log = Log::default();
        let inner = log.clone();
        let body = move || {
            let log = &inner;
            let last = scope(|s| {
                drop(s.spawn(|| {
                    (0..3).for_each(|_| yield_now());
                    log.add("dropped");
                }));
                mem::forget(s.spawn(|| {
                    (0..5).for_each(|_| yield_now());
                    log.add("forgotten");
                }));
                log.add("f");
                7
            });
            log.add(last);
        };
        AioContext::run(|_| if own_stack { body() } else { spawn(body).join().unwrap() });
        assert_eq!(log.take(), "f dropped forgotten 7");
    }
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
fn scope_propagates_panics_of_coroutines() {
    // S4, C8: a joined coroutine's panic goes to its handle; any other propagates from the scope,
    // after the other coroutines have ended
    let log = Log::default();
    AioContext::run(|_| {
        let value = scope(|s| {
            let task = s.spawn(|| -> u8 { panic!("told") });
            text(&*task.join().unwrap_err())
        });
        assert_eq!(value, "told");
        for forget in [false, true] {
            let said = panic_of(|| {
                scope(|s| {
                    let task = s.spawn(|| panic!("untold"));
                    if forget {
                        mem::forget(task)
                    } else {
                        drop(task)
                    }
                    drop(s.spawn(|| {
                        (0..3).for_each(|_| yield_now());
                        log.add("other");
                    }));
                });
            });
            assert_eq!((said.as_str(), log.take().as_str()), ("untold", "other"));
        }
        // Dropped after its panic.
        let said = panic_of(|| {
            scope(|s| {
                let task = s.spawn(|| panic!("late"));
                s.spawn(|| {}).join().unwrap();
                assert!(task.is_finished());
                drop(task);
                log.add("on");
            });
        });
        assert_eq!((said.as_str(), log.take().as_str()), ("late", "on"));
        // The first of two panics.
        let said = panic_of(|| {
            scope(|s| {
                for name in ["one", "two"] {
                    drop(s.spawn(move || panic!("{name}")));
                }
            });
        });
        assert_eq!(said, "one");
    });
}

#[test]
fn panic_of_the_closure_cancels_and_waits() {
    // S4: if the closure panics, the coroutines are cancelled and waited for, and its panic
    // propagates
    for own_stack in [true, false] {
        let log = Log::default();
        let inner = log.clone();
        let body = move || {
            let log = &inner;
            panic_of(|| {
                scope(|s| {
                    drop(s.spawn(|| {
                        assert_eq!(sleep(HOUR), Err(Cancelled));
                        shield(|| (0..3).for_each(|_| yield_now()));
                        log.add("cleaned-up");
                    }));
                    drop(s.spawn(|| {
                        yield_now();
                        panic!("theirs");
                    }));
                    s.spawn(|| {}).join().unwrap();
                    panic!("mine");
                });
            })
        };
        let said = AioContext::run(|_| if own_stack { body() } else { spawn(body).join().unwrap() });
        assert_eq!((said.as_str(), log.take().as_str()), ("mine", "cleaned-up"));
    }
}

#[test]
fn scopes_nest() {
    // S4: scopes nest, in the closure and in the coroutines; coroutines of the inner scope may
    // spawn in the outer one
    let log = Log::default();
    AioContext::run(|_| {
        let words = ["a".to_string(), "b".to_string()];
        let count = Cell::new(0);
        scope(|outer| {
            for word in &words {
                let (log, count) = (&log, &count);
                drop(outer.spawn(move || {
                    let longer = format!("{word}{word}");
                    scope(|inner| {
                        for _ in 0..3 {
                            drop(inner.spawn(|| {
                                yield_now();
                                log.add(&longer);
                                drop(outer.spawn(move || {
                                    yield_now();
                                    count.set(count.get() + 1);
                                }));
                            }));
                        }
                    });
                    log.add(word);
                }));
            }
            scope(|own| drop(own.spawn(|| log.add("own"))));
        });
        assert_eq!(count.get(), 6);
    });
    assert_eq!(log.take(), "own aa aa aa a bb bb bb b");
}

#[test]
fn context_end_unwinds_waiting_scopes() {
    // S4, C9: the context ends while nested scopes wait: the inner coroutines are unwound before
    // the frame that they borrow from, whatever they wait for, including ready ones and ones that
    // never started
    let log = Log::default();
    AioContext::run(|ctx| {
        let inner = log.clone();
        drop(spawn(move || {
            let log = &inner;
            let frame = log.on_drop("frame");
            scope(|s| {
                let frame = &frame;
                drop(s.spawn(move || {
                    let deeper = log.on_drop("deeper-frame");
                    scope(|s| {
                        let deeper = (&deeper, frame);
                        drop(s.spawn(move || {
                            let _last = (log.on_drop("deepest"), deeper);
                            suspend();
                        }));
                    });
                }));
                let waits = |name: &'static str, wait: fn()| {
                    drop(s.spawn(move || {
                        let _noted = (log.on_drop(name), frame);
                        wait();
                        log.add("went-on");
                    }));
                };
                waits("suspended", suspend);
                waits("asleep", || _ = sleep(HOUR));
                waits("rescheduled", || (0..9).for_each(|_| yield_now()));
                waits("joins", || drop(spawn(suspend).join()));
                mem::forget(s.spawn(move || (log.on_drop("result"), frame)));
                s.spawn(yield_now).join().unwrap();
                let caught = (log.on_drop("never-started"), frame);
                drop(s.spawn(move || drop(caught)));
            });
        }));
        (0..3).for_each(|_| _ = ctx.poll(false));
        assert_eq!(log.take(), "");
    });
    let expected = "deepest deeper-frame suspended asleep rescheduled joins result never-started frame";
    assert_eq!(log.take(), expected);
}

#[test]
fn unstarted_coroutines_are_dropped_with_their_scope() {
    // S4, C9: a ready coroutine that borrows is unwound, when the context ends, before the frame
    // that it borrows from
    let log = Log::default();
    AioContext::run(|ctx| {
        let inner = log.clone();
        drop(spawn(move || {
            let frame = inner.on_drop("frame");
            scope(|s| {
                for name in ["first", "second"] {
                    let caught = (inner.on_drop(name), &frame);
                    drop(s.spawn(move || drop(caught)));
                }
            });
        }));
        ctx.poll(false);
    });
    assert_eq!(log.take(), "first second frame");
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
fn cancel_reaches_the_scopes_coroutines() {
    // S4: cancelling a coroutine that waits for a scope cancels the scope's coroutines too; the
    // scope still waits for them
    AioContext::run(|ctx| {
        let log = Log::default();
        let inner = log.clone();
        let task = spawn(move || {
            let log = &inner;
            scope(|s| {
                for name in ["a", "b"] {
                    drop(s.spawn(move || {
                        scope(|s| drop(s.spawn(|| log.add(format_args!("{name}-{:?}", sleep(HOUR))))));
                        assert_eq!(check_cancelled(), Err(Cancelled));
                        shield(|| (0..3).for_each(|_| yield_now()));
                        log.add(name);
                    }));
                }
            });
            log.add("left");
        });
        ctx.poll(false);
        ctx.poll(false);
        task.cancel();
        task.join().unwrap();
        assert_eq!(log.take(), "a-Err(Cancelled) b-Err(Cancelled) a b left");
    });
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
fn scope_runs_a_hundred_thousand_coroutines() {
    // S4, C12: a scope of 100,000 coroutines suspended at the same time; and one with as many in
    // sequence
    AioContext::run(|ctx| {
        let count = scaled(100_000);
        let ran = Cell::new(0);
        scope(|s| {
            for _ in 0..count {
                drop(s.spawn(|| {
                    yield_now();
                    ran.set(ran.get() + 1);
                }));
            }
        });
        assert_eq!(ran.get(), count);
        scope(|s| {
            for n in 0..count {
                assert_eq!(s.spawn(move || n).join().unwrap(), n);
            }
        });
        // None of them has started when the scope unwinds: each is removed from the ready list.
        let caught = Rc::new(());
        panic_of(|| {
            let frame = Rc::clone(&caught);
            scope(|s| {
                for _ in 0..count {
                    let (frame, caught) = (&frame, Rc::clone(&caught));
                    drop(s.spawn(move || drop((frame, caught))));
                }
                ctx.schedule_oneshot(|| panic!("bottom half")).unwrap();
            });
        });
        assert_eq!(Rc::strong_count(&caught), 1);
        assert!(!ctx.poll(false), "none is left on a list");
    });
}

#[test]
fn scope_above_its_own_member_is_rejected() {
    // S4: a scope that unwinds on top of its own coroutine cannot unwind that one: the process
    // aborts with the reason
    match in_child("scope_above_its_own_member_is_rejected") {
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
