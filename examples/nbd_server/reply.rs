//! Sends the replies of a connection: replies that are ready together leave in one system call.
//!
//! A request's coroutine puts its reply into the connection's outbox. The first reply also spawns a
//! sender coroutine, which runs after all other ready coroutines and so finds the replies that they
//! have added. The sender ends when the outbox is empty, so that an idle connection needs one stack
//! instead of two. The reply to the only request in flight has nothing to wait for and is sent
//! directly.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Write};
use std::mem;
use std::rc::Rc;

use coralio::coroutine::Coroutine;
use coralio::spawn;

use crate::buffers::Buffer;
use crate::connection::{Connection, PIECE, Ticket, within};
use crate::handle::handle;
use crate::protocol::{self, Command, Head, Part, Request};
use crate::turn::Turn;

/// Maximum number of replies per system call, usually with two slices each: the kernel accepts 1024
/// slices.
const MAX_REPLIES_PER_WRITE: usize = 512;
/// Maximum number of characters in an error message: the protocol allows 4096 bytes.
const MAX_ERROR_TEXT: usize = 1000;

/// The successful result of a request.
pub enum Done {
    /// Success without data.
    Nothing,
    /// Data of a read.
    Data(Buffer),
    /// A read with holes: the parts in order, and the data of the parts that have some.
    Parts(Vec<Part>, Buffer),
    /// The extents of the range.
    Extents(Vec<[u8; 8]>),
}

/// The part of a reply that follows its header.
enum Body {
    None,
    Data(Buffer),
    /// More headers, each with the number of data bytes that follow it.
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

/// A complete reply, or one chunk of a reply.
struct Message {
    head: Head,
    body: Body,
}

pub struct Reply {
    message: Message,
    /// The part of a large read that is not in `message`: it is read and sent afterwards, piece by
    /// piece.
    rest: Option<Request>,
    /// The request counts as in flight until the reply is dropped after sending.
    _ticket: Ticket,
}

impl Reply {
    /// Creates the reply to a completed request.
    pub fn new(request: &Request, done: io::Result<Done>, ticket: Ticket) -> Reply {
        Reply { message: Message::new(request, done, ticket.connection(), true), rest: None, _ticket: ticket }
    }

    /// Reads the first piece of a large read and creates the reply, which sends the rest later.
    pub fn in_pieces(request: &Request, ticket: Ticket) -> Reply {
        let connection = ticket.connection();
        let (first, rest) = request.split(PIECE);
        let done = handle(&connection.export, &first, None, connection.agreed);
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

/// Returns whether each piece of a large read is a chunk. Otherwise one header announces all
/// pieces.
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
                let message = message.chars().take(MAX_ERROR_TEXT).collect::<String>();
                let code = code(request, connection.export.image.len(), &error);
                (Head::error(cookie, code, &message, structured), Body::Message(message))
            }
        };
        Message { head, body }
    }

    /// Appends the slices to send.
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

/// Maps an error to the protocol's code.
fn code(request: &Request, size: u64, error: &io::Error) -> protocol::Error {
    let writes = matches!(request.command, Command::Write | Command::WriteZeroes);
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => protocol::Error::Perm,
        // Writing beyond the end is reported as a lack of space.
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

/// The replies to send on a connection.
#[derive(Default)]
pub struct ReplyQueue {
    replies: RefCell<Vec<Reply>>,
    /// The coroutine that sends until the outbox is empty.
    sender: Cell<Option<Coroutine>>,
    /// Set if sending has failed or was given up; further replies are dropped.
    broken: Cell<bool>,
}

impl ReplyQueue {
    /// Adds `reply`; sends it directly if no other reply can join it.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn push(&self, connection: &Rc<Connection>, reply: Reply) {
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

    /// Drops the replies that have not been sent.
    pub fn give_up(&self) {
        self.broken.set(true);
        if let Some(sender) = self.sender.get() {
            sender.cancel();
        }
    }
}

/// Sends replies until the outbox is empty.
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
        for together in group.chunks(MAX_REPLIES_PER_WRITE) {
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

/// Reads and sends the rest of a large read, piece by piece.
///
/// # Errors
///
/// The socket's; or the image's, if the header has already announced the data, so that the
/// connection must be closed.
fn send_rest(connection: &Connection, mut rest: Request, turn: &mut Turn) -> io::Result<()> {
    while rest.len > 0 {
        let (piece, behind) = rest.split(PIECE);
        let done = handle(&connection.export, &piece, None, connection.agreed);
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
