//! The programs, run as their users run them.

mod copy;
mod course_levels;
mod http_server;
mod injected;
mod iobench;
mod lessons;
mod log;

#[path = "../common/mod.rs"]
mod common;
