//! Watches: handlers of ready descriptors; removed, changed and polling within themselves.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use crate::common::{Log, panic_of};
use coralio_runtime::{AioContext, EventNotifier, FdHandler, Interest, spawn, wait_readable};

/// Both ends, blocking: a handler that reads without data would hang.
fn pair() -> (Arc<UnixStream>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Arc::new(ours), theirs)
}

fn read_byte(mut from: &UnixStream) -> u8 {
    let mut byte = [0];
    from.read_exact(&mut byte).unwrap();
    byte[0]
}

/// Starts a thread that queues work for the loop when asked to.
fn queues_when_asked(ctx: &AioContext) -> (mpsc::Sender<()>, thread::JoinHandle<()>) {
    let (ask, asked) = mpsc::channel();
    let ctx = ctx.clone();
    let queues = move || {
        asked.recv().unwrap();
        ctx.schedule_oneshot(|| {}).unwrap();
    };
    (ask, thread::spawn(queues))
}

#[test]
fn handler_is_called_while_its_fd_is_ready() {
    // X4: a read handler is called while there is data to read, and not once more
    AioContext::run(|ctx| {
        let log = Log::default();
        let (ours, mut theirs) = pair();
        let _watch = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, {
            let log = log.clone();
            move |ready| {
                assert!(ready.readable && !ready.writable);
                log.add(read_byte(&ours));
            }
        });
        assert!(!ctx.poll(false));
        theirs.write_all(&[1, 2]).unwrap();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "1");
        assert!(ctx.poll(true));
        assert_eq!(log.take(), "2");
        assert!(!ctx.poll(false));
        // Woken from its sleep: once for one byte.
        let sender = thread::spawn(move || {
            theirs.write_all(&[3]).unwrap();
            theirs
        });
        while !ctx.poll(true) {}
        assert_eq!(log.take(), "3");
        drop(sender.join().unwrap());
    });
}

#[test]
fn interest_can_be_changed_at_any_time() {
    // X4: interest can be changed at any time, within the handler too: write, read, both, none
    AioContext::run(|ctx| {
        let log = Log::default();
        let (ours, mut theirs) = pair();
        let watch = ctx.add_fd_handler_with(Arc::clone(&ours), Interest::Write, {
            let (log, ours) = (log.clone(), Arc::clone(&ours));
            move |own, ready| {
                log.add(format_args!("r{}w{}", u8::from(ready.readable), u8::from(ready.writable)));
                if ready.readable {
                    read_byte(&ours);
                }
                own.set_interest(if ready.readable { Interest::Disabled } else { Interest::Read }).unwrap();
            }
        });
        let watch = watch.unwrap();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "r0w1");
        assert!(!ctx.poll(false));
        theirs.write_all(&[1, 2]).unwrap();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "r1w0");
        assert!(!ctx.poll(false), "a byte is available, but no handler is interested");
        watch.set_interest(Interest::ReadWrite).unwrap();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "r1w1");
    });
}

#[test]
fn handler_removed_in_the_same_iteration_is_not_called() {
    // X4: a watch that was reported with others, and removed by the first handler, is not called
    // any more
    AioContext::run(|ctx| {
        let calls = Arc::new(AtomicUsize::new(0));
        let watches = Arc::new(Mutex::new(Vec::<FdHandler>::new()));
        let mut ends = Vec::new();
        for _ in 0..3 {
            let (ours, mut theirs) = pair();
            theirs.write_all(&[1]).unwrap();
            let watch = ctx.add_fd_handler(ours, Interest::Read, {
                let (calls, watches) = (Arc::clone(&calls), Arc::clone(&watches));
                move |_| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    let all = std::mem::take(&mut *watches.lock().unwrap());
                    drop(all);
                }
            });
            watches.lock().unwrap().push(watch.unwrap());
            ends.push(theirs);
        }
        assert!(ctx.poll(false));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert!(!ctx.poll(false));
    });
}

#[test]
fn polling_handler_is_not_reentered() {
    // X4: a handler that polls is not entered again by that poll, which sleeps although the
    // descriptor is still ready
    AioContext::run(|ctx| {
        let log = Log::default();
        let (ours, mut theirs) = pair();
        let (ask, helper) = queues_when_asked(ctx);
        let _watch = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, {
            let (log, ctx) = (log.clone(), ctx.clone());
            move |_| {
                log.add("(");
                assert!(!ctx.poll(false));
                ask.send(()).unwrap();
                // Only the one-shot can end this poll; the unread byte must not.
                assert!(ctx.poll(true));
                log.add(read_byte(&ours));
                log.add(")");
            }
        });
        theirs.write_all(&[7]).unwrap();
        assert!(ctx.poll(true));
        assert_eq!(log.take(), "( 7 )");
        helper.join().unwrap();
        theirs.write_all(&[8]).unwrap();
        // It is watched again afterwards; this time `ask` has no receiver.
        let said = panic_of(|| ctx.poll(true));
        assert!(said.contains("SendError"), "{said}");
    });
}

