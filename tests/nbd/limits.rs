//! Limits on clients, and the server at its limits: it continues, and reports each once.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};

use super::client::*;
use super::hostile::allow_descriptors;
use super::server::{Folder, Server};

fn served(server: &Server) -> Client {
    let mut client = Client::plain(server, "");
    assert_eq!(client.read(0, 512).unwrap().len(), 512);
    client
}

#[test]
fn socket_option_replaces_a_dead_socket_only() {
    // P25: at the path of --socket, a file, the image itself, a link or a socket in use is left as
    // it is; a dead socket is replaced
    let folder = Folder::new("socket");
    let image = folder.image("disk", 1 << 20);
    let path = folder.path("s");
    let refused = |why: &str| {
        let said = Server::refused(&folder, &[image.to_str().unwrap()]);
        assert!(said.contains(path.to_str().unwrap()) && said.contains(why), "{said}");
    };
    fs::write(&path, b"precious").unwrap();
    refused("is not a socket");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("is not a socket");
    fs::remove_dir(&path).unwrap();
    // A dead socket elsewhere, and a link to it here.
    drop(UnixListener::bind(folder.path("dead")).unwrap());
    symlink(folder.path("dead"), &path).unwrap();
    refused("is not a socket");
    assert!(path.is_symlink());
    fs::remove_file(&path).unwrap();
    // In use by a process that accepts no connection: its queue is full.
    let busy = UnixListener::bind(&path).unwrap();
    // SAFETY: takes no pointers; the descriptor is open.
    assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&busy), 0) }, 0);
    let _waiting = UnixStream::connect(&path).unwrap();
    refused("another process uses the socket");
    drop(busy);
    // Dead now.
    let server = Server::of(&folder, &image);
    served(&server);
    // A file that has replaced the socket meanwhile is kept when the server ends.
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"precious").unwrap();
    server.stop();
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let said = Server::refused(&folder, &["--socket", image.to_str().unwrap(), image.to_str().unwrap()]);
    assert!(said.contains("is not a socket"), "{said}");
    assert_eq!(fs::metadata(&image).unwrap().len(), 1 << 20);
}

#[test]
fn silent_handshakes_are_closed() {
    // P26: a client that stops anywhere in its handshake is disconnected after --handshake-limit;
    // an established one is not
    let folder = Folder::new("silent");
    let image = folder.image("disk", 1 << 20);
    let server = Server::start(&folder, &["--handshake-limit", "0.2", image.to_str().unwrap()]);
    let mut established = served(&server);
    for bytes in [&b""[..], b"\0\0", b"\0\0\0\x03", b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x10ab"] {
        let mut client = Client::greeted(&server);
        client.say(bytes);
        assert!(client.is_sent_away());
    }
    assert_eq!(established.read(0, 512).unwrap().len(), 512);
    let said = server.stop();
    assert!(said.contains("--handshake-limit"), "{said}");
}

#[test]
fn number_of_options_is_limited() {
    // P26: a client that keeps sending options is disconnected after --max-options, and four more
    // for each export
    let folder = Folder::new("options");
    let image = folder.image("disk", 1 << 20);
    let server = Server::start(&folder, &["--max-options", "10", image.to_str().unwrap()]);
    let mut client = Client::greeted(&server);
    client.say(&3u32.to_be_bytes());
    for _ in 0..14 {
        client.option(3, &[]);
        assert_eq!((client.answer(3).0, client.answer(3).0), (2, 1));
    }
    assert!(client.is_sent_away());
    served(&server);
    let said = server.stop();
    assert!(said.contains("--max-options"), "{said}");
}

#[test]
fn idle_clients_are_closed_on_request() {
    // P26: with --idle-limit, a client that sends no request, sends no payload or takes no reply is
    // disconnected
    let folder = Folder::new("idle");
    let image = folder.image("disk", 64 << 20);
    let server = Server::start(&folder, &["--idle-limit", "0.3", image.to_str().unwrap()]);
    let mut clients: Vec<_> = (0..4).map(|_| Client::plain(&server, "")).collect();
    clients[1].say(&request(READ, 0, 1, 0, 512)[..20]);
    clients[2].ask(WRITE, 0, 1, 0, 8192);
    clients[2].say(&[0; 4096]);
    // More than fits into the socket.
    clients[3].ask(READ, 0, 1, 0, 32 << 20);
    for client in &mut clients[..3] {
        let _ = client.socket.read_to_end(&mut Vec::new());
    }
    // This client reads nothing; it detects the closed connection by sending.
    clients[3].socket.set_nonblocking(true).unwrap();
    while clients[3].socket.write(&[0]).map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |_| true) {
        std::thread::yield_now();
    }
    drop(clients);
    served(&server);
    let said = server.stop();
    assert!(said.contains("--idle-limit"), "{said}");
}

#[test]
fn silent_clients_do_not_lock_out_others() {
    // P27: with more silent clients than descriptors, new clients are served, and established ones
    // stay connected
    let descriptors = if allow_descriptors() < 1024 { 64 } else { 256 };
    let folder = Folder::new("lockout");
    let image = folder.image("disk", 1 << 20);
    let args = ["--handshake-limit", "100000", image.to_str().unwrap()];
    let server = Server::start_limited(&folder, &args, descriptors);
    let mut established = served(&server);
    let silent: Vec<_> = (0..descriptors + 44).map(|_| UnixStream::connect(&server.at).unwrap()).collect();
    served(&server);
    assert_eq!(established.read(0, 512).unwrap().len(), 512);
    drop(silent);
    served(&server);
    let said = server.stop();
    assert!(!said.contains("cannot accept"), "the limit keeps below the descriptors: {said}");
    assert!(said.matches("further clients wait").count() < 5, "{said}");
}

