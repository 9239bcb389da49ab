//! Random reads of 4 KiB by N tasks of one runtime on one thread, each task with a buffer of its
//! own: the work of iobench.

mod block;
mod compio;
mod glommio;
mod monoio;
mod tokio;
mod tokio_uring;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;

use crate::Arguments;
use crate::meter::{Moment, Spent};
use crate::work::{Latencies, Limit, Pattern, WARM_UP, Work};
use block::{BLOCK, Block};

/// The work of one round.
struct Job {
    path: PathBuf,
    direct: bool,
    depth: u32,
    work: Rc<Work>,
    limit: Limit,
}

/// Runs one round, and returns the result as JSON.
pub fn run(peer: &str, arguments: &Arguments) -> Result<String, String> {
    let path: PathBuf = arguments.given("file")?.ok_or("read needs --file FILE")?;
    let say = |error: io::Error| format!("{peer}: {}: {error}", path.display());
    let whole = File::open(&path).and_then(|file| file.metadata()).map_err(say)?.len() / BLOCK as u64;
    let blocks = arguments.get("blocks", whole)?;
    if blocks == 0 {
        return Err(format!("{}: less than one block of {BLOCK} bytes", path.display()));
    }
    let pattern = Pattern::Random { seed: arguments.get("seed", 1)? };
    let depth = arguments.get("depth", 32)?;
    let measured = (arguments.get("latencies", 0)? != 0).then_some(depth);
    let job = Job {
        path: path.clone(),
        direct: arguments.get("direct", 1)? != 0,
        depth,
        work: Rc::new(Work::new(BLOCK as u64, blocks, pattern, measured)),
        limit: arguments.limit()?,
    };
    let spent = match peer {
        "monoio" => monoio::run(&job),
        "tokio-uring" => tokio_uring::run(&job),
        "compio" => compio::run(&job),
        "glommio" => glommio::run(&job),
        "tokio" => tokio::run(&job),
        _ => return Err(format!("{peer} is not a peer: monoio, tokio-uring, compio, glommio or tokio")),
    };
    let spent = spent.map_err(say)?;
    let [wall, cpu, user, system] = [spent.wall, spent.cpu, spent.user, spent.system].map(|time| time.as_nanos());
    let operations = job.work.done();
    let each = cpu as f64 / operations as f64;
    let count = |latencies: Latencies| {
        let pairs = latencies.iter_recorded().map(|one| format!("[{}, {}]", one.value_iterated_to(), one.count_at_value()));
        pairs.collect::<Vec<_>>().join(", ")
    };
    let latencies = job.work.latencies().map_or(String::new(), |all| format!(", \"latencies\": [{}]", count(all)));
    Ok(format!(
        "{{\"peer\": \"{peer}\", \"operations\": {operations}, \"wall_ns\": {wall}, \"cpu_ns\": {cpu}, \"user_ns\": \
         {user}, \"system_ns\": {system}, \"cpu_ns_per_operation\": {each:.1}{latencies}}}\n"
    ))
}

impl Job {
    fn flags(&self) -> i32 {
        if self.direct { libc::O_DIRECT } else { 0 }
    }

    fn open(&self) -> io::Result<File> {
        File::options().read(true).custom_flags(self.flags()).open(&self.path)
    }

    /// Calls `all_tasks` twice, for the warm-up and for the timed part.
    async fn measure(&self, all_tasks: impl AsyncFn() -> io::Result<()>) -> io::Result<Spent> {
        self.work.begin(Limit::Ops(WARM_UP));
        all_tasks().await?;
        let clock = Moment::now();
        self.work.begin(self.limit);
        all_tasks().await?;
        Ok(clock.spent())
    }
}

/// Checks the number of bytes that a read has returned.
fn whole(count: usize) -> io::Result<()> {
    if count == BLOCK { Ok(()) } else { Err(io::Error::other(format!("short read: {count} of {BLOCK} bytes"))) }
}
