//! compio, on its io_uring driver. Its `File` has no registered files.

use std::io;
use std::rc::Rc;

use compio::BufResult;
use compio::fs::{File, OpenOptions};
use compio::io::AsyncReadAt;
use compio::runtime::{Runtime, spawn};

use super::{Block, Job, whole};
use crate::meter::Spent;
use crate::work::Work;

pub fn run(job: &Job) -> io::Result<Spent> {
    Runtime::new()?.block_on(async {
        let file = Rc::new(OpenOptions::new().read(true).custom_flags(job.flags()).open(&job.path).await?);
        let all_tasks = async || {
            let tasks: Vec<_> = (0..job.depth).map(|number| spawn(task(file.clone(), job.work.clone(), number as usize))).collect();
            for task in tasks {
                task.await.map_err(|_| io::Error::other("a task has panicked"))??;
            }
            Ok(())
        };
        job.measure(all_tasks).await
    })
}

async fn task(file: Rc<File>, work: Rc<Work>, number: usize) -> io::Result<()> {
    let mut block = Block::new();
    while let Some(offset) = work.next(number) {
        let BufResult(result, back) = file.read_at(block, offset).await;
        whole(result?)?;
        block = back;
    }
    Ok(())
}
