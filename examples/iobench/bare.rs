//! What the opponents in this process do alike: set up of their own, a warm-up, and the timed part, on the same file as the
//! coroutines.

use std::io;
use std::rc::Rc;

use crate::meter::Moment;
use crate::options::Options;
use crate::report::Round;
use crate::target::Target;
use crate::work::{Limit, WARM_UP, Work};

/// One who does the same work otherwise, with a buffer for each operation at a time.
pub trait Bare: Sized {
    /// What makes the kernel's side, and what to do if it does not.
    const SETUP: &str;
    const REMEDY: &str;

    fn new(options: &Options, target: &Target) -> io::Result<Self>;

    /// Does the work: nothing is in flight before and after, if it ends well.
    fn run(&mut self, work: &Rc<Work>) -> Result<(), String>;

    /// System calls so far that submitted, and that slept; `None` where they are not counted.
    fn calls(&self) -> Option<(u64, u64)> {
        None
    }
}

/// One round.
pub fn round<B: Bare>(options: &Options, target: &Target) -> Result<Round, String> {
    let say = |why: String| format!("{}: the opponent: {why}", target.name);
    let mut bare = B::new(options, target)
        .map_err(|error| say(format!("{} for {}: {error}; {}", B::SETUP, options.depth, B::REMEDY)))?;
    let work = Rc::new(Work::new(options.block_size, target.blocks, options.pattern()));
    work.begin(Limit::Ops(WARM_UP));
    bare.run(&work).map_err(say)?;

    let before = bare.calls();
    let clock = Moment::now();
    work.begin(options.limit());
    bare.run(&work).map_err(say)?;
    let spent = clock.spent();
    let calls = bare.calls().zip(before).map(|(after, before)| (after.0 - before.0, after.1 - before.1));
    Ok(Round::peer(work.done(), spent, calls))
}
