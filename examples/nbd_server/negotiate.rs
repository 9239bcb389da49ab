//! The fixed newstyle handshake, as sequential code: read an option, answer it, read the next.
//!
//! It reads exactly the bytes of the handshake and none that follow, so that the socket can then
//! move to another thread.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use coralio::net::CoFd;

use crate::export::{Catalog, Listing};
use crate::protocol::*;
use crate::turn::{ClientId, Turn};

/// Maximum size of an option's data: a name of 4096 bytes with its parameters, and room for more
/// queries than there are contexts.
const MAX_DATA: u32 = 16 << 10;

/// Options that a client may send per export, in addition to the general limit: for listing,
/// querying and selecting.
const OPTIONS_PER_EXPORT: usize = 4;

const MALFORMED: &[u8] = b"malformed option: inconsistent lengths, or a name is not UTF-8";

/// A client's socket, TCP or Unix: `std`'s type for Unix sockets calls `recv` and `send`, which do
/// not depend on the family and cost less than the `read` and `write` of a file.
pub type Socket = UnixStream;

/// The result of the handshake.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    /// The index of the export in the catalog.
    pub export: usize,
    pub structured: bool,
    /// The client may query block status (`base:allocation`).
    pub base_allocation: bool,
}

struct Negotiation<'a> {
    socket: &'a CoFd<Socket>,
    catalog: &'a Catalog,
    structured: bool,
    /// The export for which the client selected the metadata context.
    base_allocation: Option<usize>,
    no_zeroes: bool,
}

/// Performs the handshake for the exports of `catalog`. Returns `None` if the client leaves without
/// selecting an export.
///
/// # Errors
///
/// The socket's. `InvalidData` if the client violates the protocol or exceeds `most_options` plus
/// four options per export.
pub fn negotiate(mut socket: &CoFd<Socket>, catalog: &Catalog, most_options: usize) -> io::Result<Option<Agreed>> {
    socket.write_all(&GREETING)?;
    let mut flags = [0; 4];
    socket.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !(CLIENT_FIXED | CLIENT_NO_ZEROES) != 0 {
        return Err(refusal(format!("client flags {flags:#x} are not newstyle flags")));
    }
    let [is_fixed, no_zeroes] = [CLIENT_FIXED, CLIENT_NO_ZEROES].map(|flag| flags & flag != 0);
    let mut negotiation = Negotiation { socket, catalog, structured: false, base_allocation: None, no_zeroes };
    let most_options = most_options.saturating_add(OPTIONS_PER_EXPORT * catalog.0.len());
    let mut turn = Turn::of(ClientId::new());
    for _ in 0..most_options {
        let mut head = [0; 16];
        socket.read_exact(&mut head)?;
        let Some((number, option, len)) = option(&head) else {
            return Err(refusal("option with a wrong magic number".into()));
        };
        if !is_fixed && option != Opt::ExportName {
            return Err(refusal(format!(
                "option {number} requires the fixed newstyle flag, which the client did not set"
            )));
        }
        if len > MAX_DATA {
            // No legitimate option is this long.
            negotiation.answer(number, Answer::TooBig, b"too long")?;
            return Err(refusal(format!("option of {len} bytes is too long")));
        }
        let mut data = vec![0; len as usize];
        socket.read_exact(&mut data)?;
        match negotiation.option(number, option, &data)? {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Serve(agreed) => return Ok(Some(agreed)),
        }
        turn.spend(data.len())?;
    }
    Err(refusal(format!("more than {most_options} options in the handshake; raise --max-options")))
}

