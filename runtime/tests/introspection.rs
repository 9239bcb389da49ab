//! A context's self-description: dumps, deadlocks, stalls, unwound coroutines.

#![allow(unsafe_code)]
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{in_child, panic_in};
use coralio_runtime::{
    AioContext, CoMutex, CoQueue, Coroutine, Interest, IoThread, scope, shield, sleep, spawn, suspend, wait_readable,
    yield_now,
};

/// Spawns a coroutine named `name`.
fn named<T: 'static>(name: &'static str, f: impl FnOnce() -> T + 'static) -> coralio_runtime::JoinHandle<T> {
    Coroutine::builder().name(name).spawn(f).unwrap()
}

#[track_caller]
fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

#[test]
fn dump_shows_what_each_coroutine_waits_for() {
    // X11: a dump lists every coroutine with its name, state, wait, place and lock owner; and
    // handlers, timers and the rest
    AioContext::run(|ctx| {
        let lock = Rc::new(CoMutex::new(()));
        let queue = Rc::new(CoQueue::new());
        let holder = named("holder", {
            let lock = Rc::clone(&lock);
            move || {
                let _guard = lock.lock();
                suspend();
            }
        });
        let waiter = named("waiter", move || drop(lock.lock()));
        let queued = named("queued", move || drop(queue.wait(CoMutex::new(()).lock())));
        let sleeper = named("sleeper", || _ = sleep(Duration::from_secs(3600)));
        let fresh = Coroutine::builder().name("fresh").create(|| {}).unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let reader = named("reader", move || drop(wait_readable(&near)));
        let joiner = named("joiner", move || drop(waiter.join()));
        ctx.poll(false);
        let bh = ctx.new_bottom_half(|| {}).unwrap();
        bh.schedule();
        let dump = named("dumper", {
            let ctx = ctx.clone();
            move || ctx.dump().to_string()
        });
        ctx.poll(false);
        let text = dump.join().unwrap();
        assert_says(
            &text,
            &[
                "on the stack: thread > loop > 'dumper'",
                "'holder' waits for an enter or a wake",
                "'waiter' waits for CoMutex",
                "held by 'holder' since runtime/tests/introspection.rs:",
                "'queued' waits for a wake of CoQueue",
                "'sleeper' waits for the end of its sleep",
                "'fresh' not entered yet",
                "'reader' waits for descriptor ",
                "'joiner' waits for the end of 'waiter'",
                "created at runtime/tests/introspection.rs:",
                "bottom halves: 1, 0 due, 0 idle",
                "timers: 1 armed, next in 35",
            ],
        );
        drop((holder, queued, sleeper, fresh, far, reader, joiner));
    });
}

#[test]
fn another_thread_dumps_a_sleeping_loop() {
    // X11: another thread's dump of a sleeping loop does not wake the loop
    let worker = IoThread::start("sleepy").unwrap();
    let lock = Arc::new(CoMutex::new(()));
    let stuck = worker.context().spawn({
        let lock = Arc::clone(&lock);
        move || {
            let _guard = lock.lock();
            let _ = sleep(Duration::from_secs(3600));
        }
    });
    while lock.try_lock().is_some() {
        thread::yield_now();
    }
    // Whatever the loop's state meanwhile: asleep, or about to be.
    let text = worker.context().dump().to_string();
    assert_says(&text, &["context of thread 'sleepy'", "coroutines: 1", "waits for the end of its sleep"]);
    drop(stuck);
    worker.stop().unwrap();
}

#[inline(never)]
fn wait_deep_within() {
    let frame = 0;
    suspend();
    // Uses the frame: a call in tail position would be a jump, and the backtrace would lack this
    // function.
    std::hint::black_box(&frame);
}

#[test]
fn dump_has_backtraces_on_request() {
    // X11, C13: a dump with backtraces shows where each coroutine waits; from the home thread, and
    // from another
    AioContext::run(|ctx| {
        let deep = named("deep", wait_deep_within);
        ctx.poll(false);
        assert_says(&ctx.dump_with_backtraces().to_string(), &["'deep' waits", "wait_deep_within"]);
        assert!(!ctx.dump().to_string().contains("wait_deep_within"));
        let elsewhere = ctx.clone();
        let other = thread::spawn(move || elsewhere.dump_with_backtraces().to_string());
        while !other.is_finished() {
            ctx.poll(false);
        }
        assert_says(&other.join().unwrap(), &["'deep' waits", "wait_deep_within"]);
        drop(deep);
    });
}

