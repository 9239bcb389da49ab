//! UDP: borders of datagrams, truncation, and the peer of a connected socket.

use std::io::ErrorKind;
use std::net;

use coralio_runtime::net::UdpSocket;
use coralio_runtime::{AioContext, Cancelled, spawn, spawn_now};

#[test]
fn datagrams_keep_their_borders() {
    // N4: each receive returns one datagram and its source, empty ones included, and waits for it
    AioContext::run(|_ctx| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let theirs = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, from) = (ours.local_addr().unwrap(), theirs.local_addr().unwrap());
        let receiver = spawn_now(move || {
            [(); 3].map(|()| {
                let mut datagram = [0; 100];
                let (len, source) = ours.recv_from(&mut datagram).unwrap();
                assert_eq!(source, from);
                ours.send_to(&datagram[..len], source).unwrap();
                String::from_utf8(datagram[..len].to_vec()).unwrap()
            })
        });
        assert!(!receiver.is_finished());
        for datagram in ["one", "", "three"] {
            theirs.send_to(datagram.as_bytes(), to).unwrap();
        }
        assert_eq!(receiver.join().unwrap(), ["one", "", "three"]);
        for datagram in ["one", "", "three"] {
            let mut answer = [0; 100];
            let len = theirs.recv(&mut answer).unwrap();
            assert_eq!(&answer[..len], datagram.as_bytes());
        }
    });
}

#[test]
fn rest_of_a_long_datagram_is_lost() {
    // N4: a datagram longer than the buffer is cut, and the next receive returns the next datagram
    AioContext::run(|_ctx| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let theirs = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        theirs.connect(ours.local_addr().unwrap()).unwrap();
        theirs.send(b"0123456789").unwrap();
        theirs.send(b"ab").unwrap();
        let receiver = spawn(move || {
            let mut short = [0; 4];
            assert_eq!(ours.recv(&mut short).unwrap(), 4);
            assert_eq!(&short, b"0123");
            assert_eq!(ours.recv(&mut short).unwrap(), 2);
            assert_eq!(&short[..2], b"ab");
        });
        receiver.join().unwrap();
    });
}

#[test]
fn connected_socket_has_one_peer() {
    // N4: a connected socket sends to its peer and receives from it alone; a peer that is gone is
    // an error; a receive can be cancelled
    AioContext::run(|ctx| {
        let ours = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let [peer, stranger] = [(); 2].map(|()| net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = ours.local_addr().unwrap();
        assert_eq!(ours.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
        ours.connect(peer.local_addr().unwrap()).unwrap();
        stranger.send_to(b"no", to).unwrap();
        peer.send_to(b"yes", to).unwrap();
        let receiver = spawn(move || {
            let mut datagram = [0; 8];
            assert_eq!(ours.recv(&mut datagram).unwrap(), 3);
            ours.send(b"thanks").unwrap();
            ours
        });
        let ours = receiver.join().unwrap();
        assert_eq!(peer.recv(&mut [0; 8]).unwrap(), 6);
        let waiting = spawn_now(move || {
            let cancelled = ours.recv(&mut [0; 8]).unwrap_err();
            assert!(Cancelled::is_cause_of(&cancelled), "{cancelled}");
            ours
        });
        while ctx.poll(false) {}
        waiting.cancel();
        let ours = waiting.join().unwrap();
        drop(peer);
        ours.send(b"anyone?").unwrap();
        let refused = spawn(move || ours.recv(&mut [0; 8]).unwrap_err());
        assert_eq!(refused.join().unwrap().kind(), ErrorKind::ConnectionRefused);
    });
}
