//! Reads and writes of every size and alignment, plain and vectored.

use std::io::{IoSlice, IoSliceMut};

use coralio::fs::Direct;
use coralio::{AlignedBuf, File};

use crate::{Temp, aligned, disk, everywhere, on_each_backend, pattern, sim_of};

const SIZES: [usize; 9] = [0, 1, 511, 512, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1];

#[test]
fn every_size_at_every_offset_is_transferred() {
    // E15: data written at any size and offset is read back, and no other byte changes
    everywhere(|place, direct| {
        let temp = Temp::with(place, &vec![0xee; 3 << 20]);
        let file = temp.open(direct);
        let mut model = temp.content();
        for (round, &size) in SIZES.iter().enumerate() {
            for offset in [0usize, 1, 511, 512, 4096, 8191, 1 << 20] {
                let data = pattern((round * 100 + offset) as u64, size);
                assert_eq!(file.write_at(&data, offset as u64).unwrap(), size);
                model[offset..offset + size].copy_from_slice(&data);
                let mut back = vec![0; size];
                assert_eq!(file.read_at(&mut back, offset as u64).unwrap(), size);
                assert!(back == data, "{size} bytes at {offset}");
            }
        }
        assert!(temp.content() == model);
    });
}

#[test]
fn aligned_and_unaligned_requests_can_be_mixed() {
    // E15: with Direct::Auto, aligned and unaligned requests take different paths to the same file,
    // and each sees the other's effect
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[0; 64 * 1024]);
        let file = temp.open(direct);
        let mut model = vec![0; 64 * 1024];
        for round in 0..60u64 {
            let data = pattern(round, 8192);
            let (from, len) = match round % 3 {
                0 => ((round as usize * 4096) % 57344, 8192),
                1 => (round as usize * 777 % 57000, 5000),
                _ => (round as usize * 512 % 57344, 513),
            };
            // Aligned memory; or memory that is off by one, at an aligned offset.
            let buf = aligned(&[&data[..], &data[..]].concat());
            let start = if round % 6 == 3 { 1 } else { 0 };
            file.write_at(&buf[start..start + len], from as u64).unwrap();
            model[from..from + len].copy_from_slice(&buf[start..start + len]);
            let mut whole = AlignedBuf::new(64 * 1024, 4096);
            file.read_exact_at(&mut whole, 0).unwrap();
            assert!(whole[..] == model[..], "round {round}: direct");
            let mut odd = vec![0; 64 * 1024 - 1];
            file.read_exact_at(&mut odd, 1).unwrap();
            assert!(odd[..] == model[1..], "round {round}: page-cached");
        }
        assert!(temp.content() == model);
    });
}

#[test]
fn auto_mode_is_direct_if_possible() {
    // E15: Direct::Auto is direct where possible, Direct::Never is not; tmpfs accepts any alignment
    everywhere(|place, direct| {
        let temp = Temp::with(place, b"x");
        let file = temp.open(direct);
        assert!(direct == Direct::Auto || !file.is_direct());
        if !file.is_direct() || place.starts_with("/dev/shm") {
            assert_eq!((file.alignment().memory, file.alignment().block), (1, 1));
        } else {
            assert!(file.alignment().block.is_power_of_two() && file.alignment().block >= 512);
        }
    });
}

