//! I/O threads, and cooperation between threads: spawn from anywhere, stop at any moment,
//! poll_while, one CoMutex for all.

use std::cell::{Cell, RefCell};
use std::fs;
use std::hint::black_box;
use std::mem;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::common::{Log, assert_aborted, in_child, panic_of, scaled, text};
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, CoQueue, Coroutine, EnterError, IoThread, block_on, sleep, spawn, suspend,
    yield_now,
};

fn start(name: &str) -> IoThread {
    IoThread::start(name).unwrap()
}

fn thread_name() -> String {
    thread::current().name().unwrap_or("none").to_string()
}

#[test]
fn coroutines_are_spawned_from_any_thread() {
    // X10: work can be spawned in an I/O thread from a plain thread, from another loop, and from
    // within; results and panics are returned
    let (left, right) = (start("left"), start("right"));
    let ctx = left.context().clone();
    let there = move || ctx.spawn(thread_name).join().unwrap();
    assert_eq!(there(), "left", "from a plain thread");
    let from = there.clone();
    assert_eq!(right.context().spawn(move || (thread_name(), from())).join().unwrap(), ("right".into(), "left".into()));
    let within = there.clone();
    assert_eq!(left.context().spawn(within).join().unwrap(), "left", "from a coroutine of the same loop");
    // On the stack of a context's home thread, where the loop runs meanwhile.
    AioContext::run(|_| {
        let go = Arc::new(AtomicBool::new(false));
        let waits = Arc::clone(&go);
        let far = left.context().spawn(move || {
            while !waits.load(Ordering::Relaxed) {
                yield_now();
            }
        });
        drop(spawn(move || go.store(true, Ordering::Relaxed)));
        far.join().unwrap();
    });

    let payload = left.context().spawn(|| -> u8 { panic!("told") }).join().unwrap_err();
    assert_eq!(text(&*payload), "told");
    assert_eq!(left.context().spawn(|| 1).join().unwrap(), 1, "the loop keeps running");
    // A large result, and one that is dropped by its last owner.
    assert_eq!(left.context().spawn(|| vec![7; 100_000]).join().unwrap().len(), 100_000);
    let shared = Arc::new(());
    let result = Arc::clone(&shared);
    drop(left.context().spawn(move || result));
    left.context().spawn(yield_now).join().unwrap();
    left.stop().unwrap();
    assert_eq!(Arc::strong_count(&shared), 1);
    right.stop().unwrap();
}

#[test]
fn coroutines_left_at_stop_are_unwound() {
    // X10, W5: when an I/O thread stops, waiting coroutines are unwound, unstarted ones are
    // dropped, in order of creation, and all handles report it
    let log = Log::default();
    let worker = start("worker");
    let ctx = worker.context().clone();
    let waits = |name: &'static str, wait: fn()| {
        let log = log.clone();
        ctx.spawn(move || {
            let _noted = log.on_drop(name);
            wait();
            log.add("went-on");
        })
    };
    let suspended = waits("suspended", suspend);
    let asleep = waits("asleep", || _ = sleep(Duration::from_secs(3600)));
    let finished = ctx.spawn(|| 5);
    // The loop is stopped in this iteration, and work that arrives later does not start.
    let (never, caught) = (log.clone(), log.on_drop("never-started"));
    let slot = Arc::new(Mutex::new(Some(worker)));
    let (stopper, inner) = (Arc::clone(&slot), ctx.clone());
    let last = ctx.spawn(move || {
        drop(stopper.lock().unwrap().take());
        inner.spawn(move || {
            let _caught = caught;
            never.add("ran");
        })
    });
    let never_started = last.join().unwrap();
    assert!(never_started.join().unwrap_err().is::<Cancelled>());
    for handle in [suspended, asleep] {
        assert!(handle.join().unwrap_err().is::<Cancelled>());
    }
    assert_eq!(finished.join().unwrap(), 5);
    assert_eq!(log.take(), "never-started suspended asleep");
    // Later still: the loop has ended.
    let refused = ctx.spawn(|| ());
    assert!(refused.is_finished() && refused.join().unwrap_err().is::<Cancelled>());
}

