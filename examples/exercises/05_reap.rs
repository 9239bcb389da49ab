//! Exercise 5. A reap. After lesson 11.
//!
//! Take all completions off the ring, in order. For each: count down, advance the cursor, complete
//! the request. In which order? The coroutine that continues may submit, and poll until other
//! requests are done.

use crate::judge::reap::Disk;

/// Processes all completions on the ring, by `peek`, `advance`, `count_down` and `complete`.
pub fn reap(disk: &Disk) {
    todo!("process all completions on the ring")
}
