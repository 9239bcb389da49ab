//! Rule E12: detaching an engine waits for its requests; then another context can attach it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;

use coralio::context::AioContext;
use coralio::coroutine::suspend;
use coralio::driver::{BackendKind, DetachedEngine, detach};
use coralio::engine::Engine;
use coralio::engine::io_uring::IoUring;
use coralio::engine::linux_aio::LinuxAio;
use coralio::engine::scripted::ScriptedBackend;
use coralio::engine::thread_pool::ThreadPool;
use coralio::engine::{Backend, Opcode, Operation};
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, JoinHandle, RuntimeBuilder, spawn, yield_now};

use crate::common::{Temp, skipped};

const BLOCK: usize = 512;

/// Returns the byte that fills block number `block`.
fn byte_of(block: usize) -> u8 {
    block as u8 + 1
}

fn read<B: Backend>(engine: &Engine<B>, fd: i32, buf: &mut [u8], offset: usize) -> io::Result<usize> {
    let (addr, len, offset) = (buf.as_mut_ptr() as u64, buf.len() as u64, offset as u64);
    // SAFETY: the buffer is borrowed until this returns or unwinds.
    unsafe { engine.transfer(&Operation { opcode: Opcode::Read, fd, addr, len, offset }) }
}

/// Spawns a coroutine that reads one block and checks its content.
fn reader<B: Backend>(engine: &Arc<Engine<B>>, fd: i32, block: usize) -> JoinHandle<()> {
    let engine = Arc::clone(engine);
    spawn(move || {
        let mut buf = AlignedBuf::new(BLOCK, BLOCK);
        assert_eq!(read(&engine, fd, &mut buf, block * BLOCK).unwrap(), BLOCK);
        assert!(buf.iter().all(|&byte| byte == byte_of(block)), "block {block}");
    })
}

fn state<B: Backend>(engine: &Engine<B>) -> (u32, u32) {
    let stats = engine.stats();
    (stats.in_flight, stats.pending)
}

/// Returns a scripted backend whose disk has `blocks` blocks.
fn scripted(capacity: u32, blocks: usize) -> ScriptedBackend {
    let backend = ScriptedBackend::new(capacity);
    AioContext::run(|_| {
        let engine = Engine::<_>::attach(backend.clone(), capacity).unwrap();
        let data: Vec<_> = (0..blocks * BLOCK).map(|i| byte_of(i / BLOCK)).collect();
        let (addr, len) = (data.as_ptr() as u64, data.len() as u64);
        let write = Operation { opcode: Opcode::Write, fd: 0, addr, len, offset: 0 };
        // SAFETY: the data outlives the coroutine, which is joined.
        spawn(move || unsafe { engine.transfer(&write) }.unwrap()).join().unwrap();
    });
    backend
}

/// Attaches an engine to this thread's context, with a scripted backend of `blocks` blocks.
fn attached(capacity: u32, blocks: usize) -> (Arc<Engine<ScriptedBackend>>, ScriptedBackend) {
    let backend = thread::spawn(move || scripted(capacity, blocks)).join().unwrap();
    (Engine::attach(backend.clone(), capacity).unwrap(), backend)
}

#[test]
fn detach_waits_for_all_requests() {
    // E12: two requests in flight and two pending complete before the engine leaves, and their
    // coroutines have their data; another thread's context then uses the engine
    AioContext::run(|context| {
        let (engine, backend) = attached(2, 4);
        let readers: Vec<_> = (0..4).map(|block| reader(&engine, 0, block)).collect();
        context.poll(false);
        assert_eq!(state(&engine), (2, 2));
        let detached = detach().unwrap();
        assert!(context.source().is_none());
        assert_eq!((state(&engine), backend.in_flight()), ((0, 0), 0));
        assert!(readers.iter().all(JoinHandle::is_finished));
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let there = Arc::clone(&engine);
        let far = thread::spawn(move || {
            AioContext::run(|_| {
                detached.attach().unwrap();
                reader(&there, 0, 3).join().unwrap();
            });
        });
        far.join().unwrap();
        let error = spawn(move || read(&engine, 0, &mut [0; BLOCK], 0).unwrap_err()).join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    });
}

