//! The command line.

use std::process::exit;

const USAGE: &str = "\
Usage: cargo bench -p coralio-runtime -- [OPTIONS] [FILTER]

  FILTER      Only cases that have this in their name
  --rounds N  Rounds to take the medians of [default: 15]
  --pin CPU   Stay on this CPU
  --json      Print JSON
  --times N   Only repeat our side of the case named FILTER, N times, without measuring";

/// The parsed options.
pub(crate) struct Options {
    pub(crate) json: bool,
    pub(crate) rounds: usize,
    pub(crate) pin: Option<usize>,
    pub(crate) filter: String,
    /// To count instructions with a profiler.
    pub(crate) times: Option<u64>,
    /// A trial run that checks the cases without measuring: `cargo test --benches`.
    pub(crate) trial: bool,
}

impl Options {
    /// Parses the command line, or exits with a message.
    pub(crate) fn parse() -> Options {
        let mut options =
            Options { json: false, rounds: 15, pin: None, filter: String::new(), times: None, trial: true };
        let mut test = false;
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => options.json = true,
                "--rounds" => options.rounds = number(&arg, args.next()).max(1),
                "--times" => options.times = Some(number(&arg, args.next()) as u64),
                "--pin" => options.pin = Some(number(&arg, args.next())),
                // `cargo bench` passes this; `cargo test` passes nothing to a program with a main
                // of its own.
                "--bench" => options.trial = false,
                "--test" => test = true,
                "--help" | "-h" => {
                    println!("{USAGE}");
                    exit(0);
                }
                unknown if unknown.starts_with('-') => refuse(&format!("unknown option {unknown}\n\n{USAGE}")),
                filter => options.filter = filter.to_string(),
            }
        }
        options.trial |= test;
        options
    }
}

fn number(option: &str, value: Option<String>) -> usize {
    let Some(value) = value else { refuse(&format!("{option} wants a number after it")) };
    value.parse().unwrap_or_else(|_| refuse(&format!("{option} wants a number, not '{value}'")))
}

/// Exits with a message about wrong usage.
pub(crate) fn refuse(why: &str) -> ! {
    eprintln!("{why}");
    exit(2);
}
