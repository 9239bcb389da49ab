//! Futures and coroutines, in both directions: `block_on` in coroutines, on a loop's stack and
//! on plain threads; handles as futures, also in foreign executors.

use std::cell::Cell;
use std::fs;
use std::future::{Future, pending, poll_fn, ready};
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use crate::common::{Log, in_child, panic_of, scaled, text};
use coralio_runtime::{
    AioContext, Cancelled, Coroutine, IoThread, JoinHandle, RemoteJoinHandle, TimedOut, block_on, can_suspend, sleep,
    spawn, suspend, timeout, yield_now,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Ready after `polls` polls; until then it calls its waker immediately.
async fn after(polls: usize) -> usize {
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    polls
}

/// Waits for all futures, without a library.
fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> impl Future<Output = Vec<F::Output>> {
    let mut left: Vec<_> = futures.into_iter().map(|future| (Some(Box::pin(future)), None)).collect();
    poll_fn(move |context| {
        for (future, output) in &mut left {
            if let Some(Poll::Ready(ready)) = future.as_mut().map(|future| future.as_mut().poll(context)) {
                (*future, *output) = (None, Some(ready));
            }
        }
        if left.iter().any(|(_, output)| output.is_none()) {
            return Poll::Pending;
        }
        Poll::Ready(mem::take(&mut left).into_iter().filter_map(|(_, output)| output).collect())
    })
}

/// Runs `f` in each place where a future can be awaited.
fn everywhere(f: impl Fn() + Send + Sync + 'static) {
    let f = Arc::new(f);
    let [own_stack, coroutine] = [Arc::clone(&f), Arc::clone(&f)];
    AioContext::run(|_| {
        own_stack();
        spawn(move || coroutine()).join().unwrap();
    });
    f();
}

#[test]
fn ready_and_pending_futures_complete() {
    // S5: a future is awaited in a coroutine, on the stack of a loop's thread, and on a plain
    // thread
    everywhere(|| {
        assert_eq!(block_on(ready(42)), Ok(42));
        assert_eq!(block_on(after(100)), Ok(100));
        assert_eq!(block_on(join_all((0..10).map(after))), Ok((0..10).collect()));
        // A future may borrow, and need not be Send.
        let text = Rc::new(String::from("borrowed"));
        assert_eq!(block_on(async { text.len() }), Ok(8));
    });
}

#[test]
fn self_waking_future_yields_to_others() {
    // S5: a pending future that has called its waker lets others run before it is polled again
    let log = Log::default();
    AioContext::run(|_| {
        let tasks = ["a", "b"].map(|name| {
            let log = log.clone();
            spawn(move || {
                let mut polls = 0;
                block_on(poll_fn(|context| {
                    polls += 1;
                    log.add(format_args!("{name}{polls}"));
                    context.waker().wake_by_ref();
                    if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
                }))
            })
        });
        tasks.into_iter().for_each(|task| assert_eq!(task.join().unwrap(), Ok(())));
    });
    assert_eq!(log.take(), "a1 b1 a2 b2 a3 b3");
}

#[test]
fn future_that_waits_within_its_poll_misses_no_wake() {
    // S5, W3: a future's poll may itself wait, by a coroutine wait or otherwise; calling its waker
    // meanwhile makes it be polled again
    everywhere(|| {
        let waits: [fn(); 3] = [
            || {
                if AioContext::current().is_some() {
                    sleep(Duration::from_millis(1)).unwrap();
                }
            },
            || assert_eq!(block_on(after(3)), Ok(3)),
            || thread::park_timeout(Duration::ZERO),
        ];
        for wait in waits {
            let mut first = true;
            let future = poll_fn(|context| {
                if !mem::take(&mut first) {
                    return Poll::Ready(());
                }
                context.waker().wake_by_ref();
                wait();
                Poll::Pending
            });
            assert_eq!(block_on(future), Ok(()));
        }
    });
}

#[test]
fn wakers_work_from_other_threads() {
    // S5, W3: another thread may call the waker at any moment, often, and after the wait has ended
    everywhere(|| {
        let count = scaled(2000);
        for _ in 0..count / 20 {
            let passed = Arc::new(AtomicUsize::new(0));
            let (started, start) = std::sync::mpsc::channel::<Waker>();
            let caller = thread::spawn({
                let passed = Arc::clone(&passed);
                move || {
                    let waker = start.recv().unwrap();
                    for _ in 0..20 {
                        passed.fetch_add(1, Ordering::Relaxed);
                        waker.wake_by_ref();
                    }
                    waker
                }
            });
            let future = poll_fn(|context| {
                // Sent once; the second send is refused.
                let _ = started.send(context.waker().clone());
                if passed.load(Ordering::Relaxed) == 20 { Poll::Ready(()) } else { Poll::Pending }
            });
            assert_eq!(block_on(future), Ok(()));
            let late = caller.join().unwrap();
            late.wake_by_ref();
            late.wake();
        }
        // A late wake does not disturb other waits.
        assert_eq!(block_on(after(2)), Ok(2));
    });
}

#[test]
fn wakers_of_ended_coroutines_do_nothing() {
    // W4: a waker may outlive its coroutine, its context and its thread; calling it then does
    // nothing
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let wait = move || {
        let keep = &keep;
        block_on(poll_fn(|context| {
            keep.lock().unwrap().push(context.waker().clone());
            Poll::Ready(())
        }))
    };
    thread::spawn(move || {
        AioContext::run(|ctx| {
            wait().unwrap();
            let wait = Rc::new(wait);
            let other = Rc::clone(&wait);
            spawn(move || other()).join().unwrap().unwrap();
            let waker = kept.lock().unwrap().last().unwrap().clone();
            // Its stack is used by another coroutine by now.
            let next = Coroutine::new(suspend);
            next.enter();
            waker.wake();
            ctx.poll(false);
            assert!(!next.has_ended());
        });
        kept
    })
    .join()
    .unwrap()
    .lock()
    .unwrap()
    .drain(..)
    .for_each(Waker::wake);
}

#[test]
fn cancelling_drops_the_future() {
    // S5: cancelling or a timeout ends the wait for a future, and drops the future; so does the end
    // of the context
    let log = Log::default();
    AioContext::run(|ctx| {
        let never = |name: &'static str| {
            let noted = log.on_drop(name);
            async move {
                let _noted = noted;
                pending::<()>().await;
            }
        };
        let (first, second, third) = (never("cancelled"), never("timed-out"), never("unwound"));
        let task = spawn(move || block_on(first));
        ctx.poll(false);
        assert_eq!(log.take(), "");
        task.cancel();
        assert_eq!(log.take(), "cancelled");
        assert_eq!(task.join().unwrap(), Err(Cancelled));

        let task = spawn(move || timeout(Duration::from_millis(1), || block_on(second)));
        assert_eq!(task.join().unwrap(), Err(TimedOut));
        assert_eq!(log.take(), "timed-out");

        drop(spawn(move || block_on(third)));
        ctx.poll(false);
        // A coroutine that was cancelled before still gets a ready future's value.
        let task = spawn(|| block_on(ready(5)));
        task.cancel();
        assert_eq!(task.join().unwrap(), Ok(5));
    });
    assert_eq!(log.take(), "unwound");
}

