//! Exercise 6. A submit. After lesson 13.
//!
//! The kernel may accept all requests, or the first few of them, or none for the moment
//! (`WouldBlock`). Any other error is the fault of the first request alone. The loop calls `submit`
//! in every iteration.

use std::collections::VecDeque;
use std::io::ErrorKind;

use crate::judge::submit::Kernel;

/// Gives the pending requests to the kernel, by `Kernel::submit` and `Kernel::fail`, in their order.
/// Those that the kernel has not accepted stay in `pending` until the next call, except for one
/// that has failed.
pub fn submit(kernel: &Kernel, pending: &mut VecDeque<u32>) {
    todo!("submit the pending requests")
}
