//! Wrong solutions of exercise 6.

use std::collections::VecDeque;
use std::io::ErrorKind;

use crate::judge::submit::Kernel;

/// Assumes after `Ok` that all requests were accepted.
pub fn forgets_the_tail(kernel: &Kernel, pending: &mut VecDeque<u32>) {
    while !pending.is_empty() {
        match kernel.submit(pending.make_contiguous()) {
            Ok(_) => pending.clear(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => kernel.fail(pending.pop_front().expect("it is not empty")),
        }
    }
}

/// Fails all requests for an error of the first one.
pub fn fails_all(kernel: &Kernel, pending: &mut VecDeque<u32>) {
    while !pending.is_empty() {
        match kernel.submit(pending.make_contiguous()) {
            Ok(accepted) => drop(pending.drain(..accepted)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => pending.drain(..).for_each(|request| kernel.fail(request)),
        }
    }
}

/// Fails a request for "try again".
pub fn fails_when_busy(kernel: &Kernel, pending: &mut VecDeque<u32>) {
    while !pending.is_empty() {
        match kernel.submit(pending.make_contiguous()) {
            Ok(accepted) => drop(pending.drain(..accepted)),
            Err(_) => kernel.fail(pending.pop_front().expect("it is not empty")),
        }
    }
}

/// Leaves an invalid request in the queue: the requests behind it are never submitted.
pub fn stays_at_the_error(kernel: &Kernel, pending: &mut VecDeque<u32>) {
    if pending.is_empty() {
        return;
    }
    if let Ok(accepted) = kernel.submit(pending.make_contiguous()) {
        pending.drain(..accepted);
    }
}
