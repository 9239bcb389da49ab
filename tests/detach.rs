//! Rule E12: an engine moves from one context to another with requests pending and in flight, and
//! none is lost.

mod common;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use coralio_aio::kernel::io_uring::IoUring;
use coralio_aio::kernel::linux_aio::LinuxAio;
use coralio_aio::kernel::scripted::Scripted;
use coralio_aio::kernel::threads::Threads;
use coralio_aio::kernel::{Kernel, Opcode, Operation};
use coralio_aio::{
    AioContext, AlignedBuf, Cancelled, Detached, DetachedEngine, Direct, Engine, File, JoinHandle, KernelChoice,
    Runner, shield, spawn, suspend,
};

use common::skipped;

const BLOCK: usize = 512;

/// Returns the byte that fills block number `block`.
fn byte_of(block: usize) -> u8 {
    block as u8 + 1
}

fn read<K: Kernel>(engine: &Engine<K>, fd: i32, buf: &mut [u8], offset: usize) -> io::Result<usize> {
    let (addr, len, offset) = (buf.as_mut_ptr() as u64, buf.len() as u64, offset as u64);
    // SAFETY: the buffer is borrowed until this returns or unwinds.
    unsafe { engine.transfer(&Operation { opcode: Opcode::Read, fd, addr, len, offset }) }
}

/// Spawns a coroutine that reads one block and checks its content.
fn reader<K: Kernel>(engine: &Arc<Engine<K>>, fd: i32, block: usize) -> JoinHandle<()> {
    let engine = Arc::clone(engine);
    spawn(move || {
        let mut buf = AlignedBuf::new(BLOCK, BLOCK);
        assert_eq!(read(&engine, fd, &mut buf, block * BLOCK).unwrap(), BLOCK);
        assert!(buf.iter().all(|&byte| byte == byte_of(block)), "block {block}");
    })
}

fn state<K: Kernel>(engine: &Engine<K>) -> (u32, u32) {
    let stats = engine.stats();
    (stats.in_flight, stats.pending)
}

/// Returns a scripted kernel whose disk has `blocks` blocks.
fn scripted(capacity: u32, blocks: usize) -> Scripted {
    let kernel = Scripted::new(capacity);
    AioContext::run(|_| {
        let engine = Engine::<_>::attach(kernel.clone(), capacity).unwrap();
        let data: Vec<_> = (0..blocks * BLOCK).map(|i| byte_of(i / BLOCK)).collect();
        let (addr, len) = (data.as_ptr() as u64, data.len() as u64);
        let write = Operation { opcode: Opcode::Write, fd: 0, addr, len, offset: 0 };
        // SAFETY: the data outlives the coroutine, which is joined.
        spawn(move || unsafe { engine.transfer(&write) }.unwrap()).join().unwrap();
    });
    kernel
}

/// Runs `far` in another thread's context, with a receiver, and `near` in a context of this thread,
/// with its sender.
fn with_another<T: Send, R>(
    far: impl FnOnce(&AioContext, Receiver<T>) + Send,
    near: impl FnOnce(&AioContext, Sender<T>) -> R,
) -> R {
    let (send, receive) = channel();
    thread::scope(|scope| {
        scope.spawn(move || AioContext::run(|context| far(context, receive)));
        AioContext::builder().unwind_report(false).run(|context| near(context, send)).unwrap()
    })
}

#[test]
fn pending_and_in_flight_go_along() {
    // E12: an engine with two requests in flight and two pending moves to another thread's context,
    // which submits and reaps them; their coroutines finish on their home thread
    let kernel = scripted(2, 4);
    let before = kernel.taken();
    with_another(
        |context, receive: Receiver<Detached<Scripted>>| {
            let engine = receive.recv().unwrap().attach().unwrap();
            assert_eq!(state(&engine), (2, 2));
            while state(&engine) != (0, 0) {
                context.poll(true);
            }
            assert_eq!(engine.stats().completions, 4);
        },
        |context, send| {
            let engine = Engine::attach(kernel.clone(), 2).unwrap();
            let readers: Vec<_> = (0..4).map(|block| reader(&engine, 0, block)).collect();
            context.poll(false);
            assert_eq!(state(&engine), (2, 2));
            let detached = engine.detach().unwrap();
            assert!(context.source().is_none());
            assert!(!context.poll(false), "a detached engine makes no progress");
            send.send(detached).unwrap();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        },
    );
    assert_eq!(kernel.taken() - before, 4);
}

