//! The peer: tokio's current-thread runtime. Its tasks have no stacks; a waiting task is a state
//! machine.

use std::hint::black_box;
use std::sync::Arc;

use ::tokio::runtime::Builder;
use ::tokio::spawn;
use ::tokio::sync::Mutex;
use ::tokio::task::yield_now;

use crate::measure::time;

/// Runs `tasks` tasks, each of which does its share of `times`.
fn share<F>(tasks: u64, times: u64, share: impl Fn(u64) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = Builder::new_current_thread().build().expect("without drivers it needs no descriptors");
    time(times, || {
        runtime.block_on(async {
            let tasks: Vec<_> = (0..tasks).map(|_| spawn(share(times / tasks))).collect();
            for task in tasks {
                task.await.expect("no case panics");
            }
        });
    })
}

/// Spawns a task, and joins it from another one.
pub(crate) fn spawn_and_join_do_not_allocate(times: u64) -> f64 {
    share(1, times, |times| async move {
        for caught in 0..times {
            drop(black_box(spawn(async move { caught }).await));
        }
    })
}

/// Two tasks yield to each other.
pub(crate) fn yield_two(times: u64) -> f64 {
    share(2, times, |times| async move {
        for _ in 0..times {
            yield_now().await;
        }
    })
}

/// Locks and unlocks an uncontended mutex.
pub(crate) fn mutex(times: u64) -> f64 {
    share(1, times, |times| async move {
        let mutex = Mutex::new(0);
        for _ in 0..times {
            *black_box(&mutex).lock().await += 1;
        }
    })
}

/// Four tasks contend for one lock, and yield while holding it.
pub(crate) fn mutex_contended(times: u64) -> f64 {
    let mutex = Arc::new(Mutex::new(0));
    share(4, times, |times| {
        let mutex = Arc::clone(&mutex);
        async move {
            for _ in 0..times {
                let mut guard = mutex.lock().await;
                *guard += 1;
                yield_now().await;
            }
        }
    })
}
