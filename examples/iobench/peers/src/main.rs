//! Other runtimes at the same work, for comparison: readers for `iobench --versus monoio` and
//! others, and TCP echo servers. This is a workspace of its own, so that no other build compiles
//! them.
//!
//! ```text
//! cd examples/iobench/peers && cargo build --release
//! target/release/peers read monoio --file FILE --depth 32 --seconds 5 --pin 1
//! target/release/peers echo coralio tokio monoio --connections 100 --rounds 7 --pin 1
//! ```

mod echo;
#[allow(dead_code)]
#[path = "../../meter.rs"]
mod meter;
mod read;
#[allow(dead_code)]
#[path = "../../work.rs"]
mod work;

use std::process::ExitCode;
use std::str::FromStr;

const USAGE: &str = "usage:
  peers read PEER --file FILE [--direct 0|1] [--blocks N] [--depth N] [--seed N] [--seconds S | --ops N] [--pin CPU]
    [--latencies 0|1]
    PEER: monoio, tokio-uring, compio, glommio or tokio
  peers echo SERVER... [--connections N] [--buffer BYTES] [--seconds S | --ops N] [--rounds N] [--pin CPU]
  peers serve SERVER [--connections N] [--buffer BYTES]
    SERVER: coralio, tokio, monoio or epoll; `serve` ends after that many connections
  peers load --address ADDRESS [--connections N] [--seconds S | --ops N] [--pin CPU]";

/// The command line: words, and options with a value.
pub struct Arguments {
    pub words: Vec<String>,
    options: Vec<(String, String)>,
}

impl Arguments {
    fn parse(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut parsed = Arguments { words: Vec::new(), options: Vec::new() };
        while let Some(word) = given.next() {
            match word.strip_prefix("--") {
                None => parsed.words.push(word),
                Some(name) => {
                    let value = given.next().ok_or_else(|| format!("{word} needs a value\n{USAGE}"))?;
                    parsed.options.push((name.to_string(), value));
                }
            }
        }
        Ok(parsed)
    }

    /// Returns the value of an option, or `None` if it is not given.
    pub fn given<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let Some((_, value)) = self.options.iter().rfind(|(given, _)| given == name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| format!("invalid --{name} {value}\n{USAGE}"))
    }

    /// Returns the value of an option, or `default`.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        Ok(self.given(name)?.unwrap_or(default))
    }

    /// Returns the end condition of a round.
    pub fn limit(&self) -> Result<work::Limit, String> {
        Ok(match self.given("ops")? {
            Some(count) => work::Limit::Ops(count),
            None => work::Limit::Time(std::time::Duration::from_secs_f64(self.get("seconds", 2.0)?)),
        })
    }
}

fn run() -> Result<String, String> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    if let Some(cpu) = arguments.given("pin")? {
        meter::pin(cpu)?;
    }
    let words: Vec<&str> = arguments.words.iter().map(String::as_str).collect();
    match &words[..] {
        ["read", peer] => read::run(peer, &arguments),
        ["echo", servers @ ..] => echo::compare(servers, &arguments),
        ["serve", server] => echo::serve(server, &arguments).map(|()| String::new()),
        ["load"] => echo::load(&arguments),
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("peers: {why}");
            ExitCode::FAILURE
        }
    }
}
