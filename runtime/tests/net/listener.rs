//! Listeners: waiting, sharing a port between contexts, and passing connections on.

use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use coralio_runtime::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use coralio_runtime::{AioContext, Cancelled, CoFd, IoThread, spawn, spawn_now};

#[test]
fn accept_waits_for_connections() {
    // N2: accept waits; each client gets its own connection, whose addresses match; an address in
    // use is an error
    AioContext::run(|_ctx| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(TcpListener::bind(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(TcpListener::bind_reuse_port(address).unwrap_err().kind(), ErrorKind::AddrInUse);
        let server = spawn_now(move || {
            for number in 0..3 {
                let (mut stream, from) = listener.accept().unwrap();
                assert_eq!(stream.peer_addr().unwrap(), from);
                assert_eq!(stream.try_read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
                stream.write_all(&[number]).unwrap();
            }
        });
        assert!(!server.is_finished());
        let clients = std::thread::spawn(move || {
            let mut streams = [(); 3].map(|()| net::TcpStream::connect(address).unwrap());
            for (number, stream) in streams.iter_mut().enumerate() {
                let mut said = Vec::new();
                stream.read_to_end(&mut said).unwrap();
                assert_eq!(said, [number as u8]);
            }
        });
        server.join().unwrap();
        clients.join().unwrap();
    });
}

#[test]
fn incoming_ends_on_cancel() {
    // N2: a loop over the connections ends when its coroutine is cancelled, and accept is an error
    AioContext::run(|ctx| {
        let count = Rc::new(Cell::new(0));
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let seen = Rc::clone(&count);
        let tcp = spawn_now(move || {
            tcp.incoming().for_each(|stream| seen.set(seen.get() + i32::from(stream.is_ok())));
            tcp.accept().map(drop).unwrap_err()
        });
        let path = std::env::temp_dir().join(format!("coralio-net-incoming-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let unix = UnixListener::bind(&path).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let seen = Rc::clone(&count);
        let unix = spawn_now(move || {
            unix.incoming().for_each(|stream| seen.set(seen.get() + i32::from(stream.is_ok())));
            unix.accept().map(drop).unwrap_err()
        });
        while count.get() < 2 {
            ctx.poll(true);
        }
        for listener in [tcp, unix] {
            listener.cancel();
            assert!(Cancelled::is_cause_of(&listener.join().unwrap()));
        }
        assert!(ctx.fd_handlers().is_empty());
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn contexts_share_a_port() {
    // N2: the kernel spreads connections over the listeners of two contexts; closing the port
    // refuses further ones
    AioContext::run(|_ctx| {
        let here = TcpListener::bind_reuse_port("127.0.0.1:0").unwrap();
        let address = here.local_addr().unwrap();
        let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let serve = |listener: &TcpListener, counts: &[AtomicUsize; 2], number: usize| {
            for stream in listener.incoming() {
                counts[number].fetch_add(1, Ordering::Relaxed);
                stream.unwrap().write_all(b"x").unwrap();
            }
        };
        let thread = IoThread::start("other").unwrap();
        let (ready, is_ready) = mpsc::channel();
        let counted = Arc::clone(&counts);
        let there = thread.context().spawn(move || {
            let listener = TcpListener::bind_reuse_port(address).unwrap();
            ready.send(()).unwrap();
            serve(&listener, &counted, 1);
        });
        is_ready.recv().unwrap();
        let counted = Arc::clone(&counts);
        let here = spawn(move || serve(&here, &counted, 0));
        let clients = spawn(move || {
            while counts.iter().any(|count| count.load(Ordering::Relaxed) == 0) {
                TcpStream::connect(address).unwrap().read_exact(&mut [0]).unwrap();
            }
        });
        clients.join().unwrap();
        here.cancel();
        here.join().unwrap();
        there.cancel();
        there.join().unwrap();
        let late = spawn(move || TcpStream::connect(address).unwrap_err());
        assert_eq!(late.join().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn connection_moves_to_another_context() {
    // N2: a connection accepted here is served by another context; using it in a context that it
    // does not belong to is refused
    AioContext::run(|_ctx| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = spawn(move || net::TcpStream::from(listener.accept().unwrap().0));
        let accepted = accepted.join().unwrap();
        let thread = IoThread::start("server").unwrap();
        let served = thread.context().spawn(move || {
            let mut stream = TcpStream::try_from(accepted).unwrap();
            let mut word = [0; 5];
            stream.read_exact(&mut word).unwrap();
            stream.write_all(&word).unwrap();
        });
        client.write_all(b"moved").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "moved");
        served.join().unwrap();
    });
    let (kept, mut far) = AioContext::run(|_ctx| UnixStream::pair().unwrap());
    AioContext::run(|_ctx| {
        let task = spawn(move || {
            assert_eq!(kept.try_read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!((&kept).read(&mut [0]).unwrap_err().kind(), ErrorKind::NotConnected);
            let mut anew = CoFd::new(kept.into_inner()).unwrap();
            far.write_all(b"1").unwrap();
            anew.read_exact(&mut [0]).unwrap();
        });
        task.join().unwrap();
    });
}
