//! Backend selection after a refusal, and its report.

use std::fs::File;
use std::io::ErrorKind;

use coralio::driver::{BackendKind, DEFAULT_QUEUE_DEPTH, SelectedBackend, selected_backend};
use coralio::engine::linux_aio::LinuxAio;
use coralio::task::MIN_STACK_SIZE;
use coralio::{RuntimeBuilder, spawn};

use crate::common::{has, skipped};
use crate::{chosen, forbid, in_child, in_child_with, io_works};

const AIO: libc::c_long = libc::SYS_io_setup;
const URING: libc::c_long = libc::SYS_io_uring_setup;

/// Returns the backend that `Auto` selects, after checking that I/O works on it.
fn choice() -> SelectedBackend {
    let run = || {
        io_works().unwrap();
        chosen()
    };
    let chosen = RuntimeBuilder::new().run(run).unwrap();
    println!("{chosen}");
    assert_eq!(RuntimeBuilder::new().run(run).unwrap().backend(), chosen.backend(), "the same again");
    chosen
}

/// Asserts that this backend was selected, and that a reason is reported for each one tried before
/// it.
fn assert_chosen(chosen: &SelectedBackend, backend: BackendKind, why: &[(BackendKind, &str)]) {
    let shown = chosen.to_string();
    assert_eq!(chosen.backend(), backend, "{shown}");
    let refused: Vec<_> = chosen.rejected().collect();
    assert_eq!(refused.len(), why.len(), "{shown}");
    for ((backend, error), (expected, words)) in refused.into_iter().zip(why) {
        assert_eq!(backend, *expected);
        assert!(error.to_string().contains(words), "no `{words}` in: {error}");
        assert!(shown.contains(words), "no `{words}` in: {shown}");
    }
}

/// Returns whether this machine has io_uring, and enough locked memory for the rings of all tests
/// that run at the same time, which share the limit.
pub(crate) fn has_uring() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes the one structure.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) }, 0);
    if limit.rlim_cur < 1 << 20 {
        skipped("the limit on locked memory is below 1 MiB, too little for io_uring in several tests at the same time");
        return false;
    }
    has(BackendKind::Uring, 1)
}

#[test]
fn io_uring_is_selected_on_an_unrestricted_machine() {
    // E16: `Auto` selects io_uring first and reports a short reason
    if !has_uring() {
        return;
    }
    let chosen = choice();
    assert_chosen(&chosen, BackendKind::Uring, &[]);
    assert_eq!(chosen.to_string(), "io_uring");
}

#[test]
fn native_aio_is_selected_if_io_uring_is_forbidden() {
    // E14, E16: `Auto` falls back when a seccomp filter returns EPERM, as in many containers
    if !has(BackendKind::Aio, 1) || in_child("refused::native_aio_is_selected_if_io_uring_is_forbidden") {
        return;
    }
    forbid(&[(URING, libc::EPERM)]);
    let chosen = choice();
    assert_chosen(&chosen, BackendKind::Aio, &[(BackendKind::Uring, "io_uring is forbidden")]);
    let shown = "native AIO, with threads for requests that would block it: io_uring was refused: ";
    assert!(chosen.to_string().starts_with(shown), "{chosen}");
}

/// Asserts that `Auto` falls back to threads when native AIO is refused in this way, and io_uring is
/// forbidden.
fn without_aio(test: &str, aio: (libc::c_long, i32), words: &str) {
    without_both(test, aio, (URING, libc::EPERM), [words, "io_uring is forbidden"]);
}

#[test]
fn unusable_aio_context_is_rejected() {
    // E14, E16: a filter that forbids only io_submit is detected before the first request
    let call = (libc::SYS_io_submit, libc::EPERM);
    without_aio("refused::unusable_aio_context_is_rejected", call, "native AIO is forbidden");
}

