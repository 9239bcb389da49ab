//! One client, from the handshake's end to its own: what it asks for becomes coroutines, as many as it may have.
//!
//! What a connection may have under way is bounded, in requests and in bytes; and so is what all have, see [`Budget`]. A
//! request counts until its reply is sent: so a client that takes no replies is not read from any more.

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
use crate::perform::{memory, perform};
use crate::protocol::{Command, MOST_BYTES, Request};
use crate::reply::{Outbox, Reply};

/// Requests that are under way at once on one connection.
const MOST_REQUESTS: usize = 256;
/// Their payloads, together: two of the largest.
const MOST_UNDER_WAY: usize = 2 * MOST_BYTES as usize;
/// How long a client may take to take its last replies when the server ends.
const GRACE: Duration = Duration::from_secs(5);

pub struct Connection {
    pub socket: CoFd<fs::File>,
    pub export: Rc<Export>,
    pub agreed: Agreed,
    pub outbox: Outbox,
    pub allowance: Allowance,
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
pub fn serve(socket: fs::File, export: &Rc<Export>, agreed: Agreed, budget: &Arc<Budget>) -> io::Result<()> {
    let connection = Rc::new(Connection {
        socket: CoFd::new(socket)?,
        export: Rc::clone(export),
        agreed,
        outbox: Outbox::default(),
        allowance: Allowance::of(budget),
        requests: Cell::new(0),
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
        let mut inbox = Inbox::new();
        while let Some(head) = inbox.head(&self.socket)? {
            let Some(request) = Request::parse(&head) else { return Err(refusal("a request has the wrong magic")) };
            let len = request.len as usize;
            match request.command {
                Command::Disconnect => break,
                Command::Write if request.len > MOST_BYTES => {
                    return Err(refusal(&format!("a write of {len} bytes is too long; {MOST_BYTES} is the most")));
                }
                _ => {}
            }
            let ticket = self.admit(memory(&request))?;
            let data = match request.command {
                Command::Write => {
                    let mut data = Buffer::new(len);
                    inbox.payload(&self.socket, &mut data, &self.allowance)?;
                    Some(data)
                }
                _ => None,
            };
            self.more_to_come.set(inbox.has_head());
            drop(start(move || answer(ticket, &request, data)));
        }
        Ok(())
    }

    /// Waits until one more request, with so many bytes, may be under way.
    fn admit(self: &Rc<Self>, bytes: usize) -> io::Result<Ticket> {
        self.wait_while(|| {
            let (requests, under_way) = (self.requests.get(), self.allowance.under_way());
            requests >= MOST_REQUESTS || requests > 0 && under_way + bytes > MOST_UNDER_WAY
        })?;
        match bytes > OWN {
            true => self.allowance.wait_for(bytes)?,
            false => self.wait_while(|| !self.allowance.try_take(bytes))?,
        }
        self.requests.set(self.requests.get() + 1);
        Ok(Ticket { connection: Rc::clone(self), bytes })
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

fn refusal(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// One request: does it, and puts the reply into the outbox.
fn answer(ticket: Ticket, request: &Request, data: Option<Buffer>) {
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
    let done = perform(&*connection.export.image, request, data, connection.agreed);
    let reply = Reply::new(request, done, connection.agreed.structured, ticket);
    std::mem::forget(unanswered);
    connection.outbox.put(&connection, reply);
}
