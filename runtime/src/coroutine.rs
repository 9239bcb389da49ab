//! One coroutine: its control block, its state word, its stack, and what it waits for.
//!
//! Knows only of itself: which coroutines are entered, and which run next, is the scheduler's.

pub(crate) mod control_block;
pub(crate) mod error;
pub(crate) mod stack;
pub(crate) mod state_word;
pub(crate) mod wait_reason;