#[test]
fn there_and_back_a_hundred_times() {
    // E12: an engine moves back and forth between two contexts, whose coroutines read through it
    // whenever it is there; every read returns its data, whichever context reaped it
    const ROUNDS: usize = 100;
    let (to_far, at_far) = channel::<(usize, Detached<Scripted>)>();
    let (to_near, at_near) = channel::<(usize, Detached<Scripted>)>();
    let play = |inbox: Receiver<(usize, Detached<Scripted>)>, outbox: Sender<(usize, Detached<Scripted>)>| {
        AioContext::run(|context| {
            let mut readers = Vec::new();
            for (round, detached) in inbox {
                let engine = detached.attach().unwrap();
                readers.extend((0..3).map(|block| reader(&engine, 0, block)));
                // The number of polls varies, so the engine moves with more or less of its work
                // done.
                (0..=round % 4).for_each(|_| _ = context.poll(false));
                let detached = engine.detach().unwrap();
                if round == ROUNDS || outbox.send((round + 1, detached)).is_err() {
                    break;
                }
            }
            drop(outbox);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    };
    let first = AioContext::run(|_| Engine::<_>::attach(scripted_later(2, 3), 2).unwrap().detach().unwrap());
    to_far.send((0, first)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| play(at_far, to_near));
        scope.spawn(|| play(at_near, to_far));
    });
}

/// Calls `scripted` on another thread, for callers that already run a context.
fn scripted_later(capacity: u32, blocks: usize) -> Scripted {
    thread::spawn(move || scripted(capacity, blocks)).join().unwrap()
}

#[test]
fn from_within_a_completion() {
    // E12, E5: a coroutine woken by a completion may detach the engine, because the reap is over by
    // then; in a poll nested within the reap it is not, and detaching is refused
    let kernel = scripted(4, 4);
    AioContext::run(|context| {
        let engine = Engine::<_>::attach(kernel, 4).unwrap();
        let other = reader(&engine, 0, 1);
        let nested = spawn({
            let (engine, context) = (Arc::clone(&engine), context.clone());
            move || {
                read(&engine, 0, &mut [0; BLOCK], 0).unwrap();
                // Within the reap that has just woken this coroutine.
                let inner = spawn({
                    let engine = Arc::clone(&engine);
                    move || engine.detach().map(drop).unwrap_err()
                });
                while !inner.is_finished() {
                    context.poll(false);
                }
                inner.join().unwrap()
            }
        });
        let error = nested.join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        other.join().unwrap();
        let detacher = spawn({
            let engine = Arc::clone(&engine);
            move || {
                read(&engine, 0, &mut [0; BLOCK], 0).unwrap();
                engine.detach().unwrap()
            }
        });
        let late = reader(&engine, 0, 2);
        let detached = detacher.join().unwrap();
        let engine = detached.attach().unwrap();
        late.join().unwrap();
        assert_eq!(state(&engine), (0, 0));
    });
}

