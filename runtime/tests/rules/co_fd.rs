//! `CoFd`: no edge is lost, every waiter is woken or gets an error, and a dropped descriptor is no
//! longer watched.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Log, text};
use coralio_runtime::{AioContext, Cancelled, CoFd, Interest, TimedOut, spawn, timeout, yield_now};
use rustix::net::SendFlags;
use rustix::pipe::PipeFlags;

/// One end for coroutines, and a blocking one for the peer.
fn pair() -> (Rc<CoFd<UnixStream>>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Rc::new(CoFd::new(ours).unwrap()), theirs)
}

fn tcp_pair() -> (Rc<CoFd<TcpStream>>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (Rc::new(CoFd::new(ours).unwrap()), listener.accept().unwrap().0)
}

/// Returns the read end and the write end of a pipe.
fn pipe() -> (File, File) {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

fn read_byte(mut from: &CoFd<UnixStream>) -> u8 {
    let mut byte = [0];
    from.read_exact(&mut byte).unwrap();
    byte[0]
}

#[test]
fn edge_between_check_and_wait_is_not_lost() {
    // W3: data that arrives after a read found nothing, and before its coroutine waits, ends the
    // wait immediately
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let task = spawn({
            let ctx = ctx.clone();
            move || {
                let mut calls = 0;
                let byte = ours.read_with(|mut stream| {
                    calls += 1;
                    let mut byte = [0];
                    let read = stream.read(&mut byte);
                    if calls == 1 {
                        // The loop reports the edge while this coroutine runs and there is no
                        // waiter.
                        theirs.write_all(&[7]).unwrap();
                        ctx.poll(false);
                    }
                    read.map(|_| byte[0])
                });
                (byte.unwrap(), calls)
            }
        });
        assert_eq!(task.join().unwrap(), (7, 2));
    });
}

#[test]
fn two_readers_and_a_writer_share_a_descriptor() {
    // X4: an edge wakes all waiters: each retries, and none is forgotten
    AioContext::run(|ctx| {
        let log = Log::default();
        let (ours, mut theirs) = pair();
        let readers = [1, 2].map(|number| {
            let (ours, log) = (Rc::clone(&ours), log.clone());
            spawn(move || log.add(format_args!("{number}:{}", read_byte(&ours))))
        });
        ctx.poll(false);
        theirs.write_all(&[10]).unwrap();
        ctx.poll(true);
        assert_eq!(log.take(), "1:10");
        let third = spawn({
            let (ours, log) = (Rc::clone(&ours), log.clone());
            move || log.add(format_args!("3:{}", read_byte(&ours)))
        });
        ctx.poll(false);
        // One edge for both readers.
        theirs.write_all(&[20, 30]).unwrap();
        readers.into_iter().chain([third]).for_each(|reader| reader.join().unwrap());
        assert_eq!(log.take(), "2:20 3:30");
        (&*ours).write_all(b"back").unwrap();
        let mut back = [0; 4];
        theirs.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"back");
    });
}

#[test]
fn short_read_needs_no_second_check() {
    // X4: after a short read a TCP stream is known to be empty, so the next read waits without a
    // system call; and is woken
    AioContext::run(|ctx| {
        let (ours, mut theirs) = tcp_pair();
        theirs.write_all(b"abc").unwrap();
        let task = spawn(move || {
            let mut room = [0; 8];
            let first = (&*ours).read(&mut room).unwrap();
            let calls = RefCell::new(0);
            let second = ours.read_with(|mut stream| {
                *calls.borrow_mut() += 1;
                stream.read(&mut room)
            });
            (first, second.unwrap(), calls.take())
        });
        while ctx.poll(false) {}
        theirs.write_all(b"de").unwrap();
        assert_eq!(task.join().unwrap(), (3, 2, 1));
    });
}

#[test]
fn unix_socket_whose_peer_sends_bytes_only_needs_no_second_check() {
    // X4: as a TCP stream; otherwise a short read of a Unix socket shows nothing
    for (bytes_only, calls) in [(true, 1), (false, 2)] {
        AioContext::run(|ctx| {
            let (ours, mut theirs) = pair();
            if bytes_only {
                ours.assume_bytes_only();
            }
            theirs.write_all(b"abc").unwrap();
            let task = spawn(move || {
                let mut room = [0; 8];
                assert_eq!((&*ours).read(&mut room).unwrap(), 3);
                let calls = Cell::new(0);
                let second = ours.read_with(|mut stream| {
                    calls.set(calls.get() + 1);
                    stream.read(&mut room)
                });
                (second.unwrap(), calls.get())
            });
            while ctx.poll(false) {}
            theirs.write_all(b"de").unwrap();
            assert_eq!(task.join().unwrap(), (2, calls));
        });
    }
}

