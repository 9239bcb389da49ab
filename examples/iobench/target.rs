//! The file to use: the user's file, opened with care, or an unnamed scratch file.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::fs::Direct;
use coralio::task::OsCode;
use coralio::{AlignedBuf, File};
use coralio_qcow2::{Format, Image};

use crate::options::{DirectArg, Options, Versus};

/// The default size of a scratch file.
const SCRATCH_SIZE: u64 = 1 << 30;

/// Page alignment suits every device, and is the same for both sides.
const PAGE: usize = 4096;

/// An open file, and the part of it to use.
pub struct Target {
    pub file: Rc<File>,
    /// The disk in the file, if it is a qcow2 image.
    pub image: Option<Rc<dyn Image>>,
    /// For messages.
    pub name: String,
    pub scratch: bool,
    /// The number of bytes to use.
    pub size: u64,
    /// The number of whole blocks in `size`.
    pub blocks: u64,
}

impl Target {
    pub fn open(options: &Options) -> Result<Target, String> {
        match &options.file {
            Some(path) => {
                let name = path.display().to_string();
                look(path, options).map_err(|why| format!("{name}: {why}"))?;
                Target::finish(path, name, false, options)
            }
            None => {
                let (held, path) = scratch(options.size.unwrap_or(SCRATCH_SIZE))?;
                let name = format!("scratch file in {}", std::env::temp_dir().display());
                let target = Target::finish(&path, name, true, options);
                // No longer needed: the file has been opened through a second descriptor, or
                // opening has failed.
                drop(held);
                target
            }
        }
    }

    fn finish(path: &Path, name: String, scratch: bool, options: &Options) -> Result<Self, String> {
        let say = |why: String| format!("{name}: {why}");
        let direct = match options.direct {
            DirectArg::Auto => Direct::Auto,
            DirectArg::Always => Direct::Always,
            DirectArg::Never => Direct::Never,
        };
        let file =
            File::options().read(!options.write).write(options.write).direct(direct).open(path).map_err(|error| {
                match error.os_code() {
                    Some(libc::EINVAL) if direct == Direct::Always => {
                        say("its file system does not support direct I/O; use --direct auto or never".into())
                    }
                    _ => format!("{error}{}", remedy(&error)),
                }
            })?;
        let how = coralio_qcow2::Options { write: options.write, direct, format: Some(Format::Qcow2), lock: false };
        let image = options.qcow2.then(|| coralio_qcow2::open(path, &how)).transpose().map_err(|e| e.to_string())?;
        let len = image.as_ref().map_or_else(|| file.len(), |image| Ok(image.len())).map_err(|e| say(e.to_string()))?;
        let size = options.size.unwrap_or(len);
        let block = options.block_size;
        if size > len {
            return Err(say(format!(
                "--size {size} exceeds the file's {len} bytes; omit --size, or extend the file (truncate -s)"
            )));
        }
        if size < block {
            return Err(say(format!(
                "{size} bytes is less than one block of {block}; use a larger file or a smaller --block-size"
            )));
        }
        if matches!(options.versus, Some(Versus::Qemu)) && (size < len || !size.is_multiple_of(block)) {
            return Err(say(format!(
                "--versus qemu needs the whole file, in whole blocks, and the file has {len} bytes; omit --size, or \
                 extend the file (truncate -s)"
            )));
        }
        let step = file.alignment().block as u64;
        if !block.is_multiple_of(step) {
            return Err(say(format!(
                "--block-size {block} is not a multiple of {step}, as direct I/O needs; use a multiple, or --direct \
                 never"
            )));
        }
        Ok(Target { file: Rc::new(file), image, scratch, size, blocks: size / block, name })
    }

    /// Creates a buffer, the same way for both sides: filled so that its pages are mapped, and
    /// nonzero so that no lower layer turns a write into a hole.
    pub fn buffer(&self, options: &Options) -> AlignedBuf {
        let align = self.file.alignment().memory.max(PAGE);
        let mut buf = AlignedBuf::new(options.block_size as usize, align);
        buf.fill(0xc5);
        buf
    }
}

/// Returns a remedy for errors of opening the file that do not already include one.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; choose a file with sufficient permissions, or change them",
        io::ErrorKind::ReadOnlyFilesystem => "; omit --write, or choose a file on another file system",
        _ => "",
    }
}

/// Checks the file before opening it: opening a pipe would block, and a mounted disk must not be
/// written.
fn look(path: &Path, options: &Options) -> Result<(), String> {
    let kind = match fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err("no such file; create it (truncate -s 1G), or omit --file to use a scratch file".into());
        }
        Err(e) => return Err(format!("{e}; check the path and its permissions")),
    };
    if kind.is_dir() {
        return Err("is a directory; choose a file in it".into());
    }
    if !kind.is_file() && !kind.is_block_device() {
        return Err("is neither a regular file nor a block device; choose one of these".into());
    }
    if kind.is_block_device() && options.write {
        // The kernel grants an exclusive open only if the device is not mounted.
        fs::OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
            .map_err(|e| format!("{e}; --write needs a writable device that is not in use"))?;
    }
    Ok(())
}

/// Creates a sparse unnamed file, which disappears with the process. Through the returned path it
/// can be reopened with other flags as long as the returned file is open.
fn scratch(size: u64) -> Result<(fs::File, PathBuf), String> {
    // Each thread creates one.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("coralio-iobench-{}-{number}", std::process::id()));
    let say = |e: io::Error| format!("{}: {e}; free some space, or set TMPDIR to another directory", path.display());
    let file = fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(say)?;
    fs::remove_file(&path).map_err(say)?;
    file.set_len(size).map_err(say)?;
    let again = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, again))
}
