//! Destructors that run the loop while their thread unwinds: the unwinding stack is further down,
//! and other coroutines run as usual.

use std::cell::Cell;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use coralio_runtime::channel::{RecvError, SendError};
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, Coroutine, JoinHandle, JoinSet, Notify, Semaphore, block_on, can_suspend, channel,
    scope, shield, sleep, spawn, spawn_now, suspend, yield_now,
};

/// Unwinds, and runs `f` in a destructor meanwhile.
fn while_unwinding(f: impl FnOnce()) {
    struct Destructor<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Destructor<F> {
        fn drop(&mut self) {
            assert!(thread::panicking());
            self.0.take().expect("dropped once")();
        }
    }
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _destructor = Destructor(Some(f));
        resume_unwind(Box::new("unwinds"));
    }));
    assert_eq!(unwound.unwrap_err().downcast_ref(), Some(&"unwinds"));
}

/// Yields twice.
fn seven() -> u32 {
    yield_now();
    yield_now();
    7
}

#[test]
fn destructor_on_the_threads_stack_runs_the_loop() {
    // C8, C9: a destructor polls, joins, waits for a scope and enters while its thread unwinds: the
    // coroutines that run there are suspended as usual
    AioContext::run(|ctx| {
        let task = spawn(seven);
        while_unwinding(|| {
            while !task.is_finished() {
                ctx.poll(true);
            }
        });
        assert_eq!(task.join().unwrap(), 7);
        let task = spawn(seven);
        while_unwinding(|| assert_eq!(task.join().unwrap(), 7));
        let mut result = 0;
        while_unwinding(|| {
            scope(|s| {
                s.spawn(|| result = seven());
            });
        });
        assert_eq!(result, 7);
        let co = Coroutine::new(suspend);
        while_unwinding(|| co.enter());
        assert!(!co.has_ended());
        co.enter();
    });
}

#[test]
fn destructor_on_a_coroutines_stack_runs_the_loop() {
    // C8, C9: the same on the stack of a coroutine that panics; that coroutine itself still cannot
    // be suspended there
    AioContext::run(|ctx| {
        let task = spawn(seven);
        let context = ctx.clone();
        let panics = spawn(move || {
            while_unwinding(|| {
                while !task.is_finished() {
                    context.poll(true);
                }
                assert!(!can_suspend());
            });
            assert!(can_suspend());
            task.join().unwrap()
        });
        assert_eq!(panics.join().unwrap(), 7);
    });
}

#[test]
fn coroutine_entered_during_unwinding_continues_later() {
    // C8, C9: a coroutine first entered while the thread unwinds continues after the unwinding
    AioContext::run(|ctx| {
        let turns = Rc::new(Cell::new(0));
        let counted = Rc::clone(&turns);
        let task = spawn(move || {
            for _ in 0..3 {
                counted.set(counted.get() + 1);
                yield_now();
            }
        });
        while_unwinding(|| _ = ctx.poll(true));
        assert_eq!(turns.get(), 1);
        task.join().unwrap();
        assert_eq!(turns.get(), 3);
    });
}

#[test]
fn io_above_an_unwinding_stack_is_waited_for_in_place() {
    // C8, C9: a coroutine that runs above an unwinding stack panics, and does I/O in a destructor:
    // the coroutine is not suspended during the unwinding, so that the thread does not continue
    // with a panic that has not ended
    struct DoesIo(AioContext, Rc<Cell<bool>>);
    impl Drop for DoesIo {
        fn drop(&mut self) {
            let suspended = self.0.at_home(|here| here.suspend_until(|| None, || Some(())));
            self.1.set(suspended == Some(None));
        }
    }
    AioContext::run(|ctx| {
        let in_place = Rc::new(Cell::new(false));
        let io = DoesIo(ctx.clone(), Rc::clone(&in_place));
        while_unwinding(|| {
            let panics = spawn_now(move || {
                let _io = io;
                resume_unwind(Box::new("panics"));
            });
            assert!(panics.is_finished());
        });
        assert!(in_place.get());
        assert!(!thread::panicking());
        spawn(yield_now).join().unwrap();
    });
}

