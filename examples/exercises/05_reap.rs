//! Exercise 5. A reap. After lesson 11.
//!
//! Process all completions on the ring, one after the other. `peek` returns the request whose
//! completion is at the cursor. Each needs three calls: `complete`, which continues the request's
//! coroutine; `advance`, which moves the cursor; and `count_down`. In which order? The coroutine
//! that continues may submit, and poll until other requests are done.

use crate::judge::reap::Disk;

/// Processes all completions on the ring, by `advance`, `complete`, `count_down` and `peek`.
pub fn reap(disk: &Disk) {
    todo!("process all completions on the ring")
}
