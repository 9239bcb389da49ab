//! A solution of exercise 9. It is what `coralio::fs::replace_file` does.

use std::io;

use coralio::File;
use coralio::fs::{rename, sync_dir};

pub fn save(contents: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).open("dir/settings.new")?;
    file.write_at(contents, 0)?;
    // Before the rename, so that the name never leads to contents that are not durable.
    file.sync_all()?;
    rename("dir/settings.new", "dir/settings")?;
    // A rename changes the directory, which has to be made durable too.
    sync_dir("dir")
}
