//! C7: and so must what comes back.
use coralio_runtime::LoopThread;
use std::rc::Rc;

fn main() {
    let worker = LoopThread::start("worker").unwrap();
    drop(worker.context().spawn(|| Rc::new(7)).join());
}
