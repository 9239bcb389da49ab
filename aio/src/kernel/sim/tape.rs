//! The tape: every choice of a run, in order, as small numbers.
//!
//! A choice is a number below a bound, and 0 is always the tamest: nothing goes wrong, nothing is
//! reordered. Where the tape that was given ends, a generator goes on, or tameness does. What was
//! chosen is recorded, so that any run can be had again, cut shorter, or counted through.

use std::fmt;
use std::io;

/// A choice that was made: which of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) value: u32,
    pub(crate) bound: u32,
}

/// Where choices come from when what was given is used up.
enum Rest {
    Random(Generator),
    Tame,
}

pub(crate) struct Tape {
    given: Vec<u32>,
    rest: Rest,
    made: Vec<Choice>,
}

impl Tape {
    pub(crate) fn random(seed: u64) -> Tape {
        Tape { given: Vec::new(), rest: Rest::Random(Generator(seed)), made: Vec::new() }
    }

    /// These choices, and then the tamest.
    pub(crate) fn replay(choices: Vec<u32>) -> Tape {
        Tape { given: choices, rest: Rest::Tame, made: Vec::new() }
    }

    /// A number below `bound`. Where there is no choice, the tape does not move.
    pub(crate) fn choose(&mut self, bound: u32) -> u32 {
        self.make(bound, |generator| generator.below(bound))
    }

    /// Whether something happens that happens at this rate, 0 to 1.
    pub(crate) fn chance(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.make(2, |generator| u32::from(generator.unit() < rate)) == 1
    }

    fn make(&mut self, bound: u32, draw: impl FnOnce(&mut Generator) -> u32) -> u32 {
        if bound < 2 {
            return 0;
        }
        let value = match (self.given.get(self.made.len()), &mut self.rest) {
            // A tape that was cut shorter may say what cannot be here.
            (Some(&value), _) => value.min(bound - 1),
            (None, Rest::Random(generator)) => draw(generator),
            (None, Rest::Tame) => 0,
        };
        self.made.push(Choice { value, bound });
        value
    }

    pub(crate) fn made(&self) -> &[Choice] {
        &self.made
    }
}

/// splitmix64. Our own, so that a seed says the same in each version.
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u32
    }

    /// 0 to 1, without 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The tape after this one, if all are counted through: the last choice that can be raised is, and
/// what follows is tame.
pub(crate) fn successor(made: &[Choice]) -> Option<Vec<u32>> {
    let last = made.iter().rposition(|choice| choice.value + 1 < choice.bound)?;
    let mut next: Vec<_> = made[..=last].iter().map(|choice| choice.value).collect();
    next[last] += 1;
    Some(next)
}

/// Choices as text: `0*3,1,0,2`. The tame ones at the end need not be said.
pub(crate) struct Text<'a>(pub(crate) &'a [u32]);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().rposition(|&choice| choice != 0).map_or(0, |last| last + 1);
        if end == 0 {
            return f.write_str("0");
        }
        for (index, run) in self.0[..end].chunk_by(|one, next| one == next).enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            match run.len() {
                1 => write!(f, "{}", run[0])?,
                len => write!(f, "{}*{len}", run[0])?,
            }
        }
        Ok(())
    }
}

/// The reverse of [`Text`].
pub(crate) fn parse(text: &str) -> io::Result<Vec<u32>> {
    /// Longer than any run's; a slip of the pen does not fill the memory.
    const MOST: usize = 100_000_000;
    let mut choices = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (value, count) = part.split_once('*').unwrap_or((part, "1"));
        match (value.trim().parse::<u32>(), count.trim().parse::<usize>()) {
            (Ok(value), Ok(count)) if count <= MOST - choices.len() => {
                choices.extend(std::iter::repeat_n(value, count))
            }
            _ => {
                let message = format!("{part:?} is no choice on a tape; a tape looks like 0*3,1,0,2");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
    }
    Ok(choices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tape_is_recorded_and_replayed() {
        // E17: the same seed, the same choices; what was recorded says them again, and is tame
        // beyond its end. By reference: rustc before 1.97 can free an argument twice that two calls
        // are given by value (rust-lang/rust#158830).
        let draw = |tape: &mut Tape| {
            let drawn: Vec<_> = (0..100).map(|bound| (tape.choose(bound), tape.chance(0.5))).collect();
            (drawn, tape.made().iter().map(|choice| choice.value).collect::<Vec<_>>())
        };
        let (drawn, made) = draw(&mut Tape::random(7));
        assert_eq!(draw(&mut Tape::random(7)).0, drawn);
        assert_ne!(draw(&mut Tape::random(8)).0, drawn);
        let text = Text(&made).to_string();
        assert_eq!(draw(&mut Tape::replay(parse(&text).unwrap())).0, drawn);
        assert!(draw(&mut Tape::replay(Vec::new())).0.iter().all(|&(choice, chance)| choice == 0 && !chance));
        assert!(draw(&mut Tape::replay(vec![u32::MAX; 10])).1[..10].iter().eq(&[1, 1, 1, 1, 2, 1, 3, 1, 4, 1]));
    }

    #[test]
    fn tapes_as_text() {
        // E17: what is printed can be read; what cannot be read is refused.
        for (choices, text) in
            [(vec![0, 0, 0, 1, 0, 2, 0, 0], "0*3,1,0,2"), (vec![0; 9], "0"), (vec![], "0"), (vec![5; 2], "5*2")]
        {
            assert_eq!(Text(&choices).to_string(), text);
            let mut back = parse(text).unwrap();
            back.resize(choices.len().max(back.len()), 0);
            assert!(back.starts_with(&choices));
        }
        for text in ["", "1,,2", "x", "1*", "-1", "0*999999999999"] {
            assert!(parse(text).unwrap_err().to_string().contains("no choice on a tape"), "{text}");
        }
    }

    #[test]
    fn all_tapes_are_counted_through_once() {
        // E17: with bounds that depend on what was chosen before.
        let (mut next, mut seen) = (Some(Vec::new()), Vec::new());
        while let Some(given) = next {
            let mut tape = Tape::replay(given);
            let first = tape.choose(3);
            let rest: Vec<_> = (0..first).map(|_| tape.choose(2)).collect();
            seen.push((first, rest));
            next = successor(tape.made());
        }
        let expected = [
            (0, vec![]),
            (1, vec![0]),
            (1, vec![1]),
            (2, vec![0, 0]),
            (2, vec![0, 1]),
            (2, vec![1, 0]),
            (2, vec![1, 1]),
        ];
        assert_eq!(seen, expected);
    }
}
