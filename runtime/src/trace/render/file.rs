//! Writes a recording to a file, in the format that the file name's extension selects.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::sys::explained;
use crate::trace::event::Recording;

/// The format of a written recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An HTML page: [`Recording::html`].
    Html,
    /// JSON for Perfetto: [`Recording::perfetto`].
    Json,
    /// Text lanes: [`Recording::text`].
    Text,
}

impl Format {
    /// Returns the format for the extension of `path`: `.html`, `.json` or `.txt`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for any other extension, or none.
    pub fn of(path: &Path) -> io::Result<Format> {
        match path.extension().and_then(OsStr::to_str) {
            Some("html") => Ok(Format::Html),
            Some("json") => Ok(Format::Json),
            Some("txt") => Ok(Format::Text),
            _ => {
                let path = path.display();
                Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "cannot write a trace to {path}: unknown extension; use .html for a page, .json for Perfetto, \
                         or .txt for text"
                    ),
                ))
            }
        }
    }
}

impl Recording {
    /// Writes the recording to a file: an HTML page (`.html`), JSON for Perfetto (`.json`) or text
    /// (`.txt`). The page's title is the file's name.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for any other extension; otherwise the system's error. The message names the
    /// path.
    ///
    /// # Control
    ///
    /// Never switches. Blocks its thread while the file is written.
    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        self.write_titled(path, &path.file_stem().unwrap_or_default().to_string_lossy(), None)
    }

    /// Does the same as [`write`](Self::write), with a title for the page and the message of the
    /// run's failure, if it failed.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    ///
    /// # Control
    ///
    /// As [`write`](Self::write).
    pub fn write_titled(&self, path: impl AsRef<Path>, title: &str, failure: Option<&str>) -> io::Result<()> {
        let path = path.as_ref();
        let text = match Format::of(path)? {
            Format::Html => self.html_titled(title, failure),
            Format::Json => self.perfetto(),
            Format::Text => self.text(),
        };
        std::fs::write(path, text)
            .map_err(|error| explained(error.kind(), format!("{}: {error}", path.display()), error))
    }
}
