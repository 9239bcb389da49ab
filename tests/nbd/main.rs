//! The NBD server, run as its users run it: with clients that others wrote, with a client that misbehaves, and stopped in the
//! middle of it all.

mod client;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod kill;
mod limits;
mod load;
mod programs;
mod protocol;
mod server;
