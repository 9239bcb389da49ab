//! Stack overflow, and unrelated faults. Each in a child process, which the fault ends.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr;

use crate::common::{assert_aborted, in_child};
use coralio_runtime::{AioContext, Coroutine, spawn, suspend};

/// Uses more stack than there is.
fn deep(depth: usize) -> usize {
    let frame = black_box([depth; 64]);
    if black_box(depth) == usize::MAX { 0 } else { deep(depth + 1) + black_box(frame)[7] }
}

/// A fault unrelated to stacks.
fn stray() {
    // SAFETY: undefined but for black_box: page 0 is never mapped, so the process ends here.
    unsafe { black_box(ptr::without_provenance_mut::<u8>(16)).write_volatile(1) };
}

fn said(child: &Output) -> String {
    String::from_utf8_lossy(&child.stderr).into_owned()
}

#[test]
fn stack_overflow_names_the_coroutine() {
    // C11: a stack overflow ends the process with a message that names the coroutine, its origin,
    // its stack size and the remedy
    match in_child("overflow::stack_overflow_names_the_coroutine") {
        Some(child) => {
            assert_aborted(
                &child,
                "coralio: stack overflow: coroutine 'deep' (created at runtime/tests/rules/overflow.rs:",
            );
            for part in
                ["exceeded its stack of 65536 bytes", "`CoroutineBuilder::stack_size`", "`ContextBuilder::stack_size`"]
            {
                assert!(said(&child).contains(part), "{part}: {}", said(&child));
            }
        }
        None => AioContext::run(|_| {
            let task = Coroutine::builder().name("deep").stack_size(64 * 1024).spawn(|| deep(0));
            task.unwrap().join().unwrap();
        }),
    }
}