#[test]
fn poll_in_a_handler_of_a_closed_fd_sleeps() {
    // X4: nor does a hang-up, which interest cannot mask, keep a poll within the handler from
    // sleeping
    AioContext::run(|ctx| {
        let (ours, theirs) = pair();
        let (ask, helper) = queues_when_asked(ctx);
        let polls = ctx.clone();
        let _watch = ctx.add_fd_handler_with(ours, Interest::Read, move |own, ready| {
            assert!(ready.readable);
            ask.send(()).unwrap();
            assert!(polls.poll(true), "it ran the one-shot before it returned");
            own.delete();
        });
        drop(theirs);
        assert!(ctx.poll(true));
        helper.join().unwrap();
        assert!(ctx.fd_handlers().is_empty());
    });
}

#[test]
fn nested_poll_serves_other_handlers_once() {
    // X2: a nested poll serves descriptors that the outer iteration had reported, once, and the
    // outer iteration does not serve them again
    AioContext::run(|ctx| {
        let log = Log::default();
        let mut ends = Vec::new();
        let mut watches = Vec::new();
        for _ in 0..4 {
            let (ours, mut theirs) = pair();
            theirs.write_all(&[1]).unwrap();
            ends.push(theirs);
            let (log, ctx_in) = (log.clone(), ctx.clone());
            watches.push(ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, move |_| {
                log.add(read_byte(&ours));
                ctx_in.poll(false);
                log.add(".");
            }));
        }
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "1 1 1 1 . . . .");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn bottom_halves_do_not_starve_a_ready_fd() {
    // X4: a ready descriptor is served although a bottom half reschedules itself forever, even by
    // non-blocking polls alone
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let busy = ctx.new_bottom_half_with(|own| own.schedule()).unwrap();
        busy.schedule();
        let served = Arc::new(AtomicBool::new(false));
        let _watch = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, {
            let served = Arc::clone(&served);
            move |_| {
                read_byte(&ours);
                served.store(true, Ordering::Relaxed);
            }
        });
        for blocking in [false, true, false] {
            theirs.write_all(&[1]).unwrap();
            let mut polls = 0;
            while !served.swap(false, Ordering::Relaxed) {
                assert!(ctx.poll(blocking));
                polls += 1;
                assert!(polls <= 16, "starved for {polls} polls");
            }
        }
    });
}

#[test]
fn errors_name_cause_and_remedy() {
    // X4: a descriptor that cannot be watched, or is watched already, is an error with the remedy
    AioContext::run(|ctx| {
        let (ours, _theirs) = pair();
        let _watch = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, |_| {}).unwrap();
        let twice = ctx.add_fd_handler(Arc::clone(&ours), Interest::Read, |_| {}).unwrap_err();
        assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
        assert!(twice.to_string().contains("change the interest of the existing watch"), "{twice}");
        let regular = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let refused = ctx.add_fd_handler(regular, Interest::Read, |_| {}).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        assert!(refused.to_string().contains("regular files"), "{refused}");
        assert!(!ctx.poll(false));
    });
}

/// Owns a context that it uses when dropped: it registers, removes and reads watches.
struct Busybody(AioContext, Vec<FdHandler>);

impl Drop for Busybody {
    fn drop(&mut self) {
        self.1.clear();
        let (near, _far) = UnixStream::pair().unwrap();
        drop(self.0.add_fd_handler(near, Interest::Read, |_| {}));
        self.0.fd_handlers();
    }
}

#[test]
fn rejected_handler_is_dropped_outside_lock() {
    // X4: the handler and the owner of a descriptor that the kernel rejects are dropped while no
    // lock is held: their destructors remove and add watches
    AioContext::run(|ctx| {
        let watched = || {
            let (near, _far) = UnixStream::pair().unwrap();
            ctx.add_fd_handler(near, Interest::Read, |_| {}).unwrap()
        };
        for interest in [Interest::Read, Interest::Disabled] {
            let keeps = Busybody(ctx.clone(), vec![watched()]);
            let regular = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
            let refused = ctx.add_fd_handler(regular, interest, move |_| _ = &keeps).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
            assert!(ctx.fd_handlers().is_empty());
        }
    });
}

/// Reads its context's watches in `as_fd`, and when dropped.
struct Curious(UnixStream, AioContext, Arc<AtomicUsize>);

impl AsFd for Curious {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.1.fd_handlers();
        self.2.fetch_add(1, Ordering::Relaxed);
        self.0.as_fd()
    }
}

impl Drop for Curious {
    fn drop(&mut self) {
        self.1.fd_handlers();
    }
}

