//! A static file server: one coroutine for each connection, which reads a request, opens the file
//! and writes the response like a program with a thread for each client.
//!
//! ```text
//! cargo run --release --example http_server -- --root DIR --listen 127.0.0.1:8080
//! curl -i http://127.0.0.1:8080/
//! ```
//!
//! ```text
//!   listener ---> a coroutine for each connection       main.rs, connection.rs
//!                 parses requests, in order             request.rs
//!                 finds the file, open already or not   files.rs
//!                 one write: head and body              response.rs
//! ```
//!
//! With `--threads N`, N threads accept at the same port, each with a loop, connections and open
//! files of its own; the kernel spreads the connections. A signal (SIGTERM, SIGINT) cancels the
//! coroutine that accepts, and with it its scope: idle connections end, and responses that have
//! begun are completed, since a shield hides the cancellation from them.

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod connection;
mod files;
mod request;
mod response;
#[path = "../shared/signals.rs"]
mod signals;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use coralio::context::IoThread;
use coralio::net::{CoFd, TcpListener};
use coralio::{scope, sleep, spawn};
use coralio_runtime::report;

use files::Files;

/// Serves the files of a directory over HTTP/1.1: GET and HEAD, with ranges and conditional
/// requests.
///
/// On SIGTERM or SIGINT, completes the responses that have begun, and exits.
#[derive(Parser, Clone)]
#[command(name = "http_server")]
struct Options {
    /// Directory to serve; symbolic links in it are followed
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,

    /// Address to listen at; port 0: any
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Threads, each with a loop of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,

    /// Seconds that a client may take to send a request, or to take the next part of a response
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

impl Options {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.limit.into())
    }

    /// Creates a listener; several threads share the address.
    fn bind(&self, address: SocketAddr) -> io::Result<TcpListener> {
        if self.threads == 1 { TcpListener::bind(address) } else { TcpListener::bind_reuse_port(address) }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match coralio::run(|| serve_all(&options)) {
        Ok(()) => {
            if let Some(signal) = signals::caught() {
                report(format_args!("http_server: stopped by signal {signal}; all responses are completed"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(format_args!("http_server: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Serves on all threads until a signal arrives.
fn serve_all(options: &Options) -> io::Result<()> {
    let explain = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    if !options.root.is_dir() {
        return Err(io::Error::other(format!("--root {}: not a directory", options.root.display())));
    }
    let listening = format!("--listen {}", options.listen);
    let listener = options.bind(options.listen).map_err(explain(listening))?;
    let address = listener.local_addr()?;
    let threads: Vec<_> =
        (1..options.threads).map(|number| IoThread::start(&format!("http {number}"))).collect::<Result<_, _>>()?;
    let elsewhere: Vec<_> = threads
        .iter()
        .map(|thread| {
            let options = options.clone();
            thread.context().spawn(move || serve(&options.bind(address)?, &options))
        })
        .collect();
    let here = spawn({
        let options = options.clone();
        move || serve(&listener, &options)
    });
    let (signal, pipe) = net::UnixStream::pair()?;
    signals::listen(Some(pipe.into()));
    let mut output = io::stdout();
    // Serve even if standard output is closed.
    let _ = writeln!(output, "http_server: serves {} on http://{address}", options.root.display())
        .and_then(|()| output.flush());

    CoFd::new(signal)?.read_exact(&mut [0])?;
    here.cancel();
    elsewhere.iter().for_each(|server| server.cancel());
    let outcome = here.join().unwrap_or(Ok(()));
    // A panic was reported when it happened.
    elsewhere.into_iter().map(|server| server.join().unwrap_or(Ok(()))).fold(outcome, Result::and)
}

/// Accepts connections and serves them until the coroutine is cancelled; then waits for them.
fn serve(listener: &TcpListener, options: &Options) -> io::Result<()> {
    let files = Files::new(&options.root);
    scope(|connections| {
        for stream in listener.incoming() {
            match stream {
                // A client that leaves or sends nonsense is no concern of the others.
                Ok(stream) => drop(connections.spawn(|| connection::serve(stream, &files, options.limit()))),
                // If descriptors are exhausted, a client that leaves makes room.
                Err(_) => drop(sleep(Duration::from_millis(100))),
            }
        }
    });
    Ok(())
}
