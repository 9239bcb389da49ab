//! tokio-uring. Its `File` has no registered files.

use std::io;
use std::rc::Rc;

use tokio_uring::{fs::File, spawn};

use super::{Block, Job, whole};
use crate::meter::Spent;
use crate::work::Work;

pub fn run(job: &Job) -> io::Result<Spent> {
    tokio_uring::builder().entries(1024).start(async {
        let file = Rc::new(File::from_std(job.open()?));
        let all_tasks = async || {
            let tasks: Vec<_> = (0..job.depth).map(|number| spawn(task(file.clone(), job.work.clone(), number as usize))).collect();
            for task in tasks {
                task.await.map_err(io::Error::other)??;
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