#[test]
fn detach_waits_until_coroutines_have_their_results() {
    // E12: a request that has completed, but whose coroutine has not run since, still belongs to
    // the context: the engine leaves after that coroutine has run
    struct DetachesOnDrop<'a>(&'a Engine<ScriptedBackend>, &'a JoinHandle<()>);
    impl Drop for DetachesOnDrop<'_> {
        fn drop(&mut self) {
            // The stack unwinds, so this waits in place, and the other coroutine does not run yet.
            assert_eq!(read(self.0, 0, &mut [0; BLOCK], BLOCK).unwrap(), BLOCK);
            assert_eq!(state(self.0), (0, 0));
            assert!(!self.1.is_finished());
            detach().unwrap().attach().unwrap();
            assert!(self.1.is_finished());
        }
    }
    AioContext::run(|context| {
        let (engine, _) = attached(2, 2);
        let first = reader(&engine, 0, 0);
        let second = spawn(move || {
            let _detaches = DetachesOnDrop(&engine, &first);
            resume_unwind(Box::new("unwinds"));
        });
        while !second.is_finished() {
            context.poll(false);
        }
        assert_eq!(second.join().unwrap_err().downcast_ref(), Some(&"unwinds"));
    });
}

#[test]
fn detach_within_completion_is_refused() {
    // E12, E5: a coroutine woken by a completion may detach the engine, because the reap is over by
    // then; in a poll nested within the reap it is not, and detaching is refused
    AioContext::run(|context| {
        let (engine, _) = attached(4, 4);
        let other = reader(&engine, 0, 1);
        let nested = spawn({
            let (engine, context) = (Arc::clone(&engine), context.clone());
            move || {
                read(&engine, 0, &mut [0; BLOCK], 0).unwrap();
                // Within the reap that has just woken this coroutine.
                let inner = spawn(|| detach().map(drop).unwrap_err());
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
                detach().unwrap()
            }
        });
        let late = reader(&engine, 0, 2);
        detacher.join().unwrap().attach().unwrap();
        late.join().unwrap();
        assert_eq!(state(&engine), (0, 0));
    });
}

#[test]
fn two_detaching_coroutines_get_one_engine() {
    // E12: of two coroutines that detach the engine at the same time, one gets it; the other's
    // error says why, and it takes nothing else from the context
    AioContext::run(|context| {
        let (engine, _) = attached(2, 4);
        let readers: Vec<_> = (0..4).map(|block| reader(&engine, 0, block)).collect();
        context.poll(false);
        let detachers = [(); 2].map(|()| spawn(detach));
        let mut results = detachers.map(|one| one.join().unwrap());
        results.sort_by_key(Result::is_err);
        let [detached, error] = results;
        let error = error.unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::NotConnected | io::ErrorKind::NotFound), "{error}");
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        detached.unwrap().attach().unwrap();
        reader(&engine, 0, 1).join().unwrap();
    });
}

#[test]
fn context_gives_up_only_drained_engine() {
    // E12: AioContext::detach is refused while there are requests, and names the call that waits
    AioContext::run(|context| {
        let (engine, _) = attached(1, 2);
        let readers: Vec<_> = (0..2).map(|block| reader(&engine, 0, block)).collect();
        context.poll(false);
        let error = context.detach().map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(error.to_string().contains("coralio::driver::detach"), "{error}");
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert!(context.detach().unwrap().is_some());
        let error = spawn(move || read(&engine, 0, &mut [0; BLOCK], 0).unwrap_err()).join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    });
    coralio::simulate::simulate(0..1, |_| {
        assert_eq!(detach().unwrap_err().kind(), io::ErrorKind::Unsupported);
        let context = AioContext::current().unwrap();
        assert_eq!(context.detach().map(drop).unwrap_err().kind(), io::ErrorKind::Unsupported);
        Ok(())
    });
}

#[test]
fn detach_does_not_wait_while_the_context_ends() {
    // E12, W5: a destructor that runs at the end of the context gets an error if a coroutine that
    // is unwound later has a request: a woken coroutine does not run any more. Hangs if not
    struct Detaches(Sender<io::ErrorKind>);
    impl Drop for Detaches {
        fn drop(&mut self) {
            self.0.send(detach().unwrap_err().kind()).unwrap();
        }
    }
    let (send, receive) = channel();
    AioContext::run(|context| {
        let (engine, _) = attached(2, 2);
        drop(spawn(move || {
            let _detaches = Detaches(send);
            suspend();
        }));
        drop(reader(&engine, 0, 0));
        context.poll(false);
        assert_eq!(state(&engine), (1, 0));
    });
    assert_eq!(receive.recv().unwrap(), io::ErrorKind::ResourceBusy);
}

