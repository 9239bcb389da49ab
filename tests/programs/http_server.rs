//! The program `http_server`, run as a user runs it, against a client on `std`'s sockets.
#![allow(unsafe_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A running server and its root directory; killed and removed on drop.
struct Server {
    child: Child,
    address: String,
    root: PathBuf,
}

impl Server {
    fn start(test: &str, args: &[&str]) -> Server {
        let tests = std::env::current_exe().unwrap();
        let program = tests.parent().and_then(Path::parent).unwrap().join("examples/http_server");
        assert!(program.is_file(), "no {}; make it first: cargo build --example http_server", program.display());
        let root = std::env::temp_dir().join(format!("coralio-http-{}-{test}", std::process::id()));
        fs::create_dir(&root).unwrap();
        let mut child = Command::new(program)
            .arg("--root")
            .arg(&root)
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().rsplit_once("http://").expect("it prints its address").1.to_string();
        Server { child, address, root }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn connect(&self) -> Client {
        Client(BufReader::new(TcpStream::connect(&self.address).unwrap()))
    }

    /// Sends one request on a connection of its own.
    fn get(&self, target: &str, headers: &str) -> Response {
        self.connect().get(target, headers)
    }

    fn terminate(&self) {
        // SAFETY: takes no pointers; the child has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) }, 0);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.root);
    }
}

struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.split_once(": ").filter(|(key, _)| *key == name)).map(|(_, value)| value)
    }
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    fn get(&mut self, target: &str, headers: &str) -> Response {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n"));
        self.receive()
    }

    fn receive(&mut self) -> Response {
        self.try_receive().expect("a response")
    }

    /// Receives a response; `None` at end of file.
    fn try_receive(&mut self) -> Option<Response> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head).ok().is_none_or(|count| count == 0) {
                assert!(head.is_empty(), "a head is complete: {head}");
                return None;
            }
        }
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok()).expect("a status");
        let mut response = Response { status, head, body: Vec::new() };
        let len = response.header("Content-Length").map_or(0, |len| len.parse().unwrap());
        response.body.resize(len, 0);
        self.0.read_exact(&mut response.body).unwrap();
        Some(response)
    }

    /// Returns whether the server has closed the connection, and sends nothing before.
    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 13) >> 3) as u8).collect()
}

#[test]
fn files_are_served_as_they_are_now() {
    // Q1: content, length and type; a changed, replaced or removed file is seen by the next
    // request; directories have an index
    let server = Server::start("files", &[]);
    server.file("a.html", "first");
    server.file("empty.txt", "");
    server.file("large.bin", pattern(3_000_001));
    server.file("sub/index.html", "index");
    server.file("with space é.txt", "name");
    let mut client = server.connect();
    for _ in 0..2 {
        let page = client.get("/a.html", "");
        assert_eq!((page.status, &*page.body), (200, &b"first"[..]));
        assert_eq!(page.header("Content-Type"), Some("text/html; charset=utf-8"));
        assert!(page.header("Date").unwrap().ends_with(" GMT"));
    }
    server.file("a.html", "second, longer");
    assert_eq!(client.get("/a.html?query", "").body, b"second, longer");
    fs::rename(server.root.join("a.html"), server.root.join("b.html")).unwrap();
    assert_eq!(client.get("/a.html", "").status, 404);
    server.file("a.html", "third");
    assert_eq!(client.get("http://host/a.html", "").body, b"third");
    assert_eq!(client.get("/empty.txt", "").body, b"");
    assert!(client.get("/large.bin", "").body == pattern(3_000_001));
    assert_eq!(client.get("/sub/", "").body, b"index");
    let moved = client.get("/sub", "");
    assert_eq!((moved.status, moved.header("Location")), (301, Some("/sub/")));
    assert_eq!(client.get("/with%20space%20%C3%A9.txt", "").body, b"name");
    assert_eq!(client.get("/sub/index.html/more", "").status, 404);
}

