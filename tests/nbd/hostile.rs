//! Clients that misbehave: they lose their connection, or wait; other clients are not affected, and
//! nothing is lost.

use std::fs;
use std::io::{Read, Write};
use std::thread;

use super::client::*;
use super::server::{Folder, Server};
use crate::common::{is_all, skipped};

const MIB: usize = 1 << 20;

/// Asserts that another client is served as usual.
fn assert_others_are_served(server: &Server) {
    let mut client = Client::plain(server, "");
    client.write(4096, b"unmoved").unwrap();
    assert_eq!(client.read(4096, 7).unwrap(), b"unmoved");
}

#[test]
fn server_ends_without_clients() {
    // P5: a client that does not follow the protocol is disconnected, at each step
    let folder = Folder::new("rubbish");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    let rubbish: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x04IHAVEOPT",
        b"\0\0\0\x03IHAVENOT\0\0\0\x01\0\0\0\0",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
        b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x04none",
    ];
    for bytes in rubbish {
        let mut client = Client::greeted(&server);
        client.say(bytes);
        let mut rest = Vec::new();
        let _ = client.socket.read_to_end(&mut rest);
        assert!(rest.len() < 64, "{rest:?}");
        assert_others_are_served(&server);
    }
    // Half of an option, without end; and a connection closed within one.
    let mut halting = Client::greeted(&server);
    halting.say(b"\0\0\0\x03IHAVE");
    Client::greeted(&server).say(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x10ab");
    assert_others_are_served(&server);
    let said = server.stop();
    assert!(said.contains("option with a wrong magic number"), "{said}");
    drop(halting);
}

#[test]
fn bad_requests_are_answered_with_errors() {
    // P6: a wrong magic or an overlong write ends the connection; a request out of range is
    // answered with an error
    let folder = Folder::new("bad");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    let mut client = Client::plain(&server, "");
    assert_eq!(client.read(1 << 20, 1), Err(22));
    assert_eq!(client.read(u64::MAX, 1), Err(22));
    assert_eq!(client.read(0, 33 << 20), Err(22));
    assert_eq!(client.write((1 << 20) - 1, &[0; 70_000]), Err(28));
    assert_eq!(client.write(u64::MAX - 1, &[0; 100]), Err(28));
    assert_eq!(client.command(TRIM, 0, 1 << 20, 1), Err(22));
    assert_eq!(client.command(WRITE_ZEROES, 0, 0, u32::MAX), Err(28));
    assert_eq!(client.command(42, 0, 0, 0), Err(22));
    assert_eq!(client.command(FLUSH, 1 << 9, 0, 0), Err(22));
    assert_eq!(client.read(0, 1).unwrap(), [0]);
    // Byte by byte, each of which the server may take for a beginning.
    for byte in [&request(WRITE, 0, 2, 7, 4)[..], b"slow", &request(READ, 0, 3, 7, 4)].concat() {
        client.say(&[byte]);
        assert_others_are_served(&server);
    }
    assert_eq!((client.reply(), client.reply()), ((0, 2), (0, 3)));
    assert_eq!(client.take(4), b"slow");
    client.ask(WRITE, 0, 1, 0, (32 << 20) + 1);
    assert!(client.is_sent_away());
    let mut client = Client::plain(&server, "");
    client.write(0, b"kept").unwrap();
    // A valid request before it is executed and answered.
    client.say(&[&request(READ, 0, 1, 0, 4)[..], &[0x5a; 28]].concat());
    assert_eq!(client.reply(), (0, 1));
    assert_eq!(client.take(4), b"kept");
    assert!(client.is_sent_away());
    assert_others_are_served(&server);
    let said = server.stop();
    assert!(said.contains("wrong magic") && said.contains("exceeds the limit"), "{said}");
}

