//! What is chosen where something is refused, and what is said about it.

use std::io::ErrorKind;

use coralio_aio::kernel::linux_aio::LinuxAio;
use coralio_aio::{Chosen, DEFAULT_DEPTH, KernelChoice, Runner, chosen_kernel};

use crate::common::has;
use crate::{chosen, forbid, in_child, in_child_with, io_works};

const AIO: libc::c_long = libc::SYS_io_setup;
const URING: libc::c_long = libc::SYS_io_uring_setup;

/// What `Auto` chooses, and does I/O with.
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

/// It is this one, and of each of those before it was said what was in the way.
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

/// Whether this machine has io_uring at all.
fn has_uring() -> bool {
    has(KernelChoice::Uring, 1)
}

#[test]
fn nothing_is_refused() {
    // E16: native AIO is the first, and the reason is short
    if !has(KernelChoice::Aio, 1) {
        return;
    }
    let chosen = choice();
    assert_chosen(&chosen, KernelChoice::Aio, &[]);
    assert_eq!(chosen.to_string(), "native AIO, and threads for what would block it");
}

/// With native AIO refused like this: io_uring.
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
    // E14, E16: a seccomp filter says EPERM
    without_aio("refused::aio_is_forbidden", &[(AIO, libc::EPERM)], "native AIO is forbidden here");
}

#[test]
fn aio_is_hidden() {
    // E14, E16: ENOSYS, as by a filter or a kernel that was built without
    without_aio("refused::aio_is_hidden", &[(AIO, libc::ENOSYS)], "no native AIO here");
}

#[test]
fn aio_can_be_set_up_and_then_nothing() {
    // E14, E16: a filter that forgot io_submit is found out before a request is
    let calls = [(libc::SYS_io_submit, libc::EPERM)];
    without_aio("refused::aio_can_be_set_up_and_then_nothing", &calls, "native AIO is forbidden here");
}

#[test]
fn aio_is_too_old() {
    // E14, E16: before Linux 4.18 a poll request is EINVAL
    without_aio("refused::aio_is_too_old", &[(libc::SYS_io_submit, libc::EINVAL)], "Linux 4.18 or later");
}

#[test]
fn aio_max_nr_is_used_up_as_far_as_we_can_tell() {
    // E14, E16: EAGAIN of io_setup, whatever others do on the machine meanwhile
    let test = "refused::aio_max_nr_is_used_up_as_far_as_we_can_tell";
    without_aio(test, &[(AIO, libc::EAGAIN)], "no room for 65 AIO requests");
}

#[test]
fn aio_max_nr_is_used_up() {
    // E14, E16: for real, as far as the deepest queue does not fit any more. All processes share it
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

/// With both refused: threads.
fn without_both(test: &str, aio: i32, uring: (libc::c_long, i32), words: [&str; 2]) {
    if in_child(test) {
        return;
    }
    forbid(&[(AIO, aio), uring]);
    let why = [(KernelChoice::Aio, words[0]), (KernelChoice::Uring, words[1])];
    assert_chosen(&choice(), KernelChoice::Threads, &why);
    for (kernel, words) in why {
        let named = Runner::new().kernel(kernel).run(|| ()).unwrap_err();
        assert!(named.to_string().contains(words), "asked for by name, it is an error: {named}");
    }
}

#[test]
fn a_container() {
    // E14, E16: both forbidden
    let words = ["native AIO is forbidden here", "io_uring is forbidden here"];
    without_both("refused::a_container", libc::EPERM, (URING, libc::EPERM), words);
}

#[test]
fn a_kernel_without() {
    // E14, E16: both hidden
    let words = ["no native AIO here", "no io_uring here"];
    without_both("refused::a_kernel_without", libc::ENOSYS, (URING, libc::ENOSYS), words);
}

#[test]
fn locked_memory_is_used_up() {
    // E14, E16: ENOMEM of io_uring_setup, as at RLIMIT_MEMLOCK
    let words = ["no room for 65 AIO requests", "raise that (ulimit -l)"];
    without_both("refused::locked_memory_is_used_up", libc::EAGAIN, (URING, libc::ENOMEM), words);
}

#[test]
fn io_uring_is_too_old() {
    // E14, E16: a ring that cannot say what it does
    if has_uring() {
        let words = ["native AIO is forbidden", "it takes Linux 5.6 or later"];
        let uring = (libc::SYS_io_uring_register, libc::EINVAL);
        without_both("refused::io_uring_is_too_old", libc::EPERM, uring, words);
    }
}

#[test]
fn no_memory_may_be_locked() {
    // E14, E16: the real limit, at zero, as another user than root, whom it does not bind. Some kernels do not count rings
    if !has_uring() || in_child("refused::no_memory_may_be_locked") {
        return;
    }
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit outlives the call; the process is a child for this test alone.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &none), 0);
        if libc::geteuid() == 0 {
            assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        }
    }
    forbid(&[(AIO, libc::EPERM)]);
    let chosen = choice();
    let because = chosen.refused().any(|(_, error)| error.to_string().contains("raise that (ulimit -l)"));
    assert_eq!(chosen.kernel(), if because { KernelChoice::Threads } else { KernelChoice::Uring }, "{chosen}");
}

#[test]
fn a_depth_that_cannot_be_is_no_refusal() {
    // E14: it is told at once, and not tried elsewhere
    let error = Runner::new().depth(0).run(|| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!error.to_string().contains("io_uring"), "{error}");
}

#[test]
fn by_name() {
    // E16: what was asked for is what there is, or an error
    for (kernel, shown) in [
        (KernelChoice::Aio, "native AIO, as asked for"),
        (KernelChoice::Uring, "io_uring, as asked for"),
        (KernelChoice::Threads, "threads, as asked for"),
    ] {
        if has(kernel, 1) {
            let chosen = Runner::new().kernel(kernel).run(chosen).unwrap();
            assert_chosen(&chosen, kernel, &[]);
            assert_eq!(chosen.to_string(), shown);
        }
    }
    assert!(chosen_kernel().is_none(), "outside a context");
    assert_eq!(DEFAULT_DEPTH, 64, "below the queues of what is common");
}

#[test]
fn by_the_environment() {
    // E16: for programs; a value that is none is told with those that are
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
