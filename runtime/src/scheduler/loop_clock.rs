//! A clock that the loop reads seldom: accurate enough to show how long a coroutine has waited.

use std::cell::Cell;
use std::time::Duration;

use crate::sys::Clock;

/// How many iterations of a busy loop share one reading.
const ROUNDS_PER_TICK: u32 = 64;

pub(crate) struct LoopClock {
    clock: Clock,
    /// The last reading in milliseconds, modulo 2^32.
    ms: Cell<u32>,
    rounds_since_tick: Cell<u32>,
}

impl LoopClock {
    pub(super) fn new(clock: Clock) -> LoopClock {
        LoopClock { ms: Cell::new(clock.coarse_ms()), rounds_since_tick: Cell::new(0), clock }
    }

    /// Returns the last reading.
    #[inline]
    pub(crate) fn ms(&self) -> u32 {
        self.ms.get()
    }

    /// Counts an iteration, and reads the clock every sixty-fourth.
    #[inline]
    pub(crate) fn count_round(&self) {
        self.rounds_since_tick.set(self.rounds_since_tick.get() + 1);
        if self.rounds_since_tick.get() >= ROUNDS_PER_TICK {
            self.tick();
        }
    }

    /// Reads the clock.
    pub(crate) fn tick(&self) {
        self.rounds_since_tick.set(0);
        self.ms.set(self.clock.coarse_ms());
    }

    /// Returns the time since the reading `then`.
    pub(crate) fn since(&self, then: u32) -> Duration {
        Duration::from_millis(u64::from(self.clock.coarse_ms().wrapping_sub(then)))
    }
}
