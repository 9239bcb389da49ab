//! Misuse of an engine by safe code.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use coralio::context::AioContext;
use coralio::coroutine::{Coroutine, suspend};
use coralio::engine::scripted::{ScriptedBackend, Turn};
use coralio::engine::{Engine, EventSource, Flush, HomeToken, LoopToken, SourceState};
use coralio::task::Cancelled;
use coralio::{File, scope, spawn};

use crate::{Log, Watch, Watched, panic_of, read, rounds_until, touch, with_engine, write};

/// Returns a file on the scripted disk; its descriptor does not matter.
fn file(engine: &Arc<Engine<ScriptedBackend>>) -> File {
    File::with_engine(engine, OwnedFd::from(fs::File::open("/dev/null").unwrap())).unwrap()
}

#[test]
fn scripted_backend_serves_one_engine() {
    // E1, E13: a scripted backend refuses a second engine: of two engines on its clones, each would
    // take the other's completions for its own and return buffers that are still lent
    let backend = ScriptedBackend::new(8);
    backend.set_disk(b"disk");
    backend.hold(0);
    let (lent, wait_until_lent) = channel();
    let (go, wait_for_go) = channel::<()>();
    let first = thread::spawn({
        let backend = backend.clone();
        move || {
            AioContext::run(|context| {
                let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 8).unwrap();
                let file = file(&engine);
                let reader = spawn(move || {
                    let mut buf = *b"....";
                    file.read_at(&mut buf, 0).unwrap();
                    buf
                });
                context.poll(false);
                lent.send(()).unwrap();
                wait_for_go.recv().unwrap();
                let _ = context.poll(false);
                assert!(!reader.is_finished(), "its buffer is the kernel's");
                backend.release(0);
                rounds_until(|| reader.is_finished());
                reader.join().unwrap()
            })
        }
    });
    wait_until_lent.recv().unwrap();
    let refused = AioContext::run(|_| {
        let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 8).unwrap();
        let file = file(&engine);
        spawn(move || file.read_at(&mut [0; 4], 0)).join().unwrap().unwrap_err()
    });
    assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
    go.send(()).unwrap();
    assert_eq!(&first.join().unwrap(), b"disk");
    // Once the first engine is done, another one may continue with the disk.
    AioContext::run(|_| {
        let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 8).unwrap();
        let file = file(&engine);
        let read = spawn(move || {
            let mut buf = *b"....";
            file.read_at(&mut buf, 0).map(|_| buf)
        });
        assert_eq!(&read.join().unwrap().unwrap(), b"disk");
    });
}

#[test]
fn turn_hook_decides_for_the_scripted_kernel() {
    // E2, E1: the hook of a scripted backend sees every turn and decides in it: it refuses a submit, and
    // completes one request in each sleep, while the other stays in flight
    let turns = Arc::new(Mutex::new(Vec::new()));
    let backend = ScriptedBackend::new(8);
    backend.set_disk(b"disk");
    backend.on_turn({
        let turns = Arc::clone(&turns);
        move |backend, turn| {
            let mut turns = turns.lock().unwrap();
            let name = match turn {
                Turn::Offered(offered) if turns.is_empty() => {
                    assert_eq!((offered.len(), offered[1].len, offered[1].offset), (2, 4, 0));
                    backend.refuse(libc::EAGAIN);
                    "refused"
                }
                Turn::Offered(_) => "offered",
                Turn::Accepted(_) => "accepted",
                Turn::Peeked => "peeked",
                Turn::Asleep => {
                    backend.release(2 - backend.in_flight());
                    "asleep"
                }
                other => panic!("{other:?}"),
            };
            turns.push(name);
        }
    });
    AioContext::run(|context| {
        let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 8).unwrap();
        let readers = [file(&engine), file(&engine)].map(|file| spawn(move || file.read_at(&mut [0; 4], 0)));
        context.poll(false);
        assert_eq!((backend.taken(), backend.in_flight()), (0, 0), "they were refused");
        context.poll(false);
        context.poll(false);
        assert_eq!((backend.taken(), backend.in_flight()), (2, 2), "nothing completes them by itself");
        rounds_until(|| readers[0].is_finished());
        assert_eq!(backend.in_flight(), 1);
        readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap().unwrap(), 4));
    });
    let mut turns = turns.lock().unwrap();
    turns.dedup(); // the loop looks before it reaps
    assert_eq!(*turns, ["refused", "offered", "accepted", "asleep", "peeked", "asleep", "peeked"]);
}