#[test]
fn read_stops_early_at_urgent_data_or_a_message() {
    // X4: a read may return less than there is: at the mark of urgent data, or in a Unix socket at
    // credentials or descriptors. What follows is read without a further edge
    AioContext::run(|ctx| {
        let (ours, theirs) = tcp_pair();
        for (bytes, flags) in [(&b"aa"[..], SendFlags::empty()), (b"x", SendFlags::OOB), (b"bb", SendFlags::empty())] {
            assert_eq!(rustix::net::send(&theirs, bytes, flags).unwrap(), bytes.len());
        }
        // All edges are reported before the first read.
        while ctx.poll(false) {}
        let mut all = Vec::new();
        let read = spawn(move || {
            while all.len() < 4 {
                let mut room = [0; 16];
                let count = (&*ours).read(&mut room).unwrap();
                all.extend_from_slice(&room[..count]);
            }
            all
        });
        assert_eq!(read.join().unwrap(), b"aabb");
    });
    AioContext::run(|ctx| {
        let (ours, theirs) = pair();
        let first = [std::io::IoSlice::new(b"a")];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = rustix::net::SendAncillaryBuffer::new(&mut space);
        let sent = [theirs.as_fd()];
        assert!(rights.push(rustix::net::SendAncillaryMessage::ScmRights(&sent)));
        rustix::net::sendmsg(&theirs, &first, &mut rights, SendFlags::empty()).unwrap();
        (&theirs).write_all(b"b").unwrap();
        while ctx.poll(false) {}
        let read = spawn(move || [read_more(&ours), read_more(&ours)]);
        assert_eq!(read.join().unwrap(), *b"ab");
    });
}

/// Reads a byte into a larger buffer.
fn read_more(mut from: &CoFd<UnixStream>) -> u8 {
    let mut room = [0; 16];
    assert_eq!(from.read(&mut room).unwrap(), 1);
    room[0]
}

#[test]
fn busy_socket_lets_others_run() {
    // X4: a coroutine whose socket is always ready yields from time to time
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        theirs.write_all(&[7; 1000]).unwrap();
        let has_run = Rc::new(Cell::new(false));
        let reader = spawn({
            let has_run = Rc::clone(&has_run);
            move || (0..1000).position(|_| read_byte(&ours) == 7 && has_run.get())
        });
        let _other = spawn(move || has_run.set(true));
        while !reader.is_finished() {
            ctx.poll(false);
        }
        assert!(reader.join().unwrap().is_some());
    });
}

#[test]
fn half_close_is_seen_after_the_data() {
    // X4: the peer's last bytes and its shutdown may share an edge: end of file is read all the
    // same, and writing still works
    for told_before in [false, true] {
        AioContext::run(|ctx| {
            let (ours, mut theirs) = pair();
            let reader = spawn({
                let ours = Rc::clone(&ours);
                move || {
                    if told_before {
                        // Known to be drained, so that it waits for the edge.
                        assert_eq!(read_byte(&ours), 0);
                        assert!(ours.try_read(&mut [0; 1]).is_err());
                    }
                    let mut all = Vec::new();
                    (&*ours).read_to_end(&mut all).map(|_| all)
                }
            });
            if told_before {
                theirs.write_all(&[0]).unwrap();
                while ctx.poll(false) {}
            }
            theirs.write_all(b"last").unwrap();
            theirs.shutdown(Shutdown::Write).unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), b"last");
            (&*ours).write_all(b"still").unwrap();
            drop(ours);
            let mut rest = String::new();
            theirs.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "still");
        });
    }
}

