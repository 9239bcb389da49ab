//! Exercise 3: a bounded channel.

use std::cell::Cell;
use std::rc::Rc;

use coralio::simulate::Sim;

use super::{Judged, join, judge, pause, say, spawn};

/// A channel that holds a limited number of values.
pub trait Channel: 'static {
    /// Creates an empty channel for up to `capacity` values.
    fn new(capacity: usize) -> Self;

    /// Appends a value. Waits while the channel is full.
    fn send(&self, value: u32);

    /// Removes the oldest value. Waits while the channel is empty.
    fn receive(&self) -> u32;
}

const CAPACITY: usize = 1;

/// A and B each send two values, X and Y each receive two; main may wake all of them for another
/// reason.
pub fn is_correct<C: Channel>() -> Judged {
    judge(|sim: &Sim| {
        let channel = Rc::new(C::new(CAPACITY));
        let (sent, asked) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let senders = [("A", 1), ("B", 3)].map(|(name, first)| {
            let (channel, sent, asked, sim) = (Rc::clone(&channel), Rc::clone(&sent), Rc::clone(&asked), sim.clone());
            spawn(name, move || {
                for value in first..first + 2 {
                    pause(&sim, 2);
                    channel.send(value);
                    say(format!("has sent {value}"));
                    sent.set(sent.get() + 1);
                    // A receiver that has called `receive` may have taken a value already.
                    assert!(
                        sent.get() <= asked.get() + CAPACITY,
                        "{} values were sent, {} receives have begun, and the channel is to hold {CAPACITY}.",
                        sent.get(),
                        asked.get(),
                    );
                }
            })
        });
        let receivers = ["X", "Y"].map(|name| {
            let (channel, asked, sim) = (Rc::clone(&channel), Rc::clone(&asked), sim.clone());
            spawn(name, move || {
                [(), ()].map(|()| {
                    pause(&sim, 2);
                    asked.set(asked.get() + 1);
                    say("receives");
                    let value = channel.receive();
                    say(format!("has received {value}"));
                    value
                })
            })
        });
        pause(sim, 3);
        if sim.choose(2) == 1 {
            say("wakes all, for another reason");
            senders.iter().for_each(|sender| sender.coroutine().wake());
            receivers.iter().for_each(|receiver| receiver.coroutine().wake());
        }
        let mut received = join(receivers).concat();
        join(senders);
        received.sort_unstable();
        assert!(received == [1, 2, 3, 4], "1, 2, 3 and 4 were sent, and {received:?} received.");
    })
}