#[test]
fn disconnected_clients_are_cleaned_up() {
    // P7: a client that disconnects within a request or a write has no other effect: complete
    // requests are executed, incomplete ones are not
    let folder = Folder::new("gone");
    let image = folder.image("disk", 64 << 20);
    let server = Server::of(&folder, &image);
    for (whole, missing) in [(3, 1), (4096, 1), (4096, 4095), (2 * MIB, MIB), (32 * MIB, 1)] {
        let mut client = Client::plain(&server, "");
        client.say(&[&request(WRITE, 0, 1, 0, 512)[..], &[0x11; 512]].concat());
        client.ask(WRITE, 0, 2, 8 << 20, whole as u32);
        client.say(&vec![0x22; whole - missing]);
        client.half_close();
        assert_eq!(client.reply(), (0, 1));
        assert!(client.is_sent_away());
        let mut client = Client::plain(&server, "");
        client.say(&request(WRITE, 0, 1, 0, 512)[..27]);
    }
    // All requests are sent before a reply is read, and then half of the connection is closed: each
    // is answered.
    let mut client = Client::plain(&server, "");
    (0..50).for_each(|cookie| client.ask(READ, 0, cookie, 0, 512));
    client.half_close();
    for _ in 0..50 {
        assert_eq!(client.reply().0, 0);
        assert_eq!(client.take(512), [0x11; 512]);
    }
    assert!(client.is_sent_away());
    server.stop();
    assert!(is_all(&fs::read(image).unwrap()[8 << 20..], 0));
}

