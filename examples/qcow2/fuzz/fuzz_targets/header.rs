//! Fuzzes the parser: opens and closes an image with its backing chain.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
mod input;
#[path = "../../tests/common/memory.rs"]
mod memory;

use std::fs;

use common::all_operations::MAX_MEMORY;
use common::valid_images::good_images;
use coralio_qcow2::{Options, Qcow2};
use input::{at_work, seed};
use libfuzzer_sys::fuzz_target;
use memory::Peak;

fuzz_target!(
    init: seed(good_images),
    |image: &[u8]| {
        let image = image.to_vec();
        at_work(move |folder| {
            let path = folder.path("image");
            let peak = Peak::begin();
            fs::write(&path, &image).unwrap();
            for write in [false, true] {
                _ = Qcow2::open(&path, &Options { write, ..Options::default() });
            }
            assert!(peak.bytes() < MAX_MEMORY, "peak of {} bytes", peak.bytes());
        });
    }
);
