//! Backend selection after a refusal, and its report.

use std::io::ErrorKind;

use coralio_aio::kernel::linux_aio::LinuxAio;
use coralio_aio::{Chosen, DEFAULT_DEPTH, KernelChoice, Runner, chosen_kernel};

use crate::common::{has, skipped};
use crate::{chosen, forbid, in_child, in_child_with, io_works};

const AIO: libc::c_long = libc::SYS_io_setup;
const URING: libc::c_long = libc::SYS_io_uring_setup;

/// Returns the backend that `Auto` selects, after checking that I/O works on it.
fn choice() -> Chosen {
    let run = || {
        io_works().unwrap();
        chosen()
    };
    let chosen = Runner::new().run(run).unwrap();
    println!("{chosen}");
    assert_eq!(Runner::new().run(run).unwrap().kernel(), chosen.kernel(), "the same again");
    chosen
}

/// Asserts that this backend was selected, and that a reason is reported for each one tried before
/// it.
fn assert_chosen(chosen: &Chosen, kernel: KernelChoice, why: &[(KernelChoice, &str)]) {
    let shown = chosen.to_string();
    assert_eq!(chosen.kernel(), kernel, "{shown}");
    let refused: Vec<_> = chosen.refused().collect();
    assert_eq!(refused.len(), why.len(), "{shown}");
    for ((kernel, error), (expected, words)) in refused.into_iter().zip(why) {
        assert_eq!(kernel, *expected);
        assert!(error.to_string().contains(words), "no `{words}` in: {error}");
        assert!(shown.contains(words), "no `{words}` in: {shown}");
    }
}

/// Returns whether this machine has io_uring, and enough locked memory for the rings of all tests that
/// run at the same time, which share the limit.
fn has_uring() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes the one structure.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) }, 0);
    if limit.rlim_cur < 1 << 20 {
        skipped("the limit on locked memory is below 1 MiB, too little for io_uring in several tests at the same time");
        return false;
    }
    has(KernelChoice::Uring, 1)
}

#[test]
fn nothing_is_refused() {
    // E16: `Auto` selects native AIO first and reports a short reason
    if !has(KernelChoice::Aio, 1) {
        return;
    }
    let chosen = choice();
    assert_chosen(&chosen, KernelChoice::Aio, &[]);
    assert_eq!(chosen.to_string(), "native AIO, with threads for requests that would block it");
}

/// Asserts that `Auto` falls back to io_uring when native AIO is refused in this way.
fn without_aio(test: &str, calls: &[(libc::c_long, i32)], words: &str) {
    if !has_uring() || in_child(test) {
        return;
    }
    forbid(calls);
    let chosen = choice();
    assert_chosen(&chosen, KernelChoice::Uring, &[(KernelChoice::Aio, words)]);
    assert!(chosen.to_string().starts_with("io_uring: native AIO was refused: "), "{chosen}");
}

#[test]
fn aio_is_forbidden() {
    // E14, E16: `Auto` falls back when a seccomp filter returns EPERM
    without_aio("refused::aio_is_forbidden", &[(AIO, libc::EPERM)], "native AIO is forbidden");
}

#[test]
fn aio_is_hidden() {
    // E14, E16: `Auto` falls back on ENOSYS, from a filter or from a kernel built without native
    // AIO
    without_aio("refused::aio_is_hidden", &[(AIO, libc::ENOSYS)], "native AIO is not available");
}

#[test]
fn aio_can_be_set_up_and_then_nothing() {
    // E14, E16: a filter that forbids only io_submit is detected before the first request
    let calls = [(libc::SYS_io_submit, libc::EPERM)];
    without_aio("refused::aio_can_be_set_up_and_then_nothing", &calls, "native AIO is forbidden");
}

#[test]
fn aio_is_too_old() {
    // E14, E16: a poll request that fails with EINVAL, as before Linux 4.18, rules out native AIO
    without_aio("refused::aio_is_too_old", &[(libc::SYS_io_submit, libc::EINVAL)], "Linux 4.18 or later");
}

#[test]
fn aio_max_nr_is_used_up_as_far_as_we_can_tell() {
    // E14, E16: `Auto` falls back when io_setup returns EAGAIN; a filter makes this independent of
    // other processes
    let test = "refused::aio_max_nr_is_used_up_as_far_as_we_can_tell";
    without_aio(test, &[(AIO, libc::EAGAIN)], "no room for 65 AIO requests");
}

#[test]
fn aio_max_nr_is_used_up() {
    // E14, E16: `Auto` falls back when fs.aio-max-nr is really exhausted; only enough is used that
    // the deepest queue no longer fits, since all processes share the limit
    const DEEPEST: u32 = 32768;
    if !has(KernelChoice::Aio, 1) || !has(KernelChoice::Uring, DEEPEST) || in_child("refused::aio_max_nr_is_used_up") {
        return;
    }
    let mut held = Vec::new();
    while let Ok(kernel) = LinuxAio::new(DEEPEST) {
        if held.len() == 100 {
            return println!("skipped: fs.aio-max-nr is too large to be used up");
        }
        held.push(kernel);
    }
    let deep = Runner::new().depth(DEEPEST).run(chosen).unwrap();
    assert_chosen(&deep, KernelChoice::Uring, &[(KernelChoice::Aio, "raise the limit as root: sysctl fs.aio-max-nr=")]);
    assert_eq!(Runner::new().depth(32).run(chosen).unwrap().kernel(), KernelChoice::Aio, "there is room for this");
}

