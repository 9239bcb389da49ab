//! One coroutine: its control block, its state word, its stack, and what it waits for.
//!
//! Knows only of itself. Which coroutines are entered, and which run next, is the scheduler's.

pub(crate) mod attributes;
pub(crate) mod block_pool;
pub(crate) mod control_block;
pub(crate) mod error;
pub(crate) mod id;
pub(crate) mod lock_owner;
pub(crate) mod run_queue;
pub(crate) mod stack;
mod stack_paint;
pub(crate) mod state_word;
pub(crate) mod wait_reason;
