//! The cost of the runtime, compared with similar runtimes.
//!
//! ```text
//! cargo bench -p coralio-runtime -- --pin 1                on one CPU: a table
//! cargo bench -p coralio-runtime -- --pin 1 --json         for a program
//! cargo bench -p coralio-runtime -- --rounds 31 mutex      cases with `mutex` in their name
//! ```
//!
//! The peers: `bare`, corosensei's stack switch, on which ours is built; `tokio`, its
//! current-thread runtime; `may`, with one worker thread, if built with `RUSTFLAGS="--cfg may"`;
//! `eventfd`, two threads that wake each other with the two system calls of which a loop's sleep
//! consists.
//!
//! Each round measures every case, ours and its peers back to back, so that a noisy neighbour
//! affects all. Figures are medians over the rounds. Time is the CPU time of the whole process:
//! `may` runs coroutines on a thread of its own, and a ping-pong takes two. With `--pin` all
//! threads share that one CPU; without it, the cross-thread cases measure the machine.
//!
//! `wake-busy` counts the process's write system calls, with which an eventfd is signalled. To see
//! all of them:
//!
//! ```text
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="strace -f -c" cargo bench -p coralio-runtime -- --pin 1 wake-busy
//! ```

mod across;
mod bare;
mod cases;
mod eventfd;
#[cfg(may)]
mod may;
mod measure;
mod options;
mod ours;
mod report;
mod tokio;

use cases::CASES;
use options::Options;

fn main() {
    let options = Options::parse();
    // Both before any thread is started, since threads inherit them.
    measure::let_the_waker_go_on();
    if let Some(cpu) = options.pin {
        measure::pin(cpu);
    }
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(&options.filter)).collect();
    if cases.is_empty() {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        options::refuse(&format!("no case has '{}' in its name; there are: {}", options.filter, names.join(" ")));
    }
    if let Some(times) = options.times {
        cases.iter().filter(|case| case.name == options.filter).for_each(|case| _ = (case.ours)(times));
        return;
    }
    report::print(&options, &measure::in_turns(&cases, &options));
}