/// Asserts that `Auto` falls back to threads when both kernel interfaces are refused.
fn without_both(test: &str, aio: i32, uring: (libc::c_long, i32), words: [&str; 2]) {
    if in_child(test) {
        return;
    }
    forbid(&[(AIO, aio), uring]);
    let why = [(KernelChoice::Aio, words[0]), (KernelChoice::Uring, words[1])];
    assert_chosen(&choice(), KernelChoice::Threads, &why);
    for (kernel, words) in why {
        let named = Runner::new().kernel(kernel).run(|| ()).unwrap_err();
        assert!(named.to_string().contains(words), "requested by name, a refusal is an error: {named}");
    }
}

#[test]
fn a_container() {
    // E14, E16: `Auto` falls back to threads when both interfaces are forbidden
    let words = ["native AIO is forbidden", "io_uring is forbidden"];
    without_both("refused::a_container", libc::EPERM, (URING, libc::EPERM), words);
}

#[test]
fn a_kernel_without() {
    // E14, E16: `Auto` falls back to threads when both interfaces are hidden
    let words = ["native AIO is not available", "io_uring is not available"];
    without_both("refused::a_kernel_without", libc::ENOSYS, (URING, libc::ENOSYS), words);
}

#[test]
fn locked_memory_is_used_up() {
    // E14, E16: ENOMEM from io_uring_setup, as at RLIMIT_MEMLOCK, is a refusal with a remedy
    let words = ["no room for 65 AIO requests", "raise the limit (ulimit -l)"];
    without_both("refused::locked_memory_is_used_up", libc::EAGAIN, (URING, libc::ENOMEM), words);
}

#[test]
fn io_uring_is_too_old() {
    // E14, E16: a ring that cannot report its operations is a refusal with a remedy
    if has_uring() {
        let words = ["native AIO is forbidden", "it needs Linux 5.6 or later"];
        let uring = (libc::SYS_io_uring_register, libc::EINVAL);
        without_both("refused::io_uring_is_too_old", libc::EPERM, uring, words);
    }
}

#[test]
fn no_memory_may_be_locked() {
    // E14, E16: with RLIMIT_MEMLOCK really at zero, `Auto` falls back where the kernel counts rings
    // against it; some kernels do not. Runs as an ordinary user, since root is exempt
    if !has_uring() || in_child("refused::no_memory_may_be_locked") {
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
    let because = chosen.refused().any(|(_, error)| error.to_string().contains("raise the limit (ulimit -l)"));
    assert_eq!(chosen.kernel(), if because { KernelChoice::Threads } else { KernelChoice::Uring }, "{chosen}");
}

#[test]
fn a_depth_that_cannot_be_is_no_refusal() {
    // E14: an invalid depth is reported immediately; no other backend is tried
    let error = Runner::new().depth(0).run(|| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!error.to_string().contains("io_uring"), "{error}");
}

#[test]
fn by_name() {
    // E16: a backend requested by name is used, or its failure is an error
    for (kernel, shown) in [
        (KernelChoice::Aio, "native AIO, as requested"),
        (KernelChoice::Uring, "io_uring, as requested"),
        (KernelChoice::Threads, "threads, as requested"),
    ] {
        if has(kernel, 1) {
            let chosen = Runner::new().kernel(kernel).run(chosen).unwrap();
            assert_chosen(&chosen, kernel, &[]);
            assert_eq!(chosen.to_string(), shown);
        }
    }
    assert!(chosen_kernel().is_none(), "outside a context");
    assert_eq!(DEFAULT_DEPTH, 64, "below the queue sizes of common devices");
}

#[test]
fn by_the_environment() {
    // E16: `from_env` selects a backend for programs; an invalid value is reported with the valid
    // ones
    let test = "refused::by_the_environment";
    let values = ["auto", "aio", "uring", "threads", "", "windows", "AIO"];
    if values.map(|value| in_child_with(test, &[("CORALIO_KERNEL", value)])).contains(&true) {
        return;
    }
    let value = std::env::var("CORALIO_KERNEL").unwrap();
    match (KernelChoice::from_env(), value.as_str()) {
        (Ok(choice), "") => assert_eq!(choice, KernelChoice::Auto),
        (Ok(choice), "auto" | "aio" | "uring" | "threads") => assert_eq!(choice.to_string(), value),
        (Err(error), "windows" | "AIO") => {
            let words = ["CORALIO_KERNEL", &value, "auto, aio, uring, threads", "unset it"];
            words.iter().for_each(|words| assert!(error.to_string().contains(words), "no `{words}` in: {error}"));
        }
        (other, value) => panic!("{value}: {other:?}"),
    }
}
