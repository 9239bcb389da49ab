//! A solution of exercise 5.

use crate::judge::reap::Disk;

pub fn reap(disk: &Disk) {
    // The ring is read again after each coroutine: a nested reap may have emptied it.
    while let Some(request) = disk.peek() {
        disk.count_down();
        disk.advance();
        // Last: whatever runs in here finds the engine in order.
        disk.complete(request);
    }
}