#[test]
fn clients_that_read_no_replies_do_not_block_others() {
    // P8: ten thousand requests whose replies are not read: the server stops reading, with bounded
    // memory; later all are answered
    const COUNT: u64 = 10_000;
    let folder = Folder::new("slow");
    let image = folder.image("disk", 64 << 20);
    let server = Server::of(&folder, &image);
    assert_others_are_served(&server);
    let before = server.memory();
    let mut slow: Vec<_> = (0..4).map(|_| Client::plain(&server, "")).collect();
    let writers: Vec<_> = slow
        .iter()
        .map(|client| {
            let mut socket = client.socket.try_clone().unwrap();
            thread::spawn(move || {
                let all: Vec<u8> =
                    (0..COUNT).flat_map(|number| request(READ, 0, number, number * 4096, 4096)).collect();
                // Blocks here, since the server does not read.
                socket.write_all(&all).unwrap();
            })
        })
        .collect();
    for _ in 0..100 {
        assert_others_are_served(&server);
    }
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "four slow clients cost {grown} bytes");
    for client in &mut slow {
        let mut answered = vec![false; COUNT as usize];
        for _ in 0..COUNT {
            let (error, cookie) = client.reply();
            assert_eq!(error, 0);
            assert!(!std::mem::replace(&mut answered[cookie as usize], true), "answered twice");
            let data = client.take(4096);
            assert!(is_all(&data, 0) || cookie == 1);
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    server.stop();
}

#[test]
fn concurrent_large_requests_are_served() {
    // P9: requests of 32 MiB, beyond the limit on payload under way, wait their turn, and memory
    // stays bounded
    let folder = Folder::new("large");
    let image = folder.image("disk", 64 << 20);
    let server = Server::of(&folder, &image);
    let mut client = Client::plain(&server, "");
    let data: Vec<u8> = (0..32 * MIB).map(|i| (i / 4096) as u8).collect();
    client.write(0, &data).unwrap();
    (0..12).for_each(|cookie| client.ask(READ, 0, cookie, 0, 32 << 20));
    for _ in 0..12 {
        assert_eq!(client.reply().0, 0);
        assert!(client.take(32 * MIB) == data);
    }
    let memory = server.peak();
    assert!(memory < 200 << 20, "{memory} bytes");
    server.stop();
}

#[test]
fn stalled_transfers_do_not_delay_other_clients() {
    // P21: clients that stop within transfers of 32 MiB hold no more memory than --memory; small
    // and large requests of other clients are served meanwhile
    for command in [READ, WRITE] {
        let folder = Folder::new(&format!("stalled{command}"));
        let image = folder.image("disk", 64 << 20);
        let args = ["--memory", "64", "--threads", "2", image.to_str().unwrap()];
        let server = Server::start(&folder, &args);
        assert_others_are_served(&server);
        let mut stalled: Vec<_> = (0..6).map(|_| Client::plain(&server, "")).collect();
        for client in &mut stalled {
            client.ask(command, 0, 1, 0, 32 << 20);
            // Part of the payload; the rest never comes.
            let _ = client.socket.write_all(&vec![0; if command == WRITE { 31 * MIB } else { 0 }]);
        }
        (0..100).for_each(|_| assert_others_are_served(&server));
        let mut good = Client::plain(&server, "");
        assert_eq!(good.read(0, 32 << 20).unwrap().len(), 32 * MIB);
        assert_eq!(good.write(0, &vec![1; 32 * MIB]), Ok(()));
        let memory = server.peak();
        assert!(memory < 160 << 20, "{memory} bytes");
        drop(stalled);
        server.stop();
    }
}

#[test]
fn slow_readers_do_not_delay_a_large_read() {
    // P21: eight clients ask for 64 MiB each and read nothing; another client gets its 8 MiB
    // without delay, and each gets its data in the end
    let folder = Folder::new("readers");
    let image = folder.path("disk");
    let data: Vec<u8> = (0..32 * MIB).map(|i| (i >> 12) as u8 | 1).collect();
    fs::write(&image, &data).unwrap();
    for memory in ["512", "64", "0"] {
        let server = Server::start(&folder, &["--memory", memory, image.to_str().unwrap()]);
        let mut slow: Vec<_> = (0..8)
            .map(|number| {
                let mut client = Client::plain(&server, "");
                let count = [2, 64][number % 2];
                (0..count).for_each(|cookie| client.ask(READ, 0, cookie, 0, (64 * MIB / count as usize) as u32));
                client
            })
            .collect();
        let mut other = Client::plain(&server, "");
        assert!(other.read(4096, 8 << 20).unwrap() == data[4096..4096 + 8 * MIB]);
        assert!(server.peak() < (200 << 20) + (memory.parse::<u64>().unwrap() << 20));
        for (number, client) in slow.iter_mut().enumerate() {
            let count = [2, 64][number % 2];
            for _ in 0..count {
                assert_eq!(client.reply().0, 0);
                let len = 64 * MIB / count;
                assert!(client.take(len) == data[..len]);
            }
        }
        server.stop();
    }
}

#[test]
fn large_requests_are_served_in_pieces_without_a_budget() {
    // P21: with --memory 0, large reads and writes go through the connection's own memory in
    // pieces: content, errors, FUA and holes stay the same
    let folder = Folder::new("pieces");
    let image = folder.image("disk", 48 << 20);
    let server = Server::start(&folder, &["--memory", "0", image.to_str().unwrap()]);
    let mut plain = Client::plain(&server, "");
    let data: Vec<u8> = (0..9 * MIB + 5).map(|i| (i % 251) as u8).collect();
    plain.ask(WRITE, FUA, 2, 3, data.len() as u32);
    plain.say(&data);
    // The next request follows in the same stream.
    plain.ask(READ, 0, 3, 2, 3);
    assert_eq!((plain.reply(), plain.reply()), ((0, 2), (0, 3)));
    assert_eq!(plain.take(3), [0, 0, 1]);
    assert!(plain.read(3, data.len() as u32).unwrap() == data);
    // Rejected as a whole, before any piece is written or sent; the payload is skipped.
    assert_eq!(plain.write((48 << 20) - 3 * MIB as u64, &vec![7; 4 * MIB]), Err(28));
    assert_eq!(plain.read((48 << 20) - 3 * MIB as u64, 4 << 20), Err(22));
    assert_eq!(plain.read(0, 33 << 20), Err(22));
    plain.ask(WRITE, NO_HOLE, 2, 0, 2 << 20);
    plain.say(&vec![7; 2 * MIB]);
    assert_eq!(plain.reply(), (22, 2));
    assert!(is_all(&plain.read(45 << 20, 3 << 20).unwrap(), 0));

    let mut client = Client::structured(&server, "");
    let mut expected = vec![0; 16 * MIB];
    expected[3..3 + data.len()].copy_from_slice(&data);
    client.ask(READ, 0, 4, 0, 16 << 20);
    let (mut found, mut done) = (vec![0xaa; 16 * MIB], false);
    let mut holes = 0;
    while !done {
        let chunk = client.chunk();
        let at = u64::from_be_bytes(be(&chunk.data)) as usize;
        match chunk.kind {
            1 => found[at..at + chunk.data.len() - 8].copy_from_slice(&chunk.data[8..]),
            2 => {
                let len = u32::from_be_bytes(be(&chunk.data[8..])) as usize;
                found[at..at + len].fill(0);
                holes += len;
            }
            kind => panic!("chunk of kind {kind}"),
        }
        done = chunk.done;
    }
    assert!(found == expected && holes >= 6 * MIB, "{holes} bytes of holes");
    client.ask(READ, DF, 5, 0, 16 << 20);
    let chunk = client.chunk();
    assert!((chunk.done, chunk.kind) == (true, 1) && chunk.data[8..] == expected[..]);
    // The truncated part of the file cannot be read: an error chunk, or a closed connection if the
    // head was already sent.
    fs::File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    client.ask(READ, 0, 6, 0, 4 << 20);
    let last = std::iter::repeat_with(|| client.chunk()).find(|chunk| chunk.done).unwrap();
    assert_eq!((last.kind, &last.data[..4]), (0x8001, &5u32.to_be_bytes()[..]));
    client.ask(READ, 0, 7, 0, 512);
    assert_eq!(client.chunk().kind, 1, "the other client continues");
    plain.ask(READ, 0, 8, 0, 4 << 20);
    let mut rest = Vec::new();
    plain.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.len() >= MIB && rest.len() < 2 * MIB, "{} bytes", rest.len());
    let said = server.stop();
    assert!(said.contains("in the middle of a reply"), "{said}");
}

