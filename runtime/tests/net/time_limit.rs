//! Read and write timeouts of sockets: obeyed whichever handle has set them, on the context's
//! clock.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net as unix;
use std::time::Duration;

use coralio_runtime::net::{TcpListener, UdpSocket, UnixStream};
use coralio_runtime::{Cancelled, CoFd, TimedOut, shield, sleep, spawn, spawn_now, timeout};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{HOUR, virtually};

#[test]
fn read_timeout_ends_a_wait_and_nothing_else() {
    // N6: a wait ends with TimedOut exactly when the time is over; data in time is returned, each
    // wait has the whole time, and the socket works afterwards
    virtually(|ctx, clock| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(HOUR)).unwrap();
        assert_eq!(ours.read_timeout().unwrap(), Some(HOUR));
        assert_eq!(ours.set_read_timeout(Some(Duration::ZERO)).unwrap_err().kind(), ErrorKind::InvalidInput);
        let writer = spawn(move || {
            for byte in [1, 2] {
                sleep(HOUR - Duration::from_secs(1)).unwrap();
                theirs.write_all(&[byte]).unwrap();
            }
            theirs
        });
        let reader = spawn(move || {
            ours.read_exact(&mut [0; 2]).unwrap();
            let error = ours.read(&mut [0]).unwrap_err();
            (ours, error)
        });
        let mut theirs = writer.join().unwrap();
        let began = clock.elapsed();
        let (mut ours, error) = reader.join().unwrap();
        assert_eq!(clock.elapsed() - began, HOUR);
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "the socket's read timeout has expired: it is 3600s");
        theirs.write_all(&[3]).unwrap();
        let last = spawn(move || {
            let mut byte = [0];
            ours.read_exact(&mut byte).map(|()| byte[0])
        });
        assert_eq!(last.join().unwrap().unwrap(), 3);
        assert_eq!(clock.elapsed() - began, HOUR);
        assert!(ctx.timers().is_empty());
    });
}

#[test]
fn write_timeout_ends_a_wait_for_space() {
    // N6: a write that finds no space ends with TimedOut, and its read timeout has no part in that
    virtually(|_ctx, clock| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_write_timeout(Some(HOUR)).unwrap();
        ours.set_read_timeout(Some(2 * HOUR)).unwrap();
        assert_eq!(ours.write_timeout().unwrap(), Some(HOUR));
        let writer = spawn(move || {
            let error = (&ours).write_all(&vec![0; 8 << 20]).unwrap_err();
            (error, (&ours).read(&mut [0]).unwrap_err())
        });
        let (written, read) = writer.join().unwrap();
        assert_eq!(written.to_string(), "the socket's write timeout has expired: it is 3600s");
        assert_eq!(read.kind(), ErrorKind::TimedOut);
        assert_eq!(clock.elapsed(), 3 * HOUR);
    });
}

#[test]
fn timeout_counts_whichever_handle_has_set_it() {
    // N6: a timeout set before the CoFd was made, on the socket in it, or on a duplicate is obeyed;
    // also by accept and by receives
    virtually(|_ctx, clock| {
        let (before, _far) = unix::UnixStream::pair().unwrap();
        before.set_read_timeout(Some(HOUR)).unwrap();
        let before = CoFd::new(before).unwrap();
        let (alone, _far) = unix::UnixStream::pair().unwrap();
        alone.set_read_timeout(Some(HOUR)).unwrap();
        let alone = CoFd::from_sole_handle(alone).unwrap();
        let (within, _far) = UnixStream::pair().unwrap();
        within.get_ref().set_read_timeout(Some(HOUR)).unwrap();
        let (shared, _far) = unix::UnixStream::pair().unwrap();
        let duplicate = shared.try_clone().unwrap();
        let shared = CoFd::new(shared).unwrap();
        duplicate.set_read_timeout(Some(HOUR)).unwrap();
        for (number, socket) in [before, alone, within, shared].into_iter().enumerate() {
            let reader = spawn(move || (&socket).read(&mut [0]).unwrap_err());
            assert_eq!(reader.join().unwrap().kind(), ErrorKind::TimedOut);
            assert_eq!(clock.elapsed(), HOUR * (number as u32 + 1));
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_socket_timeout(&listener, Timeout::Recv, Some(HOUR)).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(HOUR)).unwrap();
        let both = spawn(move || [listener.accept().map(drop).unwrap_err(), socket.recv(&mut [0]).unwrap_err()]);
        assert_eq!(both.join().unwrap().map(|error| error.kind()), [ErrorKind::TimedOut; 2]);
        assert_eq!(clock.elapsed(), 6 * HOUR);
    });
}

/// Lets the socket wait once, for a byte of its peer.
fn wait_once(ours: UnixStream, theirs: &UnixStream) -> UnixStream {
    let reader = spawn_now(move || (&ours).read_exact(&mut [0]).map(|()| ours));
    { theirs }.write_all(&[0]).unwrap();
    reader.join().unwrap().unwrap()
}

