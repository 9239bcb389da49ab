//! Numbers and byte layouts of the NBD protocol. All fields are big-endian; no other file deals
//! with byte order.
//!
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>

/// The maximum payload of a request: the limit that clients may assume by default.
pub const MAX_BYTES: u32 = 32 << 20;
/// The preferred alignment of offsets and lengths, in bytes: direct I/O accepts it everywhere.
const PREFERRED: u32 = 4096;

/// The server's greeting.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\x00\x03";
/// Client flags: fixed newstyle; no zero padding after the reply to an old-style option.
pub const CLIENT_FIXED: u32 = 1;
pub const CLIENT_NO_ZEROES: u32 = 2;
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// The options of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opt {
    ExportName,
    Abort,
    List,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
    Other,
}

/// Parses an option's header: number, option, and length of the data. Returns `None` if the magic
/// is wrong.
pub fn option(head: &[u8; 16]) -> Option<(u32, Opt, u32)> {
    let mut fields = Fields(head);
    let (magic, number, len) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let opt = match number {
        1 => Opt::ExportName,
        2 => Opt::Abort,
        3 => Opt::List,
        6 => Opt::Info,
        7 => Opt::Go,
        8 => Opt::StructuredReply,
        9 => Opt::ListMetaContext,
        10 => Opt::SetMetaContext,
        _ => Opt::Other,
    };
    (magic == OPTION_MAGIC).then_some((number, opt, len))
}

/// The reply types for options.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Answer {
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    Unsupported = 0x8000_0001,
    Invalid = 0x8000_0003,
    Unknown = 0x8000_0006,
    TooBig = 0x8000_0009,
}

pub fn option_reply(option: u32, answer: Answer, data: &[u8]) -> Vec<u8> {
    let mut reply = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [option, answer as u32, data.len() as u32] {
        reply.extend(word.to_be_bytes());
    }
    reply.extend(data);
    reply
}

/// The information types about an export.
pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_BLOCK_SIZE: u16 = 3;

pub fn info_export(size: u64, flags: u16) -> Vec<u8> {
    [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
}

pub fn info_block_size() -> Vec<u8> {
    let sizes = [1, PREFERRED, MAX_BYTES].map(u32::to_be_bytes);
    [&INFO_BLOCK_SIZE.to_be_bytes()[..], sizes.as_flattened()].concat()
}

/// Encodes the reply to the old-style option that names an export.
pub fn export_name_reply(size: u64, flags: u16, zeroes: bool) -> Vec<u8> {
    [&size.to_be_bytes()[..], &flags.to_be_bytes(), &[0; 124][..if zeroes { 124 } else { 0 }]].concat()
}

/// Encodes a string with its length in front.
pub fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// Parses an option's data from front to back; returns `None` if the data ends too early.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// Returns whether no data is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// Parses a string with its length in front.
    pub fn text(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        let (text, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

/// The only metadata context: allocation, and ranges that read as zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
pub const BASE_ALLOCATION_ID: u32 = 1;

pub fn meta_context(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

/// Returns the transmission flags of an export.
pub fn transmission_flags(read_only: bool, multi_conn: bool, structured: bool) -> u16 {
    const HAS_FLAGS: u16 = 1;
    const READ_ONLY: u16 = 1 << 1;
    const FLUSH: u16 = 1 << 2;
    const FUA: u16 = 1 << 3;
    const TRIM: u16 = 1 << 5;
    const WRITE_ZEROES: u16 = 1 << 6;
    const DONT_FRAGMENT: u16 = 1 << 7;
    const MULTI_CONN: u16 = 1 << 8;
    const CACHE: u16 = 1 << 10;
    const FAST_ZERO: u16 = 1 << 11;
    let access = if read_only { READ_ONLY } else { TRIM | WRITE_ZEROES | FAST_ZERO };
    let both = |condition, flag| if condition { flag } else { 0 };
    HAS_FLAGS | FLUSH | FUA | CACHE | access | both(multi_conn, MULTI_CONN) | both(structured, DONT_FRAGMENT)
}

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The length of a request without the payload of a write, in bytes.
pub const REQUEST_LEN: usize = 28;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
    Other(u16),
}

/// A request of a client.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub command: Command,
    flags: u16,
    /// The client's identifier of the request, returned in the reply.
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
}

impl Request {
    /// Parses a request. Returns `None` if the magic is wrong.
    pub fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        let (flags, command) = (fields.u16()?, fields.u16()?);
        let (cookie, offset) = (fields.u64()?, fields.u64()?);
        let command = match command {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Other(other),
        };
        (magic == REQUEST_MAGIC).then_some(Request { command, flags, cookie, offset, len: fields.u32()? })
    }

    /// Returns whether the request completes only when the data is on stable storage.
    pub fn fua(&self) -> bool {
        self.flags & 1 != 0
    }

    pub fn no_hole(&self) -> bool {
        self.flags & 1 << 1 != 0
    }

    /// Splits the range after at most `len` bytes, into a request for the first part and one for
    /// the rest.
    pub fn split(&self, len: u32) -> (Request, Request) {
        let len = len.min(self.len);
        (Request { len, ..*self }, Request { offset: self.offset + u64::from(len), len: self.len - len, ..*self })
    }

    /// Returns whether the range extends beyond a disk of `size` bytes.
    pub fn is_beyond(&self, size: u64) -> bool {
        self.offset.checked_add(self.len.into()).is_none_or(|end| end > size)
    }

    /// Returns whether the data must come in a single chunk.
    pub fn unbroken(&self) -> bool {
        self.flags & 1 << 2 != 0
    }

    /// Returns whether the client wants only one extent.
    pub fn one_extent(&self) -> bool {
        self.flags & 1 << 3 != 0
    }

    pub fn fast_zero(&self) -> bool {
        self.flags & 1 << 4 != 0
    }

    /// Returns whether flags are set that the command does not define.
    pub fn has_stray_flags(&self, structured: bool) -> bool {
        let known = match self.command {
            // Simple replies always have a single chunk.
            Command::Read if !structured => 1,
            Command::Read => 1 | 1 << 2,
            Command::WriteZeroes => 1 | 1 << 1 | 1 << 4,
            Command::BlockStatus => 1 | 1 << 3,
            _ => 1,
        };
        self.flags & !known != 0
    }
}

/// The error codes of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Error {
    Perm = 1,
    Io = 5,
    NoMemory = 12,
    Invalid = 22,
    NoSpace = 28,
    NotSupported = 95,
}

