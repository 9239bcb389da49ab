//! One client, from the end of the handshake to the end of the connection: each request becomes a
//! coroutine, up to a limit.
//!
//! The requests and bytes in flight are bounded per connection, and the bytes also over all
//! connections, see [`MemoryBudget`]. A request counts as in flight until its reply is sent, so the
//! server stops reading from a client that takes no replies. A large request that gets no share of
//! the budget is served in pieces.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coralio::coroutine::{Coroutine, suspend};
use coralio::net::CoFd;
use coralio::task::{Cancelled, check_cancelled, shield};
use coralio::{spawn, spawn_now, timeout};

use crate::budget::{ConnectionQuota, FREE_QUOTA, MemoryBudget};
use crate::buffers::Buffer;
use crate::export::Export;
use crate::handle::{check, check_range, handle, memory, write};
use crate::negotiate::{Agreed, Socket};
use crate::protocol::{Command, MAX_BYTES, REQUEST_LEN, Request};
use crate::reply::{Done, Reply, ReplyQueue};
use crate::request_reader::RequestReader;
use crate::turn::{ClientId, Turn};

/// Maximum number of requests in flight on one connection while no other client of the thread is
/// active.
const MAX_REQUESTS: usize = 256;
/// Maximum number of requests in flight on one connection while another client is active: they
/// delay that client's requests.
const MAX_REQUESTS_IN_COMPANY: usize = 16;
/// Maximum number of payload bytes in flight on one connection: two of the largest requests.
const MAX_UNDER_WAY: usize = 2 * MAX_BYTES as usize;
/// Piece size of a large request that gets no share of the budget, in bytes. Two pieces are in
/// memory at a time.
pub const PIECE: u32 = FREE_QUOTA as u32 / 2;
/// The time that clients have to take their last replies when the server ends.
const GRACE: Duration = Duration::from_secs(5);

pub struct Connection {
    pub socket: CoFd<Socket>,
    pub export: Rc<Export>,
    pub agreed: Agreed,
    pub outbox: ReplyQueue,
    pub quota: ConnectionQuota,
    pub idle_limit: Option<Duration>,
    pub client: ClientId,
    requests: Cell<usize>,
    /// Set if the next request's header has already been read.
    more_to_come: Cell<bool>,
    reader: Coroutine,
    /// The coroutine that waits until less is in flight.
    waiter: Cell<Option<Coroutine>>,
    /// The reason why reading has stopped.
    fault: Cell<Option<io::Error>>,
}

/// A request in flight; dropping the ticket ends it.
pub struct Ticket {
    connection: Rc<Connection>,
    bytes: usize,
    /// Set if the request has memory for only two pieces of its payload.
    in_pieces: bool,
}

impl Ticket {
    pub fn connection(&self) -> &Rc<Connection> {
        &self.connection
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let connection = &self.connection;
        connection.requests.set(connection.requests.get() - 1);
        connection.quota.give_back(self.bytes);
        if let Some(waiter) = connection.waiter.take() {
            waiter.wake();
        }
    }
}

/// Serves one client on the calling coroutine until the client leaves or is disconnected, and
/// completes the requests that have been read. With an `idle_limit`, disconnects a client that
/// neither sends a request nor takes a reply for that long.
pub fn serve(
    socket: Socket,
    export: &Rc<Export>,
    agreed: Agreed,
    budget: &Arc<MemoryBudget>,
    idle_limit: Option<Duration>,
) -> io::Result<()> {
    let socket = CoFd::from_sole_handle(socket)?;
    socket.assume_bytes_only();
    let connection = Rc::new(Connection {
        socket,
        export: Rc::clone(export),
        agreed,
        outbox: ReplyQueue::default(),
        quota: ConnectionQuota::of(budget),
        requests: Cell::new(0),
        idle_limit,
        client: ClientId::new(),
        more_to_come: Cell::new(false),
        reader: Coroutine::current().expect("a coroutine serves the connection"),
        waiter: Cell::new(None),
        fault: Cell::new(None),
    });
    let outcome = connection.read_requests();
    connection.finish();
    connection.fault.take().map_or(outcome, Err)
}

