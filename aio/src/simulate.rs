//! Runs storage code on a simulated backend: seeded, with faults, crashes and torn writes, in
//! virtual time.
//!
//! [`simulate`] runs a closure once for each seed, in a new context whose files are all simulated:
//! code that opens a [`File`](crate::File), or gets one, runs unchanged. Every decision of the
//! kernel derives from the seed: when and in which order requests complete, within submit or later;
//! which are accepted, refused or short; when the power fails, and what the disk then contains. The
//! same seed produces the same run.
//!
//! ```
//! use coralio::{File, simulate};
//! use std::cell::Cell;
//! use std::io;
//!
//! /// Appends a number to a log. The number is durable when this returns.
//! fn append(log: &File, at: u64, number: u64) -> io::Result<()> {
//!     log.write_at(&number.to_le_bytes(), at * 8)?;
//!     log.sync_data() // without this, a seed below 10 finds a lost number
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
//!     // The machine is up again: check the disk's contents.
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
//! # Failing runs
//!
//! A run fails by a panic, by an error that the closure returns, by a deadlock (all coroutines
//! wait, and nothing is in flight: reported with a dump of what each waits for), or by one of these
//! checks, made of every run:
//!
//! - A buffer does not change while the kernel has it.
//! - No more requests are in flight than the depth allows.
//! - The loop does not sleep while requests are pending that nothing would submit.
//! - The run makes no more steps than [`max_steps`](Simulation::max_steps) allows.
//! - Requests complete once the faults are off.
//! - Nothing is left on the ring.
//!
//! The failing run's *tape* of choices is then shrunk as long as it still fails, and printed with
//! the seed and a log of events:
//!
//! ```text
//! seed 3 fails (run 4, fingerprint 54f1c8ee20d6b0a7): called `Option::unwrap()` on a `None` value
//! shrunk tape with 2 choices other than 0: 0*3,1,0*2,1
//! reproduce: CORALIO_SIM_TAPE='0*3,1,0*2,1' cargo test the_log_survives -- --exact
//!        or: CORALIO_SIM_SEED=3 cargo test the_log_survives -- --exact
//! ```
//!
//! With either variable set, [`simulate`] makes only that run. In a program that is not a test, the
//! command is the program's own.
//!
//! [The backend's page](crate::backend::simulated#departs-from-linux) lists its differences from
//! Linux.

use std::io;

use coralio_runtime::AioContext;
use coralio_runtime::trace::Trace;

use crate::backend::simulated::tape::{self, Choice, Tape};
use crate::backend::simulated::{Settings, SimulatedBackend};
use crate::driver::Driver;
use crate::engine::Engine;
use crate::engine::erased::ErasedEngine;
use crate::engine::guards::{AllGuards, Guards};

mod panic_hook;
mod report;
mod run;
mod shrink;
mod sim;

use std::sync::Arc;

pub use crate::backend::simulated::{Fault, Faults, Latency};

pub use report::Failure;
pub use sim::Sim;

/// Runs `f` on a simulated backend once for each seed. Panics at the first run that fails, with
/// instructions to reproduce it.
///
/// Uses sectors of 512 bytes, queue depth 8, [`Faults::harmless`] and [`Latency::default`]; use
/// [`Simulation`] for other settings. See the [module](self) for an example, and for the checks.
///
/// # Panics
///
/// If a run fails. Inside a context: it creates its own.
pub fn simulate(seeds: impl IntoIterator<Item = u64>, f: impl Fn(&Sim) -> io::Result<()>) {
    Simulation::new().run(seeds, f);
}

type Attach = fn(&AioContext, &SimulatedBackend, u32) -> io::Result<Arc<Driver>>;

/// Settings of a simulated machine, and of the search for failing runs.
///
/// ```
/// use coralio::simulate::{Faults, Latency, Simulation};
/// use std::time::Duration;
///
/// let disk = Simulation::new().sector_size(4096).latency(Latency::fixed(Duration::from_millis(8)));
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
    max_shrink_runs: u32,
    tape: Option<Vec<u32>>,
    trace: Option<Trace>,
}

impl Default for Simulation {
    fn default() -> Simulation {
        Simulation::new()
    }
}

impl Simulation {
    /// Creates the settings that [`simulate`] uses.
    pub fn new() -> Simulation {
        Simulation {
            settings: Settings {
                depth: 8,
                sector_size: 512,
                latency: Latency::default(),
                faults: Faults::default(),
                torn_writes: true,
                max_steps: 100_000,
            },
            attach: attach::<AllGuards>,
            crash_rate: 0.05,
            stack_size: coralio_runtime::DEFAULT_STACK_SIZE,
            max_shrink_runs: 2000,
            tape: None,
            trace: None,
        }
    }

