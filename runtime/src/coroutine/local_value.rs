//! The value of a coroutine-local variable.

use std::any::Any;

/// A value set by [`CoroutineLocal::scope`](crate::CoroutineLocal::scope). It lies on the stack of
/// its coroutine; no other coroutine touches it.
pub(crate) struct LocalValue {
    /// The address of the variable.
    pub(crate) key: usize,
    pub(crate) value: *const dyn Any,
    pub(crate) outer: *const LocalValue,
}
