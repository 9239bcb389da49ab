//! Exercise 6. A submit. After lesson 13.
//!
//! A system call offers the kernel a list of requests, and returns how many it has accepted. That
//! need not be all: when its queue is full it accepts the first few, in order, and has not looked
//! at the others. If it can accept none for the moment, the error is `WouldBlock` (EAGAIN): offer
//! them again in the next iteration. Any other error is the fault of the first request alone. The
//! loop calls `submit` in every iteration.

use std::collections::VecDeque;
use std::io::ErrorKind;

use crate::judge::submit::Kernel;

/// Gives the pending requests to the kernel, by `Kernel::submit` and `Kernel::fail`, in their order.
/// Those that the kernel has not accepted stay in `pending` until the next call, except for one
/// that has failed.
pub fn submit(kernel: &Kernel, pending: &mut VecDeque<u32>) {
    todo!("submit the pending requests")
}
