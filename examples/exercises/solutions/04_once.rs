//! A solution of exercise 4.

use coralio::sync::CoRwLock;

pub fn get_or_compute(lock: &CoRwLock<Option<u32>>, compute: &dyn Fn() -> u32) -> u32 {
    // The guard is dropped at the end of this statement.
    let found = *lock.read();
    if let Some(value) = found {
        return value;
    }
    let mut value = lock.write();
    // Checked again: another coroutine may have held the lock in between.
    *value.get_or_insert_with(compute)
}
