//! Wrong solutions of exercise 5.

use crate::judge::reap::Disk;

/// As of 2014: takes all completions off the ring first.
pub fn in_a_batch(disk: &Disk) {
    let mut batch = Vec::new();
    while let Some(request) = disk.peek() {
        disk.advance();
        batch.push(request);
    }
    for request in batch {
        disk.count_down();
        disk.complete(request);
    }
}

/// Counts down when the coroutine has run.
pub fn counts_late(disk: &Disk) {
    while let Some(request) = disk.peek() {
        disk.advance();
        disk.complete(request);
        disk.count_down();
    }
}

/// Advances the cursor when the coroutine has run.
pub fn advances_late(disk: &Disk) {
    while let Some(request) = disk.peek() {
        disk.count_down();
        disk.complete(request);
        disk.advance();
    }
}

/// Processes one completion.
pub fn only_one(disk: &Disk) {
    if let Some(request) = disk.peek() {
        disk.count_down();
        disk.advance();
        disk.complete(request);
    }
}
