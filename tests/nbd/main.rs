//! The NBD server, run as its users run it: with other projects' clients, with a client that
//! misbehaves, and stopped under load.

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
