//! The coroutines that an iteration of the loop runs, and the events that it takes over from other
//! threads.

use crate::coroutine::State;
use crate::scheduler::{RemoteEvent, Scheduler};

impl Scheduler {
    /// Runs the coroutines that are ready now. Coroutines that become ready meanwhile wait for the
    /// next iteration, or for a nested one.
    ///
    /// # Control
    ///
    /// Enters coroutines.
    #[inline]
    pub(crate) fn run_ready(&self) -> bool {
        (self.has_ready() || self.shared.remote_queue.is_pending()) && self.run_taken()
    }

    #[inline(never)]
    fn run_taken(&self) -> bool {
        // Coroutines scheduled before another one yielded run before that one.
        self.take_remote_events();
        self.taken.append(&self.ready);
        let mut progress = false;
        while let Some(block) = self.taken.pop() {
            assert_eq!(self.local(block).state.get(), State::Scheduled, "a coroutine on a run list is scheduled");
            progress = true;
            if let Some(next) = self.taken.first() {
                self.prefetch(next);
            }
            self.enter(block);
        }
        progress
    }

    /// Returns whether a coroutine is ready to run.
    #[inline]
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.taken.is_empty()
    }

    /// Takes over the events pushed by other threads.
    fn take_remote_events(&self) {
        if !self.shared.remote_queue.is_pending() {
            return;
        }
        // Events left over by a panic, or by an outer iteration, come first.
        self.handle_remote_events();
        let mut events = self.taken_events.take();
        self.shared.remote_queue.take_all(&mut events);
        events.reverse();
        self.taken_events.set(events);
        self.handle_remote_events();
    }

    /// Handles the events taken over, one by one: an event may panic, or run a nested iteration,
    /// and the remaining ones stay on the list (rule W3).
    fn handle_remote_events(&self) {
        loop {
            let mut events = self.taken_events.take();
            let next = events.pop();
            let is_last = events.is_empty();
            self.taken_events.set(events);
            let id = match next {
                None => return,
                Some(RemoteEvent::Wake(id)) => id,
                Some(RemoteEvent::Run(f)) => {
                    if !is_last {
                        self.shared.remote_queue.keep_pending();
                    }
                    f();
                    continue;
                }
            };
            // A coroutine that ran since, or has ended, has had its wake (rules W3 and W4).
            if !id.is_live() || !id.block.word.is_scheduled() {
                continue;
            }
            let local = self.local(id.block);
            match local.state.get() {
                State::Suspended => {
                    local.state.set(State::Scheduled);
                    self.taken.push(id.block);
                }
                State::Entered => local.woken.set(true),
                State::Scheduled | State::Finished | State::Free => {}
            }
        }
    }
}
