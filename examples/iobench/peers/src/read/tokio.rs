//! tokio: `spawn_blocking` with a positioned read, since its `File` has none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_blocking, spawn_local};

use super::{Block, Job, whole};
use crate::meter::Spent;
use crate::work::Work;

pub fn run(job: &Job) -> io::Result<Spent> {
    let runtime = Builder::new_current_thread().build()?;
    let file = Arc::new(job.open()?);
    let all_tasks = async || {
        let tasks: Vec<_> = (0..job.depth).map(|number| spawn_local(task(file.clone(), job.work.clone(), number as usize))).collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    };
    LocalSet::new().block_on(&runtime, job.measure(all_tasks))
}

async fn task(file: Arc<File>, work: Rc<Work>, number: usize) -> io::Result<()> {
    let mut block = Block::new();
    while let Some(offset) = work.next(number) {
        let file = file.clone();
        let read = move || file.read_at(block.bytes(), offset).map(|count| (count, block));
        let (count, back) = spawn_blocking(read).await??;
        whole(count)?;
        block = back;
    }
    Ok(())
}
