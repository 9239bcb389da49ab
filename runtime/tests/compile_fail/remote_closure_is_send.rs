//! C7: a closure passed to another thread's context must be Send.
use coralio_runtime::LoopThread;
use std::rc::Rc;

fn main() {
    let worker = LoopThread::start("worker").unwrap();
    let shared = Rc::new(7);
    drop(worker.context().spawn(move || drop(shared)));
}