#[test]
fn hooks_of_the_scripted_backend_can_be_replaced_by_themselves() {
    // E1: a turn hook that sets another one is replaced by it; replaced hooks are dropped outside the
    // backend's lock. Hangs if not
    struct Uses(ScriptedBackend);
    impl Drop for Uses {
        fn drop(&mut self) {
            assert_eq!(self.0.taken(), 0);
        }
    }
    let (seen, asleep) = channel();
    let backend = ScriptedBackend::new(1);
    backend.set_disk(b"disk");
    let [peek, first, second] = [(); 3].map(|()| Uses(backend.clone()));
    backend.on_next_peek(move || drop(peek));
    backend.on_next_peek(|| ());
    backend.on_turn(move |_, _| assert!(first.0.taken() < 99));
    backend.on_turn(move |backend, _| {
        assert!(second.0.taken() < 99);
        let seen = seen.clone();
        backend.on_turn(move |backend, turn| {
            if matches!(turn, Turn::Asleep) {
                seen.send(backend.in_flight()).unwrap();
                backend.release(0);
            }
        });
    });
    AioContext::run(|_| {
        let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 1).unwrap();
        let file = file(&engine);
        let read = spawn(move || file.read_at(&mut [0; 4], 0));
        assert_eq!(read.join().unwrap().unwrap(), 4);
    });
    assert_eq!(asleep.try_recv(), Ok(1));
}

#[test]
fn write_beyond_the_scripted_disk_fails_alone() {
    // E2, E13: a request that cannot be performed does not panic out of a submit that has accepted
    // request: the engine would take back that request's buffer while the kernel uses it
    with_engine(8, |context, backend, engine| {
        backend.script.hold(0);
        backend.script.complete_on_submit(1, 1);
        let writer = |offset| {
            let engine = engine.clone();
            spawn(move || write(&engine, b"lent", offset).map_err(|error| error.raw_os_error()))
        };
        let writers = [0, 1 << 63].map(writer);
        context.poll(false);
        assert_eq!(backend.script.in_flight(), 1);
        backend.script.release(0);
        assert_eq!(writers.map(|writer| writer.join().unwrap()), [Ok(4), Err(Some(libc::EFBIG))]);
    });
}

#[test]
fn panic_out_of_a_reap_leaves_no_request_blocked() {
    // E2, C8: after a partial submit, a completion makes room for the rest even if its coroutine
    // panics out of the reap
    with_engine(8, |context, backend, engine| {
        (0..2).for_each(|number| backend.script.hold(number));
        backend.script.take_at_most(2);
        let bad = Coroutine::new({
            let engine = engine.clone();
            move || {
                touch(&engine, 1).unwrap();
                panic!("out of the reap");
            }
        });
        let plug = engine.plug();
        bad.enter();
        let tasks = [2, 3].map(|offset| {
            let engine = engine.clone();
            spawn(move || touch(&engine, offset))
        });
        drop(plug);
        context.poll(false);
        assert_eq!(backend.transcript(), "1,2,3>2");
        backend.script.release(0);
        assert_eq!(panic_of(|| context.poll(false)), "out of the reap");
        // The second request stays in flight until it is released.
        rounds_until(|| tasks[1].is_finished());
        assert_eq!(backend.transcript(), "3>1 wait");
        backend.script.release(1);
        for task in tasks {
            assert_eq!(task.join().unwrap(), Ok(0));
        }
    });
}