    /// Sets the maximum number of requests in flight.
    ///
    /// # Panics
    ///
    /// If `depth` is 0.
    pub fn queue_depth(mut self, depth: u32) -> Simulation {
        assert!(depth > 0, "invalid queue depth 0: must be at least 1");
        self.settings.depth = depth;
        self
    }

    /// Sets the size of a sector in bytes: the alignment of direct I/O, and the unit that a crash
    /// keeps, drops or tears.
    ///
    /// # Panics
    ///
    /// If `bytes` is not a power of two from 8 to 65536.
    pub fn sector_size(mut self, bytes: usize) -> Simulation {
        assert!(
            bytes.is_power_of_two() && (8..=65536).contains(&bytes),
            "invalid sector size {bytes}: must be a power of two, 8 to 65536"
        );
        self.settings.sector_size = bytes;
        self
    }

    /// Sets how long requests take.
    pub fn latency(mut self, latency: Latency) -> Simulation {
        self.settings.latency = latency;
        self
    }

    /// Sets which faults happen, and how often. [`Sim::set_faults`] changes this during a run.
    pub fn faults(mut self, faults: Faults) -> Simulation {
        self.settings.faults = faults;
        self
    }

    /// Sets whether a crash tears sectors: the first eighth, or several eighths, is new, and the
    /// rest old. Default true. Most disks promise not to tear sectors.
    pub fn torn_writes(mut self, torn_writes: bool) -> Simulation {
        self.settings.torn_writes = torn_writes;
        self
    }

    /// Sets the rate of power failures in [`Sim::crash_during`], applied when a request is accepted
    /// and when one completes. Default 0.05.
    ///
    /// # Panics
    ///
    /// If `rate` is not from 0 to 1.
    pub fn crash_rate(mut self, rate: f64) -> Simulation {
        assert!((0.0..=1.0).contains(&rate), "invalid rate {rate}: must be 0 (never) to 1 (always)");
        self.crash_rate = rate;
        self
    }

    /// Sets the maximum number of steps of a run: requests accepted, submits refused, and sleeps,
    /// in total. A run that exceeds it fails, with a dump of what each coroutine waits for: code
    /// that retries forever does not end by itself. Default 100,000.
    pub fn max_steps(mut self, steps: u64) -> Simulation {
        self.settings.max_steps = steps;
        self
    }

    /// Sets the engine's guards. For tests of the engine itself: see [`guards`](crate::engine::guards).
    pub fn guards<G: Guards>(mut self) -> Simulation {
        self.attach = attach::<G>;
        self
    }

    /// Records events in an event log, as [`RuntimeBuilder::trace`](crate::RuntimeBuilder::trace):
    /// each run adds a context to it, and a failing run is repeated several times.
    pub fn trace(mut self, trace: &Trace) -> Simulation {
        self.trace = Some(trace.clone());
        self
    }

    /// Sets the stack size of coroutines in bytes, as
    /// [`RuntimeBuilder::stack_size`](crate::RuntimeBuilder::stack_size).
    pub fn stack_size(mut self, bytes: usize) -> Simulation {
        self.stack_size = bytes;
        self
    }

    /// Sets the maximum number of runs for shrinking a failing tape. Default 2000.
    pub fn max_shrink_runs(mut self, runs: u32) -> Simulation {
        self.max_shrink_runs = runs;
        self
    }

    /// Makes only the run recorded on this tape, as printed by a failure, whatever the seeds.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: `text` is not a tape.
    pub fn tape(mut self, text: &str) -> io::Result<Simulation> {
        self.tape = Some(tape::parse(text)?);
        Ok(self)
    }