fn refusal(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

enum Next {
    Option,
    Leave,
    Serve(Agreed),
}

impl Negotiation<'_> {
    fn answer(&self, option: u32, answer: Answer, data: &[u8]) -> io::Result<Next> {
        self.send(&option_reply(option, answer, data))
    }

    fn send(&self, replies: &[u8]) -> io::Result<Next> {
        let mut socket = self.socket;
        socket.write_all(replies)?;
        Ok(Next::Option)
    }

    fn option(&mut self, number: u32, option: Opt, data: &[u8]) -> io::Result<Next> {
        match option {
            Opt::ExportName => self.export_name(data),
            Opt::Abort => {
                // The client need not wait for the answer.
                let _ = self.answer(number, Answer::Ack, &[]);
                Ok(Next::Leave)
            }
            Opt::List | Opt::StructuredReply if !data.is_empty() => {
                self.answer(number, Answer::Invalid, b"this option takes no data")
            }
            Opt::List => {
                let server = |listing: &Listing| option_reply(number, Answer::Server, &counted(&listing.name));
                let mut replies = self.catalog.0.iter().flat_map(server).collect::<Vec<_>>();
                replies.extend(option_reply(number, Answer::Ack, &[]));
                self.send(&replies)
            }
            Opt::StructuredReply => {
                self.structured = true;
                self.answer(number, Answer::Ack, &[])
            }
            Opt::Info | Opt::Go => self.go(number, option, data),
            Opt::ListMetaContext | Opt::SetMetaContext => self.meta_context(number, option, data),
            Opt::Other => self.answer(number, Answer::Unsupported, b"unsupported option"),
        }
    }

    fn flags(&self, listing: &Listing) -> u16 {
        transmission_flags(listing.read_only, listing.many_may_write, self.structured)
    }

    fn agreed(&self, export: usize) -> Next {
        let base_allocation = self.base_allocation == Some(export);
        Next::Serve(Agreed { export, structured: self.structured, base_allocation })
    }

    /// Handles the old-style option, which can be refused only by closing the connection.
    fn export_name(&self, data: &[u8]) -> io::Result<Next> {
        let found = std::str::from_utf8(data).ok().and_then(|name| self.catalog.find(name));
        let Some((export, listing)) = found else {
            return Err(refusal("the client requested an unknown export".into()));
        };
        let mut socket = self.socket;
        socket.write_all(&export_name_reply(listing.size, self.flags(listing), !self.no_zeroes))?;
        Ok(self.agreed(export))
    }

    fn go(&self, number: u32, option: Opt, data: &[u8]) -> io::Result<Next> {
        let mut fields = Fields(data);
        let parsed = (|| {
            let name = fields.text()?;
            let wanted = (0..fields.u16()?).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
            fields.is_empty().then_some((name, wanted))
        })();
        let Some((name, wanted)) = parsed else { return self.answer(number, Answer::Invalid, MALFORMED) };
        let Some((export, listing)) = self.catalog.find(name) else {
            return self.answer(number, Answer::Unknown, b"no such export; list the exports with --list");
        };
        self.answer(number, Answer::Info, &info_export(listing.size, self.flags(listing)))?;
        if wanted.contains(&INFO_NAME) {
            let name = [&INFO_NAME.to_be_bytes()[..], listing.name.as_bytes()].concat();
            self.answer(number, Answer::Info, &name)?;
        }
        if wanted.contains(&INFO_BLOCK_SIZE) {
            self.answer(number, Answer::Info, &info_block_size())?;
        }
        self.answer(number, Answer::Ack, &[])?;
        Ok(if option == Opt::Go { self.agreed(export) } else { Next::Option })
    }

    fn meta_context(&mut self, number: u32, option: Opt, data: &[u8]) -> io::Result<Next> {
        let mut fields = Fields(data);
        let parsed = (|| {
            let name = fields.text()?;
            let queries = (0..fields.u32()?).map(|_| fields.text()).collect::<Option<Vec<_>>>()?;
            fields.is_empty().then_some((name, queries))
        })();
        let sets = option == Opt::SetMetaContext;
        if sets {
            // The previous selection is void even if this option fails.
            self.base_allocation = None;
        }
        let Some((name, queries)) = parsed else { return self.answer(number, Answer::Invalid, MALFORMED) };
        if sets && !self.structured {
            return self.answer(number, Answer::Invalid, b"negotiate structured replies first");
        }
        let Some((export, _)) = self.catalog.find(name) else {
            return self.answer(number, Answer::Unknown, b"no such export");
        };
        let all = !sets && (queries.is_empty() || queries.contains(&"base:"));
        let found = all || queries.contains(&BASE_ALLOCATION);
        if sets {
            self.base_allocation = found.then_some(export);
        }
        if found {
            let id = if sets { BASE_ALLOCATION_ID } else { 0 };
            self.answer(number, Answer::MetaContext, &meta_context(id, BASE_ALLOCATION))?;
        }
        self.answer(number, Answer::Ack, &[])
    }
}