#[test]
fn engine_attached_while_the_context_ends_is_dropped() {
    // E1, W5: a destructor attaches an engine at the end of the context; both are freed
    struct Attaches(Sender<Weak<Engine<ScriptedBackend>>>);
    impl Drop for Attaches {
        fn drop(&mut self) {
            let engine = Engine::attach(ScriptedBackend::new(1), 1).unwrap();
            self.0.send(Arc::downgrade(&engine)).unwrap();
        }
    }
    let (send, receive) = channel();
    AioContext::run(|context| {
        drop(spawn(move || {
            let _attaches = Attaches(send);
            suspend();
        }));
        context.poll(false);
    });
    assert!(receive.recv().unwrap().upgrade().is_none());
}

/// Runs `f` once, when the loop checks its poll handlers before it sleeps. Then the loop runs until
/// `done`.
fn before_the_sleep(context: &AioContext, f: impl FnOnce() + Send + 'static, done: impl Fn() -> bool) {
    let f = Mutex::new(Some(f));
    let check = move || {
        let f = f.lock().unwrap().take();
        if let Some(f) = f {
            f();
        }
        false
    };
    let _handler = context.add_poll_handler(check, || ()).unwrap();
    context.poll_while(|| !done());
}

#[test]
fn check_before_the_sleep_may_queue_work() {
    // W3, X5: a coroutine that is spawned by a poll handler's last check before the sleep runs.
    // Hangs if not
    AioContext::run(|context| {
        let ran = Arc::new(AtomicBool::new(false));
        let runs = Arc::clone(&ran);
        let spawns = move || drop(spawn(move || runs.store(true, Ordering::Relaxed)));
        before_the_sleep(context, spawns, || ran.load(Ordering::Relaxed));
    });
}

#[test]
fn check_before_the_sleep_may_detach() {
    // W3, E12: a poll handler's last check before the sleep detaches the engine, which polls and
    // sleeps; a wake by another thread then still ends the outer sleep. Hangs if not
    AioContext::run(|context| {
        let (engine, _) = attached(1, 1);
        let (waits, reads) = (spawn(suspend), reader(&engine, 0, 0));
        context.poll(false);
        assert_eq!(state(&engine), (1, 0));
        let (send, receive) = channel();
        let waker = waits.coroutine().waker();
        thread::scope(|scope| {
            scope.spawn(move || {
                receive.recv().unwrap();
                // The lock is free while the loop sleeps.
                while context.try_acquire().is_none() {
                    thread::yield_now();
                }
                waker.wake();
            });
            let detaches = move || {
                drop(detach().unwrap());
                send.send(()).unwrap();
            };
            before_the_sleep(context, detaches, || waits.is_finished());
        });
        reads.join().unwrap();
    });
}

#[test]
fn plugs_of_a_detached_engine_are_counted() {
    // E3, H7: no lock excludes other threads while an engine is detached; the plug depth is exact
    let (engine, _detached) = AioContext::run(|_| (attached(2, 2).0, detach().unwrap()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..200_000).for_each(|_| drop(engine.plug())));
        }
    });
    assert!(format!("{engine:?}").contains("plug depth 0,"), "{engine:?}");
}

#[test]
fn each_context_has_one_engine() {
    // E1, E12, E14: the old context may attach another engine; a context that already has an engine
    // returns a second one to the caller
    AioContext::run(|_| {
        assert_eq!(detach().unwrap_err().kind(), io::ErrorKind::NotFound);
        let (engine, backend) = attached(2, 2);
        let detached = detach().unwrap();
        let second = Engine::<_>::attach(backend, 2).unwrap();
        reader(&second, 0, 1).join().unwrap();
        let refused = detached.attach().unwrap_err();
        assert_eq!(refused.error.kind(), io::ErrorKind::AlreadyExists);
        drop(detach().unwrap());
        refused.detached.attach().unwrap();
        reader(&engine, 0, 1).join().unwrap();
    });
}

