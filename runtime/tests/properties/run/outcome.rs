//! The outcome of a step, in the model's terms.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use coralio_runtime::Cancelled;

use crate::program::Outcome;

use super::Thrown;

/// Treats a panic as an outcome, except the payload that unwinds a coroutine.
pub(super) fn caught(f: impl FnOnce() -> Outcome) -> Outcome {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(outcome) => outcome,
        Err(payload) if payload.is::<Cancelled>() => resume_unwind(payload),
        Err(payload) => outcome_of(payload),
    }
}

pub(super) fn outcome_of(payload: Box<dyn Any + Send>) -> Outcome {
    if payload.is::<Cancelled>() {
        return Outcome::Cancelled;
    }
    if let Some(thrown) = payload.downcast_ref::<Thrown>() {
        return Outcome::Panicked(thrown.0);
    }
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    Outcome::Fault(in_short(text.unwrap_or("a payload that is no text")))
}

/// Reduces a message to the model's terms: without source locations, and with one wording per
/// cause.
pub(super) fn in_short(text: &str) -> String {
    let causes = [
        ("outside a coroutine", "outside a coroutine"),
        ("already holds", "already holds"),
        ("joins itself", "joins itself"),
    ];
    match causes.into_iter().find(|(said, _)| text.contains(said)) {
        Some((_, cause)) => cause.to_string(),
        None => text.split(", at ").next().unwrap_or(text).to_string(),
    }
}
