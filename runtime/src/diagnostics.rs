//! Reports about a context and its coroutines: dumps, deadlocks, stalls, overflows, backtraces.

pub(crate) mod backtrace;
pub(crate) mod deadlock;
pub(crate) mod dump;
pub(crate) mod interrupt;
pub(crate) mod panic_hook;
pub(crate) mod signal;
pub(crate) mod stack_overflow;
pub(crate) mod stack_usage;
pub(crate) mod stall;
mod wait_graph;

pub(crate) use interrupt::Prepared;
pub(crate) use signal::RegistryGuard;
pub(crate) use stack_overflow::AlternateStack;
pub(crate) use stall::Watcher;
pub(crate) use wait_graph::WakeSource;