#[test]
fn writers_wait_for_room() {
    // X4: two writers fill the socket and wait; as the peer reads they continue, and no byte is
    // lost
    const EACH: usize = 3 << 20;
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let writers = [1u8, 2].map(|byte| {
            let ours = Rc::clone(&ours);
            spawn(move || (&*ours).write_all(&vec![byte; EACH]).unwrap())
        });
        while ctx.poll(false) {}
        assert!(!writers[0].is_finished() && !writers[1].is_finished(), "no socket buffer is that large");
        let reader = thread::spawn(move || {
            let mut sums = [0; 3];
            let mut room = vec![0; 65536];
            while sums[1] + sums[2] < 2 * EACH {
                let count = theirs.read(&mut room).unwrap();
                room[..count].iter().for_each(|&byte| sums[usize::from(byte)] += 1);
            }
            // There is no writer left: reads of the peer are not reported.
            (sums, theirs)
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let (sums, _theirs) = reader.join().unwrap();
        assert_eq!(sums, [0, EACH, EACH]);
        while ctx.poll(false) {}
    });
}

#[test]
fn waits_end_on_cancel_and_timeout() {
    // X4: waits of a cancelled coroutine, and waits that time out, end with an error; available
    // data is read all the same
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let in_time = spawn({
            let ours = Rc::clone(&ours);
            move || timeout(Duration::from_millis(1), || (&*ours).read(&mut [0]))
        });
        assert_eq!(in_time.join().unwrap().unwrap_err(), TimedOut);
        let reader = spawn({
            let ours = Rc::clone(&ours);
            move || {
                let waited = (&*ours).read(&mut [0]).unwrap_err();
                assert!(Cancelled::is_cause_of(&waited), "{waited}");
                theirs.write_all(&[5]).unwrap();
                while ours.wait_readable().is_err() {
                    AioContext::current().unwrap().poll(true);
                }
                read_byte(&ours)
            }
        });
        ctx.poll(false);
        reader.cancel();
        assert_eq!(reader.join().unwrap(), 5);
        // There is no waiter: the edge wakes nothing.
        while ctx.poll(false) {}
    });
}

/// Waits in its destructor.
struct ReadsAtTheEnd(Rc<CoFd<UnixStream>>, Log);

impl Drop for ReadsAtTheEnd {
    fn drop(&mut self) {
        let _ = self.0.try_read(&mut [0]);
        self.1.add((&*self.0).read(&mut [0]).unwrap_err().to_string().split(':').next().unwrap());
    }
}

#[test]
fn context_end_unwinds_waiters() {
    // C9: waiters are unwound, waits in their destructors fail, and the descriptor is closed and no
    // longer watched
    let log = Log::default();
    let (closed, kept, mut far) = AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let (kept, kept_far) = pair();
        for _ in 0..2 {
            let (ours, log) = (Rc::clone(&ours), log.clone());
            drop(spawn(move || {
                let _at_the_end = ReadsAtTheEnd(Rc::clone(&ours), log);
                read_byte(&ours);
            }));
        }
        drop(ours);
        drop(spawn({
            let kept = Rc::clone(&kept);
            move || _ = read_byte(&kept)
        }));
        while ctx.poll(false) {}
        let log = log.clone();
        let closed = thread::spawn(move || {
            assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
            log.add("closed");
        });
        (closed, kept, kept_far)
    });
    closed.join().unwrap();
    assert_eq!(log.take(), "cancelled cancelled closed");
    // A CoFd that outlives its context: reads fail, and the descriptor works again when taken out.
    AioContext::run(|_ctx| {
        let task = spawn(move || {
            let _ = kept.try_read(&mut [0]);
            let refused = (&*kept).read(&mut [0]).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotConnected, "{refused}");
            let anew = CoFd::new(Rc::into_inner(kept).unwrap().into_inner()).unwrap();
            far.write_all(&[9]).unwrap();
            read_byte(&anew)
        });
        assert_eq!(task.join().unwrap(), 9);
    });
}

