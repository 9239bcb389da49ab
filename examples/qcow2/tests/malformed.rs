//! Malformed images: thousands of random changes to tables, fields and entries. Reading and writing
//! such an image returns data or an error, and never panics, loops, or allocates memory based on an
//! invalid number.
//!
//! ```sh
//! CORALIO_QCOW2_ROUNDS=100000 cargo test --release -p coralio-qcow2 --test malformed
//! CORALIO_QCOW2_SEED=17 cargo test -p coralio-qcow2 --test malformed     # repeats one seed
//! ```

mod common;
#[path = "common/memory.rs"]
mod memory;

use common::all_operations::{MAX_MEMORY, use_it};
use common::valid_images::good_images;
use common::{Random, Scratch, seeds};
use coralio_qcow2::{CreateOptions, Qcow2};
use memory::Peak;

/// Makes a few changes: header fields, entries of probable tables, arbitrary bytes, the length.
fn spoil(image: &mut Vec<u8>, random: &mut Random) {
    let be = |image: &[u8], at: usize| u64::from_be_bytes(image[at..at + 8].try_into().unwrap());
    let tables = [be(image, 40), be(image, 48)];
    for _ in 0..1 + random.below(4) {
        let len = image.len() as u64;
        let first =
            |image: &[u8], table: u64| if table + 8 <= len { be(image, table as usize) & 0xffff_ffff_fe00 } else { 0 };
        let at = match random.below(7) {
            0 => random.below(112),
            1 => 4 * random.below(28),
            2 => tables[random.below(2) as usize] + 8 * random.below(16),
            3 => first(image, tables[0]) + 8 * random.below(64),
            4 => first(image, tables[1]) + random.below(64),
            5 if random.chance(4) => {
                image.truncate(random.below(len) as usize);
                image.resize(image.len().max(512), 0);
                continue;
            }
            _ => random.below(len),
        };
        let at = at.min(image.len() as u64 - 8) as usize;
        let value = match random.below(9) {
            0 => 0,
            1 => u64::MAX,
            2 => random.next(),
            3 => tables[random.below(2) as usize] | 1 << 63,
            4 => first(image, tables[random.below(2) as usize]) | 1 << 63,
            5 => (1 << 62) | random.next() >> 2,
            6 => (random.below(len / 512) * 512) | (1 << 63) | random.below(2),
            7 => be(image, at) ^ 1 << random.below(64),
            _ => be(image, at) ^ 1 << (56 + random.below(8)),
        };
        let width = [1, 4, 8][random.below(3) as usize];
        image[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}

#[test]
fn corrupt_images_do_no_harm() {
    // qcow2: no panic, no loop, no allocation based on an invalid number: only errors or data.
    let images = good_images();
    let folder = Scratch::new();
    std::fs::write(folder.path("source"), vec![7; 60_000]).unwrap();
    let path = folder.path("image");
    let peak = Peak::begin();
    let (mut fine, mut refused) = (0, 0);
    let rounds = seeds(if cfg!(debug_assertions) { 1000 } else { 20_000 });
    coralio::run(|| {
        for seed in rounds.clone() {
            let mut random = Random(seed);
            let mut image = images[random.below(images.len() as u64) as usize].clone();
            spoil(&mut image, &mut random);
            for write in [false, true] {
                std::fs::write(&path, &image).unwrap();
                // Prints the seed if the test fails.
                let shown = Shown(seed);
                match use_it(&path, &mut |bound| random.below(bound), write) {
                    Ok(()) => fine += 1,
                    Err(_) => refused += 1,
                }
                drop(shown);
            }
            let peak = peak.bytes();
            assert!(peak < MAX_MEMORY, "seed {seed}: peak of {peak} bytes; CORALIO_QCOW2_SEED={seed} repeats it");
        }
    });
    eprintln!("{fine} accepted, {refused} refused; peak of {} bytes", peak.bytes());
    assert!(rounds.end - rounds.start < 1000 || fine > 100 && refused > 100, "the images are all alike");
}

/// Prints the seed if the test fails.
struct Shown(u64);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}: CORALIO_QCOW2_SEED={} repeats it", self.0, self.0);
        }
    }
}

#[test]
fn every_corrupt_header_byte_is_harmless() {
    // qcow2: flips each bit of the first 112 bytes.
    let folder = Scratch::new();
    let path = folder.path("image");
    coralio::run(|| {
        Qcow2::create(&path, &CreateOptions { cluster_size: 512, ..CreateOptions::new(100_000) }).unwrap();
        let good = std::fs::read(&path).unwrap();
        for bit in 0..112 * 8 {
            let mut image = good.clone();
            image[bit / 8] ^= 1 << (bit % 8);
            for write in [false, true] {
                std::fs::write(&path, &image).unwrap();
                let mut random = Random(bit as u64);
                _ = use_it(&path, &mut |bound| random.below(bound), write);
            }
        }
    });
}
