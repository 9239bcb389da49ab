//! Coroutines: entering, suspending, ending; which coroutine may enter which; results and panics.

mod common;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use common::{Log, panic_in, panic_of};
use coralio_runtime::{
    AioContext, Coroutine, EnterError, JoinHandle, MIN_STACK_SIZE, Waker, spawn, spawn_now, suspend, yield_now,
};

fn named(name: &'static str, f: impl FnOnce() + 'static) -> Coroutine {
    Coroutine::builder().name(name).create(f).unwrap()
}

#[test]
fn new_coroutine_runs_nothing() {
    // C1: a new coroutine runs nothing until it is first entered, and then runs until it yields or
    // ends
    AioContext::run(|_| {
        let steps = Rc::new(Cell::new(0));
        let co = Coroutine::new({
            let steps = Rc::clone(&steps);
            move || {
                steps.set(1);
                suspend();
                steps.set(2);
            }
        });
        assert_eq!(steps.get(), 0);
        co.enter();
        assert_eq!(steps.get(), 1);
        co.enter();
        assert_eq!(steps.get(), 2);
        assert!(co.has_ended());
    });
}

#[test]
fn spawn_now_runs_the_coroutine_before_it_returns() {
    // C2: start enters the coroutine immediately, and returns at its first yield; C8: a panic
    // before that goes to its handle all the same
    AioContext::run(|_| {
        let log = Log::default();
        let in_it = log.clone();
        let started = spawn_now(move || {
            in_it.add("begins");
            suspend();
            in_it.add("ends");
            7
        });
        log.add("|");
        started.coroutine().enter();
        assert_eq!(log.take(), "begins | ends");
        assert_eq!(started.join().unwrap(), 7);
        let panicked = spawn_now(|| panic!("at once"));
        assert!(panicked.is_finished());
        assert_eq!(panic_in(panicked), "at once");
    });
}

#[test]
fn enters_nest_and_return_in_lifo_order() {
    // C2: a coroutine may enter others; enters nest and return last in, first out
    AioContext::run(|_| {
        let log = Log::default();
        fn nested(depth: u32, log: &Log) {
            log.add(format_args!("+{depth}"));
            if depth < 5 {
                let inner = log.clone();
                let co = Coroutine::new(move || nested(depth + 1, &inner));
                co.enter();
                assert!(!co.is_entered());
                co.enter();
            }
            suspend();
            log.add(format_args!("-{depth}"));
        }
        let co = Coroutine::new({
            let log = log.clone();
            move || nested(1, &log)
        });
        co.enter();
        assert_eq!(log.take(), "+1 +2 +3 +4 +5 -5 -4 -3 -2");
        co.enter();
        assert_eq!(log.take(), "-1");
    });
}

#[test]
fn yield_returns_to_the_latest_enterer() {
    // C3: yield always returns to the latest enterer: first main, then B
    AioContext::run(|_| {
        let log = Log::default();
        let a = named("A", {
            let log = log.clone();
            move || {
                log.add("a1");
                suspend();
                log.add("a2");
                suspend();
            }
        });
        a.enter();
        log.add("main");
        let b = named("B", {
            let log = log.clone();
            move || {
                a.enter();
                log.add("b");
            }
        });
        b.enter();
        log.add("main");
        assert_eq!(log.take(), "a1 main a2 b main");
    });
}

#[test]
fn is_entered_is_true_below_other_coroutines() {
    // C4: is_entered holds from enter to yield or end, even with others on top; not before, between
    // or after
    AioContext::run(|_| {
        let inner = Rc::new(Cell::new(None::<Coroutine>));
        let outer = Coroutine::new({
            let inner = Rc::clone(&inner);
            move || {
                assert!(Coroutine::current().unwrap().is_entered());
                inner.get().unwrap().enter();
                suspend();
            }
        });
        inner.set(Some(Coroutine::new(move || {
            assert!(outer.is_entered(), "the outer coroutine stays entered");
            assert_ne!(Coroutine::current(), Some(outer));
        })));
        assert!(!outer.is_entered(), "before the first enter");
        outer.enter();
        assert!(!outer.is_entered(), "suspended");
        assert!(!outer.has_ended());
        outer.enter();
        assert!(!outer.is_entered(), "ended");
        assert_eq!(Coroutine::current(), None);
    });
}