#[test]
fn vectored_data_round_trips() {
    // E15: vectored requests transfer many buffers, consecutive in the file; some of them empty,
    // some unaligned
    everywhere(|place, direct| {
        for (lens, at) in [
            (vec![4096, 8192, 4096], 4096),
            (vec![1, 0, 511, 4096, 0, 7, 70_000], 3),
            (vec![0, 0, 0], 0),
            (vec![], 9),
            (vec![5], 0),
            (vec![0, 4096, 0], 0),
        ] {
            let temp = Temp::at(place);
            let file = temp.open(direct);
            let total: usize = lens.iter().sum();
            let parts: Vec<_> = lens.iter().zip(1..).map(|(&len, seed)| aligned(&pattern(seed, len))).collect();
            let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            assert_eq!(file.write_vectored_at(&slices, at).unwrap(), total);
            let mut back: Vec<_> = lens.iter().map(|&len| AlignedBuf::new(len, 4096)).collect();
            let mut slices: Vec<_> = back.iter_mut().map(|part| IoSliceMut::new(part)).collect();
            assert_eq!(file.read_vectored_at(&mut slices, at).unwrap(), total);
            for (part, back) in parts.iter().zip(&back) {
                assert!(part[..] == back[..], "{lens:?} at {at}");
            }
            assert_eq!(file.len().unwrap(), if total == 0 { 0 } else { at + total as u64 });
        }
    });
}

#[test]
fn excess_vectors_are_split() {
    // E15: up to 1024 (IOV_MAX) buffers make one request; more take several
    everywhere(|place, direct| {
        for (count, len) in [(1024, 512), (1025, 512), (3000, 16)] {
            let temp = Temp::at(place);
            let file = temp.open(direct);
            let data = aligned(&pattern(count as u64, count * len));
            let slices: Vec<_> = data.chunks(len).map(IoSlice::new).collect();
            let before = coralio::driver::stats().requests;
            assert_eq!(file.write_vectored_at(&slices, 0).unwrap(), count * len);
            let requests = coralio::driver::stats().requests - before;
            // The simulated backend cuts some requests short; the rest is then transferred piece by
            // piece.
            if sim_of(place).is_none() && (!file.is_direct() || file.alignment().block <= len) {
                assert_eq!(requests, count.div_ceil(1024) as u64);
            }
            assert!(temp.content() == data[..]);
            let mut back = AlignedBuf::new(count * len, 4096);
            let mut slices: Vec<_> = back.chunks_mut(len).map(IoSliceMut::new).collect();
            assert_eq!(file.read_vectored_at(&mut slices, 0).unwrap(), count * len);
            assert!(back[..] == data[..]);
        }
    });
}

#[test]
fn write_past_the_end_grows_the_file() {
    // E15: a write past the end extends the file; the gap is a hole that reads as zeroes
    everywhere(|place, direct| {
        let temp = Temp::at(place);
        let file = temp.open(direct);
        file.write_at(&aligned(&[7; 4096]), 1 << 20).unwrap();
        file.write_at(b"odd", (2 << 20) + 5).unwrap();
        assert_eq!(file.len().unwrap(), (2 << 20) + 8);
        let mut back = AlignedBuf::new(4096, 4096);
        for offset in [0, 512 * 1024, (1 << 20) + 4096] {
            back.fill(9);
            assert_eq!(file.read_at(&mut back, offset).unwrap(), 4096);
            assert!(back.iter().all(|&byte| byte == 0), "at {offset}");
        }
        file.read_exact_at(&mut back, 1 << 20).unwrap();
        assert!(back.iter().all(|&byte| byte == 7));
        let mut tail = [9; 8];
        file.read_exact_at(&mut tail, 2 << 20).unwrap();
        assert_eq!(&tail, b"\0\0\0\0\0odd");
    });
}

#[test]
fn always_direct_accepts_aligned_requests() {
    // E15: Direct::Always transfers aligned requests and never uses the page cache
    on_each_backend(|| {
        let temp = Temp::at(&disk());
        let opened = File::options().read(true).write(true).create(true).direct(Direct::Always).open(&temp.0);
        let file = match opened {
            Ok(file) => file,
            Err(error) => return println!("skipped: {error}"),
        };
        assert!(file.is_direct());
        let data = aligned(&pattern(1, 64 * 1024));
        assert_eq!(file.write_at(&data, 8192).unwrap(), data.len());
        let mut back = AlignedBuf::new(data.len(), 4096);
        file.read_exact_at(&mut back, 8192).unwrap();
        assert!(back[..] == data[..]);
        assert!(temp.content()[8192..] == data[..]);
    });
}
