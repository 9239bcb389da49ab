//! Measures the latency of a client that reads 512 bytes at a time while another client floods the
//! server.
//!
//! A flood keeps its socket full: one thread sends as fast as the server accepts, another reads the
//! replies. If the server disconnects the flood, it reconnects.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::client::Client;

/// The load of the flooding client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flood {
    /// No load.
    None,
    /// Options of an endless handshake.
    Options,
    /// Invalid commands.
    Commands,
    /// Reads of 4 KiB.
    Reads,
    /// Flushes.
    Flushes,
}

const OPTION: [u8; 16] = *b"IHAVEOPT\0\0\0\x63\0\0\0\0";
/// Number of requests per write.
const TOGETHER: u64 = 1024;

fn request(command: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513u32.to_be_bytes()[..], &[0; 2], &command.to_be_bytes()].concat();
    [&head[..], &[0; 8], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

impl Flood {
    /// Returns the bytes that are sent repeatedly.
    fn bytes(self, size: u64) -> Vec<u8> {
        let blocks = (size / 4096).max(1);
        match self {
            Flood::None => Vec::new(),
            Flood::Options => OPTION.repeat(TOGETHER as usize),
            Flood::Commands => request(42, 0, 0).repeat(TOGETHER as usize),
            // 7919 is prime, so consecutive requests do not read adjacent blocks.
            Flood::Reads => (0..TOGETHER).flat_map(|i| request(0, i * 7919 % blocks * 4096, 4096)).collect(),
            Flood::Flushes => request(3, 0, 0).repeat(TOGETHER as usize),
        }
    }

    fn connect(self, path: &Path) -> io::Result<UnixStream> {
        if self != Flood::Options {
            return Ok(Client::connect(path)?.into_socket());
        }
        let mut socket = UnixStream::connect(path)?;
        socket.read_exact(&mut [0; 18])?;
        socket.write_all(&3u32.to_be_bytes())?;
        Ok(socket)
    }

    /// Floods the server until `is_over` is set.
    fn run(self, path: &Path, size: u64, is_over: &AtomicBool) {
        let bytes = self.bytes(size);
        while self != Flood::None && !is_over.load(Ordering::Relaxed) {
            let Ok(socket) = self.connect(path) else { continue };
            let drain = || {
                let mut room = vec![0; 1 << 18];
                while (&socket).read(&mut room).is_ok_and(|count| count > 0) {}
                // The sender must not block once nothing is read any more.
                let _ = socket.shutdown(std::net::Shutdown::Both);
            };
            thread::scope(|scope| {
                scope.spawn(drain);
                while !is_over.load(Ordering::Relaxed) && (&socket).write_all(&bytes).is_ok() {}
                let _ = socket.shutdown(std::net::Shutdown::Both);
            });
        }
    }
}

/// Returns the sorted latencies of 512-byte reads, measured for `time` during `flood`.
pub fn latencies(path: &Path, flood: Flood, time: Duration) -> io::Result<Vec<Duration>> {
    let mut client = Client::connect(path)?;
    let (size, is_over) = (client.size(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| flood.run(path, size, &is_over));
        let measured = measure(&mut client, time);
        is_over.store(true, Ordering::Relaxed);
        measured
    })
}

fn measure(client: &mut Client, time: Duration) -> io::Result<Vec<Duration>> {
    let began = Instant::now();
    let mut all = Vec::new();
    while began.elapsed() < time {
        let at = Instant::now();
        client.read_once(512)?;
        // The first tenth is a warm-up for the flood.
        if began.elapsed() > time / 10 {
            all.push(at.elapsed());
        }
    }
    all.sort();
    Ok(all)
}

/// Returns the median latency of a flush without other clients.
pub fn flush(path: &Path, time: Duration) -> io::Result<Duration> {
    let mut client = Client::connect(path)?;
    let began = Instant::now();
    let mut all = Vec::new();
    while began.elapsed() < time {
        let at = Instant::now();
        client.flush_once()?;
        all.push(at.elapsed());
    }
    all.sort();
    Ok(all[all.len() / 2])
}
