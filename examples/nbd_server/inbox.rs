//! What a client has sent and nobody has looked at: many requests with one system call, and no memory while nothing comes.

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::time::Duration;

use coralio_aio::CoFd;

use crate::buffers::Buffer;
use crate::connection::within;
use crate::protocol::REQUEST_LEN;
use crate::turn::Turn;

/// Bytes that one call reads at most: thirty writes of 4 KiB.
const ROOM: usize = 128 << 10;
/// A payload from this size on is read into its own buffer, and not copied out of the inbox.
const LARGE: usize = 32 << 10;
/// Room while large payloads are expected: what is read here of one must be copied.
const ROOM_FOR_HEADS: usize = 4 << 10;

pub struct Inbox {
    /// Only while there is something in it.
    memory: Option<Buffer>,
    start: usize,
    end: usize,
    /// What is there of a request that is not whole, while nothing else is.
    begun: [u8; REQUEST_LEN],
    room: usize,
}

impl Inbox {
    pub fn new() -> Inbox {
        Inbox { memory: None, start: 0, end: 0, begun: [0; REQUEST_LEN], room: ROOM }
    }

    /// The next request's header; `None` if the client has said that there will be none.
    pub fn head(&mut self, socket: &CoFd<fs::File>) -> io::Result<Option<[u8; REQUEST_LEN]>> {
        while !self.has_head() {
            let begun = self.end - self.start;
            if let Some(memory) = self.memory.take() {
                self.begun[..begun].copy_from_slice(&memory[self.start..self.end]);
            }
            (self.start, self.end) = (0, begun);
            socket.wait_readable()?;
            let mut memory = Buffer::new(ROOM);
            memory[..begun].copy_from_slice(&self.begun[..begun]);
            match socket.try_read(&mut memory[begun..self.room]) {
                Ok(0) if begun == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.end += count;
                    self.memory = Some(memory);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let memory = self.memory.as_ref().expect("a header is in it");
        let head = *memory[self.start..].first_chunk().expect("looked above");
        self.start += REQUEST_LEN;
        self.room = ROOM;
        Ok(Some(head))
    }

    /// Whether the next header is here already.
    pub fn has_head(&self) -> bool {
        self.end - self.start >= REQUEST_LEN
    }

    /// Fills `payload` with what follows; and reads what follows that, if it has come too.
    /// The client may send nothing for `idle_limit` at most.
    pub fn payload(
        &mut self,
        mut socket: &CoFd<fs::File>,
        payload: &mut [u8],
        turn: &mut Turn,
        idle_limit: Option<Duration>,
    ) -> io::Result<()> {
        if payload.len() >= LARGE {
            self.room = ROOM_FOR_HEADS;
        }
        let here = payload.len().min(self.end - self.start);
        let (begin, mut rest) = payload.split_at_mut(here);
        if let Some(memory) = &self.memory {
            begin.copy_from_slice(&memory[self.start..self.start + here]);
        }
        self.start += here;
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            // All that was there is used up.
            let memory = self.memory.get_or_insert_with(|| Buffer::new(ROOM));
            (self.start, self.end) = (0, 0);
            let wanted = rest.len();
            let into = &mut [IoSliceMut::new(rest), IoSliceMut::new(&mut memory[..self.room])];
            let count = within(idle_limit, || socket.read_vectored(into))?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            rest = &mut rest[count.min(wanted)..];
            self.end = count.saturating_sub(wanted);
            turn.spend(count)?;
        }
        Ok(())
    }
}
