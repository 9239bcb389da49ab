//! Exercise 8. A permit that is given back. After lesson 16.
//!
//! A limited number of coroutines may read at the same time. A coroutine may be cancelled while it
//! waits for a permit, or during the read; then the call returns an error. The read may also fail,
//! or panic.

use std::io;

use crate::judge::cancel::Permits;

/// Runs `read` while it holds one of the permits. Returns its result, or the error of
/// `Permits::acquire`.
pub fn with_permit(permits: &Permits, read: &dyn Fn() -> io::Result<usize>) -> io::Result<usize> {
    todo!("acquire a permit, read, and release the permit")
}