    /// Runs `f` as [`simulate`] does. Returns the number of runs.
    ///
    /// # Panics
    ///
    /// If a run fails. Inside a context. If `CORALIO_SIM_SEED` or `CORALIO_SIM_TAPE` is invalid.
    pub fn run(&self, seeds: impl IntoIterator<Item = u64>, f: impl Fn(&Sim) -> io::Result<()>) -> u64 {
        self.search(seeds, f).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// As [`run`](Self::run), but returns a failure.
    ///
    /// # Errors
    ///
    /// The first failing run, with its tape shrunk.
    ///
    /// # Panics
    ///
    /// Inside a context. If `CORALIO_SIM_SEED` or `CORALIO_SIM_TAPE` is invalid.
    pub fn search(
        &self,
        seeds: impl IntoIterator<Item = u64>,
        f: impl Fn(&Sim) -> io::Result<()>,
    ) -> Result<u64, Box<Failure>> {
        let only = variable("CORALIO_SIM_SEED").map(|text| {
            parse_seed(&text).unwrap_or_else(|| panic!("invalid CORALIO_SIM_SEED={text}: must be a number below 2^64"))
        });
        let mut seeds = only.into_iter().chain(seeds.into_iter().take_while(|_| only.is_none()));
        self.each(|_| seeds.next().map(|seed| (Some(seed), Tape::random(seed))), &f)
    }

    /// Makes every possible run: enumerates all decisions of the kernel. Returns the number of
    /// runs. Only feasible with few requests and few faults ([`Faults::max_faults`]), since the
    /// number grows exponentially. With [`Latency::all_orders`] no order is repeated.
    ///
    /// ```
    /// use coralio::simulate::{Faults, Latency, Sim, Simulation};
    ///
    /// let careless = |sim: &Sim| {
    ///     let file = sim.create("file", 8);
    ///     let wrote = sim.crash_during(|| file.write_at(b"new data", 0)); // no sync
    ///     assert!(wrote.is_none() || sim.contents("file").unwrap() == b"new data", "lost");
    ///     Ok(())
    /// };
    /// let every = Simulation::new().faults(Faults::none()).latency(Latency::all_orders());
    /// let failure = every.explore_all(careless).unwrap_err();
    /// assert_eq!(failure.message, "lost");
    /// // The shrunk tape makes the same run again.
    /// let again = Simulation::new().faults(Faults::none()).latency(Latency::all_orders()).tape(&failure.tape).unwrap();
    /// assert!(again.search(0..1, careless).is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// The first failing run, with its tape shrunk.
    ///
    /// # Panics
    ///
    /// As [`search`](Self::search).
    pub fn explore_all(&self, f: impl Fn(&Sim) -> io::Result<()>) -> Result<u64, Box<Failure>> {
        let mut first = Some(Vec::new());
        let mut next = |made: &[Choice]| first.take().or_else(|| tape::successor(made));
        self.each(|made| next(made).map(|given| (None, Tape::replay(given))), &f)
    }

    /// Returns the hash of everything that the kernel sees and decides in the run of this seed,
    /// whether it fails or not. The same seed gives the same hash; otherwise `f` depends on
    /// something else: time, addresses, the order of a `HashMap`, another thread.
    ///
    /// # Panics
    ///
    /// Inside a context.
    pub fn fingerprint(&self, seed: u64, f: impl Fn(&Sim) -> io::Result<()>) -> u64 {
        self.one(Tape::random(seed), false, &f).fingerprint
    }

    /// Runs the tapes that `next` returns, with their seeds, until one fails. `next` gets the
    /// choices made in the last run. A given tape is the only one.
    fn each(
        &self,
        mut next: impl FnMut(&[Choice]) -> Option<(Option<u64>, Tape)>,
        f: &dyn Fn(&Sim) -> io::Result<()>,
    ) -> Result<u64, Box<Failure>> {
        if let Some(tape) = self.given_tape() {
            return self.replay(tape, f).map(|()| 1);
        }
        let (mut runs, mut made) = (0, Vec::new());
        while let Some((seed, tape)) = next(&made) {
            runs += 1;
            let outcome = self.one(tape, false, f);
            if outcome.failure.is_some() {
                return Err(self.failed(seed, runs, outcome, f));
            }
            made = outcome.choices;
        }
        Ok(runs)
    }

    fn given_tape(&self) -> Option<Vec<u32>> {
        self.tape.clone().or_else(|| {
            let text = variable("CORALIO_SIM_TAPE")?;
            Some(tape::parse(&text).unwrap_or_else(|error| panic!("invalid CORALIO_SIM_TAPE: {error}")))
        })
    }
}

/// Attaches an engine on a simulated backend, with the guards `G`, to this thread's context.
fn attach<G: Guards>(context: &AioContext, backend: &SimulatedBackend, depth: u32) -> io::Result<Arc<Driver>> {
    let engine: Arc<Engine<SimulatedBackend, G>> = Engine::new(backend.of_context(context), depth, true)?;
    Driver::attach_engine(engine as Arc<dyn ErasedEngine>, Some(backend.clone()))
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
