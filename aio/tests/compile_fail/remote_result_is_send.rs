//! C7: a result returned from another thread must be Send.
use coralio_runtime::IoThread;
use std::rc::Rc;

fn main() {
    let worker = IoThread::start("worker").unwrap();
    drop(worker.context().spawn(|| Rc::new(7)).join()); //~ cannot be sent between threads
}
