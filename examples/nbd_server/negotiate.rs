//! The handshake: fixed newstyle. Plain code that reads an option, answers, and reads the next.
//!
//! It reads exactly what it needs, so that nothing of what follows is read here: the socket may go to another thread then.

use std::fs;
use std::io::{self, Read, Write};

use coralio_aio::CoFd;

use crate::export::{Catalog, Listing};
use crate::protocol::*;

/// An option's data: a name of 4096 bytes and what goes with it, and room for more queries than there are contexts.
const MOST_DATA: u32 = 16 << 10;

/// What client and server have agreed upon.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    /// Which one, in the order of the catalog.
    pub export: usize,
    pub structured: bool,
    /// The client may ask what the disk is made of.
    pub base_allocation: bool,
}

struct Negotiation<'a> {
    socket: &'a CoFd<fs::File>,
    catalog: &'a Catalog,
    structured: bool,
    /// For which export the metadata context was chosen.
    base_allocation: Option<usize>,
    no_zeroes: bool,
}

/// What a client and `catalog` come to; `None` if it only wanted to look.
///
/// # Errors
///
/// The socket's; `InvalidData` if this is not the protocol, or not within its bounds.
pub fn negotiate(mut socket: &CoFd<fs::File>, catalog: &Catalog) -> io::Result<Option<Agreed>> {
    socket.write_all(&GREETING)?;
    let mut flags = [0; 4];
    socket.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & CLIENT_FIXED == 0 || flags & !(CLIENT_FIXED | CLIENT_NO_ZEROES) != 0 {
        return Err(refusal(format!("its flags {flags:#x} are not those of a fixed newstyle client")));
    }
    let no_zeroes = flags & CLIENT_NO_ZEROES != 0;
    let mut negotiation = Negotiation { socket, catalog, structured: false, base_allocation: None, no_zeroes };
    loop {
        let mut head = [0; 16];
        socket.read_exact(&mut head)?;
        let Some((number, option, len)) = option(&head) else {
            return Err(refusal("an option has the wrong magic".into()));
        };
        if len > MOST_DATA {
            // Nothing that a client has reason to send.
            negotiation.answer(number, Answer::TooBig, b"too long")?;
            return Err(refusal(format!("an option of {len} bytes is too long")));
        }
        let mut data = vec![0; len as usize];
        socket.read_exact(&mut data)?;
        match negotiation.option(number, option, &data)? {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Serve(agreed) => return Ok(Some(agreed)),
        }
    }
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
        let mut socket = self.socket;
        socket.write_all(&option_reply(option, answer, data))?;
        Ok(Next::Option)
    }

    fn option(&mut self, number: u32, option: Opt, data: &[u8]) -> io::Result<Next> {
        match option {
            Opt::ExportName => self.export_name(data),
            Opt::Abort => {
                // It may not wait for the answer.
                let _ = self.answer(number, Answer::Ack, &[]);
                Ok(Next::Leave)
            }
            Opt::List | Opt::StructuredReply if !data.is_empty() => {
                self.answer(number, Answer::Invalid, b"this option has no data")
            }
            Opt::List => {
                for listing in &self.catalog.0 {
                    self.answer(number, Answer::Server, &counted(&listing.name))?;
                }
                self.answer(number, Answer::Ack, &[])
            }
            Opt::StructuredReply => {
                self.structured = true;
                self.answer(number, Answer::Ack, &[])
            }
            Opt::Info | Opt::Go => self.go(number, option, data),
            Opt::ListMetaContext | Opt::SetMetaContext => self.meta_context(number, option, data),
            Opt::Other => self.answer(number, Answer::Unsupported, b"this server does not know the option"),
        }
    }

    fn flags(&self, listing: &Listing) -> u16 {
        transmission_flags(listing.read_only, listing.many_may_write, self.structured)
    }

    fn agreed(&self, export: usize) -> Next {
        let base_allocation = self.base_allocation == Some(export);
        Next::Serve(Agreed { export, structured: self.structured, base_allocation })
    }

    /// The old way, which cannot be refused but by hanging up.
    fn export_name(&self, data: &[u8]) -> io::Result<Next> {
        let found = std::str::from_utf8(data).ok().and_then(|name| self.catalog.find(name));
        let Some((export, listing)) = found else { return Err(refusal("it wants an export that is not here".into())) };
        let mut socket = self.socket;
        socket.write_all(&export_name_reply(listing.size, self.flags(listing), !self.no_zeroes))?;
        Ok(self.agreed(export))
    }

    fn go(&self, number: u32, option: Opt, data: &[u8]) -> io::Result<Next> {
        let mut fields = Fields(data);
        let parsed = (|| {
            let name = fields.text()?;
            let wanted: Option<Vec<_>> = (0..fields.u16()?).map(|_| fields.u16()).collect();
            Some((name, wanted?))
        })();
        let Some((name, wanted)) = parsed else { return self.answer(number, Answer::Invalid, b"this is cut short") };
        let Some((export, listing)) = self.catalog.find(name) else {
            return self.answer(number, Answer::Unknown, b"no such export; --list tells which there are");
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
            let queries: Option<Vec<_>> = (0..fields.u32()?).map(|_| fields.text()).collect();
            Some((name, queries?))
        })();
        let Some((name, queries)) = parsed else {
            return self.answer(number, Answer::Invalid, b"this is cut short, or no text");
        };
        let sets = option == Opt::SetMetaContext;
        if sets && !self.structured {
            return self.answer(number, Answer::Invalid, b"structured replies come first");
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