#[test]
fn nested_poll_submits_requests_not_accepted() {
    // E2, X2: a partial submit is completed from a nested poll: the coroutine that the completion
    // woke polls, and the request that it waits for is submitted
    with_engine(8, |context, backend, engine| {
        backend.script.hold(1);
        backend.script.take_at_most(2);
        let [first, held, last] = [0, 1, 2].map(|offset| {
            let engine = engine.clone();
            move || touch(&engine, offset)
        });
        let plug = engine.plug();
        let waits = Coroutine::new({
            let context = context.clone();
            move || {
                first().unwrap();
                let last = spawn(last);
                let alarm = context.new_bottom_half(|| {}).unwrap();
                for _ in 0..100 {
                    if last.is_finished() {
                        return;
                    }
                    alarm.schedule_idle();
                    context.poll(true);
                }
                panic!("a hundred nested rounds, and the request was not submitted");
            }
        });
        waits.enter();
        let held = spawn(held);
        let queued = spawn({
            let engine = engine.clone();
            move || touch(&engine, 3)
        });
        drop(plug);
        rounds_until(|| waits.has_ended() && queued.is_finished());
        assert!(!held.is_finished());
        backend.script.release(1);
        held.join().unwrap().unwrap();
        queued.join().unwrap().unwrap();
    });
}

/// A buffer that coroutines of a scope borrow in parts; its destructor logs the content.
struct Shared(Log, [u8; 8]);

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.add(String::from_utf8_lossy(&self.1));
    }
}

