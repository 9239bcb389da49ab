//! monoio, on its io_uring driver. Its `File` has no registered files.

use std::io;
use std::rc::Rc;

use monoio::fs::File;
use monoio::{IoUringDriver, RuntimeBuilder, spawn};

use super::{Block, Job, whole};
use crate::meter::Spent;
use crate::work::Work;

pub fn run(job: &Job) -> io::Result<Spent> {
    let mut runtime = RuntimeBuilder::<IoUringDriver>::new().with_entries(1024).build()?;
    runtime.block_on(async {
        let file = Rc::new(File::from_std(job.open()?)?);
        let all_tasks = async || {
            let tasks: Vec<_> = (0..job.depth).map(|number| spawn(task(file.clone(), job.work.clone(), number as usize))).collect();
            for task in tasks {
                task.await?;
            }
            Ok(())
        };
        job.measure(all_tasks).await
    })
}

async fn task(file: Rc<File>, work: Rc<Work>, number: usize) -> io::Result<()> {
    let mut block = Block::new();
    while let Some(offset) = work.next(number) {
        let (result, back) = file.read_at(block, offset).await;
        whole(result?)?;
        block = back;
    }
    Ok(())
}
