//! Turns: bounds how much work one client gets before the other clients have their turn.
//!
//! A client whose socket always has data never waits, so its coroutine has to yield by itself. A turn is a number of bytes;
//! each request and option counts as [`STEP`] bytes besides its payload.

use coralio_aio::{Cancelled, check_cancelled, yield_now};

/// What a step costs besides the bytes that it moves.
const STEP: usize = 16 << 10;
/// Sixteen steps without payload, or thirteen requests of 4 KiB.
const LENGTH: usize = 256 << 10;

/// What one client has used of its present turn.
#[derive(Default)]
pub struct Turn {
    used: usize,
}

impl Turn {
    /// Counts a step that moves `bytes`. Yields when the turn is used up.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]: the coroutine is to end. A client that sends without a pause would never let it notice.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Cancelled> {
        self.used += STEP + bytes;
        if self.used >= LENGTH {
            self.used = 0;
            check_cancelled()?;
            yield_now();
        }
        Ok(())
    }
}
