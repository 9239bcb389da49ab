//! Replies: those that are there together leave together, in one system call.
//!
//! Whoever has one puts it into the connection's outbox. The first also starts a coroutine that sends; it runs when the
//! others that are ready have run, and so it finds what all of them have put there. It ends when the outbox is empty, so
//! that an idle connection has one stack, and not two. The reply to the only request under way has nothing to wait for.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io::{self, IoSlice};
use std::mem;
use std::rc::Rc;

use coralio_aio::{CoFd, Coroutine, spawn};

use crate::budget::{Allowance, Pace};
use crate::buffers::Buffer;
use crate::connection::{Connection, Ticket};
use crate::protocol::{self, Command, Head, Part, Request};

/// Replies that one call sends at most, two pieces each: the kernel takes 1024.
const TOGETHER: usize = 512;
/// Characters of an error's text: the protocol has 4096 bytes.
const MOST_SAID: usize = 1000;

/// What a request came to.
pub enum Done {
    /// It is done.
    Nothing,
    /// What was read.
    Data(Buffer),
    /// What was read, where there are holes: the parts in order, and the data of those that have some.
    Parts(Vec<Part>, Buffer),
    /// What the disk is made of.
    Extents(Vec<[u8; 8]>),
}

/// What follows a reply's head.
enum Body {
    None,
    Data(Buffer),
    /// More heads, each with so many bytes of the data behind it.
    Parts(Vec<(Head, usize)>, Buffer),
    Extents(Vec<[u8; 8]>),
    Message(String),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Body::None | Body::Parts(..) => &[],
            Body::Data(data) => data,
            Body::Extents(extents) => extents.as_flattened(),
            Body::Message(message) => message.as_bytes(),
        }
    }
}

pub struct Reply {
    head: Head,
    body: Body,
    /// Its request counts as under way until this is sent.
    _ticket: Ticket,
}

impl Reply {
    pub fn new(request: &Request, done: io::Result<Done>, structured: bool, ticket: Ticket) -> Reply {
        let cookie = request.cookie;
        let (head, body) = match done {
            Ok(Done::Nothing) => (Head::done(cookie, structured), Body::None),
            Ok(Done::Data(data)) => (Head::data(cookie, request.offset, data.len(), structured), Body::Data(data)),
            Ok(Done::Parts(parts, data)) => {
                let last = parts.len() - 1;
                let head = |(at, part): (usize, &Part)| {
                    (Head::part(cookie, part, at == last), if part.hole { 0 } else { part.len as usize })
                };
                (Head::none(), Body::Parts(parts.iter().enumerate().map(head).collect(), data))
            }
            Ok(Done::Extents(extents)) => {
                (Head::block_status(cookie, extents.as_flattened().len()), Body::Extents(extents))
            }
            Err(error) => {
                let message = if structured { error.to_string() } else { String::new() };
                let message = message.chars().take(MOST_SAID).collect::<String>();
                (Head::error(cookie, code(request.command, &error), &message, structured), Body::Message(message))
            }
        };
        Reply { head, body, _ticket: ticket }
    }

    /// Adds what is to be sent.
    fn pieces<'a>(&'a self, pieces: &mut Vec<IoSlice<'a>>) {
        let mut add = |piece: &'a [u8]| {
            if !piece.is_empty() {
                pieces.push(IoSlice::new(piece));
            }
        };
        add(self.head.bytes());
        add(self.body.bytes());
        if let Body::Parts(parts, data) = &self.body {
            let mut rest = &data[..];
            for (head, len) in parts {
                let (this, behind) = rest.split_at(*len);
                add(head.bytes());
                add(this);
                rest = behind;
            }
        }
    }
}

/// An error as the protocol has it.
fn code(command: Command, error: &io::Error) -> protocol::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => protocol::Error::Perm,
        // Beyond the end there is no room, for who writes.
        io::ErrorKind::InvalidInput if command == Command::Write || command == Command::WriteZeroes => {
            protocol::Error::NoSpace
        }
        io::ErrorKind::InvalidInput => protocol::Error::Invalid,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            protocol::Error::NoSpace
        }
        io::ErrorKind::OutOfMemory => protocol::Error::NoMemory,
        io::ErrorKind::Unsupported => protocol::Error::NotSupported,
        _ => protocol::Error::Io,
    }
}

/// What is to be sent on a connection.
#[derive(Default)]
pub struct Outbox {
    replies: RefCell<Vec<Reply>>,
    /// Sends, and looks for more afterwards.
    sender: Cell<Option<Coroutine>>,
    /// Sending has failed: nobody listens.
    broken: Cell<bool>,
}

impl Outbox {
    /// Puts `reply` there; and sends it, if no other can come to go with it.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn put(&self, connection: &Rc<Connection>, reply: Reply) {
        if self.broken.get() {
            return;
        }
        self.replies.borrow_mut().push(reply);
        if self.sender.get().is_some() {
            return;
        }
        if connection.has_no_other() {
            self.sender.set(Coroutine::current());
            return send(connection);
        }
        let connection = Rc::clone(connection);
        let sender = spawn(move || send(&connection));
        self.sender.set(Some(sender.coroutine()));
    }

    /// What is not sent by now is dropped.
    pub fn give_up(&self) {
        self.broken.set(true);
        if let Some(sender) = self.sender.get() {
            sender.cancel();
        }
    }
}

/// Sends what is there, until nothing is.
fn send(connection: &Rc<Connection>) {
    let outbox = &connection.outbox;
    loop {
        let replies = mem::take(&mut *outbox.replies.borrow_mut());
        if replies.is_empty() {
            break;
        }
        let (socket, allowance) = (&connection.socket, &connection.allowance);
        if let Err(why) = replies.chunks(TOGETHER).try_for_each(|together| send_all(socket, together, allowance)) {
            outbox.broken.set(true);
            connection.fail(why);
        }
    }
    outbox.sender.set(None);
}

fn send_all(socket: &CoFd<fs::File>, replies: &[Reply], allowance: &Allowance) -> io::Result<()> {
    let mut pieces = Vec::with_capacity(2 * replies.len());
    replies.iter().for_each(|reply| reply.pieces(&mut pieces));
    let mut rest = &mut pieces[..];
    let mut pace = Pace::of(allowance);
    while !rest.is_empty() {
        let sent = pace.keep(socket, |socket| socket.write_vectored(rest))?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, sent);
    }
    Ok(())
}
