//! The test's interface to a simulated run: files, faults, crashes, and random choices.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::backend::simulated::{Fault, Faults, SimulatedBackend, tape};
use crate::driver::Driver;
use crate::file::File;

use super::panic_hook::SilentPanics;

/// A run of [`simulate`](super::simulate), as passed to its closure.
///
/// Clones refer to the same run: pass one to each coroutine that needs it.
#[derive(Clone)]
pub struct Sim {
    backend: SimulatedBackend,
    crash_rate: f64,
}

impl Sim {
    pub(super) fn new(backend: SimulatedBackend, crash_rate: f64) -> Sim {
        Sim { backend, crash_rate }
    }

    /// Creates a file of `len` zero bytes, and opens it for reading and writing. Its name and
    /// contents are durable: a crash does not undo this. Code under test creates files with
    /// [`File::options`] as usual.
    ///
    /// # Panics
    ///
    /// Outside its run.
    pub fn create(&self, name: impl AsRef<Path>, len: u64) -> File {
        let name = name.as_ref();
        self.backend.machine().files.put(name, len);
        self.open(name).expect("the file was just created")
    }

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    ///
    /// # Panics
    ///
    /// Outside its run.
    pub fn open(&self, name: impl AsRef<Path>) -> io::Result<File> {
        // Outside the run the name would be that of a real file.
        let here = Driver::simulated().is_some_and(|backend| backend.is(&self.backend));
        assert!(here, "simulated files belong to a run: open them inside the simulation's closure");
        File::options().read(true).write(true).open(name)
    }

    /// Returns the current contents of a file, without any I/O; `None` if there is no such file.
    pub fn contents(&self, name: impl AsRef<Path>) -> Option<Vec<u8>> {
        let machine = self.backend.machine();
        let file = &machine.files.files[machine.files.find(name.as_ref())?];
        Some(file.read(0, file.len() as usize))
    }

    /// Changes a file's contents spontaneously and durably, like bit rot.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    pub fn corrupt(&self, name: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        let mut machine = self.backend.machine();
        let name = name.as_ref();
        let found =
            machine.files.find(name).unwrap_or_else(|| panic!("cannot corrupt {}: no such file", name.display()));
        machine.files.files[found].corrupt(offset, bytes);
    }

    /// Returns the virtual time since the run began.
    pub fn now(&self) -> Duration {
        self.backend.machine().now()
    }

    /// Chooses a number below `bound`, from the run's tape: for random decisions of the test
    /// itself. 0 should be the most benign choice, because failing tapes are shrunk towards it.
    /// Returns 0 if `bound` is 0 or 1.
    pub fn choose(&self, bound: u32) -> u32 {
        self.backend.machine().tape.choose(bound)
    }

    /// Chooses whether an event with this rate, 0 to 1, happens, from the run's tape.
    pub fn chance(&self, rate: f64) -> bool {
        self.backend.machine().tape.chance(rate)
    }

    /// Returns the tape of the choices made so far, for [`Simulation::tape`](super::Simulation::tape).
    ///
    /// ```
    /// use coralio::simulate;
    ///
    /// simulate(0..1, |sim| {
    ///     let drawn = [sim.choose(100), sim.choose(100)];
    ///     assert_eq!(sim.tape(), format!("{},{}", drawn[0], drawn[1]));
    ///     Ok(())
    /// });
    /// ```
    pub fn tape(&self) -> String {
        let machine = self.backend.machine();
        let choices: Vec<_> = machine.tape.made().iter().map(|choice| choice.value).collect();
        tape::Text(&choices).to_string()
    }

    /// Replaces the rates of faults.
    pub fn set_faults(&self, faults: Faults) {
        self.backend.machine().faults = faults;
    }

    /// Injects one fault, regardless of the rates. Faults queue up separately for submits and for
    /// requests.
    ///
    /// ```
    /// use coralio::simulate;
    /// use coralio::simulate::Fault;
    /// use std::io::ErrorKind;
    ///
    /// simulate(0..1, |sim| {
    ///     let file = sim.create("file", 512);
    ///     sim.inject(Fault::Error(libc::ENOSPC));
    ///     assert_eq!(file.write_at(b"hello", 0).unwrap_err().kind(), ErrorKind::StorageFull);
    ///     file.write_at(b"hello", 0)?;
    ///     Ok(())
    /// });
    /// ```
    pub fn inject(&self, fault: Fault) {
        self.backend.machine().script.push_back(fault);
    }

    /// Simulates a power failure and restart.
    ///
    /// Synced data is on the disk. Each unsynced sector independently has its previous contents,
    /// those of any write since, or a torn mixture; the same applies to writes in flight. Open
    /// files fail from now on (`EIO`), and so do requests in flight: open the files again. Of the
    /// names created, changed or removed since their directory was synced, the changes up to some
    /// moment are preserved.
    pub fn crash(&self) {
        self.backend.machine().crash();
    }

    /// Runs `f`, with a power failure [at some moment](super::Simulation::crash_rate) during it, or
    /// when it has ended. Returns the result of `f` if it ended first.
    ///
    /// After the crash all of `f`'s I/O fails, so that it ends; its result or panic is then
    /// ignored, because the machine is down. Coroutines that `f` has spawned and not joined see the
    /// same failures.
    ///
    /// # Panics
    ///
    /// Propagates `f`'s panic if it came before the crash.
    ///
    /// # Control
    ///
    /// Switches as `f` does.
    pub fn crash_during<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let crashes = {
            let mut machine = self.backend.machine();
            machine.power_fails = self.crash_rate;
            Arc::clone(&machine.crashes)
        };
        // Relaxed: incremented on this thread.
        let before = crashes.load(Ordering::Relaxed);
        let ended = {
            let _quiet = SilentPanics::after(&crashes);
            catch_unwind(AssertUnwindSafe(f))
        };
        self.backend.machine().power_fails = 0.0;
        if crashes.load(Ordering::Relaxed) > before {
            return None;
        }
        let value = ended.unwrap_or_else(|payload| resume_unwind(payload));
        self.crash();
        Some(value)
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sim").field(&self.backend).finish()
    }
}
