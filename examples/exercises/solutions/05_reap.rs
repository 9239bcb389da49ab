//! A solution of exercise 5.

use crate::judge::reap::Disk;

pub fn reap(disk: &Disk) {
    // The ring is read again after each coroutine: a nested reap may have emptied it.
    while let Some(request) = disk.peek() {
        disk.count_down();
        disk.advance();
        // Last: the coroutine that runs in this call finds the engine in a consistent state.
        disk.complete(request);
    }
}