impl Connection {
    fn read_requests(self: &Rc<Self>) -> io::Result<()> {
        let (mut reader, mut turn) = (RequestReader::new(), Turn::of(self.client));
        while let Some(head) = self.next_head(&mut reader)? {
            let Some(request) = Request::parse(&head) else { return Err(refusal("request with a wrong magic number")) };
            let len = request.len as usize;
            self.client.note_request();
            match request.command {
                Command::Disconnect => break,
                Command::Write if request.len > MAX_BYTES => {
                    return Err(refusal(&format!("write of {len} bytes exceeds the limit of {MAX_BYTES}")));
                }
                _ => {}
            }
            let ticket = self.admit(memory(&request))?;
            if request.command == Command::Write && ticket.in_pieces {
                let done = self.write_in_pieces(&mut reader, request, &mut turn)?;
                self.more_to_come.set(reader.has_head());
                drop(spawn_now(move || answer(ticket, |ticket| finish_write(&request, done, ticket))));
                continue;
            }
            let data = match request.command {
                Command::Write => {
                    let mut data = Buffer::new(len);
                    reader.payload(&self.socket, &mut data, &mut turn, self.idle_limit)?;
                    Some(data)
                }
                _ => None,
            };
            self.more_to_come.set(reader.has_head());
            drop(spawn_now(move || answer(ticket, |ticket| reply(&request, data, ticket))));
            // The error can be ignored: requests that have been read are served even if the server
            // ends, and `next_head` checks for cancellation.
            let _ = turn.spend(0);
        }
        Ok(())
    }

    /// Returns the header of the next request, or `None` if the client will send no more.
    fn next_head(&self, reader: &mut RequestReader) -> io::Result<Option<[u8; REQUEST_LEN]>> {
        if !reader.has_head() {
            // A client that sends without a pause never suspends this coroutine, where cancellation
            // would be noticed.
            check_cancelled()?;
        }
        loop {
            match within(self.idle_limit, || reader.head(&self.socket)) {
                // The client waits for replies. If it does not take them, the sender notices.
                Err(error) if error.kind() == io::ErrorKind::TimedOut && self.requests.get() > 0 => {}
                outcome => return outcome,
            }
        }
    }

    /// Receives the payload of a large write and writes it piece by piece. After a failure, only
    /// receives the rest.
    ///
    /// # Errors
    ///
    /// The socket's. The result of the write itself is the inner value.
    fn write_in_pieces(
        &self,
        reader: &mut RequestReader,
        request: Request,
        turn: &mut Turn,
    ) -> io::Result<io::Result<()>> {
        let (image, mut rest) = (&*self.export.image, request);
        let mut done = check(&self.export, &request, self.agreed)
            .and_then(|()| check_range(image, request.offset, request.len.into()));
        let mut data = Buffer::new(PIECE as usize);
        while rest.len > 0 {
            let (piece, behind) = rest.split(PIECE);
            let data = &mut data[..piece.len as usize];
            reader.payload(&self.socket, data, turn, self.idle_limit)?;
            // Data that has been received is written even if the server ends meanwhile.
            done = done.and_then(|()| shield(|| write(image, data, piece.offset)));
            rest = behind;
        }
        Ok(done)
    }

    /// Waits until a further request with `bytes` bytes may be in flight.
    fn admit(self: &Rc<Self>, bytes: usize) -> io::Result<Ticket> {
        self.wait_while(|| {
            let (requests, under_way) = (self.requests.get(), self.quota.under_way());
            // When the server ends, all requests that have been read are served.
            let is_shared = self.client.has_company() && check_cancelled().is_ok();
            let most = if is_shared { MAX_REQUESTS_IN_COMPANY } else { MAX_REQUESTS };
            requests >= most || requests > 0 && under_way + bytes > MAX_UNDER_WAY
        })?;
        let in_pieces = bytes > FREE_QUOTA && !self.quota.try_take_large(bytes);
        let bytes = if in_pieces { FREE_QUOTA } else { bytes };
        if bytes <= FREE_QUOTA {
            self.wait_while(|| !self.quota.try_take(bytes))?;
        }
        self.requests.set(self.requests.get() + 1);
        Ok(Ticket { connection: Rc::clone(self), bytes, in_pieces })
    }