#[test]
fn outdated_aio_is_rejected() {
    // E14, E16: a poll request that fails with EINVAL, as before Linux 4.18, rules out native AIO
    if has(BackendKind::Aio, 1) {
        without_aio("refused::outdated_aio_is_rejected", (libc::SYS_io_submit, libc::EINVAL), "Linux 4.18 or later");
    }
}

#[test]
fn exhausted_aio_max_nr_rejects_aio() {
    // E14, E16: `Auto` falls back when fs.aio-max-nr is really exhausted; only enough is used that
    // the deepest queue no longer fits, since all processes share the limit
    const DEEPEST: u32 = 32768;
    if !has(BackendKind::Aio, 1) || in_child("refused::exhausted_aio_max_nr_rejects_aio") {
        return;
    }
    // Two of these at a time would free each other's room.
    let alone = File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/aio-max-nr")).unwrap();
    alone.lock().unwrap();
    forbid(&[(URING, libc::EPERM)]);
    let mut held = Vec::new();
    while let Ok(backend) = LinuxAio::new(DEEPEST) {
        if held.len() == 100 {
            return println!("skipped: fs.aio-max-nr is too large to be used up");
        }
        held.push(backend);
    }
    let deep = RuntimeBuilder::new().queue_depth(DEEPEST).run(chosen).unwrap();
    assert_eq!(deep.backend(), BackendKind::Threads, "{deep}");
    assert!(deep.to_string().contains("raise the limit as root: sysctl fs.aio-max-nr="), "{deep}");
    assert_eq!(
        RuntimeBuilder::new().queue_depth(32).run(chosen).unwrap().backend(),
        BackendKind::Aio,
        "there is room for this"
    );
}

/// Asserts that `Auto` falls back to threads when both backends are refused.
fn without_both(test: &str, aio: (libc::c_long, i32), uring: (libc::c_long, i32), [aio_words, uring_words]: [&str; 2]) {
    if in_child(test) {
        return;
    }
    forbid(&[aio, uring]);
    let why = [(BackendKind::Uring, uring_words), (BackendKind::Aio, aio_words)];
    assert_chosen(&choice(), BackendKind::Threads, &why);
    for (backend, words) in why {
        // Without its own trial, native AIO is found unusable by the first request only.
        if let Err(named) = RuntimeBuilder::new().backend(backend).run(|| ()) {
            assert!(named.to_string().contains(words), "requested by name, a refusal is an error: {named}");
        } else {
            assert_eq!(aio.0, libc::SYS_io_submit);
        }
    }
}

#[test]
fn threads_are_selected_in_a_container() {
    // E14, E16: `Auto` falls back to threads when both interfaces are forbidden
    let words = ["native AIO is forbidden", "io_uring is forbidden"];
    without_both("refused::threads_are_selected_in_a_container", (AIO, libc::EPERM), (URING, libc::EPERM), words);
}

#[test]
fn threads_are_selected_on_a_kernel_without_aio() {
    // E14, E16: `Auto` falls back to threads when both interfaces are hidden
    let words = ["native AIO is not available", "io_uring is not available"];
    let test = "refused::threads_are_selected_on_a_kernel_without_aio";
    without_both(test, (AIO, libc::ENOSYS), (URING, libc::ENOSYS), words);
}

#[test]
fn exhausted_locked_memory_rejects_io_uring() {
    // E14, E16: ENOMEM from io_uring_setup, as at RLIMIT_MEMLOCK, is a refusal with a remedy
    let words = ["no room for 65 AIO requests", "raise the limit (ulimit -l)"];
    let test = "refused::exhausted_locked_memory_rejects_io_uring";
    without_both(test, (AIO, libc::EAGAIN), (URING, libc::ENOMEM), words);
}

