//! Disk images as plain code. Whoever uses an image knows [`Image`] alone.

mod holes;
mod image;
mod raw;

pub use holes::next_data;
pub use image::{Extent, Image, Zeroes};
pub use raw::Raw;