#[test]
fn as_fd_is_not_called_under_lock() {
    // X4: `as_fd` is user code, and may use the context's watches; it is called once, and not under
    // the lock
    let asked = Arc::new(AtomicUsize::new(0));
    AioContext::run(|ctx| {
        let watch_one = || {
            let (near, far) = UnixStream::pair().unwrap();
            drop(far);
            let polls = ctx.clone();
            let mut helper = Some(queues_when_asked(ctx));
            ctx.add_fd_handler_with(Curious(near, ctx.clone(), Arc::clone(&asked)), Interest::Read, move |own, _| {
                let (ask, helper) = helper.take().unwrap();
                ask.send(()).unwrap();
                // It sleeps, so the descriptor is masked.
                while !polls.poll(true) {}
                helper.join().unwrap();
                own.set_interest(Interest::Disabled).unwrap();
            })
            .unwrap()
        };
        let (removed, kept) = (watch_one(), watch_one());
        while ctx.fd_handlers().iter().any(|watch| watch.interest != Interest::Disabled) {
            ctx.poll(true);
        }
        ctx.dump();
        drop(removed);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        std::mem::forget(kept);
    });
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[test]
fn fd_handler_deletes_itself() {
    // X4: a handler that receives its own handle ends the watch: it is not called again, its
    // closure is dropped when it has returned, and the remaining handle does nothing, even when
    // another watch has reused the index
    AioContext::run(|ctx| {
        let log = Log::default();
        let (near, far) = pair();
        let watch = ctx.add_fd_handler_with(Arc::clone(&near), Interest::Read, {
            let (log, drops) = (log.clone(), log.on_drop("dropped"));
            move |own, ready| {
                let _ = &drops;
                assert!(ready.readable);
                own.delete();
                own.delete();
                log.add("called");
            }
        });
        let watch = watch.unwrap();
        drop(far);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "called dropped");
        assert!(!ctx.poll(false) && ctx.fd_handlers().is_empty());
        assert_eq!(Arc::strong_count(&near), 1);
        let logged = log.clone();
        let _next = ctx.add_fd_handler(Arc::clone(&near), Interest::Read, move |_| logged.add("next")).unwrap();
        watch.set_interest(Interest::Disabled).unwrap();
        drop(watch);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "next");
    });
}

#[test]
fn event_notifier_calls_its_handler_once_for_each_event() {
    // X4: an event set several times by another thread is one call; it is cleared before the call,
    // so setting it within the handler causes another call
    AioContext::run(|ctx| {
        let event = Arc::new(EventNotifier::new().unwrap());
        let log = Log::default();
        let watch = ctx.add_event_notifier(Arc::clone(&event), {
            let (event, log) = (Arc::clone(&event), log.clone());
            let mut again = true;
            move || {
                log.add("event");
                if std::mem::take(&mut again) {
                    event.notify();
                }
            }
        });
        let watch = watch.unwrap();
        assert!(!ctx.poll(false));
        thread::scope(|scope| {
            scope.spawn(|| (0..3).for_each(|_| event.notify()));
            while log.take().is_empty() {
                ctx.poll(true);
            }
        });
        while ctx.poll(false) {}
        assert!(!event.test_and_clear(), "the handler's own event was served");
        drop(watch);
        event.notify();
        assert!(!ctx.poll(false));
        assert!(event.test_and_clear() && !event.test_and_clear());
        assert_eq!(Arc::strong_count(&event), 1);
        // A coroutine waits for it.
        let waits = spawn({
            let event = Arc::clone(&event);
            move || wait_readable(&*event).map(|()| event.test_and_clear())
        });
        assert!(ctx.poll(false));
        assert!(!waits.is_finished());
        event.notify();
        assert!(waits.join().unwrap().unwrap());
    });
}

#[test]
fn fd_handlers_are_listed() {
    // X11: the list shows each watch with its descriptor, interest and place, and which handler is
    // running
    AioContext::run(|ctx| {
        let (near, far) = UnixStream::pair().unwrap();
        let fd = near.as_raw_fd();
        let (seen, lists) = (Arc::new(AtomicBool::new(false)), ctx.clone());
        let looked = Arc::clone(&seen);
        let look = move |_| {
            assert!(lists.fd_handlers()[0].is_running);
            looked.store(true, Ordering::Relaxed);
        };
        let line = line!() + 1;
        let watch = ctx.add_fd_handler(near, Interest::Read, look).unwrap();
        let listed = ctx.fd_handlers();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].fd, listed[0].interest, listed[0].is_running), (fd, Interest::Read, false));
        assert_eq!((listed[0].created_at.file(), listed[0].created_at.line()), (file!(), line));
        drop(far);
        assert!(ctx.poll(false) && seen.load(Ordering::Relaxed));
        drop(watch);
        assert!(ctx.fd_handlers().is_empty());
    });
}
