//! Exercise 4. From a read lock to a write lock. After lesson 5.
//!
//! A value is expensive to compute, so it is computed once and then shared. Readers must not
//! exclude each other. A `CoRwLock` cannot turn a read lock into a write lock (two coroutines that
//! try to would wait for each other), so there is a moment between the two.
//!
//! You need `read` and `write` of `CoRwLock`, which return guards.

use coralio::sync::CoRwLock;

/// Returns the value in the lock. The first call computes it; `compute` may yield.
pub fn get_or_compute(lock: &CoRwLock<Option<u32>>, compute: &dyn Fn() -> u32) -> u32 {
    todo!("return the value if there is one; otherwise compute it, once")
}
