//! Requests that direct I/O accepts, and others that it does not, on one file.

use std::io::{IoSlice, IoSliceMut};
use std::rc::Rc;

use coralio::driver::stats;
use coralio::fs::Direct;
use coralio::simulate::Simulation;
use coralio::{AlignedBuf, File, spawn};

use crate::{Temp, aligned, disk, on_each_backend, pattern};

const PAGES: usize = 64;
/// The unit of direct I/O on most disks; on other disks all these writes are page-cached.
const STEP: usize = 512;

/// Writes to each page of a file with two writers, one with direct and one with page-cached writes,
/// no two to the same byte, and then syncs. The writers use the two `files` in turns. Returns the
/// expected content.
fn write_mixed(files: [Rc<File>; 2]) -> Vec<u8> {
    let mut model = vec![0; PAGES * 8 * STEP];
    let mut writers = Vec::new();
    for page in 0..PAGES {
        for kind in 0..2 {
            let file = Rc::clone(&files[(page + kind) % 2]);
            let starts = (0..4).map(move |number| (page * 8 + number * 2 + kind) * STEP);
            for at in starts.clone() {
                match kind {
                    0 => model[at..at + STEP].fill(0xaa),
                    _ => model[at + 50..at + 450].fill(0xbb),
                }
            }
            writers.push(spawn(move || {
                for at in starts {
                    match kind {
                        0 => file.write_at(&aligned(&vec![0xaa; STEP]), at as u64).unwrap(),
                        _ => file.write_at(&[0xbb; 400], at as u64 + 50).unwrap(),
                    };
                }
            }));
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    files[0].sync_all().unwrap();
    model
}

#[test]
fn mixed_writes_do_not_fail_the_sync() {
    // E15: direct and page-cached writes to the same pages of a disk are all acknowledged and
    // synced
    on_each_backend(|| {
        for _ in 0..8 {
            let temp = Temp::with(&disk(), &[0; PAGES * 8 * STEP]);
            let file = Rc::new(temp.open(Direct::Auto));
            let model = write_mixed([Rc::clone(&file), file]);
            assert!(temp.content() == model);
        }
    });
}

#[test]
fn mixed_writes_of_two_files_do_not_fail_the_sync() {
    // E15: the order of direct and page-cached writes holds across the context's `File`s of one
    // path, also if one of them is always page-cached, or came from elsewhere
    on_each_backend(|| {
        for round in 0..8 {
            let temp = Temp::with(&disk(), &[0; PAGES * 8 * STEP]);
            let other = if round % 2 == 0 { Direct::Auto } else { Direct::Never };
            let moved = temp.open(other).detach().attach().unwrap();
            let model = write_mixed([temp.open(Direct::Auto), moved].map(Rc::new));
            assert!(temp.content() == model);
        }
    });
}

#[test]
fn mixed_writes_do_not_fail_the_sync_in_any_order() {
    // E15, E17: as above on the simulated backend, which fails the sync whenever the two kinds meet
    // on a page
    Simulation::new().run(0..10, |sim| {
        let open = |direct| File::options().write(true).direct(direct).open("mixed").map(Rc::new);
        let file = Rc::new(sim.create("mixed", 0));
        for other in [Rc::clone(&file), open(Direct::Auto)?, open(Direct::Never)?] {
            let model = write_mixed([Rc::clone(&file), other]);
            let content = sim.contents("mixed").unwrap();
            assert!(content[..] == model[..content.len()] && model[content.len()..].iter().all(|&byte| byte == 0));
        }
        Ok(())
    });
}

#[test]
fn unaligned_memory_stays_direct() {
    // E15: requests of every size from unaligned memory, plain and vectored, are bounced and
    // counted; none goes through the page cache
    on_each_backend(|| {
        let temp = Temp::with(&disk(), &vec![0; 3 << 20]);
        let file = temp.open(Direct::Auto);
        if !file.is_direct() || file.alignment().memory == 1 {
            return eprintln!("skipped: no direct I/O that requires aligned memory in {}", disk().display());
        }
        let before = stats();
        let mut model = temp.content();
        let mut requests = 0;
        for (number, len) in [4096, 8192, 65536, 1 << 20].into_iter().enumerate() {
            let data = aligned(&pattern(number as u64, len + 1));
            let at = number * (64 << 10);
            file.write_at(&data[1..], at as u64).unwrap();
            model[at..at + len].copy_from_slice(&data[1..]);
            let mut back = AlignedBuf::new(len + 1, 4096);
            file.read_exact_at(&mut back[1..], at as u64).unwrap();
            assert!(back[1..] == data[1..]);
            // Unaligned pieces that add up to an aligned range.
            let (pieces, rest) = data[1..].split_at(100);
            file.write_vectored_at(&[IoSlice::new(pieces), IoSlice::new(&[]), IoSlice::new(rest)], 2 << 20).unwrap();
            back.fill(0);
            let (pieces, rest) = back[1..].split_at_mut(1000);
            file.read_vectored_at(&mut [IoSliceMut::new(pieces), IoSliceMut::new(rest)], 2 << 20).unwrap();
            assert!(back[1..] == data[1..]);
            model[2 << 20..][..len].copy_from_slice(&data[1..]);
            requests += 4;
        }
        let after = stats();
        assert_eq!((after.bounced - before.bounced, after.page_cached - before.page_cached), (requests, 0));
        assert!(temp.content() == model);
        // Past the end, as without bouncing.
        let mut end = AlignedBuf::new(8193, 4096);
        end.fill(9);
        assert_eq!(file.read_at(&mut end[1..], (3 << 20) - 4096).unwrap(), 4096);
        assert!(end[4097..].iter().all(|&byte| byte == 9), "memory beyond the read is unchanged");
    });
}

#[test]
fn aligned_requests_are_made_as_they_are() {
    // E10, E15: an aligned request is one request from the caller's memory, neither bounced nor
    // page-cached, also where it meets an unaligned end of the file
    on_each_backend(|| {
        let temp = Temp::with(&disk(), &pattern(3, 8192 + 100));
        let file = temp.open(Direct::Auto);
        if !file.is_direct() {
            return eprintln!("skipped: no direct I/O in {}", disk().display());
        }
        let before = stats();
        let mut buf = AlignedBuf::new(4096, 4096);
        file.read_exact_at(&mut buf, 4096).unwrap();
        file.write_at(&buf, 0).unwrap();
        assert_eq!(file.read_at(&mut buf, 8192).unwrap(), 100);
        let (one, two) = buf.split_at_mut(2048);
        assert_eq!(file.read_vectored_at(&mut [IoSliceMut::new(one), IoSliceMut::new(two)], 8192).unwrap(), 100);
        assert_eq!(file.read_vectored_at(&mut [IoSliceMut::new(&mut [])], 0).unwrap(), 0, "no request");
        let after = stats();
        let done = (after.requests - before.requests, after.bounced - before.bounced);
        assert_eq!((done, after.page_cached - before.page_cached), ((4, 0), 0));
    });
}

#[test]
fn long_request_on_unaligned_memory_is_split() {
    // E15: the memory for it has a limit, however long the request
    coralio::run(|| {
        let temp = Temp::with(&disk(), &[]);
        let file = temp.open(Direct::Auto);
        if !file.is_direct() || file.alignment().memory == 1 {
            return eprintln!("skipped: no direct I/O that asks for aligned memory in {}", disk().display());
        }
        let before = stats();
        let len = (33 << 20) + 4096;
        let data = aligned(&pattern(1, len + 1));
        file.write_at(&data[1..], 0).unwrap();
        let mut back = AlignedBuf::new(len + 1, 4096);
        file.read_exact_at(&mut back[1..], 0).unwrap();
        assert!(back[1..] == data[1..]);
        assert_eq!((stats().bounced - before.bounced, stats().page_cached - before.page_cached), (6, 0));
        back.fill(0);
        let (pieces, rest) = back[1..].split_at_mut(17 << 20);
        file.read_vectored_at(&mut [IoSliceMut::new(pieces), IoSliceMut::new(rest)], 0).unwrap();
        assert!(back[1..] == data[1..]);
    });
}

#[test]
fn unaligned_offsets_use_the_page_cache() {
    // E15: requests at unaligned offsets go through the page cache, and are counted
    on_each_backend(|| {
        let temp = Temp::with(&disk(), &[0; 8192]);
        let file = temp.open(Direct::Auto);
        if !file.is_direct() {
            return eprintln!("skipped: no direct I/O in {}", disk().display());
        }
        let before = stats();
        file.write_at(b"odd", 5).unwrap();
        file.read_exact_at(&mut [0; 3], 5).unwrap();
        assert_eq!((stats().bounced - before.bounced, stats().page_cached - before.page_cached), (0, 2));
        // Offset and length have the same unaligned part, and their sum none.
        let halves = [IoSlice::new(&[1; 128]), IoSlice::new(&[2; 128])];
        assert_eq!(file.write_vectored_at(&halves, 256).unwrap(), 256);
        let mut back = [[0; 128]; 2];
        let [one, two] = &mut back;
        assert_eq!(file.read_vectored_at(&mut [IoSliceMut::new(one), IoSliceMut::new(two)], 256).unwrap(), 256);
        assert_eq!(back, [[1; 128], [2; 128]]);
        assert_eq!((stats().bounced - before.bounced, stats().page_cached - before.page_cached), (0, 6));
    });
}
