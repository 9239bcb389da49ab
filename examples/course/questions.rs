//! The questions before steps. Their texts are in `questions.json`, their answers in the recorded
//! runs.
//!
//! A question names an act by a part of its title, and an event by its text: `*` stands for any
//! text. The first event that fits one of the texts in `at`, or the `nth`, gives the answer:
//!
//! ```text
//!   ask        the answer
//!   says       what `*` stands for
//!   next       who runs after the event
//!   in_flight  the number of requests in flight after the event
//!   yields     "yes" if the event is a yield, else "no"
//!   outcome    "ends well" or "fails"; needs no event, and is asked before the second step
//! ```
//!
//! The question comes before that event; with `before`, already before the first event that fits
//! this text, since the rows in between would give the answer away. `names` has the page's names of
//! the options.

use std::fmt;

use serde_json::{Value, json};

use crate::lessons::Act;
use crate::steps::Step;

/// The questions of all lessons.
pub(crate) struct Questions(Value);

pub(crate) struct Question<'a>(&'a Value);

/// Returns the questions.
pub(crate) fn questions() -> Questions {
    Questions(serde_json::from_str(include_str!("questions.json")).expect("questions.json is JSON"))
}

impl Questions {
    /// Returns the questions of the lesson in this folder.
    pub(crate) fn of(&self, folder: &str) -> Vec<Question<'_>> {
        self.0[folder].as_array().into_iter().flatten().map(Question).collect()
    }
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text("question"))
    }
}

impl Question<'_> {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("questions.json: no {key} in {}", self.0))
    }

    pub(crate) fn is_of(&self, act: &Act) -> bool {
        act.title.contains(self.text("act"))
    }

    /// Returns the question with its step and its answer.
    ///
    /// # Errors
    ///
    /// No event fits, or the answer is none of the options.
    pub(crate) fn resolve(&self, act: &Act, steps: &[Step]) -> Result<Value, String> {
        let question = self.text("question");
        let (at, answer) = self.answer(act, steps).ok_or_else(|| format!("no event fits: {question}"))?;
        let given = self.0["options"].as_array().into_iter().flatten();
        let given: Vec<_> = given.filter_map(Value::as_str).map(String::from).collect();
        let options = match self.text("ask") {
            _ if !given.is_empty() => given,
            "outcome" => vec!["ends well".into(), "fails".into()],
            "yields" => vec!["yes".into(), "no".into()],
            "next" => names(act),
            _ => given,
        };
        let Some(right) = options.iter().position(|option| *option == answer) else {
            return Err(format!("{answer:?} is none of {options:?}: {question}"));
        };
        let at = match self.0["before"].as_str() {
            Some(text) => {
                let place = steps.iter().position(|step| fitting(text, &step.words).is_some());
                place.ok_or_else(|| format!("no event {text}: {question}"))?.max(1)
            }
            None => at,
        };
        let names = self.0["names"].as_array().map_or(json!(options), |names| json!(names));
        Ok(json!({
            "step": at, "question": question, "options": names, "answer": right, "hint": self.text("hint"),
            "why": self.text("why"),
        }))
    }

    fn answer(&self, act: &Act, steps: &[Step]) -> Option<(usize, String)> {
        if self.text("ask") == "outcome" {
            return Some((1, if act.failure.is_some() { "fails".into() } else { "ends well".into() }));
        }
        let patterns: Vec<_> = self.0["at"].as_array()?.iter().filter_map(Value::as_str).collect();
        let nth = self.0["nth"].as_u64().unwrap_or(1) as usize;
        let fits = |step: &Step| patterns.iter().find_map(|pattern| fitting(pattern, &step.words).map(String::from));
        let (at, said) = steps.iter().enumerate().filter_map(|(at, step)| Some((at, fits(step)?))).nth(nth - 1)?;
        let step = &steps[at];
        let answer = match self.text("ask") {
            "says" => said,
            "next" => name(act, step.running),
            "in_flight" => step.counters.map_or(0, |counters| counters[0]).to_string(),
            "yields" => if step.kind == "yield" { "yes" } else { "no" }.into(),
            _ => return None,
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
    usize::try_from(stack).map_or(THREAD.into(), |lane| act.recording.lanes[lane].name.clone())
}

/// The name of the thread's own stack, as in the lanes.
const THREAD: &str = "thread";

fn names(act: &Act) -> Vec<String> {
    [THREAD.into()].into_iter().chain(act.recording.lanes.iter().map(|lane| lane.name.clone())).collect()
}
