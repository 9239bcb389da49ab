//! One coroutine: its control block, its state word, its stack, and what it waits for.
//!
//! Knows only of itself. Which coroutines are entered, and which run next, is the scheduler's.

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

pub(crate) use block_pool::BlockPool;
pub(crate) use control_block::{
    Attributes, ControlBlock, Deadline, Joiner, LocalState, LocalValue, RawCoroutine, ResultSlot, Resume, State,
};
pub(crate) use error::{Cancelled, EnterError, ScheduleError, not_entered};
pub(crate) use id::CoroutineId;
pub(crate) use lock_owner::LockOwner;
pub(crate) use run_queue::RunQueue;
pub(crate) use stack::{DEFAULT_STACK_SIZE, PAGE, RunningStack, StackLease, StackPool};
pub(crate) use state_word::{ScheduleOutcome, StateWord};
pub(crate) use wait_reason::WaitReason;
