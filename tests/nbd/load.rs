//! The server stopped by a signal under load; several threads; several clients on one image.

use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use coralio::BackendKind;

use super::client::*;
use super::server::{Folder, Server};
use crate::common::has;

const BLOCKS: u64 = 4096;

/// Keeps sixteen writes under way until the server closes the connection. Returns the acknowledged
/// blocks.
fn write_until_the_end(mut client: Client, done: &AtomicUsize) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    let mut next = 0;
    let ask = |client: &mut Client, next: &mut u64| {
        let block = *next % BLOCKS;
        let mut bytes = request(WRITE, 0, block, block * 4096, 4096);
        bytes.extend([block as u8 | 1; 4096]);
        *next += 1;
        // The server may have closed the connection; its replies are still to be read.
        let _ = client.socket.write_all(&bytes);
    };
    (0..16).for_each(|_| ask(&mut client, &mut next));
    let mut head = [0; 16];
    while client.socket.read_exact(&mut head).is_ok() {
        assert_eq!(head[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        acknowledged.push(u64::from_be_bytes(be(&head[8..])));
        done.fetch_add(1, Ordering::Relaxed);
        ask(&mut client, &mut next);
    }
    acknowledged
}

#[test]
fn signal_under_load_ends_the_server() {
    // P11: after SIGTERM, requests under way are finished and answered, the image is flushed, and
    // the server exits with success
    for (threads, args) in [("1", &[][..]), ("3", &["--backend", "threads"][..])] {
        let folder = Folder::new(&format!("signal{threads}"));
        let image = folder.image("disk", BLOCKS * 4096);
        let all = [&["--threads", threads, image.to_str().unwrap()][..], args].concat();
        let server = Server::start(&folder, &all);
        let idle = Client::plain(&server, "");
        let done = AtomicUsize::new(0);
        let acknowledged: Vec<_> = thread::scope(|scope| {
            let clients = [(), (), ()].map(|()| Client::plain(&server, ""));
            let writers = clients.map(|client| scope.spawn(|| write_until_the_end(client, &done)));
            while done.load(Ordering::Relaxed) < 2000 {
                thread::yield_now();
            }
            server.signal(libc::SIGTERM);
            writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
        });
        let said = server.ended();
        assert!(said.contains("stopped by signal 15"), "{said}");
        drop(idle);
        assert!(acknowledged.len() >= 2000);
        let found = fs::read(&image).unwrap();
        for block in acknowledged {
            let at = block as usize * 4096;
            assert!(found[at..at + 4096].iter().all(|&byte| byte == block as u8 | 1), "block {block} was acknowledged");
        }
    }
}

#[test]
fn signal_during_replies_ends_the_server() {
    // P19: after SIGTERM, every request that the server has read is answered, though the client
    // takes the replies slowly
    const COUNT: u64 = 200;
    let folder = Folder::new("replies");
    let server = Server::of(&folder, &folder.image("disk", 64 << 20));
    let mut client = Client::plain(&server, "");
    // One write, which the server reads as one: with the first reply, all have been read.
    let all: Vec<u8> = (0..COUNT).flat_map(|number| request(READ, 0, number, 0, 65536)).collect();
    client.say(&all);
    for answered in 0..COUNT {
        assert_eq!(client.reply().0, 0);
        client.take(65536);
        if answered == 0 {
            server.signal(libc::SIGTERM);
        }
    }
    assert!(client.is_sent_away());
    server.ended();
}

#[test]
fn threads_and_clients_share_an_image() {
    // P12: data that one client has written and flushed is read by every other client, whichever
    // thread serves it; also over TCP
    let folder = Folder::new("shared");
    let image = folder.image("disk", 1 << 20);
    for backend in ["auto", "aio", "uring", "threads"] {
        let choice = backend.parse().unwrap();
        if choice != BackendKind::Auto && !has(choice, 1) {
            continue;
        }
        let args = ["--threads", "2", "--listen", "127.0.0.1:0", "--backend", backend, image.to_str().unwrap()];
        let server = Server::start(&folder, &args);
        let mut clients: Vec<_> = (0..4).map(|_| Client::plain(&server, "")).collect();
        for (number, kind) in backend.bytes().enumerate() {
            let writer = number % 4;
            clients[writer].write(writer as u64 * 8192, &[kind; 5000]).unwrap();
            clients[writer].command(FLUSH, 0, 0, 0).unwrap();
            for client in &mut clients {
                assert_eq!(client.read(writer as u64 * 8192, 5000).unwrap(), [kind; 5000], "{backend}");
            }
        }
        server.stop();
    }
}