/// A part of the result of a read: data or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub offset: u64,
    pub len: u32,
    pub hole: bool,
}

/// The flag of the last chunk of a structured reply.
const LAST: u16 = 1;

/// The header of a reply or chunk.
pub struct Head {
    bytes: [u8; Head::LONGEST],
    len: u8,
}

impl Head {
    const LONGEST: usize = 32;

    fn of<const N: usize>(fields: [&[u8]; N]) -> Head {
        let mut head = Head { bytes: [0; Head::LONGEST], len: 0 };
        for field in fields {
            let from = usize::from(head.len);
            head.bytes[from..from + field.len()].copy_from_slice(field);
            head.len += field.len() as u8;
        }
        head
    }

    /// Creates an empty header, for a body that contains its own headers.
    pub fn none() -> Head {
        Head::of([])
    }

    fn simple(cookie: u64, error: u32) -> Head {
        Head::of([&SIMPLE_REPLY_MAGIC.to_be_bytes(), &error.to_be_bytes(), &cookie.to_be_bytes()])
    }

    /// Creates the header of a structured chunk that begins with `fields`; `more` bytes follow.
    fn chunk(flags: u16, kind: u16, cookie: u64, fields: &[u8], more: usize) -> Head {
        let len = (fields.len() + more) as u32;
        let magic = STRUCTURED_REPLY_MAGIC.to_be_bytes();
        Head::of([&magic, &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes(), &len.to_be_bytes(), fields])
    }

    /// Creates the header of a successful reply without data.
    pub fn done(cookie: u64, structured: bool) -> Head {
        if structured { Head::chunk(LAST, 0, cookie, &[], 0) } else { Head::simple(cookie, 0) }
    }

    pub fn error(cookie: u64, error: Error, message: &str, structured: bool) -> Head {
        let error = error as u32;
        match structured {
            true => {
                let len = (message.len() as u16).to_be_bytes();
                Head::chunk(LAST, 1 << 15 | 1, cookie, &[&error.to_be_bytes()[..], &len].concat(), message.len())
            }
            false => Head::simple(cookie, error),
        }
    }

    /// Creates the header for `len` bytes of data.
    pub fn data(cookie: u64, offset: u64, len: usize, structured: bool, is_last: bool) -> Head {
        match structured {
            // A data chunk must have at least one byte of data.
            true if len == 0 => Head::done(cookie, true),
            true => Head::chunk(if is_last { LAST } else { 0 }, 1, cookie, &offset.to_be_bytes(), len),
            false => Head::simple(cookie, 0),
        }
    }

    /// Creates the header of a data chunk or a hole chunk; structured replies only.
    pub fn part(cookie: u64, part: &Part, is_last: bool) -> Head {
        let (flags, offset) = (if is_last { LAST } else { 0 }, part.offset.to_be_bytes());
        match part.hole {
            true => Head::chunk(flags, 2, cookie, &[&offset[..], &part.len.to_be_bytes()].concat(), 0),
            false => Head::chunk(flags, 1, cookie, &offset, part.len as usize),
        }
    }

    /// Creates the header for `len` bytes of extents.
    pub fn block_status(cookie: u64, len: usize) -> Head {
        Head::chunk(LAST, 5, cookie, &BASE_ALLOCATION_ID.to_be_bytes(), len)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Encodes an extent for a block status reply.
pub fn extent(len: u32, hole: bool, zero: bool) -> [u8; 8] {
    let flags = u32::from(hole) | u32::from(zero) << 1;
    let [len, flags] = [len, flags].map(u32::to_be_bytes);
    *[len, flags].as_flattened().first_chunk().expect("eight bytes")
}
