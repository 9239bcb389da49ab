//! Disk images as plain code: raw and qcow2. Whoever uses an image knows [`Image`] alone; [`open`] looks which one it is.
//!
//! A qcow2 file is made of *clusters*, and what the guest reads at an offset is found as in a page table. Each cluster of the
//! file has a *refcount*, found in the same way. What no entry points to is read from the *backing* image, or is zeroes.
//!
//! ```text
//!   guest's offset             header                                cluster of the file
//!   | l1 | l2 | in cluster |     |                                   | block | index |
//!      |    |                    |-- refcount table                      |       |
//!      |    |                    |      [ . . . ] <----------------------'       |
//!      |    |                    |          |                                    |
//!      |    |                    |          '-> refcount block [ 1 1 0 1 . . ] <-'
//!      |    |                    |
//!      '----|------------------> '-- L1 table [ . . . ]           kept in memory
//!           |                                   |
//!           '---------------------------------> '-> L2 table [ . . . . ]    in slices, in a cache
//!                                                      |
//!                              data  <-----------------+----> zero, compressed, or nothing: the backing image
//! ```
//!
//! | in `qcow2/` | idea |
//! |---|---|
//! | `header`, `extensions`, `snapshots`, `geometry` | what the bytes mean, and what cannot be |
//! | `start`, `create` | opening, with all tables checked against each other; a new image |
//! | `top`, `cache` | the tables in memory |
//! | `map`, `read`, `compressed` | where a guest's bytes are, and reading them |
//! | `write`, `zero`, `ranges` | writing in place and into fresh clusters, discarding; who changes what |
//! | `refcount`, `allocate`, `grow` | clusters of the file, given out and taken back |
//! | `flush`, `epoch` | the order in which things get to the disk; when a cluster may be used anew |

// These macros panic where nobody can read what they print; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod chain;
mod error;
mod holes;
mod image;
mod lock;
mod open;
mod qcow2;
mod raw;

pub use holes::next_data;
pub use image::{Extent, Image, Zeroes};
pub use open::{Format, Options, open};
pub use qcow2::{CreateOptions, Qcow2};
pub use raw::Raw;
