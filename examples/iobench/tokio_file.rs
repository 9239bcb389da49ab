//! The async opponent: tasks on tokio's current-thread runtime, one per coroutine of the other
//! side, each a simple loop on its own `File`.
//!
//! tokio's `File` has no positioned read: it seeks, and reads into an internal buffer from which it
//! copies. That buffer is unsuitable for direct I/O, so there the tasks do what tokio's users do:
//! `spawn_blocking` with a positioned read.

use std::fs;
use std::io::{self, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;

use coralio::AlignedBuf;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::runtime::{self, Runtime};
use tokio::task::{LocalSet, spawn_blocking};

use crate::bare::Bare;
use crate::options::Options;
use crate::pool::transfer;
use crate::target::Target;
use crate::work::Work;

/// The runtime with its threads, and the tasks' state.
pub struct Tokio {
    runtime: Runtime,
    tasks: Vec<Task>,
}

/// The file and buffer of one task.
struct Task {
    number: usize,
    way: Way,
    buffer: AlignedBuf,
    write: bool,
}

enum Way {
    /// Each task opens the file itself, because the position belongs to the open file description.
    File(File),
    Blocking(Arc<fs::File>),
}

impl Bare for Tokio {
    const SETUP: &str = "tokio's runtime";
    const REMEDY: &str = "reduce --depth, or raise the limits on threads and open files (ulimit -u -n)";

    fn new(options: &Options, target: &Target) -> io::Result<Tokio> {
        let runtime = runtime::Builder::new_current_thread().build()?;
        let held = target.file.as_fd();
        let shared = Arc::new(fs::File::from(held.try_clone_to_owned()?));
        let task = |number| {
            let way = if target.file.is_direct() {
                Way::Blocking(Arc::clone(&shared))
            } else {
                let path = format!("/proc/self/fd/{}", held.as_raw_fd());
                Way::File(File::from_std(fs::File::options().read(!options.write).write(options.write).open(path)?))
            };
            Ok(Task { number, way, buffer: target.buffer(options), write: options.write })
        };
        let tasks = (0..options.depth as usize).map(task).collect::<io::Result<_>>()?;
        Ok(Tokio { runtime, tasks })
    }

    fn run(&mut self, work: &Rc<Work>) -> Result<(), String> {
        let tasks = std::mem::take(&mut self.tasks);
        let ended = LocalSet::new().block_on(&self.runtime, async {
            let started: Vec<_> =
                tasks.into_iter().map(|task| tokio::task::spawn_local(task.run(Rc::clone(work)))).collect();
            let mut ended = Vec::new();
            for task in started {
                ended.push(task.await.map_err(|error| error.to_string()).flatten());
            }
            ended
        });
        self.tasks = ended.into_iter().collect::<Result<_, String>>()?;
        Ok(())
    }
}

impl Task {
    async fn run(mut self, work: Rc<Work>) -> Result<Task, String> {
        while let Some(offset) = work.next(self.number) {
            if let Err(why) = self.transfer(offset).await {
                work.stop();
                return Err(why);
            }
        }
        Ok(self)
    }

    async fn transfer(&mut self, offset: u64) -> Result<(), String> {
        let Task { way, buffer, write, .. } = self;
        let write = *write;
        match way {
            Way::File(file) => {
                let done = async {
                    file.seek(SeekFrom::Start(offset)).await?;
                    if write {
                        file.write_all(buffer).await?;
                        // The write has reached the file only after the flush.
                        file.flush().await
                    } else {
                        file.read_exact(buffer).await.map(drop)
                    }
                };
                done.await
                    .map_err(|error| format!("{} at offset {offset}: {error}", if write { "write" } else { "read" }))
            }
            Way::Blocking(file) => {
                let (file, mut moved) = (Arc::clone(file), std::mem::replace(buffer, AlignedBuf::new(0, 1)));
                let done = spawn_blocking(move || {
                    let result = transfer(&file, &mut moved, offset, write);
                    (moved, result)
                });
                let (moved, result) = done.await.map_err(|error| error.to_string())?;
                *buffer = moved;
                result
            }
        }
    }
}
