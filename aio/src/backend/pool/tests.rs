//! The number of threads, and which of them are woken. No test depends on the clock: threads are
//! held by the work they run, starts by a hook.

use super::*;
use crate::backend::conformance::in_forked_child;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ThreadId;

type Job = Box<dyn FnOnce() + Send>;

fn kind(max_threads: usize, idle_timeout: Duration) -> PoolConfig {
    PoolConfig { name: "coralio-test", max_threads, stack_size: 256 * 1024, idle_timeout, leaves_signals: true }
}

/// Creates a separate pool. Kept, so that a leak checker does not report it.
pub(crate) fn pool_of<W: Work>(max_threads: usize, idle_timeout: Duration) -> &'static Pool<W> {
    leak(Pool::new(kind(max_threads, idle_timeout)))
}

/// Creates a pool whose only thread starts when the test calls [`serve`], after work was queued.
pub(crate) fn idle_pool<W: Work>() -> &'static Pool<W> {
    let kind = kind(1, Duration::MAX);
    leak(Pool { start: |_| Ok(()), ..Pool::new(kind) })
}

fn leak<W: Work>(pool: Pool<W>) -> &'static Pool<W> {
    static POOLS: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let pool: &'static Pool<W> = Box::leak(Box::new(pool));
    POOLS.lock().push(ptr::from_ref(pool).expose_provenance());
    pool
}

/// Starts the thread that the pool has asked for.
pub(crate) fn serve<W: Work>(pool: &'static Pool<W>) {
    thread::spawn(|| pool.serve());
}

/// Returns the numbers of live and of idle threads.
fn counts<W: Work>(pool: &Pool<W>) -> (usize, usize) {
    let state = pool.state.lock();
    (state.live, state.idle.len())
}

fn wait_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}

fn put(pool: &'static Pool<Job>, jobs: impl IntoIterator<Item = Job>) {
    pool.put(jobs.into_iter());
}

/// Jobs that report their thread, and block until released.
struct Held {
    here: Receiver<ThreadId>,
    go: Vec<Sender<()>>,
}

fn hold(pool: &'static Pool<Job>, count: usize) -> Held {
    let (arrive, here) = channel();
    let (go, jobs): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (go, wait) = channel::<()>();
            let arrive = arrive.clone();
            let job: Job = Box::new(move || {
                arrive.send(thread::current().id()).unwrap();
                let _ = wait.recv();
            });
            (go, job)
        })
        .unzip();
    put(pool, jobs);
    Held { here, go }
}

#[test]
fn pool_has_as_many_threads_as_block_simultaneously() {
    // E16: one thread per blocking job, up to the limit; further jobs are queued, and run later
    let pool = pool_of(5, Duration::MAX);
    let three = hold(pool, 3);
    let mut threads: Vec<_> = three.here.iter().take(3).collect();
    wait_until(|| counts(pool) == (3, 0));
    let nine = hold(pool, 9);
    threads.extend(nine.here.iter().take(2));
    threads.sort_by_key(|id| format!("{id:?}"));
    threads.dedup();
    assert_eq!(threads.len(), 5, "each job on its own thread");
    assert_eq!(counts(pool), (5, 0));
    assert!(nine.here.try_recv().is_err(), "no sixth thread");
    drop(three);
    drop(nine.go);
    assert_eq!(nine.here.iter().count(), 7);
    wait_until(|| counts(pool) == (5, 5));
}

#[test]
fn batch_starts_one_thread() {
    // E16: `put` pays for one wake-up, or none while a thread is on its way; that thread then wakes
    // the next
    static STARTS: AtomicUsize = AtomicUsize::new(0);
    let kind = kind(8, Duration::MAX);
    let start = |_: &'static Pool<Job>| {
        STARTS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let pool = leak(Pool { start, ..Pool::new(kind) });
    let held = hold(pool, 3);
    put(pool, [Box::new(|| {}) as Job]);
    assert_eq!(STARTS.load(Ordering::Relaxed), 1);
    for started in 1..=3 {
        serve(pool);
        held.here.recv().unwrap();
        assert_eq!(STARTS.load(Ordering::Relaxed), started + 1, "jobs are queued");
    }
    drop(held);
    wait_until(|| counts(pool) == (4, 3));
    assert_eq!(STARTS.load(Ordering::Relaxed), 4);
}

#[test]
fn idle_threads_end() {
    // E16: the pool shrinks to nothing, and grows again
    let pool = pool_of(4, Duration::ZERO);
    for _ in 0..20 {
        let held = hold(pool, 4);
        assert_eq!(held.here.iter().take(4).count(), 4);
        assert_eq!(counts(pool), (4, 0));
        drop(held);
        wait_until(|| counts(pool) == (0, 0));
    }
}