#[test]
fn join_handles_are_futures() {
    // S5: a join handle is a future: it returns results and panics, before and after the
    // coroutine's end, in any place
    let wait = || {
        assert_eq!(block_on(spawn(|| 1)).unwrap().unwrap(), 1);
        let panicked = block_on(spawn(|| -> u8 { panic!("told") })).unwrap();
        assert_eq!(text(&*panicked.unwrap_err()), "told");
        let ended = spawn(|| 2);
        while !ended.is_finished() {
            match Coroutine::current() {
                Some(_) => yield_now(),
                None => _ = AioContext::current().unwrap().poll(false),
            }
        }
        assert_eq!(block_on(ended).unwrap().unwrap(), 2);
        let handles = (0..50).map(|n| {
            spawn(move || {
                (0..n % 7).for_each(|_| yield_now());
                n
            })
        });
        let results = block_on(join_all(handles)).unwrap();
        assert!(results.into_iter().map(Result::unwrap).eq(0..50));
        // Polled, and then joined in the usual way.
        let mut handle = spawn(yield_now);
        let polled = block_on(poll_fn(|context| Poll::Ready(Pin::new(&mut handle).poll(context).is_pending())));
        assert_eq!(polled, Ok(true));
        handle.join().unwrap();
    };
    AioContext::run(|_| {
        wait();
        spawn(wait).join().unwrap();
    });
}

