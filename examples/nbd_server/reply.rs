//! Replies: those that are there together leave together, in one system call.
//!
//! Whoever has one puts it into the connection's outbox. The first also starts a coroutine that sends; it runs when the
//! others that are ready have run, and so it finds what all of them have put there. It ends when the outbox is empty, so
//! that an idle connection has one stack, and not two. The reply to the only request under way has nothing to wait for.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Write};
use std::mem;
use std::rc::Rc;

use coralio_aio::{Coroutine, spawn};

use crate::buffers::Buffer;
use crate::connection::{Connection, PIECE, Ticket, within};
use crate::perform::perform;
use crate::protocol::{self, Command, Head, Part, Request};
use crate::turn::Turn;

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

/// A reply that is sent as a whole; or one chunk of a reply, if another one follows.
struct Message {
    head: Head,
    body: Body,
}

pub struct Reply {
    message: Message,
    /// The part of a large read that is not in `message`: it is read and sent after that, piece by piece.
    rest: Option<Request>,
    /// Its request counts as under way until this is sent.
    _ticket: Ticket,
}

impl Reply {
    /// The reply to a request that is done.
    pub fn new(request: &Request, done: io::Result<Done>, ticket: Ticket) -> Reply {
        Reply { message: Message::new(request, done, ticket.connection(), true), rest: None, _ticket: ticket }
    }

    /// The reply to a large read of which only the first piece has been read.
    pub fn in_pieces(request: &Request, ticket: Ticket) -> Reply {
        let connection = ticket.connection();
        let (first, rest) = request.split(PIECE);
        let done = perform(&connection.export, &first, None, connection.agreed);
        if done.is_err() {
            return Reply::new(request, done, ticket);
        }
        let mut message = Message::new(&first, done, connection, false);
        if !comes_in_chunks(request, connection) {
            message.head =
                Head::data(request.cookie, request.offset, request.len as usize, connection.agreed.structured, true);
        }
        Reply { message, rest: Some(rest), _ticket: ticket }
    }
}

/// Whether the pieces of a large read are chunks of their own. Otherwise one head announces all of them.
fn comes_in_chunks(request: &Request, connection: &Connection) -> bool {
    connection.agreed.structured && !request.unbroken()
}

impl Message {
    fn new(request: &Request, done: io::Result<Done>, connection: &Connection, is_last: bool) -> Message {
        let (cookie, structured) = (request.cookie, connection.agreed.structured);
        let (head, body) = match done {
            Ok(Done::Nothing) => (Head::done(cookie, structured), Body::None),
            Ok(Done::Data(data)) => {
                (Head::data(cookie, request.offset, data.len(), structured, is_last), Body::Data(data))
            }
            Ok(Done::Parts(parts, data)) => {
                let last = parts.len() - 1;
                let head = |(at, part): (usize, &Part)| {
                    (Head::part(cookie, part, is_last && at == last), if part.hole { 0 } else { part.len as usize })
                };
                (Head::none(), Body::Parts(parts.iter().enumerate().map(head).collect(), data))
            }
            Ok(Done::Extents(extents)) => {
                (Head::block_status(cookie, extents.as_flattened().len()), Body::Extents(extents))
            }
            Err(error) => {
                let message = if structured { error.to_string() } else { String::new() };
                let message = message.chars().take(MOST_SAID).collect::<String>();
                let code = code(request, connection.export.image.len(), &error);
                (Head::error(cookie, code, &message, structured), Body::Message(message))
            }
        };
        Message { head, body }
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
fn code(request: &Request, size: u64, error: &io::Error) -> protocol::Error {
    let writes = matches!(request.command, Command::Write | Command::WriteZeroes);
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => protocol::Error::Perm,
        // Beyond the end there is no room, for who writes.
        io::ErrorKind::InvalidInput if writes && request.is_beyond(size) => protocol::Error::NoSpace,
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
    let mut turn = Turn::of(connection.client);
    loop {
        let replies = mem::take(&mut *outbox.replies.borrow_mut());
        if replies.is_empty() {
            break;
        }
        if let Err(why) = send_replies(connection, &replies, &mut turn) {
            outbox.broken.set(true);
            connection.fail(why);
        }
    }
    outbox.sender.set(None);
}

fn send_replies(connection: &Connection, replies: &[Reply], turn: &mut Turn) -> io::Result<()> {
    for group in replies.split_inclusive(|reply| reply.rest.is_some()) {
        for together in group.chunks(TOGETHER) {
            let mut pieces = Vec::with_capacity(2 * together.len());
            together.iter().for_each(|reply| reply.message.pieces(&mut pieces));
            send_all(connection, &mut pieces, turn)?;
        }
        if let Some(rest) = group.last().and_then(|reply| reply.rest) {
            send_rest(connection, rest, turn)?;
        }
    }
    Ok(())
}

/// Reads the rest of a large read, and sends it, piece by piece.
///
/// # Errors
///
/// The socket's; or the image's, if the head has announced the data already, so that only hanging up is left.
fn send_rest(connection: &Connection, mut rest: Request, turn: &mut Turn) -> io::Result<()> {
    while rest.len > 0 {
        let (piece, behind) = rest.split(PIECE);
        let done = perform(&connection.export, &piece, None, connection.agreed);
        let is_last = done.is_err() || behind.len == 0;
        if comes_in_chunks(&rest, connection) {
            let message = Message::new(&piece, done, connection, is_last);
            let mut pieces = Vec::new();
            message.pieces(&mut pieces);
            send_all(connection, &mut pieces, turn)?;
            if is_last {
                return Ok(());
            }
        } else {
            match done {
                Ok(Done::Data(data)) => send_all(connection, &mut [IoSlice::new(&data)], turn)?,
                Ok(_) => unreachable!("a read in one chunk is data"),
                Err(error) => {
                    let why = format!(
                        "cannot read {} bytes at {} in the middle of a reply: {error}",
                        piece.len, piece.offset
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
        }
        rest = behind;
    }
    Ok(())
}

fn send_all(connection: &Connection, mut rest: &mut [IoSlice<'_>], turn: &mut Turn) -> io::Result<()> {
    let mut socket = &connection.socket;
    while !rest.is_empty() {
        let sent = within(connection.idle_limit, || socket.write_vectored(rest))?;
        if sent == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, sent);
        turn.spend(sent)?;
    }
    Ok(())
}
