//! Storage code on a simulated kernel: seeded, with faults, crashes and torn writes, in no time
//! (rule E17).
//!
//! [`simulate`] is the one call. It runs a closure once for each seed, in a context of its own,
//! whose files are all simulated: code that opens a [`File`](crate::File) or is given one runs
//! unchanged. All that the kernel decides comes from the seed: what completes when, in which order,
//! within submit or later; what is taken, refused, short; when the power goes, and what the disk
//! has then. The same seed makes the same run.
//!
//! ```
//! use coralio_aio::{File, simulate};
//! use std::cell::Cell;
//! use std::io;
//!
//! /// Appends a number to a log. When it returns, the number is there for good.
//! fn append(log: &File, at: u64, number: u64) -> io::Result<()> {
//!     log.write_at(&number.to_le_bytes(), at * 8)?;
//!     log.sync_data() // without this, a seed below 10 finds that a number is gone
//! }
//!
//! simulate(0..100, |sim| {
//!     let log = sim.create("log", 0);
//!     let acknowledged = Cell::new(0);
//!     sim.crash_during(|| {
//!         for number in 0..8 {
//!             append(&log, number, number)?;
//!             acknowledged.set(number + 1);
//!         }
//!         io::Result::Ok(())
//!     });
//!     // The machine is up again. What is on the disk?
//!     let log = sim.open("log")?;
//!     for number in 0..acknowledged.get() {
//!         let mut bytes = [0; 8];
//!         log.read_exact_at(&mut bytes, number * 8)?;
//!         assert_eq!(u64::from_le_bytes(bytes), number);
//!     }
//!     Ok(())
//! });
//! ```
//!
//! # When a run fails
//!
//! It fails by a panic, by an error that the closure returns, by a deadlock (all wait, and the
//! kernel has nothing in flight: with a dump of who waits for what), or by one of the checks that
//! are made of each run: a buffer is nobody else's while the kernel has it; no more is in flight
//! than the depth allows; the loop does not sleep while requests are pending that nobody would
//! submit; the run makes no more steps than [`most_steps`](Simulation::most_steps) allows; what was
//! requested completes once the faults are off; nothing is left on the ring.
//!
//! Then the run's *tape* of choices is made short, as long as it fails, and printed with the seed
//! and the story of what happened:
//!
//! ```text
//! seed 3 fails (the 4th run): called `Option::unwrap()` on a `None` value
//! its tape, shrunk to 2 choices that are not tame: 0*3,1,0*2,1
//! run it again: CORALIO_SIM_TAPE=0*3,1,0*2,1 cargo test the_log_survives
//!           or: CORALIO_SIM_SEED=3 cargo test the_log_survives
//! ```
//!
//! With either variable set, [`simulate`] makes that one run.
//!
//! Where the simulated kernel departs from Linux, [its page](crate::kernel::sim#departs-from-linux)
//! says.

use std::io;

use coralio_runtime::AioContext;
use coralio_runtime::trace::Trace;

use crate::kernel::sim::tape::{self, Tape};
use crate::kernel::sim::{Settings, SimKernel};
use crate::policy::{Current, Policy};

mod hand;
mod quiet;
mod report;
mod run;
mod shrink;
mod source;

use std::sync::Arc;

pub use crate::kernel::sim::{Fault, Faults, Latency};
pub use hand::Sim;
pub use report::Failure;
pub(crate) use source::Simulated;

/// Runs `f` on a simulated kernel once for each seed, and panics at the first run that fails, with
/// how to have it again.
///
/// Sectors of 512 bytes, queue depth 8, [`Faults::harmless`], [`Latency::default`]; [`Simulation`]
/// for others. See the [module](self) for an example, and for what fails a run.
///
/// # Panics
///
/// If a run fails. Within a context: it makes its own.
pub fn simulate(seeds: impl IntoIterator<Item = u64>, f: impl Fn(&Sim) -> io::Result<()>) {
    Simulation::new().run(seeds, f);
}

type Attach = fn(&AioContext, SimKernel, u32) -> io::Result<Arc<Simulated>>;

