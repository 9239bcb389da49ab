//! Rule E13: a buffer lent to the kernel stays in place until the kernel has returned it, however
//! its coroutine ends.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;

use coralio::context::AioContext;
use coralio::coroutine::{Coroutine, suspend};
use coralio::spawn;
use coralio::task::Cancelled;

use crate::{Log, Watch, panic_of, read, text, touch, with_engine, write};

/// A buffer whose destructor logs the content.
struct Lent {
    buf: [u8; 4],
    log: Log,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.log.add(format!("{}", String::from_utf8_lossy(&self.buf)));
        self.buf = *b"gone";
    }
}

/// Reads four bytes, and logs the result if the coroutine continues after that.
fn reader(engine: &Watch, log: &Log, offset: u64) -> impl FnOnce() + 'static {
    let (engine, log) = (engine.clone(), log.clone());
    move || {
        let mut lent = Lent { buf: *b"new.", log: log.clone() };
        let result = read(&engine, &mut lent.buf, offset);
        log.add(format!("{result:?}"));
    }
}

/// Fills the disk with `aaaabbbbcccc`.
fn fill(backend: &crate::Watched, engine: &Watch) {
    let engine = engine.clone();
    spawn(move || write(&engine, b"aaaabbbbcccc", 0).unwrap()).join().unwrap();
    backend.transcript();
}

#[test]
fn context_end_removes_pending_requests() {
    // C9, E11: requests plugged and never submitted are taken back, so the operations never start
    let log = Log::default();
    let (backend, _plug) = with_engine(8, |_, backend, engine| {
        fill(backend, engine);
        let plug = engine.plug();
        for offset in [0, 4] {
            Coroutine::new(reader(engine, &log, offset)).enter();
        }
        assert_eq!((engine.stats().pending, backend.transcript().as_str()), (2, ""));
        (backend.clone(), plug)
    });
    assert_eq!(log.take(), "new. new.");
    assert_eq!(backend.transcript(), "");
}

#[test]
fn context_end_unblocks_the_queue() {
    // E13, E11: after a partial submit, the end of the context waits for the requests that the
    // kernel has and takes the others back
    let log = Log::default();
    let backend = with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        backend.script.take_at_most(1);
        for offset in [0, 4, 8] {
            drop(spawn(reader(engine, &log, offset)));
        }
        context.poll(false);
        assert_eq!((engine.stats().in_flight, engine.stats().pending), (1, 2));
        backend.clone()
    });
    assert_eq!(log.take(), "aaaa new. new.");
    assert_eq!(backend.transcript(), "0,4,8>1 wait");
}

#[test]
fn context_end_copes_with_eagain() {
    // E11, H6: the end of the context does not sleep after "try again" with nothing in flight: that
    // sleep would never end, and the scripted backend would report it
    let log = Log::default();
    let backend = with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        for _ in 0..4 {
            backend.script.refuse(libc::EAGAIN);
        }
        drop(spawn(reader(engine, &log, 4)));
        context.poll(false);
        backend.clone()
    });
    assert_eq!(log.take(), "new.");
    assert!(!backend.transcript().contains("wait"));
}

#[test]
fn panic_keeps_other_requests_in_flight() {
    // E13, C8: a panic reaches the join handle, and another coroutine's request in flight returns
    // its data
    with_engine(8, |_, backend, engine| {
        fill(backend, engine);
        let log = Log::default();
        let other = spawn(reader(engine, &log, 4));
        let bad = spawn({
            let engine = engine.clone();
            move || {
                touch(&engine, 0).unwrap();
                panic!("after its own I/O");
            }
        });
        assert_eq!(text(&*bad.join().unwrap_err()), "after its own I/O");
        other.join().unwrap();
        assert_eq!(log.take(), "Ok(4) bbbb");
        assert_eq!(engine.stats().in_flight, 0);
    });
}

#[test]
fn panic_out_of_a_reap_loses_no_completion() {
    // E5, C8: a coroutine without a join handle panics during the reap; the completions behind it
    // are reaped by the next poll
    with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        let log = Log::default();
        drop(spawn(reader(engine, &log, 0)));
        context.poll(false);
        let bad = Coroutine::new({
            let engine = engine.clone();
            move || {
                touch(&engine, 0).unwrap();
                panic!("in the reap");
            }
        });
        bad.enter();
        drop(spawn(reader(engine, &log, 8)));
        context.poll(false);
        assert_eq!(panic_of(|| context.poll(true)), "in the reap");
        assert_eq!(log.take(), "Ok(4) aaaa");
        assert_eq!(engine.stats().in_flight, 1);
        context.poll(false);
        assert_eq!(log.take(), "Ok(4) cccc");
        assert_eq!((engine.stats().in_flight, engine.stats().pending), (0, 0));
        let later = spawn(reader(engine, &log, 4));
        later.join().unwrap();
        assert_eq!(log.take(), "Ok(4) bbbb");
    });
}

#[test]
fn panic_out_of_a_submit_loses_no_request() {
    // E2, C8: a coroutine whose request is refused panics within the submit, which continues with
    // the rest
    with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        let log = Log::default();
        let plug = engine.plug();
        let bad = Coroutine::new({
            let engine = engine.clone();
            move || touch(&engine, 0).map(drop).unwrap()
        });
        bad.enter();
        let good = Coroutine::new(reader(engine, &log, 8));
        good.enter();
        drop(plug);
        backend.script.refuse(libc::EBADF);
        assert!(panic_of(|| context.poll(true)).contains("Err` value: 9"));
        while !good.has_ended() {
            context.poll(true);
        }
        assert_eq!(log.take(), "Ok(4) cccc");
        assert_eq!(backend.transcript(), "0,8>error9 8>1 wait");
    });
}

