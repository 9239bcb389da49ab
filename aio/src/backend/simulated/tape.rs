//! The tape: every choice of a run, in order, as small numbers.
//!
//! A choice is a number below a bound, and 0 is always the most benign: no fault, no reordering.
//! After the end of a given tape, further choices come from a random generator or are 0. All
//! choices are recorded, so that a run can be replayed, shrunk, or enumerated.

use std::fmt;
use std::io;

/// A choice that was made, and its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) value: u32,
    pub(crate) bound: u32,
}

pub(crate) struct Tape {
    given: Vec<u32>,
    /// Makes the choices after the end of the given tape; they are 0 without it.
    rest: Option<Generator>,
    made: Vec<Choice>,
}

impl Tape {
    pub(crate) fn random(seed: u64) -> Tape {
        Tape { given: Vec::new(), rest: Some(Generator(seed)), made: Vec::new() }
    }

    /// Creates a tape that replays these choices, followed by zeroes.
    pub(crate) fn replay(choices: Vec<u32>) -> Tape {
        Tape { given: choices, rest: None, made: Vec::new() }
    }

    /// Chooses a number below `bound`. With a bound of 0 or 1 the tape does not advance.
    pub(crate) fn choose(&mut self, bound: u32) -> u32 {
        self.make(bound, |generator| generator.below(bound))
    }

    /// Chooses whether an event with this rate, 0 to 1, happens.
    pub(crate) fn chance(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.make(2, |generator| u32::from(generator.unit() < rate)) == 1
    }

    fn make(&mut self, bound: u32, draw: impl FnOnce(&mut Generator) -> u32) -> u32 {
        if bound < 2 {
            return 0;
        }
        let value = match (self.given.get(self.made.len()), &mut self.rest) {
            // A shrunk tape may have choices beyond the bound.
            (Some(&value), _) => value.min(bound - 1),
            (None, Some(generator)) => draw(generator),
            (None, None) => 0,
        };
        self.made.push(Choice { value, bound });
        value
    }

    pub(crate) fn made(&self) -> &[Choice] {
        &self.made
    }
}

/// splitmix64. Implemented here so that a seed has the same meaning in every version.
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

    /// Returns a number from 0 inclusive to 1 exclusive.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Returns the next tape of the enumeration: the last choice that can be raised is raised, and the
/// ones after it are dropped.
pub(crate) fn successor(made: &[Choice]) -> Option<Vec<u32>> {
    let last = made.iter().rposition(|choice| choice.value + 1 < choice.bound)?;
    let mut next: Vec<_> = made[..=last].iter().map(|choice| choice.value).collect();
    next[last] += 1;
    Some(next)
}

/// Choices as text: `0*3,1,0,2`. Trailing zeroes are omitted.
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

/// Parses the format of [`Text`].
pub(crate) fn parse(text: &str) -> io::Result<Vec<u32>> {
    /// Longer than any run's tape; a typing error must not exhaust the memory.
    const MAX: usize = 100_000_000;
    let mut choices = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (value, count) = part.split_once('*').unwrap_or((part, "1"));
        match (value.trim().parse::<u32>(), count.trim().parse::<usize>()) {
            (Ok(value), Ok(count)) if count <= MAX - choices.len() => choices.extend(std::iter::repeat_n(value, count)),
            _ => {
                let message = format!("invalid choice {part:?} on a tape: must be numbers such as 0*3,1,0,2");
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
    fn tape_is_recorded_and_replayed() {
        // E17: the same seed gives the same choices; a recorded tape replays them, and continues
        // with zeroes. By reference: rustc before 1.97 can free an argument twice if two calls of a
        // closure take it by value (rust-lang/rust#158830).
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
    fn tapes_are_printed_and_parsed() {
        // E17: printed tapes can be parsed; malformed ones are rejected.
        for (choices, text) in
            [(vec![0, 0, 0, 1, 0, 2, 0, 0], "0*3,1,0,2"), (vec![0; 9], "0"), (vec![], "0"), (vec![5; 2], "5*2")]
        {
            assert_eq!(Text(&choices).to_string(), text);
            let mut back = parse(text).unwrap();
            back.resize(choices.len().max(back.len()), 0);
            assert!(back.starts_with(&choices));
        }
        for text in ["", "1,,2", "x", "1*", "-1", "0*999999999999"] {
            assert!(parse(text).unwrap_err().to_string().contains("invalid choice"), "{text}");
        }
    }

    #[test]
    fn enumeration_visits_each_tape_once() {
        // E17: enumeration covers every tape once, with bounds that depend on earlier choices.
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
