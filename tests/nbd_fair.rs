//! The NBD server's parts on one thread, without a process of their own: how much one client is
//! served between two requests of another one. The order depends on the loop alone, and is the same
//! in each run.

#![allow(dead_code)] // the server's files contain code that only its program uses

#[path = "../examples/nbd_server/budget.rs"]
mod budget;
#[path = "../examples/nbd_server/buffers.rs"]
mod buffers;
mod common;
#[path = "../examples/nbd_server/connection.rs"]
mod connection;
#[path = "../examples/nbd_server/export.rs"]
mod export;
#[path = "../examples/nbd_server/flushes.rs"]
mod flushes;
#[path = "../examples/nbd_server/handle.rs"]
mod handle;
#[path = "../examples/nbd_server/negotiate.rs"]
mod negotiate;
#[path = "../examples/nbd_server/options.rs"]
mod options;
#[path = "../examples/nbd_server/protocol.rs"]
mod protocol;
#[path = "../examples/nbd_server/reply.rs"]
mod reply;
#[path = "../examples/nbd_server/request_reader.rs"]
mod request_reader;
#[path = "../examples/nbd_server/sparse.rs"]
mod sparse;
#[path = "../examples/shared/trace.rs"]
mod trace;
#[path = "../examples/nbd_server/turn.rs"]
mod turn;

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use clap::Parser;
use coralio::driver::BackendKind;
use coralio::net::CoFd;
use coralio::{JoinHandle, spawn, yield_now};
use coralio_qcow2::{Extent, Image, Zeroes};

use budget::MemoryBudget;
use common::has;
use export::{Catalog, Exports, open_all};
use flushes::Flushes;
use options::Options;

const READ: u16 = 0;
const FLUSH: u16 = 3;
const UNKNOWN: u16 = 42;

fn request(command: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 2], &command.to_be_bytes(), &[0; 8]].concat();
    [&head[..], &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

fn option(number: u32) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &0_u32.to_be_bytes()].concat()
}

/// Connects a client, served on this thread, and returns its end of the connection and the serving
/// coroutine.
fn connect(exports: &Rc<Exports>, options: &Options) -> (Rc<CoFd<UnixStream>>, JoinHandle<io::Result<()>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (exports, options) = (Rc::clone(exports), options.clone());
    let serves = spawn(move || {
        let socket = CoFd::new(theirs)?;
        let Some(agreed) = negotiate::negotiate(&socket, &Catalog::of(&exports), options.max_options)? else {
            return Ok(());
        };
        let export = exports[agreed.export].as_ref().expect("all are on this thread");
        connection::serve(socket.into_inner(), export, agreed, &options.budget(), None)
    });
    let ours = CoFd::new(ours).unwrap();
    (&ours).read_exact(&mut [0; 18]).unwrap();
    (&ours).write_all(&3_u32.to_be_bytes()).unwrap();
    (Rc::new(ours), serves)
}

/// Chooses the export without a name.
fn choose(mut socket: &CoFd<UnixStream>) {
    socket.write_all(&option(1)).unwrap();
    socket.read_exact(&mut [0; 10]).unwrap();
}

/// Returns the maximum number of replies, of `reply` bytes each, that a client sending `flood`
/// without end gets between another client's request and the reply to it. The requests are an
/// unknown command and, with `reads`, reads.
fn most_between(name: &str, chooses: bool, reads: bool, flood: Vec<u8>, reply: usize) -> usize {
    let path = std::env::temp_dir().join(format!("coralio-nbd-fair-{}-{name}", std::process::id()));
    fs::write(&path, vec![1; 1 << 20]).unwrap();
    let image = path.to_str().unwrap();
    let options = Options::parse_from(["nbd_server", "--max-options", "100000000", "--direct", "never", image]);
    let most = coralio::run(move || {
        let exports = Rc::new(open_all(&options, true).unwrap());
        let [(flooding, serves), (other, serves_other)] = [(); 2].map(|()| connect(&exports, &options));
        choose(&other);
        if chooses {
            choose(&flooding);
        }
        let taken = Rc::new(Cell::new(0));
        let (sending, taking, count) = (Rc::clone(&flooding), Rc::clone(&flooding), Rc::clone(&taken));
        let sends = spawn(move || while (&*sending).write_all(&flood).is_ok() {});
        let takes = spawn(move || {
            let mut room = vec![0; 1 << 20];
            while let Ok(bytes @ 1..) = (&*taking).read(&mut room) {
                count.set(count.get() + bytes);
            }
        });
        // Wait until the flood is in full flow.
        while taken.get() < 1000 * reply {
            yield_now();
        }
        let mut most = 0;
        for round in 0..50 {
            let before = taken.get();
            let (command, len) = if reads && round % 2 == 1 { (READ, 512) } else { (UNKNOWN, 0) };
            (&*other).write_all(&request(command, 0, len)).unwrap();
            (&*other).read_exact(&mut vec![0; 16 + len as usize]).unwrap();
            // Before its first request the client was not active.
            if round > 0 {
                most = most.max((taken.get() - before) / reply);
            }
        }
        flooding.get_ref().shutdown(Shutdown::Both).unwrap();
        other.get_ref().shutdown(Shutdown::Both).unwrap();
        sends.join().unwrap();
        takes.join().unwrap();
        // The error of a connection that was shut down is not tested here.
        let _ = [serves, serves_other].map(JoinHandle::join);
        most
    });
    fs::remove_file(path).unwrap();
    eprintln!("{name}: {most} replies of another client in between, at most");
    most
}