#[test]
fn head_ranges_and_conditions() {
    // Q1: HEAD has the headers alone; a range returns exactly its bytes, or 416; an unchanged file
    // 304
    let server = Server::start("ranges", &[]);
    server.file("f.txt", "0123456789");
    let mut client = server.connect();
    client.send("HEAD /f.txt HTTP/1.1\r\nHost: test\r\n\r\nGET /f.txt HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        client.0.read_line(&mut head).unwrap();
    }
    assert!(head.contains("Content-Length: 10\r\n"), "{head}");
    let whole = client.receive();
    assert_eq!(whole.body, b"0123456789");
    for (range, part, content_range) in [
        ("0-0", "0", "bytes 0-0/10"),
        ("2-4", "234", "bytes 2-4/10"),
        ("7-", "789", "bytes 7-9/10"),
        ("8-100", "89", "bytes 8-9/10"),
        ("-3", "789", "bytes 7-9/10"),
        ("-100", "0123456789", "bytes 0-9/10"),
    ] {
        let response = client.get("/f.txt", &format!("Range: bytes={range}\r\n"));
        assert_eq!((response.status, &*response.body), (206, part.as_bytes()), "{range}");
        assert_eq!(response.header("Content-Range"), Some(content_range));
    }
    for range in ["10-", "10-20", "-0"] {
        let response = client.get("/f.txt", &format!("Range: bytes={range}\r\n"));
        assert_eq!((response.status, response.header("Content-Range")), (416, Some("bytes */10")), "{range}");
    }
    for ignored in ["bytes=0-1,3-4", "bytes=4-2", "lines=1-2", "bytes=x-y"] {
        assert_eq!(client.get("/f.txt", &format!("Range: {ignored}\r\n")).status, 200, "{ignored}");
    }
    let modified = whole.header("Last-Modified").unwrap();
    let since = |date: &str| format!("If-Modified-Since: {date}\r\n");
    let unchanged = client.get("/f.txt", &since(modified));
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(client.get("/f.txt", &since("Sun, 06 Nov 1994 08:49:37 GMT")).status, 200);
    assert_eq!(client.get("/f.txt", &since("no date")).status, 200);
    let range = "Range: bytes=1-2\r\n";
    assert_eq!(client.get("/f.txt", &format!("{range}If-Range: {modified}\r\n")).status, 206);
    assert_eq!(client.get("/f.txt", &format!("{range}If-Range: Sun, 06 Nov 1994 08:49:37 GMT\r\n")).status, 200);
}

#[test]
fn connections_are_kept_and_pipelined_requests_answered_in_order() {
    // Q2: many requests on one connection, sent together or byte by byte; closed when the client
    // asks for it, by either version's rule
    let server = Server::start("keep", &[]);
    (0..10).for_each(|number| server.file(&format!("{number}.txt"), number.to_string()));
    let mut client = server.connect();
    let requests: String =
        (0..500).map(|number| format!("GET /{}.txt HTTP/1.1\r\nHost: test\r\n\r\n", number % 10)).collect();
    client.send(&requests);
    for number in 0..500 {
        assert_eq!(client.receive().body, (number % 10).to_string().as_bytes());
    }
    for byte in b"\r\nGET /7.txt HTTP/1.1\r\nhOST: test\r\n\r\n" {
        client.send([*byte]);
    }
    assert_eq!(client.receive().body, b"7");
    let last = client.get("/8.txt", "Connection: Close\r\n");
    assert_eq!((&*last.body, last.header("Connection")), (&b"8"[..], Some("close")));
    assert!(client.is_closed());

    let mut old = server.connect();
    old.send("GET /1.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(old.receive().header("Connection"), Some("keep-alive"));
    old.send("GET /2.txt HTTP/1.0\r\n\r\n");
    assert_eq!(old.receive().body, b"2");
    assert!(old.is_closed());

    let mut half = server.connect();
    half.send("GET /3.txt HTTP/1.1\r\nHost: test\r\n\r\n");
    half.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.receive().body, b"3");
    assert!(half.is_closed());
}

#[test]
fn bad_requests_are_answered_and_end_the_connection() {
    // Q3: each malformed request gets its status, even if more input follows, and other clients are
    // served
    let server = Server::start("bad", &[]);
    server.file("f.txt", "fine");
    let long = format!("GET /f.txt HTTP/1.1\r\nHost: test\r\nLong: {}\r\n\r\n", "x".repeat(10_000));
    let many = format!("GET /f.txt HTTP/1.1\r\nHost: test\r\n{}\r\n", "A: b\r\n".repeat(100));
    for (request, status) in [
        ("nonsense\r\n\r\n", 400),
        ("GET /f.txt HTTP/1.1\r\n\r\n", 400),
        ("GET /f.txt HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET /f.txt HTTP/1.1\r\nHost: test\r\nno colon\r\n\r\n", 400),
        ("GET /f.txt HTTP/1.1\r\nHost: test\r\nContent-Length: x\r\n\r\n", 400),
        ("GET /f.txt HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello", 413),
        ("GET /f.txt HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413),
        ("GET /f.txt HTTP/2.0\r\nHost: test\r\n\r\n", 505),
        (&long, 431),
        (&many, 431),
    ] {
        let mut client = server.connect();
        client.send(request);
        client.send("GET /f.txt HTTP/1.1\r\nHost: test\r\n\r\n".repeat(50));
        let response = client.receive();
        assert_eq!((response.status, response.header("Connection")), (status, Some("close")), "{request}");
        assert!(client.is_closed(), "{request}");
    }
    let mut client = server.connect();
    for method in ["POST", "DELETE", "get"] {
        client.send(format!("{method} /f.txt HTTP/1.1\r\nHost: test\r\n\r\n"));
        let refused = client.receive();
        assert_eq!((refused.status, refused.header("Allow")), (405, Some("GET, HEAD")));
    }
    assert_eq!(client.get("/f.txt", "").body, b"fine");
}

#[test]
fn targets_do_not_leave_the_root() {
    // Q4: neither `..`, encoded or not, nor an absolute path, nor NUL reaches a file outside;
    // special files are not opened
    let server = Server::start("root", &[]);
    let name = server.root.file_name().unwrap().to_str().unwrap().to_string();
    let outside = server.root.with_extension("secret");
    fs::write(&outside, "secret").unwrap();
    let secret = format!("{name}.secret");
    server.file("sub/f.txt", "inside");
    server.file("..f/..g.txt", "dots");
    let escapes = [
        format!("/../{secret}"),
        format!("/sub/../../{secret}"),
        format!("/%2e%2e/{secret}"),
        format!("/sub/%2E./..%2f{secret}"),
        format!("/{}", outside.display()),
        format!("/%2f{}", outside.display()),
        "/sub/../sub/f.txt".to_string(),
    ];
    for target in escapes {
        assert_eq!(server.get(&target, "").status, 403, "{target}");
    }
    for target in ["/sub/f.txt%00", "/%", "/%4", "/%zz", "*", "sub/f.txt"] {
        assert_eq!(server.get(target, "").status, 400, "{target}");
    }
    symlink("/dev/zero", server.root.join("device")).unwrap();
    assert_eq!(server.get("/device", "").status, 403);
    assert_eq!(server.get("/..f/..g.txt", "").body, b"dots");
    fs::remove_file(outside).unwrap();
}

#[test]
fn slow_clients_are_disconnected() {
    // Q5: a silent client, one that sends its request byte by byte for ever, and one that takes no
    // response are disconnected when their time is over; others are served meanwhile
    let server = Server::start("slow", &["--limit", "1"]);
    server.file("f.txt", "fine");
    server.file("large.bin", vec![7; 32 << 20]);
    let mut deaf = server.connect();
    deaf.send("GET /large.bin HTTP/1.1\r\nHost: test\r\n\r\n");
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.send("GET /f.txt HTTP/1.1\r\nSlow: ");
    let mut sender = slow.0.get_ref().try_clone().unwrap();
    let trickle = thread::spawn(move || while sender.write_all(b"x").is_ok() && server_waits() {});
    assert_eq!(server.get("/f.txt", "").body, b"fine");
    assert!(silent.is_closed());
    let response = slow.receive();
    assert!([408, 431].contains(&response.status), "{response:?}");
    trickle.join().unwrap();
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = deaf.0.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20, "the response was cut");
    assert_eq!(server.get("/f.txt", "").body, b"fine");
}

