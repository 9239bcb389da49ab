//! Ten exercises: each is a small program with holes to fill, marked by `todo!`.
//!
//! `exercises N` judges exercise N: it runs the code on many simulated machines. If a run fails, it
//! prints a picture of the shortest such run, what is wrong, and how to repeat the run. Without a
//! number it judges one exercise after the other, until one fails.

// These macros panic if the output is closed; messages go through `print`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

use std::env;
use std::io::{self, Write};
use std::panic;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use judge::{Judged, Refusal};

// Used by the solutions.
#[allow(unused)]
mod judge;

/// Declares the exercises: the file with the holes, its module, and how it is judged.
macro_rules! exercises {
    ($($file:literal $module:ident: $judged:expr,)*) => {
        $(
            // An exercise with holes does not use all of its imports and fields.
            #[allow(unused)]
            #[path = $file]
            mod $module;
        )*
        const EXERCISES: &[(&str, fn() -> Judged)] = &[$(($file, || $judged)),*];
    };
}

exercises! {
    "01_event.rs" event: judge::event::is_correct::<event::MyEvent>(),
    "02_mutex.rs" mutex: judge::mutex::is_correct::<mutex::MyMutex>(),
    "03_channel.rs" channel: judge::channel::is_correct::<channel::MyChannel>(),
    "04_once.rs" once: judge::once::is_correct(once::get_or_compute),
    "05_reap.rs" reap: judge::reap::is_correct(reap::reap),
    "06_submit.rs" submit: judge::submit::is_correct(submit::submit),
    "07_plug.rs" plug: judge::plug::is_correct::<plug::MyQueue>(),
    "08_cancel.rs" cancel: judge::cancel::is_correct(cancel::with_permit),
    "09_save.rs" save: judge::save::is_correct(save::save),
    "10_log.rs" log: judge::log::is_correct::<log::MyPair>(),
}

/// The time after which a solution that does not end is given up.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let numbers = match &arguments[..] {
        [] => 1..=EXERCISES.len(),
        [number] => match number.parse() {
            Ok(number) if (1..=EXERCISES.len()).contains(&number) => number..=number,
            _ => return usage(),
        },
        _ => return usage(),
    };
    // The judge reports the failure; without this, each failing run would print its panic too.
    panic::set_hook(Box::new(|_| {}));
    thread::spawn(|| {
        thread::sleep(PATIENCE);
        print("No verdict after a minute: does a loop wait without a `suspend`, or for ever?\n");
        process::exit(1);
    });
    for number in numbers {
        let (file, judged) = EXERCISES[number - 1];
        match judged() {
            Ok(runs) => print(&format!("{file}: correct in {runs} runs\n")),
            Err(refusal) => {
                print(&report(number, file, &refusal));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn report(number: usize, file: &str, Refusal { failure, picture, log, tape }: &Refusal) -> String {
    if failure.starts_with(judge::HOLE) {
        return format!("{file}: {failure}\n");
    }
    let log = if log.contains("request ") { format!("The kernel's log:\n{log}\n") } else { String::new() };
    format!(
        "{picture}\n{log}{file}: {failure}\n\nTo repeat this run alone:\n\
         CORALIO_SIM_TAPE='{tape}' cargo run --example exercises -- {number}\n"
    )
}

fn usage() -> ExitCode {
    print(&format!("choose an exercise: cargo run --example exercises -- N, from 1 to {}\n", EXERCISES.len()));
    ExitCode::FAILURE
}

/// Prints to standard output. A closed output is no error.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}
