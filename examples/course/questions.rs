//! The questions before steps. Their texts are in `questions.json`, their answers in the recorded
//! runs.
//!
//! A question names an act by a part of its title, and an event by its text: `*` stands for any
//! text. The first event that fits gives the answer:
//!
//! ```text
//!   ask        the answer
//!   says       what `*` stands for
//!   next       who runs after the event
//!   in_flight  the engine's counter after the event
//!   yields     "yes" if the event is a yield, else "no"
//!   outcome    "ends well" or "fails"; needs no event, and is asked before the second step
//! ```

use serde::Deserialize;
use serde_json::{Value, json};

use crate::lessons::Act;
use crate::steps::Step;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    act: String,
    #[serde(default)]
    at: Vec<String>,
    ask: Ask,
    question: String,
    #[serde(default)]
    options: Vec<String>,
    hint: String,
    why: String,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Ask {
    Says,
    Next,
    InFlight,
    Yields,
    Outcome,
}

impl Question {
    pub(crate) fn is_of(&self, act: &Act) -> bool {
        act.title.contains(&self.act)
    }

    /// Returns the question with its step and its answer.
    ///
    /// # Errors
    ///
    /// No event fits, or the answer is none of the options.
    pub(crate) fn resolve(&self, act: &Act, steps: &[Step]) -> Result<Value, String> {
        let (at, answer) = self.answer(act, steps).ok_or_else(|| format!("no event fits: {}", self.question))?;
        let options = match self.ask {
            _ if !self.options.is_empty() => self.options.clone(),
            Ask::Outcome => vec!["ends well".into(), "fails".into()],
            Ask::Yields => vec!["yes".into(), "no".into()],
            Ask::Next => names(act),
            Ask::Says | Ask::InFlight => Vec::new(),
        };
        let Some(right) = options.iter().position(|option| *option == answer) else {
            return Err(format!("{answer:?} is none of {options:?}: {}", self.question));
        };
        Ok(json!({
            "step": at, "question": self.question, "options": options, "answer": right, "hint": self.hint, "why": self.why,
        }))
    }

    fn answer(&self, act: &Act, steps: &[Step]) -> Option<(usize, String)> {
        if self.ask == Ask::Outcome {
            return Some((1, if act.failure.is_some() { "fails".into() } else { "ends well".into() }));
        }
        let fits = |step: &Step| self.at.iter().find_map(|pattern| fitting(pattern, &step.words));
        let (at, said) = steps.iter().enumerate().find_map(|(at, step)| Some((at, fits(step)?)))?;
        let step = &steps[at];
        let answer = match self.ask {
            Ask::Says => said.to_string(),
            Ask::Next => name(act, step.running),
            Ask::InFlight => step.counters?[0].to_string(),
            Ask::Yields => if step.kind == "yield" { "yes" } else { "no" }.into(),
            Ask::Outcome => return None,
        };
        Some((at, answer))
    }
}

/// Returns what `*` stands for if a text fits a pattern.
fn fitting<'a>(pattern: &str, text: &'a str) -> Option<&'a str> {
    match pattern.split_once('*') {
        Some((before, after)) => text.strip_prefix(before)?.strip_suffix(after),
        None => (pattern == text).then_some(""),
    }
}

fn name(act: &Act, stack: i64) -> String {
    usize::try_from(stack).map_or("main".into(), |lane| act.recording.lanes[lane].name.clone())
}

fn names(act: &Act) -> Vec<String> {
    ["main".into()].into_iter().chain(act.recording.lanes.iter().map(|lane| lane.name.clone())).collect()
}