#[test]
fn overflow_of_main_names_the_setting_of_the_context() {
    // C11: the message for the first coroutine, which no user's builder created, names the
    // context's setting
    match in_child("overflow::overflow_of_main_names_the_setting_of_the_context") {
        Some(child) => {
            assert_aborted(&child, "coralio: stack overflow: coroutine 'main' (created at");
            assert!(
                said(&child).contains("`ContextBuilder::stack_size` or `RuntimeBuilder::stack_size`"),
                "{}",
                said(&child)
            );
            assert!(!said(&child).contains("`CoroutineBuilder::stack_size`"), "{}", said(&child));
        }
        None => _ = AioContext::builder().stack_size(64 * 1024).run_coroutine(|_| deep(0)).unwrap(),
    }
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer does not probe large frames")]
fn large_frame_hits_the_guard_page() {
    // C11: a frame larger than the guard page does not step over it: no memory of another stack is
    // touched
    match in_child("overflow::large_frame_hits_the_guard_page") {
        Some(child) => assert_aborted(&child, "coroutine #2 (created at"),
        None => AioContext::run(|_| {
            // Its stack is at lower addresses.
            Coroutine::new(suspend).enter();
            Coroutine::new(|| {
                black_box([7u8; 200 * 1024]);
            })
            .enter();
        }),
    }
}

#[test]
fn overflow_above_a_loop_iteration_is_reported() {
    // C11: code that the loop runs on a coroutine's stack overflows that stack, although no
    // coroutine is running
    match in_child("overflow::overflow_above_a_loop_iteration_is_reported") {
        Some(child) => assert_aborted(&child, "coroutine 'polls' (created at"),
        None => AioContext::run(|ctx| {
            let ctx = ctx.clone();
            let polls = Coroutine::builder().name("polls").create(move || {
                ctx.schedule_oneshot(|| {
                    deep(0);
                })
                .unwrap();
                ctx.poll(false);
            });
            polls.unwrap().enter();
        }),
    }
}

#[test]
fn overflow_without_an_alternate_stack_is_reported() {
    // C11: overflow is also detected on a thread that std did not create
    extern "C" fn foreign(_: *mut libc::c_void) -> *mut libc::c_void {
        AioContext::run(|_| spawn(|| deep(0)).join().unwrap());
        ptr::null_mut()
    }
    match in_child("overflow::overflow_without_an_alternate_stack_is_reported") {
        Some(child) => assert_aborted(&child, "coroutine #1 (created at"),
        // SAFETY: the thread is joined, and its argument is null.
        None => unsafe {
            let mut thread: libc::pthread_t = 0;
            assert_eq!(libc::pthread_create(&mut thread, ptr::null(), foreign, ptr::null_mut()), 0);
            libc::pthread_join(thread, ptr::null_mut());
        },
    }
}

#[test]
fn alternate_stack_is_restored() {
    // C11: a context leaves the thread's alternate stack as it found it
    fn alternate() -> (usize, usize, i32) {
        // SAFETY: all zeroes is a valid stack_t, and the call writes it.
        unsafe {
            let mut stack: libc::stack_t = std::mem::zeroed();
            assert_eq!(libc::sigaltstack(ptr::null(), &mut stack), 0);
            (stack.ss_sp.addr(), stack.ss_size, stack.ss_flags)
        }
    }
    std::thread::spawn(|| {
        let of_std = alternate();
        assert_eq!(of_std.2 & libc::SS_DISABLE, 0);
        AioContext::run(|_| {
            // An alternate stack too small for the processor's registers and our handler is
            // replaced meanwhile.
            // SAFETY: takes no pointers.
            let enough = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize + 4096;
            assert!(of_std.1 < enough || alternate() == of_std);
        });
        assert_eq!(alternate(), of_std);
        // SAFETY: no signal is being handled on it now. std's is restored before the thread ends.
        unsafe {
            let mut none: libc::stack_t = std::mem::zeroed();
            none.ss_flags = libc::SS_DISABLE;
            let mut before = none;
            assert_eq!(libc::sigaltstack(&none, &mut before), 0);
            AioContext::run(|_| assert_eq!(alternate().2, 0));
            assert_eq!(alternate().2, libc::SS_DISABLE);
            assert_eq!(libc::sigaltstack(&before, ptr::null_mut()), 0);
        }
    })
    .join()
    .unwrap();
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer reports it")]
fn unrelated_fault_is_not_reported_as_overflow() {
    // C11: an unrelated fault in a coroutine is a plain SIGSEGV, without a message
    match in_child("overflow::unrelated_fault_is_not_reported_as_overflow") {
        Some(child) => {
            assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{}", said(&child));
            assert!(!said(&child).contains("coralio"), "{}", said(&child));
        }
        None => AioContext::run(|_| spawn(stray).join().unwrap()),
    }
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer reports it")]
fn overflow_of_the_threads_own_stack_is_reported_by_std() {
    // C11: std's own report of a thread's stack overflow still works in a context
    match in_child("overflow::overflow_of_the_threads_own_stack_is_reported_by_std") {
        Some(child) => {
            assert_aborted(&child, "has overflowed its stack");
            assert!(!said(&child).contains("coralio"), "{}", said(&child));
        }
        None => drop(AioContext::run(|_| deep(0))),
    }
}

extern "C" fn leave_with_code(signal: libc::c_int) {
    // SAFETY: ends the process immediately.
    unsafe { libc::_exit(signal + 30) };
}

#[test]
fn other_faults_reach_the_users_handler() {
    // C11: a handler that the program installed before gets every other fault
    match in_child("overflow::other_faults_reach_the_users_handler") {
        Some(child) => assert_eq!(child.status.code(), Some(libc::SIGSEGV + 30), "{}", said(&child)),
        None => {
            let handler: extern "C" fn(libc::c_int) = leave_with_code;
            // SAFETY: the handler calls nothing but _exit.
            unsafe { libc::signal(libc::SIGSEGV, handler as usize) };
            AioContext::run(|_| spawn(stray).join().unwrap());
        }
    }
}

#[test]
fn sent_signal_ends_the_process() {
    // C11: a SIGSEGV that was sent, not raised by a fault, keeps its default effect
    match in_child("overflow::sent_signal_ends_the_process") {
        Some(child) => assert_eq!(child.status.signal(), Some(libc::SIGSEGV), "{}", said(&child)),
        None => {
            // SAFETY: the default action, and a signal to this thread.
            unsafe {
                libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                AioContext::run(|_| libc::raise(libc::SIGSEGV));
            }
        }
    }
}
