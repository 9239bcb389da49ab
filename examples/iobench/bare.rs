//! What both baselines do alike: an own kernel context, a warm-up, and the timed part, on the same file as the coroutines.

use std::io;

use crate::meter::Moment;
use crate::options::Options;
use crate::report::Round;
use crate::target::Target;
use crate::work::{Limit, WARM_UP, Work};

/// A bare loop on one of the kernel's interfaces, and a request per buffer.
pub trait Bare: Sized {
    /// What makes the kernel's side, and what to do if it does not.
    const SETUP: &str;
    const REMEDY: &str;

    fn new(options: &Options, target: &Target) -> io::Result<Self>;

    /// Does the work: nothing is in flight before and after, if it ends well.
    fn run(&mut self, work: &Work) -> Result<(), String>;

    /// System calls so far that submitted, and that slept.
    fn calls(&self) -> (u64, u64);
}

/// One round.
pub fn round<B: Bare>(options: &Options, target: &Target) -> Result<Round, String> {
    let say = |why: String| format!("{}: bare loop: {why}", target.name);
    let mut bare = B::new(options, target)
        .map_err(|error| say(format!("{} for {}: {error}; {}", B::SETUP, options.depth, B::REMEDY)))?;
    let work = Work::new(options.block_size, target.blocks, options.sequential, options.seed);
    work.begin(Limit::Ops(WARM_UP));
    bare.run(&work).map_err(say)?;

    let before = bare.calls();
    let clock = Moment::now();
    work.begin(options.limit());
    bare.run(&work).map_err(say)?;
    let spent = clock.spent();
    let after = bare.calls();
    Ok(Round::raw(work.done(), spent, after.0 - before.0, after.1 - before.1))
}
