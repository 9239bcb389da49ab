//! Disk images in sequential code: raw and qcow2. Users of an image only need [`Image`]; [`open`]
//! detects the format.
//!
//! A qcow2 file consists of *clusters*. The location of a guest's data is looked up as in a page
//! table. Each cluster of the file has a *refcount*, looked up in the same way. Unmapped offsets
//! are read from the *backing* image, or as zeroes if there is none.
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
//! | in `qcow2/` | purpose |
//! |---|---|
//! | `header`, `extensions`, `snapshots`, `geometry` | decoding and validating metadata |
//! | `start`, `create` | opening with consistency checks of all tables; creating images |
//! | `top`, `cache` | tables in memory |
//! | `map`, `read`, `compressed` | locating and reading guest data |
//! | `write`, `zero`, `ranges` | writing and discarding; exclusive access to mappings |
//! | `refcount`, `allocate`, `grow` | allocating and freeing clusters of the file |
//! | `flush`, `epoch` | the order of writes to disk; when a freed cluster may be reused |

// These macros panic if the output is closed; messages go through `report`.
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
