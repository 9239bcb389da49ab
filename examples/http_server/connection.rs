//! One connection: requests in order, as long as the client keeps it open.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use coralio::net::TcpStream;
use coralio::task::{is_cancelled, shield};
use coralio::timeout;

use crate::files::Files;
use crate::request::{MAX_HEAD, Parsed, parse};
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
    // A response is written at once, so nothing is gained by collecting small writes.
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(limit))?;
    let mut input = Input { bytes: vec![0; MAX_HEAD], start: 0, end: 0 };
    loop {
        let parsed = match parse(&input.bytes[input.start..input.end]) {
            Parsed::Incomplete if input.end - input.start == MAX_HEAD => Parsed::Bad(Status::HeadTooLarge),
            Parsed::Incomplete => match timeout(limit, || input.receive(&stream)) {
                Ok(Ok(true)) => continue,
                Ok(closed) => return closed.map(drop),
                Err(_) if input.start == input.end => return Ok(()),
                Err(_) => Parsed::Bad(Status::Timeout),
            },
            parsed => parsed,
        };
        match parsed {
            Parsed::Complete(request) => {
                let keep_alive = request.keep_alive && !is_cancelled();
                shield(|| response::send(&stream, files, &request, keep_alive))?;
                input.start += request.len;
                if !keep_alive {
                    break;
                }
            }
            Parsed::Bad(status) => {
                shield(|| (&stream).write_all(&response::error(status, files.date().as_bytes(), false)))?;
                break;
            }
            Parsed::Incomplete => unreachable!("handled above"),
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let _ = timeout(LINGER, || io::copy(&mut &stream, &mut io::sink()));
    Ok(())
}

impl Input {
    /// Receives until a request is complete. Returns false if the client has closed.
    fn receive(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            let received = stream.read(&mut self.bytes[self.end..])?;
            self.end += received;
            let is_enough =
                self.end == self.bytes.len() || !matches!(parse(&self.bytes[..self.end]), Parsed::Incomplete);
            if received == 0 || is_enough {
                return Ok(received > 0);
            }
        }
    }
}
