//! Sockets with the methods of `std`, against blocking sockets of `std` on other threads.

#[path = "../common/mod.rs"]
mod common;
mod connect;
mod datagram;
mod listener;

mod stream;
mod time_limit;
mod transfer;

use std::net::{self, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use coralio_runtime::{AioContext, VirtualClock};
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketType};

const HOUR: Duration = Duration::from_secs(3600);

/// Runs `f` on the stack of a thread whose context has its own virtual clock.
fn virtually<R>(f: impl FnOnce(&AioContext, &VirtualClock) -> R) -> R {
    let clock = VirtualClock::new();
    AioContext::builder().virtual_clock(clock.clone()).report_unwound(false).run(|ctx| f(ctx, &clock)).unwrap()
}

/// Returns a listener whose queue is full, so that the kernel does not answer further connects, and
/// the connection that fills the queue.
fn deaf_listener() -> (net::TcpListener, SocketAddr, net::TcpStream) {
    let socket: OwnedFd = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = net::TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    let first = net::TcpStream::connect(address).unwrap();
    // The connection may reach the queue later than its client.
    rustix::event::poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
    (listener, address, first)
}

/// Returns an address at which no socket listens.
fn dead_address() -> SocketAddr {
    net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
