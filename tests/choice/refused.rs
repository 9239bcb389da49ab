//! Backend selection after a refusal, and its report.

use std::io::ErrorKind;

use coralio::RuntimeBuilder;
use coralio::driver::{BackendKind, DEFAULT_QUEUE_DEPTH, SelectedBackend, selected_backend};
use coralio::engine::linux_aio::LinuxAio;

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
fn has_uring() -> bool {
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
fn aio_is_selected_on_an_unrestricted_machine() {
    // E16: `Auto` selects native AIO first and reports a short reason
    if !has(BackendKind::Aio, 1) {
        return;
    }
    let chosen = choice();
    assert_chosen(&chosen, BackendKind::Aio, &[]);
    assert_eq!(chosen.to_string(), "native AIO, with threads for requests that would block it");
}

/// Asserts that `Auto` falls back to io_uring when native AIO is refused in this way.
fn without_aio(test: &str, calls: &[(libc::c_long, i32)], words: &str) {
    if !has_uring() || in_child(test) {
        return;
    }
    forbid(calls);
    let chosen = choice();
    assert_chosen(&chosen, BackendKind::Uring, &[(BackendKind::Aio, words)]);
    assert!(chosen.to_string().starts_with("io_uring: native AIO was refused: "), "{chosen}");
}

#[test]
fn io_uring_is_selected_if_aio_is_forbidden() {
    // E14, E16: `Auto` falls back when a seccomp filter returns EPERM
    without_aio("refused::io_uring_is_selected_if_aio_is_forbidden", &[(AIO, libc::EPERM)], "native AIO is forbidden");
}

#[test]
fn io_uring_is_selected_if_aio_is_hidden() {
    // E14, E16: `Auto` falls back on ENOSYS, from a filter or from a kernel built without native
    // AIO
    without_aio(
        "refused::io_uring_is_selected_if_aio_is_hidden",
        &[(AIO, libc::ENOSYS)],
        "native AIO is not available",
    );
}

#[test]
fn unusable_aio_context_is_rejected() {
    // E14, E16: a filter that forbids only io_submit is detected before the first request
    let calls = [(libc::SYS_io_submit, libc::EPERM)];
    without_aio("refused::unusable_aio_context_is_rejected", &calls, "native AIO is forbidden");
}

#[test]
fn outdated_aio_is_rejected() {
    // E14, E16: a poll request that fails with EINVAL, as before Linux 4.18, rules out native AIO
    without_aio("refused::outdated_aio_is_rejected", &[(libc::SYS_io_submit, libc::EINVAL)], "Linux 4.18 or later");
}

#[test]
fn reported_exhaustion_of_aio_max_nr_rejects_aio() {
    // E14, E16: `Auto` falls back when io_setup returns EAGAIN; a filter makes this independent of
    // other processes
    let test = "refused::reported_exhaustion_of_aio_max_nr_rejects_aio";
    without_aio(test, &[(AIO, libc::EAGAIN)], "no room for 65 AIO requests");
}

#[test]
fn exhausted_aio_max_nr_rejects_aio() {
    // E14, E16: `Auto` falls back when fs.aio-max-nr is really exhausted; only enough is used that
    // the deepest queue no longer fits, since all processes share the limit
    const DEEPEST: u32 = 32768;
    if !has(BackendKind::Aio, 1)
        || !has(BackendKind::Uring, DEEPEST)
        || in_child("refused::exhausted_aio_max_nr_rejects_aio")
    {
        return;
    }
    let mut held = Vec::new();
    while let Ok(backend) = LinuxAio::new(DEEPEST) {
        if held.len() == 100 {
            return println!("skipped: fs.aio-max-nr is too large to be used up");
        }
        held.push(backend);
    }
    let deep = RuntimeBuilder::new().queue_depth(DEEPEST).run(chosen).unwrap();
    assert_chosen(&deep, BackendKind::Uring, &[(BackendKind::Aio, "raise the limit as root: sysctl fs.aio-max-nr=")]);
    assert_eq!(
        RuntimeBuilder::new().queue_depth(32).run(chosen).unwrap().backend(),
        BackendKind::Aio,
        "there is room for this"
    );
}

/// Asserts that `Auto` falls back to threads when both backends are refused.
fn without_both(test: &str, aio: i32, uring: (libc::c_long, i32), words: [&str; 2]) {
    if in_child(test) {
        return;
    }
    forbid(&[(AIO, aio), uring]);
    let why = [(BackendKind::Aio, words[0]), (BackendKind::Uring, words[1])];
    assert_chosen(&choice(), BackendKind::Threads, &why);
    for (backend, words) in why {
        let named = RuntimeBuilder::new().backend(backend).run(|| ()).unwrap_err();
        assert!(named.to_string().contains(words), "requested by name, a refusal is an error: {named}");
    }
}

#[test]
fn threads_are_selected_in_a_container() {
    // E14, E16: `Auto` falls back to threads when both interfaces are forbidden
    let words = ["native AIO is forbidden", "io_uring is forbidden"];
    without_both("refused::threads_are_selected_in_a_container", libc::EPERM, (URING, libc::EPERM), words);
}

#[test]
fn threads_are_selected_on_a_kernel_without_aio() {
    // E14, E16: `Auto` falls back to threads when both interfaces are hidden
    let words = ["native AIO is not available", "io_uring is not available"];
    without_both("refused::threads_are_selected_on_a_kernel_without_aio", libc::ENOSYS, (URING, libc::ENOSYS), words);
}

#[test]
fn exhausted_locked_memory_rejects_io_uring() {
    // E14, E16: ENOMEM from io_uring_setup, as at RLIMIT_MEMLOCK, is a refusal with a remedy
    let words = ["no room for 65 AIO requests", "raise the limit (ulimit -l)"];
    without_both("refused::exhausted_locked_memory_rejects_io_uring", libc::EAGAIN, (URING, libc::ENOMEM), words);
}

#[test]
fn outdated_io_uring_is_rejected() {
    // E14, E16: a ring that cannot report its operations is a refusal with a remedy
    if has_uring() {
        let words = ["native AIO is forbidden", "it needs Linux 5.6 or later"];
        let uring = (libc::SYS_io_uring_register, libc::EINVAL);
        without_both("refused::outdated_io_uring_is_rejected", libc::EPERM, uring, words);
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
