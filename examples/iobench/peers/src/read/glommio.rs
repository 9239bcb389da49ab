//! glommio. It allocates the buffers itself, in memory that is registered with the ring.

use std::io;
use std::rc::Rc;

use glommio::io::{DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, Placement, spawn_local};

use super::{Job, whole};
use crate::meter::Spent;
use crate::work::Work;

pub fn run(job: &Job) -> io::Result<Spent> {
    if !job.direct {
        return Err(io::Error::other("glommio's DmaFile needs direct I/O"));
    }
    LocalExecutorBuilder::new(Placement::Unbound).make()?.run(async {
        let file = Rc::new(OpenOptions::new().read(true).dma_open(&job.path).await?);
        let all_tasks = async || {
            let tasks: Vec<_> = (0..job.depth).map(|number| spawn_local(task(file.clone(), job.work.clone(), number as usize))).collect();
            for task in tasks {
                task.await?;
            }
            Ok(())
        };
        job.measure(all_tasks).await
    })
}

async fn task(file: Rc<DmaFile>, work: Rc<Work>, number: usize) -> io::Result<()> {
    while let Some(offset) = work.next(number) {
        whole(file.read_at_aligned(offset, super::BLOCK).await?.len())?;
    }
    Ok(())
}
