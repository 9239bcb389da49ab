//! Several threads, each with a context and, unless the user names one, a file of its own: nothing
//! that a request needs is shared.

use std::cell::Cell;
use std::sync::Barrier;

use coralio::RuntimeBuilder;

use crate::coralio_file;
use crate::options::Options;
use crate::report::{Report, Round};
use crate::target::Target;

/// Runs one round on all threads at the same time.
pub fn run(options: &Options, builder: RuntimeBuilder) -> Result<Report, String> {
    let count = options.threads as usize;
    let all_ready = Barrier::new(count);
    let ran = builder.threads(count).pinned(true).run(|threads| {
        let mut options = options.clone();
        options.seed += threads.index() as u64;
        let has_waited = Cell::new(false);
        let wait = || {
            if !has_waited.replace(true) {
                all_ready.wait();
            }
        };
        let ran = Target::open(&options).and_then(|target| {
            let round = coralio_file::round(&options, &target, !options.no_latency, wait)?;
            Ok((Report::new(&options, &target), round))
        });
        // After a failure too, since the others wait for this thread.
        wait();
        ran
    });
    let ended: Result<Vec<_>, String> = ran.map_err(|error| error.to_string())?.into_iter().collect();
    let (mut reports, rounds): (Vec<_>, Vec<_>) = ended?.into_iter().unzip();
    let mut report = reports.swap_remove(0);
    report.alone(Round::simultaneous(rounds));
    Ok(report)
}
