//! Shrinks a failing tape: parts are removed and choices lowered, as long as the tape still fails.

/// Shrinks `tape`. `fails` runs a tape, and returns the choices made if it fails. Makes at most
/// `most` runs; returns the shrunk tape and the number of runs.
pub(super) fn shrink(tape: Vec<u32>, most: u32, fails: impl FnMut(&[u32]) -> Option<Vec<u32>>) -> (Vec<u32>, u32) {
    let mut search = Search { best: trimmed(tape), fails, left: most };
    loop {
        let before = search.best.clone();
        search.cut();
        search.zero();
        search.shift();
        search.lower();
        if search.best == before || search.left == 0 {
            return (search.best, most - search.left);
        }
    }
}

/// Removes trailing zeroes, which are implied.
fn trimmed(mut tape: Vec<u32>) -> Vec<u32> {
    tape.truncate(tape.iter().rposition(|&choice| choice != 0).map_or(0, |last| last + 1));
    tape
}

/// The order of tapes by size: first by choices that are not 0, then by length, then by the sum of
/// choices.
fn size(tape: &[u32]) -> (usize, usize, u64) {
    let nonzero = tape.iter().filter(|&&choice| choice != 0).count();
    (nonzero, tape.len(), tape.iter().map(|&choice| u64::from(choice)).sum())
}

struct Search<F> {
    best: Vec<u32>,
    fails: F,
    left: u32,
}

impl<F: FnMut(&[u32]) -> Option<Vec<u32>>> Search<F> {
    /// Keeps `tape` if it fails too and the choices made are smaller than the best so far.
    fn offer(&mut self, tape: Vec<u32>) -> bool {
        let tape = trimmed(tape);
        if self.left == 0 || size(&tape) >= size(&self.best) {
            return false;
        }
        self.left -= 1;
        let Some(made) = (self.fails)(&tape).map(trimmed) else { return false };
        let smaller = size(&made) < size(&self.best);
        if smaller {
            self.best = made;
        }
        smaller
    }

    /// Offers the result of `change` for each block: large blocks first, from the end.
    fn blocks(&mut self, change: impl Fn(&[u32], usize, usize) -> Vec<u32>) {
        let mut len = self.best.len();
        while len > 0 {
            let mut end = self.best.len();
            while end > 0 {
                let start = end.saturating_sub(len);
                self.offer(change(&self.best, start, end.min(self.best.len())));
                end = start.min(self.best.len());
            }
            len /= 2;
        }
    }

    fn cut(&mut self) {
        self.blocks(|tape, start, end| [&tape[..start], &tape[end..]].concat());
    }

    fn zero(&mut self) {
        self.blocks(|tape, start, end| {
            let mut zero = tape.to_vec();
            zero[start..end].fill(0);
            zero
        });
    }

    /// Handles a choice that determines how many choices follow it: sets it to 0 and shifts the
    /// rest of the tape.
    fn shift(&mut self) {
        for place in (0..self.best.len()).rev() {
            for by in -4..=4i32 {
                if self.best.get(place).is_none_or(|&choice| choice == 0) {
                    break;
                }
                let (head, tail) = self.best.split_at(place);
                let tail = &tail[1 + (by.min(0).unsigned_abs() as usize).min(tail.len() - 1)..];
                let pad = vec![0; 1 + by.max(0) as usize];
                self.offer([head, &pad, tail].concat());
            }
        }
    }

    fn lower(&mut self) {
        for place in 0..self.best.len() {
            for lower in [|choice: u32| choice / 2, |choice: u32| choice - 1] {
                while self.best.get(place).is_some_and(|&choice| choice > 0) {
                    let mut tape = self.best.clone();
                    tape[place] = lower(tape[place]);
                    if !self.offer(tape) {
                        break;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn irrelevant_choices_are_removed() {
        // E17: a tape fails if a choice of 3 or more comes before one of 5 or more.
        let fails = |tape: &[u32]| {
            let first = tape.iter().position(|&choice| choice >= 3)?;
            tape[first + 1..].iter().any(|&choice| choice >= 5).then(|| tape.to_vec())
        };
        let tape: Vec<_> = (0..300).map(|place| place * 7 % 10).collect();
        assert_eq!(shrink(tape.clone(), 10_000, fails).0, [3, 5]);
        assert_eq!(shrink(tape.clone(), 0, fails).0, trimmed(tape));
    }

    #[test]
    fn later_choices_may_move() {
        // E17: a choice of 0 is followed by two more; a tape fails if the third round chooses 2.
        let fails = |tape: &[u32]| {
            let (mut place, mut last) = (0, 0);
            for _ in 0..3 {
                last = tape.get(place).copied().unwrap_or(0);
                place += if last == 0 { 3 } else { 1 };
            }
            (last == 2).then(|| tape.to_vec())
        };
        assert_eq!(shrink(vec![1, 1, 2, 1], 1000, fails).0, [0, 0, 0, 0, 0, 0, 2]);
    }

    #[test]
    fn shrunk_tape_still_fails() {
        // E17: a removal shifts later choices, so a part of a valid removal need not be valid: only
        // tapes that were seen to fail are kept.
        let fails = |tape: &[u32]| {
            let even = tape.iter().step_by(2).filter(|&&choice| choice == 1).count();
            (even >= 3).then(|| tape.to_vec())
        };
        let (tape, runs) = shrink(vec![1; 100], 10_000, fails);
        assert_eq!(tape.iter().sum::<u32>(), 3);
        assert!(fails(&tape).is_some() && runs < 1000);
    }
}