/// What a simulated machine is like, and how it is searched for runs that fail.
///
/// ```
/// use coralio_aio::simulate::{Faults, Latency, Simulation};
/// use std::time::Duration;
///
/// let disk = Simulation::new().sector(4096).latency(Latency::fixed(Duration::from_millis(8)));
/// disk.faults(Faults::none()).run(0..1, |sim| {
///     let file = sim.create("file", 4096);
///     file.read_at(&mut [0; 4096], 0)?;
///     assert!(sim.now() >= Duration::from_millis(8)); // of virtual time
///     Ok(())
/// });
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Simulation {
    settings: Settings,
    attach: Attach,
    crash_rate: f64,
    stack_size: usize,
    most_shrinking: u32,
    tape: Option<Vec<u32>>,
    trace: Option<Trace>,
}

impl Default for Simulation {
    fn default() -> Simulation {
        Simulation::new()
    }
}

impl Simulation {
    /// As [`simulate`] has it.
    pub fn new() -> Simulation {
        Simulation {
            settings: Settings {
                depth: 8,
                sector: 512,
                latency: Latency::default(),
                faults: Faults::default(),
                tears: true,
                bad_ring: false,
                most_steps: 100_000,
            },
            attach: source::attach::<Current>,
            crash_rate: 0.05,
            stack_size: coralio_runtime::DEFAULT_STACK_SIZE,
            most_shrinking: 2000,
            tape: None,
            trace: None,
        }
    }

    /// The most requests in flight at once.
    ///
    /// # Panics
    ///
    /// If it is 0.
    pub fn depth(mut self, depth: u32) -> Simulation {
        assert!(depth > 0, "a queue depth of 0 cannot be");
        self.settings.depth = depth;
        self
    }

    /// Size of a sector in bytes: what direct I/O is aligned to, and what a crash keeps, drops or
    /// tears by itself.
    ///
    /// # Panics
    ///
    /// If it is not a power of two from 8 to 65536.
    pub fn sector(mut self, bytes: usize) -> Simulation {
        assert!(
            bytes.is_power_of_two() && (8..=65536).contains(&bytes),
            "{bytes} is no sector size: a power of two, 8 to 65536"
        );
        self.settings.sector = bytes;
        self
    }

    /// How long requests take.
    pub fn latency(mut self, latency: Latency) -> Simulation {
        self.settings.latency = latency;
        self
    }

    /// What goes wrong, and how often. [`Sim::set_faults`] changes it in the midst of a run.
    pub fn faults(mut self, faults: Faults) -> Simulation {
        self.settings.faults = faults;
        self
    }

    /// Whether a crash tears sectors: an eighth of one, or several, is new, and the rest old. It
    /// does without this. Disks promise not to, mostly.
    pub fn tears(mut self, tears: bool) -> Simulation {
        self.settings.tears = tears;
        self
    }

    /// At which rate the power goes in [`Sim::crash_during`], at each request that is taken or
    /// completes. 0.05 without this.
    ///
    /// # Panics
    ///
    /// If `rate` is not from 0 to 1.
    pub fn crash_rate(mut self, rate: f64) -> Simulation {
        assert!((0.0..=1.0).contains(&rate), "{rate} is no rate: it is 0 (never) to 1 (always)");
        self.crash_rate = rate;
        self
    }

    /// Whether the completion ring is one that cannot be read in memory, as with a kernel that we
    /// do not know: completions are taken off it one at a time.
    pub fn bad_ring(mut self, bad: bool) -> Simulation {
        self.settings.bad_ring = bad;
        self
    }

    /// Steps that a run may make: requests taken, submits refused, and sleeps, all together. A run
    /// that makes more fails, with a dump of who waits for what: code that retries forever does not
    /// end by itself. 100,000 without this.
    pub fn most_steps(mut self, steps: u64) -> Simulation {
        self.settings.most_steps = steps;
        self
    }

    /// The engine's guards. For tests of the engine itself: see [`policy`](crate::policy).
    pub fn policy<P: Policy>(mut self) -> Simulation {
        self.attach = source::attach::<P>;
        self
    }

    /// Has what happens told to an event log, as [`Runner::trace`](crate::Runner::trace): each run
    /// is one more context in it, and a run that fails is made several times.
    pub fn trace(mut self, trace: &Trace) -> Simulation {
        self.trace = Some(trace.clone());
        self
    }

