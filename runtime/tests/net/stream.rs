//! Streams: large transfers in both directions, half close, duplicates, and each operation waiting
//! for its own direction.

use std::io::{Read, Write};
use std::net::{self, Shutdown};
use std::rc::Rc;
use std::thread;

use coralio_runtime::net::{TcpListener, TcpStream, UnixStream};
use coralio_runtime::{AioContext, CoFd, spawn, spawn_now};

/// Returns a TCP connection: our end, and the blocking one of the peer.
fn tcp_pair() -> (TcpStream, net::TcpStream) {
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ours = CoFd::new(net::TcpStream::connect(address).unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// Fills the socket until it takes no more, and returns the number of bytes.
fn fill(socket: &std::os::unix::net::UnixStream) -> usize {
    let mut sum = 0;
    while let Ok(count) = (&*socket).write(&[0; 4096]) {
        sum += count;
    }
    sum
}

#[test]
fn large_transfers_run_in_both_directions() {
    // N3: one coroutine writes and one reads the same connection, of more than the socket buffers
    // hold, and every byte arrives in order
    const LEN: usize = 16 << 20;
    let bytes: Vec<u8> = (0..LEN).map(|at| ((at * 31) >> 3) as u8).collect();
    AioContext::run(|_ctx| {
        let (ours, mut theirs) = tcp_pair();
        let echo = thread::spawn(move || std::io::copy(&mut theirs.try_clone().unwrap(), &mut theirs).unwrap());
        let ours = Rc::new(ours);
        let reader = spawn({
            let ours = Rc::clone(&ours);
            move || {
                let mut all = Vec::new();
                (&*ours).read_to_end(&mut all).map(|_| all)
            }
        });
        let sent = bytes.clone();
        let writer = spawn(move || {
            (&*ours).write_all(&sent).unwrap();
            ours.shutdown(Shutdown::Write).unwrap();
        });
        writer.join().unwrap();
        assert!(reader.join().unwrap().unwrap() == bytes);
        assert_eq!(echo.join().unwrap(), LEN as u64);
    });
}

#[test]
fn shutdown_ends_waits_and_half_close_leaves_the_other_direction() {
    // N3: after the peer's half close, end of file is read and writes still arrive; our own
    // shutdown wakes a reader that waits
    AioContext::run(|ctx| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = thread::spawn(move || {
            let mut stream = net::TcpStream::connect(address).unwrap();
            stream.write_all(b"last").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        let server = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).unwrap();
            stream.write_all(b"answer").unwrap();
            said
        });
        assert_eq!(server.join().unwrap(), "last");
        assert_eq!(peer.join().unwrap().unwrap(), "answer");

        let (ours, _theirs) = tcp_pair();
        let ours = Rc::new(ours);
        let reader = spawn_now({
            let ours = Rc::clone(&ours);
            move || (&*ours).read(&mut [0; 8])
        });
        while ctx.poll(false) {}
        assert!(!reader.is_finished());
        ours.shutdown(Shutdown::Read).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 0);
    });
}

#[test]
fn each_operation_waits_for_its_own_direction() {
    // N5: with the socket full, `write_with` is not called for data that arrives, only once there
    // is space; and `read_with` not for space
    AioContext::run(|ctx| {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = Rc::new(CoFd::new(ours).unwrap());
        let filled = fill(ours.get_ref());
        let writer = spawn_now({
            let ours = Rc::clone(&ours);
            move || {
                let mut calls = 0;
                let written = ours.write_with(|mut socket| {
                    calls += 1;
                    socket.write(b"more")
                });
                (written.unwrap(), calls)
            }
        });
        theirs.write_all(b"x").unwrap();
        while ctx.poll(false) {}
        assert!(!writer.is_finished());
        theirs.read_exact(&mut vec![0; filled]).unwrap();
        assert_eq!(writer.join().unwrap(), (4, 2), "once in vain, once with space");

        assert_eq!(ours.try_read(&mut [0; 8]).unwrap(), 1);
        ours.try_read(&mut [0; 8]).unwrap_err();
        let filled = fill(ours.get_ref());
        let both = spawn_now({
            let ours = Rc::clone(&ours);
            move || {
                let writer = spawn_now({
                    let ours = Rc::clone(&ours);
                    move || (&*ours).write_all(b"end")
                });
                let mut calls = 0;
                ours.read_with(|mut socket| {
                    calls += 1;
                    socket.read(&mut [0; 8])
                })
                .unwrap();
                (calls, writer.join().unwrap().unwrap())
            }
        });
        theirs.read_exact(&mut vec![0; filled + 4]).unwrap();
        while ctx.poll(false) {}
        assert!(!both.is_finished());
        theirs.write_all(b"y").unwrap();
        assert_eq!(both.join().unwrap(), (1, ()), "space for the writer was no reason to read");
    });
}

#[test]
fn duplicate_is_registered_by_itself() {
    // N3: a duplicate shares the connection, waits by itself, and outlives the original
    AioContext::run(|ctx| {
        let (ours, mut theirs) = tcp_pair();
        ours.set_nodelay(true).unwrap();
        let duplicate = ours.try_clone().unwrap();
        assert!(duplicate.nodelay().unwrap());
        let mut waiting = spawn_now(move || {
            let mut duplicate = duplicate;
            let mut word = [0; 4];
            duplicate.read_exact(&mut word).map(|()| (duplicate, word))
        });
        drop(ours);
        while ctx.poll(false) {}
        assert!(!waiting.is_finished());
        theirs.write_all(b"word").unwrap();
        let (duplicate, word) = std::mem::replace(&mut waiting, spawn(|| unreachable!())).join().unwrap().unwrap();
        assert_eq!(&word, b"word");
        assert_eq!(duplicate.peer_addr().unwrap(), theirs.local_addr().unwrap());
    });
}

#[test]
fn ends_of_a_pair_are_connected() {
    // N3: both ends of a pair work in one context; the peer's end is read as end of file; `peek`
    // leaves the bytes in place
    AioContext::run(|_ctx| {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let echo = spawn(move || {
            let mut all = String::new();
            far.read_to_string(&mut all).map(|_| all)
        });
        let writer = spawn(move || near.write_all(&vec![b'a'; 1 << 20]).unwrap());
        writer.join().unwrap();
        assert_eq!(echo.join().unwrap().unwrap().len(), 1 << 20);
        let (ours, mut theirs) = tcp_pair();
        let peeking = spawn_now(move || {
            let mut bytes = [0; 8];
            let lens = [ours.peek(&mut bytes), ours.peek(&mut bytes), (&ours).read(&mut bytes)];
            lens.map(Result::unwrap)
        });
        theirs.write_all(b"abc").unwrap();
        assert_eq!(peeking.join().unwrap(), [3, 3, 3]);
    });
}
