//! Channels and oneshot: every message arrives once and in order, disconnection is reported, and no
//! message is lost when an endpoint goes away.

use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use crate::common::{Log, panic_of};
use coralio_runtime::{
    AioContext, JoinHandle, Receiver, RecvError, SendError, Sender, TimedOut, TryRecvError, TrySendError, channel,
    oneshot, spawn, timeout, yield_now,
};

/// Spawns a coroutine that receives one message, and logs it with its name.
fn receive(receiver: &Receiver<u32>, log: &Log, name: &'static str) -> JoinHandle<()> {
    let (receiver, log) = (receiver.clone(), log.clone());
    spawn(move || match receiver.recv() {
        Ok(message) => log.add(format_args!("{name}{message}")),
        Err(error) => log.add(format_args!("{name}:{error:?}")),
    })
}

/// Spawns a coroutine that sends one message, and logs when that is done.
fn send(sender: &Sender<u32>, log: &Log, message: u32) -> JoinHandle<()> {
    let (sender, log) = (sender.clone(), log.clone());
    spawn(move || match sender.send(message) {
        Ok(()) => log.add(format_args!("sent{message}")),
        Err(error) => log.add(format_args!("{error:?}{}", error.into_inner())),
    })
}

fn join_all(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    tasks.into_iter().for_each(|task| task.join().unwrap());
}

#[test]
fn send_waits_for_room() {
    // S4: a send to a full channel waits; all messages are received in order
    AioContext::run(|ctx| {
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(2));
        let producer = spawn({
            let log = log.clone();
            move || {
                for n in 0..6 {
                    sender.send(n).unwrap();
                    log.add(format_args!("+{n}"));
                }
            }
        });
        ctx.poll(false);
        assert_eq!(log.take(), "+0 +1");
        assert_eq!(receiver.try_recv(), Ok(0));
        assert_eq!(log.take(), "", "the sender is woken, not entered");
        ctx.poll(false);
        assert_eq!(log.take(), "+2");
        assert_eq!(spawn(move || receiver.iter().collect::<Vec<_>>()).join().unwrap(), [1, 2, 3, 4, 5]);
        producer.join().unwrap();
    });
}

#[test]
fn waiters_are_served_in_order() {
    // S4: waiting receivers get messages, and waiting senders get space, in order of arrival; none
    // is overtaken
    AioContext::run(|ctx| {
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(1));
        let receivers = ["a", "b", "c"].map(|name| receive(&receiver, &log, name));
        ctx.poll(false);
        // The channel holds one message; these three go directly to the waiting receivers.
        for n in 1..=3 {
            sender.try_send(n).unwrap();
        }
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty), "they are a's, b's and c's");
        join_all(receivers);
        assert_eq!(log.take(), "a1 b2 c3");

        sender.try_send(4).unwrap();
        let senders = [5, 6].map(|message| send(&sender, &log, message));
        ctx.poll(false);
        assert_eq!(receiver.try_recv(), Ok(4));
        assert_eq!(sender.try_send(9), Err(TrySendError::Full(9)), "the room is for 5, which waited");
        assert_eq!(receiver.try_recv(), Ok(5));
        assert_eq!(receiver.try_recv(), Ok(6));
        join_all(senders);
        assert_eq!(log.take(), "sent5 sent6");
    });
}

#[test]
fn zero_capacity_send_waits_for_a_receiver() {
    // S4: with a capacity of 0 a send waits until its message is received, and try_send needs a
    // waiting receiver
    AioContext::run(|ctx| {
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(0));
        assert_eq!(sender.try_send(0), Err(TrySendError::Full(0)));
        let senders = [1, 2].map(|message| send(&sender, &log, message));
        ctx.poll(false);
        assert_eq!(log.take(), "");
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Ok(1), Ok(2)));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        join_all(senders);
        let waiting = receive(&receiver, &log, "r");
        ctx.poll(false);
        sender.try_send(3).unwrap();
        assert_eq!(sender.try_send(4), Err(TrySendError::Full(4)));
        waiting.join().unwrap();
        assert_eq!(log.take(), "sent1 sent2 r3");
    });
}

#[test]
fn receive_ends_after_the_last_sender() {
    // S4: after the last sender has gone, receivers still get the remaining messages, and then an
    // error, waiting receivers included
    AioContext::run(|ctx| {
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(3));
        let other = sender.clone();
        sender.try_send(1).unwrap();
        drop(sender);
        other.try_send(2).unwrap();
        let receivers = ["a", "b", "c", "d"].map(|name| receive(&receiver, &log, name));
        ctx.poll(false);
        assert_eq!(log.take(), "a1 b2");
        drop(other);
        join_all(receivers);
        assert_eq!(log.take(), "c:Disconnected d:Disconnected");
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
        assert_eq!(receiver.recv(), Err(RecvError::Disconnected));
        assert_eq!((&receiver).into_iter().next(), None);
    });
}

