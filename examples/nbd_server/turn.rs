//! Turns: bounds how much work one client gets before the other clients have their turn.
//!
//! A client whose socket always has data never waits, so its coroutine has to yield by itself. A turn is a number of bytes;
//! each request and option counts as [`STEP`] bytes besides its payload. While other clients of the thread are active too,
//! turns are short, and a client may have few requests under way: the queue of the disk is common to all.

use std::cell::Cell;

use coralio_aio::{Cancelled, check_cancelled, yield_now};

/// What a step costs besides the bytes that it moves.
const STEP: usize = 16 << 10;
/// The length of a client's turn while no other client is active: 64 steps without payload, which share system calls.
const LONG: usize = 1 << 20;
/// The length while another client is active. The loop looks for new requests every eighth turn at the latest.
const SHORT: usize = 64 << 10;
/// A client is active for this number of turns after its last request.
const ACTIVE: u64 = 10_000;

/// Names a client of this thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientId(u64);

/// The clients that were active last.
#[derive(Clone, Copy)]
struct Traffic {
    next_id: u64,
    /// Turns so far, of all clients.
    turns: u64,
    /// The client of the last request, and the turn of that.
    last: (ClientId, u64),
    /// The last turn of any other client.
    other: u64,
}

thread_local! {
    static TRAFFIC: Cell<Traffic> =
        const { Cell::new(Traffic { next_id: 1, turns: ACTIVE, last: (ClientId(0), 0), other: 0 }) };
}

impl ClientId {
    /// Creates a name that no other client of this thread has.
    pub fn new() -> ClientId {
        let traffic = TRAFFIC.get();
        TRAFFIC.set(Traffic { next_id: traffic.next_id + 1, ..traffic });
        ClientId(traffic.next_id)
    }

    /// Whether another client of this thread is active.
    pub fn has_company(self) -> bool {
        let Traffic { turns, last, other, .. } = TRAFFIC.get();
        let seen = if last.0 == self { other } else { last.1 };
        turns - seen < ACTIVE
    }

    /// Notes that the client is active.
    pub fn note_request(self) {
        let mut traffic = TRAFFIC.get();
        if traffic.last.0 != self {
            traffic.other = traffic.last.1;
        }
        traffic.last = (self, traffic.turns);
        TRAFFIC.set(traffic);
    }
}

/// What one client has used of its present turn.
pub struct Turn {
    client: ClientId,
    used: usize,
}

impl Turn {
    /// Creates a turn of which nothing is used.
    pub fn of(client: ClientId) -> Turn {
        Turn { client, used: 0 }
    }

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