/// This test in a child process, which prints "ready" once its state is set up.
struct Hung {
    child: Child,
    stdin: ChildStdin,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Hung {
    fn start(test: &str) -> Option<Hung> {
        if std::env::var_os("CORALIO_TEST_CHILD").is_some() {
            return None;
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("CORALIO_TEST_CHILD", "1")
            .env("RUST_BACKTRACE", "0")
            // One arena for all threads, so that they share its lock.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stderr) = (child.stdin.take().unwrap(), BufReader::new(child.stderr.take().unwrap()));
        Some(Hung { child, stdin, stderr })
    }

    /// Reads its standard error up to a line that contains `word`.
    fn until(&mut self, word: &str) -> String {
        let mut text = String::new();
        while !text.lines().last().is_some_and(|line| line.contains(word)) {
            assert_ne!(self.stderr.read_line(&mut text).unwrap(), 0, "the child ended without `{word}`:\n{text}");
        }
        text
    }

    fn signal(&self, signal: i32) {
        // SAFETY: takes numbers; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Lets it continue, and returns the rest of its output.
    fn release(mut self) -> String {
        // It may have ended by itself.
        let _ = self.stdin.write_all(b"\n");
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
        rest
    }
}

/// Blocks the thread, as misbehaving code does.
#[inline(never)]
fn block_the_thread() {
    let mut byte = [0];
    std::io::stdin().read_exact(&mut byte).unwrap();
}

#[test]
fn signal_dumps_a_hung_loop() {
    // X11: a chosen signal dumps all contexts, even one that hangs in a coroutine, and shows where
    // it hangs
    let Some(mut hung) = Hung::start("signal_dumps_a_hung_loop") else {
        AioContext::dump_on_signal(libc::SIGUSR1).unwrap();
        AioContext::run(|ctx| {
            let idler = named("idler", suspend);
            let hog = named("hog", || {
                eprintln!("ready");
                block_the_thread();
            });
            ctx.poll(false);
            hog.join().unwrap();
            idler.coroutine().wake();
            idler.join().unwrap();
        });
        return;
    };
    hung.until("ready");
    hung.signal(libc::SIGUSR1);
    let text = hung.until("block_the_thread");
    assert_says(
        &text,
        &["(busy in one iteration)", "thread > loop > 'hog'", "'idler' waits for an enter", "'hog' entered"],
    );
    hung.release();
}

#[test]
fn ending_context_is_dumped() {
    // X11, W5: a context is listed and can be dumped until its coroutines are unwound, even if one
    // of them hangs meanwhile
    struct Hangs;
    impl Drop for Hangs {
        fn drop(&mut self) {
            eprintln!("ready");
            block_the_thread();
        }
    }
    let Some(mut hung) = Hung::start("ending_context_is_dumped") else {
        AioContext::dump_on_signal(libc::SIGUSR1).unwrap();
        AioContext::run(|ctx| {
            drop(named("hangs", || {
                let _hangs = Hangs;
                suspend();
            }));
            drop(named("later", suspend));
            ctx.poll(false);
        });
        assert!(AioContext::running().is_empty());
        return;
    };
    hung.until("ready");
    hung.signal(libc::SIGUSR1);
    let text = hung.until("timers:");
    assert_says(
        &text,
        &["(ending)", "coroutines: 2", "thread > 'hangs'", "'hangs' entered", "'later' waits for an enter or a wake"],
    );
    // It may have been stopped before it blocks.
    hung.until("Hangs");
    hung.release();
}

#[test]
fn thread_inside_the_allocator_is_dumped() {
    // X11: a home thread stopped while it holds the allocator's lock is dumped all the same, and
    // continues
    let Some(mut hung) = Hung::start("thread_inside_the_allocator_is_dumped") else {
        AioContext::run(|ctx| {
            let elsewhere = ctx.clone();
            let allocates = named("allocates", move || {
                // Started here: 'allocates' is entered in every dump.
                let looker = thread::spawn(move || {
                    for _ in 0..5 {
                        let dump = elsewhere.dump().to_string();
                        assert_says(&dump, &["busy in one iteration", "'allocates' entered"]);
                    }
                });
                while !looker.is_finished() {
                    for size in (2000..60_000).step_by(400) {
                        // Sizes that bypass the thread cache; the blocks in between prevent merging
                        // of freed ones.
                        // SAFETY: each allocation is freed once.
                        unsafe {
                            let (block, between) = std::hint::black_box((libc::malloc(size), libc::malloc(1100)));
                            libc::free(block);
                            libc::free(between);
                        }
                    }
                    // The other thread needs the allocator too, whose lock is not fair.
                    thread::yield_now();
                }
                looker.join().unwrap();
            });
            allocates.join().unwrap();
        });
        eprintln!("looked");
        return;
    };
    hung.until("looked");
    hung.release();
}

#[test]
fn long_iteration_is_reported() {
    // X11: the stall report shows the running coroutine and its place, while the stall lasts, once;
    // a sleeping loop is not reported, nested or not
    let Some(mut hung) = Hung::start("long_iteration_is_reported") else {
        let limit = Duration::from_millis(20);
        AioContext::builder()
            .report_stalls_after(limit)
            .run(|ctx| {
                let napper = named("napper", move || sleep(4 * limit).unwrap());
                let nested = named("nested", {
                    let ctx = ctx.clone();
                    move || ctx.poll_while(|| !napper.is_finished())
                });
                nested.join().unwrap();
                eprintln!("rested");
                named("hog", block_the_thread).join().unwrap();
                Coroutine::builder().name("own").create(|| drop(spawn(|| {}))).unwrap().enter();
            })
            .unwrap();
        return;
    };
    assert!(!hung.until("rested").contains("stall"));
    let text = hung.until("block_the_thread");
    assert_says(&text, &["coralio: stall: the loop of thread", "over the limit of 20ms", "thread > loop > 'hog'"]);
    assert_eq!(text.matches("coralio: stall").count(), 1, "{text}");
    assert!(!hung.release().contains("stall"));
}

/// Starts a thread that keeps `value` and never ends.
fn keep_on_a_thread(value: impl Send + 'static) {
    thread::spawn(move || {
        let _value = value;
        loop {
            thread::park();
        }
    });
}

/// Runs `f` in a process that has no other thread.
fn without_threads(f: impl FnOnce()) {
    // SAFETY: the child runs `f` and exits.
    match unsafe { libc::fork() } {
        0 => {
            let done = catch_unwind(AssertUnwindSafe(f));
            // SAFETY: ends the process.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the kernel writes the status.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(status, 0);
        }
    }
}

fn deadlock(test: &str, run: impl FnOnce(&AioContext)) -> Option<String> {
    let Some(mut hung) = Hung::start(test) else {
        without_threads(|| {
            let done = AioContext::builder().report_deadlocks_after(Some(Duration::from_millis(1))).run(|ctx| {
                run(ctx);
                // Returns only if the loop has nothing to wait for.
                ctx.poll(true);
                eprintln!("looked");
            });
            done.unwrap();
        });
        return None;
    };
    let said = hung.until("looked");
    hung.release();
    Some(said)
}

#[test]
fn deadlock_of_two_locks_is_reported() {
    // S6: a deadlock is reported when nothing is left that could wake its coroutines, with each
    // one's wait, place and lock owner
    let said = deadlock("deadlock_of_two_locks_is_reported", |ctx| {
        let (a, b) = (Rc::new(CoMutex::new(())), Rc::new(CoMutex::new(())));
        for (name, first, second) in [("left", a.clone(), b.clone()), ("right", b, a)] {
            drop(named(name, move || {
                let _first = first.lock();
                yield_now();
                let _second = second.lock();
            }));
        }
        // Not stuck, since another thread might wake the joined one.
        let joined = named("joined", suspend);
        keep_on_a_thread(joined.coroutine().waker());
        drop(named("joiner", move || drop(joined.join())));
        ctx.poll(false);
        ctx.poll(false);
    });
    let Some(said) = said else { return };
    assert_says(
        &said,
        &[
            "deadlock: nothing can wake these 2 coroutines;",
            "'left' waits for CoMutex",
            "held by 'right' since runtime/tests/introspection.rs:",
            "'right' waits for CoMutex",
            "held by 'left' since",
        ],
    );
    assert!(!said.contains("'joiner'"), "{said}");
}

#[test]
fn deadlock_without_a_possible_waker_is_reported() {
    // S6: in a process without other threads, bare suspensions are stuck, and so are joins of them,
    // waiters of a leaked guard, and scopes of stuck coroutines
    let said = deadlock("deadlock_without_a_possible_waker_is_reported", |ctx| {
        let lost = named("lost", suspend);
        drop(named("joiner", move || drop(lost.join())));
        let lock = Rc::new(CoMutex::new(()));
        drop(named("leaker", {
            let lock = Rc::clone(&lock);
            move || std::mem::forget(lock.lock())
        }));
        drop(named("late", move || drop(lock.lock())));
        drop(named("parent", || scope(|s| drop(s.spawn(suspend)))));
        ctx.poll(false);
        ctx.poll(false);
    });
    let Some(said) = said else { return };
    assert_says(
        &said,
        &["these 5 coroutines", "'lost' waits", "'joiner' waits", "held by a finished coroutine", "'parent'"],
    );
}

#[test]
fn possible_wake_is_no_deadlock() {
    // S6: a coroutine that sleeps, that another thread could wake, or that waits for a descriptor,
    // is not reported; nor are those that wait for it
    let said = deadlock("possible_wake_is_no_deadlock", |ctx| {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let watch = ctx.add_fd_handler(near, Interest::Read, |_| {}).unwrap();
        drop(named("idler", suspend));
        ctx.poll(false);
        // With an fd handler there is no check: the loop sleeps until woken from elsewhere.
        let notify = ctx.clone();
        let other = thread::spawn(move || notify.notify());
        ctx.poll(true);
        other.join().unwrap();
        drop((watch, far));
        let held = Rc::new(CoMutex::new(()));
        let lock = Rc::clone(&held);
        let sleeper = named("sleeper", move || {
            let _guard = lock.lock();
            suspend();
        });
        keep_on_a_thread(sleeper.coroutine().waker());
        drop(named("waiter", move || drop(held.lock())));
        ctx.poll(false);
    });
    let Some(said) = said else { return };
    assert!(!said.contains("deadlock"), "{said}");
}

#[test]
fn relocking_an_owned_lock_panics() {
    // S6: a coroutine that locks a CoMutex twice gets an error that names the owner, and where it
    // took the lock
    AioContext::run(|_| {
        let said = panic_in(named("greedy", || {
            let lock = CoMutex::new(());
            let _first = lock.lock();
            drop(lock.lock());
        }));
        assert_says(
            &said,
            &["'greedy' locks a CoMutex that it already holds, taken at runtime/tests/introspection.rs:"],
        );
    });
}

#[test]
fn report_names_unwound_coroutines() {
    // W5: a context that ends with live coroutines reports their number and names, unless
    // configured not to
    let Some(child) = in_child("report_names_unwound_coroutines") else {
        let two = |builder: coralio_runtime::ContextBuilder, name: &'static str| {
            builder
                .run(|ctx| {
                    drop(named(name, suspend));
                    drop(spawn(suspend));
                    drop(spawn(|| {}));
                    ctx.poll(false);
                })
                .unwrap();
        };
        two(AioContext::builder(), "loud");
        two(AioContext::builder().report_unwound(false), "quiet");
        AioContext::run(|_| drop(named("single", suspend)));
        AioContext::run(|ctx| {
            let shielded = Coroutine::builder()
                .name("shielded")
                .spawn(|| {
                    shield(|| {
                        loop {
                            suspend()
                        }
                    })
                })
                .unwrap();
            ctx.poll(false);
            shielded.cancel();
        });
        return;
    };
    let said = String::from_utf8_lossy(&child.stderr);
    assert_says(
        &said,
        &["context ended with 2 coroutines still alive, unwinding them: 'loud', #2; join or cancel them first"],
    );
    assert_says(&said, &["ended with 1 coroutine still alive, unwinding it: 'single'; join or cancel it first"]);
    assert_says(
        &said,
        &["ended with 1 coroutine still alive, unwinding it: 'shielded'; join it after the cancellation"],
    );
    assert!(!said.contains("'quiet'"), "{said}");
}
