//! A tokio program whose storage side is a coralio context: 20,000 reads of 4 KiB, by 64 tasks, from
//! a file in the page cache. Beside it, the same reads by `pread` on tokio's blocking pool, and by
//! `tokio::fs`.
//!
//! ```text
//! cargo run --release --example tokio_bridge
//! ```
//!
//! On two shared cores, medians of the rounds' ratios, the middle one of three runs:
//!
//! | coralio / other      | wall time | CPU time |
//! |----------------------|-----------|----------|
//! | pread, blocking pool |      0.38 |     0.29 |
//! | tokio::fs            |      0.27 |     0.19 |
//!
//! The loop takes all runs that have arrived in one turn, is woken at most once per sleep, and submits
//! their reads together; the blocking pool hands over each read to a thread of its own.

// These macros panic if the output is closed.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

use std::future::Future;
use std::io::{self, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coralio::fs::Direct;
use coralio::task::Remote;
use coralio::{File, RuntimeBuilder};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

const READS: usize = 20_000;
const TASKS: usize = 64;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 16 * 1024;
const ROUNDS: usize = 5;

/// What one round took.
#[derive(Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

/// Returns the offset of a task's read.
fn offset(task: usize, read: usize) -> u64 {
    let number = (task * READS + read) as u64;
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % BLOCKS * BLOCK as u64
}

fn reads_of(task: usize) -> impl Iterator<Item = u64> {
    (task..READS).step_by(TASKS).map(move |read| offset(task, read))
}

/// Checks that a block holds what `write_file` wrote there.
fn check(block: &[u8], at: u64) {
    assert!(block.len() == BLOCK && block[..8] == at.to_le_bytes(), "wrong data at {at}");
}

fn write_file(path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    for block in 0..BLOCKS {
        let mut bytes = [0; BLOCK];
        bytes[..8].copy_from_slice(&(block * BLOCK as u64).to_le_bytes());
        file.write_all(&bytes)?;
    }
    file.flush()
}

async fn by_coralio(storage: Remote<File>, task: usize) -> io::Result<()> {
    for at in reads_of(task) {
        let read = storage.run(move |file| {
            let mut block = vec![0; BLOCK];
            file.read_exact_at(&mut block, at).map(|()| block)
        });
        check(&read.await.expect("the run does not panic")?, at);
    }
    Ok(())
}

async fn by_blocking_pool(file: Arc<std::fs::File>, task: usize) -> io::Result<()> {
    for at in reads_of(task) {
        let file = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || {
            let mut block = vec![0; BLOCK];
            file.read_exact_at(&mut block, at).map(|()| block)
        });
        check(&read.await.expect("the read does not panic")?, at);
    }
    Ok(())
}

async fn by_tokio_fs(path: PathBuf, task: usize) -> io::Result<()> {
    // A position belongs to an open file, so each task opens its own.
    let mut file = tokio::fs::File::open(path).await?;
    for at in reads_of(task) {
        let mut block = vec![0; BLOCK];
        file.seek(SeekFrom::Start(at)).await?;
        file.read_exact(&mut block).await?;
        check(&block, at);
    }
    Ok(())
}

/// Runs all tasks, and returns what they took.
async fn measure<F>(task: impl Fn(usize) -> F) -> io::Result<Took>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let cpu = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).expect("a time of this process");
    let (wall, used) = (Instant::now(), cpu());
    let tasks: Vec<_> = (0..TASKS).map(|number| tokio::spawn(task(number))).collect();
    for task in tasks {
        task.await.map_err(io::Error::other)??;
    }
    Ok(Took { wall: wall.elapsed(), cpu: cpu() - used })
}

fn median<T: Ord + Copy>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<_> = values.collect();
    values.sort();
    values[values.len() / 2]
}

async fn compare(path: &Path) -> io::Result<()> {
    let opened = path.to_path_buf();
    let open = move || File::options().read(true).direct(Direct::Never).open(&opened);
    let storage = Remote::start(RuntimeBuilder::new(), "storage", open)?;
    let file = Arc::new(std::fs::File::open(path)?);
    let mut took = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        took[0].push(measure(|task| by_coralio(storage.clone(), task)).await?);
        took[1].push(measure(|task| by_blocking_pool(Arc::clone(&file), task)).await?);
        took[2].push(measure(|task| by_tokio_fs(path.to_path_buf(), task)).await?);
    }
    storage.stop().await.expect("the context does not panic");

    let mut out = io::stdout();
    writeln!(out, "medians of {ROUNDS} rounds of {READS} reads   wall        CPU         coralio / other: wall, CPU")?;
    let wall = |way: &[Took]| median(way.iter().map(|took| took.wall));
    let cpu = |way: &[Took]| median(way.iter().map(|took| took.cpu));
    for (name, way) in ["coralio", "pread, blocking pool", "tokio::fs"].iter().zip(&took) {
        let ratio = |of: fn(&Took) -> Duration| {
            median(
                took[0]
                    .iter()
                    .zip(way)
                    .map(|(ours, other)| (1000.0 * of(ours).as_secs_f64() / of(other).as_secs_f64()) as u64),
            ) as f64
                / 1000.0
        };
        let (wall, cpu) = (wall(way), cpu(way));
        let (wall_ratio, cpu_ratio) = (ratio(|took| took.wall), ratio(|took| took.cpu));
        writeln!(out, "{name:36}   {wall:9.1?}   {cpu:9.1?}   {wall_ratio:.2}  {cpu_ratio:.2}")?;
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let path = std::env::temp_dir().join(format!("coralio-tokio-bridge-{}", std::process::id()));
    let tokio = tokio::runtime::Builder::new_multi_thread().build()?;
    let compared = write_file(&path).and_then(|()| tokio.block_on(compare(&path)));
    std::fs::remove_file(&path)?;
    compared
}
