//! Exercise 9. A rename that survives. After lesson 14.
//!
//! The file `dir/settings` is replaced: after a crash at any moment it has the old contents or the
//! new. A `rename` is atomic. What must be durable before it, and what after it?
//!
//! You need `File::options`, `write_at`, `sync_all`, and `rename` and `sync_dir` of `coralio::fs`.

use std::io;

use coralio::File;
use coralio::fs::{rename, sync_dir};

/// Replaces the contents of `dir/settings`. When it returns, the new contents are durable.
pub fn save(contents: &[u8]) -> io::Result<()> {
    todo!("write the contents to another file of `dir`, and rename it")
}