/// Creates a file of `blocks` blocks.
fn file_of(place: &Path, blocks: usize) -> Temp {
    Temp::with(place, (0..blocks * BLOCK).map(|i| byte_of(i / BLOCK)).collect::<Vec<_>>())
}

/// Moves an engine between two threads' contexts, which read `fd` through it.
fn moves<B: Backend>(backend: B, fd: i32, blocks: usize) {
    let (to_far, at_far) = channel::<(usize, DetachedEngine)>();
    let (to_near, at_near) = channel::<(usize, DetachedEngine)>();
    let (engine, first) = AioContext::run(|_| (Engine::<_>::attach(backend, 8).unwrap(), detach().unwrap()));
    let play = |inbox: Receiver<(usize, DetachedEngine)>, outbox: Sender<(usize, DetachedEngine)>| {
        AioContext::run(|context| {
            for (round, detached) in inbox {
                detached.attach().unwrap();
                let readers: Vec<_> = (0..24).map(|n| reader(&engine, fd, (round * 7 + n) % blocks)).collect();
                // The number of polls varies, so that detaching finds more or less of the work
                // done.
                (0..=round % 4).for_each(|_| _ = context.poll(false));
                let detached = detach().unwrap();
                readers.into_iter().for_each(|reader| reader.join().unwrap());
                if round == 200 || outbox.send((round + 1, detached)).is_err() {
                    break;
                }
            }
            drop(outbox);
        });
    };
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
        let temp = file_of(&place, BLOCKS);
        match fs::OpenOptions::new().read(true).custom_flags(flags).open(&temp.0) {
            Ok(file) => each(&file, BLOCKS),
            Err(error) => skipped(format_args!("{}: {error}", place.display())),
        }
    }
}

#[test]
fn engine_moves_between_threads() {
    // E12: an engine moves two hundred times, and every read returns its data, on each backend: on
    // io_uring although a request is cancelled when the thread that submitted it exits, since no
    // thread ends before the requests that it may have submitted are done
    moves(scripted(8, 3), 0, 3);
    on_real_files(|file, blocks| {
        let fd = file.as_raw_fd();
        LinuxAio::new(8).map_or_else(skipped, |backend| moves(backend, fd, blocks));
        IoUring::new(8).map_or_else(skipped, |backend| moves(backend, fd, blocks));
        moves(ThreadPool::new(8).unwrap(), fd, blocks);
    });
}

#[test]
fn engine_and_file_move_to_another_thread() {
    // E12, E14, E16: engine and file move from one thread's context to another's, as in a server,
    // on each backend; a file left behind reports that its engine was detached
    for choice in [BackendKind::Auto, BackendKind::Aio, BackendKind::Uring, BackendKind::Threads] {
        let temp = file_of(&std::env::temp_dir(), 64);
        let (send, receive) = channel::<(DetachedEngine, coralio::fs::DetachedFile)>();
        let far = thread::spawn(move || {
            let Ok((engine, file)) = receive.recv() else { return };
            AioContext::builder()
                .run_coroutine(|_| {
                    engine.attach().unwrap();
                    let file = file.attach().unwrap();
                    let mut buf = [0; BLOCK];
                    file.read_exact_at(&mut buf, 5 * BLOCK as u64).unwrap();
                    assert!(buf.iter().all(|&byte| byte == byte_of(5)));
                    assert_eq!(coralio::driver::stats().in_flight, 0);
                    assert!(file.as_fd().as_raw_fd() >= 0);
                })
                .unwrap();
        });
        let ran = RuntimeBuilder::new().backend(choice).run(|| {
            let open = || File::options().read(true).direct(Direct::Auto).open(&temp.0).unwrap();
            let (goes, stays) = (open(), Rc::new(open()));
            let waits = spawn({
                let file = Rc::clone(&stays);
                move || {
                    let mut buf = [0; BLOCK];
                    file.read_exact_at(&mut buf, 0).map(|()| buf[0])
                }
            });
            yield_now(); // the read is made
            send.send((detach().unwrap(), goes.detach())).unwrap();
            assert_eq!(waits.join().unwrap().unwrap(), byte_of(0));
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