/// Lets the server run between two bytes.
fn server_waits() -> bool {
    thread::yield_now();
    true
}

#[test]
fn signal_under_load_completes_responses() {
    // Q6: on SIGTERM each response that has begun arrives whole, idle connections end, as do
    // clients that send requests without a pause, and all threads stop with success
    for threads in ["1", "2"] {
        let mut server = Server::start(&format!("stop{threads}"), &["--threads", threads]);
        server.file("f.bin", pattern(1_000_000));
        let served = AtomicUsize::new(0);
        let mut idle = server.connect();
        assert_eq!(idle.get("/f.bin", "").body.len(), 1_000_000);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = server.connect();
                    loop {
                        let sent = client.0.get_mut().write_all(b"GET /f.bin HTTP/1.1\r\nHost: test\r\n\r\n");
                        let Some(response) = sent.ok().and_then(|()| client.try_receive()) else { break };
                        assert!(response.body == pattern(1_000_000));
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let mut flood = server.connect();
            let mut sender = flood.0.get_ref().try_clone().unwrap();
            let requests = "GET /none HTTP/1.1\r\nHost: test\r\n\r\n".repeat(100);
            scope.spawn(move || while sender.write_all(requests.as_bytes()).is_ok() {});
            scope.spawn(move || std::io::copy(&mut flood.0, &mut std::io::sink()));
            while served.load(Ordering::Relaxed) < 20 {
                thread::yield_now();
            }
            server.terminate();
            assert!(idle.is_closed());
        });
        assert!(server.child.wait().unwrap().success());
        assert!(TcpStream::connect(&server.address).is_err());
    }
}

#[test]
fn all_threads_accept_connections() {
    // Q6: with several threads, each serves a part of the connections
    let server = Server::start("threads", &["--threads", "2"]);
    server.file("f.txt", "fine");
    let busy = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", server.child.id())).unwrap();
        let names = tasks.filter_map(|task| {
            let fds = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
            let name = fds.lines().next()?.to_string();
            let switches = fds.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse();
            Some((name, switches.unwrap_or(0u64)))
        });
        names.filter(|(name, _)| name.contains("http")).map(|(_, switches)| switches).collect::<Vec<_>>()
    };
    let before = busy();
    assert_eq!(before.len(), 2, "the main thread and `http 1`");
    while busy().iter().zip(&before).any(|(now, before)| now == before) {
        assert_eq!(server.get("/f.txt", "").body, b"fine");
    }
}

#[test]
fn unusable_options_are_errors() {
    // Q6: an address in use and a missing root are reported, and the server does not start
    let server = Server::start("options", &[]);
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/http_server");
    for (root, listen, cause) in
        [("/", &*server.address, "--listen"), ("/nonexistent", "127.0.0.1:0", "--root /nonexistent: not a directory")]
    {
        let output = Command::new(&program).args(["--root", root, "--listen", listen]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(cause), "{said}");
    }
}
