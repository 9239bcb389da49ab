//! A context on a thread of its own, used from other executors.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use coralio::driver::BackendKind;
use coralio::sync::{Barrier, Semaphore};
use coralio::task::{Cancelled, Remote, check_cancelled};
use coralio::{File, RuntimeBuilder, block_on, sleep, yield_now};

use crate::common::panic_of;

fn start<S>(init: impl FnOnce() -> io::Result<S> + Send + 'static) -> io::Result<Remote<S>> {
    Remote::start(RuntimeBuilder::new().backend(BackendKind::Threads), "storage", init)
}

fn thread_name() -> Option<String> {
    thread::current().name().map(str::to_string)
}

/// Sends `what` and the thread's name when dropped.
struct OnDrop(&'static str, mpsc::Sender<(&'static str, Option<String>)>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.1.send((self.0, thread_name())).unwrap();
    }
}

#[test]
fn tokio_tasks_read_a_file_of_the_context() {
    // S15: the state is not `Send`; the runs of several tasks are in progress at the same time.
    let storage = start(|| Ok(Rc::new(File::open("Cargo.toml")?))).unwrap();
    let all_began = Arc::new(Barrier::new(4));
    let read = async move {
        let tasks = [0, 3, 6, 9].map(|offset| {
            let (storage, all_began) = (storage.clone(), Arc::clone(&all_began));
            tokio::spawn(async move {
                let read = storage.run(move |file| {
                    all_began.wait().unwrap();
                    let mut bytes = [0; 3];
                    file.read_exact_at(&mut bytes, offset).map(|()| bytes)
                });
                read.await.unwrap()
            })
        });
        let mut read = Vec::new();
        for task in tasks {
            read.extend(task.await.unwrap().unwrap());
        }
        storage.stop().await.unwrap();
        read
    };
    let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(tokio.block_on(read), std::fs::read("Cargo.toml").unwrap()[..12]);
}

#[test]
fn dropped_run_is_cancelled_and_dropped_handle_detaches() {
    // S15: as the future of an `async fn`, and as tokio's `spawn`.
    let storage = start(|| Ok(())).unwrap();
    let (ended, results) = mpsc::channel();
    let report = ended.clone();
    drop(storage.run(move |()| report.send(sleep(Duration::from_secs(3600)))));
    assert_eq!(results.recv().unwrap(), Err(Cancelled));

    let may_end = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&may_end);
    drop(storage.spawn(move |()| {
        drop(waits.acquire());
        ended.send(check_cancelled())
    }));
    may_end.add_permits(1);
    assert_eq!(results.recv().unwrap(), Ok(()));
    block_on(storage.stop()).unwrap().unwrap();
}

#[test]
fn stop_waits_for_runs_and_the_state() {
    // S15: no further run is accepted, those in progress end, then the state is dropped on its thread.
    let (dropped, drops) = mpsc::channel();
    let state = dropped.clone();
    let storage = start(move || Ok(OnDrop("state", state))).unwrap();
    let may_end = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&may_end);
    let run = storage.spawn(move |_state| {
        let _run = OnDrop("run", dropped);
        drop(waits.acquire());
    });
    let other = storage.clone();
    let mut stopping = pin!(storage.stop());
    assert!(stopping.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    assert!(other.run(|_state| ()).into_inner().join().unwrap_err().is::<Cancelled>());
    may_end.add_permits(1);
    block_on(stopping).unwrap().unwrap();
    let name = || Some("storage".to_string());
    assert_eq!(drops.try_iter().collect::<Vec<_>>(), [("run", name()), ("state", name())]);
    assert!(run.is_finished());
}

#[test]
fn thread_ends_with_the_last_handle() {
    // S15: after the runs in progress, without a stop.
    let (dropped, drops) = mpsc::channel();
    let state = dropped.clone();
    let storage = start(move || Ok(OnDrop("state", state))).unwrap();
    let may_end = Arc::new(Semaphore::new(0));
    let waits = Arc::clone(&may_end);
    drop(storage.spawn(move |_state| {
        let _run = OnDrop("run", dropped);
        drop(waits.acquire());
    }));
    let context = storage.context().clone();
    drop(storage.clone());
    drop(storage);
    context.spawn(|| (0..3).for_each(|_| yield_now())).join().expect("the run keeps the loop running");
    may_end.add_permits(1);
    let name = || Some("storage".to_string());
    assert_eq!(drops.iter().collect::<Vec<_>>(), [("run", name()), ("state", name())]);
}

#[test]
fn start_reports_the_failure_of_init() {
    // S15: its error, its panic, and the error of the settings.
    let error = start(|| File::open("no such file")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert_eq!(panic_of(|| start::<()>(|| panic!("on purpose"))), "on purpose");
    let error = Remote::start(RuntimeBuilder::new().queue_depth(0), "storage", || Ok(())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn panic_of_a_run_goes_to_its_future() {
    // S15: the context serves the next run.
    let storage = start(|| Ok(7)).unwrap();
    let panicked = block_on(storage.run(|_| panic!("on purpose"))).unwrap();
    assert!(panicked.is_err());
    assert_eq!(block_on(storage.run(|number| *number)).unwrap().unwrap(), 7);
    block_on(storage.stop()).unwrap().unwrap();
}