    /// Suspends while `too_much` returns true. Only one coroutine at a time may wait.
    fn wait_while(&self, too_much: impl Fn() -> bool) -> Result<(), Cancelled> {
        while too_much() {
            check_cancelled()?;
            self.waiter.set(Coroutine::current());
            suspend();
        }
        Ok(())
    }

    fn wait_until_idle(&self) -> Result<(), Cancelled> {
        self.wait_while(|| self.requests.get() > 0)
    }

    /// Waits until nothing is in flight. When the server ends, waits at most [`GRACE`] for a client
    /// that takes no replies, then drops them.
    fn finish(self: &Rc<Self>) {
        if self.wait_until_idle().is_ok() {
            return;
        }
        // Use a new coroutine, because this one is cancelled.
        let connection = Rc::clone(self);
        let patient = spawn(move || timeout(GRACE, || connection.wait_until_idle()).is_ok());
        if !shield(|| patient.join()).unwrap_or(false) {
            self.outbox.give_up();
        }
        let idle = shield(|| self.wait_until_idle());
        debug_assert!(idle.is_ok(), "nothing cancels this wait");
    }

    /// Returns whether exactly one request is in flight and no other request is known to follow.
    pub fn has_no_other(&self) -> bool {
        self.requests.get() == 1 && !self.more_to_come.get()
    }

    /// Stops reading requests, as if the client had announced that no more will come.
    pub fn stop_reading(&self) {
        self.reader.cancel();
    }

    /// Ends the connection with an error: its requests can no longer be answered.
    pub fn fail(&self, why: io::Error) {
        self.fault.set(Some(why));
        self.stop_reading();
    }
}

/// Calls `transfer`, which waits for the client. Fails with `TimedOut` if it takes longer than
/// `limit`.
pub fn within<T>(limit: Option<Duration>, transfer: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(limit) = limit else { return transfer() };
    // Bytes that were transferred must not be lost even if the limit has expired.
    let mut outcome = None;
    let in_time = timeout(limit, || outcome = Some(transfer()));
    match outcome.expect("the transfer has returned") {
        Err(_) if in_time.is_err() => {
            let why = format!("idle for {} s (--idle-limit)", limit.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
        outcome => outcome,
    }
}

fn refusal(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Runs `work` for one request and puts the reply into the outbox.
fn answer(ticket: Ticket, work: impl FnOnce(Ticket) -> Reply) {
    /// Dropped if `work` panics: closes the connection so that the client does not wait forever.
    struct Unanswered<'a>(&'a Connection);
    impl Drop for Unanswered<'_> {
        fn drop(&mut self) {
            self.0.outbox.give_up();
            self.0.stop_reading();
        }
    }
    let connection = Rc::clone(&ticket.connection);
    let unanswered = Unanswered(&connection);
    let reply = work(ticket);
    std::mem::forget(unanswered);
    connection.outbox.push(&connection, reply);
}

/// Performs one request, or the first piece of a large read in pieces.
fn reply(request: &Request, data: Option<Buffer>, ticket: Ticket) -> Reply {
    let connection = &ticket.connection;
    let can_be_read = request.len <= MAX_BYTES && !request.is_beyond(connection.export.image.len());
    if ticket.in_pieces && request.command == Command::Read && can_be_read {
        return Reply::in_pieces(request, ticket);
    }
    let done = handle(&connection.export, request, data, connection.agreed);
    Reply::new(request, done, ticket)
}

/// Completes a write whose payload has been written.
fn finish_write(request: &Request, written: io::Result<()>, ticket: Ticket) -> Reply {
    let flushed = written.and_then(|()| if request.fua() { ticket.connection.export.flush() } else { Ok(()) });
    Reply::new(request, flushed.map(|()| Done::Nothing), ticket)
}