#[test]
fn remote_handles_are_futures() {
    // S5, X10: so is the handle of a coroutine on another thread: from a coroutine, a loop's stack,
    // and a plain thread
    let worker = IoThread::start("worker").unwrap();
    let context = worker.context().clone();
    everywhere(move || {
        assert_eq!(block_on(context.spawn(|| 1)).unwrap().unwrap(), 1);
        let panicked = block_on(context.spawn(|| -> u8 { panic!("told") })).unwrap();
        assert_eq!(text(&*panicked.unwrap_err()), "told");
        let handles: Vec<_> = (0..50)
            .map(|n| {
                context.spawn(move || {
                    (0..n % 7).for_each(|_| yield_now());
                    n
                })
            })
            .collect();
        let results = block_on(join_all(handles)).unwrap();
        assert!(results.into_iter().map(Result::unwrap).eq(0..50));
        let mut handle = context.spawn(|| ());
        block_on(&mut handle).unwrap().unwrap();
        let said = panic_of(|| block_on(&mut handle));
        assert_eq!(said, "join handle polled after it returned its result");
    });
    worker.stop().unwrap();
}

/// A waker of a foreign executor.
struct Called(Log, fn(&Log));

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.add("woken");
        (self.1)(&self.0);
    }
}

fn poll_with<T: Unpin>(handle: &mut JoinHandle<T>, waker: &Waker) -> Poll<thread::Result<T>> {
    Pin::new(handle).poll(&mut Context::from_waker(waker))
}

#[test]
fn foreign_waker_is_called_outside_a_coroutine() {
    // S5, C3: a foreign executor's waker, called at a coroutine's end, runs outside the coroutine,
    // whose stack is finished: it cannot suspend
    let log = Log::default();
    let waker = Waker::from(Arc::new(Called(log.clone(), |log| {
        log.add(format_args!("{:?}-{}", Coroutine::current(), can_suspend()));
        log.add(panic_of(yield_now));
    })));
    AioContext::run(|ctx| {
        let mut handle = spawn(|| 3);
        assert!(poll_with(&mut handle, &waker).is_pending());
        ctx.poll(false);
        assert!(log.take().starts_with("woken None-false yield outside a coroutine"));
        assert!(matches!(poll_with(&mut handle, &waker), Poll::Ready(Ok(3))));
        // It has been fetched: a further poll returns an error instead of waiting forever.
        assert!(matches!(poll_with(&mut handle, &waker), Poll::Ready(Err(_))));
    });
}

#[test]
fn last_waker_is_the_one_called() {
    // S5: a handle polled with several wakers calls the last one
    let log = Log::default();
    let called: [fn(&Log); 2] = [|log| log.add("first"), |log| log.add("second")];
    let called = called.map(|called| Arc::new(Called(log.clone(), called)));
    let wakers = called.clone().map(Waker::from);
    AioContext::run(|ctx| {
        let mut handle = spawn(|| ());
        wakers.iter().for_each(|waker| assert!(poll_with(&mut handle, waker).is_pending()));
        ctx.poll(false);
        assert_eq!(log.take(), "woken second");
        let mut detached = spawn(|| ());
        assert!(poll_with(&mut detached, &wakers[0]).is_pending());
        drop(detached);
        ctx.poll(false);
        assert_eq!(log.take(), "", "the coroutine has no waiter");
    });
    drop(wakers);
    assert_eq!(called.map(|called| Arc::strong_count(&called)), [1, 1], "none is kept");
}

