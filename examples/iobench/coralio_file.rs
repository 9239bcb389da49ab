//! The coroutines' side: N coroutines, each a simple loop. Asynchronous I/O needs no more than
//! that.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use coralio::driver::stats;
use coralio::{AlignedBuf, File, JoinHandle, spawn};
use coralio_qcow2::Image;
use hdrhistogram::Histogram;

use crate::meter::Moment;
use crate::options::Options;
use crate::report::Round;
use crate::target::Target;
use crate::work::{Limit, WARM_UP, Work, short};

/// Latencies in nanoseconds, to three significant digits.
pub type Latencies = Histogram<u64>;

/// The state that all coroutines of a round share.
struct Job {
    file: Rc<File>,
    image: Option<Rc<dyn Image>>,
    work: Work,
    block: usize,
    write: bool,
    /// Recorded if set: reads the clock around each operation.
    latencies: Option<RefCell<Latencies>>,
}

/// Runs one round: a warm-up and the timed part, before which `ready` is called.
pub fn round(options: &Options, target: &Target, latencies: bool, ready: impl FnOnce()) -> Result<Round, String> {
    let job = Rc::new(Job {
        file: Rc::clone(&target.file),
        image: target.image.clone(),
        work: Work::new(options.block_size, target.blocks, options.pattern()),
        block: options.block_size as usize,
        write: options.write,
        latencies: latencies.then(|| RefCell::new(histogram())),
    });
    let buffers = (0..options.depth).map(|_| target.buffer(options)).collect();
    let say = |why: String| format!("{}: {why}", target.name);
    let round = timed(&job, buffers, options.limit(), ready).map_err(say)?;
    // Write the tables, which are still in memory. Not timed, because raw files are not synced
    // either.
    job.image.as_ref().map_or(Ok(()), |image| image.flush()).map_err(|error| say(error.to_string()))?;
    Ok(round)
}

fn timed(job: &Rc<Job>, buffers: Vec<AlignedBuf>, limit: Limit, ready: impl FnOnce()) -> Result<Round, String> {
    job.work.begin(Limit::Ops(WARM_UP));
    let buffers = join(start(job, buffers))?;
    if let Some(latencies) = &job.latencies {
        latencies.borrow_mut().reset();
    }

    // Spawned before the clock starts; none runs before this coroutine waits in `join`.
    let coroutines = start(job, buffers);
    ready();
    let before = stats();
    let clock = Moment::now();
    job.work.begin(limit);
    let buffers = join(coroutines)?;
    let spent = clock.spent();
    let after = stats();
    drop(buffers);
    Ok(Round::ours(job.work.done(), spent, &before, &after, job.latencies.as_ref().map(|all| all.borrow().clone())))
}

type Worker = JoinHandle<Result<AlignedBuf, String>>;

fn start(job: &Rc<Job>, buffers: Vec<AlignedBuf>) -> Vec<Worker> {
    let one = |buf| {
        let job = Rc::clone(job);
        spawn(move || job.run(buf))
    };
    buffers.into_iter().map(one).collect()
}

fn join(coroutines: Vec<Worker>) -> Result<Vec<AlignedBuf>, String> {
    let ended: Vec<_> =
        coroutines.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
    // All have ended before the first failure is returned.
    ended.into_iter().collect()
}

impl Job {
    /// Runs one coroutine from its first operation to its last. Returns its buffer.
    fn run(&self, mut buf: AlignedBuf) -> Result<AlignedBuf, String> {
        if let Some(image) = &self.image {
            self.run_on_image(&**image, &mut buf)?;
            return Ok(buf);
        }
        let file = &*self.file;
        match (&self.latencies, self.write) {
            (None, false) => self.repeat(|at| file.read_at(&mut buf, at)),
            (None, true) => self.repeat(|at| file.write_at(&buf, at)),
            (Some(all), false) => self.repeat(|at| clocked(all, || file.read_at(&mut buf, at))),
            (Some(all), true) => self.repeat(|at| clocked(all, || file.write_at(&buf, at))),
        }?;
        Ok(buf)
    }

    /// As `run`, on a disk image.
    fn run_on_image(&self, image: &dyn Image, buf: &mut AlignedBuf) -> Result<(), String> {
        self.repeat(|at| {
            let mut operation = || match self.write {
                false => image.read_at(buf, at),
                true => image.write_at(buf, at),
            };
            let done = match &self.latencies {
                None => operation(),
                Some(all) => clocked(all, operation),
            };
            done.map(|()| self.block)
        })
    }

    /// The hot loop.
    #[inline]
    fn repeat(&self, mut operation: impl FnMut(u64) -> io::Result<usize>) -> Result<(), String> {
        while let Some(offset) = self.work.next() {
            match operation(offset) {
                Ok(count) if count == self.block => {}
                other => return Err(self.failed(offset, other)),
            }
        }
        Ok(())
    }

    #[cold]
    fn failed(&self, offset: u64, result: io::Result<usize>) -> String {
        self.work.stop();
        match result {
            Ok(count) => short(if self.write { "write" } else { "read" }, self.block as u64, offset, count as u64),
            // The error already names the operation and the offset.
            Err(e) => e.to_string(),
        }
    }
}

fn clocked<T>(latencies: &RefCell<Latencies>, operation: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = operation();
    let took = start.elapsed().as_nanos() as u64;
    // Borrowed only for this line, which cannot switch coroutines.
    latencies.borrow_mut().saturating_record(took);
    result
}

/// Covers one nanosecond to one minute; longer operations count as one minute.
fn histogram() -> Latencies {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds, in order")
}
