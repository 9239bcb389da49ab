//! Wrong solutions of exercise 9.

use std::io;

use coralio::File;
use coralio::fs::{rename, sync_dir};

fn create(name: &str) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).open(name)
}

/// Overwrites the file.
pub fn in_place(contents: &[u8]) -> io::Result<()> {
    let file = create("dir/settings")?;
    file.write_at(contents, 0)?;
    file.sync_all()
}

/// Renames a file whose contents may not be durable.
pub fn without_the_contents(contents: &[u8]) -> io::Result<()> {
    let file = create("dir/settings.new")?;
    file.write_at(contents, 0)?;
    rename("dir/settings.new", "dir/settings")?;
    sync_dir("dir")
}

/// Returns before the rename is durable.
pub fn without_the_name(contents: &[u8]) -> io::Result<()> {
    let file = create("dir/settings.new")?;
    file.write_at(contents, 0)?;
    file.sync_all()?;
    rename("dir/settings.new", "dir/settings")
}

/// Syncs the contents after the rename.
pub fn syncs_late(contents: &[u8]) -> io::Result<()> {
    let file = create("dir/settings.new")?;
    file.write_at(contents, 0)?;
    rename("dir/settings.new", "dir/settings")?;
    file.sync_all()?;
    sync_dir("dir")
}