#[test]
fn panicking_backend_submit_is_contained() {
    // E13: a kernel that panics during submit leaves a request in flight before its coroutine
    // waits; the stack is unwound only after completion
    with_engine(8, |_, backend, engine| {
        fill(backend, engine);
        let log = Log::default();
        let first = Coroutine::new(reader(engine, &log, 0));
        first.enter();
        backend.script.complete_on_submit(1, 2);
        backend.script.on_next_peek(|| panic!("a bad ring"));
        let second = Coroutine::new(reader(engine, &log, 4));
        assert_eq!(panic_of(|| second.enter()), "a bad ring");
        assert_eq!((log.take().as_str(), backend.transcript().as_str()), ("bbbb", "0>1 4>1 wait"));
        assert_eq!(backend.script.in_flight(), 0);
    });
}

/// A value that writes in its destructor and logs the result.
struct WritesAtTheEnd(Watch, Log, u64);

impl Drop for WritesAtTheEnd {
    fn drop(&mut self) {
        self.1.add(format!("{:?}", write(&self.0, b"last", self.2)));
    }
}

#[test]
fn destructor_does_io_in_place() {
    // E13, C9: a destructor that runs while its stack unwinds cannot be suspended; its write
    // completes before the destructor continues
    let log = Log::default();
    let backend = with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        let (panics, left) =
            (WritesAtTheEnd(engine.clone(), log.clone(), 0), WritesAtTheEnd(engine.clone(), log.clone(), 4));
        // By a panic: the other coroutine, whose read completes meanwhile, is woken and runs later.
        let other = spawn(reader(engine, &log, 8));
        let bad = spawn(move || {
            let _panics = panics;
            panic!("with a destructor that writes");
        });
        assert_eq!(text(&*bad.join().unwrap_err()), "with a destructor that writes");
        assert_eq!(backend.script.disk(), b"lastbbbbcccc");
        other.join().unwrap();
        assert_eq!(log.take(), "Ok(4) Ok(4) cccc");
        // By the end of the context.
        drop(spawn(move || {
            let _left = left;
            suspend();
        }));
        context.poll(false);
        backend.clone()
    });
    assert_eq!(log.take(), "Ok(4)");
    assert_eq!(backend.script.disk(), b"lastlastcccc");
}

#[test]
fn io_after_a_cancel_fails() {
    // E13, C9: code that catches the unwinding and does I/O again has it done in place, and is
    // still unwound afterwards
    let log = Log::default();
    let ended = Rc::new(Cell::new(0));
    let backend = with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        let (engine, log, ended) = (engine.clone(), log.clone(), Rc::clone(&ended));
        drop(spawn(move || {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| touch(&engine, 0)));
            assert!(caught.unwrap_err().is::<Cancelled>());
            reader(&engine, &log, 4)();
            ended.set(ended.get() + 1);
        }));
        context.poll(false);
        backend.clone()
    });
    assert_eq!((log.take().as_str(), ended.get()), ("Ok(4) bbbb", 1));
    assert_eq!(backend.transcript(), "0>1 wait 4>1 wait");
}

#[test]
fn no_other_thread_reaps_during_a_wait_in_place() {
    // E13, E9: another thread cannot poll while a destructor waits in place: it would take the
    // completion and leave the sleeper asleep
    with_engine(8, |context, backend, engine| {
        fill(backend, engine);
        let log = Log::default();
        let (go, wait_for_go) = channel();
        let (done, wait_for_done) = channel();
        let foreign = thread::spawn({
            let (context, log) = (context.clone(), log.clone());
            move || {
                wait_for_go.recv().unwrap();
                log.add(if context.try_acquire().is_some() { "came in" } else { "locked out" });
                done.send(()).unwrap();
            }
        });
        backend.on_next_wait(move || {
            go.send(()).unwrap();
            wait_for_done.recv().unwrap();
        });
        let at_the_end = WritesAtTheEnd(engine.clone(), log.clone(), 0);
        // Entered outside the loop, which would hold the lock anyway.
        let co = Coroutine::new(move || {
            let _at_the_end = at_the_end;
            panic!("outside the loop");
        });
        assert_eq!(panic_of(|| co.enter()), "outside the loop");
        assert_eq!(log.take(), "locked out Ok(4)");
        foreign.join().unwrap();
    });
}

#[test]
fn unwound_request_releases_its_slot() {
    // E13, X8: I/O under the context's lock panics where the coroutine would yield; the request is
    // taken back and its slot freed
    with_engine(8, |_, backend, engine| {
        fill(backend, engine);
        let log = Log::default();
        for _ in 0..500 {
            let (engine, log) = (engine.clone(), log.clone());
            let task = spawn(move || {
                let context = AioContext::current().unwrap();
                let mut lent = Lent { buf: *b"new.", log };
                let _guard = context.acquire();
                let _ = read(&engine, &mut lent.buf, 4);
            });
            let message = text(&*task.join().unwrap_err());
            assert!(message.contains("yields while it holds the context's lock"), "{message}");
        }
        assert_eq!(log.take(), ["new."; 500].join(" "));
        assert_eq!(backend.slots(), 1);
        assert_eq!((engine.stats().in_flight, engine.stats().pending), (0, 0));
    });
}
