//! One client, from the handshake's end to its own: what it asks for becomes coroutines, as many as it may have.
//!
//! What a connection may have under way is bounded, in requests and in bytes; and so is what all have, see [`Budget`]. A
//! request counts until its reply is sent: so a client that takes no replies is not read from any more. A large request that
//! gets no share of the budget is served in pieces.

use std::cell::Cell;
use std::fs;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coralio_aio::{Cancelled, CoFd, Coroutine, check_cancelled, shield, spawn, start, suspend, timeout};

use crate::budget::{Allowance, Budget, OWN};
use crate::buffers::Buffer;
use crate::export::Export;
use crate::inbox::Inbox;
use crate::negotiate::Agreed;
use crate::perform::{check, check_range, memory, perform, write};
use crate::protocol::{Command, MOST_BYTES, REQUEST_LEN, Request};
use crate::reply::{Done, Outbox, Reply};
use crate::turn::{ClientId, Turn};

/// Requests that are under way at once on one connection, while no other client of the thread is active.
const MOST_REQUESTS: usize = 256;
/// Requests that are under way at once on one connection, while another client is: these are ahead of its requests.
const MOST_REQUESTS_IN_COMPANY: usize = 16;
/// Their payloads, together: two of the largest.
const MOST_UNDER_WAY: usize = 2 * MOST_BYTES as usize;
/// Bytes at a time of a large request that gets no share of the budget. Two pieces are in memory at once.
pub const PIECE: u32 = OWN as u32 / 2;
/// How long a client may take to take its last replies when the server ends.
const GRACE: Duration = Duration::from_secs(5);

pub struct Connection {
    pub socket: CoFd<fs::File>,
    pub export: Rc<Export>,
    pub agreed: Agreed,
    pub outbox: Outbox,
    pub allowance: Allowance,
    pub idle_limit: Option<Duration>,
    pub client: ClientId,
    requests: Cell<usize>,
    /// The next request has been read, too.
    more_to_come: Cell<bool>,
    reader: Coroutine,
    /// Waits until less is under way.
    waiter: Cell<Option<Coroutine>>,
    /// Why no more is read.
    fault: Cell<Option<io::Error>>,
}

/// A request that is under way, until it is dropped.
pub struct Ticket {
    connection: Rc<Connection>,
    bytes: usize,
    /// It has memory for two pieces of its payload, and no more.
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
        connection.allowance.give_back(self.bytes);
        if let Some(waiter) = connection.waiter.take() {
            waiter.wake();
        }
    }
}

/// Serves one client, in the coroutine that calls, until it goes or is sent away; what it has asked for is finished.
/// With an `idle_limit`, a client that neither asks for anything nor takes a reply for that long is sent away.
pub fn serve(
    socket: fs::File,
    export: &Rc<Export>,
    agreed: Agreed,
    budget: &Arc<Budget>,
    idle_limit: Option<Duration>,
) -> io::Result<()> {
    let connection = Rc::new(Connection {
        socket: CoFd::new(socket)?,
        export: Rc::clone(export),
        agreed,
        outbox: Outbox::default(),
        allowance: Allowance::of(budget),
        requests: Cell::new(0),
        idle_limit,
        client: ClientId::new(),
        more_to_come: Cell::new(false),
        reader: Coroutine::current().expect("a connection is served by a coroutine"),
        waiter: Cell::new(None),
        fault: Cell::new(None),
    });
    let outcome = connection.read_requests();
    connection.finish();
    connection.fault.take().map_or(outcome, Err)
}

impl Connection {
    fn read_requests(self: &Rc<Self>) -> io::Result<()> {
        let (mut inbox, mut turn) = (Inbox::new(), Turn::of(self.client));
        while let Some(head) = self.next_head(&mut inbox)? {
            let Some(request) = Request::parse(&head) else { return Err(refusal("a request has the wrong magic")) };
            let len = request.len as usize;
            self.client.note_request();
            match request.command {
                Command::Disconnect => break,
                Command::Write if request.len > MOST_BYTES => {
                    return Err(refusal(&format!("a write of {len} bytes is too long; {MOST_BYTES} is the most")));
                }
                _ => {}
            }
            let ticket = self.admit(memory(&request))?;
            if request.command == Command::Write && ticket.in_pieces {
                let done = self.write_in_pieces(&mut inbox, request, &mut turn)?;
                self.more_to_come.set(inbox.has_head());
                drop(start(move || answer(ticket, |ticket| finish_write(&request, done, ticket))));
                continue;
            }
            let data = match request.command {
                Command::Write => {
                    let mut data = Buffer::new(len);
                    inbox.payload(&self.socket, &mut data, &mut turn, self.idle_limit)?;
                    Some(data)
                }
                _ => None,
            };
            self.more_to_come.set(inbox.has_head());
            drop(start(move || answer(ticket, |ticket| reply(&request, data, ticket))));
            // Requests that have been read are served, though the server ends: `next_head` looks for that.
            let _ = turn.spend(0);
        }
        Ok(())
    }

