//! Exercise 9. A rename that survives. After lesson 14.
//!
//! The file `dir/settings` is replaced: after a crash at any moment it has the old contents or the
//! new. A `rename` is atomic. What must be durable before it, and what after it?
//!
//! A name is not in the file, but in its directory. What a sync of either makes durable is in the
//! documentation of `File::sync_all` and of `coralio::fs`, which you should read first. You need
//! `File::options`, `write_at`, `sync_all`, `rename` and `sync_dir`.

use std::io;

use coralio::File;
use coralio::fs::{rename, sync_dir};

/// Replaces the contents of `dir/settings`. When it returns, the new contents are durable.
pub fn save(contents: &[u8]) -> io::Result<()> {
    todo!("write the contents to another file of `dir`, and rename it")
}
