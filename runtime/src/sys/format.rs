//! Formatting by a closure, as by `std::fmt::from_fn`, which is stable since Rust 1.93.

use std::fmt;

struct FormatFn<F>(F);

impl<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result> fmt::Display for FormatFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)(f)
    }
}

/// Returns a value that `f` formats.
pub(crate) fn format_fn<F: Fn(&mut fmt::Formatter<'_>) -> fmt::Result>(f: F) -> impl fmt::Display {
    FormatFn(f)
}
