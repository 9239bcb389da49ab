//! Turns: bounds the work for one client before the other clients run.
//!
//! A client whose socket always has data never waits, so its coroutine must yield explicitly. A
//! turn is a number of bytes; each request and option counts as [`STEP`] bytes plus its payload.
//! While other clients of the thread are active, turns are short and a client may have only few
//! requests in flight, because all clients share the disk's queue.

use std::cell::Cell;

use coralio::task::{Cancelled, check_cancelled};
use coralio::yield_now;

/// The cost of a step in addition to the bytes that it moves.
const STEP: usize = 16 << 10;
/// The length of a turn while no other client is active: 64 steps without payload, which share
/// system calls.
const LONG: usize = 1 << 20;
/// The length of a turn while another client is active. The loop looks for new requests at least
/// every eighth turn.
const SHORT: usize = 64 << 10;
/// A client counts as active for this number of turns after its last request.
const ACTIVE: u64 = 10_000;

/// Identifies a client of this thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientId(u64);

/// The most recently active clients.
#[derive(Clone, Copy)]
struct Traffic {
    next_id: u64,
    /// The number of turns of all clients so far.
    turns: u64,
    /// The client of the last request, and its turn number.
    last: (ClientId, u64),
    /// The last turn number of any other client.
    other: u64,
}

thread_local! {
    static TRAFFIC: Cell<Traffic> =
        const { Cell::new(Traffic { next_id: 1, turns: ACTIVE, last: (ClientId(0), 0), other: 0 }) };
}

impl ClientId {
    /// Creates an identifier that is unique on this thread.
    pub fn new() -> ClientId {
        let traffic = TRAFFIC.get();
        TRAFFIC.set(Traffic { next_id: traffic.next_id + 1, ..traffic });
        ClientId(traffic.next_id)
    }

    /// Returns whether another client of this thread is active.
    pub fn has_company(self) -> bool {
        let Traffic { turns, last, other, .. } = TRAFFIC.get();
        let seen = if last.0 == self { other } else { last.1 };
        turns - seen < ACTIVE
    }

    /// Records that the client is active.
    pub fn note_request(self) {
        let mut traffic = TRAFFIC.get();
        if traffic.last.0 != self {
            traffic.other = traffic.last.1;
        }
        traffic.last = (self, traffic.turns);
        TRAFFIC.set(traffic);
    }
}

/// The part of the current turn that a client has used.
pub struct Turn {
    client: ClientId,
    used: usize,
}

impl Turn {
    /// Creates an unused turn.
    pub fn of(client: ClientId) -> Turn {
        Turn { client, used: 0 }
    }

    /// Counts a step that moves `bytes`. Yields when the turn is used up.
    ///
    /// # Errors
    ///
    /// [`Cancelled`] if the coroutine is cancelled: a client that sends without a pause would
    /// otherwise never let it notice.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Cancelled> {
        self.used += STEP + bytes;
        if self.used >= if self.client.has_company() { SHORT } else { LONG } {
            self.used = 0;
            let traffic = TRAFFIC.get();
            TRAFFIC.set(Traffic { turns: traffic.turns + 1, ..traffic });
            yield_now();
            check_cancelled()?;
        }
        Ok(())
    }
}