#[test]
fn stop_under_load_loses_no_result() {
    // X10, C9: an I/O thread is stopped while its coroutines spawn, sleep, lock and wait for
    // others: each is ended, once
    fn work(live: Arc<()>, lock: Rc<CoMutex<usize>>, turns: Arc<AtomicUsize>) {
        loop {
            let child = spawn({
                let (live, lock, turns) = (Arc::clone(&live), Rc::clone(&lock), Arc::clone(&turns));
                move || {
                    let _live = live;
                    let mut guard = lock.lock();
                    *guard += 1;
                    yield_now();
                    drop(guard);
                    turns.fetch_add(1, Ordering::Relaxed);
                    *lock.lock() += 1;
                }
            });
            let _ = sleep(Duration::from_micros(50));
            *lock.lock() += 1;
            child.join().unwrap();
        }
    }
    for _ in 0..scaled(20) {
        let (live, turns) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
        let worker = start("worker");
        let handles: Vec<_> = (0..4)
            .map(|_| {
                let (live, turns) = (Arc::clone(&live), Arc::clone(&turns));
                worker.context().spawn(move || {
                    let lock = Rc::new(CoMutex::new(0));
                    for _ in 0..4 {
                        let (live, lock, turns) = (Arc::clone(&live), Rc::clone(&lock), Arc::clone(&turns));
                        drop(spawn(move || work(live, lock, turns)));
                    }
                    suspend();
                })
            })
            .collect();
        let ctx = worker.context().clone();
        ctx.poll_while(|| {
            // Nothing else notifies: each look schedules a one-shot of the loop that it waits for.
            let kicker = ctx.clone();
            ctx.schedule_oneshot(move || kicker.notify()).unwrap();
            turns.load(Ordering::Relaxed) < 100
        });
        worker.stop().unwrap();
        assert_eq!(Arc::strong_count(&live), 1);
        handles.into_iter().for_each(|handle| assert!(handle.join().unwrap_err().is::<Cancelled>()));
    }
}

#[test]
fn drop_stops_the_thread() {
    // X10: dropping an I/O thread stops it and waits for it; its own thread cannot wait for itself
    let log = Log::default();
    let worker = start("worker");
    let noted = log.on_drop("unwound");
    let task = worker.context().spawn(move || {
        let _noted = noted;
        suspend();
    });
    worker.context().spawn(|| ()).join().unwrap();
    drop(worker);
    assert_eq!(log.take(), "unwound");
    assert!(task.join().unwrap_err().is::<Cancelled>());

    let worker = start("worker");
    let ctx = worker.context().clone();
    let said = ctx.spawn(move || panic_of(|| worker.stop())).join().unwrap();
    assert!(said.contains("cannot join itself; stop it from another thread"), "{said}");
    // It was dropped there, and its stop requested.
    while ctx.spawn(|| ()).join().is_ok() {}
}

#[test]
fn panic_in_the_loop_ends_its_thread() {
    // X10: a panic in the loop that has no handle to report to ends the thread; `stop` returns the
    // payload, and handles report the end
    let worker = start("worker");
    let waiting = worker.context().spawn(suspend);
    worker.context().schedule_oneshot(|| panic!("bottom half")).unwrap();
    assert!(waiting.join().unwrap_err().is::<Cancelled>());
    assert_eq!(text(&*worker.stop().unwrap_err()), "bottom half");
    drop(start("another"));
}