#[test]
fn leftover_waker_keeps_no_context_alive() {
    // W5: contexts that end while a handle is awaited as a future leave no descriptor behind
    let Some(child) = in_child("future::leftover_waker_keeps_no_context_alive") else {
        let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        for _ in 0..50 {
            AioContext::run(|ctx| {
                for _ in 0..10 {
                    drop(spawn(|| block_on(spawn(suspend))));
                }
                ctx.poll(false);
                ctx.poll(false);
            });
        }
        assert_eq!(descriptors(), before);
        return;
    };
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn destructor_awaits_a_future_at_context_end() {
    // C9, S5: a destructor run by the end of the context awaits a coroutine that never runs: it
    // gets an error
    struct Awaits(Log, Option<JoinHandle<()>>);
    impl Drop for Awaits {
        fn drop(&mut self) {
            let outcome = block_on(self.1.take().unwrap()).unwrap();
            self.0.add(outcome.unwrap_err().is::<Cancelled>());
        }
    }
    let log = Log::default();
    AioContext::run(|ctx| {
        let slot = Rc::new(Cell::new(None));
        let task = spawn({
            let (log, slot) = (log.clone(), Rc::clone(&slot));
            move || Awaits(log, slot.take())
        });
        slot.set(Some(spawn(suspend)));
        ctx.poll(false);
        mem::forget(task);
    });
    assert_eq!(log.take(), "true");
}

#[test]
fn join_of_unstarted_coroutine_reports_cancellation() {
    // W5: a handle of work that the context never started becomes ready when the context has ended,
    // for every waiter
    let log = Log::default();
    let handles: Vec<RemoteJoinHandle<()>> = AioContext::run(|ctx| {
        let noted = log.on_drop("dropped");
        vec![ctx.spawn(move || drop(noted)), ctx.clone().spawn(|| ())]
    });
    assert_eq!(log.take(), "dropped");
    for outcome in block_on(join_all(handles)).unwrap() {
        assert!(outcome.unwrap_err().is::<Cancelled>());
    }
}

#[test]
fn replaced_waker_is_dropped_outside_the_lock() {
    // S5: a handle is polled with another waker than before; the destructor of the one before runs
    // the loop, and there the coroutine ends that the handle waits for
    struct RunsLoop;
    impl Wake for RunsLoop {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for RunsLoop {
        fn drop(&mut self) {
            AioContext::current().expect("it is dropped at home").poll(false);
        }
    }
    AioContext::run(|ctx| {
        let mut handle = ctx.spawn(|| 7);
        let mut poll_with = |waker: &Waker| Pin::new(&mut handle).poll(&mut Context::from_waker(waker));
        assert!(poll_with(&Waker::from(Arc::new(RunsLoop))).is_pending());
        assert!(poll_with(Waker::noop()).is_pending());
        assert!(matches!(poll_with(Waker::noop()), Poll::Ready(Ok(7))));
    });
}

#[test]
fn future_can_run_the_loop() {
    // S5, X2: a future may block on the loop itself, as code that wraps blocking calls does: polls
    // nest
    AioContext::run(|ctx| {
        let ctx = ctx.clone();
        let nested = async {
            let mut inner = 0;
            let task = spawn(|| {
                yield_now();
                7
            });
            while !task.is_finished() {
                ctx.poll(true);
                inner += 1;
            }
            assert!(inner > 1);
            after(2).await + task.join().unwrap()
        };
        assert_eq!(block_on(nested), Ok(9));
        let task = spawn(|| timeout(HOUR, || block_on(async { block_on(after(1)).unwrap() })));
        assert_eq!(task.join().unwrap(), Ok(Ok(1)));
    });
}

#[test]
fn tokio_is_entered_once_around_the_context() {
    // S5: futures that need tokio find it in each coroutine if it was entered around the context;
    // coroutines that hold their own enter guards over a suspension do not drop them in order, and
    // tokio panics
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let call = |n: u32| block_on(tokio::task::spawn_blocking(move || n)).unwrap().unwrap();
    {
        let _entered = tokio.enter();
        AioContext::run(|_| {
            let tasks = [1, 2, 3].map(|n| spawn(move || call(n)));
            assert_eq!(tasks.map(|task| task.join().unwrap()), [1, 2, 3]);
        });
    }
    let handle = tokio.handle().clone();
    AioContext::run(|_| {
        let tasks = [(); 2].map(|()| {
            let handle = handle.clone();
            Coroutine::new(move || {
                let _entered = handle.enter();
                suspend();
            })
        });
        tasks.iter().for_each(|task| task.enter());
        assert!(panic_of(|| tasks[0].enter()).contains("dropped out of order"));
        tasks[1].enter();
    });
}
