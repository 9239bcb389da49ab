//! The rules C, W, X and S, one file per subject. One program, since each one takes seconds to link;
//! tests that need a process or a build of their own are the programs next to this one. What random
//! programs show, `properties` checks against a model of the rules.

mod backtrace;
mod bad_use;
mod barrier;
mod bottom_half;
mod channel;
mod clock;
mod co_fd;
mod context;
mod coroutine;
mod coroutine_local;
mod fd_handlers;
mod future;
mod interval;
mod join_set;
mod lock;
mod notify;
mod overflow;
mod owned;
mod peak_stack_usage;
mod polling;
mod results;
mod rwlock;
mod scope;
mod select;
mod semaphore;
mod teardown;
mod threads;
mod timeout;
mod timers;
mod unwinding;
mod waking;
mod watch;

#[path = "../common/mod.rs"]
mod common;