#[test]
fn thousand_starts_leak_nothing() {
    // X10: an I/O thread that was started and stopped leaves no descriptor, mapping or thread
    // behind
    let Some(child) = in_child("threads::thousand_starts_leak_nothing") else {
        let count = scaled(1000);
        let count_of = |path: &str| fs::read_dir(path).unwrap().count();
        let mappings = || fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let one = |n: usize| {
            let worker = start("worker");
            let slow = worker.context().spawn(|| sleep(Duration::from_secs(3600)));
            assert_eq!(worker.context().spawn(move || n).join().unwrap(), n);
            drop(worker);
            assert!(slow.join().unwrap_err().is::<Cancelled>());
        };
        // Resources that threads leave to later ones: stacks in libc's cache, an arena of the
        // allocator.
        (0..10).for_each(one);
        let before = (count_of("/proc/self/fd"), count_of("/proc/self/task"), mappings());
        (0..count).for_each(one);
        assert_eq!(count_of("/proc/self/fd"), before.0);
        // A joined thread stays on the list for a moment.
        while count_of("/proc/self/task") > before.1 {
            thread::yield_now();
        }
        // The allocator adds an arena (two mappings) whenever two threads happen to allocate at the
        // same moment, at most eight per processor: that does not grow with the number of starts,
        // each of which would leak four mappings or more.
        let arenas = 2 * 8 * thread::available_parallelism().unwrap().get();
        assert!(mappings() <= before.2 + arenas, "{} mappings, before {}", mappings(), before.2);
        return;
    };
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn run_on_moves_to_and_fro() {
    // X10, C7: a coroutine runs parts of its work in other loops, deeply nested and often, and
    // itself stays at home
    let threads = ["a", "b", "c"].map(start);
    let contexts = threads.each_ref().map(|thread| thread.context().clone());
    fn further(contexts: Vec<AioContext>, depth: usize) -> String {
        if depth == 0 {
            return String::new();
        }
        let next = contexts[depth % contexts.len()].clone();
        let rest = next.run_on(move || (thread_name(), further(contexts, depth - 1))).unwrap();
        rest.0 + &rest.1
    }
    let path = further(contexts.to_vec(), 12);
    assert_eq!(path, "acbacbacbacb");
    let [a, b, _] = contexts;
    let sum = a.clone().spawn(move || {
        let home = thread_name();
        let mut sum = 0;
        for n in 0..scaled(2000) {
            sum += b.run_on(move || n).unwrap();
            assert_eq!(thread_name(), home);
            // In this very context the closure is called directly, in this coroutine.
            let me = Coroutine::current().map(Coroutine::token);
            assert!(a.run_on(move || Coroutine::current().map(Coroutine::token) == me).unwrap());
        }
        sum
    });
    assert_eq!(sum.join().unwrap(), (0..scaled(2000)).sum());
    let payload = threads[0].context().run_on(|| -> u8 { panic!("there") }).unwrap_err();
    assert_eq!(text(&*payload), "there");
    threads.into_iter().for_each(|thread| thread.stop().unwrap());
}

#[test]
fn abandoned_remote_wait_cancels_the_remote_coroutine() {
    // X10, S4: a coroutine that is cancelled while it waits for another loop returns, and cancels
    // the remote work
    let worker = start("worker");
    let (told, tell) = mpsc::channel();
    let ctx = worker.context().clone();
    AioContext::run(|own| {
        let task = spawn(move || ctx.run_on(move || told.send(sleep(Duration::from_secs(3600)))).map(drop));
        own.poll(false);
        task.cancel();
        assert!(task.join().unwrap().unwrap_err().is::<Cancelled>());
    });
    assert_eq!(tell.recv().unwrap(), Err(Cancelled));
    // Unstarted remote work is cancelled from its start.
    let (ctx, gate) = (worker.context().clone(), mpsc::channel::<()>());
    let blocked = ctx.spawn(move || gate.1.recv().unwrap());
    let task = ctx.spawn(|| sleep(Duration::from_secs(3600)));
    task.cancel();
    gate.0.send(()).unwrap();
    blocked.join().unwrap();
    assert_eq!(task.join().unwrap(), Err(Cancelled));
    worker.stop().unwrap();
}

#[test]
fn co_mutex_is_exclusive_between_five_loops() {
    // S1: a CoMutex shared by coroutines of five I/O threads is exclusive, and forgets no waiter
    let threads = ["1", "2", "3", "4", "5"].map(start);
    let (mutex, turns) = (Arc::new(CoMutex::new((0, false))), scaled(4000));
    let handles: Vec<_> = (0..4 * threads.len())
        .map(|n| {
            let mutex = Arc::clone(&mutex);
            threads[n % threads.len()].context().spawn(move || {
                for turn in 0..turns {
                    let mut guard = mutex.lock();
                    assert!(!mem::replace(&mut guard.1, true), "another thread holds the lock");
                    if turn % 16 == 0 {
                        yield_now();
                    }
                    guard.0 += 1;
                    guard.1 = false;
                }
            })
        })
        .collect();
    let count = handles.len() * turns;
    handles.into_iter().for_each(|handle| handle.join().unwrap());
    threads.into_iter().for_each(|thread| thread.stop().unwrap());
    assert_eq!(Arc::into_inner(mutex).unwrap().into_inner(), (count, false));
}

#[test]
fn wait_reacquires_the_mutex() {
    // S2: wait releases the mutex and takes it again: a producer and consumers on two threads lose
    // nothing
    let threads = ["producer", "consumers"].map(start);
    let shared = Arc::new((CoMutex::new(Vec::<usize>::new()), CoQueue::new()));
    let count = scaled(5000);
    let consumers = [(); 4].map(|()| {
        let shared = Arc::clone(&shared);
        threads[1].context().spawn(move || {
            let mut sum = 0;
            loop {
                let mut items = shared.0.lock();
                while items.is_empty() {
                    items = shared.1.wait(items);
                }
                match items.pop().unwrap() {
                    0 => return sum,
                    item => sum += item,
                }
            }
        })
    });
    let producer = threads[0].context().spawn(move || {
        for item in (1..=count).chain([0; 4]) {
            // The zeros, which end the consumers, must come out last.
            shared.0.lock().insert(0, item);
            shared.1.wake_one();
        }
    });
    producer.join().unwrap();
    assert_eq!(consumers.map(|consumer| consumer.join().unwrap()).iter().sum::<usize>(), count * (count + 1) / 2);
    threads.into_iter().for_each(|thread| thread.stop().unwrap());
}

/// Returns the chain of entered coroutines, from the error of a recursive entry.
fn chain() -> String {
    match Coroutine::current().unwrap().try_enter() {
        Err(EnterError::Recursive { chain, .. }) => chain,
        other => panic!("{other:?}"),
    }
}

#[test]
fn handover_chain_crosses_threads() {
    // H8, W1: 25,000 hand-overs of a CoMutex, each by a coroutine that ends or waits again, enter
    // no waiter on top of the releaser
    let count = scaled(25_000);
    AioContext::run(|ctx| {
        let mutex = Rc::new(CoMutex::new(()));
        let seen = Rc::new(RefCell::new(Vec::new()));
        let first = mutex.try_lock().unwrap();
        for _ in 0..count {
            let (mutex, seen) = (Rc::clone(&mutex), Rc::clone(&seen));
            let co = Coroutine::builder().name("next").create(move || {
                let guard = mutex.lock();
                seen.borrow_mut().push(chain());
                drop(guard);
            });
            co.unwrap().enter();
        }
        drop(first);
        ctx.poll(false);
        assert_eq!(seen.borrow().len(), count);
        assert!(seen.borrow().iter().all(|chain| chain == "thread > loop > 'next'"));
        // Two take turns: each has the same stack pointer every time.
        let pointers = [(); 2].map(|()| {
            let (mutex, pointers) = (Rc::clone(&mutex), Rc::new(RefCell::new(Vec::new())));
            let kept = Rc::clone(&pointers);
            drop(spawn(move || {
                for _ in 0..count / 2 {
                    let guard = mutex.lock();
                    yield_now();
                    let here = black_box(0_u8);
                    pointers.borrow_mut().push((&raw const here).addr());
                    drop(guard);
                }
            }));
            kept
        });
        while pointers.iter().any(|pointers| pointers.borrow().len() < count / 2) {
            ctx.poll(true);
        }
        for pointers in pointers {
            let pointers = pointers.borrow();
            assert!(pointers.iter().all(|pointer| *pointer == pointers[0]));
        }
    });
}

#[test]
fn poll_while_of_a_plain_thread_leaves_its_park_token() {
    // X9: a thread without a context that waits by `poll_while` keeps an unpark that was meant for its
    // own code. Hangs if not
    let worker = start("worker");
    let context = worker.context().clone();
    thread::current().unpark();
    let mut looks = 0;
    context.poll_while(|| {
        looks += 1;
        if looks == 1 {
            context.notify();
        }
        looks == 1
    });
    thread::park();
}

#[test]
fn poll_while_runs_the_loop_at_home() {
    // X9: at home it polls until the condition is false; changed by a coroutine, or by another
    // thread that notifies
    AioContext::run(|ctx| {
        let left = Rc::new(Cell::new(3));
        for _ in 0..3 {
            let left = Rc::clone(&left);
            drop(spawn(move || {
                yield_now();
                left.set(left.get() - 1);
            }));
        }
        ctx.poll_while(|| left.get() > 0);
        ctx.poll_while(|| false);
        // The lock is released fully during the sleep, however often it was acquired: the other
        // thread takes it, and notifies.
        let guards = (ctx.acquire(), ctx.acquire(), ctx.acquire());
        let go = Arc::new(AtomicBool::new(true));
        let other = thread::spawn({
            let (go, ctx) = (Arc::clone(&go), ctx.clone());
            move || {
                let _guard = ctx.acquire();
                // Relaxed: the lock and the notification publish it.
                go.store(false, Ordering::Relaxed);
                ctx.notify();
            }
        });
        ctx.poll_while(|| go.load(Ordering::Relaxed));
        assert!(thread::scope(|scope| scope.spawn(|| ctx.try_acquire().is_none()).join().unwrap()), "taken back");
        drop(guards);
        other.join().unwrap();
        // In a coroutine it blocks the thread, not only the coroutine: others are entered on top of
        // it.
        let (inner, log) = (ctx.clone(), Log::default());
        let logged = log.clone();
        let task = spawn(move || {
            let done = Rc::new(Cell::new(false));
            drop(spawn({
                let (done, log) = (Rc::clone(&done), logged.clone());
                move || {
                    log.add(chain());
                    done.set(true);
                }
            }));
            inner.poll_while(|| !done.get());
            logged.add("over");
        });
        task.join().unwrap();
        assert_eq!(log.take().matches(" > loop > ").count(), 2, "thread > loop > one > loop > another");
    });
}

/// Counts down on an I/O thread in steps, each a coroutine that notifies.
fn count_down(worker: &IoThread, from: usize) -> Arc<AtomicUsize> {
    let left = Arc::new(AtomicUsize::new(from));
    let (counter, ctx) = (Arc::clone(&left), worker.context().clone());
    drop(worker.context().spawn(move || {
        while counter.load(Ordering::Relaxed) > 0 {
            yield_now();
            let _guard = ctx.acquire();
            counter.fetch_sub(1, Ordering::Relaxed);
            ctx.notify();
        }
    }));
    left
}

#[test]
fn poll_while_on_a_plain_thread_waits() {
    // X9: another thread waits until the condition is false, by notification; a lock acquired
    // several times is released fully
    let worker = start("worker");
    let ctx = worker.context();
    for guards in 0..4 {
        let held: Vec<_> = (0..guards).map(|_| ctx.acquire()).collect();
        let left = count_down(&worker, scaled(200));
        let mut looks = 0;
        ctx.poll_while(|| {
            looks += 1;
            assert!(ctx.is_awaited());
            left.load(Ordering::Relaxed) > 0
        });
        assert!(!ctx.is_awaited());
        assert_eq!(left.load(Ordering::Relaxed), 0);
        assert!(looks > 0);
        let foreign = || thread::scope(|scope| scope.spawn(|| ctx.try_acquire().is_none()).join().unwrap());
        assert!(guards == 0 || foreign(), "{guards} guards were taken back");
        drop(held);
        // Released as often as it was acquired: the loop continues.
        ctx.spawn(|| ()).join().unwrap();
    }
    // A condition that panics leaves the lock as it was.
    let guard = ctx.acquire();
    let left = count_down(&worker, 3);
    let mut looks = 0;
    let said = panic_of(|| {
        ctx.poll_while(|| {
            looks += 1;
            assert!(looks < 2 && left.load(Ordering::Relaxed) > 0, "enough");
            true
        });
    });
    assert_eq!(said, "enough");
    assert!(!ctx.is_awaited());
    drop(guard);
    worker.stop().unwrap();
}

#[test]
fn poll_while_on_another_loop_waits() {
    // X9: `poll_while` on another context runs the caller's own loop while it waits: on the thread's
    // own stack, in a coroutine, and with the other context's lock held
    let worker = start("worker");
    let ctx = worker.context().clone();
    AioContext::run(|_| {
        let turns = Rc::new(Cell::new(0));
        let counter = Rc::clone(&turns);
        drop(spawn(move || {
            loop {
                counter.set(counter.get() + 1);
                yield_now();
            }
        }));
        for guards in 0..3 {
            turns.set(0);
            let held: Vec<_> = (0..guards).map(|_| ctx.acquire()).collect();
            let left = count_down(&worker, 50);
            // At least once, however fast the other is.
            ctx.poll_while(|| turns.get() == 0 || left.load(Ordering::Relaxed) > 0);
            drop(held);
        }
        let left = count_down(&worker, 50);
        let ctx = ctx.clone();
        let task = spawn(move || {
            let _guard = ctx.acquire();
            ctx.poll_while(|| left.load(Ordering::Relaxed) > 0);
        });
        task.join().unwrap();
    });
    // One I/O thread waits for another.
    let other = start("other");
    let left = count_down(&worker, 100);
    let ctx = worker.context().clone();
    other.context().spawn(move || ctx.poll_while(|| left.load(Ordering::Relaxed) > 0)).join().unwrap();
    other.stop().unwrap();
    worker.stop().unwrap();
}

#[test]
fn guard_can_be_dropped_while_its_lock_is_released() {
    // X9, X8: a foreign guard kept by a suspended coroutine, and dropped while poll_while has
    // released the lock, aborts the process with the reason: it would release a lock that another
    // thread holds
    match in_child("threads::guard_can_be_dropped_while_its_lock_is_released") {
        Some(child) => assert_aborted(&child, "context lock guard dropped outside the lock epoch it was created in"),
        None => {
            let worker = start("worker");
            let ctx = worker.context().clone();
            AioContext::run(|own| {
                let inner = ctx.clone();
                drop(spawn(move || {
                    let _guard = inner.acquire();
                    yield_now();
                }));
                own.poll(false);
                ctx.poll_while(|| true);
            });
        }
    }
}

#[test]
fn forgotten_guard_is_counted() {
    // X9: guards that are taken and leaked while the lock is released count as well when it is
    // reacquired
    let worker = start("worker");
    let ctx = worker.context().clone();
    AioContext::run(|own| {
        let guard = ctx.acquire();
        let (inner, left) = (ctx.clone(), count_down(&worker, 1));
        drop(spawn(move || mem::forget(inner.acquire())));
        ctx.poll_while(|| left.load(Ordering::Relaxed) > 0);
        own.poll(false);
        drop(guard);
        // One is left, and poll_while releases it: the loop runs.
        let left = count_down(&worker, 1);
        ctx.poll_while(|| left.load(Ordering::Relaxed) > 0);
    });
    // This thread holds its lock forever, so it cannot be stopped.
    mem::forget(worker);
}

#[test]
fn io_thread_can_own_another() {
    // X10: I/O threads own I/O threads; the end of one stops the other, whose handles report it
    let log = Log::default();
    let outer = start("outer");
    let noted = log.clone();
    let outcome = outer.context().spawn(move || {
        let inner = start("inner");
        let task = inner.context().spawn(move || {
            let _noted = noted.on_drop("inner");
            suspend();
        });
        inner.context().spawn(|| ()).join().unwrap();
        let waits = spawn(move || block_on(task));
        drop(inner);
        waits.join().unwrap().unwrap().unwrap_err().is::<Cancelled>()
    });
    assert!(outcome.join().unwrap());
    outer.stop().unwrap();
    assert_eq!(log.take(), "inner");
}

#[test]
fn thread_with_a_nul_in_its_name_is_refused() {
    // X10: a name that the system cannot represent is an error, like every other reason why the thread
    // cannot be created
    let error = IoThread::start("a\0b").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "invalid name \"a\\0b\" for a thread: must contain no NUL");
}
