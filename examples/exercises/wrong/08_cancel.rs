//! Wrong solutions of exercise 8.

use std::io;

use crate::judge::cancel::Permits;

/// The `?` of the read skips the release.
pub fn loses_it_on_errors(permits: &Permits, read: &dyn Fn() -> io::Result<usize>) -> io::Result<usize> {
    permits.acquire()?;
    let bytes = read()?;
    permits.release();
    Ok(bytes)
}

struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// Gives a permit back even if it got none.
pub fn returns_what_it_has_not(permits: &Permits, read: &dyn Fn() -> io::Result<usize>) -> io::Result<usize> {
    let _permit = Permit(permits);
    permits.acquire()?;
    read()
}

/// `_` binds nothing: the permit is given back before the read.
pub fn drops_it_early(permits: &Permits, read: &dyn Fn() -> io::Result<usize>) -> io::Result<usize> {
    permits.acquire()?;
    let _ = Permit(permits);
    read()
}

/// A read that panics skips the release.
pub fn loses_it_on_panics(permits: &Permits, read: &dyn Fn() -> io::Result<usize>) -> io::Result<usize> {
    permits.acquire()?;
    let result = read();
    permits.release();
    result
}
