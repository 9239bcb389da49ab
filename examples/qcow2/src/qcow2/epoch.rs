//! When a cluster that nothing refers to any more may be used anew.
//!
//! A request that has looked up where its cluster is may read or write there for a while after the tables have changed. So
//! what is given up carries the epoch in which that was, and is free when every request of that epoch has ended: two epochs
//! later. Requests are counted by the epoch's parity; the epoch moves on when nobody is left in the one before.

use std::cell::Cell;

#[derive(Default)]
pub(crate) struct Epochs {
    now: Cell<u64>,
    here: [Cell<u32>; 2],
}

/// A request is under way.
#[must_use]
pub(crate) struct Here<'a>(&'a Cell<u32>);

impl Epochs {
    #[inline]
    pub(crate) fn enter(&self) -> Here<'_> {
        let count = &self.here[self.now.get() as usize % 2];
        count.set(count.get() + 1);
        Here(count)
    }

    /// What is given up now belongs to this epoch.
    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    /// Moves on as far as it can. What was given up in an epoch below the returned one is free.
    pub(crate) fn advance(&self) -> u64 {
        for _ in 0..2 {
            let now = self.now.get();
            if self.here[(now as usize + 1) % 2].get() == 0 {
                self.now.set(now + 1);
            }
        }
        self.now.get() - self.now.get().min(1)
    }
}

impl Drop for Here<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::Epochs;

    #[test]
    fn what_a_request_may_see_is_not_free() {
        // A cluster is reused only when every request that may have looked it up has ended.
        let epochs = Epochs::default();
        let reader = epochs.enter();
        let given_up = epochs.now();
        for _ in 0..5 {
            assert!(epochs.advance() <= given_up);
            drop(epochs.enter()); // those that come later do not hold it up
        }
        drop(reader);
        assert!(epochs.advance() > given_up);
    }

    #[test]
    fn those_that_came_later_do_not_hold_it_up_for_ever() {
        // Under load somebody is always here.
        let epochs = Epochs::default();
        let given_up = epochs.now();
        let mut one = epochs.enter();
        let mut rounds = 0;
        while epochs.advance() <= given_up {
            let next = epochs.enter();
            drop(std::mem::replace(&mut one, next));
            rounds += 1;
            assert!(rounds < 5);
        }
    }
}
