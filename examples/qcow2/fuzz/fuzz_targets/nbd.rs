//! Fuzzes the byte stream of an NBD client against `examples/nbd_server`, with the handshake and
//! all requests. For any input the session ends and uses bounded memory.
#![no_main]
#![allow(dead_code)] // the server's files contain items that only its program uses

#[path = "../../../nbd_server/budget.rs"]
mod budget;
#[path = "../../../nbd_server/buffers.rs"]
mod buffers;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../../nbd_server/connection.rs"]
mod connection;
#[path = "../../../nbd_server/export.rs"]
mod export;
#[path = "../../../nbd_server/flushes.rs"]
mod flushes;
#[path = "../../../nbd_server/handle.rs"]
mod handle;
mod input;
#[path = "../../tests/common/memory.rs"]
mod memory;
#[path = "../../../nbd_server/negotiate.rs"]
mod negotiate;
#[path = "../../../nbd_server/options.rs"]
mod options;
#[path = "../../../nbd_server/protocol.rs"]
mod protocol;
#[path = "../../../nbd_server/reply.rs"]
mod reply;
#[path = "../../../nbd_server/request_reader.rs"]
mod request_reader;
#[path = "../../../nbd_server/sparse.rs"]
mod sparse;
#[path = "../../../shared/trace.rs"]
mod trace;
#[path = "../../../nbd_server/turn.rs"]
mod turn;

use std::fs;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use clap::Parser;
use coralio::net::CoFd;
use coralio::spawn;
use coralio_qcow2::{CreateOptions, Qcow2};
use export::{Catalog, open_all};
use input::{at_work, seed};
use libfuzzer_sys::fuzz_target;
use memory::Peak;

/// The size of the disk, which bounds the memory of a read.
const SIZE: u64 = 1 << 20;
/// Covers the payloads of one connection, and the image.
const MAX_MEMORY: usize = 100 << 20;

fuzz_target!(
    init: seed(sessions),
    |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        at_work(move |folder| {
            let path = folder.path("disk");
            let _ = fs::remove_file(&path);
            Qcow2::create(&path, &CreateOptions { cluster_size: 4096, ..CreateOptions::new(SIZE) }).unwrap();
            let peak = Peak::begin();
            let (mut client, server) = UnixStream::pair().unwrap();
            // The input fits into the socket's buffer.
            client.write_all(&bytes).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let client = CoFd::new(client).unwrap();
            let listens = spawn(move || io::copy(&mut &client, &mut io::sink()));
            let options = options::Options::parse_from(["nbd_server".as_ref(), path.as_os_str()]);
            let exports = open_all(&options, true).unwrap();
            // An error caused by the client is not a fault of the server.
            let _ = serve(server, &exports, &options);
            let _ = listens.join().unwrap();
            assert!(peak.bytes() < MAX_MEMORY, "peak of {} bytes", peak.bytes());
        });
    }
);

fn serve(socket: negotiate::Socket, exports: &export::Exports, options: &options::Options) -> io::Result<()> {
    let socket = CoFd::new(socket)?;
    let agreed = negotiate::negotiate(&socket, &Catalog::of(exports), options.max_options)?;
    let Some(agreed) = agreed else { return Ok(()) };
    let export = exports[agreed.export].as_ref().expect("all are on this thread");
    connection::serve(socket.into_inner(), export, agreed, &options.budget(), options.idle_limit)
}

/// Seeds: the old-style and the new handshake, every command, and errors.
fn sessions() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let request = |command: u16, flags: u16, offset: u64, len: u32| {
        let words = [&0x2560_9513_u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
        [&words[..], &7_u64.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let payload = vec![5; 5000];
    let requests = [
        [request(1, 1, 3000, 5000), payload].concat(),
        request(0, 0, 0, 65536),
        request(3, 0, 0, 0),
        request(6, 2, 4096, 100_000),
        request(7, 0, 0, SIZE as u32),
        request(4, 0, 0, 8192),
        request(5, 0, 0, SIZE as u32),
        request(0, 4, SIZE - 5, 100),
        request(2, 0, 0, 0),
    ]
    .concat();
    let hello = [0, 0, 0, 3];
    let context = [&0_u32.to_be_bytes()[..], &1_u32.to_be_bytes(), &15_u32.to_be_bytes(), b"base:allocation"].concat();
    let go = [0, 0, 0, 0, 0, 2, 0, 1, 0, 3];
    vec![
        [&hello[..], &option(1, b""), &requests].concat(),
        [&hello[..], &option(8, b""), &option(10, &context), &option(7, &go), &requests].concat(),
        [&hello[..], &option(3, b""), &option(6, &go), &option(9, &context), &option(2, b"")].concat(),
    ]
}