#[test]
fn send_without_receivers_returns_the_message() {
    // S4: when the last receiver goes, senders get an error, waiting senders included, and their
    // messages back
    AioContext::run(|ctx| {
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(1));
        sender.try_send(1).unwrap();
        let senders = [2, 3].map(|message| send(&sender, &log, message));
        ctx.poll(false);
        drop(receiver.clone());
        ctx.poll(false);
        assert_eq!(log.take(), "", "there is another one");
        drop(receiver);
        join_all(senders);
        assert_eq!(log.take(), "Disconnected(..)2 Disconnected(..)3");
        assert_eq!(sender.try_send(4), Err(TrySendError::Disconnected(4)));
        assert_eq!(sender.send(5), Err(SendError::Disconnected(5)));
    });
}

#[test]
fn unreceivable_messages_are_dropped_immediately() {
    // S4: messages left when the last receiver goes are dropped then; their destructors may use the
    // channel
    AioContext::run(|_| {
        struct Sends(Sender<Option<Sends>>, Log);
        impl Drop for Sends {
            fn drop(&mut self) {
                self.1.add(format_args!("{:?}", self.0.try_send(None).unwrap_err()));
            }
        }
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(2));
        sender.try_send(Some(Sends(sender.clone(), log.clone()))).unwrap();
        drop(receiver);
        assert_eq!(log.take(), "Disconnected(..)");

        // So a sender that waits for the answer to an unread message gets an error.
        let (sender, receiver) = channel::bounded(1);
        let (answer, answered) = oneshot::channel::<()>();
        sender.try_send(answer).unwrap();
        let waiting = spawn(move || answered.recv());
        let server = spawn(move || {
            yield_now();
            drop(receiver);
        });
        assert_eq!(waiting.join().unwrap(), Err(RecvError::Disconnected));
        server.join().unwrap();
    });
}

#[test]
fn wait_can_be_cancelled() {
    // S4: cancelling or a timeout ends a waiting send or receive early; the message is returned,
    // and none is lost
    AioContext::run(|ctx| {
        let (log, (sender, receiver)) = (Log::default(), channel::bounded(1));
        let soon = Duration::from_millis(1);
        let receivers = ["a", "b"].map(|name| receive(&receiver, &log, name));
        ctx.poll(false);
        receivers[0].cancel();
        ctx.poll(false);
        sender.try_send(1).unwrap();
        // It has its message already: too late to cancel.
        receivers[1].cancel();
        join_all(receivers);
        assert_eq!(log.take(), "a:Cancelled b1");
        let late = {
            let receiver = receiver.clone();
            spawn(move || timeout(soon, || receiver.recv()))
        };
        assert_eq!(late.join().unwrap(), Err(TimedOut));

        sender.try_send(2).unwrap();
        let senders = [3, 4].map(|message| send(&sender, &log, message));
        ctx.poll(false);
        senders[0].cancel();
        ctx.poll(false);
        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Ok(2), Ok(4)));
        join_all(senders);
        assert_eq!(log.take(), "Cancelled(..)3 sent4");
        // Operations that need not wait succeed even for a cancelled coroutine.
        let cancelled = spawn(move || (sender.send(5), receiver.recv(), receiver.recv()));
        cancelled.cancel();
        assert_eq!(cancelled.join().unwrap(), (Ok(()), Ok(5), Err(RecvError::Cancelled)));
    });
}

#[test]
fn channel_calls_outside_a_coroutine_do_not_wait() {
    // S4: outside a coroutine, operations that need not wait succeed, and those that would wait
    // panic with the remedy
    let (sender, receiver) = channel::bounded(1);
    sender.send(1).unwrap();
    let said = panic_of(|| sender.send(2));
    assert!(said.contains("spawn one"), "{said}");
    assert_eq!(receiver.recv(), Ok(1));
    let said = panic_of(|| receiver.recv());
    assert!(said.contains("`try_`"), "{said}");
    assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(
        format!("{} / {}", sender.try_send(3).is_ok(), sender.try_send(4).unwrap_err()),
        "true / the channel is full"
    );
}

