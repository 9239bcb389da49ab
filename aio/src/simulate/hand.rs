//! The test's hand in a simulated run: files, faults, crashes, and choices of its own.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::any::AnyEngine;
use crate::file::File;
use crate::kernel::sim::{Fault, Faults, SimKernel};

use super::quiet::Quiet;

/// A run of [`simulate`](super::simulate), as its closure has it in hand.
///
/// Clones are the same run: give one to a coroutine that needs it.
#[derive(Clone)]
pub struct Sim {
    kernel: SimKernel,
    crash_rate: f64,
}

impl Sim {
    pub(super) fn new(kernel: SimKernel, crash_rate: f64) -> Sim {
        Sim { kernel, crash_rate }
    }

    /// Makes a file of `len` zero bytes, and opens it for reading and writing. It is there for
    /// good, name and zeroes: a crash does not undo this. Code that makes files itself does so by
    /// [`File::options`], as ever.
    ///
    /// # Panics
    ///
    /// Outside its run.
    pub fn create(&self, name: impl AsRef<Path>, len: u64) -> File {
        let name = name.as_ref();
        self.kernel.machine().files.put(name, len);
        self.open(name).expect("it was just made")
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
        // Elsewhere the name would be a real file's.
        let here = AnyEngine::simulated().is_some_and(|engine| engine.kernel.is(&self.kernel));
        assert!(here, "the files of a simulation belong to its run: open them within the closure that it runs");
        File::options().read(true).write(true).open(name)
    }

    /// What a reader of this file would see now, without any I/O; `None` if there is no such file.
    pub fn contents(&self, name: impl AsRef<Path>) -> Option<Vec<u8>> {
        let machine = self.kernel.machine();
        let file = &machine.files.files[machine.files.find(name.as_ref())?];
        Some(file.read(0, file.len() as usize))
    }

    /// Changes a file behind everybody's back, as a disk does that rots; durable at once.
    ///
    /// # Panics
    ///
    /// If there is no such file.
    pub fn corrupt(&self, name: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        let mut machine = self.kernel.machine();
        let name = name.as_ref();
        let found =
            machine.files.find(name).unwrap_or_else(|| panic!("there is no file {} to corrupt", name.display()));
        machine.files.files[found].corrupt(offset, bytes);
    }

    /// Virtual time since the run began.
    pub fn now(&self) -> Duration {
        self.kernel.machine().now()
    }

    /// A number below `bound`, from the run's tape: for what the test itself decides at random. 0
    /// should be the tamest; it is what a failing tape is shrunk to. 0 if `bound` is 0 or 1.
    pub fn choose(&self, bound: u32) -> u32 {
        self.kernel.machine().tape.choose(bound)
    }

    /// Whether something happens that happens at this rate, 0 to 1, from the run's tape.
    pub fn chance(&self, rate: f64) -> bool {
        self.kernel.machine().tape.chance(rate)
    }

    /// What goes wrong from now on, and how often.
    pub fn set_faults(&self, faults: Faults) {
        self.kernel.machine().faults = faults;
    }

    /// Something that goes wrong next, once, whatever the rates say. Several wait in line: those of
    /// submits, and those of requests.
    ///
    /// ```
    /// use coralio_aio::simulate;
    /// use coralio_aio::simulate::Fault;
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
        self.kernel.machine().script.push_back(fault);
    }

    /// The power goes, and comes back.
    ///
    /// What was synced is on the disk. Of what was not, each sector by itself is as it was before,
    /// or as some write since has left it, or torn; so is what was in flight. Files that are open
    /// fail from now on (`EIO`), and so do requests in flight: open them again. Names that were
    /// made, changed or removed since their folder was synced may be so, up to some moment, or not.
    pub fn crash(&self) {
        self.kernel.machine().crash();
    }

    /// Runs `f`, and has the power go [at some moment](super::Simulation::crash_rate) of it, or
    /// when it has ended. Returns what `f` returned, if it ended before.
    ///
    /// After the crash all of `f`'s I/O fails, so that it comes to its end; what it returns then,
    /// or how it panics, is of no interest, as the machine is dead. Coroutines that it has spawned
    /// and not joined see the same failures.
    ///
    /// # Panics
    ///
    /// With `f`'s panic, if that came before the crash.
    ///
    /// # Control
    ///
    /// As `f` does.
    pub fn crash_during<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let crashes = {
            let mut machine = self.kernel.machine();
            machine.power_fails = self.crash_rate;
            Arc::clone(&machine.crashes)
        };
        // Relaxed: it is counted on this thread.
        let before = crashes.load(Ordering::Relaxed);
        let ended = {
            let _quiet = Quiet::after(&crashes);
            catch_unwind(AssertUnwindSafe(f))
        };
        self.kernel.machine().power_fails = 0.0;
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
        f.debug_tuple("Sim").field(&self.kernel).finish()
    }
}
