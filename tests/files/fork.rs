//! A process that forks with requests in flight, or pending: they remain the parent's, on each
//! backend.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, JoinHandle, RuntimeBuilder, spawn, unblock, yield_now};

use crate::common;
use crate::{Temp, disk, in_child, on_each_backend, pattern};

const LEN: usize = 256 * 1024;

/// Returns whether `f` panics with a message about the fork.
fn is_refused(f: impl FnOnce()) -> bool {
    let payload = catch_unwind(AssertUnwindSafe(f)).err();
    payload.is_some_and(|payload| payload.downcast_ref::<String>().is_some_and(|text| text.contains("after fork")))
}

/// Checks what a child can do: files are closed; I/O, questions about files, blocking calls and
/// new contexts are refused.
fn child(file: Rc<File>) -> bool {
    let no_io = is_refused(|| _ = file.read_at(&mut [0; 512], 0)) && is_refused(|| _ = file.sync_all());
    let no_metadata = is_refused(|| _ = file.len());
    let no_call = unblock(|| 7).is_err_and(|error| error.to_string().contains("after fork"));
    drop(file);
    no_io && no_metadata && no_call && is_refused(|| coralio::run(|| ()))
}

/// Ends the child without running any of its parent's code.
fn end_child(good: bool) -> ! {
    // SAFETY: takes no memory and runs no handlers.
    unsafe { libc::_exit(i32::from(!good)) }
}

fn readers(file: &Rc<File>) -> Vec<JoinHandle<io::Result<AlignedBuf>>> {
    let read = |file: &File| {
        let mut buf = AlignedBuf::new(LEN, 4096);
        file.read_exact_at(&mut buf, 0).map(|()| buf)
    };
    (0..64)
        .map(|_| {
            let file = Rc::clone(file);
            spawn(move || read(&file))
        })
        .collect()
}

/// Forks. Returns true in the child, and false in the parent once the child has exited
/// successfully.
fn fork() -> bool {
    // SAFETY: the child runs code of its own thread only, and exits soon.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        return true;
    }
    let mut status = 0;
    // SAFETY: the argument has room for one status.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0, "the child");
    false
}

#[test]
fn fork_during_requests_is_harmless() {
    // E13, C7: a child has inert copies of the requests, and the parent gets its data
    if in_child("fork::fork_during_requests_is_harmless") {
        return; // alone in a process, so that no other test holds a lock at the fork
    }
    let content = pattern(5, LEN);
    let temp = Temp::with(&disk(), &content);
    on_each_backend(|| {
        let file = Rc::new(temp.open(Direct::Auto));
        let readers = readers(&file);
        yield_now();
        yield_now();
        if fork() {
            end_child(child(file));
        }
        for reader in readers {
            assert!(reader.join().unwrap().unwrap()[..] == content);
        }
    });
}

#[test]
fn child_of_an_ended_run_does_not_wait_for_the_parents_threads() {
    // C7, E14: a child that is forked outside a context and runs one of its own has none of the
    // parent's pool threads: work for them is refused
    if in_child("fork::child_of_an_ended_run_does_not_wait_for_the_parents_threads") {
        return;
    }
    let on_threads = || RuntimeBuilder::new().backend(BackendKind::Threads);
    on_threads().run(|| unblock(|| ())).unwrap().unwrap();
    if fork() {
        let is_refused = |result: io::Result<()>| result.is_err_and(|error| error.to_string().contains("after fork"));
        let call = coralio::context::AioContext::builder().run_coroutine(|_| unblock(|| ()));
        end_child(is_refused(call.unwrap()) && is_refused(on_threads().run(|| ())));
    }
}

#[test]
fn child_does_not_submit_the_parents_batch() {
    // E13, C7: a child whose coroutine ends during an iteration does not submit at the end of that
    // iteration; it would submit the parent's writes a second time, from a thread of the child
    if in_child("fork::child_does_not_submit_the_parents_batch") {
        return;
    }
    let parent = std::process::id();
    for backend in [BackendKind::Aio, BackendKind::Uring, BackendKind::Threads] {
        let temp = Temp::with(&disk(), &[]);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            RuntimeBuilder::new().backend(backend).run(|| {
                let file = Rc::new(temp.open(Direct::Never));
                let writer = spawn({
                    let file = Rc::clone(&file);
                    move || file.write_at(&[1; 4096], 0)
                });
                let forks = spawn(|| {
                    assert_eq!(coralio::driver::stats().pending, 1, "the plug holds the request back");
                    fork()
                });
                assert!(!forks.join().unwrap());
                assert!(
                    temp.content().is_empty(),
                    "the parent has not submitted the request yet, and no other process may"
                );
                writer.join().unwrap().unwrap();
                assert_eq!(temp.content(), [1; 4096]);
            })
        }));
        match ran {
            Ok(Err(error)) if common::is_refused(backend, &error) => {}
            Ok(ran) => ran.unwrap(),
            // The loop's `join` detects that it runs in a child.
            Err(payload) if std::process::id() != parent => {
                let refused = payload
                    .downcast_ref::<String>()
                    .is_some_and(|text| text.contains("joining a coroutine after fork"));
                let threads = fs::read_dir("/proc/self/task").unwrap().count();
                end_child(refused && threads == 1 && temp.content().is_empty());
            }
            Err(payload) => resume_unwind(payload),
        }
    }
}

#[test]
fn child_does_not_reap_the_parents_completions() {
    // E13, C7, C9: a child whose coroutine ends during a reap does not reap further: the next
    // completion on the ring, which is shared memory, belongs to the parent, and so does the
    // coroutine that waits for it
    if in_child("fork::child_does_not_reap_the_parents_completions") {
        return;
    }
    let parent = std::process::id();
    let content = pattern(6, 4096);
    let temp = Temp::with(&disk(), &content);
    for backend in [BackendKind::Aio, BackendKind::Uring, BackendKind::Threads] {
        let ran = catch_unwind(AssertUnwindSafe(|| {
            RuntimeBuilder::new().backend(backend).run(|| {
                // In the page cache: both complete within submit.
                let file = Rc::new(temp.open(Direct::Never));
                let readers = [true, false].map(|forks| {
                    let (file, content) = (Rc::clone(&file), content.clone());
                    spawn(move || {
                        let mut buf = [0; 4096];
                        file.read_exact_at(&mut buf, 0).unwrap();
                        assert!(buf[..] == content);
                        if std::process::id() != parent {
                            end_child(false);
                        }
                        forks && fork()
                    })
                });
                readers.into_iter().for_each(|reader| assert!(!reader.join().unwrap()));
            })
        }));
        match ran {
            Ok(Err(error)) if common::is_refused(backend, &error) => {}
            Ok(ran) => ran.unwrap(),
            Err(payload) if std::process::id() != parent => {
                let text = payload.downcast_ref::<String>();
                end_child(text.is_some_and(|text| text.contains("joining a coroutine after fork")));
            }
            Err(payload) => resume_unwind(payload),
        }
    }
}

#[test]
fn child_of_another_threads_fork_allocates_buffers() {
    // E13: a process forked outside any context, while other threads allocate and free buffers, can
    // do so too
    /// Ends the threads, also after a failure.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(AlignedBuf::new(64 << 10, 4096));
                }
            });
        }
        let _stop = Stop(&stop);
        for _ in 0..common::scaled(200) {
            if fork() {
                // SAFETY: sets a timer, which ends a child that hangs.
                unsafe { libc::alarm(20) };
                let buf = AlignedBuf::new(4096, 4096);
                end_child(buf.iter().all(|&byte| byte == 0));
            }
        }
    });
}