#[test]
fn busy_loop_and_nonblocking_polls_serve_edges() {
    // X4: edges are served while bottom halves keep the loop busy, by polls that never sleep, and
    // next to level-triggered handlers
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let got = Rc::new(Cell::new(0));
        let reader = spawn({
            let got = Rc::clone(&got);
            move || (1..=5).for_each(|_| got.set(read_byte(&ours)))
        });
        while ctx.poll(false) {}
        theirs.write_all(&[1]).unwrap();
        assert!(ctx.poll(false), "a round that may not sleep asks");
        assert_eq!(got.get(), 1);
        theirs.write_all(&[2]).unwrap();
        assert!(ctx.poll(true), "a sleep has asked, and the round that follows need not");
        assert_eq!(got.get(), 2);
        theirs.write_all(&[3]).unwrap();
        assert!(ctx.poll(false), "but the next has to");
        assert_eq!(got.get(), 3);
        theirs.write_all(&[4]).unwrap();
        for _ in 0..16 {
            ctx.schedule_oneshot(|| {}).unwrap();
            ctx.poll(true);
        }
        assert_eq!(got.get(), 4, "a loop that is never idle asks now and then");
        let (level, mut to_level) = UnixStream::pair().unwrap();
        let level = Arc::new(level);
        let served = Arc::new(AtomicBool::new(false));
        let _watch = ctx.add_fd_handler(Arc::clone(&level), Interest::Read, {
            let served = Arc::clone(&served);
            move |_| {
                (&*level).read_exact(&mut [0]).unwrap();
                served.store(true, Ordering::Relaxed);
            }
        });
        to_level.write_all(&[0]).unwrap();
        theirs.write_all(&[5]).unwrap();
        reader.join().unwrap();
        assert_eq!(got.get(), 5);
        while !served.load(Ordering::Relaxed) {
            ctx.poll(true);
        }
    });
}

#[test]
fn poll_on_another_thread_loses_no_edge() {
    // X8: a foreign poll reports edges while the loop sleeps on the same descriptor, and the
    // coroutine is woken at home
    AioContext::run(|ctx| {
        let (ours, mut theirs) = pair();
        let count = crate::common::scaled(500);
        let reader = spawn(move || {
            for number in 0..count {
                assert_eq!(read_byte(&ours), number as u8);
                (&*ours).write_all(&[0]).unwrap();
            }
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                theirs.set_nonblocking(true).unwrap();
                for number in 0..count {
                    theirs.write_all(&[number as u8]).unwrap();
                    while theirs.read(&mut [0]).is_err() {
                        ctx.poll(false);
                        thread::yield_now();
                    }
                }
            });
            reader.join().unwrap();
        });
    });
}

#[test]
fn listeners_and_pipes_work_and_regular_files_are_rejected() {
    // X4: accept waits; a pipe's end is read; a regular file and a descriptor used twice are errors
    // with the remedy
    AioContext::run(|_ctx| {
        let path = std::env::temp_dir().join(format!("coralio-co-fd-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = CoFd::new(UnixListener::bind(&path).unwrap()).unwrap();
        let twice = CoFd::new(listener.get_ref()).expect_err("already watched");
        assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
        let server = spawn(move || read_byte(&listener.accept().unwrap().0));
        let client = spawn({
            let path = path.clone();
            move || {
                yield_now();
                UnixStream::connect(path).unwrap().write_all(&[3]).unwrap();
            }
        });
        assert_eq!(server.join().unwrap(), 3);
        client.join().unwrap();
        std::fs::remove_file(path).unwrap();

        let (reader, writer) = pipe();
        let (mut reader, mut writer) = (CoFd::new(reader).unwrap(), CoFd::new(writer).unwrap());
        let sent = spawn(move || writer.write_all(&vec![1; 1 << 20]));
        let received = spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all.len())
        });
        sent.join().unwrap().unwrap();
        assert_eq!(received.join().unwrap().unwrap(), 1 << 20);

        let regular = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let refused = CoFd::new(regular).expect_err("a regular file cannot be waited for");
        assert!(refused.to_string().contains("regular files"), "{refused}");
        let (ours, _theirs) = pair();
        let _ = ours.try_read(&mut [0]);
        let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ours.wait_readable())).unwrap_err();
        assert!(text(&*outside).contains("outside a coroutine"), "{}", text(&*outside));
    });
}

#[test]
fn yielding_coroutine_does_not_starve_descriptors() {
    // X4: an edge is served although a coroutine yields continuously, so that the loop never sleeps
    AioContext::run(|_ctx| {
        let (near, mut far) = UnixStream::pair().unwrap();
        let served = Rc::new(Cell::new(false));
        let told = Rc::clone(&served);
        let reader = spawn(move || {
            let near = CoFd::new(near).unwrap();
            (&near).read_exact(&mut [0]).unwrap();
            told.set(true);
        });
        let busy = spawn(move || {
            yield_now();
            far.write_all(&[1]).unwrap();
            let mut turns = 0;
            while !served.get() {
                turns += 1;
                assert!(turns < 100, "the descriptor is not asked for");
                yield_now();
            }
        });
        busy.join().unwrap();
        reader.join().unwrap();
    });
}
