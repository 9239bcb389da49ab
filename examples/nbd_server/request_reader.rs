//! Receive buffer of a connection: reads many requests with one system call, and holds no memory
//! while the client is idle.

use std::io::{self, IoSliceMut, Read};
use std::time::Duration;

use coralio::net::CoFd;

use crate::buffers::Buffer;
use crate::connection::within;
use crate::negotiate::Socket;
use crate::protocol::REQUEST_LEN;
use crate::turn::Turn;

/// Maximum number of bytes per read: thirty writes of 4 KiB.
const ROOM: usize = 128 << 10;
/// Payloads of at least this size are read into their own buffer, not copied out of the inbox.
const LARGE: usize = 32 << 10;
/// Read size while large payloads are expected: payload bytes that land in the inbox must be
/// copied.
const ROOM_FOR_HEADS: usize = 4 << 10;

pub struct RequestReader {
    /// Allocated only while it holds data.
    memory: Option<Buffer>,
    start: usize,
    end: usize,
    /// An incomplete header, while the inbox holds nothing else.
    partial_header: [u8; REQUEST_LEN],
    room: usize,
}

impl RequestReader {
    pub fn new() -> RequestReader {
        RequestReader { memory: None, start: 0, end: 0, partial_header: [0; REQUEST_LEN], room: ROOM }
    }

    /// Returns the header of the next request, or `None` if the client will send no more.
    pub fn head(&mut self, socket: &CoFd<Socket>) -> io::Result<Option<[u8; REQUEST_LEN]>> {
        while !self.has_head() {
            let begun = self.end - self.start;
            if let Some(memory) = self.memory.take() {
                self.partial_header[..begun].copy_from_slice(&memory[self.start..self.end]);
            }
            (self.start, self.end) = (0, begun);
            socket.wait_readable()?;
            let mut memory = Buffer::new(ROOM);
            memory[..begun].copy_from_slice(&self.partial_header[..begun]);
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
        let memory = self.memory.as_ref().expect("the inbox holds a header");
        let head = *memory[self.start..].first_chunk().expect("the inbox was filled above");
        self.start += REQUEST_LEN;
        self.room = ROOM;
        Ok(Some(head))
    }

    /// Returns whether the next header has been read completely.
    pub fn has_head(&self) -> bool {
        self.end - self.start >= REQUEST_LEN
    }

    /// Fills `payload` with the bytes that follow, and reads ahead if more has arrived. Fails if
    /// the client sends nothing for `idle_limit`.
    pub fn payload(
        &mut self,
        mut socket: &CoFd<Socket>,
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
            // The buffered bytes are used up.
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
