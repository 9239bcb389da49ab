//! One run: a context on a simulated backend, and the checks made of every run.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use coralio_runtime::{AioContext, EventSource, explained};

use crate::backend::simulated::SimulatedBackend;
use crate::backend::simulated::tape::{Choice, Tape};
use crate::driver::Driver;

use super::{Sim, Simulation};

pub(super) struct Outcome {
    pub(super) failure: Option<String>,
    pub(super) choices: Vec<Choice>,
    pub(super) fingerprint: u64,
    pub(super) log: String,
    /// The run exceeded its maximum number of steps.
    pub(super) endless: bool,
}

impl Simulation {
    /// Makes a run. `tells`: whether to record the log.
    pub(super) fn one(&self, tape: Tape, tells: bool, f: &dyn Fn(&Sim) -> io::Result<()>) -> Outcome {
        let backend = SimulatedBackend::new(self.settings.clone(), tape, tells);
        let context =
            AioContext::builder().stack_size(self.stack_size).report_unwound(false).report_deadlocks_after(None);
        let context = context.virtual_clock(backend.machine().clock());
        let context = self.trace.iter().fold(context, |context, trace| context.trace(trace));
        let ran = catch_unwind(AssertUnwindSafe(|| {
            context.run_coroutine(|context| {
                let driver = (self.attach)(context, &backend, self.settings.depth)?;
                let ended = f(&Sim::new(backend.clone(), self.crash_rate));
                ended
                    .map_err(|error| explained(error.kind(), format!("the run ended with an error: {error}"), error))?;
                drain(context, &backend, &driver)
            })
        }));
        let is_idle = backend.is_idle();
        let mut machine = backend.machine();
        let failure = match ran {
            _ if !machine.violations.is_empty() => Some(machine.violations.swap_remove(0)),
            Err(payload) => Some(message(&*payload)),
            Ok(Err(error) | Ok(Err(error))) => Some(error.to_string()),
            Ok(Ok(Ok(()))) if !is_idle => {
                Some("the context has ended with requests in flight or completions not reaped".into())
            }
            Ok(Ok(Ok(()))) => None,
        };
        Outcome {
            failure,
            choices: machine.tape.made().to_vec(),
            fingerprint: machine.trace.hash(),
            log: machine.trace.log(),
            endless: machine.was_overrun(),
        }
    }
}

/// Turns the faults off and waits until the requests made so far have completed.
fn drain(context: &AioContext, backend: &SimulatedBackend, driver: &Driver) -> io::Result<()> {
    /// Loop iterations per outstanding request.
    const ROUNDS: u64 = 100;
    backend.machine().calm();
    let before = driver.stats();
    let outstanding = u64::from(before.in_flight + before.pending);
    for _ in 0..(1 + outstanding) * ROUNDS {
        let now = driver.stats();
        let left = u64::from(now.in_flight + now.pending);
        // As many requests have completed as were outstanding; others may still be made.
        if left == 0 || now.requests - left >= before.requests {
            return Ok(());
        }
        context.poll(true);
    }
    Err(io::Error::other(format!(
        "{outstanding} requests never complete, even with faults off ({})",
        driver.describe()
    )))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".into())
}