/// Returns a closure in which two coroutines read into the halves of a buffer on its stack, and
/// which calls `then` while they are in flight.
fn borrowers(engine: &Watch, log: &Log, then: impl FnOnce() + 'static) -> impl FnOnce() + 'static {
    let (engine, log) = (engine.clone(), log.clone());
    move || {
        let mut shared = Shared(log, *b"........");
        let (left, right) = shared.1.split_at_mut(4);
        scope(|scope| {
            for (half, offset) in [(left, 0), (right, 4)] {
                let engine = engine.clone();
                drop(scope.spawn(move || _ = read(&engine, half, offset)));
            }
            suspend();
            then();
        });
    }
}

/// Starts two requests whose buffers are owned by the stack of a scope's owner.
fn lent_by_a_scope(then: impl FnOnce() + Send + 'static, end: impl FnOnce(&AioContext, &Watched, Coroutine)) {
    let log = Log::default();
    with_engine(8, |context, backend, engine| {
        backend.script.set_disk(b"aaaabbbb");
        let owner = Coroutine::new(borrowers(engine, &log, then));
        owner.enter();
        (0..2).for_each(|number| backend.script.hold(number));
        context.poll(false);
        assert_eq!(engine.stats().in_flight, 2);
        let script = backend.script.clone();
        // The held requests complete at the next wait.
        backend.on_next_wait(move || (0..2).for_each(|number| script.release(number)));
        end(context, backend, owner);
    });
    assert_eq!(log.take(), "aaaabbbb");
}

#[test]
fn scope_returns_lent_buffers_before_their_owner_ends() {
    // E13, S4, C9: buffers lent within a scope return before the scope's owner is gone: after a
    // panic in the scope, at the end of the context, and after cancelling
    lent_by_a_scope(
        || panic!("in the scope"),
        |_, _, owner| {
            let enter_and_wait = || {
                owner.enter();
                rounds_until(|| owner.has_ended());
            };
            assert_eq!(panic_of(enter_and_wait), "in the scope");
        },
    );
    lent_by_a_scope(|| unreachable!("it is unwound"), |_, _, _| ());
    lent_by_a_scope(
        || assert!(coralio::task::check_cancelled().is_err_and(|Cancelled| true)),
        |_, _, owner| {
            owner.cancel();
            rounds_until(|| owner.has_ended());
        },
    );
}

/// A source that forwards its own loop's calls to the engine of another context.
struct Borrows {
    engine: Arc<dyn EventSource>,
    report: Mutex<Vec<String>>,
}

impl EventSource for Borrows {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        let dispatched = self.engine.dispatch(token);
        self.report.lock().unwrap().push(format!("dispatch {dispatched}"));
        false
    }

    fn flush(&self, token: LoopToken<'_>, when: Flush) -> bool {
        let flushed = self.engine.flush(token, when);
        self.report.lock().unwrap().push(format!("flush {flushed}"));
        false
    }

    fn state(&self) -> SourceState {
        SourceState::Waiting
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn sleep(
        &self,
        token: HomeToken<'_>,
        other: BorrowedFd<'_>,
        _timeout: Option<Duration>,
    ) -> Option<io::Result<bool>> {
        let slept = self.engine.sleep(token, other, Some(Duration::ZERO)).is_some();
        self.report.lock().unwrap().push(format!("sleep {slept}"));
        Some(Ok(false))
    }

    fn close(&self, token: HomeToken<'_>) {
        self.engine.close(token);
        self.report.lock().unwrap().push("close".into());
    }
}

#[test]
fn engine_ignores_the_loop_of_another_context() {
    // E9, E12: an engine called with another context's loop tokens ignores them: no completion is
    // taken, and nothing submits or sleeps on that thread
    with_engine(8, |context, backend, engine| {
        (0..2).for_each(|number| backend.script.hold(number));
        let waits = spawn({
            let engine = engine.clone();
            move || touch(&engine, 0)
        });
        context.poll(false);
        let late = spawn({
            let engine = engine.clone();
            move || touch(&engine, 512)
        });
        assert_eq!(backend.transcript(), "0>1");
        backend.script.release(0);
        let source = context.source().unwrap();
        let foreign = thread::spawn(move || {
            let borrows = Arc::new(Borrows { engine: source, report: Mutex::default() });
            AioContext::run(|other| {
                other.attach(Arc::clone(&borrows) as Arc<dyn EventSource>).unwrap();
                other.poll(true);
            });
            borrows.report.lock().unwrap().join(", ")
        });
        let report = foreign.join().unwrap();
        assert!(!report.contains("true") && report.contains("sleep false") && report.ends_with("close"), "{report}");
        assert_eq!(backend.transcript(), "");
        context.poll(false);
        backend.script.release(1);
        assert_eq!((waits.join().unwrap(), late.join().unwrap()), (Ok(0), Ok(0)));
    });
}

/// A source that releases its context's lock within a poll by another thread with a context, and has
/// a coroutine of that thread check the poll's token meanwhile.
struct ReleasesLock(AioContext, Mutex<Option<[bool; 3]>>);

impl EventSource for ReleasesLock {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        if token.at_home().is_none() && AioContext::current().is_some() {
            let (before, during) = (token.is_of(&self.0), Cell::new(None));
            scope(|scope| {
                drop(scope.spawn(|| during.set(Some(token.is_of(&self.0)))));
                self.0.poll_while(|| during.get().is_none());
            });
            *self.1.lock().unwrap() = Some([before, during.get().unwrap(), token.is_of(&self.0)]);
        }
        false
    }

    fn flush(&self, _token: LoopToken<'_>, _when: Flush) -> bool {
        false
    }

    fn state(&self) -> SourceState {
        SourceState::Idle
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn sleep(&self, _: HomeToken<'_>, _: BorrowedFd<'_>, _: Option<Duration>) -> Option<io::Result<bool>> {
        None
    }
}

#[test]
fn loop_token_proves_nothing_without_the_lock() {
    // E9, X8: the token of another thread's poll is no proof while that thread has released the
    // lock in poll_while
    AioContext::run(|context| {
        let source = Arc::new(ReleasesLock(context.clone(), Mutex::default()));
        context.attach(Arc::clone(&source) as Arc<dyn EventSource>).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| coralio::run(|| context.poll(false)));
        });
        assert_eq!(*source.1.lock().unwrap(), Some([true, false, true]));
    });
}

#[test]
fn engine_leaves_after_polls_of_other_threads() {
    // E12, E9: a poll by another thread, which may be inside the engine, ends before the engine
    // leaves, although the home thread does not run the loop
    AioContext::run(|context| {
        context.attach(Arc::new(ReleasesLock(context.clone(), Mutex::default()))).unwrap();
        let [begins, over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (begun, ends) = (Arc::clone(&begins), Arc::clone(&over));
        let (send, inside) = channel();
        let bottom_half = move || {
            send.send(()).unwrap();
            while !begun.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            // Long enough for an engine that does not wait.
            (0..10_000).for_each(|_| thread::yield_now());
            ends.store(true, Ordering::Relaxed);
        };
        context.schedule_oneshot(bottom_half).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| context.poll(false));
            inside.recv().unwrap();
            begins.store(true, Ordering::Relaxed);
            assert!(context.detach().unwrap().is_some());
            assert!(over.load(Ordering::Relaxed), "the engine has left during the poll");
        });
    });
}