    /// Stack size of coroutines in bytes, as [`Runner::stack_size`](crate::Runner::stack_size).
    pub fn stack_size(mut self, bytes: usize) -> Simulation {
        self.stack_size = bytes;
        self
    }

    /// The most runs by which a tape that fails is made short. 2000 without this.
    pub fn most_shrinking(mut self, runs: u32) -> Simulation {
        self.most_shrinking = runs;
        self
    }

    /// Makes the one run that is on this tape, as a failure has printed it, whatever the seeds are.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: it is no tape.
    pub fn tape(mut self, text: &str) -> io::Result<Simulation> {
        self.tape = Some(tape::parse(text)?);
        Ok(self)
    }

    /// As [`simulate`]. Returns how many runs it made.
    ///
    /// # Panics
    ///
    /// If a run fails. Within a context. If `CORALIO_SIM_SEED` or `CORALIO_SIM_TAPE` is set to what
    /// is none.
    pub fn run(&self, seeds: impl IntoIterator<Item = u64>, f: impl Fn(&Sim) -> io::Result<()>) -> u64 {
        self.search(seeds, f).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// As [`run`](Self::run); a failure is returned.
    ///
    /// # Errors
    ///
    /// The first run that fails, its tape made short.
    ///
    /// # Panics
    ///
    /// Within a context. If `CORALIO_SIM_SEED` or `CORALIO_SIM_TAPE` is set to what is none.
    pub fn search(
        &self,
        seeds: impl IntoIterator<Item = u64>,
        f: impl Fn(&Sim) -> io::Result<()>,
    ) -> Result<u64, Box<Failure>> {
        if let Some(tape) = self.given_tape() {
            return self.replay(tape, &f).map(|()| 1);
        }
        let only = variable("CORALIO_SIM_SEED").map(|text| {
            parse_seed(&text).unwrap_or_else(|| panic!("CORALIO_SIM_SEED={text} is no seed: it is a number below 2^64"))
        });
        let mut runs = 0;
        for seed in only.into_iter().chain(seeds.into_iter().take_while(|_| only.is_none())) {
            runs += 1;
            let outcome = self.one(Tape::random(seed), false, &f);
            if outcome.failure.is_some() {
                return Err(self.failed(Some(seed), runs, outcome, &f));
            }
        }
        Ok(runs)
    }

    /// Makes each run that there is: all that the kernel can decide, one after the other. Returns
    /// how many there were. For few requests and few faults ([`Faults::most`]): it multiplies. With
    /// [`Latency::any_order`] no order comes twice.
    ///
    /// # Errors
    ///
    /// The first run that fails, its tape made short.
    ///
    /// # Panics
    ///
    /// As [`search`](Self::search).
    pub fn exhaust(&self, f: impl Fn(&Sim) -> io::Result<()>) -> Result<u64, Box<Failure>> {
        if let Some(tape) = self.given_tape() {
            return self.replay(tape, &f).map(|()| 1);
        }
        let (mut next, mut runs) = (Some(Vec::new()), 0);
        while let Some(given) = next {
            runs += 1;
            let outcome = self.one(Tape::replay(given), false, &f);
            if outcome.failure.is_some() {
                return Err(self.failed(None, runs, outcome, &f));
            }
            next = tape::successor(&outcome.choices);
        }
        Ok(runs)
    }

    /// The hash of all that the kernel sees and decides in the run of this seed, whether it fails
    /// or not. The same seed, the same hash; if not, `f` depends on something else: time,
    /// addresses, the order of a `HashMap`, another thread.
    ///
    /// # Panics
    ///
    /// Within a context.
    pub fn trace_hash(&self, seed: u64, f: impl Fn(&Sim) -> io::Result<()>) -> u64 {
        self.one(Tape::random(seed), false, &f).hash
    }

    fn given_tape(&self) -> Option<Vec<u32>> {
        self.tape.clone().or_else(|| {
            let text = variable("CORALIO_SIM_TAPE")?;
            Some(tape::parse(&text).unwrap_or_else(|error| panic!("CORALIO_SIM_TAPE: {error}")))
        })
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

fn parse_seed(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}
