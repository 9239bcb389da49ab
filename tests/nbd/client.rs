//! A client that does what a test tells it, right or wrong: it knows byte layouts, and checks only
//! what a test asks for.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::server::Server;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISCONNECT: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;

pub struct Client {
    pub socket: UnixStream,
    pub size: u64,
    pub flags: u16,
}

/// A chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub done: bool,
    pub kind: u16,
    pub cookie: u64,
    pub data: Vec<u8>,
}

fn connect(server: &Server) -> UnixStream {
    match server.at.starts_with('/') {
        true => UnixStream::connect(&server.at).unwrap(),
        // Reading, writing and shutting down are the same for both.
        false => OwnedFd::from(TcpStream::connect(&server.at).unwrap()).into(),
    }
}

pub fn be<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().unwrap()
}

impl Client {
    /// Connects and receives the greeting.
    pub fn greeted(server: &Server) -> Client {
        let mut client = Client { socket: connect(server), size: 0, flags: 0 };
        assert_eq!(client.take(18), b"NBDMAGICIHAVEOPT\x00\x03");
        client
    }

    /// Connects to an export, with simple replies and no other option.
    pub fn plain(server: &Server, name: &str) -> Client {
        let mut client = Client::greeted(server);
        client.say(&3u32.to_be_bytes());
        client.option(1, name.as_bytes());
        let info = client.take(10);
        (client.size, client.flags) = (u64::from_be_bytes(be(&info)), u16::from_be_bytes(be(&info[8..])));
        client
    }

    /// Connects to an export, with structured replies and base:allocation.
    pub fn structured(server: &Server, name: &str) -> Client {
        let mut client = Client::greeted(server);
        client.say(&3u32.to_be_bytes());
        client.option(8, &[]);
        assert_eq!(client.answer(8), (1, vec![]));
        let query = [&counted(name)[..], &1u32.to_be_bytes(), &counted("base:allocation")].concat();
        client.option(10, &query);
        assert_eq!(client.answer(10), (4, [&1u32.to_be_bytes()[..], b"base:allocation"].concat()));
        assert_eq!(client.answer(10).0, 1);
        client.option(7, &[&counted(name)[..], &0u16.to_be_bytes()].concat());
        let (kind, info) = client.answer(7);
        assert_eq!((kind, &info[..2]), (3, &[0, 0][..]));
        (client.size, client.flags) = (u64::from_be_bytes(be(&info[2..])), u16::from_be_bytes(be(&info[10..])));
        assert_eq!(client.answer(7).0, 1);
        client
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        self.say(&[b"IHAVEOPT", &option.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat());
    }

    pub fn answer(&mut self, option: u32) -> (u32, Vec<u8>) {
        let head = self.take(20);
        assert_eq!(head[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        assert_eq!(u32::from_be_bytes(be(&head[8..])), option);
        let len = u32::from_be_bytes(be(&head[16..])) as usize;
        (u32::from_be_bytes(be(&head[12..])), self.take(len))
    }

    pub fn ask(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        self.say(&request(command, flags, cookie, offset, len));
    }

    /// Receives a simple reply without data; returns its error and cookie.
    pub fn reply(&mut self) -> (u32, u64) {
        let head = self.take(16);
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
        (u32::from_be_bytes(be(&head[4..])), u64::from_be_bytes(be(&head[8..])))
    }

    pub fn chunk(&mut self) -> Chunk {
        let head = self.take(20);
        assert_eq!(head[..4], 0x668e_33efu32.to_be_bytes());
        let len = u32::from_be_bytes(be(&head[16..])) as usize;
        Chunk {
            done: head[5] & 1 != 0,
            kind: u16::from_be_bytes(be(&head[6..])),
            cookie: u64::from_be_bytes(be(&head[8..])),
            data: self.take(len),
        }
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        self.ask(READ, 0, 1, offset, len);
        match self.reply() {
            (0, 1) => Ok(self.take(len as usize)),
            (error, _) => Err(error),
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), u32> {
        self.ask(WRITE, 0, 2, offset, data.len() as u32);
        self.say(data);
        self.done()
    }

    /// Sends a command without data and waits for its reply.
    pub fn command(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Result<(), u32> {
        self.ask(command, flags, 2, offset, len);
        self.done()
    }

    fn done(&mut self) -> Result<(), u32> {
        match self.reply() {
            (0, 2) => Ok(()),
            (error, _) => Err(error),
        }
    }

    /// Returns whether the server closes the connection without another byte.
    pub fn is_sent_away(&mut self) -> bool {
        match self.socket.read(&mut [0]) {
            Ok(count) => count == 0,
            // Data was sent after the server closed the connection.
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    pub fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }
}

pub fn counted(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

pub fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let words = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    [&words[..], &cookie.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}
