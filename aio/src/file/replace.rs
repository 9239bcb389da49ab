//! Replacing a file: atomic, and durable on return.
//!
//! ```text
//!   write a temporary file in the same directory       crash: the old contents, and a leftover
//!   sync it                                            so that the name never leads to a torn file
//!   rename it over the name                            crash: the old or the new contents
//!   sync the directory                                 so that the new name is durable
//! ```

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use coralio_runtime::shield;

use crate::driver::Driver;
use crate::driver::unblock::unblock;

use super::error::failed;
use super::names::{metadata, remove_file, rename, sync_dir};
use super::{Direct, File};

/// Replaces a file's contents, or creates it: atomically, so that a reader, or a program after a
/// crash, finds the old contents or the new and never a mixture; and durably, once this returns.
///
/// The permissions of an existing file are kept; owner, other attributes and other hard links are
/// not, and a symbolic link is itself replaced. The directory must allow creating files. A crash may
/// leave a temporary file `.coralio-*.tmp` behind, which may be removed.
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("coralio-replace-doc-{}", std::process::id()));
/// coralio::run(|| {
///     coralio::fs::replace_file(&path, "first")?;
///     coralio::fs::replace_file(&path, "second")?;
///     assert_eq!(coralio::fs::read_to_string(&path)?, "second");
///     coralio::fs::remove_file(&path)
/// })
/// # }
/// ```
///
/// # Errors
///
/// `InvalidInput`: the path does not end with a name. Otherwise the kernel's error, with the path,
/// the failed step, cause and remedy; the old contents are then in place, unless the last step
/// failed, the sync of the directory: then the new contents are in place, but a crash may restore
/// the old ones.
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// May yield. A cancellation has no effect once the file is being renamed.
#[doc(alias = "atomic write")]
pub fn replace_file(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let path = path.as_ref();
    replace(path, contents.as_ref())
        .map_err(|error| failed(error, format!("cannot replace {}", path.display()), String::new()))
}

fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path must end with a file's name"));
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mode = mode_of(path)?;
    let (file, mut temporary) = create_in(folder, mode)?;
    // Before the contents are written, which must be no more accessible than those they replace.
    if let Some(mode) = mode {
        let file = file.to_std()?;
        unblock(move || file.set_permissions(Permissions::from_mode(mode)))??;
    }
    file.write_at(contents, 0)?;
    file.sync_all()?;
    drop(file);
    // After a cancellation between these two steps, the caller would not know which contents
    // remain.
    shield(|| {
        rename(&temporary.path, path)?;
        temporary.is_there = false;
        sync_dir(folder)
    })
}

/// A temporary file, removed on drop if it is still there.
struct Temporary {
    path: PathBuf,
    is_there: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.is_there {
            // If this fails, the file remains, as after a crash.
            let _ = shield(|| remove_file(&self.path));
        }
    }
}

/// Creates a file with a new name in a directory, with at most the permissions of `mode`.
fn create_in(folder: &Path, mode: Option<u32>) -> io::Result<(File, Temporary)> {
    loop {
        let path = folder.join(new_name());
        let options = File::options().write(true).create_new(true).direct(Direct::Never);
        match options.mode(mode.unwrap_or(0o666)).open(&path) {
            // The file was left by a crash of an earlier process with the same process id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return Ok((opened?, Temporary { path, is_there: true })),
        }
    }
}

/// Returns a name that no other file has; in a simulation, the same in each run of a seed.
fn new_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    if let Some(backend) = Driver::simulated() {
        return format!(".coralio-{}.tmp", backend.files().next_temporary());
    }
    // Relaxed: the numbers only have to differ.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!(".coralio-{}-{number}.tmp", std::process::id())
}

/// Returns the permissions of the file at `path`, if there is one, without the bits that would let
/// the new file run as its owner.
fn mode_of(path: &Path) -> io::Result<Option<u32>> {
    if Driver::simulated().is_some() {
        return Ok(None);
    }
    match metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => Ok(Some(found?.permissions().mode() & 0o777)),
    }
}