#[test]
fn requests_without_payload_have_their_memory_counted() {
    // P22: memory that a request takes beyond its payload is counted too; found by the fuzz target
    let folder = Folder::new("counted");
    let image = folder.image("disk", 64 << 20);
    let server = Server::start(&folder, &["--memory", "32", image.to_str().unwrap()]);
    let mut client = Client::plain(&server, "");
    let all: Vec<u8> = (0..256).flat_map(|cookie| request(CACHE, 0, cookie, cookie << 10, 32 << 20)).collect();
    client.say(&all);
    (0..256).for_each(|_| assert_eq!(client.reply().0, 0));
    let memory = server.peak();
    assert!(memory < 60 << 20, "{memory} bytes");
    server.stop();
}

#[test]
fn bad_clients_do_not_flood_standard_error() {
    // P27: of clients disconnected in quick succession only some are reported, and the server
    // continues though the lines are not read
    let folder = Folder::new("lines");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    // More lines than fit into a pipe that is not read.
    for _ in 0..2000 {
        let mut client = Client::greeted(&server);
        client.say(&u32::MAX.to_be_bytes());
        assert!(client.is_sent_away());
    }
    assert_others_are_served(&server);
    let said = server.stop();
    assert!(said.contains("client flags 0xffffffff") && said.lines().count() < 1000, "{}", said.lines().count());
}

#[test]
fn announced_payload_allocates_no_memory() {
    // P18: a client that announces 32 MiB and sends nothing costs no memory for it
    let folder = Folder::new("promises");
    let server = Server::of(&folder, &folder.image("disk", 64 << 20));
    assert_others_are_served(&server);
    let before = server.memory();
    let mut promising: Vec<_> = (0..40).map(|_| Client::plain(&server, "")).collect();
    promising.iter_mut().for_each(|client| client.ask(WRITE, 0, 1, 0, 32 << 20));
    assert_others_are_served(&server);
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "forty promises of 32 MiB cost {grown} bytes");
    drop(promising);
    assert_others_are_served(&server);
    server.stop();
}

#[test]
fn thousand_connections_are_served() {
    // P10: a thousand clients, idle after one request, cost at most 16 KiB each, and all are served
    let folder = Folder::new("thousand");
    // Before the start of the server, which inherits the limit.
    let limit = allow_descriptors();
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    // Part of the limit goes to the server's own descriptors and to tests that run at the same
    // time.
    let many = (limit / 2).min(1000);
    if many < 1000 {
        skipped(format_args!("{} of 1000 connections: {limit} descriptors at most", 1000 - many));
    }
    assert_others_are_served(&server);
    // The ring registers memory for buffers, once, which is then in use.
    let mut first = Client::plain(&server, "");
    (0..200).for_each(|_| assert_eq!(first.read(0, 512).unwrap(), [0; 512]));
    let before = server.memory();
    let mut clients: Vec<_> = (0..many).map(|_| Client::plain(&server, "")).collect();
    for client in &mut clients {
        assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
    }
    assert_others_are_served(&server);
    let each = server.memory().saturating_sub(before) / many;
    assert!(each <= 16 << 10, "an idle connection costs {each} bytes");
    server.stop();
}

/// Raises the limit on descriptors, usually 1024, as far as this process may, and returns it.
pub(super) fn allow_descriptors() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: each call reads or writes the one structure.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    limit.rlim_max
}