#[test]
fn self_entry_names_the_chain() {
    // C5: entering itself is an error that names the chain, and changes nothing
    AioContext::run(|_| {
        let done = Rc::new(Cell::new(false));
        let co = named("A", {
            let done = Rc::clone(&done);
            move || {
                let me = Coroutine::current().unwrap();
                let error = me.try_enter().unwrap_err();
                assert_eq!(error.to_string(), "recursive entry of 'A': main > 'A'");
                assert_eq!(panic_of(|| me.enter()), "recursive entry of 'A': main > 'A'");
                assert!(me.is_entered());
                suspend();
                done.set(true);
            }
        });
        co.enter();
        assert!(!done.get());
        co.enter();
        assert!(done.get());
    });
}

#[test]
fn indirect_recursive_entry_names_the_chain() {
    // C5: entering a coroutine further down the stack is an error that names the whole chain; all
    // of them continue normally
    AioContext::run(|ctx| {
        let log = Log::default();
        let cell = Rc::new(RefCell::new(Vec::<Coroutine>::new()));
        let c = named("C", {
            let (log, cell) = (log.clone(), Rc::clone(&cell));
            move || {
                let b = cell.borrow()[1];
                let error = b.try_enter().unwrap_err();
                assert!(matches!(&error, EnterError::Recursive { name, chain }
                    if name == "'B'" && chain == "main > 'A' > 'B' > 'C'"));
                log.add(error);
                suspend();
                log.add("C");
            }
        });
        let b = named("B", {
            let log = log.clone();
            move || {
                c.enter();
                suspend();
                log.add("B");
            }
        });
        let a = named("A", {
            let log = log.clone();
            move || {
                b.enter();
                suspend();
                log.add("A");
            }
        });
        cell.replace(vec![a, b, c]);
        a.enter();
        assert_eq!(log.take(), "recursive entry of 'B': main > 'A' > 'B' > 'C'");
        for co in [b, c, a] {
            co.enter();
            assert!(co.has_ended());
        }
        assert_eq!(log.take(), "B C A");

        // A loop on the stack is named too.
        let ctx = ctx.clone();
        let polls = named("D", move || {
            let me = Coroutine::current().unwrap();
            let inner = log.clone();
            let e = Coroutine::new(move || inner.add(me.try_enter().unwrap_err()));
            e.schedule().unwrap();
            ctx.poll(false);
            let number = e.to_string();
            assert_eq!(number, "(ended)");
            assert!(log.take().starts_with("recursive entry of 'D': main > 'D' > loop > #"));
        });
        polls.enter();
        assert!(polls.has_ended());
    });
}

#[test]
fn entering_an_ended_or_scheduled_coroutine_is_an_error() {
    // C5: entering a coroutine that has ended, or is scheduled (with the place), is an error that
    // changes nothing
    AioContext::run(|ctx| {
        let log = Log::default();
        let co = named("late", {
            let log = log.clone();
            move || log.add("ran")
        });
        let line = line!() + 1;
        co.schedule().unwrap();
        let error = co.try_enter().unwrap_err();
        assert_eq!(error.to_string(), format!("cannot enter 'late': already scheduled, at {}:{line}:12", file!()));
        assert_eq!(log.take(), "");
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "ran");
        assert_eq!(co.try_enter(), Err(EnterError::Ended));
        assert_eq!(panic_of(|| co.enter()), "cannot enter a coroutine: it has ended");
        // A coroutine that was woken, and waits for the running one to yield.
        let woken = named("woken", || {});
        let waker = named("waker", move || {
            woken.wake();
            let error = woken.try_enter().unwrap_err();
            assert!(matches!(error, EnterError::Scheduled { .. }), "{error}");
            assert!(!woken.has_ended());
        });
        waker.enter();
        assert!(waker.has_ended() && woken.has_ended());
    });
}

