//! Connecting: the thread is never blocked, and an attempt that fails leaves nothing behind.

use std::io::{ErrorKind, Read, Write};
use std::net;
use std::time::Duration;

use coralio_runtime::net::{TcpStream, UdpSocket, UnixListener, UnixStream};
use coralio_runtime::{AioContext, Cancelled, CoFd, spawn, spawn_now, timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::common::panic_of;

use super::{HOUR, dead_address, deaf_listener, virtually};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn connect_waits_for_the_answer() {
    // N1: while the peer does not answer, the coroutine waits and others run; when it answers, the
    // connection works
    AioContext::run(|ctx| {
        let (listener, address, _first) = deaf_listener();
        let client = spawn_now(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
            stream.write_all(b"hello").unwrap();
        });
        while ctx.poll(false) {}
        assert!(!client.is_finished());
        // Makes room for the kernel's next attempt.
        drop(listener.accept().unwrap());
        let mut said = String::new();
        let server = std::thread::spawn(move || {
            let (mut accepted, _) = listener.accept().unwrap();
            accepted.read_to_string(&mut said).map(|_| said)
        });
        client.join().unwrap();
        assert_eq!(server.join().unwrap().unwrap(), "hello");
    });
}

#[test]
fn pending_connect_ends_on_cancel_timeout_and_context_end() {
    // N1, C9: a pending attempt ends when the coroutine is cancelled, exactly when its time is
    // over, and with its context; and is no longer watched
    virtually(|ctx, clock| {
        let (_listener, address, _first) = deaf_listener();
        let cancelled = spawn_now(move || TcpStream::connect(address).unwrap_err());
        assert_eq!(ctx.fd_handlers().len(), 1);
        cancelled.cancel();
        assert!(Cancelled::is_cause_of(&cancelled.join().unwrap()));
        assert!(ctx.fd_handlers().is_empty());
        let limited = spawn(move || TcpStream::connect_timeout(&address, HOUR).unwrap_err());
        assert_eq!(limited.join().unwrap().kind(), ErrorKind::TimedOut);
        assert_eq!(clock.elapsed(), HOUR);
        // A cancelled attempt is not followed by one at the next address.
        let live = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [address, live.local_addr().unwrap()];
        let several = spawn_now(move || TcpStream::connect(&addresses[..]).map(drop).unwrap_err());
        several.cancel();
        assert!(Cancelled::is_cause_of(&several.join().unwrap()));
        drop(spawn_now(move || TcpStream::connect(address).map(drop)));
        assert_eq!(ctx.fd_handlers().len(), 1);
    });
}

#[test]
fn sockets_are_created_in_a_context() {
    // N1, N2: outside a context nothing is created: no file, no connection, and a socket stays
    // blocking
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let said = panic_of(|| TcpStream::connect(address));
    assert!(said.starts_with("connecting a socket outside a context"), "{said}");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let path = std::env::temp_dir().join(format!("coralio-net-outside-{}", std::process::id()));
    assert!(panic_of(|| UnixListener::bind(&path)).contains("outside a context"));
    assert!(!path.exists());
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(panic_of(|| CoFd::new(&socket)).contains("outside a context"));
    let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

#[test]
fn refused_connect_is_an_error_and_the_next_address_is_tried() {
    // N1: the kernel's refusal is the error; of several addresses the first that accepts is used,
    // and the last one's error is returned
    AioContext::run(|_ctx| {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (live, dead) = (listener.local_addr().unwrap(), dead_address());
        let client = spawn(move || {
            assert_eq!(TcpStream::connect(dead).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(TcpStream::connect(&[dead, dead][..]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(TcpStream::connect(&[][..]).unwrap_err().kind(), ErrorKind::InvalidInput);
            TcpStream::connect(&[dead, live][..]).unwrap().local_addr().unwrap()
        });
        let client = client.join().unwrap();
        assert_eq!(listener.accept().unwrap().1, client);
    });
}

#[test]
fn name_is_looked_up_on_another_thread() {
    // N1: a name suspends the coroutine, unless it was cancelled; an address given as text does not
    // suspend it
    AioContext::run(|_ctx| {
        // UDP, since its connect does not wait for the peer.
        let socket = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (peer, ours) = (socket(), socket());
        let to = peer.local_addr().unwrap();
        let by_address = spawn_now(move || ours.connect(to.to_string()));
        assert!(by_address.is_finished());
        by_address.join().unwrap().unwrap();
        // Unless the thread is so fast that there is no need to wait.
        let mut has_waited = [false; 2];
        while has_waited != [true; 2] {
            let (ours, other) = (socket(), socket());
            let by_name = [
                spawn_now(move || ours.connect(format!("localhost:{}", to.port())).and_then(|()| ours.peer_addr())),
                spawn_now(move || other.connect(("localhost", to.port())).and_then(|()| other.peer_addr())),
            ];
            for (has_waited, task) in has_waited.iter_mut().zip(by_name) {
                *has_waited |= !task.is_finished();
                assert_eq!(task.join().unwrap().unwrap().port(), to.port());
            }
        }
        let ours = socket();
        let cancelled = spawn(move || ours.connect("localhost:1"));
        cancelled.cancel();
        assert!(Cancelled::is_cause_of(&cancelled.join().unwrap().unwrap_err()));
        let malformed = spawn(|| TcpStream::connect("no port").unwrap_err());
        assert_eq!(malformed.join().unwrap().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn unix_connect_waits_while_the_queue_is_full() {
    // N1: while the listener's queue is full the coroutine waits, unlike a missing or dead socket;
    // once there is space it is connected
    virtually(|ctx, clock| {
        let path = std::env::temp_dir().join(format!("coralio-net-queue-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert_eq!(UnixStream::connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        rustix::net::listen(&socket, 0).unwrap();
        let listener = std::os::unix::net::UnixListener::from(socket);
        let _first = UnixStream::connect(&path).unwrap();
        let second = spawn_now({
            let path = path.clone();
            move || UnixStream::connect(path).map(drop)
        });
        let limited = spawn_now({
            let path = path.clone();
            move || timeout(SECOND, || UnixStream::connect(path).map(drop))
        });
        assert!(limited.join().unwrap().is_err());
        assert!(!second.is_finished() && clock.elapsed() == SECOND);
        listener.accept().unwrap();
        second.join().unwrap().unwrap();
        assert_eq!(UnixListener::bind(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        std::fs::remove_file(&path).unwrap();
        assert!(ctx.fd_handlers().len() == 1, "only the first connection is left");
    });
}
