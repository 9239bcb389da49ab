//! The files of the root directory: the open ones are kept, and are checked against the directory
//! at each request.
//!
//! A hit costs one `stat`, which is made on the loop's thread: the file is open, so the kernel
//! answers from memory. Other calls may wait for the disk, and are made on `coralio`'s threads.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use coralio::fs::Direct;
use coralio::{File, unblock};

use crate::response::{Status, file_headers};

/// The maximum number of open files. At the limit all are closed, so the cache need not track their
/// use; files that are still in use are opened again.
const MAX_OPEN: usize = 512;

/// The root directory, and the files of it that are open.
pub struct Files {
    root: PathBuf,
    /// By the target of the request: an entry has passed all checks of the target.
    open: RefCell<HashMap<String, Rc<OpenFile>>>,
    /// The time of the last response in seconds, and its text.
    now: Cell<u64>,
    date: RefCell<Rc<str>>,
}

/// An open file, and the headers that describe all of it.
pub struct OpenFile {
    pub file: File,
    pub len: u64,
    /// In whole seconds, as in headers.
    pub modified: SystemTime,
    pub last_modified: String,
    pub content_type: &'static str,
    /// The headers of a response with the whole file.
    pub headers: Vec<u8>,
    path: PathBuf,
    version: Version,
}

/// The identity of a file and of its content.
type Version = (u64, u64, u64, i64, i64, i64, i64);

fn version(file: &Metadata) -> Version {
    (file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

impl Files {
    pub fn new(root: &Path) -> Files {
        Files { root: root.into(), open: RefCell::default(), now: Cell::new(0), date: RefCell::new(Rc::from("")) }
    }

    /// Returns the present value of the header `Date`.
    pub fn date(&self) -> Rc<str> {
        let now = SystemTime::now();
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.now.replace(seconds) != seconds {
            *self.date.borrow_mut() = httpdate::fmt_http_date(now).into();
        }
        Rc::clone(&self.date.borrow())
    }

    /// Returns the current file of a target.
    pub fn find(&self, target: &str) -> Result<Rc<OpenFile>, Status> {
        let known = self.open.borrow().get(target).cloned();
        if let Some(known) = known {
            if fs::metadata(&known.path).is_ok_and(|file| version(&file) == known.version) {
                return Ok(known);
            }
            let outdated = self.open.borrow_mut().remove(target);
            drop(outdated);
        }
        let file = Rc::new(OpenFile::open(self.root.join(relative_path(target)?))?);
        let mut open = self.open.borrow_mut();
        let closed = if open.len() >= MAX_OPEN { std::mem::take(&mut *open) } else { HashMap::new() };
        open.insert(target.into(), Rc::clone(&file));
        drop(open);
        drop(closed);
        Ok(file)
    }
}

impl OpenFile {
    fn open(path: PathBuf) -> Result<OpenFile, Status> {
        let owned = path.clone();
        // Before the open: opening a device or a pipe may have side effects.
        let metadata = unblock(move || fs::metadata(owned)).and_then(|found| found).map_err(|error| status(&error))?;
        if metadata.is_dir() {
            return Err(Status::Moved);
        }
        if !metadata.is_file() {
            return Err(Status::Forbidden);
        }
        let file = File::options().read(true).direct(Direct::Never).open(&path).map_err(|error| status(&error))?;
        let seconds = Duration::from_secs(metadata.mtime().try_into().unwrap_or(0));
        let modified = SystemTime::UNIX_EPOCH + seconds;
        let (len, version, content_type) = (metadata.len(), version(&metadata), content_type(&path));
        let last_modified = httpdate::fmt_http_date(modified);
        let headers = file_headers(len, content_type, &last_modified);
        Ok(OpenFile { file, len, modified, last_modified, content_type, headers, path, version })
    }
}

/// Converts a target to a path within the root: percent-decoded, and without `..`.
fn relative_path(target: &str) -> Result<PathBuf, Status> {
    let rest = target.strip_prefix('/').ok_or(Status::BadRequest)?;
    let mut bytes = Vec::with_capacity(rest.len());
    let mut encoded = rest.bytes();
    while let Some(byte) = encoded.next() {
        let mut digit = || encoded.next().and_then(|digit| char::from(digit).to_digit(16)).ok_or(Status::BadRequest);
        bytes.push(if byte == b'%' { (digit()? << 4 | digit()?) as u8 } else { byte });
    }
    if bytes.contains(&0) {
        return Err(Status::BadRequest);
    }
    if bytes.starts_with(b"/") || bytes.split(|&byte| byte == b'/').any(|part| part == b"..") {
        return Err(Status::Forbidden);
    }
    if bytes.is_empty() || bytes.ends_with(b"/") {
        bytes.extend_from_slice(b"index.html");
    }
    Ok(OsString::from_vec(bytes).into())
}

fn status(error: &io::Error) -> Status {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename => Status::NotFound,
        ErrorKind::PermissionDenied => Status::Forbidden,
        _ => Status::Internal,
    }
}

fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "md" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "mp4" => "video/mp4",
        _ => "application/octet-stream",
    }
}
