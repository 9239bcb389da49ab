//! Fuzzes operations on whole images. The last bytes of an input choose the operations; the bytes
//! before them are the image.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;
mod input;
#[path = "../../tests/common/memory.rs"]
mod memory;

use std::fs;

use common::all_operations::{MAX_MEMORY, use_it};
use common::valid_images::good_images;
use input::{CHOICES, Choices, at_work, seed};
use libfuzzer_sys::fuzz_target;
use memory::Peak;

fuzz_target!(
    init: seed(|| good_images().into_iter().map(|image| [image, CHOICES.to_vec()].concat())),
    |bytes: &[u8]| {
        let (image, choices) = bytes.split_at(bytes.len().saturating_sub(CHOICES.len()));
        let (image, choices) = (image.to_vec(), choices.to_vec());
        at_work(move |folder| {
            let path = folder.path("image");
            let peak = Peak::begin();
            for write in [false, true] {
                fs::write(&path, &image).unwrap();
                let mut choices = Choices(&choices);
                _ = use_it(&path, &mut |bound| choices.below(bound), write);
                assert!(write || fs::read(&path).unwrap() == image, "reading has changed it");
            }
            assert!(peak.bytes() < MAX_MEMORY, "peak of {} bytes", peak.bytes());
        });
    }
);
