//! The common part of the in-process opponents: setup, a warm-up and the timed part, on the same
//! file as the coroutines.

use std::io;
use std::rc::Rc;

use crate::meter::Moment;
use crate::options::Options;
use crate::report::Round;
use crate::target::Target;
use crate::work::{Limit, WARM_UP, Work};

/// Another implementation of the same work, with one buffer per concurrent operation.
pub trait Bare: Sized {
    /// The name of the setup step, and the remedy if it fails.
    const SETUP: &str;
    const REMEDY: &str;

    fn new(options: &Options, target: &Target) -> io::Result<Self>;

    /// Performs the work. On success, nothing is in flight afterwards.
    fn run(&mut self, work: &Rc<Work>) -> Result<(), String>;

    /// Returns the numbers of submitting and sleeping system calls so far; `None` if they are not
    /// counted.
    fn calls(&self) -> Option<(u64, u64)> {
        None
    }
}

/// Runs one round.
pub fn round<B: Bare>(options: &Options, target: &Target, latencies: bool) -> Result<Round, String> {
    let say = |why: String| format!("{}: the bare loop: {why}", target.name);
    let mut bare = B::new(options, target)
        .map_err(|error| say(format!("{} for {}: {error}; {}", B::SETUP, options.depth, B::REMEDY)))?;
    let work =
        Rc::new(Work::new(options.block_size, target.blocks, options.pattern(), latencies.then_some(options.depth)));
    work.begin(Limit::Ops(WARM_UP));
    bare.run(&work).map_err(say)?;

    let before = bare.calls();
    let clock = Moment::now();
    work.begin(options.limit());
    bare.run(&work).map_err(say)?;
    let spent = clock.spent();
    let calls = bare.calls().zip(before).map(|(after, before)| (after.0 - before.0, after.1 - before.1));
    Ok(Round::peer(work.done(), spent, calls, work.latencies()))
}