#[test]
fn clients_above_the_connection_limit_wait() {
    // P27: with --max-connections served, a further client waits until one disconnects
    let folder = Folder::new("most");
    let image = folder.image("disk", 1 << 20);
    for threads in ["1", "2"] {
        let args = ["--max-connections", "2", "--threads", threads, image.to_str().unwrap()];
        let server = Server::start(&folder, &args);
        let mut two = [served(&server), served(&server)];
        let mut third = UnixStream::connect(&server.at).unwrap();
        third.set_nonblocking(true).unwrap();
        for client in &mut two {
            (0..50).for_each(|_| assert_eq!(client.read(0, 512).unwrap().len(), 512));
        }
        assert_eq!(third.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        third.set_nonblocking(false).unwrap();
        let [first, _second] = two;
        drop(first);
        third.read_exact(&mut [0; 18]).unwrap();
        let said = server.stop();
        assert_eq!(said.matches("further clients wait").count(), 1, "{said}");
    }
}

#[test]
fn listener_survives_used_up_descriptors() {
    // P27: while the system refuses descriptors the listener continues, with one line at the
    // beginning and one at the end; also when standard error has lost its reader
    let folder = Folder::new("descriptors");
    let image = folder.image("disk", 1 << 20);
    let mut server = Server::of(&folder, &image);
    let mut established = served(&server);
    let mut lines = Some(BufReader::new(server.take_stderr()));
    for round in 0..4 {
        if round == 2 {
            // The lines are not read any more.
            lines = None;
        }
        let before = server.limit_descriptors(3);
        let mut waiting = UnixStream::connect(&server.at).unwrap();
        if let Some(lines) = &mut lines {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            assert!(line.contains("cannot accept connections") && line.contains("retrying"), "{line}");
        }
        assert_eq!(established.read(0, 512).unwrap().len(), 512);
        // The listener retries, which is no reason for another line.
        let sleeps = server.sleeps();
        while server.sleeps() < sleeps + 2 {
            std::thread::yield_now();
        }
        server.limit_descriptors(before);
        waiting.read_exact(&mut [0; 18]).unwrap();
        if let Some(lines) = &mut lines {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            assert!(line.contains("accepting connections again"), "{line}");
        }
    }
    // Something to report, without a reader.
    let mut bad = Client::greeted(&server);
    bad.say(b"GET / HTTP/1.1\r\n\r\n");
    assert!(bad.is_sent_away());
    served(&server);
    server.stop();
}

#[test]
fn server_runs_without_standard_output_and_error() {
    // P27: a server whose standard output and error have no readers serves, reports, and exits with
    // success
    let folder = Folder::new("mute");
    let image = folder.image("disk", 1 << 20);
    let server = Server::start_mute(&folder, &image);
    let mut bad = Client::greeted(&server);
    bad.say(b"GET / HTTP/1.1\r\n\r\n");
    assert!(bad.is_sent_away());
    served(&server);
    server.stop();
}

#[test]
fn dead_tcp_peers_are_probed() {
    // P26: a TCP connection has keepalive, unless --keepalive is 0
    let folder = Folder::new("keepalive");
    let image = folder.image("disk", 1 << 20);
    for (seconds, timer) in [("7", "02"), ("0", "00")] {
        let args = ["--listen", "127.0.0.1:0", "--keepalive", seconds, image.to_str().unwrap()];
        let server = Server::start(&folder, &args);
        let mut client = Client::plain(&server, "");
        let port: u16 = server.at.rsplit(':').next().unwrap().parse().unwrap();
        let end = format!(":{port:04X}");
        // The row of the server's end: its timer is keepalive's (02), or none (00) when all is
        // acknowledged.
        assert_eq!(client.read(0, 512).unwrap().len(), 512);
        let found = loop {
            let table = fs::read_to_string("/proc/net/tcp").unwrap();
            let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
            let row = rows.find(|row| row[1].ends_with(&end) && row[3] == "01").unwrap();
            let timer = row[5][..2].to_string();
            if timer != "01" {
                break timer;
            }
            // The acknowledgement of the reply is under way.
            std::thread::yield_now();
        };
        assert_eq!(found, timer);
        server.stop();
    }
}

#[test]
fn flooding_clients_do_not_keep_the_server_from_ending() {
    // P27: SIGTERM ends the server though clients send options and requests without a pause
    let folder = Folder::new("endless");
    let image = folder.image("disk", 1 << 20);
    let server = Server::start(&folder, &["--max-options", "100000000", image.to_str().unwrap()]);
    let mut options = Client::greeted(&server);
    options.say(&3u32.to_be_bytes());
    let commands = Client::plain(&server, "");
    let option = [b"IHAVEOPT", &99u32.to_be_bytes()[..], &0u32.to_be_bytes()].concat();
    let floods = [(options.socket, option), (commands.socket, request(42, 0, 1, 0, 0))];
    let threads = floods.map(|(socket, bytes)| {
        let (mut out, mut back) = (socket.try_clone().unwrap(), socket);
        let bytes = bytes.repeat(1000);
        let (first, begun) = std::sync::mpsc::channel();
        let drain = std::thread::spawn(move || {
            let mut room = vec![0; 1 << 16];
            while back.read(&mut room).is_ok_and(|count| count > 0) {
                let _ = first.send(());
            }
        });
        let flood = std::thread::spawn(move || while out.write_all(&bytes).is_ok() {});
        begun.recv().unwrap();
        (flood, drain)
    });
    served(&server);
    server.stop();
    for (flood, drain) in threads {
        flood.join().unwrap();
        drain.join().unwrap();
    }
}