#[test]
fn enter_unless_entered_ignores_an_entered_coroutine() {
    // C6: enter_unless_entered leaves an entered coroutine alone, and returns false
    AioContext::run(|_| {
        let co = Coroutine::new(|| {
            assert!(!Coroutine::current().unwrap().enter_unless_entered());
            suspend();
        });
        assert!(co.enter_unless_entered());
        assert!(!co.has_ended());
        assert!(co.enter_unless_entered());
        assert!(co.has_ended());
    });
}

/// `Ambiguous<_>` can be inferred only for types that are not Send.
trait Ambiguous<Reason> {
    fn is_not_send() {}
}
impl<T: ?Sized> Ambiguous<()> for T {}
impl<T: ?Sized + Send> Ambiguous<u8> for T {}

#[test]
fn handles_stay_on_the_home_thread_and_wakers_move() {
    // C7: only waking and scheduling work from other threads: a handle is not Send, its waker is
    <Coroutine as Ambiguous<_>>::is_not_send();
    <JoinHandle<()> as Ambiguous<_>>::is_not_send();
    fn goes_anywhere<T: Send + Sync>() {}
    goes_anywhere::<Waker>();
    goes_anywhere::<AioContext>();
    AioContext::run(|_| {
        // Values on its stack need not be Send.
        let shared = Rc::new(Cell::new(1));
        let task = spawn({
            let shared = Rc::clone(&shared);
            move || {
                let before = shared.get();
                yield_now();
                shared.set(before + 1);
                std::thread::current().id()
            }
        });
        assert_eq!(task.join().unwrap(), std::thread::current().id());
        assert_eq!(shared.get(), 2);
    });
}

#[test]
fn panic_continues_in_the_enterer() {
    // C8: a panic unwinds the coroutine's stack and propagates to the enterer, which may catch it
    AioContext::run(|ctx| {
        let log = Log::default();
        let inner = Coroutine::new({
            let log = log.clone();
            move || {
                let _drop = log.on_drop("inner");
                suspend();
                panic!("broken");
            }
        });
        inner.enter();
        let outer = named("outer", {
            let log = log.clone();
            move || {
                log.add(panic_of(|| inner.enter()));
                assert!(inner.has_ended());
                // The chain is correct again: it contains no coroutine that is gone.
                log.add(Coroutine::current().unwrap().try_enter().unwrap_err());
                suspend();
                panic!("again");
            }
        });
        outer.enter();
        assert_eq!(log.take(), "inner broken recursive entry of 'outer': main > 'outer'");
        assert_eq!(panic_of(|| outer.enter()), "again");
        assert_eq!(Coroutine::current(), None);
        assert!(!ctx.poll(false));
    });
}

#[test]
fn coroutine_woken_by_a_panicking_one_still_runs() {
    // C8: a panic leaves the queues consistent: coroutines woken by the panicking one run in the
    // next iteration
    AioContext::run(|ctx| {
        let log = Log::default();
        let woken = Coroutine::new({
            let log = log.clone();
            move || log.add("woken")
        });
        let bad = Coroutine::new(move || {
            woken.wake();
            panic!("bad");
        });
        assert_eq!(panic_of(|| bad.enter()), "bad");
        assert_eq!(log.take(), "");
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "woken");
        assert!(woken.has_ended());
    });
}

#[test]
fn panic_of_a_spawned_coroutine_is_kept_for_join() {
    // C8: a spawned coroutine's panic is kept for its join handle, and the loop continues
    AioContext::run(|ctx| {
        let bad = spawn(|| -> u32 { panic!("number {}", 7) });
        let good = spawn(|| 8);
        assert!(ctx.poll(false));
        assert!(bad.is_finished() && good.is_finished());
        assert_eq!(panic_in(bad), "number 7");
        assert_eq!(good.join().unwrap(), 8);
        // Detached: the panic is not reported, and nothing breaks.
        drop(spawn(|| panic!("unheard")));
        assert!(ctx.poll(false));
        assert!(!ctx.poll(false));
    });
}