#[test]
fn context_of_a_destructor_unwinds_a_coroutine_that_catches_the_payload() {
    // C9: a destructor runs a context while its thread unwinds: a coroutine that is left over
    // there, catches the payload and waits again is unwound again
    let caught = Rc::new(Cell::new(0));
    while_unwinding(|| {
        let counted = Rc::clone(&caught);
        AioContext::builder()
            .report_unwound(false)
            .run(|_| {
                let catches = Coroutine::new(move || {
                    for _ in 0..2 {
                        counted.set(counted.get() + u32::from(catch_unwind(suspend).is_err()));
                    }
                    suspend();
                });
                catches.enter();
            })
            .unwrap();
    });
    assert_eq!(caught.get(), 2);
}

/// Makes each kind of wait that can fail in its destructor.
struct Waits {
    other: Option<JoinHandle<()>>,
    set: JoinSet<()>,
    held: Rc<CoMutex<()>>,
    done: Rc<Cell<u32>>,
}

impl Drop for Waits {
    fn drop(&mut self) {
        assert!(thread::panicking());
        assert_eq!(sleep(Duration::from_secs(1)), Err(Cancelled));
        assert_eq!(sleep(Duration::ZERO), Ok(()));
        assert_eq!(shield(|| sleep(Duration::MAX)), Err(Cancelled));
        let (sender, receiver) = channel::bounded(1);
        assert_eq!(receiver.recv(), Err(RecvError::Cancelled));
        assert_eq!(sender.send(1), Ok(()));
        assert_eq!(sender.send(2), Err(SendError::Cancelled(2)));
        assert_eq!(receiver.recv(), Ok(1));
        assert!(matches!(self.held.lock_cancellable(), Err(Cancelled)));
        assert!(matches!(Semaphore::new(0).acquire_cancellable(), Err(Cancelled)));
        assert_eq!(Notify::new().notified(), Err(Cancelled));
        assert_eq!(block_on(pending::<()>()), Err(Cancelled));
        assert_eq!(self.set.shutdown(), Err(Cancelled));
        assert_eq!(self.set.len(), 1);
        let joined = self.other.take().map(JoinHandle::join);
        assert!(joined.is_some_and(|joined| joined.unwrap_err().is::<Cancelled>()));
        self.done.set(self.done.get() + 1);
    }
}

#[test]
fn waits_that_can_fail_do_so_in_a_destructor() {
    // C8, C9: in a destructor on an unwinding stack, after a panic and at the end of the context, a wait
    // that can fail returns its error without a switch, and has no other effect
    let done = Rc::new(Cell::new(0));
    for panics in [true, false] {
        AioContext::builder()
            .report_unwound(false)
            .run(|context| {
                let slot = Rc::new(Cell::new(None));
                let waits = Rc::clone(&slot);
                let task = spawn(move || {
                    let _waits: Option<Waits> = waits.take();
                    yield_now();
                    if panics {
                        resume_unwind(Box::new("panics"));
                    }
                    suspend();
                });
                // Younger coroutines, which are unwound later.
                let held = Rc::new(CoMutex::new(()));
                let holds = spawn({
                    let held = Rc::clone(&held);
                    move || {
                        let _held = held.lock();
                        suspend();
                    }
                });
                let mut set = JoinSet::new();
                set.spawn(suspend);
                slot.set(Some(Waits { other: Some(spawn(suspend)), set, held, done: Rc::clone(&done) }));
                (0..3).for_each(|_| _ = context.poll(false));
                assert_eq!(task.is_finished(), panics);
                drop((task, holds));
            })
            .unwrap();
    }
    assert_eq!(done.get(), 2);
}
