//! Coroutines: entering, suspending, ending; which coroutine may enter which; results and panics.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::common::{Log, panic_in, panic_of};
use coralio_runtime::{
    AioContext, Coroutine, EnterError, JoinHandle, MIN_STACK_SIZE, Waker, spawn, spawn_now, suspend, yield_now,
};

fn named(name: &'static str, f: impl FnOnce() + 'static) -> Coroutine {
    Coroutine::builder().name(name).create(f).unwrap()
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
                    if name == "'B'" && chain == "thread > 'A' > 'B' > 'C'"));
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
        assert_eq!(log.take(), "recursive entry of 'B': thread > 'A' > 'B' > 'C'");
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
            assert!(log.take().starts_with("recursive entry of 'D': thread > 'D' > loop > #"));
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
        assert_eq!(log.take(), "bomb recursive entry of 'check': thread > 'check' second");
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
