//! Futures in coroutines, and coroutines as futures.

mod common;

use std::cell::Cell;
use std::future::{Future, pending, poll_fn, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use common::{Log, text};
use coralio_runtime::{AioContext, Cancelled, LoopThread, TimedOut, await_future, spawn, timeout, yield_now};
use parking_lot::Mutex;

#[test]
fn ready_at_once_or_after_a_while() {
    // S5: a future is polled when the wait begins and after each wake, wherever its waker was called; no wake is lost
    AioContext::run(|_| {
        assert_eq!(await_future(ready(7)), Ok(7));
        let task = spawn(|| {
            let polls = Cell::new(0);
            let mut thread = None;
            let value = await_future(poll_fn(|context| {
                polls.set(polls.get() + 1);
                match polls.get() {
                    // Within the poll; by another thread; and after it has ended.
                    1 => context.waker().wake_by_ref(),
                    2 => {
                        let waker = context.waker().clone();
                        thread = Some(thread::spawn(move || waker.wake()));
                    }
                    _ => {
                        let late = context.waker().clone();
                        drop(spawn(move || late.wake()));
                        return Poll::Ready("done");
                    }
                }
                Poll::Pending
            }));
            thread.unwrap().join().unwrap();
            (0..3).for_each(|_| yield_now());
            (value, polls.get())
        });
        assert_eq!(task.join().unwrap(), (Ok("done"), 3));
    });
}

/// All of them, in order.
struct JoinAll<F: Future>(Vec<One<F>>);

/// One of them, and its output when it has come.
type One<F> = (Pin<Box<F>>, Option<<F as Future>::Output>);

impl<F: Future> Future for JoinAll<F>
where
    F::Output: Unpin,
{
    type Output = Vec<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<F::Output>> {
        let mut left = 0;
        for (future, output) in &mut self.0 {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *output = Some(value),
                    Poll::Pending => left += 1,
                }
            }
        }
        if left > 0 {
            Poll::Pending
        } else {
            Poll::Ready(self.0.drain(..).map(|(_, output)| output.unwrap()).collect())
        }
    }
}

fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> JoinAll<F> {
    JoinAll(futures.into_iter().map(|future| (Box::pin(future), None)).collect())
}

#[test]
fn handles_are_futures() {
    // S5: a join handle is a future, and so is one of another context; they give results and panics, joined in any number
    AioContext::run(|_| {
        let tasks = (0..10).map(|n| {
            spawn(move || {
                (0..10 - n).for_each(|_| yield_now());
                assert_ne!(n, 5, "five");
                n
            })
        });
        let together = join_all(tasks.collect::<Vec<_>>());
        let outcomes = spawn(|| await_future(together).unwrap()).join().unwrap();
        for (n, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(value) => assert_eq!(value, n),
                Err(payload) => assert!(n == 5 && text(&*payload).contains("five")),
            }
        }
    });
    let workers = ["a", "b"].map(|name| LoopThread::start(name).unwrap());
    let tasks = (0..10).map(|n| workers[n % 2].context().spawn(move || n));
    // On a thread that runs no context.
    let values = await_future(join_all(tasks.collect::<Vec<_>>())).unwrap();
    assert_eq!(values.into_iter().map(Result::unwrap).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    workers.into_iter().for_each(|worker| worker.stop().unwrap());
}

#[test]
fn a_wait_that_is_cut_short_drops_its_future() {
    // S4, S5: cancelled or out of time, the wait is an error, and the future is dropped by then
    AioContext::run(|ctx| {
        let log = Log::default();
        let seen = log.clone();
        let task = spawn(move || {
            let gone = seen.on_drop("dropped");
            let never = async move {
                let _gone = gone;
                pending::<()>().await;
            };
            assert_eq!(await_future(never), Err(Cancelled));
            seen.add("returned");
        });
        ctx.poll(false);
        task.cancel();
        task.join().unwrap();
        assert_eq!(log.take(), "dropped returned");
        let late = spawn(|| timeout(Duration::from_millis(1), || await_future(pending::<()>())));
        assert_eq!(late.join().unwrap(), Err(TimedOut));
    });
}

#[test]
fn async_code_of_others_runs_in_a_coroutine() {
    // S5: async functions with references, boxed futures, and a shared state between two of them, without another runtime
    async fn double(n: &Cell<u32>) -> u32 {
        let mut yielded = false;
        poll_fn(|context| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        n.set(n.get() * 2);
        n.get()
    }
    AioContext::run(|_| {
        let n = Rc::new(Cell::new(1));
        let tasks = [(); 5].map(|()| {
            let n = Rc::clone(&n);
            spawn(move || await_future(Box::pin(async move { double(&n).await })).unwrap())
        });
        assert_eq!(tasks.map(|task| task.join().unwrap()), [2, 4, 8, 16, 32]);
    });
}

#[test]
fn many_wakes_from_another_thread() {
    // S5, W3: a future that another thread makes ready a thousand times over: each time the coroutine goes on
    AioContext::run(|_| {
        let (step, waker) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<std::task::Waker>)));
        let stop = Arc::new(AtomicBool::new(false));
        let other = thread::spawn({
            let (step, waker, stop) = (Arc::clone(&step), Arc::clone(&waker), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(waker) = waker.lock().take() {
                        step.fetch_add(1, Ordering::Release);
                        waker.wake();
                    }
                    thread::yield_now();
                }
            }
        });
        let task = spawn(move || {
            for wanted in 1..=common::scaled(1000) {
                await_future(poll_fn(|context| {
                    if step.load(Ordering::Acquire) >= wanted {
                        return Poll::Ready(());
                    }
                    *waker.lock() = Some(context.waker().clone());
                    Poll::Pending
                }))
                .unwrap();
            }
        });
        task.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        other.join().unwrap();
    });
}
