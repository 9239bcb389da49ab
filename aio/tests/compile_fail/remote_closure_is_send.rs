//! C7: a closure passed to another thread's context must be Send.
use coralio_runtime::IoThread;
use std::rc::Rc;

fn main() {
    let worker = IoThread::start("worker").unwrap();
    let shared = Rc::new(7);
    drop(worker.context().spawn(move || drop(shared))); //~ cannot be sent between threads
}