#[test]
fn idle_thread_is_reused() {
    // E16: the thread that became idle last is woken first, so that the others time out
    let pool = pool_of(4, Duration::MAX);
    let held = hold(pool, 3);
    let threads: Vec<_> = held.here.iter().take(3).collect();
    for (idle, go) in held.go.into_iter().enumerate() {
        drop(go);
        wait_until(|| counts(pool) == (3, idle + 1));
    }
    let last = pool.state.lock().idle.last().unwrap().id();
    assert!(threads.contains(&last));
    for _ in 0..50 {
        let held = hold(pool, 1);
        assert_eq!(held.here.recv().unwrap(), last);
        drop(held);
        wait_until(|| counts(pool) == (3, 3));
    }
}

#[test]
fn caller_runs_the_work_if_no_thread_starts() {
    // E14: if no thread can be started, no work is lost and no caller waits forever
    static REFUSES: AtomicBool = AtomicBool::new(true);
    let kind = kind(8, Duration::MAX);
    let start = |pool: &'static Pool<Job>| {
        if REFUSES.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        serve(pool);
        Ok(())
    };
    let pool = leak(Pool { start, ..Pool::new(kind) });
    let (done, dones) = channel();
    let jobs = || -> Vec<Job> {
        let job = |number| {
            let done = done.clone();
            Box::new(move || done.send((number, thread::current().id())).unwrap()) as Job
        };
        (0..10).map(job).collect()
    };
    put(pool, jobs());
    let me = thread::current().id();
    assert_eq!(dones.try_iter().collect::<Vec<_>>(), (0..10).map(|number| (number, me)).collect::<Vec<_>>());
    assert_eq!(counts(pool), (0, 0));
    // With a live thread, that thread does the work.
    REFUSES.store(false, Ordering::Relaxed);
    let held = hold(pool, 1);
    held.here.recv().unwrap();
    REFUSES.store(true, Ordering::Relaxed);
    put(pool, jobs());
    assert!(dones.try_recv().is_err());
    drop(held);
    assert!(dones.iter().take(10).all(|(_, thread)| thread != me));
    wait_until(|| counts(pool) == (1, 1));
}

#[test]
fn failed_thread_start_leaves_no_thread_idle() {
    // E2: *somebody comes*. During a start that fails, a thread became idle and more work was
    // queued, relying on the new thread
    static STARTED: AtomicBool = AtomicBool::new(false);
    static HELD: Mutex<Option<Held>> = Mutex::new(None);
    let kind = kind(8, Duration::MAX);
    let start = |pool: &'static Pool<Job>| {
        if !STARTED.swap(true, Ordering::Relaxed) {
            serve(pool);
            return Ok(());
        }
        drop(HELD.lock().take());
        wait_until(|| counts(pool) == (2, 1));
        put(pool, [Box::new(|| {}) as Job]);
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    };
    let pool = leak(Pool { start, ..Pool::new(kind) });
    let held = hold(pool, 1);
    held.here.recv().unwrap();
    *HELD.lock() = Some(held);
    put(pool, [Box::new(|| {}) as Job]);
    {
        let state = pool.state.lock();
        assert!(state.queue.is_empty() || state.waking > 0, "jobs are left without a thread");
    }
    wait_until(|| counts(pool) == (1, 1));
}

#[test]
fn queued_work_always_has_a_thread() {
    // E16, *somebody comes*: several callers, and threads that end all the time
    let pool = pool_of(3, Duration::ZERO);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    let job = || {
        Box::new(|| {
            DONE.fetch_add(1, Ordering::Relaxed);
        }) as Job
    };
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 1..=2000 {
                    put(pool, (0..round % 4).map(|_| job()));
                }
            });
        }
    });
    wait_until(|| DONE.load(Ordering::Relaxed) == 2 * 500 * 6);
    wait_until(|| counts(pool) == (0, 0));
}

#[test]
fn pool_threads_block_signals() {
    // E14: a program's handler does not run on a worker's stack; synchronous faults are delivered
    let pool = pool_of(1, Duration::ZERO);
    let (tell, told) = channel();
    let job: Job = Box::new(move || {
        // SAFETY: plain data, filled by the call.
        let blocked = unsafe {
            let mut set: libc::sigset_t = mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut set);
            [libc::SIGUSR1, libc::SIGURG, libc::SIGTERM, libc::SIGSEGV, libc::SIGBUS]
                .map(|signal| libc::sigismember(&set, signal) == 1)
        };
        tell.send(blocked).unwrap();
    });
    put(pool, [job]);
    assert_eq!(told.recv().unwrap(), [true, true, true, false, false]);
}

#[test]
fn forked_child_is_refused() {
    // E14: a forked child has none of its parent's threads; it gets an error, and does not wait for
    // them forever
    let pool = pool_of::<Job>(1, Duration::MAX);
    pool.claim().unwrap();
    let in_child = || {
        let error = pool.claim().unwrap_err();
        i32::from(error.kind() != io::ErrorKind::Unsupported || !error.to_string().contains("exec or _exit"))
    };
    assert_eq!(in_forked_child(in_child), 0);
    pool.claim().unwrap();
}
