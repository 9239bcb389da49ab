//! The renderings of a recording: text lanes, an HTML page, JSON for Perfetto.

mod file;
mod html;
mod json;
mod perfetto;
mod text;

pub use file::Format;
pub use text::TextOptions;
