//! A recording as a file, in the form that the file's name asks for.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::os_error::explained;

use super::event::Recording;

/// In which form a recording is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A page for a browser: [`Recording::html`].
    Html,
    /// For Perfetto: [`Recording::perfetto`].
    Json,
    /// Lanes of text: [`Recording::text`].
    Text,
}

impl Format {
    /// The one that a path asks for by its ending: `.html`, `.json` or `.txt`.
    ///
    /// # Errors
    ///
    /// Another ending, or none.
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
                        "{path}: its ending does not say how to write a trace; name it .html for a page, .json for Perfetto, \
                         or .txt for text"
                    ),
                ))
            }
        }
    }
}

impl Recording {
    /// Writes the run to a file: a page (`.html`), for Perfetto (`.json`), or as text (`.txt`). A page's title is the file's
    /// name.
    ///
    /// # Errors
    ///
    /// The path has another ending, or it can't be written; the message names it.
    ///
    /// # Control
    ///
    /// Never switches. Blocks its thread while the file is written.
    pub fn write(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        self.write_titled(path, &path.file_stem().unwrap_or_default().to_string_lossy(), None)
    }

    /// As [`write`](Self::write), with a title for a page; and with what the run failed with, if it did.
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