    /// The next request's header; `None` if the client has said that there will be none.
    fn next_head(&self, inbox: &mut Inbox) -> io::Result<Option<[u8; REQUEST_LEN]>> {
        if !inbox.has_head() {
            // A client that sends without a pause never waits, where it would be noticed.
            check_cancelled()?;
        }
        loop {
            match within(self.idle_limit, || inbox.head(&self.socket)) {
                // It waits for replies. If it does not take them, the sender notices.
                Err(error) if error.kind() == io::ErrorKind::TimedOut && self.requests.get() > 0 => {}
                outcome => return outcome,
            }
        }
    }

    /// Receives the payload of a large write, and writes it, piece by piece. After a failure the rest is only received.
    ///
    /// # Errors
    ///
    /// The socket's. The write's own outcome is in the result.
    fn write_in_pieces(&self, inbox: &mut Inbox, request: Request, turn: &mut Turn) -> io::Result<io::Result<()>> {
        let (image, mut rest) = (&*self.export.image, request);
        let mut done = check(&self.export, &request, self.agreed)
            .and_then(|()| check_range(image, request.offset, request.len.into()));
        let mut data = Buffer::new(PIECE as usize);
        while rest.len > 0 {
            let (piece, behind) = rest.split(PIECE);
            let data = &mut data[..piece.len as usize];
            inbox.payload(&self.socket, data, turn, self.idle_limit)?;
            // What has been received is written, though the server ends meanwhile.
            done = done.and_then(|()| shield(|| write(image, data, piece.offset)));
            rest = behind;
        }
        Ok(done)
    }

    /// Waits until one more request, with so many bytes, may be under way.
    fn admit(self: &Rc<Self>, bytes: usize) -> io::Result<Ticket> {
        self.wait_while(|| {
            let (requests, under_way) = (self.requests.get(), self.allowance.under_way());
            // When the server ends, requests that have been read are all served.
            let is_shared = self.client.has_company() && check_cancelled().is_ok();
            let most = if is_shared { MOST_REQUESTS_IN_COMPANY } else { MOST_REQUESTS };
            requests >= most || requests > 0 && under_way + bytes > MOST_UNDER_WAY
        })?;
        let in_pieces = bytes > OWN && !self.allowance.try_take_large(bytes);
        let bytes = if in_pieces { OWN } else { bytes };
        if bytes <= OWN {
            self.wait_while(|| !self.allowance.try_take(bytes))?;
        }
        self.requests.set(self.requests.get() + 1);
        Ok(Ticket { connection: Rc::clone(self), bytes, in_pieces })
    }

    /// Waits while there is too much under way. One coroutine at a time does.
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

    /// Waits for what is under way. A client that does not take its replies when the server ends has had its time.
    fn finish(self: &Rc<Self>) {
        if self.wait_until_idle().is_ok() {
            return;
        }
        // In a coroutine that was not cancelled.
        let connection = Rc::clone(self);
        let patient = spawn(move || timeout(GRACE, || connection.wait_until_idle()).is_ok());
        if !shield(|| patient.join()).unwrap_or(false) {
            self.outbox.give_up();
        }
        let idle = shield(|| self.wait_until_idle());
        debug_assert!(idle.is_ok(), "nothing cuts this short");
    }

    /// Whether one request is under way, and no more, and none that is known of comes next.
    pub fn has_no_other(&self) -> bool {
        self.requests.get() == 1 && !self.more_to_come.get()
    }

    /// As if the client had said that it will ask for no more.
    pub fn stop_reading(&self) {
        self.reader.cancel();
    }

    /// Nothing that the client asks for can be answered.
    pub fn fail(&self, why: io::Error) {
        self.fault.set(Some(why));
        self.stop_reading();
    }
}

/// Calls `transfer`, which waits for the client. Fails with `TimedOut` if that takes longer than `limit`.
pub fn within<T>(limit: Option<Duration>, transfer: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(limit) = limit else { return transfer() };
    // Bytes that have been moved must not be lost, though the time is over then.
    let mut outcome = None;
    let in_time = timeout(limit, || outcome = Some(transfer()));
    match outcome.expect("the transfer has returned") {
        Err(_) if in_time.is_err() => {
            let why = format!("it has moved nothing for {} s (--idle-limit)", limit.as_secs_f64());
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
        outcome => outcome,
    }
}

fn refusal(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Has `work` do one request, and puts the reply into the outbox.
fn answer(ticket: Ticket, work: impl FnOnce(Ticket) -> Reply) {
    /// It panicked: the client must not wait for ever.
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
    connection.outbox.put(&connection, reply);
}

/// Does one request; of a large read in pieces, the first piece.
fn reply(request: &Request, data: Option<Buffer>, ticket: Ticket) -> Reply {
    let connection = &ticket.connection;
    let can_be_read = request.len <= MOST_BYTES && !request.is_beyond(connection.export.image.len());
    if ticket.in_pieces && request.command == Command::Read && can_be_read {
        return Reply::in_pieces(request, ticket);
    }
    let done = perform(&connection.export, request, data, connection.agreed);
    Reply::new(request, done, ticket)
}

/// Finishes a write whose payload has been written.
fn finish_write(request: &Request, written: io::Result<()>, ticket: Ticket) -> Reply {
    let flushed = written.and_then(|()| if request.fua() { ticket.connection.export.flush() } else { Ok(()) });
    Reply::new(request, flushed.map(|()| Done::Nothing), ticket)
}
