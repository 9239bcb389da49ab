//! One connection: requests in order, as long as the client keeps it open.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use coralio::net::TcpStream;
use coralio::task::{is_cancelled, shield};
use coralio::{timeout, yield_now};

use crate::files::Files;
use crate::request::{MAX_HEAD, parse};
use crate::response::{self, Status};

/// How long to wait for a client to close after an error: unread input would make the kernel reset
/// the connection, and the client might lose the response.
const LINGER: Duration = Duration::from_secs(2);

/// The bytes received and not yet consumed: `bytes[start..end]`.
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

/// Serves requests until the client closes, an error, or the server's end.
pub fn serve(stream: TcpStream, files: &Files, limit: Duration) -> io::Result<()> {
    // Each piece of a response is one large write: there are no small ones to collect.
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(limit))?;
    let mut input = Input { bytes: vec![0; MAX_HEAD], start: 0, end: 0 };
    let error = loop {
        if !input.has_head() {
            match timeout(limit, || input.receive(&stream)) {
                Ok(Ok(true)) => {}
                Ok(closed) => return closed.map(drop),
                Err(_) if input.unread().is_empty() => return Ok(()),
                Err(_) => break Some(Status::Timeout),
            }
        }
        let request = match parse(input.unread()) {
            Ok(request) => request,
            Err(status) => break Some(status),
        };
        let keep_alive = request.keep_alive && !is_cancelled();
        shield(|| response::send(&stream, files, &request, keep_alive))?;
        input.start += request.len;
        if !keep_alive {
            break None;
        }
        if !input.unread().is_empty() {
            // A client that sends requests without a pause never makes this coroutine wait.
            yield_now();
        }
    };
    if let Some(status) = error {
        shield(|| (&stream).write_all(&response::error(status, &files.date())))?;
    }
    stream.shutdown(Shutdown::Write)?;
    let _ = timeout(LINGER, || io::copy(&mut &stream, &mut io::sink()));
    Ok(())
}

impl Input {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Returns whether the head of a request is complete: it ends with an empty line.
    fn has_head(&self) -> bool {
        let unread = self.unread();
        unread.ends_with(b"\r\n\r\n") || unread.windows(4).any(|bytes| bytes == b"\r\n\r\n")
    }

    /// Receives until a head is complete, or too long. Returns false if the client has closed.
    fn receive(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        loop {
            let received = stream.read(&mut self.bytes[self.end..])?;
            self.end += received;
            if received == 0 || self.has_head() || self.end == self.bytes.len() {
                return Ok(received > 0);
            }
        }
    }
}