fn read_times_out(ours: UnixStream) -> bool {
    let reader = spawn(move || (&ours).read(&mut [0]).unwrap_err());
    reader.join().unwrap().kind() == ErrorKind::TimedOut
}

#[test]
fn timeout_set_after_a_wait_counts_whichever_way_leads_to_the_socket() {
    // N6: a CoFd that has waited without a timeout obeys one that is set then: through itself, the
    // socket in it, its descriptor, a call made with the socket, or a duplicate of it
    let ways: [fn(&UnixStream); 6] = [
        |ours| ours.set_read_timeout(Some(HOUR)).unwrap(),
        |ours| ours.get_ref().set_read_timeout(Some(HOUR)).unwrap(),
        |ours| set_socket_timeout(ours, Timeout::Recv, Some(HOUR)).unwrap(),
        |ours| ours.read_with(|socket| socket.set_read_timeout(Some(HOUR))).unwrap(),
        |ours| ours.write_with(|socket| socket.set_read_timeout(Some(HOUR))).unwrap(),
        |ours| ours.try_clone().unwrap().set_read_timeout(Some(HOUR)).unwrap(),
    ];
    virtually(|_ctx, clock| {
        for set in ways {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ours = wait_once(ours, &theirs);
            set(&ours);
            assert!(read_times_out(ours));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (other, duplicate) = (ours.try_clone().unwrap(), ours.get_ref().try_clone().unwrap());
        let (ours, other) = (wait_once(ours, &theirs), wait_once(other, &theirs));
        duplicate.set_read_timeout(Some(HOUR)).unwrap();
        assert!(read_times_out(ours));
        assert!(read_times_out(other));
        let (ours, theirs) = unix::UnixStream::pair().unwrap();
        let duplicate = ours.try_clone().unwrap();
        let theirs = CoFd::new(theirs).unwrap();
        let ours = wait_once(CoFd::new(ours).unwrap(), &theirs);
        duplicate.set_read_timeout(Some(HOUR)).unwrap();
        assert!(read_times_out(ours));
        assert_eq!(clock.elapsed(), 9 * HOUR);
    });
}

#[test]
fn timeout_of_the_socket_and_of_the_caller_are_distinguished() {
    // N6, S4: the first timeout that expires ends the wait, with its own error; so does
    // cancellation; a shield masks the caller's timeout alone
    virtually(|_ctx, clock| {
        let pair = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_read_timeout(Some(HOUR)).unwrap();
            (ours, theirs)
        };
        let task = spawn({
            let clock = clock.clone();
            move || {
                let (mut ours, _theirs) = pair();
                assert_eq!(timeout(HOUR / 2, || ours.read(&mut [0]).map(drop).is_ok()), Err(TimedOut));
                assert_eq!(clock.elapsed(), HOUR / 2);
                let inner = timeout(2 * HOUR, || ours.read(&mut [0]).unwrap_err().kind());
                assert_eq!(inner, Ok(ErrorKind::TimedOut));
                assert_eq!(clock.elapsed(), HOUR + HOUR / 2);
                let shielded = timeout(HOUR / 2, || shield(|| ours.read(&mut [0]).unwrap_err().kind()));
                assert_eq!(shielded, Ok(ErrorKind::TimedOut));
                assert_eq!(clock.elapsed(), 2 * HOUR + HOUR / 2);
            }
        });
        task.join().unwrap();
        let began = clock.elapsed();
        let (mut ours, _theirs) = pair();
        let waiting = spawn_now(move || ours.read(&mut [0]).unwrap_err());
        waiting.cancel();
        assert!(Cancelled::is_cause_of(&waiting.join().unwrap()));
        assert_eq!(clock.elapsed(), began);
    });
}

#[test]
fn timeout_that_is_removed_limits_nothing() {
    // N6: without a timeout, and on a pipe, which has none, a wait lasts
    virtually(|ctx, clock| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(HOUR)).unwrap();
        ours.set_read_timeout(None).unwrap();
        let (end, start) = rustix::pipe::pipe().unwrap();
        let end = CoFd::new(std::fs::File::from(end)).unwrap();
        let readers = [spawn_now(move || (&ours).read_exact(&mut [0])), spawn_now(move || (&end).read_exact(&mut [0]))];
        let other = spawn(|| sleep(2 * HOUR).unwrap());
        other.join().unwrap();
        assert!(readers.iter().all(|reader| !reader.is_finished()));
        assert_eq!(clock.elapsed(), 2 * HOUR);
        spawn(move || theirs.write_all(&[0]).unwrap()).join().unwrap();
        rustix::io::write(&start, &[0]).unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap().unwrap());
        assert!(ctx.timers().is_empty());
    });
}
