//! The CPUs that a thread may use.

use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sys::explained;

/// The CPUs that threads could use before the first one was restricted.
static UNRESTRICTED: OnceLock<CpuSet> = OnceLock::new();

/// Restricts this thread to some CPUs while the value exists.
pub(crate) struct Pinned {
    before: CpuSet,
    _thread: PhantomData<*const ()>,
}

impl Pinned {
    pub(crate) fn new(cpus: &[usize]) -> io::Result<Pinned> {
        let before = sched_getaffinity(None)?;
        UNRESTRICTED.get_or_init(|| before);
        let mut wanted = CpuSet::new();
        cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| wanted.set(cpu));
        sched_setaffinity(None, &wanted).map_err(|error| {
            let error = io::Error::from(error);
            let why = format!(
                "cannot run a context on CPUs {cpus:?}: {error}; name at least one that the process may use (`nproc`, \
                 `taskset -p PID`)"
            );
            explained(error.kind(), why, error)
        })?;
        Ok(Pinned { before, _thread: PhantomData })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // A CPU may have been taken away from the process meanwhile; then the thread stays here.
        let _best_effort = sched_setaffinity(None, &self.before);
    }
}

/// Lets this thread, started by a restricted one, use the CPUs that its starter could use before.
pub fn unrestrict_cpus() {
    if let Some(all) = UNRESTRICTED.get() {
        let _best_effort = sched_setaffinity(None, all);
    }
}

/// Returns the CPUs that this thread may use.
///
/// # Errors
///
/// `InvalidInput`: the system has more CPUs than a set can name.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}
