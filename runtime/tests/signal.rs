//! Signals as events that a coroutine waits for.

use std::io;
use std::time::Duration;

use coralio_runtime::{AioContext, OsCode, TimedOut, ctrl_c, signal, spawn, timeout};
use signal_hook::consts::{SIGHUP, SIGINT, SIGKILL, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::low_level::raise;

#[test]
fn signals_before_the_wait_are_received_as_one() {
    // S14: signals that arrive before `recv` make it return immediately, and the next one wait; each
    // stream gets the signal
    AioContext::run(|ctx| {
        let mut streams = [signal(SIGUSR1).unwrap(), signal(SIGUSR1).unwrap()];
        (0..100).for_each(|_| raise(SIGUSR1).unwrap());
        let waiting = spawn(move || -> io::Result<()> {
            streams.iter_mut().try_for_each(|stream| stream.recv())?;
            streams[0].recv()
        });
        ctx.poll(false);
        assert!(!waiting.is_finished());
        raise(SIGUSR1).unwrap();
        waiting.join().unwrap().unwrap();
    });
}

#[test]
fn waiting_coroutine_is_woken_by_the_signal() {
    // S14: a signal during the wait; one of another kind does not count
    AioContext::run(|ctx| {
        let _other = signal(SIGWINCH).unwrap();
        let interrupted = spawn(ctrl_c);
        ctx.poll(false);
        raise(SIGWINCH).unwrap();
        ctx.poll(false);
        assert!(!interrupted.is_finished());
        raise(SIGINT).unwrap();
        interrupted.join().unwrap().unwrap();
    });
}

#[test]
fn cancelled_wait_loses_no_signal() {
    // S14, S4: a timeout ends the wait; the signal after it is received by the next one
    let run = AioContext::builder().run_coroutine(|_| {
        let mut stream = signal(SIGUSR2).unwrap();
        let timed = timeout(Duration::from_millis(1), || stream.recv());
        assert_eq!(timed.map(drop), Err(TimedOut));
        raise(SIGUSR2).unwrap();
        stream.recv().unwrap();
        drop(stream);
        raise(SIGUSR2).unwrap();
        let mut late = signal(SIGUSR2).unwrap();
        let timed = timeout(Duration::from_millis(1), || late.recv());
        assert_eq!(timed.map(drop), Err(TimedOut), "it arrived before this stream was created");
    });
    run.unwrap();
}

#[test]
fn unsuitable_signals_are_refused() {
    // S14: a signal that cannot be handled is an error with a remedy; so is a number that is none
    let error = signal(SIGKILL).unwrap_err();
    assert!(error.to_string().contains("cannot handle signal 9: reserved or fatal; choose another"), "{error}");
    assert_eq!(signal(4000).unwrap_err().os_code(), Some(libc::EINVAL));
    drop(signal(SIGHUP).unwrap());
}
