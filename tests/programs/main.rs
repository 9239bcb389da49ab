//! The programs, run as their users run them.

mod copy;
mod http_server;
mod injected;
mod iobench;
mod lessons;
mod log;
mod store;

#[path = "../common/mod.rs"]
mod common;
