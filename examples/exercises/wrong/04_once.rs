//! Wrong solutions of exercise 4.

use coralio::sync::CoRwLock;

/// Waits for the write lock with the read lock still held.
pub fn keeps_reading(lock: &CoRwLock<Option<u32>>, compute: &dyn Fn() -> u32) -> u32 {
    let found = lock.read();
    match *found {
        Some(value) => value,
        None => *lock.write().insert(compute()),
    }
}

/// Does not check again under the write lock.
pub fn checks_once(lock: &CoRwLock<Option<u32>>, compute: &dyn Fn() -> u32) -> u32 {
    let found = *lock.read();
    match found {
        Some(value) => value,
        None => *lock.write().insert(compute()),
    }
}

/// Computes without a lock.
pub fn computes_first(lock: &CoRwLock<Option<u32>>, compute: &dyn Fn() -> u32) -> u32 {
    let found = *lock.read();
    if let Some(value) = found {
        return value;
    }
    let value = compute();
    *lock.write().get_or_insert(value)
}

/// Excludes the other readers.
pub fn always_writes(lock: &CoRwLock<Option<u32>>, compute: &dyn Fn() -> u32) -> u32 {
    *lock.write().get_or_insert_with(compute)
}
