//! Disk images as plain code. Whoever uses an image knows [`Image`] alone.

mod image;

pub use image::{Extent, Image, Zeroes};
