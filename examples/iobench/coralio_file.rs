//! The coroutines' side: N coroutines, each a simple loop. Asynchronous I/O needs no more than
//! that.

use std::io;
use std::rc::Rc;

use coralio::driver::stats;
use coralio::{AlignedBuf, File, JoinHandle, spawn};
use coralio_qcow2::Image;

use crate::meter::Moment;
use crate::options::Options;
use crate::report::Round;
use crate::target::Target;
use crate::work::{Limit, WARM_UP, Work, short};

/// The state that all coroutines of a round share.
struct Job {
    file: Rc<File>,
    image: Option<Rc<dyn Image>>,
    work: Work,
    block: usize,
    write: bool,
}

/// Runs one round: a warm-up and the timed part, before which `ready` is called.
pub fn round(options: &Options, target: &Target, latencies: bool, ready: impl FnOnce()) -> Result<Round, String> {
    let job = Rc::new(Job {
        file: Rc::clone(&target.file),
        image: target.image.clone(),
        work: Work::new(options.block_size, target.blocks, options.pattern(), latencies.then_some(options.depth)),
        block: options.block_size as usize,
        write: options.write,
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
    Ok(Round::ours(job.work.done(), spent, &before, &after, job.work.latencies()))
}

type Worker = JoinHandle<Result<AlignedBuf, String>>;

fn start(job: &Rc<Job>, buffers: Vec<AlignedBuf>) -> Vec<Worker> {
    let one = |(number, buf)| {
        let job = Rc::clone(job);
        spawn(move || job.run(number, buf))
    };
    buffers.into_iter().enumerate().map(one).collect()
}

fn join(coroutines: Vec<Worker>) -> Result<Vec<AlignedBuf>, String> {
    let ended: Vec<_> =
        coroutines.into_iter().map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
    // All have ended before the first failure is returned.
    ended.into_iter().collect()
}

impl Job {
    /// Runs one coroutine from its first operation to its last. Returns its buffer.
    fn run(&self, number: usize, mut buf: AlignedBuf) -> Result<AlignedBuf, String> {
        let file = &*self.file;
        match (&self.image, self.write) {
            (None, false) => self.repeat(number, |at| file.read_at(&mut buf, at)),
            (None, true) => self.repeat(number, |at| file.write_at(&buf, at)),
            (Some(image), false) => self.repeat(number, |at| image.read_at(&mut buf, at).map(|()| self.block)),
            (Some(image), true) => self.repeat(number, |at| image.write_at(&buf, at).map(|()| self.block)),
        }?;
        Ok(buf)
    }

    /// The hot loop.
    #[inline]
    fn repeat(&self, number: usize, mut operation: impl FnMut(u64) -> io::Result<usize>) -> Result<(), String> {
        while let Some(offset) = self.work.next(number) {
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