#[test]
fn unwinding_receiver_loses_no_message() {
    // C9, S4: a receiver whose context ends after it was handed a message puts it back in front, or
    // hands it on
    for others_wait in [false, true] {
        let (sender, receiver) = channel::bounded(2);
        let (in_line, handed, ended) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            let theirs = receiver.clone();
            let (in_line, handed, ended) = (&in_line, &handed, &ended);
            scope.spawn(move || {
                AioContext::run(|ctx| {
                    drop(spawn(move || theirs.recv()));
                    ctx.poll(false);
                    in_line.wait();
                    handed.wait();
                });
                ended.wait();
            });
            in_line.wait();
            AioContext::run(|ctx| {
                let log = Log::default();
                sender.try_send(1).unwrap();
                let other = others_wait.then(|| receive(&receiver, &log, "other"));
                if !others_wait {
                    sender.try_send(2).unwrap();
                    sender.try_send(3).unwrap();
                }
                ctx.poll(false);
                assert_eq!(log.take(), "");
                handed.wait();
                ended.wait();
                match other {
                    Some(other) => {
                        other.join().unwrap();
                        assert_eq!(log.take(), "other1");
                    }
                    // There were temporarily more messages than the capacity; the limit holds again
                    // afterwards.
                    None => {
                        let waiting = send(&sender, &log, 4);
                        ctx.poll(false);
                        assert_eq!(receiver.try_recv(), Ok(1));
                        ctx.poll(false);
                        assert_eq!(log.take(), "");
                        assert_eq!((receiver.try_recv(), receiver.try_recv()), (Ok(2), Ok(3)));
                        waiting.join().unwrap();
                        assert_eq!((log.take(), receiver.try_recv()), ("sent4".to_string(), Ok(4)));
                    }
                }
                assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
            });
        });
    }
}

#[test]
fn unwinding_sender_drops_its_message() {
    // C9, S4: a message that waits for space is dropped with its sender, once; those behind it move
    // up
    let log = Log::default();
    let (sender, receiver) = channel::bounded(1);
    let sender = Arc::new(sender);
    AioContext::run(|ctx| {
        sender.try_send(log.on_drop("first")).unwrap();
        let (sender, log) = (Arc::clone(&sender), log.clone());
        drop(spawn(move || sender.send(log.on_drop("waiting"))));
        ctx.poll(false);
    });
    assert_eq!(log.take(), "waiting");
    drop(receiver.try_recv().unwrap());
    assert!(receiver.try_recv().is_err());
    // A sender whose wait ended since the last receiver is gone, and which was unwound before it
    // could return.
    AioContext::run(|ctx| {
        sender.try_send(log.on_drop("second")).unwrap();
        let (theirs, log) = (Arc::clone(&sender), log.clone());
        drop(spawn(move || theirs.send(log.on_drop("third"))));
        ctx.poll(false);
        drop(receiver);
    });
    assert_eq!(log.take(), "first second third");
}

#[test]
fn oneshot_delivers_one_value() {
    // S4: a oneshot's value is received once, whether it was sent before or during the wait; then
    // the sender is gone
    AioContext::run(|ctx| {
        let (sender, receiver) = oneshot::channel();
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        sender.send(1).unwrap();
        assert_eq!((receiver.recv(), receiver.recv()), (Ok(1), Err(RecvError::Disconnected)));

        let (sender, receiver) = oneshot::channel();
        let waiting = spawn(move || receiver.recv());
        ctx.poll(false);
        thread::scope(|scope| {
            scope.spawn(|| sender.send("from a thread without a loop").unwrap());
        });
        assert_eq!(waiting.join().unwrap(), Ok("from a thread without a loop"));
    });
}

#[test]
fn oneshot_reports_a_dropped_sender() {
    // S4: a oneshot's receiver distinguishes a dropped sender from a wait cut short; a sender gets
    // its value back
    AioContext::run(|ctx| {
        let (sender, receiver) = oneshot::channel::<u32>();
        let receiver = Rc::new(receiver);
        let wait = || {
            let receiver = Rc::clone(&receiver);
            spawn(move || receiver.recv())
        };
        let waiting = wait();
        ctx.poll(false);
        waiting.cancel();
        assert_eq!(waiting.join().unwrap(), Err(RecvError::Cancelled));
        let waiting = wait();
        ctx.poll(false);
        drop(sender);
        assert_eq!(waiting.join().unwrap(), Err(RecvError::Disconnected));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));

        let (sender, receiver) = oneshot::channel();
        drop(receiver);
        assert_eq!(sender.send(7), Err(7));
    });
}
