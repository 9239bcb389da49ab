//! Settings of contexts on other threads, and several contexts side by side.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};

use coralio::coroutine::Coroutine;
use coralio::driver::{BackendKind, selected_backend};
use coralio::{File, RuntimeBuilder, spawn, unblock};
use rustix::thread::{CpuSet, sched_getaffinity};

fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

fn on_threads() -> RuntimeBuilder {
    RuntimeBuilder::new().backend(BackendKind::Threads)
}

#[test]
fn io_thread_has_the_settings_of_its_builder() {
    // X10: an I/O thread takes the same settings as a context on the calling thread.
    let thread = on_threads().queue_depth(7).start_thread("reader").unwrap();
    let seen = thread.context().spawn(|| {
        let len = File::open("Cargo.toml")?.len()?;
        io::Result::Ok((selected_backend().unwrap().backend(), len))
    });
    let (backend, len) = seen.join().unwrap().unwrap();
    assert_eq!(backend, BackendKind::Threads);
    assert_eq!(len, std::fs::metadata("Cargo.toml").unwrap().len());
    thread.stop().unwrap();
}

#[test]
fn io_thread_with_invalid_settings_does_not_start() {
    // X10: the error names the setting, and the thread has ended.
    let error = RuntimeBuilder::new().queue_depth(0).start_thread("reader").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("queue depth 0"), "{error}");
}

#[test]
fn coroutine_on_another_context_has_its_name_and_stack_size() {
    // C1: attributes of coroutines spawned from other threads.
    let thread = on_threads().start_thread("worker").unwrap();
    let big = || {
        let block = std::hint::black_box([1_u8; 150 * 1024]);
        (Coroutine::current().unwrap().to_string(), block.len())
    };
    let task = Coroutine::builder().name("parser").stack_size(1 << 20).spawn_on(thread.context(), big);
    assert_eq!(task.join().unwrap(), ("'parser'".into(), 150 * 1024));
    thread.stop().unwrap();
}

#[test]
fn threads_return_their_results_by_index() {
    // X12: one context, engine and result for each thread.
    let results = on_threads().threads(3).run(|threads| {
        let file = File::open("Cargo.toml").unwrap();
        let mut start = [0; 9];
        file.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"[workspac");
        assert!(threads.contexts()[threads.index()].is_home());
        threads.contexts().iter().filter(|context| context.is_home()).count() * 10 + threads.index()
    });
    assert_eq!(results.unwrap(), [10, 11, 12]);
}

#[test]
fn contexts_run_until_all_threads_have_returned() {
    // X12: a thread whose `f` has returned still runs coroutines that other threads spawn there.
    let (returned, all_returned) = mpsc::channel();
    let (returned, all_returned) = (std::sync::Mutex::new(returned), std::sync::Mutex::new(all_returned));
    let sums = on_threads().threads(3).run(|threads| {
        if threads.index() > 0 {
            returned.lock().unwrap().send(()).unwrap();
            return 0;
        }
        (1..3).for_each(|_| all_returned.lock().unwrap().recv().unwrap());
        let others = threads.contexts()[1..].iter().cycle().take(100);
        others.map(|other| other.spawn(|| 1).join().unwrap()).sum()
    });
    assert_eq!(sums.unwrap(), [100, 0, 0]);
}

#[test]
fn panic_on_one_thread_is_propagated_after_the_others_end() {
    // X12: the other threads finish; then the panic continues in the caller.
    let finished = AtomicUsize::new(0);
    let run = || {
        on_threads().threads(3).run(|threads| {
            assert_ne!(threads.index(), 1, "on purpose");
            finished.fetch_add(1, Ordering::Relaxed);
        })
    };
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
    assert!(payload.downcast_ref::<String>().unwrap().contains("on purpose"));
    assert_eq!(finished.into_inner(), 2);
}

#[test]
fn threads_that_cannot_all_start_run_nothing() {
    // X12: an invalid setting is an error, and `f` runs on no thread.
    let ran = AtomicUsize::new(0);
    let count = |_: coralio::context::ContextThreads<'_>| ran.fetch_add(1, Ordering::Relaxed);
    let error = RuntimeBuilder::new().queue_depth(0).threads(2).run(count).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    assert!(error.to_string().starts_with("cannot start thread "), "{error}");
    let error = on_threads().threads(0).run(count).unwrap_err();
    assert_eq!(error.to_string(), "invalid number of threads 0: must be 1 or more");
    assert_eq!(ran.into_inner(), 0);
}

#[test]
fn restricted_context_leaves_the_thread_pool_unrestricted() {
    // X13: a context's CPUs apply to its thread, while it runs.
    let before = cpus();
    let last = *before.last().unwrap();
    // More simultaneous calls than the pool may have threads from other tests.
    const CALLS: usize = 16;
    let all_began = Arc::new(Barrier::new(CALLS));
    let (inside, on_pool) = on_threads()
        .cpus([last])
        .run(|| {
            let calls = [(); CALLS].map(|()| {
                let all_began = Arc::clone(&all_began);
                spawn(move || {
                    unblock(move || {
                        all_began.wait();
                        cpus()
                    })
                })
            });
            (cpus(), calls.map(|call| call.join().unwrap().unwrap()))
        })
        .unwrap();
    assert_eq!(inside, [last]);
    assert!(on_pool.iter().all(|cpus| *cpus == before), "{on_pool:?}");
    assert_eq!(cpus(), before);
}

#[test]
fn pinned_threads_take_turns_over_the_cpus() {
    // X13: each thread has one CPU of those that the caller may use.
    let allowed = cpus();
    let seen = on_threads().threads(allowed.len() + 1).pinned(true).run(|_| cpus()).unwrap();
    let expected: Vec<_> = allowed.iter().cycle().take(allowed.len() + 1).map(|&cpu| vec![cpu]).collect();
    assert_eq!(seen, expected);
}

#[test]
fn unusable_cpus_are_an_error() {
    // X13: the error names the CPUs.
    for cpus in [vec![], vec![1023], vec![1 << 20]] {
        let error = on_threads().cpus(cpus.clone()).run(|| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with(&format!("cannot run a context on CPUs {cpus:?}")), "{error}");
    }
}
