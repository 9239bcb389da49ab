//! Formatting: by a closure, as by `std::fmt::from_fn`, which is stable since Rust 1.93; and `Debug`
//! without fields.

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

/// Implements `Debug` for types of which only the name is shown.
macro_rules! opaque_debug {
    ($($name:ident $(<$($parameter:tt),*>)?),*) => {$(
        impl $(<$($parameter),*>)? std::fmt::Debug for $name $(<$($parameter),*>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
pub(crate) use opaque_debug;
