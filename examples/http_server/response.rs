//! Responses: status, headers, and the requested part of the file.

use std::io::{self, Write};
use std::ops::Range;

use coralio::net::TcpStream;

use crate::files::{Files, OpenFile};
use crate::request::{Method, Request};

/// The size of the pieces in which a file is sent; the first piece shares a write with the head.
const PIECE: usize = 256 * 1024;

/// The reasons for a response without a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Moved,
    NotModified,
    BadRequest,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Timeout,
    BodyRefused,
    Unsatisfiable,
    HeadTooLarge,
    Internal,
    Version,
}

impl Status {
    fn text(self) -> &'static str {
        match self {
            Status::Moved => "301 Moved Permanently",
            Status::NotModified => "304 Not Modified",
            Status::BadRequest => "400 Bad Request",
            Status::Forbidden => "403 Forbidden",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::Timeout => "408 Request Timeout",
            Status::BodyRefused => "413 Content Too Large",
            Status::Unsatisfiable => "416 Range Not Satisfiable",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Internal => "500 Internal Server Error",
            Status::Version => "505 HTTP Version Not Supported",
        }
    }
}

/// Returns the headers of a response with a whole file.
pub fn file_headers(len: u64, content_type: &str, last_modified: &str) -> Vec<u8> {
    let text = format!(
        "Content-Length: {len}\r\nContent-Type: {content_type}\r\nLast-Modified: {last_modified}\r\nAccept-Ranges: \
         bytes\r\n"
    );
    text.into_bytes()
}

/// Begins a response.
fn begin(status: &str, date: &str) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    for part in [b"HTTP/1.1 ", status.as_bytes(), b"\r\nServer: coralio\r\nDate: ", date.as_bytes(), b"\r\n"] {
        head.extend_from_slice(part);
    }
    head
}

fn end(head: &mut Vec<u8>, is_http_1_0: bool, keep_alive: bool) {
    if !keep_alive {
        head.extend_from_slice(b"Connection: close\r\n");
    } else if is_http_1_0 {
        head.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    head.extend_from_slice(b"\r\n");
}

/// Creates the last response of a connection: a status.
pub fn error(status: Status, date: &str) -> Vec<u8> {
    let mut response = begin(status.text(), date);
    let body = format!("{}\n", status.text());
    response.extend_from_slice(format!("Content-Type: text/plain\r\nContent-Length: {}\r\n", body.len()).as_bytes());
    end(&mut response, false, false);
    response.extend_from_slice(body.as_bytes());
    response
}

/// Answers a request.
pub fn send(stream: &TcpStream, files: &Files, request: &Request<'_>, keep_alive: bool) -> io::Result<()> {
    let date = files.date();
    let found = match request.method {
        Method::Other => Err(Status::MethodNotAllowed),
        Method::Get | Method::Head => files.find(request.target),
    };
    let (mut head, body) = match &found {
        Ok(file) => file_head(file, request, &date),
        Err(status) => {
            let mut head = begin(status.text(), &date);
            match status {
                Status::Moved => head.extend_from_slice(format!("Location: {}/\r\n", request.target).as_bytes()),
                Status::MethodNotAllowed => head.extend_from_slice(b"Allow: GET, HEAD\r\n"),
                _ => {}
            }
            head.extend_from_slice(b"Content-Length: 0\r\n");
            (head, 0..0)
        }
    };
    end(&mut head, request.is_http_1_0, keep_alive);
    match &found {
        Ok(file) if request.method == Method::Get => send_file(stream, head, file, body),
        _ => { stream }.write_all(&head),
    }
}

/// Returns the head without its last lines, and the part of the file to send.
fn file_head(file: &OpenFile, request: &Request<'_>, date: &str) -> (Vec<u8>, Range<u64>) {
    if request.if_modified_since.is_some_and(|since| file.modified <= since) {
        let mut head = begin(Status::NotModified.text(), date);
        head.extend_from_slice(format!("Last-Modified: {}\r\n", file.last_modified).as_bytes());
        return (head, 0..0);
    }
    let is_current = request.if_range.is_none_or(|version| version == file.last_modified);
    match request.range.filter(|_| is_current).and_then(|range| parse_range(range, file.len)) {
        None => {
            let mut head = begin("200 OK", date);
            head.extend_from_slice(&file.headers);
            (head, 0..file.len)
        }
        Some(part) if part.is_empty() => {
            let mut head = begin(Status::Unsatisfiable.text(), date);
            head.extend_from_slice(format!("Content-Range: bytes */{}\r\nContent-Length: 0\r\n", file.len).as_bytes());
            (head, 0..0)
        }
        Some(part) => {
            let mut head = begin("206 Partial Content", date);
            let (last, len) = (part.end - 1, part.end - part.start);
            head.extend_from_slice(format!("Content-Range: bytes {}-{last}/{}\r\n", part.start, file.len).as_bytes());
            head.extend_from_slice(&file_headers(len, file.content_type, &file.last_modified));
            (head, part)
        }
    }
}

/// Parses a range of a file of `len` bytes; it is empty if the file has no such part. `None`:
/// several ranges, or another unit, which the server may ignore.
fn parse_range(text: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    if first.is_empty() {
        let count: u64 = last.parse().ok()?;
        return Some(len.saturating_sub(count)..len);
    }
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { len } else { last.parse::<u64>().ok()?.checked_add(1)?.min(len) };
    if !last.is_empty() && last.parse::<u64>().ok()? < first {
        return None;
    }
    Some(first.min(end)..end)
}

/// Sends the head and a part of the file. If the file has become shorter, the connection ends
/// early, which tells the client.
fn send_file(mut stream: &TcpStream, head: Vec<u8>, file: &OpenFile, part: Range<u64>) -> io::Result<()> {
    let (mut buffer, mut at) = (head, part.start);
    loop {
        let begin = buffer.len();
        let count = (part.end - at).min(PIECE as u64);
        buffer.resize(begin + count as usize, 0);
        file.file.read_exact_at(&mut buffer[begin..], at)?;
        stream.write_all(&buffer)?;
        at += count;
        if at >= part.end {
            return Ok(());
        }
        buffer.clear();
    }
}