#[test]
fn outdated_io_uring_is_rejected() {
    // E14, E16: a ring without the synchronous cancel, as before Linux 6.0, is a refusal with a
    // remedy
    if has_uring() {
        let words = ["native AIO is forbidden", "it needs Linux 6.0 or later"];
        let uring = (libc::SYS_io_uring_register, libc::EINVAL);
        without_both("refused::outdated_io_uring_is_rejected", (AIO, libc::EPERM), uring, words);
    }
}

#[test]
fn zero_locked_memory_limit_rejects_io_uring() {
    // E14, E16: with RLIMIT_MEMLOCK really at zero, `Auto` falls back where the kernel counts rings
    // against it; some kernels do not. Runs as an ordinary user, since root is exempt
    if !has_uring() || in_child("refused::zero_locked_memory_limit_rejects_io_uring") {
        return;
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives the call; the child process runs this test alone.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &none), 0);
        if libc::geteuid() == 0 {
            assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        }
    }
    forbid(&[(AIO, libc::EPERM)]);
    let chosen = choice();
    let because = chosen.rejected().any(|(_, error)| error.to_string().contains("raise the limit (ulimit -l)"));
    assert_eq!(chosen.backend(), if because { BackendKind::Threads } else { BackendKind::Uring }, "{chosen}");
}

#[test]
fn invalid_depth_is_an_error_and_no_rejection() {
    // E14: an invalid depth is reported immediately; no other backend is tried
    let error = RuntimeBuilder::new().queue_depth(0).run(|| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!error.to_string().contains("io_uring"), "{error}");
}

#[test]
fn backend_is_selected_by_name() {
    // E16: a backend requested by name is used, or its failure is an error
    for (backend, shown) in [
        (BackendKind::Aio, "native AIO, as requested"),
        (BackendKind::Uring, "io_uring, as requested"),
        (BackendKind::Threads, "threads, as requested"),
    ] {
        if has(backend, 1) {
            let chosen = RuntimeBuilder::new().backend(backend).run(chosen).unwrap();
            assert_chosen(&chosen, backend, &[]);
            assert_eq!(chosen.to_string(), shown);
        }
    }
    assert!(selected_backend().is_none(), "outside a context");
    assert_eq!(DEFAULT_QUEUE_DEPTH, 64, "below the queue sizes of common devices");
}

#[test]
fn backend_is_selected_by_the_environment() {
    // E16: `from_env` selects a backend for programs; an invalid value is reported with the valid
    // ones
    let test = "refused::backend_is_selected_by_the_environment";
    let values = ["auto", "aio", "uring", "threads", "", "windows", "AIO"];
    if values.map(|value| in_child_with(test, &[("CORALIO_BACKEND", value)])).contains(&true) {
        return;
    }
    let value = std::env::var("CORALIO_BACKEND").unwrap();
    match (BackendKind::from_env(), value.as_str()) {
        (Ok(choice), "") => assert_eq!(choice, BackendKind::Auto),
        (Ok(choice), "auto" | "aio" | "uring" | "threads") => assert_eq!(choice.to_string(), value),
        (Err(error), "windows" | "AIO") => {
            let words = ["CORALIO_BACKEND", &value, "auto, aio, uring, threads", "unset it"];
            words.iter().for_each(|words| assert!(error.to_string().contains(words), "no `{words}` in: {error}"));
        }
        (other, value) => panic!("{value}: {other:?}"),
    }
}

#[test]
fn smallest_stack_is_enough_for_a_program() {
    // C11: the smallest stack runs a closure that does little, whatever the backend needs at its
    // creation. In a child process, which a stack overflow would end
    if in_child("refused::smallest_stack_is_enough_for_a_program") {
        return;
    }
    for backend in [BackendKind::Auto, BackendKind::Aio, BackendKind::Uring, BackendKind::Threads] {
        for size in [0, MIN_STACK_SIZE] {
            let ran = RuntimeBuilder::new().backend(backend).stack_size(size).run(|| spawn(|| 1).join().unwrap());
            assert_eq!(ran.unwrap_or(1), 1, "{backend}");
        }
    }
}
