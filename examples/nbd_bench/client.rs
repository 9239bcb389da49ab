//! A client that keeps a number of requests in flight at little cost: it sends one write of new
//! requests for each read that returned replies.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

const SIMPLE_REPLY: u32 = 0x6744_6698;
const REPLY_LEN: usize = 16;

/// The load of a measurement.
#[derive(Clone, Copy)]
pub struct Load {
    pub write: bool,
    pub block: u32,
    pub depth: usize,
    pub sequential: bool,
}

pub struct Client {
    socket: UnixStream,
    size: u64,
    /// State of the offset generator.
    random: u64,
    next: u64,
    room: Vec<u8>,
}

fn other(why: &str) -> io::Error {
    io::Error::other(why)
}

impl Client {
    /// Connects and selects the default export.
    pub fn connect(path: &Path) -> io::Result<Client> {
        let mut socket = UnixStream::connect(path)?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME with an empty name.
        socket.write_all(&3u32.to_be_bytes())?;
        socket.write_all(&[&b"IHAVEOPT"[..], &1u32.to_be_bytes(), &0u32.to_be_bytes()].concat())?;
        let mut answer = [0; 10];
        socket.read_exact(&mut answer)?;
        let size = u64::from_be_bytes(*answer.first_chunk().expect("an array of ten bytes"));
        Ok(Client { socket, size, random: 1, next: 0, room: vec![0; 1 << 20] })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the socket. No replies may be outstanding.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }

    /// Reads `len` bytes at the next offset and waits for them.
    pub fn read_once(&mut self, len: u32) -> io::Result<()> {
        let load = Load { write: false, block: len, depth: 1, sequential: false };
        let mut out = Vec::new();
        self.ask(&load, &mut out);
        self.socket.write_all(&out)?;
        self.socket.read_exact(&mut self.room[..REPLY_LEN + len as usize])
    }

    /// Flushes and waits for the reply.
    pub fn flush_once(&mut self) -> io::Result<()> {
        let mut request = [0; 28];
        request[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3]);
        self.socket.write_all(&request)?;
        self.socket.read_exact(&mut self.room[..REPLY_LEN])
    }

    fn offset(&mut self, load: &Load) -> u64 {
        let blocks = self.size / u64::from(load.block);
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.next += 1;
        let block = if load.sequential { self.next } else { self.random >> 33 };
        block % blocks * u64::from(load.block)
    }

    fn ask(&mut self, load: &Load, out: &mut Vec<u8>) {
        let offset = self.offset(load);
        let command = u32::from(load.write);
        for word in [0x2560_9513, command, 0, 0] {
            out.extend(word.to_be_bytes());
        }
        out.extend(offset.to_be_bytes());
        out.extend(load.block.to_be_bytes());
        if load.write {
            out.resize(out.len() + load.block as usize, 0x5a);
        }
    }

    /// Maintains the load for `time`, then waits for the requests in flight. Returns the number of
    /// completed requests.
    pub fn run(&mut self, load: &Load, time: Duration) -> io::Result<u64> {
        let reply = REPLY_LEN + if load.write { 0 } else { load.block as usize };
        let mut out = Vec::new();
        (0..load.depth).for_each(|_| self.ask(load, &mut out));
        let (began, mut under_way, mut done) = (Instant::now(), load.depth, 0);
        // State of the reply being read: its header so far, and the number of bytes left.
        let (mut head, mut left) = (Vec::with_capacity(REPLY_LEN), reply);
        while under_way > 0 {
            self.socket.write_all(&out)?;
            out.clear();
            let mut room = std::mem::take(&mut self.room);
            let count = self.socket.read(&mut room)?;
            if count == 0 {
                return Err(other("the server closed the connection"));
            }
            let is_over = began.elapsed() >= time;
            let mut bytes = &room[..count];
            while !bytes.is_empty() {
                let of_head = bytes.len().min(REPLY_LEN - head.len());
                head.extend_from_slice(&bytes[..of_head]);
                let taken = bytes.len().min(left);
                left -= taken;
                bytes = &bytes[taken..];
                if left == 0 {
                    if head[..8] != (u64::from(SIMPLE_REPLY) << 32).to_be_bytes() {
                        return Err(other("the server refused the handshake or does not speak the NBD protocol"));
                    }
                    head.clear();
                    left = reply;
                    done += 1;
                    match is_over {
                        true => under_way -= 1,
                        false => self.ask(load, &mut out),
                    }
                }
            }
            self.room = room;
        }
        Ok(done)
    }
}