#[test]
fn panicking_result_destructor_leaves_the_chain_consistent() {
    // C8: a detached result is dropped when its coroutine ends; a panic in that destructor leaves
    // no frame behind
    struct Bomb(Log);
    impl Drop for Bomb {
        fn drop(&mut self) {
            self.0.add("bomb");
            panic!("in a destructor");
        }
    }
    AioContext::run(|ctx| {
        let log = Log::default();
        let second = log.clone();
        let bomb = Rc::new(Cell::new(None));
        drop(spawn({
            let (log, bomb) = (log.clone(), Rc::clone(&bomb));
            move || {
                bomb.set(Coroutine::current());
                suspend();
                Bomb(log)
            }
        }));
        ctx.poll(false);
        drop(spawn(move || second.add("second")));
        // Entered directly, without an iteration of the loop in between that would restore the
        // state.
        assert_eq!(panic_of(|| bomb.get().unwrap().wake()), "in a destructor");
        assert_eq!(Coroutine::current(), None, "the frame of the dead coroutine is gone");
        let check = named("check", {
            let log = log.clone();
            move || log.add(Coroutine::current().unwrap().try_enter().unwrap_err())
        });
        check.enter();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "bomb recursive entry of 'check': main > 'check' second");
    });
}

#[test]
fn panic_is_caught_above_a_suspended_neighbour() {
    // C8: unwinding one coroutine does not disturb another that is suspended within catch_unwind
    AioContext::run(|_| {
        let log = Log::default();
        let careful = Coroutine::new({
            let log = log.clone();
            move || {
                let caught = catch_unwind(AssertUnwindSafe(|| {
                    suspend();
                    panic!("mine");
                }));
                log.add(common::text(&*caught.unwrap_err()));
                assert!(!std::thread::panicking());
            }
        });
        careful.enter();
        let other = Coroutine::new(|| panic!("other"));
        log.add(panic_of(|| other.enter()));
        careful.enter();
        assert_eq!(log.take(), "other mine");
    });
}

#[test]
fn messages_show_coroutine_names_or_numbers() {
    // C5: messages name a coroutine by its name in quotes, or by its number
    AioContext::run(|_| {
        let first = Coroutine::new(|| {});
        let second = Coroutine::new(|| log_name("#2"));
        let third = Coroutine::builder().name(format!("worker {}", 3)).create(|| log_name("'worker 3'")).unwrap();
        fn log_name(expected: &str) {
            assert_eq!(Coroutine::current().unwrap().to_string(), expected);
        }
        assert_eq!(first.to_string(), "#1");
        first.enter();
        // Its control block is reused: its name must not be.
        third.enter();
        second.enter();
        let reused = Coroutine::new(|| log_name("#4"));
        assert_eq!(format!("{reused:?}"), "Coroutine(#4)");
        reused.enter();
        assert_eq!(third.to_string(), "(ended)");
        let least = Coroutine::builder().stack_size(1).create(|| {}).unwrap();
        least.enter();
        const { assert!(MIN_STACK_SIZE >= 16 * 1024) };
    });
}

#[test]
fn many_coroutines_run_on_the_smallest_stack() {
    // C11: the runtime's own stack use, even while growing tables for many coroutines, fits on the
    // smallest stack
    AioContext::run(|_| {
        let maker = Coroutine::builder().stack_size(coralio_runtime::MIN_STACK_SIZE).spawn(|| {
            let made: Vec<_> = (0..1000).map(|n| spawn(move || n)).collect();
            made.into_iter().map(|task| task.join().unwrap()).sum::<usize>()
        });
        assert_eq!(maker.unwrap().join().unwrap(), 999 * 500);
    });
}
