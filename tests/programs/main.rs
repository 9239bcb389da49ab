//! The programs, run as their users run them.

mod copy;
mod course;
mod course_levels;
mod http_server;
mod injected;
mod iobench;
mod lessons;
mod log;
mod store;
mod trace_page;

#[path = "../common/browser.rs"]
mod browser;
#[path = "../common/mod.rs"]
mod common;