#[test]
fn floods_are_served_in_turns() {
    // P29: next to a client that sends requests or options without end, another client's request is
    // served after a bounded number of them: four per turn, and eight turns until the loop looks
    // for the request and eight more for the reply; up to 16 in flight and 32 replies that were
    // sent, but not taken, come on top
    const MOST: usize = 112;
    // On the thread pool, the system's scheduler decides how long a read takes.
    let kernel_reads = has(BackendKind::Uring, 1) || has(BackendKind::Aio, 1);
    let commands = most_between("commands", true, kernel_reads, request(UNKNOWN, 0, 0).repeat(5000), 16);
    let options = most_between("options", false, kernel_reads, option(99).repeat(5000), 20 + 38);
    let reads = most_between("reads", true, kernel_reads, request(READ, 4096, 4096).repeat(5000), 16 + 4096);
    let flushes = most_between("flushes", true, kernel_reads, request(FLUSH, 0, 0).repeat(5000), 16);
    for most in [commands, options, reads, flushes] {
        assert!(most <= MOST, "commands {commands}, options {options}, reads {reads}, flushes {flushes}");
    }
}

/// A disk that counts its flushes, each of which takes several iterations.
#[derive(Default)]
struct Flushed {
    begun: Cell<u32>,
    fails: Cell<bool>,
}

impl Image for Flushed {
    fn len(&self) -> u64 {
        0
    }

    fn flush(&self) -> io::Result<()> {
        self.begun.set(self.begun.get() + 1);
        (0..5).for_each(|_| yield_now());
        if self.fails.get() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Zeroes) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn extent(&self, _: u64, _: u64) -> io::Result<Extent> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn hole(&self, _: u64, _: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn flushes_of_one_image_share_the_next_one() {
    // P29: flushes requested while one runs share one that starts after it; its error goes to all
    // of them, and not to later ones
    coralio::run(|| {
        let shared = Rc::new((Flushes::default(), Flushed::default()));
        let flush = |shared: &Rc<(Flushes, Flushed)>| {
            let shared = Rc::clone(shared);
            spawn(move || {
                let begun = shared.1.begun.get();
                let outcome = shared.0.flush(&shared.1);
                assert!(shared.1.begun.get() > begun, "one that began after it was asked for");
                outcome.map_err(|error| error.to_string())
            })
        };
        let first: Vec<_> = (0..100).map(|_| flush(&shared)).collect();
        yield_now();
        let second: Vec<_> = (0..100).map(|_| flush(&shared)).collect();
        for task in first.into_iter().chain(second) {
            assert_eq!(task.join().unwrap(), Ok(()));
        }
        assert!(shared.1.begun.get() <= 3, "{} flushes", shared.1.begun.get());
        shared.1.fails.set(true);
        let failing = [(); 3].map(|()| flush(&shared));
        for task in failing {
            assert!(task.join().unwrap().unwrap_err().contains("os error 5"));
        }
        shared.1.fails.set(false);
        assert_eq!(flush(&shared).join().unwrap(), Ok(()));
    });
}

#[test]
fn memory_budget_leaves_a_share_for_new_clients() {
    // P21: one connection holds at most half of the budget, and a new connection can get as much as
    // any other holds
    const MIB: usize = 1 << 20;
    let budget = MemoryBudget::new(64 * MIB);
    let allowances: Vec<_> = (0..20).map(|_| budget::ConnectionQuota::of(&budget)).collect();
    for _ in 0..100 {
        allowances.iter().for_each(|quota| while quota.try_take_large(MIB) {});
    }
    let held: Vec<_> = allowances.iter().map(budget::ConnectionQuota::under_way).collect();
    assert_eq!(held[0], 32 * MIB);
    assert!(held.iter().all(|&bytes| bytes > 0) || held.iter().filter(|&&bytes| bytes > 0).count() >= 6, "{held:?}");
    // The others share what the first one returns.
    (0..31).for_each(|_| allowances[0].give_back(MIB));
    assert!(allowances[19].try_take_large(MIB));
    assert!(allowances[18].try_take(4096));
}