#[test]
fn dropped_it_waits() {
    // E12, E13: dropping a detached engine first completes all its requests, pending ones included
    let kernel = scripted(2, 4);
    AioContext::run(|context| {
        let engine = Engine::<_>::attach(kernel.clone(), 2).unwrap();
        let readers: Vec<_> = (0..4).map(|block| reader(&engine, 0, block)).collect();
        context.poll(false);
        drop(engine.detach().unwrap());
        assert_eq!((state(&engine), kernel.in_flight()), ((0, 0), 0));
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn context_does_not_give_up_an_engine_with_files() {
    // E12: AioContext::detach is refused, whatever the kernel, since no loop would complete the requests; the files go on
    let path = std::env::temp_dir().join(format!("coralio-kept-{}", std::process::id()));
    fs::write(&path, [7; BLOCK]).unwrap();
    for kernel in [KernelChoice::Auto, KernelChoice::Threads] {
        Runner::new()
            .kernel(kernel)
            .run(|| {
                let file = File::open(&path).unwrap();
                let error = AioContext::current().unwrap().detach().map(drop).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                assert!(error.to_string().contains("use Engine::detach"), "{error}");
                let mut buf = [0; BLOCK];
                file.read_exact_at(&mut buf, 0).unwrap();
                assert_eq!(buf, [7; BLOCK]);
            })
            .unwrap();
    }
    fs::remove_file(path).unwrap();
    coralio_aio::simulate::simulate(0..1, |_| {
        assert!(AioContext::current().unwrap().detach().is_err());
        Ok(())
    });
}

#[test]
fn detached_while_the_mail_is_read() {
    // E12, E5: a coroutine that is cancelled in transit runs while the loop goes through what else is to be cancelled. It may not
    // take the engine away from beneath the loop: its detach waits until the loop is through
    let kernel = scripted(1, 4);
    kernel.hold(1);
    AioContext::run(|context| {
        let engine = Engine::attach(kernel.clone(), 1).unwrap();
        let log = Rc::new(RefCell::new(Vec::new()));
        let held = reader(&engine, 0, 0);
        let [first, second] = [1, 2].map(|block| {
            let (engine, log) = (Arc::clone(&engine), Rc::clone(&log));
            spawn(move || {
                let error = read(&engine, 0, &mut [0; BLOCK], block * BLOCK).unwrap_err();
                assert!(Cancelled::is_cause_of(&error), "{error}");
                log.borrow_mut().push("cancelled");
                (block == 1).then(|| {
                    shield(|| {
                        let detached = engine.detach().unwrap();
                        log.borrow_mut().push("detached");
                        detached
                    })
                })
            })
        });
        context.poll(false);
        assert_eq!(state(&engine), (1, 2));
        let detached = engine.detach().unwrap();
        first.cancel();
        second.cancel();
        assert!(!first.is_finished() && !second.is_finished());
        drop(detached.attach().unwrap());
        while !first.is_finished() {
            context.poll(false);
        }
        assert_eq!(*log.borrow(), ["cancelled", "cancelled", "detached"]);
        let detached = first.join().unwrap().unwrap();
        assert!(second.join().unwrap().is_none());
        drop(detached.attach().unwrap());
        kernel.release(1);
        held.join().unwrap();
    });
}

#[test]
fn unwound_while_it_is_in_transit() {
    // E12, E13, C9: a context ends while its engine is in transit and no other context will reap: a
    // stack that lent a buffer is unwound only after the kernel returned it, and pending requests
    // are taken back
    let kernel = scripted(2, 4);
    let engine = AioContext::builder()
        .unwind_report(false)
        .run(|context| {
            let engine = Engine::<_>::attach(kernel.clone(), 2).unwrap();
            let readers: Vec<_> = (0..4).map(|block| reader(&engine, 0, block)).collect();
            context.poll(false);
            drop(readers);
            let detached = engine.detach().unwrap();
            // The coroutine that is unwound last owns the engine.
            drop(spawn(move || {
                suspend();
                drop(detached);
            }));
            context.poll(false);
            engine
        })
        .unwrap();
    assert_eq!((state(&engine), kernel.in_flight()), ((0, 0), 0));
    assert_eq!(engine.stats().completions, 2);
}

#[test]
fn unwound_while_another_has_it() {
    // E12, E13, C9: a context ends while another thread's context has its engine: its stacks get
    // their lent buffers back before they are unwound
    struct Lent(Box<[u8; BLOCK]>, Arc<AtomicBool>);
    impl Drop for Lent {
        fn drop(&mut self) {
            self.1.store(self.0.iter().all(|&byte| byte == byte_of(1)), Ordering::Relaxed);
        }
    }
    let kernel = scripted(2, 4);
    kernel.hold(kernel.taken());
    let (filled, number) = (Arc::new(AtomicBool::new(false)), kernel.taken());
    let (ends, ending) = channel::<()>();
    let (attaches, attached) = channel::<()>();
    let released = kernel.clone();
    with_another(
        move |context, receive: Receiver<Detached<Scripted>>| {
            let engine = receive.recv().unwrap().attach().unwrap();
            attaches.send(()).unwrap();
            ending.recv().unwrap();
            released.release(number);
            while state(&engine) != (0, 0) {
                context.poll(true);
            }
        },
        |context, send| {
            let engine = Engine::<_>::attach(kernel, 2).unwrap();
            drop(spawn({
                let (engine, filled) = (Arc::clone(&engine), Arc::clone(&filled));
                move || {
                    let mut lent = Lent(Box::new([0; BLOCK]), filled);
                    let _ = read(&engine, 0, &mut lent.0[..], BLOCK);
                }
            }));
            context.poll(false);
            assert_eq!(state(&engine), (1, 0));
            send.send(engine.detach().unwrap()).unwrap();
            attached.recv().unwrap();
            ends.send(()).unwrap();
        },
    );
    assert!(filled.load(Ordering::Relaxed));
}

#[test]
fn the_context_that_has_it_ends() {
    // E12, E13: a context that ends with another context's requests in its engine first completes
    // them
    let kernel = scripted(1, 3);
    with_another(
        |_, receive: Receiver<Detached<Scripted>>| drop(receive.recv().unwrap().attach().unwrap()),
        |context, send| {
            let engine = Engine::<_>::attach(kernel.clone(), 1).unwrap();
            let readers: Vec<_> = (0..3).map(|block| reader(&engine, 0, block)).collect();
            context.poll(false);
            send.send(engine.detach().unwrap()).unwrap();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        },
    );
    assert_eq!(kernel.in_flight(), 0);
}

#[test]
fn one_engine_each() {
    // E1, E12, E14: the old context may attach another engine, and calls on the engine that left
    // report this; a context that already has an engine returns a second one to the caller
    let kernel = scripted(2, 2);
    AioContext::run(|_| {
        let engine = Engine::<_>::attach(kernel.clone(), 2).unwrap();
        let detached = engine.detach().unwrap();
        let error = engine.detach().unwrap_err();
        assert!(error.to_string().contains("not attached to this thread's context"), "{error}");
        let gone = spawn(move || read(&engine, 0, &mut [0; BLOCK], 0).unwrap_err());
        assert_eq!(gone.join().unwrap().raw_os_error(), Some(libc::ENOTCONN));
        let second = Engine::<_>::attach(kernel.clone(), 2).unwrap();
        reader(&second, 0, 1).join().unwrap();
        let refused = detached.attach().unwrap_err();
        assert_eq!(refused.error.kind(), io::ErrorKind::AlreadyExists);
        drop(second.detach().unwrap());
        let first = refused.detached.attach().unwrap();
        reader(&first, 0, 1).join().unwrap();
    });
}

/// A file of `blocks` blocks, removed on drop.
struct Temp(PathBuf);

impl Temp {
    fn new(place: &Path, blocks: usize) -> Temp {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temp = Temp(place.join(format!("coralio-detach-{}-{number}", std::process::id())));
        fs::write(&temp.0, (0..blocks * BLOCK).map(|i| byte_of(i / BLOCK)).collect::<Vec<_>>()).unwrap();
        temp
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Moves an engine on a real kernel back and forth, with reads of `file` pending and in flight.
fn moves<K: Kernel>(kernel: K, file: &fs::File, blocks: usize) {
    let fd = file.as_raw_fd();
    let (to_far, at_far) = channel::<(usize, Detached<K>)>();
    let (to_near, at_near) = channel::<(usize, Detached<K>)>();
    let play = |inbox: Receiver<(usize, Detached<K>)>, outbox: Sender<(usize, Detached<K>)>| {
        AioContext::run(|context| {
            let mut readers = Vec::new();
            for (round, detached) in inbox {
                let engine = detached.attach().unwrap();
                readers.extend((0..24).map(|n| reader(&engine, fd, (round * 7 + n) % blocks)));
                context.poll(round % 3 == 2);
                let detached = engine.detach().unwrap();
                if round == 200 || outbox.send((round + 1, detached)).is_err() {
                    break;
                }
            }
            drop(outbox);
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    };
    let first = AioContext::run(|_| Engine::<_>::attach(kernel, 8).unwrap().detach().unwrap());
    to_far.send((0, first)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| play(at_far, to_near));
        scope.spawn(|| play(at_near, to_far));
    });
}

fn on_real_files(each: impl Fn(&fs::File, usize)) {
    use std::os::unix::fs::OpenOptionsExt;
    const BLOCKS: usize = 64;
    for (place, flags) in
        [(std::env::temp_dir(), libc::O_DIRECT), (std::env::temp_dir(), 0), (PathBuf::from("/dev/shm"), 0)]
    {
        let temp = Temp::new(&place, BLOCKS);
        match fs::OpenOptions::new().read(true).custom_flags(flags).open(&temp.0) {
            Ok(file) => each(&file, BLOCKS),
            Err(error) => skipped(format_args!("{}: {error}", place.display())),
        }
    }
}

#[test]
fn on_native_aio() {
    // E12: an engine on native AIO moves between two contexts with requests of both pending and in
    // flight
    on_real_files(|file, blocks| match LinuxAio::new(8) {
        Ok(kernel) => moves(kernel, file, blocks),
        Err(error) => skipped(error),
    });
}

#[test]
fn on_threads() {
    // E12: as on native AIO
    on_real_files(|file, blocks| moves(Threads::new(8).unwrap(), file, blocks));
}

#[test]
fn on_io_uring() {
    // E12: as on native AIO, although a request is cancelled when the thread that submitted it
    // exits: no thread ends before the requests that it may have submitted are done
    on_real_files(|file, blocks| match IoUring::new(8) {
        Ok(kernel) => moves(kernel, file, blocks),
        Err(error) => skipped(error),
    });
}

#[test]
fn cancelled_from_abroad() {
    // E11, E12: a coroutine whose request moved to another thread's context is cancelled there: a
    // pending request never reaches the kernel; for one in flight, the kernel is asked to cancel
    let kernel = match IoUring::new(1) {
        Ok(kernel) => kernel,
        Err(error) => return skipped(error),
    };
    // SAFETY: no memory is involved; the descriptor is new and owned here alone.
    let never = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) };
    let fd = never.as_raw_fd();
    with_another(
        |context, receive: Receiver<Detached<IoUring>>| {
            let engine = receive.recv().unwrap().attach().unwrap();
            while state(&engine) != (0, 0) {
                context.poll(true);
            }
            assert_eq!((engine.stats().requests, engine.stats().completions), (2, 1));
        },
        |context, send| {
            let engine = Engine::<_>::attach(kernel, 1).unwrap();
            let readers = [(); 2].map(|()| {
                let engine = Arc::clone(&engine);
                spawn(move || read(&engine, fd, &mut [0; 8], 0).unwrap_err())
            });
            context.poll(false);
            assert_eq!(state(&engine), (1, 1));
            send.send(engine.detach().unwrap()).unwrap();
            // In either order: the second is pending as long as the first is in flight.
            let [first, second] = readers;
            second.cancel();
            assert!(Cancelled::is_cause_of(&second.join().unwrap()));
            first.cancel();
            assert!(Cancelled::is_cause_of(&first.join().unwrap()));
        },
    );
}

#[test]
fn a_device_goes_to_another_thread() {
    // E12, E14, E16: engine and file move from one thread's context to another's, as in a server,
    // on each backend; a file left behind reports that its engine was detached
    for choice in [KernelChoice::Aio, KernelChoice::Uring, KernelChoice::Threads] {
        let temp = Temp::new(&std::env::temp_dir(), 64);
        let (send, receive) = channel::<(DetachedEngine, coralio_aio::DetachedFile)>();
        let far = thread::spawn(move || {
            let Ok((engine, file)) = receive.recv() else { return };
            AioContext::builder()
                .run_coroutine(|_| {
                    engine.attach().unwrap();
                    let file = file.attach().unwrap();
                    let mut buf = [0; BLOCK];
                    file.read_exact_at(&mut buf, 5 * BLOCK as u64).unwrap();
                    assert!(buf.iter().all(|&byte| byte == byte_of(5)));
                    assert_eq!(coralio_aio::stats().in_flight, 0);
                    assert!(file.as_fd().as_raw_fd() >= 0);
                })
                .unwrap();
        });
        let ran = Runner::new().kernel(choice).run(|| {
            let open = || File::options().read(true).direct(Direct::Auto).open(&temp.0).unwrap();
            let (goes, stays) = (open(), Rc::new(open()));
            let waits = spawn({
                let file = Rc::clone(&stays);
                move || {
                    let mut buf = [0; BLOCK];
                    file.read_exact_at(&mut buf, 0).map(|()| buf[0])
                }
            });
            send.send((coralio_aio::detach().unwrap(), goes.detach())).unwrap();
            // The read either completed before the engine left, or reports that it left.
            match waits.join().unwrap() {
                Ok(first) => assert_eq!(first, byte_of(0)),
                Err(error) => assert!(error.to_string().contains("engine detached"), "{error}"),
            }
            let error = stays.read_at(&mut [0; BLOCK], 0).unwrap_err().to_string();
            assert!(error.contains("has its engine detached") && error.contains("File::detach"), "{error}");
        });
        if let Err(error) = ran {
            skipped(error);
        }
        drop(send);
        far.join().unwrap();
    }
}
