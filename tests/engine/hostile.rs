//! What safe code could try on an engine.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::mpsc::channel;
use std::thread;

use coralio_aio::kernel::scripted::Scripted;
use coralio_aio::{AioContext, Cancelled, Engine, File, scope, spawn, suspend};

use crate::{Log, Watch, Watched, panic_of, read, rounds_until, touch, with_engine};

/// A file on the scripted disk: the descriptor does not matter.
fn file(engine: &std::sync::Arc<Engine<Scripted>>) -> File {
    File::on_engine(engine, OwnedFd::from(fs::File::open("/dev/null").unwrap())).unwrap()
}

#[test]
fn a_scripted_kernel_serves_one_engine() {
    // E1, E13: of two engines on clones of it, each would take the other's completions for its own, and give buffers back
    // that are lent
    let kernel = Scripted::new(8);
    kernel.set_disk(b"disk");
    kernel.hold(0);
    let (lent, wait_until_lent) = channel();
    let (go, wait_for_go) = channel::<()>();
    let first = thread::spawn({
        let kernel = kernel.clone();
        move || {
            AioContext::run(|context| {
                let engine = Engine::<Scripted>::attach(kernel.clone(), 8).unwrap();
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
                kernel.release(0);
                rounds_until(|| reader.is_finished());
                reader.join().unwrap()
            })
        }
    });
    wait_until_lent.recv().unwrap();
    let refused = AioContext::run(|_| {
        let engine = Engine::<Scripted>::attach(kernel.clone(), 8).unwrap();
        let file = file(&engine);
        spawn(move || file.read_at(&mut [0; 4], 0)).join().unwrap().unwrap_err()
    });
    assert_eq!(refused.kind(), std::io::ErrorKind::ResourceBusy);
    go.send(()).unwrap();
    assert_eq!(&first.join().unwrap(), b"disk");
    // When that one is through, another one may go on with the disk.
    AioContext::run(|_| {
        let engine = Engine::<Scripted>::attach(kernel.clone(), 8).unwrap();
        let file = file(&engine);
        let read = spawn(move || {
            let mut buf = *b"....";
            file.read_at(&mut buf, 0).map(|_| buf)
        });
        assert_eq!(&read.join().unwrap().unwrap(), b"disk");
    });
}

#[test]
fn a_panic_out_of_a_reap_leaves_nobody_blocked() {
    // E2, C8: the kernel had not taken all; a completion makes room for the rest, though its coroutine panics out of the reap
    with_engine(8, |context, kernel, engine| {
        (0..2).for_each(|number| kernel.script.hold(number));
        kernel.script.take_at_most(2);
        let bad = coralio_aio::Coroutine::new({
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
        assert_eq!(kernel.transcript(), "1,2,3>2");
        kernel.script.release(0);
        assert_eq!(panic_of(|| context.poll(false)), "out of the reap");
        // The second one is in flight for as long as it likes.
        rounds_until(|| tasks[1].is_finished());
        assert_eq!(kernel.transcript(), "3>1 wait");
        kernel.script.release(1);
        for task in tasks {
            assert_eq!(task.join().unwrap(), Ok(0));
        }
    });
}

#[test]
fn a_nested_poll_submits_what_was_not_taken() {
    // E2, X2: the same while the coroutine that the completion has woken polls: what it waits for is submitted
    with_engine(8, |context, kernel, engine| {
        kernel.script.hold(1);
        kernel.script.take_at_most(2);
        let [first, held, last] = [0, 1, 2].map(|offset| {
            let engine = engine.clone();
            move || touch(&engine, offset)
        });
        let plug = engine.plug();
        let waits = coralio_aio::Coroutine::new({
            let context = context.clone();
            let last = std::rc::Rc::new(std::cell::Cell::new(Some(last)));
            move || {
                first().unwrap();
                let last = last.take().unwrap();
                let last = spawn(last);
                let alarm = context.bottom_half(|| {}).unwrap();
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
        kernel.script.release(1);
        held.join().unwrap().unwrap();
        queued.join().unwrap().unwrap();
    });
}

/// A buffer that coroutines of a scope borrow in parts; it says what is in it when it goes.
struct Shared(Log, [u8; 8]);

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.add(String::from_utf8_lossy(&self.1));
    }
}

/// Two coroutines read into the halves of a buffer on the stack of a third, which does `then` while they are in flight.
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

/// Two requests in flight, of whose buffers a scope is the owner.
fn lent_by_a_scope(
    then: impl FnOnce() + Send + 'static,
    end: impl FnOnce(&AioContext, &Watched, coralio_aio::Coroutine),
) {
    let log = Log::default();
    with_engine(8, |context, kernel, engine| {
        kernel.script.set_disk(b"aaaabbbb");
        let owner = coralio_aio::Coroutine::new(borrowers(engine, &log, then));
        owner.enter();
        (0..2).for_each(|number| kernel.script.hold(number));
        context.poll(false);
        assert_eq!(engine.stats().in_flight, 2);
        let script = kernel.script.clone();
        // What is held completes when somebody waits for it.
        kernel.on_next_wait(move || (0..2).for_each(|number| script.release(number)));
        end(context, kernel, owner);
    });
    assert_eq!(log.take(), "aaaabbbb");
}

#[test]
fn what_a_scope_lends_comes_back_before_its_owner_goes() {
    // E13, S4, C9: by a panic in the scope, by the end of the context, and by cancelling
    lent_by_a_scope(
        || panic!("amid the scope"),
        |_, _, owner| {
            let enter_and_wait = || {
                owner.enter();
                rounds_until(|| owner.has_ended());
            };
            assert_eq!(panic_of(enter_and_wait), "amid the scope");
        },
    );
    lent_by_a_scope(|| unreachable!("it is unwound"), |_, _, _| ());
    lent_by_a_scope(
        || assert!(coralio_aio::check_cancelled().is_err_and(|Cancelled| true)),
        |_, _, owner| {
            owner.cancel();
            rounds_until(|| owner.has_ended());
        },
    );
}
